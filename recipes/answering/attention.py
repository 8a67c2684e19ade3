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

from typing import Any

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


@torch.inference_mode()
def grounding_maps(
    model: PreTrainedModel, processor: ProcessorMixin, rows: list[dict[str, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The attention that the rows' regions ask for.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        rows (`list[dict]`): Rows as for training, see [`DataCollatorForGuidedVisionLanguageModeling`].

    Returns:
        The maps, `(num_rows, num_regions, num_layers, num_image_tokens)`, and the regions' cells, `(num_rows,
        num_regions, num_image_tokens)`, both on the CPU.
    """
    batch = DataCollatorForGuidedVisionLanguageModeling(processor)(rows)
    inputs = {
        name: batch[name].to(model.device)
        for name in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "query_masks")
        if name in batch
    }
    maps = model.model(**inputs).grounding_maps
    return torch.stack(maps, dim=2).cpu(), batch["region_masks"]
