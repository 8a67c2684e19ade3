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
from recipes.answering.places import mask_of_place
from recipes.inside.measures import with_interval
from recipes.rows.boxes import bounding_box
from recipes.scenes.evaluation import BATCH_SIZE
from recipes.scenes.pictures import sample_scene


QUESTION = "Where is the {}?"
STRENGTH = 4.0  # the default
STRENGTHS = (0.0, 1.0, 2.0, STRENGTH, 8.0)


class Pointed(NamedTuple):
    """One of two objects of a class, which stand on either side of a picture."""

    scene: int
    image: PIL.Image.Image
    name: str
    masks: dict[str, np.ndarray]
    """What tells where that one is, `(height, width)`: its visible pixels, the box around them, the one nearest to their middle."""
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
                    found.append(Pointed(index, scene.image, name, masks_of(thing.mask), side))
    return found


def masks_of(mask: np.ndarray) -> dict[str, np.ndarray]:
    """The mask, the box around it and the pixel of it that is nearest to its middle, as masks."""
    places = np.argwhere(mask) + 0.5
    down, across = places[((places - places.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    box = mask_of_place(bounding_box(mask), *mask.shape)
    return {"mask": mask, "box": box, "point": mask_of_place((across, down), *mask.shape)}


@torch.inference_mode()
def named_sides(
    model: PreTrainedModel, processor: ProcessorMixin, pointed: list[Pointed], strength: float, by: str = "mask"
) -> list[bool]:
    """Whether the answer to where the object is names the side of the one that is pointed at, and not the other."""
    right = []
    for first in range(0, len(pointed), BATCH_SIZE):
        batch = pointed[first : first + BATCH_SIZE]
        inputs = prompts(processor, [one_question(QUESTION.format(one.name), one.image) for one in batch])
        if strength:
            inputs["visual_bias"] = processor.get_visual_bias([[one.masks[by]] for one in batch], strength)
        answers = processor.batch_decode(generate(model, inputs, max_new_tokens=16), skip_special_tokens=True)
        for one, answer in zip(batch, answers, strict=True):
            right.append([side for side in ("left", "right") if side in answer] == [one.side])
    return right


def measure(model: PreTrainedModel, processor: ProcessorMixin, pointed: list[Pointed]) -> list[dict[str, Any]]:
    """
    For each strength the share of right sides, with its 95 % interval over the scenes, told by the object's mask; 0 is
    without being told. At the default strength by its box and by a point, too.
    """
    scenes = np.array([one.scene for one in pointed])
    measured = []
    for by, strength in [*(("mask", strength) for strength in STRENGTHS), ("box", STRENGTH), ("point", STRENGTH)]:
        right = np.array(named_sides(model, processor, pointed, strength, by))
        measured.append(
            {"by": by, "strength": strength} | with_interval(lambda rows, of=right: float(of[rows].mean()), scenes)
        )
    return measured
