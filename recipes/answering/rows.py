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

from collections.abc import Mapping
from typing import Any, NamedTuple

import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.attention import split_sink
from trainers import DataCollatorForGuidedVisionLanguageModeling, RegionAttention, collator_for
from trainers.any_vlm_collator import without_targets


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
    """
    Where the words of rows' regions look, on the CPU. R rows, K regions, L layers, S visual tokens (of the row that has most).
    An AGE-VLM is read in its guided heads and layers, any other VLM in those that its [`RegionAttention`] reads.
    """

    maps: torch.Tensor
    """The attention `(R, K, L, S)`; of a VLM whose visual tokens stand among its words, a share of that on the pictures."""
    sink: torch.Tensor
    """What lies on the sink, 0 for an AGE-VLM without one, or off the pictures: `(R, K, L)`."""
    cells: torch.Tensor
    """The regions' cells: `(R, K, S)`, 1 inside."""


def looking_inputs(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """What of a batch of rows a model takes to give its `grounding_maps`, on `device`."""
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "query_masks")
    return {name: batch[name].to(device) for name in names if name in batch}


@torch.inference_mode()
def grounding_maps(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    attention: RegionAttention | None = None,
) -> Grounding:
    """
    The attention that the rows' regions ask for.

    Args:
        model ([`PreTrainedModel`]): The model.
        processor ([`ProcessorMixin`]): Its processor.
        rows (`list[dict]`): Rows as for training, see [`DataCollatorForGuidedVisionLanguageModeling`].
        attention ([`RegionAttention`], *optional*): Of the model, if it is no AGE-VLM.
    """
    if attention is not None:
        return read_maps(model, collator_for(model.config, processor)(rows), attention)
    batch = DataCollatorForGuidedVisionLanguageModeling(processor)(rows)
    inputs = looking_inputs(batch, model.device)
    cells = batch["region_masks"]
    return Grounding(*split_sink(model.model(**inputs).grounding_maps, cells.shape[-1]), cells)


@torch.inference_mode()
def read_maps(model: PreTrainedModel, batch: dict[str, torch.Tensor], attention: RegionAttention) -> Grounding:
    """As `grounding_maps`, of a batch of rows for a model whose visual tokens stand among its words."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    visual_tokens = batch["input_ids"] == model.config.image_token_id
    query_masks, regions = batch["query_masks"], batch["region_masks"]
    with attention.mapping(query_masks, visual_tokens) as reading:
        model.base_model(**without_targets(batch))
    maps = torch.stack([layer.mean(dim=2) for layer in reading.maps], dim=2)  # (R, K, L, S)
    on_picture = maps.sum(dim=-1)
    cells = torch.zeros_like(maps[:, :, 0])
    for row, is_visual in enumerate(visual_tokens):
        cells[row, :, : is_visual.sum()] = regions[row][:, :-1][:, is_visual]
    maps = maps / on_picture.clamp(min=torch.finfo(maps.dtype).tiny).unsqueeze(-1)
    # A layer whose window does not reach a picture takes the mean of the others, so that a mean over layers is theirs.
    sees = on_picture > 0
    share = (sees / sees.sum(dim=-1, keepdim=True).clamp(min=1)).unsqueeze(-1)
    maps = torch.where(sees.unsqueeze(-1), maps, (maps * share).sum(dim=2, keepdim=True))
    on_picture = torch.where(sees, on_picture, (on_picture * share[..., 0]).sum(dim=2, keepdim=True))
    return Grounding(maps.cpu(), 1 - on_picture.cpu(), cells.cpu())
