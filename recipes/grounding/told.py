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
"""Told where to look: of two objects that are alike, a model speaks of the one that it is told to look at."""

from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.answers import generate, one_question, prompts
from recipes.inside.measures import grouped_interval
from recipes.scenes.evaluation import BATCH_SIZE
from recipes.scenes.pictures import sample_scene


QUESTION = "Where is the {}?"
STRENGTHS = (0.0, 1.0, 2.0, 4.0, 8.0)


class Pointed(NamedTuple):
    """One of two objects of a class, which stand on either side of a picture."""

    scene: int
    image: PIL.Image.Image
    name: str
    mask: np.ndarray
    """The visible pixels of the one that is pointed at, `(height, width)`."""
    side: str
    """`"left"` or `"right"`: where that one is."""


def two_of_a_kind(split: str, num_images: int, image_size: int, seed: int = 0) -> list[Pointed]:
    """Both objects of all pairs of a split's scenes whose middles are at least an eighth of the width from the picture's."""
    found = []
    for index in range(num_images):
        scene = sample_scene(split, index, seed, image_size)
        for name in sorted({thing.name for thing in scene.objects}):
            pair = [thing for thing in scene.objects if thing.name == name]
            across = [(thing.bbox[0] + thing.bbox[2]) / 2 / image_size - 0.5 for thing in pair]
            if len(pair) == 2 and across[0] * across[1] < 0 and min(map(abs, across)) >= 1 / 8:
                for thing, place in zip(pair, across, strict=True):
                    side = "left" if place < 0 else "right"
                    found.append(Pointed(index, scene.image, name, thing.mask, side))
    return found


@torch.inference_mode()
def named_sides(
    model: PreTrainedModel, processor: ProcessorMixin, pointed: list[Pointed], strength: float
) -> list[bool]:
    """Whether the answer to where the object is names the side of the one that is pointed at, and not the other."""
    right = []
    for first in range(0, len(pointed), BATCH_SIZE):
        batch = pointed[first : first + BATCH_SIZE]
        inputs = prompts(processor, [one_question(QUESTION.format(one.name), one.image) for one in batch])
        if strength:
            inputs["visual_bias"] = processor.get_visual_bias([[one.mask] for one in batch], strength)
        answers = processor.batch_decode(generate(model, inputs, max_new_tokens=16), skip_special_tokens=True)
        for one, answer in zip(batch, answers, strict=True):
            right.append([side for side in ("left", "right") if side in answer] == [one.side])
    return right


def measure(model: PreTrainedModel, processor: ProcessorMixin, pointed: list[Pointed]) -> list[dict[str, Any]]:
    """For each strength the share of right sides, with its 95 % interval over the scenes; 0 is without being told."""
    scenes = np.array([one.scene for one in pointed])
    measured = []
    for strength in STRENGTHS:
        right = np.array(named_sides(model, processor, pointed, strength))
        low, high = grouped_interval(lambda rows, of=right: float(of[rows].mean()), scenes)
        measured.append({"strength": strength, "value": float(right.mean()), "low": low, "high": high})
    return measured
