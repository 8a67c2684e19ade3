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
"""Rows of `images`, `messages` and `regions` through the data collator, which stops at broken ones or leaves them out."""

import json
import random
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
from pycocotools import mask as coco_mask

from fuzz.mutation import json_bytes, mutated_json
from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes import TRAINED_MODEL
from trainers.data_collator import BrokenRowError, DataCollatorForGuidedVisionLanguageModeling


HEIGHT, WIDTH = 16, 20
IMAGE = "\x00image"  # where the path of the picture goes


@cache
def collators() -> tuple[DataCollatorForGuidedVisionLanguageModeling, DataCollatorForGuidedVisionLanguageModeling]:
    """One that stops and one that skips."""
    _, processor = load_checkpoint(str(TRAINED_MODEL))
    return tuple(
        DataCollatorForGuidedVisionLanguageModeling(processor, max_length=200, broken_rows=broken)
        for broken in ("stop", "skip")
    )


@cache
def picture() -> str:
    file = Path(tempfile.mkdtemp()) / "picture.png"
    PIL.Image.new("RGB", (WIDTH, HEIGHT), "red").save(file)
    return str(file)


def seeds() -> list[bytes]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[3:9, 4:12] = 1
    rle = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(mask)["counts"].decode()}
    region = {"mask": rle, "image": 0, "text": "red cup", "span": None, "message": 1}
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A red cup."}]
    question = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    parts = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "A red cup."}]},
    ]
    rows = [
        {"id": "a", "images": [IMAGE], "messages": messages, "regions": [region]},
        {
            "id": 3,
            "images": [{"path": IMAGE, "bytes": None}],
            "messages": parts,
            "regions": [region | {"span": [2, 9]}],
        },
        {"images": [], "messages": messages},
        {
            "images": [IMAGE, IMAGE],
            "messages": [*messages, *messages],
            "regions": [region | {"image": 1, "message": None}],
        },
        {"images": None, "messages": messages, "regions": [], "more": {"x": [1]}},
    ]
    return [json.dumps([row]).encode() for row in rows] + [json.dumps(rows).encode()]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    return json_bytes(mutated_json(json.loads(rng.choice(seeds)), rng), rng)


def run(data: bytes) -> str:
    try:
        rows = json.loads(data.replace(json.dumps(IMAGE)[1:-1].encode(), picture().encode()))
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(rows, list) or not rows:
        rows = [rows]
    stopping, skipping = collators()
    skipped = skipping(rows)
    try:
        batch = stopping(rows)
    except BrokenRowError:
        assert skipped["skipped_rows"].sum() + skipped["dropped_regions"].sum() > 0
        raise
    assert skipped["skipped_rows"].sum() == 0
    assert all((batch[key] == skipped[key]).all() for key in batch)
    return "batch"
