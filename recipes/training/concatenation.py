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
The concatenation model that the paper compares AGE-VLM with: the same ConvNeXt, projector and LLaMA, but the visual tokens stand
among the words, where self-attention reads them. It is a FastVLM of transformers, whose own classes load and run it.
"""

from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    TimmWrapperConfig,
)

from modeling_agevlm import AgeVlmProcessor, AgeVlmVisionConfig
from modeling_agevlm.conversion import VISUAL_STRIDE, load_llama, load_timm_tower, timm_tower
from recipes.answering.checkpoint import load_other, read_entries, read_other
from recipes.training.arguments import PartsArguments


CONCATENATION_TYPE = FastVlmConfig.model_type


def concatenate(
    parts: PartsArguments, processor: AgeVlmProcessor, attn_implementation: str | None = None
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    """
    A concatenation model around pretrained parts, and its processor, which writes the same words and stretches pictures to the
    same size as the AGE-VLM's. Only the projector is new.
    """
    tower, shapes = timm_tower(parts.vision)
    llama = load_llama(parts.text, parts.text_revision, torch.float32)
    llama.config._name_or_path = ""  # of this machine
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture=tower["architecture"],
            model_args=tower["model_args"],
            hidden_size=tower["hidden_size"],
            do_pooling=False,
            num_labels=0,
        ),
        text_config=llama.config,
        image_token_index=processor.image_token_id,
        image_seq_length=(parts.image_size // VISUAL_STRIDE) ** 2,
        tie_word_embeddings=llama.lm_head.weight is llama.get_input_embeddings().weight,
    )
    model = FastVlmForConditionalGeneration(config)
    # It has the norm of a head, too, which is not used.
    model.model.vision_tower.timm_model.load_state_dict(
        load_timm_tower(parts.vision, shapes, torch.float32), strict=False
    )
    model.model.language_model, model.lm_head = llama.model, llama.lm_head
    model.generation_config = llama.generation_config
    if attn_implementation is not None:
        model.set_attn_implementation({"text_config": attn_implementation})
    size = dict(processor.image_processor.size)
    image_processor = CLIPImageProcessor(
        size=size,
        crop_size=size,
        do_center_crop=False,
        resample=processor.image_processor.resample,
        image_mean=processor.image_processor.image_mean,
        image_std=processor.image_processor.image_std,
    )
    model.model.vision_tower.timm_model.stem.register_forward_pre_hook(in_channels_last)
    return model.eval(), LlavaProcessor(
        image_processor,
        processor.tokenizer,
        patch_size=VISUAL_STRIDE,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
    )


def load_concatenation(
    name: str, revision: str, attn_implementation: str
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    """
    A checkpoint of a concatenation model and its processor.

    Raises:
        ValueError: If its tower is no ConvNeXt, or tensors are missing.
    """
    check_convnext(read_entries(name, revision).get("vision_config"))
    config, processor = read_other(name, revision)
    attention = {"text_config": attn_implementation}
    model = load_other(name, config, revision, dtype="float32", attn_implementation=attention)
    model.model.vision_tower.timm_model.stem.register_forward_pre_hook(in_channels_last)
    return model, processor


def in_channels_last(module: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """The pictures as a ConvNeXt, which normalizes over channels, never has to copy them: as an AGE-VLM gives them to it."""
    return (args[0].contiguous(memory_format=torch.channels_last),)


def check_convnext(vision: Any) -> None:
    """Raises `ValueError` if the tower of a configuration's `vision_config` is not one that an AGE-VLM could have."""
    vision = vision if isinstance(vision, dict) else {}
    AgeVlmVisionConfig(architecture=vision.get("architecture", ""), model_args=vision.get("model_args"))
