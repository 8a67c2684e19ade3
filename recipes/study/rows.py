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
"""The rows and the test questions of a setting."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from PIL import Image as PILImage
from pycocotools import mask as coco_mask

from recipes.scenes.questions import load_questions
from recipes.scenes.rows import FEATURES, load_scenes
from recipes.study import settings
from recipes.study.plans import IMAGE_SIZE
from recipes.study.settings import Setting
from trainers.run_lengths import decode_rle


def reshape(picture: PILImage.Image, kind: str) -> PILImage.Image:
    """A square picture as one of 8 to 5, or that on a square canvas of its mean color."""
    if kind == "square":
        return picture
    wide = picture.resize((picture.width, picture.height * 5 // 8), PILImage.Resampling.BILINEAR)
    if kind != "padded in the picture":
        return wide
    canvas = PILImage.new("RGB", picture.size, tuple(int(c) for c in np.asarray(wide).mean((0, 1))))
    canvas.paste(wide, (0, (canvas.height - wide.height) // 2))
    return canvas


def reshape_mask(rle: dict[str, Any], kind: str) -> dict[str, Any]:
    """The mask of the reshaped picture."""
    picture = PILImage.fromarray(decode_rle(rle).astype(np.uint8) * 255)
    if kind != "square":
        wide = picture.resize((picture.width, picture.height * 5 // 8), PILImage.Resampling.BILINEAR)
        picture = wide
    if kind == "padded in the picture":
        picture = PILImage.new("L", (wide.width, wide.width))
        picture.paste(wide, (0, (wide.width - wide.height) // 2))
    code = coco_mask.encode(np.asfortranarray(np.asarray(picture) > 127, dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def reshaped(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A row of the data set with its picture reshaped."""
    regions = [{**region, "mask": region["mask"] and reshape_mask(region["mask"], kind)} for region in row["regions"]]
    return {"images": [reshape(image, kind) for image in row["images"]], "regions": regions}


def dialogs(split: str, num_rows: int, shares: dict[str, float], image_size: int = IMAGE_SIZE) -> Dataset:
    """Rows of stage 4, of each task its share, with the number of their characters as `length`."""
    parts = [
        load_scenes(split, task, int(share * num_rows), image_size, seed=seed)  # every kind is about other scenes
        for seed, (task, share) in enumerate(shares.items(), start=1)
    ]
    return with_lengths(concatenate_datasets(parts))


def with_lengths(rows: Dataset) -> Dataset:
    """The rows with the number of their characters as `length`."""
    lengths = [sum(len(message["content"]) for message in messages) for messages in rows["messages"]]
    return rows.add_column("length", lengths)


def training_rows(setting: Setting, number: int) -> Dataset:
    """The rows of a stage: its scenes, with the masks and the pictures that the setting asks for."""
    if number == 4:
        rows = dialogs("train", settings.BATCH_SIZE * setting.steps(4), settings.SHARES)
    else:
        number_of_rows = settings.BATCH_SIZE * max(setting.steps(n) for n in (1, 2, 3))
        rows = with_lengths(load_scenes("train", "caption", number_of_rows, IMAGE_SIZE))
    if setting.pictures != "square":
        rows = rows.map(functools.partial(reshaped, kind=setting.pictures))
    if number in setting.guided and (setting.masks == "other" or setting.masked_share < 1 or not setting.denied):
        regions = rows["regions"][:]
        if not setting.denied:
            regions = [[region for region in row if region["mask"]] for row in regions]
        if setting.masks == "other":
            regions = exchange_masks(regions)
        keep = np.random.default_rng(0).permutation(len(rows)) < setting.masked_share * len(rows)
        regions = [row if kept else [] for row, kept in zip(regions, keep, strict=True)]
        rows = rows.remove_columns("regions").add_column("regions", regions, feature=FEATURES["regions"])
    return rows


def exchange_masks(regions: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Every row's words with the masks of the next row that has any; those that are nowhere stay so."""
    masks = [[region["mask"] for region in row if region["mask"]] for row in regions]
    exchanged = []
    for n, row in enumerate(regions):
        others = next(other for k in range(1, len(masks)) if (other := masks[(n + k) % len(masks)]))
        changed = (others[i % len(others)] for i in itertools.count())
        exchanged.append([{**region, "mask": region["mask"] and next(changed)} for region in row])
    return exchanged


def test_questions(setting: Setting, num_images: int) -> list[dict[str, Any]]:
    """The questions about test scenes in the shape that the setting trains on."""
    questions = load_questions("test", num_images=num_images, image_size=IMAGE_SIZE)
    kind = setting.pictures
    if kind == "square":
        return questions
    return [
        {
            **question,
            "image": reshape(question["image"], kind),
            "mask": question["mask"] and reshape_mask(question["mask"], kind),
            "phrases": [
                {**phrase, "mask": phrase["mask"] and reshape_mask(phrase["mask"], kind)}
                for phrase in question["phrases"]
            ],
        }
        for question in questions
    ]
