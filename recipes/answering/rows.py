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
