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
"""Where the phrases of prompts look."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, ProcessorMixin


def map_size(height: int, width: int) -> tuple[int, int]:
    """In how many cells, at most 24 in height and width, attention over a picture of that size is kept to be drawn."""
    return max(1, round(24 * height / max(height, width))), max(1, round(24 * width / max(height, width)))


class Look(NamedTuple):
    """Where a phrase of a prompt looks, by the mean of the guided layers."""

    map: torch.Tensor
    """Its attention on the prompt's first picture: `(height, width)`."""
    on_nothing: float
    """The share of it that lies on the model's sink, 0 without one."""


@torch.inference_mode()
def look_of_phrases(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    phrases: Sequence[str],
    sizes: Sequence[tuple[int, int]],
) -> list[Look]:
    """
    Where a phrase of each prompt looks.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        inputs (`Mapping`): The prompts.
        phrases (`Sequence[str]`): Of each prompt one.
        sizes (`Sequence[tuple[int, int]]`): Of each prompt's first picture, over which its attention is told, in any resolution.
    """
    query_masks = processor.get_query_masks(inputs["input_ids"], [[phrase] for phrase in phrases])
    outputs = model.model(**inputs, query_masks=query_masks)
    shares = torch.zeros(len(phrases))
    if model.config.text_config.attention_sink:
        shares = torch.stack([layer_map[:, 0, -1].cpu() for layer_map in outputs.grounding_maps]).mean(dim=0)
    maps = processor.post_process_grounding(outputs, list(sizes))
    # rounding can take a mean of ones above 1
    return [Look(of_row[0][0], share) for of_row, share in zip(maps, shares.clamp(max=1).tolist(), strict=True)]


def split_sink(grounding_maps: Sequence[torch.Tensor], num_cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's `grounding_maps` of `num_cells` visual tokens as `(B, K, L, S)` on cells and `(B, K, L)` on the sink."""
    maps = torch.stack([layer_map.cpu() for layer_map in grounding_maps], dim=2)  # layers may lie on several devices
    return maps[..., :num_cells], maps[..., num_cells:].sum(dim=-1)
