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
"""SAM: from boxes to masks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from transformers import AutoModelForMaskGeneration, AutoProcessor, Sam2Processor

from modeling_agevlm.conversion import loading
from recipes.segmentation.arguments import MaskArguments


class Segmenter:
    """SAM, SAM-HQ or SAM 2. From boxes to masks."""

    @property
    def pads(self) -> bool:
        """Whether pictures are padded to a square (SAM, SAM-HQ) or stretched (SAM 2)."""
        return not isinstance(self.processor, Sam2Processor)

    def __init__(self, arguments: MaskArguments, device: torch.device, dtype: torch.dtype) -> None:
        with loading(arguments.sam):
            self.processor = AutoProcessor.from_pretrained(arguments.sam)
            self.model = AutoModelForMaskGeneration.from_pretrained(arguments.sam, dtype=dtype).to(device).eval()
        self.device, self.dtype = device, dtype

    def encode(self, pictures: list[PIL.Image.Image]) -> list["Encoded"]:
        """What the decoder needs of each picture."""
        inputs = self.processor(images=pictures, return_tensors="pt")
        original = inputs["original_sizes"]
        fed = torch.tensor(inputs["pixel_values"].shape[-2:]).expand(len(pictures), 2)
        if self.pads:
            fed = inputs["reshaped_input_sizes"]
        return [Encoded(*parts) for parts in zip(self.embed(inputs["pixel_values"]), original, fed, strict=True)]

    def masks(self, raw: "RawMasks") -> Iterator[tuple[np.ndarray, float]]:
        """The mask in each box, `(height, width)` of the picture, and its score."""
        sizes = [raw.original_size[None]]
        if self.pads:
            sizes.append(raw.fed_size[None])
        for logits, score in zip(raw.logits, raw.scores.tolist(), strict=True):  # one by one: they are large
            yield self.processor.post_process_masks([logits[None, None]], *sizes)[0][0, 0].numpy(), score

    def prompt(self, encoded: "Encoded", boxes: Sequence[tuple]) -> "RawMasks":
        """What the network makes of boxes in the picture's pixels."""
        scale = (encoded.fed_size / encoded.original_size).flip(0).repeat(2)  # of x, y, x, y
        logits, scores = self.decode(encoded.features, torch.tensor(boxes)[None] * scale)
        return RawMasks(logits, scores, encoded.original_size, encoded.fed_size)

    @torch.inference_mode()
    def embed(self, pixel_values: torch.Tensor) -> list[dict[str, Any]]:
        """The features of each picture, by the names under which the model takes them."""
        found = self.model.get_image_embeddings(pixel_values.to(self.device, self.dtype))
        if isinstance(found, torch.Tensor):
            return [{"image_embeddings": features} for features in found.split(1)]
        if self.model.config.model_type == "sam_hq":
            found, levels = found  # of which its decoder reads the first
            pairs = zip(found.split(1), levels[0].split(1), strict=True)
            return [{"image_embeddings": last, "intermediate_embeddings": [first]} for last, first in pairs]
        return [{"image_embeddings": [level[n : n + 1] for level in found]} for n in range(len(pixel_values))]

    @torch.inference_mode()
    def decode(self, features: dict[str, Any], boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the masks in boxes `(1, num_boxes, 4)`, `(num_boxes, height, width)`, and their scores `(num_boxes,)`."""
        outputs = self.model(**features, input_boxes=boxes.to(self.device, self.dtype), multimask_output=False)
        return outputs.pred_masks[0, :, 0].float().cpu(), outputs.iou_scores[0, :, 0].float().cpu()


class Encoded(NamedTuple):
    """A picture as SAM keeps it. Sizes are `(height, width)`, tensors."""

    features: Any
    original_size: torch.Tensor
    fed_size: torch.Tensor  # of the picture inside of SAM's square


class RawMasks(NamedTuple):
    """SAM's own output for the boxes of one picture."""

    logits: torch.Tensor  # (num_boxes, height, width), of its own size
    scores: torch.Tensor  # (num_boxes,)
    original_size: torch.Tensor
    fed_size: torch.Tensor
