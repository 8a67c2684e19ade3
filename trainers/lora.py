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
"""Low-rank adapters on the LLM, where it trains and would not fit."""

from typing import Any

from peft import LoraConfig
from torch import nn

from .stages import Stage, cross_attention_layers, trained_vision_modules


def lora_config(model: nn.Module, stage: Stage, r: int = 16, lora_alpha: int = 32, **kwargs: Any) -> LoraConfig:
    """
    The `peft_config` of [`GuidedSFTTrainer`] that trains low-rank adapters on the LLM's self-attention instead of the
    LLM. The projector, the cross-attention layers and what `stage` trains of the vision tower train whole and are saved
    with the adapters. It takes the place of `apply_stage`: peft freezes all the rest.

    Args:
        model ([`AgeVlmForConditionalGeneration`], or a concatenation model): The model to train.
        stage ([`Stage`]): Which part of the vision tower trains.
        r (`int`, *optional*, defaults to 16): Rank of the adapters.
        lora_alpha (`int`, *optional*, defaults to 32): The adapters are scaled by `lora_alpha / r`.
        kwargs: Passed to [`peft.LoraConfig`].
    """
    base = model.model
    whole = [base.multi_modal_projector]
    whole += [base.language_model.layers[i] for i in cross_attention_layers(model)]
    whole += trained_vision_modules(model, stage.vision)
    names = {module: name for name, module in model.named_modules()}
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj",
        modules_to_save=[names[module] for module in whole],
        **kwargs,
    )
