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
"""Florence-2: from texts and pictures to boxes and outlines."""

import re

import numpy as np
import PIL.Image
import torch
from transformers import AutoProcessor, Florence2ForConditionalGeneration

from modeling_agevlm.conversion import loading
from recipes.segmentation.arguments import TASKS, MaskArguments
from recipes.segmentation.queries import Finding, Instance, Query


class Locator:
    """Florence-2. From texts and pictures to boxes and outlines."""

    def __init__(self, arguments: MaskArguments, device: torch.device, dtype: torch.dtype) -> None:
        with loading(arguments.florence):
            self.processor = AutoProcessor.from_pretrained(arguments.florence)
            self.model = Florence2ForConditionalGeneration.from_pretrained(arguments.florence, dtype=dtype)
        self.model = self.model.to(device).eval()
        self.task, self.device, self.dtype = TASKS[arguments.level], device, dtype
        # What a text may hold as words, too: the network's own tokens, and the names of its tasks.
        own = {*self.processor.tokenizer.get_added_vocab(), *self.processor.task_prompts_without_inputs}
        own |= {*self.processor.task_prompts_with_input}
        self.own = re.compile("|".join(map(re.escape, sorted(own, key=len, reverse=True))))
        self.generation = {"num_beams": arguments.num_beams, "max_new_tokens": arguments.max_new_tokens}

    @torch.inference_mode()
    def generate(self, texts: list[str], pictures: list[PIL.Image.Image]) -> list[str]:
        """What the network writes about each text, with its location tokens."""
        prompts = [self.task + self.own.sub(lambda token: token[0].strip("<>"), text) for text in texts]
        inputs = self.processor(
            text=prompts, images=pictures, padding=True, truncation=True, max_length=1024, return_tensors="pt"
        ).to(self.device, self.dtype)
        output = self.model.generate(**inputs, do_sample=False, **self.generation)
        return self.processor.batch_decode(output, skip_special_tokens=False)

    def read(self, query: Query, written: str, picture: PIL.Image.Image) -> list[Finding]:
        """What was written as boxes and outlines."""
        found = self.processor.post_process_generation(written, task=self.task, image_size=picture.size)[self.task]
        if "polygons" in found:
            # A text may quote any place: pycocotools would walk there pixel by pixel.
            instances = [
                [np.minimum(p, np.resize(picture.size, len(p))).tolist() for p in parts if len(p) >= 6]
                for parts in found["polygons"]
            ]
            return [Finding(query, [Instance(box_around(parts), parts) for parts in instances if parts])]
        boxes: dict[str, list[Instance]] = {}
        for phrase, box in zip(found["labels"], found["bboxes"], strict=True):
            boxes.setdefault(phrase, []).append(Instance(tuple(box)))
        return [Finding(query, instances, phrase) for phrase, instances in boxes.items()]


def box_around(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
