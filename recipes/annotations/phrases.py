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
"""Data sets whose phrases have boxes or masks: RefCOCO and its kin, Flickr30k Entities, Visual Genome."""

import io
import pickle
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from recipes.annotations.annotated import Annotated, Faults, Phrase, Shape, Text, brief, key
from recipes.annotations.coco import Pictures, load, read_categories, read_json, shape_of
from recipes.rows.records import Fault


# --- RefCOCO, RefCOCO+, RefCOCOg ---

# What Python 2 and 3 write lists, dictionaries, numbers and words with
PLAIN = frozenset(
    "PROTO FRAME STOP MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS NONE NEWTRUE NEWFALSE INT BININT "
    "BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE".split()
)


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, numbers and words, and runs nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def check_plain(content: bytes) -> None:
    """
    Raises `ValueError` if a pickle holds anything else, is shorter than it says, or asks for a memo of more places than it has
    parts, which would be made before anything of it is read.
    """
    file, count = io.BytesIO(content), 0
    while code := file.read(1):
        count += 1
        opcode = pickletools.code2op.get(code.decode("latin-1"))
        if opcode is None or opcode.name not in PLAIN:
            raise ValueError(f"it holds more than lists, dictionaries, numbers and words: {opcode and opcode.name}")
        if opcode.name == "STOP":
            return
        if opcode.name == "STRING":  # whose reader takes ASCII alone
            file.readline()
        elif opcode.arg is not None:
            argument = opcode.arg.reader(file)
            if opcode.name.endswith("PUT") and not 0 <= argument <= count:
                raise ValueError(f"its memo has a place {argument}")
    raise ValueError("it has no end")


def read_references(path: Path) -> list[Any]:
    """
    The references of a file, of Python 2 as well.

    Raises:
        ValueError: If it is none.
    """
    try:
        content = path.read_bytes()
        check_plain(content)
        references = PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
    except Exception as error:  # anything, of damaged files
        raise ValueError(f"{path} is no file of references, or cut off ({error}).") from error
    if not isinstance(references, list):
        raise ValueError(f"{path} is no file of references, but holds {brief(references)}.")
    return references


def read_refcoco(path: Path, instances: Path, split: str | None, faults: Faults) -> Iterator[Annotated]:
    """
    References (`refs(unc).p`, ...) to instances of COCO (`instances.json`), of one split or all.

    Raises:
        ValueError: If either is another kind of file, or there is no such split.
    """
    references = read_references(path)
    content = load(instances, "images", "annotations")
    pictures, annotations, shapes = Pictures(content, faults), {}, {}
    for annotation in content["annotations"]:
        with faults.reading(annotation):
            annotations[key(annotation["id"])] = annotation
    kinds = read_categories(content, faults) if isinstance(content.get("categories"), list) else {}
    splits, left = {}, path.stat().st_size
    for reference in references:
        with faults.reading(reference):
            splits[reference["split"]] = None
            if split is not None and reference["split"] != split:
                continue
            picture, number = pictures.of(reference), key(reference["ann_id"])
            if number not in annotations:
                raise Fault("reference to an unknown annotation", f"{number!r}")
            if number not in shapes:
                shapes[number] = shape_of(annotations[number])
            category = annotations[number].get("category_id")
            kind = None if category is None else kinds.get(key(category))
            for sentence in reference["sentences"]:
                with faults.reading(sentence):
                    words = sentence["raw"].strip()
                    left -= 1 + len(words)
                    picture.descriptions.append(Text(words, shapes=[shapes[number]], kind=kind))
                if left < 0:
                    break
        if left < 0:  # one list in many places, which is read as often
            raise ValueError(f"{path} is no file of references: its sentences are longer than the file.")
    if split is not None and split not in splits:
        raise ValueError(f"{path} has no split {split!r}, but {', '.join(map(str, splits)) or 'none'}.")
    yield from (picture for picture in pictures.by_name.values() if picture.descriptions)


# --- Flickr30k Entities ---

ENTITY = re.compile(r"\[/EN#(\d+)((?:/\w+)*) ([^\]]*)\]")


def read_flickr30k(folder: Path, faults: Faults) -> Iterator[Annotated]:
    """
    The folder that holds `Sentences` and `Annotations`.

    Raises:
        ValueError: If it does not.
    """
    files = sorted((folder / "Sentences").glob("*.txt"))
    if not files or not (folder / "Annotations").is_dir():
        raise ValueError(f"{folder} has no Sentences/*.txt and Annotations: it is not Flickr30k Entities.")
    for file in files:
        with faults.reading(file.name):
            size, boxes = read_boxes(folder / "Annotations" / f"{file.stem}.xml")
            picture = Annotated(f"{file.stem}.jpg", size)
            for line in file.read_text(encoding="utf-8-sig").splitlines():
                with faults.reading(line):
                    if not line.strip():
                        continue
                    picture.captions.append(read_sentence(line.strip(), boxes))
            yield picture


def read_boxes(file: Path) -> tuple[tuple[int, int], dict[str, list[Shape]]]:
    """The size of a picture and the boxes of its entities by number."""
    try:
        tree = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise Fault("annotations that cannot be read", f"{file.name}: {error}") from error
    boxes: dict[str, list[Shape]] = {}
    for thing in tree.iter("object"):
        corners = [thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        if None in corners:  # a scene, or what has no box
            continue
        left, top, right, bottom = map(float, corners)
        box = Shape("box", [left, top, right - left, bottom - top])
        for name in thing.iterfind("name"):
            boxes.setdefault(name.text or "", []).append(box)
    return (int(tree.findtext("size/height")), int(tree.findtext("size/width"))), boxes


def read_sentence(line: str, boxes: dict[str, list[Shape]]) -> Text:
    """A sentence without its marks, and its phrases that have boxes."""
    words, end, phrases = "", 0, []
    for entity in ENTITY.finditer(line):
        words += line[end : entity.start()]
        if shapes := boxes.get(entity[1]):
            kind = entity[2].strip("/").partition("/")[0] or None
            phrases.append(Phrase(len(words), len(words) + len(entity[3]), shapes, kind))
        words, end = words + entity[3], entity.end()
    return Text(words + line[end:], phrases)


# --- Visual Genome ---

FOLDERS = ("", "VG_100K", "VG_100K_2")  # its pictures come in two archives


def read_visual_genome(path: Path, images: Path, faults: Faults) -> Iterator[Annotated]:
    """
    Visual Genome's `region_descriptions.json`. The pictures are in `images`, or in its folders `VG_100K` and `VG_100K_2`.

    Raises:
        ValueError: If it is another kind of file.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} is no list of pictures: it is not of the format that was named.")
    for record in content:
        with faults.reading(record):
            names = [str(Path(folder, f"{int(record['id'])}.jpg")) for folder in FOLDERS]
            picture = Annotated(next((name for name in names if (images / name).is_file()), names[0]))
            for region in record["regions"]:
                with faults.reading(region):
                    box = [region[side] for side in ("x", "y", "width", "height")]
                    picture.descriptions.append(Text(region["phrase"].strip(), shapes=[Shape("box", box)]))
            yield picture
