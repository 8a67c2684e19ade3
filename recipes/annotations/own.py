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
"""One's own annotations: a JSONL file of pictures, texts and shapes, or masks as pictures in a folder."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from modeling_agevlm.image_reading_agevlm import open_image, orientation
from modeling_agevlm.processing_agevlm import find_words
from recipes.annotations.annotated import (
    Annotated,
    Faults,
    Phrase,
    Shape,
    Text,
    brief,
    check_words,
    key,
)
from recipes.rows.records import Fault, plain
from trainers.run_lengths import encode_mask, is_whole


SHAPES = {"mask": dict, "box": list, "polygon": list}
FIELDS = {"image", "text", "regions", "id"}


def read_own(records: Iterator[dict[str, Any]], faults: Faults) -> Iterator[Annotated]:
    """
    Records `{"image": file, "text": words, "regions": [...]}`, with an `"id"` for their row if they have one. A region has a
    `"phrase"` of the text (a `"span"` [start, end) tells which, where it stands there more than once), or none for all of its
    words, and a `"mask"` (run lengths), a `"box"` [left, top, width, height] or a `"polygon"` [x0, y0, x1, y1, ...] or several;
    `"mask": null`: nowhere.
    """
    for record in records:
        with faults.reading(record):
            name = record.get("id")
            text = Text(record["text"])
            picture = Annotated(record["image"], id=None if name is None else key(name), captions=[text])
            faults.notes.update(f"lines with {other!a}, which is not read" for other in record.keys() - FIELDS)
            for region in record.get("regions") or []:
                with faults.reading(region):
                    add_region(text, region)
            yield picture


def add_region(text: Text, region: dict[str, Any]) -> None:
    if others := region.keys() - SHAPES.keys() - {"phrase", "span"}:
        raise Fault("region with other fields", f"{brief(sorted(others))} in {brief(region)}")
    given = [name for name in SHAPES if name in region]
    if len(given) != 1:
        raise Fault("region without a shape", f"it has {given or 'none'} of {', '.join(SHAPES)}")
    (kind,) = given
    value = region[kind]
    if not isinstance(value, SHAPES[kind]) and not (kind == "mask" and value is None):
        raise Fault(f"no {kind}", brief(value))
    shapes = [] if value is None else [Shape(kind, value)]
    phrase, span = region.get("phrase"), region.get("span")
    if phrase is None and span is None:
        if not shapes:
            raise Fault("region without a shape", "all of a text cannot be nowhere")
        text.shapes += shapes
        return
    if span is not None:
        start, end = span
        if not (is_whole(start) and is_whole(end) and 0 <= start < end <= len(text.words)):
            raise Fault("span that is none", f"{brief(span)} of {text.words!r}")
        if phrase not in (None, text.words[start:end]):
            raise Fault("phrase not in the text", f"{brief(phrase)} at {span} of {text.words!r}")
    else:
        places = find_words(text.words, phrase)
        if not places:
            raise Fault("phrase not in the text", f"{brief(phrase)} in {text.words!r}")
        start, end = places[0]
    text.phrases.append(Phrase(start, end, shapes))


def read_mask_pictures(folder: Path, images: Path, faults: Faults) -> Iterator[Annotated]:
    """
    Pictures whose masks lie in a folder of their name: of `kitchen/1.jpg` in `images`, `kitchen/1/red cup.png` and others
    ([`things_of`]).

    Raises:
        ValueError: If there are none.
    """
    found: dict[Path, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if is_picture(file):
            found.setdefault(file.parent, []).append(file)
    if not found:
        raise ValueError(f"{folder} has no folders of masks: a mask lies at PICTURE'S NAME/THING.png.")
    pictures: dict[Path, dict[str, list[Path]]] = {}  # of each folder, by their stems
    for place, masks in found.items():
        with faults.reading(place.name):
            if place == folder:
                raise Fault("mask outside of a picture's folder", masks[0].name)
            stem = place.relative_to(folder)
            files = pictures.setdefault(stem.parent, {})
            beside = images / stem.parent
            for file in beside.iterdir() if not files and beside.is_dir() else ():
                if is_picture(file):
                    files.setdefault(plain(file.stem), []).append(file)
            same = files.get(plain(stem.name), [])
            same = [file for file in same if file.stem == stem.name] or same
            if len(same) != 1:
                raise Fault("image missing", f"{stem}.*: {len(same)} pictures")
            picture = Annotated(str(same[0].relative_to(images)))
            for mask, name in things_of(masks).items():
                with faults.reading(mask.name):
                    try:
                        check_words(name)
                        picture.things.setdefault(name, []).append(Shape("mask", encode_mask(read_mask(mask))))
                    except Exception:
                        picture.unknown.add(name)
                        raise
            yield picture


def is_picture(file: Path) -> bool:
    format = PIL.Image.registered_extensions().get(file.suffix.lower())
    return format in PIL.Image.OPEN and not file.name.startswith(".") and file.is_file()


def things_of(masks: list[Path]) -> dict[Path, str]:
    """
    What the masks of a picture show, by their names: `red_cup` is a "red cup". A number behind a `_` or `-` (`red_cup_2`) tells
    one from another, and so does any where several names are the same without it (`cup 1`, `cup 2`); else it belongs to the
    name (`route 66`).
    """
    bases = {mask: re.sub(r"[ _-]*\d+$", "", mask.stem) for mask in masks}
    counts = Counter(bases.values())
    named = {}
    for mask, base in bases.items():
        is_number = base and (counts[base] > 1 or re.search(r"[_-]\d+$", mask.stem))
        named[mask] = " ".join((base if is_number else mask.stem).replace("_", " ").split())
    return named


def read_mask(file: Path) -> np.ndarray:
    """
    The pixels inside of a mask picture, (H, W): what is not transparent in one with transparency, else what is not 0, be that
    black or the first color of a palette.

    Raises:
        ValueError: If it cannot be read.
        Fault: If it is no PNG file, which would have lost what is exactly 0, or is all of its picture.
    """
    if file.suffix.lower() != ".png":
        raise Fault("mask that is no PNG file", file.name)
    with open_image(file) as picture:
        picture.load()
        turn = orientation(picture)
        picture = picture if turn is None else picture.transpose(turn)
        inside = np.asarray(picture) != 0
        if "A" in picture.getbands():
            inside = inside[..., :-1]
        if inside.ndim == 3:
            inside = inside.any(axis=-1)
        if picture.has_transparency_data and not picture.mode.startswith("I"):
            seen = np.asarray(picture.convert("RGBA"))[..., 3] != 0
            inside = inside if seen.all() else seen
    if inside.all():
        raise Fault("mask that is all of its picture", f"{file.parent.name}/{file.name}")
    return inside
