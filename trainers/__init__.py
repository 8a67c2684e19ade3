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
Guided training. A name's module is imported when the name is first asked for: the trainer's brings TRL and takes seconds,
which whoever reads a table of the stages need not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .any_vlm_collator import DataCollatorForAnyVisionLanguageModel, collator_for
    from .data_collator import (
        BrokenRowError,
        DataCollatorForGuidedVisionLanguageModeling,
    )
    from .guidance import GuidanceLoss, guidance_loss, guidance_loss_from_mass
    from .guided_sft_config import GuidedSFTConfig
    from .guided_sft_trainer import GuidedSFTTrainer
    from .head_choice import localizing_heads
    from .lora import lora_config
    from .region_attention import RegionAttention
    from .run_lengths import decode_rle
    from .stages import STAGES, Stage, Variant, apply_stage, get_stage, parameter_table
    from .visual_tokens import VisualTokens

MODULES = {
    "BrokenRowError": "data_collator",
    "DataCollatorForAnyVisionLanguageModel": "any_vlm_collator",
    "DataCollatorForGuidedVisionLanguageModeling": "data_collator",
    "GuidanceLoss": "guidance",
    "GuidedSFTConfig": "guided_sft_config",
    "GuidedSFTTrainer": "guided_sft_trainer",
    "RegionAttention": "region_attention",
    "STAGES": "stages",
    "Stage": "stages",
    "Variant": "stages",
    "VisualTokens": "visual_tokens",
    "apply_stage": "stages",
    "collator_for": "any_vlm_collator",
    "decode_rle": "run_lengths",
    "get_stage": "stages",
    "guidance_loss": "guidance",
    "guidance_loss_from_mass": "guidance",
    "localizing_heads": "head_choice",
    "lora_config": "lora",
    "parameter_table": "stages",
}
__all__ = list(MODULES)


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
