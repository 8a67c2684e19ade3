# Copyright 2026 The AGE-VLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Scenes: pictures composed of drawings with exact masks, what is said about them, and questions to score a model by."""

from pathlib import Path


SPRITES = Path(__file__).parent / "sprites"
BACKBONES = Path(__file__).parent / "backbones"
TRAINED_MODEL = Path(__file__).parent / "model"
UNGUIDED_MODEL = Path(__file__).parent / "unguided_model"
