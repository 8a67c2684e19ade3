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
from .data_collator import (
    BrokenRowError,
    DataCollatorForGuidedVisionLanguageModeling,
    decode_rle,
    displayed_size,
)
from .guidance_loss import GuidanceLoss, guidance_loss, guidance_loss_from_mass
from .guided_sft_config import GuidedSFTConfig
from .guided_sft_trainer import GuidedSFTTrainer
from .stages import STAGES, Stage, Variant, apply_stage, get_stage, lora_config, parameter_table


__all__ = [
    "STAGES",
    "BrokenRowError",
    "DataCollatorForGuidedVisionLanguageModeling",
    "GuidanceLoss",
    "GuidedSFTConfig",
    "GuidedSFTTrainer",
    "Stage",
    "Variant",
    "apply_stage",
    "decode_rle",
    "displayed_size",
    "get_stage",
    "guidance_loss",
    "guidance_loss_from_mass",
    "lora_config",
    "parameter_table",
]
