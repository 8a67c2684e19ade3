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
"""What annotations of any format are read as, and the shapes that they draw."""

import reprlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
from pycocotools import mask as coco_mask

from modeling_agevlm.image_reading_agevlm import open_image, orientation
from recipes.rows.records import Fault, check_characters
from trainers.rows import PLACEHOLDERS
from trainers.run_lengths import decode_rle, encode_mask, mask_size


Size = tuple[int, int]  # height, width
TURNS = PIL.Image.Transpose
SIDEWAYS = (TURNS.ROTATE_90, TURNS.ROTATE_270, TURNS.TRANSPOSE, TURNS.TRANSVERSE)


class Faults(Counter):
    """How often what was wrong with annotations, and the first of each kind; and what else is to be said (`notes`)."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, str] = {}
        self.notes: Counter[str] = Counter()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts a [`Fault`]; what has it is left out."""
        try:
            yield
        except Fault as fault:
            self[fault.kind] += 1
            self.first.setdefault(fault.kind, str(fault).removeprefix(f"{fault.kind}: "))

    @contextmanager
    def reading(self, annotation: Any) -> Iterator[None]:
        """
        The same, while what somebody else wrote is taken apart: fields that are not there, or are of another type, are
        faults of the annotation.
        """
        with self.counting():
            try:
                yield
            except Fault:
                raise
            except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
                said = f"{type(error).__name__} {error}"[:100]
                raise Fault("odd annotation", f"{said} in {brief(annotation)}") from error

    def lines(self) -> list[str]:
        """What there is to say of them."""
        lines = [f"{number:>12,} {kind}" for kind, number in self.notes.most_common() if number]
        lines += ["left out:"] if self else []
        return lines + [f"{number:>12,} {kind}   {self.first[kind]}" for kind, number in self.most_common()]


def brief(value: Any) -> str:
    """How a value, of whatever size and depth, is shown."""
    try:
        return reprlib.repr(value)[:120]
    except ValueError:  # of numbers of thousands of digits
        return f"of type {type(value).__name__}"


def key(number: Any) -> str:
    """
    An id in one form: 7, 7.0 and "7" are the same.

    Raises:
        Fault: If it is none.
    """
    if isinstance(number, bool) or not isinstance(number, (int, float, str)):
        raise Fault("id that is none", brief(number))
    return str(int(number) if isinstance(number, float) and number.is_integer() else number)


def check_words(words: Any) -> None:
    """Raises [`Fault`] if a text, or the name of a thing, is none that a model can be trained on."""
    if not isinstance(words, str):
        raise Fault("words that are none", brief(words))
    if not words.strip():
        raise Fault("no words", brief(words))
    if any(token in words for token in PLACEHOLDERS):
        raise Fault("the model's placeholder among the words", brief(words))
    check_characters(words)


def sizes_of(source: Any) -> tuple[Size, Size, PIL.Image.Transpose | None]:
    """
    The size of a picture's file, that of the picture as it is shown, and how it is turned for that.

    Raises:
        Fault: If it cannot be read.
    """
    try:
        with open_image(source) as picture:
            stored, turn = (picture.height, picture.width), orientation(picture)
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise Fault("image unreadable", f"{source} ({error})") from error
    return stored, stored[::-1] if turn in SIDEWAYS else stored, turn


@dataclass
class Shape:
    """
    Where something is, in pixels of the picture.

    Args:
        kind (`str`): `"box"`, `"polygon"` or `"mask"`.
        value: `[left, top, width, height]`; `[x0, y0, x1, y1, ...]` or a list of such; or run lengths.
    """

    kind: str
    value: Any

    def code(self, size: Size) -> dict[str, Any]:
        """
        The compressed run lengths of the pixels inside, as pycocotools draws them; what lies outside of the picture is left
        out.

        Raises:
            Fault: If it is no shape of its kind, or covers nothing.
        """
        if self.kind == "mask":
            try:
                stated = mask_size(self.value)
                if stated != size:
                    raise Fault("mask of another size", f"{stated} in a picture of {size}")
                code = encode_mask(decode_rle(self.value))
            except Fault:
                raise
            except (ValueError, TypeError, AttributeError) as error:
                raise Fault("damaged mask", str(error)) from error
        else:
            parts = [corners(self.value, size)] if self.kind == "box" else polygons(self.value, size)
            code = coco_mask.merge(coco_mask.frPyObjects(parts, *size))
        if coco_mask.area(code) == 0:
            raise Fault("empty shape", f"{self.kind} {brief(self.value)}")
        return code


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15  # NaN is not


def corners(box: Any, size: Size) -> list[float]:
    """The part of a box that lies in the picture, as a polygon."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise Fault("no box", brief(box))
    height, width = size
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(width), box[0] + box[2]), min(float(height), box[1] + box[3])
    if right <= left or bottom <= top:
        raise Fault("empty shape", f"box {brief(box)} in a picture of {height} x {width}")
    return [left, top, right, top, right, bottom, left, bottom]


def polygons(value: Any, size: Size) -> list[list[float]]:
    """
    The polygons of a value. pycocotools takes 40 bytes per pixel of their outlines: those may lead around the picture eight
    times, and along a quarter of its pixels, which is more than anything has that people draw.
    """
    parts = [value] if isinstance(value, list) and value and all(map(is_number, value)) else value
    if not isinstance(parts, list) or not parts:
        raise Fault("no polygon", brief(value))
    length, (height, width) = 0.0, size
    for part in parts:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2 or not all(map(is_number, part)):
            raise Fault("no polygon", brief(part))
        points = np.array(part, dtype=np.float64).reshape(-1, 2)
        if np.abs(points).max() > 2 * max(size):
            raise Fault("shape far outside of the picture", brief(part))
        length += np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
    if length > 16 * (height + width) + height * width / 4:
        raise Fault("outline that is too long", f"{length:,.0f} pixels in a picture of {height} x {width}")
    return parts


def union(codes: Sequence[dict[str, Any]], size: Size) -> dict[str, Any]:
    """The region's mask of several shapes."""
    code = coco_mask.merge(list(codes))
    return {"size": list(size), "counts": code["counts"].decode("ascii")}


@dataclass
class Phrase:
    """Words of a text, by their place in it, and where they are in the picture; without shapes: nowhere."""

    start: int
    end: int
    shapes: list[Shape]
    kind: str | None = None
    """As the data set calls it."""


@dataclass
class Text:
    """
    A text about a picture, with what its phrases, or all of its words, mean.

    Raises:
        Fault: If no model can be trained on its words.
    """

    words: str
    phrases: list[Phrase] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    kind: str | None = None

    def __post_init__(self) -> None:
        check_words(self.words)


@dataclass
class Annotated:
    """
    A picture and all that people have said of it.

    Raises:
        Fault: If its name is none.
    """

    name: str
    """The picture's file."""
    size: Size | None = None
    """As the annotations have it."""
    id: str | None = None
    """Of its row, if it is to have one of its own."""
    captions: list[Text] = field(default_factory=list)
    """Of the whole picture."""
    descriptions: list[Text] = field(default_factory=list)
    """Of parts of it."""
    things: dict[str, list[Shape]] = field(default_factory=dict)
    """By the name of their category."""
    partial: set[str] = field(default_factory=set)
    """Names of things of which there may be more."""
    unknown: set[str | None] = field(default_factory=set)
    """Names of what is neither there nor absent: an annotation of it is faulty. None: any may be there."""
    absent: list[str] = field(default_factory=list)
    """Names of what is verified to be nowhere in it, but for what is there or unknown."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise Fault("picture without a name", brief(self.name))
        check_characters(f"{self.name} {self.id}")

    def is_absent(self, name: str) -> bool:
        """Whether what is verified to be absent has no annotation that says otherwise, or may."""
        return self.unknown.isdisjoint((name, None)) and name not in self.things and name not in self.partial
