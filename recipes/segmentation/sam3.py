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
"""SAM 3: from texts and pictures to masks, in one network."""

import PIL.Image
import torch
from transformers import AutoProcessor, Sam3Model
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from modeling_agevlm.conversion import loading
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.nouns import noun_phrases
from recipes.segmentation.queries import Finding, Instance, Query, findings_of
from trainers.run_lengths import encode_mask


class ConceptLocator:
    """
    SAM 3 in the place of both networks: what it finds has masks. It takes short noun phrases, so a text is looked for phrase
    by phrase; all that is found is what the text as a whole is about.
    """

    def __init__(self, arguments: MaskArguments, device: torch.device, dtype: torch.dtype) -> None:
        with loading(arguments.sam3):
            self.processor = AutoProcessor.from_pretrained(arguments.sam3)
            self.model = Sam3Model.from_pretrained(arguments.sam3, dtype=dtype).to(device).eval()
        self.arguments, self.device, self.dtype = arguments, device, dtype

    def generate(self, texts: list[str], pictures: list[PIL.Image.Image]) -> list[dict[str, list[Instance]]]:
        """The instances of each text's phrases. Each picture is encoded once."""
        numbers = {id(picture): n for n, picture in enumerate({id(p): p for p in pictures}.values())}
        encoded = self.encode(list({id(picture): picture for picture in pictures}.values()))
        asked = [(n, phrase) for n, text in enumerate(texts) for phrase in noun_phrases(text)]
        found: list[dict[str, list[Instance]]] = [{} for _ in texts]
        for start in range(0, len(asked), self.arguments.batch_size):
            batch = asked[start : start + self.arguments.batch_size]
            places = torch.tensor([numbers[id(pictures[n])] for n, _ in batch], device=self.device)
            sizes = [(pictures[n].height, pictures[n].width) for n, _ in batch]
            for (n, phrase), instances in zip(batch, self.decode(encoded, places, batch, sizes), strict=True):
                found[n][phrase] = instances
        return found

    @torch.inference_mode()
    def encode(self, pictures: list[PIL.Image.Image]) -> Sam3VisionEncoderOutput:
        inputs = self.processor(images=pictures, return_tensors="pt")
        return self.model.get_vision_features(inputs["pixel_values"].to(self.device, self.dtype))

    @torch.inference_mode()
    def decode(
        self,
        encoded: Sam3VisionEncoderOutput,
        places: torch.Tensor,
        asked: list[tuple[int, str]],
        sizes: list[tuple[int, int]],
    ) -> list[list[Instance]]:
        """The instances of phrases in the pictures at `places`, whose sizes are `(height, width)`."""
        words = self.processor(text=[phrase for _, phrase in asked], return_tensors="pt").to(self.device)
        chosen = {
            name: tuple(level[places] for level in encoded[name])
            for name in ("fpn_hidden_states", "fpn_position_encoding")
        }
        outputs = self.model(vision_embeds=Sam3VisionEncoderOutput(**chosen), **words)
        results = self.processor.post_process_instance_segmentation(
            outputs, threshold=self.arguments.min_score, target_sizes=sizes
        )
        return [
            [
                Instance(tuple(box), code=encode_mask(mask.cpu().numpy() > 0), score=score)
                for box, mask, score in zip(
                    result["boxes"].tolist(), result["masks"], result["scores"].tolist(), strict=True
                )
            ]
            for result in results
        ]

    def read(self, query: Query, found: dict[str, list[Instance]], picture: PIL.Image.Image) -> list[Finding]:
        return findings_of(query, found, self.arguments.level)
