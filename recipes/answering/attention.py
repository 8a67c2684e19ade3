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
"""Where the words of many rows look."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm.image_reading_agevlm import read_image
from trainers import DataCollatorForGuidedVisionLanguageModeling


def query(
    image: PIL.Image.Image,
    message: int,
    text: str | None = None,
    span: list[int] | None = None,
    mask: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """
    A region that asks where the words of `message`, or its phrase `text`, look; without a mask it is the whole picture.
    """
    width, height = read_image(image).size
    everywhere = {"size": [height, width], "counts": [0, height * width]}
    return {"mask": mask or everywhere, "image": 0, "text": text, "span": span, "message": message}


class Grounding(NamedTuple):
    """Where the words of rows' regions look, on the CPU. R rows, K regions, L guided layers, S visual tokens."""

    maps: torch.Tensor
    """The guided heads' attention: `(R, K, L, S)`."""
    sink: torch.Tensor
    """Their attention on the sink, 0 for a model without one: `(R, K, L)`."""
    cells: torch.Tensor
    """The regions' cells: `(R, K, S)`, 1 inside."""


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
    """A model's `grounding_maps` of `num_cells` visual tokens as the first two of [`Grounding`]: on cells and on the sink."""
    maps = torch.stack([layer_map.cpu() for layer_map in grounding_maps], dim=2)  # layers may lie on several devices
    return maps[..., :num_cells], maps[..., num_cells:].sum(dim=-1)


def looking_inputs(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """What of a batch of rows a model takes to give its `grounding_maps`, on `device`."""
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "query_masks")
    return {name: batch[name].to(device) for name in names if name in batch}


@torch.inference_mode()
def grounding_maps(model: PreTrainedModel, processor: ProcessorMixin, rows: list[dict[str, Any]]) -> Grounding:
    """
    The attention that the rows' regions ask for.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        rows (`list[dict]`): Rows as for training, see [`DataCollatorForGuidedVisionLanguageModeling`].
    """
    batch = DataCollatorForGuidedVisionLanguageModeling(processor)(rows)
    inputs = looking_inputs(batch, model.device)
    cells = batch["region_masks"]
    return Grounding(*split_sink(model.model(**inputs).grounding_maps, cells.shape[-1]), cells)
