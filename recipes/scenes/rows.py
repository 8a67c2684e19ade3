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
"""Scenes as the rows of a data set.

Every picture shows 2 to 5 objects of one of five contexts in front of a procedural background. Objects keep to their
contexts and some go in pairs, so a language prior exists that a model can fall for. Everything follows from
`(seed, split, index)`: row `i` never depends on row `i - 1`. The test split draws backgrounds (families and palettes),
hues, brightness, angles and sizes that the training split never draws, and some drawings that it never shows. The
transfer split has the test split's ranges, but another artist's drawings alone, in front of backgrounds of its own.

Columns of a row of `load_scenes`:

| column     | content                                                                                                |
|------------|--------------------------------------------------------------------------------------------------------|
| `images`   | list of one PIL picture, RGB, `image_size` x `image_size` pixels                                       |
| `messages` | list of `{"role": "user" or "assistant", "content": str}`                                              |
| `regions`  | list of `{"mask", "image", "text", "span", "message"}`, one per phrase that names a class, or message   |

Fields of a region:

| field     | content                                                                                                 |
|-----------|---------------------------------------------------------------------------------------------------------|
| `mask`    | `{"size": [H, W], "counts": str}`, COCO compressed RLE of the visible pixels; null: not in the picture  |
| `image`   | index into `images`, always 0                                                                           |
| `text`    | phrase of the message that the mask belongs to, or null: the whole text of the message                  |
| `span`    | `[start, end)` characters of the phrase when it stands more than once in the message, or null           |
| `message` | index into `messages`                                                                                   |
"""

import functools
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, List, Value

from recipes.scenes.classes import SPLITS, TASKS
from recipes.scenes.pictures import Scene, compose, draw_background
from recipes.scenes.plans import make_plan, row_generator
from recipes.scenes.texts import Message, make_dialog
from trainers.rows import REGION
from trainers.run_lengths import encode_mask


FEATURES = Features(
    {
        "images": List(Image()),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "regions": List(REGION),
    }
)


def union_of(scene: Scene, items: Sequence[int]) -> dict[str, Any]:
    """The compressed run lengths of the union of the objects' visible masks."""
    return encode_mask(np.logical_or.reduce([scene.objects[i].mask for i in items]))


def _regions(scene: Scene, dialog: Sequence[Message]) -> list[dict[str, Any]]:
    encode = functools.cache(functools.partial(union_of, scene))
    regions = []
    for i, message in enumerate(dialog):
        if message.items:
            regions.append({"mask": encode(message.items), "text": None, "span": None, "message": i})
        for phrase, start, items in message.mentions:
            # "a car" also stands in "a carrot": count characters, not words
            span = [start, start + len(phrase)] if message.content.count(phrase) > 1 else None
            mask = encode(items) if items else None
            regions.append({"mask": mask, "text": phrase, "span": span, "message": i})
    return [{**region, "image": 0} for region in regions]


def _row(split: str, task: str, index: int, image_size: int, seed: int) -> dict[str, Any]:
    """Returns row `index` with its picture as PNG bytes."""
    plan = make_plan(split, index, seed)
    scene = compose(plan, draw_background(row_generator(split, index, seed, "background"), split, image_size))
    dialog = make_dialog(plan, task, split, index, seed)
    file = io.BytesIO()
    scene.image.save(file, format="PNG", compress_level=1)
    return {
        "images": [{"bytes": file.getvalue(), "path": None}],
        "messages": [{"role": message.role, "content": message.content} for message in dialog],
        "regions": _regions(scene, dialog),
    }


def _rows(
    ranges: list[tuple[int, int]], split: str, task: str, image_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    for start, stop in ranges:
        for index in range(start, stop):
            yield _row(split, task, index, image_size, seed)


def load_scenes(
    split: str,
    task: str,
    num_rows: int,
    image_size: int = 192,
    seed: int = 0,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> Dataset | IterableDataset:
    """Returns rows 0 to `num_rows` - 1 of a split (`SPLITS`) and a task (`TASKS`).

    A map-style data set is written once to `cache_dir` (null: the cache of `datasets`). A streaming one draws its rows
    when they are asked for, in shards that the workers of a data loader share. Raises `ValueError` for an unknown
    split or task.
    """
    if split not in SPLITS or task not in TASKS:
        raise ValueError(f"split must be one of {SPLITS} and task one of {TASKS}, got {split!r} and {task!r}")
    step = max(1, min(256, num_rows // 16))
    ranges = [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    settings = {"ranges": ranges, "split": split, "task": task, "image_size": image_size, "seed": seed}
    if streaming:
        return IterableDataset.from_generator(_rows, features=FEATURES, gen_kwargs=settings)
    # the cache must not outlive a change of what scenes are made by
    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    fingerprint = hashlib.sha256(code + repr(settings).encode()).hexdigest()[:16]
    return Dataset.from_generator(
        _rows,
        features=FEATURES,
        gen_kwargs=settings,
        cache_dir=cache_dir,
        fingerprint=fingerprint,
        num_proc=min(os.cpu_count() or 1, len(ranges)) if num_rows >= 500 else None,  # below, starting them costs more
    )
