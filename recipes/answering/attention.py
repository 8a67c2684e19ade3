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


def map_size(height: int, width: int, most: int = 24) -> tuple[int, int]:
    """In how many rows and columns, at most `most` of either, attention over a picture of that size is kept to be drawn."""
    return max(1, round(most * height / max(height, width))), max(1, round(most * width / max(height, width)))


class Look(NamedTuple):
    """Where a phrase of a prompt looks, by the mean of the guided layers."""

    map: torch.Tensor
    """Its attention on the prompt's first picture, at [`map_size`]: `(height, width)`."""
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
        sizes (`Sequence[tuple[int, int]]`): `(height, width)` of each prompt's first picture.
    """
    query_masks = processor.get_query_masks(inputs["input_ids"], [[phrase] for phrase in phrases])
    outputs = model.model(**inputs, query_masks=query_masks)
    cells, sink = first_picture(model, processor, outputs.grounding_maps)
    shares = sink[:, 0].mean(dim=-1).tolist()
    maps = [
        processor.image_processor.cells_to_pixels(of_row, *size, resolution=map_size(*size))
        for of_row, size in zip(cells[:, 0].mean(dim=1), sizes, strict=True)
    ]
    return [Look(*look) for look in zip(maps, shares, strict=True)]


def first_picture(
    model: PreTrainedModel, processor: ProcessorMixin, grounding_maps: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Of a model's `grounding_maps`, on the CPU, those over the first picture of each row, `(B, K, L, h, w)`, and what lies on the
    model's sink, 0 without one, `(B, K, L)`.
    """
    size, side = processor.image_processor.size, processor.image_processor.patch_size
    height, width = size.height // side, size.width // side
    num_cells = grounding_maps[0].shape[-1] - model.config.text_config.attention_sink
    cells, sink = split_sink(grounding_maps, num_cells)
    # rounding can take a share above 1
    return cells[..., : height * width].unflatten(-1, (height, width)), sink.clamp(max=1)


def split_sink(grounding_maps: Sequence[torch.Tensor], num_cells: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A model's `grounding_maps` of `num_cells` visual tokens as `(B, K, L, S)` on cells and `(B, K, L)` on the sink."""
    maps = torch.stack([layer_map.cpu() for layer_map in grounding_maps], dim=2)  # layers may lie on several devices
    return maps[..., :num_cells], maps[..., num_cells:].sum(dim=-1)
