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
"""Small files in the exact forms of data sets of annotations, and the rows that come of them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from recipes import regions
from trainers.run_lengths import decode_rle


SIZE = (60, 80)
BOX = [10, 20, 30, 15]
TRIANGLE = [50.5, 10, 70, 10, 60, 40.25]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 46, "name": "wine glass"}, {"id": 1, "name": "person"}]


def picture(folder: Path, name: str, orientation: int | None = None) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PIL.Image.fromarray(pixels).save(folder / name, exif=exif)


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, annotations: Path, *options: str) -> list[dict]:
    words = ["regions.py", "--format", kind, "--annotations", str(annotations), "--images", str(tmp_path / "images")]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "rows"), *options])
    regions.main()
    return [row for file in sorted((tmp_path / "rows").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def words(row: dict[str, Any]) -> list[str]:
    return ["".join(part["text"] or "" for part in message["content"]) for message in row["messages"]]


def masks(row: dict[str, Any]) -> dict[str | None, np.ndarray | None]:
    return {region["text"]: region["mask"] and decode_rle(region["mask"]) for region in row["regions"]}


def rectangle(left: int, top: int, width: int, height: int) -> np.ndarray:
    inside = np.zeros(SIZE, dtype=bool)
    inside[top : top + height, left : left + width] = True
    return inside


def coco_file(place: Path, **over: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "7.jpg", "height": 60, "width": 80}],
        "categories": CATEGORIES,
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "segmentation": [TRIANGLE], "bbox": BOX, "iscrowd": 0},
            {
                "id": 2,
                "image_id": 7,
                "category_id": 46,
                "iscrowd": 1,
                "bbox": [0, 0, 1, 60],
                "segmentation": {"size": [60, 80], "counts": [0, 60, 4740]},
            },
        ],
    }
    place.write_text(json.dumps(content | over))
    return place


def captions_file(place: Path, *captions: str) -> Path:
    annotations = [{"id": n, "image_id": 7, "caption": caption} for n, caption in enumerate(captions)]
    place.write_text(json.dumps({"annotations": annotations}))
    return place
