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
"""
What a person runs: every file is a command, every folder a room that holds what commands share.

Every command imports this package before anything else but the standard library, so this is what they start with.
"""

import os
import sys
from pathlib import Path


# A script puts its own folder first on the path, where `evaluate.py` would hide the library of that name.
FOLDER = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != FOLDER]
# torchao (0.18) sets off a deprecation notice in torch (2.14) wherever peft is imported.
os.environ.setdefault("TORCH_LOGS", "-torch.utils._pytree")
