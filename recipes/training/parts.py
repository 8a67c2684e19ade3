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
"""Builds an AGE-VLM, or a concatenation model, and its processor from a pretrained ConvNeXt and a pretrained LLaMA."""

from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from modeling_agevlm import AgeVlmImageProcessor, AgeVlmProcessor, from_vision_text_pretrained
from modeling_agevlm.conversion import TEXT_HINT, loading, split_gguf, timm_config
from recipes.training.arguments import PartsArguments
from recipes.training.concatenation import concatenate
from trainers.rows import PLACEHOLDERS
from trainers.turns import end_generation_with_turns, end_of_turn


logger = logging.get_logger(__name__)

# Tokens of an LLM's vocabulary that no text has trained, best first, to fill rows up.
PADDINGS = ("<|finetune_right_pad_id|>", "<|pad|>")


def build(
    parts: PartsArguments, attn_implementation: str | None = None, is_concatenation: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    An AGE-VLM around pretrained parts that still answers as its LLM does, or a concatenation model, and its processor.
    `attn_implementation` is that of the LLM's own layers.

    Raises:
        ValueError: If a part cannot be loaded, does not fit, or the tokenizer has no chat template that ends turns.
    """
    checkpoint, gguf_file = split_gguf(parts.text)
    with loading(parts.text, TEXT_HINT):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, gguf_file=gguf_file, revision=parts.text_revision)
    vocabulary = tokenizer.get_vocab()
    image_token = next((token for token in PLACEHOLDERS if token in vocabulary), PLACEHOLDERS[0])
    tokenizer.add_special_tokens({"extra_special_tokens": [image_token]}, replace_extra_special_tokens=False)
    _, data_config = timm_config(parts.vision)
    image_processor = AgeVlmImageProcessor(
        size={"height": parts.image_size, "width": parts.image_size},
        image_mean=list(data_config["mean"]),
        image_std=list(data_config["std"]),
        do_pad=parts.do_pad,
        do_center_crop=parts.do_center_crop,
    )
    with loading(parts.text):  # before its weights, for a tokenizer may have no chat template that can be used
        processor = AgeVlmProcessor(image_processor, tokenizer, image_token=image_token)
        end_of_turn(processor)
    if is_concatenation:
        model, processor = concatenate(parts, processor, attn_implementation)
    else:
        model = from_vision_text_pretrained(
            parts.vision,
            parts.text,
            processor.image_token_id,
            image_size=parts.image_size,
            cross_attention_layers=parts.cross_attention_layers,
            cross_attention_intermediate_size=parts.cross_attention_intermediate_size,
            use_visual_positions=parts.use_visual_positions,
            attention_sink=parts.attention_sink,
            text_revision=parts.text_revision,
            attn_implementation=attn_implementation,
        )
    eos = model.generation_config.eos_token_id or []
    eos = sorted({*([eos] if isinstance(eos, int) else eos), tokenizer.eos_token_id} - {None})
    if tokenizer.pad_token is None or tokenizer.pad_token_id in eos:  # the end of a turn is no padding
        pad_token = next((token for token in PADDINGS if token in vocabulary), PADDINGS[-1])
        tokenizer.add_special_tokens({"pad_token": pad_token})
    if len(tokenizer) > model.config.text_config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.text_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.suppress_tokens = [processor.image_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = eos
    end_generation_with_turns(model.generation_config, processor)
    mend_generation_config(model.generation_config, parts.text)
    return model, processor


def mend_generation_config(config: GenerationConfig, name: str) -> None:
    """
    Unsets what keeps a generation config from being saved, and says so: mostly a temperature without `do_sample`, as older
    chat models have it, which changes no answer.

    Args:
        config ([`~transformers.GenerationConfig`]): Changed in place.
        name (`str`): Of the checkpoint that it comes from.
    """
    if is_valid(config.to_diff_dict()):
        return
    given, kept = config.to_diff_dict(), {}
    while fitting := [key for key in given if is_valid(kept | {key: given[key]})]:
        kept[fitting[0]] = given.pop(fitting[0])
    for key in given:
        setattr(config, key, None)
    logger.warning(f"The generation config of {name} cannot be saved as it is; without {', '.join(given)} it can.")


def is_valid(values: dict[str, Any]) -> bool:
    try:
        GenerationConfig(**values).validate(strict=True)
    except (ValueError, TypeError):
        return False
    return True
