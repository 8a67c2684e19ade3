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
What the model's sizes alone say of its costs: floating-point operations of a training step and of a prefill, bytes of
the cache, bytes that a decoding step has to read. A multiplication with its addition counts as two operations;
norms, activations and other elementwise work do not count, and neither does what is computed a second time.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmVisionModel
from trainers import Stage


@dataclass(frozen=True)
class Work:
    """One product of a forward pass: the operations it takes, and which gradients the backward pass takes through it."""

    part: str
    """`"tower"`, `"projector"`, `"text"` or `"head"`."""
    flops: int
    trains: bool = False
    """Whether its weight needs a gradient."""
    passes: bool = True
    """Whether its input does."""
    is_attention: bool = False
    """Whether it is the two products of an attention, which have four of the same size for their gradients."""

    @property
    def step_flops(self) -> int:
        """Operations of forward and backward pass."""
        if self.is_attention:
            return self.flops * (3 if self.passes else 1)
        return self.flops * (1 + self.trains + self.passes)


def total(works: Iterable[Work], step: bool = False, parts: tuple[str, ...] = ()) -> int:
    """Operations of a forward pass, or of a training step; of some `parts` or of all."""
    return sum(work.step_flops if step else work.flops for work in works if not parts or work.part in parts)


def tower_work(config: AgeVlmConfig, num_images: int, stage: Stage, image_size: int | None = None) -> list[Work]:
    """The convolutions and linear layers of the ConvNeXt."""
    with torch.device("meta"):
        tower = AgeVlmVisionModel(config.vision_config)
    side = image_size or config.vision_config.image_size
    all_train = stage.vision == "all"
    works = []

    def add(module: torch.nn.Module, side: int, trains: bool, passes: bool = True) -> None:
        works.append(Work("tower", 2 * num_images * side * side * module.weight.numel(), trains, passes))

    for module in tower.timm_model.stem.modules():
        if isinstance(module, torch.nn.Conv2d):
            side //= module.stride[0]
            add(module, side, all_train, passes=False)
    for n, blocks in enumerate(tower.stages):
        trains = all_train or (stage.vision == "last_stage" and n == len(tower.stages) - 1)
        for module in blocks.modules():
            if isinstance(module, torch.nn.Conv2d):
                side //= module.stride[0]
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                add(module, side, trains, passes=trains)
    return works


def text_work(
    config: AgeVlmConfig,
    batch_size: int,
    text_tokens: int,
    visual_tokens: int,
    labels: int,
    stage: Stage,
    cross_attention: bool = True,
) -> list[Work]:
    """
    The projector, the layers and the head. Self-attention counts as if every token saw every other one, for so the
    kernels that take a mask compute it.

    Args:
        config ([`AgeVlmConfig`]): The model.
        batch_size (`int`): Rows.
        text_tokens (`int`): Tokens of a row in the LLM.
        visual_tokens (`int`): Visual tokens of a row.
        labels (`int`): Positions of the whole batch that the head computes logits for.
        stage ([`Stage`]): Which parts train.
        cross_attention (`bool`, *optional*, defaults to `True`):
            False for an LLM without such layers, which has the visual tokens among its own `text_tokens`.
    """
    text, tokens, seen = config.text_config, batch_size * text_tokens, batch_size * visual_tokens
    hidden, trains = text.hidden_size, stage.language_model
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    passes = trains or not cross_attention  # whether the layer's input needs a gradient: not below all that trains
    works = [
        Work("projector", 2 * seen * config.vision_config.hidden_size * hidden, True, stage.vision != "none"),
        Work("projector", 2 * seen * hidden * hidden, True),
    ]
    for layer in range(text.num_hidden_layers):
        if layer not in text.cross_attention_layers:
            width = 2 * queries + 2 * keys + 3 * text.intermediate_size
            works.append(Work("text", 2 * tokens * hidden * width, trains, passes))
            works.append(Work("text", 4 * tokens * text_tokens * queries, passes=passes, is_attention=True))
        elif cross_attention:
            width = 2 * queries + 3 * text.cross_attention_intermediate_size
            works.append(Work("text", 2 * tokens * hidden * width, True))
            works.append(Work("text", 2 * seen * hidden * 2 * keys, True))
            works.append(Work("text", 4 * tokens * visual_tokens * queries, is_attention=True))
            passes = True
    works.append(Work("head", 2 * labels * hidden * text.vocab_size, trains))
    return works


def guidance_work(
    config: AgeVlmConfig, batch_size: int, text_tokens: int, visual_tokens: int, num_regions: int, maps: bool
) -> list[Work]:
    """What guidance adds: channels of masks in the attention, or the maps' scores and their means over the queries."""
    text = config.text_config
    pairs = batch_size * text_tokens * visual_tokens
    if maps:
        flops = 2 * pairs * (text.num_attention_heads * text.head_dim + num_regions)
    else:
        flops = 4 * pairs * text.num_attention_heads * (-(-num_regions // 8) * 8)
    return [Work("text", flops, is_attention=True)] * len(text.cross_attention_layers)


def cache_bytes(
    config: AgeVlmConfig, text_tokens: int, visual_tokens: int, element_size: int, cross_attention: bool = True
) -> int:
    """
    Keys and values of one row. Without `cross_attention`, of an LLM that holds the visual tokens in every layer beside
    the text's.
    """
    text = config.text_config
    per_token = 2 * text.num_key_value_heads * text.head_dim * element_size
    if not cross_attention:
        return len(text.self_attention_layers) * (text_tokens + visual_tokens) * per_token
    text_entries = len(text.self_attention_layers) * text_tokens
    return (text_entries + len(text.cross_attention_layers) * visual_tokens) * per_token


def weight_bytes(config: AgeVlmConfig, element_size: int, cross_attention: bool = True) -> int:
    """The weights that a decoding step reads: all of the layers but what makes visual keys and values, and the head."""
    with torch.device("meta"):
        model = AgeVlmForConditionalGeneration(config)
    layers = tuple(f"layers.{n}." for n in config.text_config.cross_attention_layers)
    count = model.lm_head.weight.numel()
    for name, parameter in model.model.language_model.named_parameters():
        visual = name.startswith(layers) and (
            not cross_attention or any(part in name for part in (".k_proj.", ".v_proj.", ".k_norm."))
        )
        if name != "embed_tokens.weight" and not visual:
            count += parameter.numel()
    return count * element_size
