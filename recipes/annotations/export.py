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
"""Regions as a file in COCO's format, which labelling tools open."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco_mask

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.annotations.annotated import Faults, Shape, Size, brief, sizes_of
from recipes.rows.records import Fault, plain


COLUMNS = ["images", "messages", "regions"]


def to_coco(folder: Path, out: Path, images: Path | None = None) -> str:
    """
    Writes the regions with a mask of the rows in a folder's parquet files, each once in its picture. A category is a phrase, or
    a message's words. The names of pictures start from `images`, or from the folder that all of them are in; what are bytes
    is written to a folder beside `out`, under a name for what it is. Returns what there is to say of them.

    Raises:
        ValueError: If there are none.
    """
    if out.is_dir():
        raise ValueError(f"{out} is a folder: with `--to_coco`, `--out` is the file to write.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    faults, categories = Faults(), {}
    sizes: dict[Path, Size | None] = {}
    annotations: dict[tuple[Path, str, str], dict[str, Any]] = {}
    written = out.with_name(f"{out.stem}_pictures")
    for row in rows_in(folder):
        for region in row["regions"] or []:
            with faults.reading(region):
                if region["mask"] is None:
                    continue
                if not 0 <= region["image"] < len(row["images"]):
                    raise Fault("region of no picture", f"image {region['image']} of {len(row['images'])}")
                words = " ".join((region["text"] or message_words(row["messages"], region["message"])).split())
                if not words:
                    raise Fault("region without words", brief(region))
                path = place_of(row["images"][region["image"]], folder, written, images, sizes)
                code = Shape("mask", region["mask"]).code(sizes[path])
                name = plain(words)
                categories.setdefault(name, (len(categories) + 1, words))
                annotations.setdefault((path, name, code["counts"]), code)
    if not annotations:
        raise ValueError("\n".join([f"There are no regions with a mask in {folder}.", *faults.lines()]))
    shown = list(dict.fromkeys(path for path, _, _ in annotations))
    numbers = {path: number for number, path in enumerate(shown, 1)}
    files = [path for path in shown if path.parent != written]
    root = images if images is not None or not files else os.path.commonpath([path.parent for path in files])
    content = {
        "images": [
            {
                "id": number,
                "file_name": path.name if path.parent == written else Path(os.path.relpath(path, root)).as_posix(),
                "height": sizes[path][0],
                "width": sizes[path][1],
            }
            for path, number in numbers.items()
        ],
        "annotations": [
            {
                "id": n,
                "image_id": numbers[path],
                "category_id": categories[name][0],
                "segmentation": code,
                "bbox": coco_mask.toBbox(code).tolist(),
                "area": int(coco_mask.area(code)),
                "iscrowd": 0,
            }
            for n, ((path, name, _), code) in enumerate(annotations.items(), 1)
        ],
        "categories": [{"id": number, "name": words} for number, words in categories.values()],
    }
    with writing(out):
        out.write_text(json.dumps(content) + "\n", encoding="utf-8")
    first = f"{len(annotations):,} regions of {len(shown):,} pictures in {out}"
    return "\n".join(
        [f"{first}, pictures that are no files in {written}" if len(files) < len(shown) else first, *faults.lines()]
    )


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises `ValueError` where a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}).") from error


def rows_in(folder: Path) -> Iterator[dict[str, Any]]:
    """
    The rows of the parquet files in a folder and in those in it, as `datasets` finds them.

    Raises:
        ValueError: If there are none, or they are none of rows with regions.
    """
    inside = [file for file in sorted(folder.rglob("*.parquet")) if file.is_file()]
    files = [file for file in inside if not any(part[0] in "._" for part in file.relative_to(folder).parts)]
    if not files:
        raise ValueError(
            f"{folder} is no folder with parquet files: `--to_coco` takes the rows that a command has written."
        )
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            if missing := [name for name in COLUMNS if name not in opened.schema_arrow.names]:
                raise ValueError(f"it has no {', '.join(missing)}")
            for batch in opened.iter_batches(100, columns=COLUMNS):
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{file} holds no rows with regions ({error}).") from error


def place_of(image: Any, folder: Path, written: Path, images: Path | None, sizes: dict[Path, Size | None]) -> Path:
    """
    The file of a picture, whose size as it is shown is added to `sizes`.

    Raises:
        Fault: If it cannot be read, or is not among `images`.
    """
    image = {"path": image, "bytes": None} if isinstance(image, str) else image
    if image["bytes"] is not None:
        path = written / f"{blake2b(image['bytes'], digest_size=16).hexdigest()}.png"
        if path not in sizes:
            picture = read_image({"bytes": image["bytes"]})
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            sizes[path] = picture.size[::-1]
        return path
    path = Path(os.path.abspath(folder / image["path"]))
    if images is not None and not path.is_relative_to(os.path.abspath(images)):
        raise Fault("picture outside of `--images`", str(path))
    if path not in sizes:
        _, sizes[path], _ = sizes_of(path)
    return path


def message_words(messages: list[dict[str, Any]], number: int | None) -> str:
    chosen = messages if number is None else messages[number : number + 1]
    contents = [message["content"] for message in chosen]
    parts = [[content] if isinstance(content, str) else [part["text"] for part in content] for content in contents]
    return " ".join(word for words in parts for word in words if word)
