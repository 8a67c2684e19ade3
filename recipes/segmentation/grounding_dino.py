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
"""Grounding DINO finds the noun phrases of a text in a picture."""

import PIL.Image
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
from transformers.image_transforms import center_to_corners_format

from modeling_agevlm.conversion import loading
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.nouns import noun_phrases
from recipes.segmentation.queries import Finding, Instance, Query, findings_of


class BoxLocator:
    """
    Grounding DINO in the place of Florence-2: the boxes of a text's noun phrases, which SAM draws in. Every box is of the phrase
    that it has the highest score for.
    """

    def __init__(self, arguments: MaskArguments, device: torch.device, dtype: torch.dtype) -> None:
        with loading(arguments.grounding_dino):
            self.processor = AutoProcessor.from_pretrained(arguments.grounding_dino)
            self.model = AutoModelForZeroShotObjectDetection.from_pretrained(arguments.grounding_dino, dtype=dtype)
        self.model = self.model.to(device).eval()
        self.arguments, self.device, self.dtype = arguments, device, dtype

    @torch.inference_mode()
    def generate(self, texts: list[str], pictures: list[PIL.Image.Image]) -> list[dict[str, list[Instance]]]:
        """The instances of each text's phrases."""
        found: list[dict[str, list[Instance]]] = [{} for _ in texts]
        phrases = [noun_phrases(text) for text in texts]
        asked = [n for n, some in enumerate(phrases) if some]
        if not asked:
            return found
        words = ["".join(f"{phrase.lower()}. " for phrase in phrases[n]) for n in asked]
        inputs = self.processor(
            images=[pictures[n] for n in asked],
            text=words,
            padding=True,
            truncation=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        ).to(self.device, self.dtype)
        offsets = inputs.pop("offset_mapping").tolist()
        outputs = self.model(**inputs)
        scores, boxes = outputs.logits.float().sigmoid(), center_to_corners_format(outputs.pred_boxes.float())
        for n, places, of_row, drawn in zip(asked, offsets, scores.cpu(), boxes.cpu(), strict=True):
            drawn *= torch.tensor([pictures[n].width, pictures[n].height] * 2)
            found[n] = self.choose(phrases[n], places, of_row, drawn)
        return found

    def choose(
        self, phrases: list[str], places: list[tuple[int, int]], scores: torch.Tensor, boxes: torch.Tensor
    ) -> dict[str, list[Instance]]:
        """
        What is found of each phrase. Tokens are at `places` in the words, scores `(num_boxes, num_tokens)`, boxes `(num_boxes,
        4)`.
        """
        of_phrases, start = [], 0
        for phrase in phrases:
            end = start + len(phrase.lower())  # which may have more characters
            tokens = [k for k, (first, last) in enumerate(places[: scores.shape[1]]) if start <= first < last <= end]
            of_phrases.append(scores[:, tokens].amax(dim=1) if tokens else scores.new_zeros(len(scores)))
            start = end + len(". ")
        best, chosen = torch.stack(of_phrases).max(dim=0)
        found: dict[str, list[Instance]] = {phrase: [] for phrase in phrases}
        for score, number, box in zip(best.tolist(), chosen.tolist(), boxes.tolist(), strict=True):
            if score > self.arguments.min_score:
                found[phrases[number]].append(Instance(tuple(box), score=score))
        return found

    def read(self, query: Query, found: dict[str, list[Instance]], picture: PIL.Image.Image) -> list[Finding]:
        return findings_of(query, found, self.arguments.level)
