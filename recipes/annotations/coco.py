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
"""COCO's format: instances, panoptic segmentations and captions; LVIS's, which adds what is verified to be absent."""

import json
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modeling_agevlm.image_reading_agevlm import read_image
from modeling_agevlm.processing_agevlm import find_words
from recipes.annotations.annotated import Annotated, Faults, Phrase, Shape, Text, brief, key
from recipes.annotations.names import plural, read_name
from recipes.rows.records import Fault, find_image
from trainers.run_lengths import encode_mask


def read_json(path: Path) -> Any:
    """
    The content of a JSON file.

    Raises:
        ValueError: If it is none.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, or cut off ({error}).") from error


def load(path: Path, *lists: str) -> dict[str, Any]:
    """
    A JSON file of lists.

    Raises:
        ValueError: If it is none.
    """
    content = read_json(path)
    missing = [name for name in lists if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(
            f"{path} has no {' and no '.join(map(repr, missing))}: it is not of the format that was named."
        )
    return content


class Pictures:
    """
    The pictures of such a file by their ids, to which annotations are added, and what is wrong with these. A file that has
    several ids is one picture.

    Raises:
        ValueError: If several files have one id.
    """

    def __init__(self, content: dict[str, Any], faults: Faults) -> None:
        self.faults = faults
        self.by_id: dict[str, Annotated] = {}
        self.by_name: dict[str, Annotated] = {}
        for record in content["images"]:
            number = None
            with faults.reading(record):
                name = record.get("file_name") or "/".join(record["coco_url"].split("/")[-2:])  # LVIS: val2017/1.jpg
                size = (record["height"], record["width"]) if "height" in record else None
                made, written = Annotated(name, size), key(record["id"])
                picture = self.by_name.setdefault(name, made)
                if picture.size != size:
                    raise Fault("picture of two sizes", f"{name}: {picture.size} and {size}")
                number = written
            if number is not None and self.by_id.setdefault(number, picture) is not picture:
                raise ValueError(
                    f"The pictures {self.by_id[number].name} and {picture.name} have the same id ({number}): nobody can tell which "
                    "of them an annotation is of. Give them ids of their own."
                )

    def of(self, annotation: dict[str, Any]) -> Annotated:
        number = key(annotation["image_id"])
        if number not in self.by_id:
            raise Fault("annotation of an unknown picture", f"{number!r}")
        return self.by_id[number]

    def add_captions(self, path: Path) -> None:
        for annotation in load(path, "annotations")["annotations"]:
            with self.faults.reading(annotation):
                self.of(annotation).captions.append(Text(annotation["caption"].strip()))


def read_categories(content: dict[str, Any], faults: Faults, stuff: bool = False) -> dict[str, str]:
    """
    The names of categories by their ids.

    Raises:
        ValueError: If several have one id.
    """
    names: dict[str, str] = {}
    for category in content["categories"]:
        with faults.reading(category):
            number, name = key(category["id"]), read_name(category, stuff)
            if names.setdefault(number, name) != name:
                names[number] = ""
    if twice := [number for number, name in names.items() if not name]:
        raise ValueError(f"Several categories have the same id ({twice[0]}): give them ids of their own.")
    return names


def shape_of(annotation: dict[str, Any]) -> Shape:
    segmentation = annotation.get("segmentation")
    if segmentation:
        return Shape("mask" if isinstance(segmentation, dict) else "polygon", segmentation)
    return Shape("box", annotation["bbox"])


def add_thing(
    picture: Annotated, annotation: Any, names: dict[str, str], read_shape: Callable[[dict[str, Any]], Shape]
) -> None:
    """Adds what an annotation shows. Where it is faulty, nobody knows any more what there is of its category."""
    name = None
    try:
        number = key(annotation["category_id"])
        if number not in names:
            raise Fault("annotation of an unknown category", f"{number!r}")
        name = names[number]
        shape = read_shape(annotation)
        picture.things.setdefault(name, []).append(shape)
    except Exception:
        picture.unknown.add(name)
        raise


def fold(words: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", words).casefold())


def name_things(pictures: Iterable[Annotated], names: Collection[str]) -> Iterator[Annotated]:
    """
    The pictures, with what their captions name among the things that are shown. A hot dog is no dog. Several look at all of
    a kind, and have no region where there may be more of it than is annotated. What a caption names and nobody has drawn is
    not absent.
    """
    forms = {plural(name): name for name in names} | {name: name for name in names}
    first_words = {form: fold(form.split()[0]) for form in sorted(forms, key=len, reverse=True)}
    for picture in pictures:
        for caption in picture.captions:
            folded, taken = fold(caption.words), []
            for form, first_word in first_words.items():
                if first_word not in folded:  # which is fast, and rules nearly all of them out
                    continue
                for start, end in find_words(caption.words, form):
                    if all(end <= first or last <= start for first, last in taken):
                        taken.append((start, end))
                        name = forms[form]
                        if name not in picture.things:
                            picture.unknown.add(name)
                        has_more = name in picture.partial and form == plural(name)
                        if name not in picture.unknown and not has_more:
                            caption.phrases.append(Phrase(start, end, picture.things[name]))
        yield picture


def read_instances(path: Path, captions: Path | None, exhaustive: bool, faults: Faults) -> Iterator[Annotated]:
    """
    COCO's or LVIS's instances. What LVIS has verified to be absent is; with `exhaustive` so is every category that a picture
    has no annotation of, as in COCO.

    Raises:
        ValueError: If it is another kind of file, or is to be exhaustive and has an annotation of none of its pictures, whose
            category would be denied of its picture.
    """
    content = load(path, "images", "annotations", "categories")
    pictures, names = Pictures(content, faults), read_categories(content, faults)
    for annotation in content["annotations"]:
        picture = None
        with faults.reading(annotation):
            picture = pictures.of(annotation)
            add_thing(picture, annotation, names, shape_of)
        if exhaustive and picture is None:
            raise ValueError(
                f"{path} has an annotation of none of its pictures, {brief(annotation)}. With `--exhaustive` what it shows would "
                "be denied: mend or remove it, or leave the option out."
            )
    numbers: dict[str, set[str]] = {}  # "mouse" is an animal's and a computer's
    for number, name in names.items():
        numbers.setdefault(name, set()).add(number)
    for record in content["images"]:
        with faults.reading(record):
            picture = pictures.by_id[key(record["id"])]
            picture.partial |= {names[key(number)] for number in record.get("not_exhaustive_category_ids") or []}
            negative = [key(number) for number in record.get("neg_category_ids") or []]
            denied = set(negative)
            absent = dict.fromkeys(names[number] for number in negative if numbers[names[number]] <= denied)
            picture.absent = list(numbers) if exhaustive else [*picture.absent, *absent]
    if captions is not None:
        pictures.add_captions(captions)
    yield from name_things(pictures.by_name.values(), names.values())


def read_panoptic(path: Path, masks: Path, captions: Path | None, faults: Faults) -> Iterator[Annotated]:
    """
    COCO's panoptic segmentations, whose PNG files lie in `masks` and are read one by one.

    Raises:
        ValueError: If it is another kind of file.
    """
    content = load(path, "images", "annotations", "categories")
    pictures, names = Pictures(content, faults), read_categories(content, faults, stuff=True)
    if captions is not None:
        pictures.add_captions(captions)
    annotations: dict[str, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        with faults.reading(annotation):
            annotations.setdefault(pictures.of(annotation).name, []).append(annotation)

    def with_segments() -> Iterator[Annotated]:
        for picture in pictures.by_name.values():
            for annotation in annotations.pop(picture.name, []):
                with faults.reading(annotation):
                    add_segments(picture, annotation, names, masks, faults)
            yield picture
            picture.things = {}  # the masks have been drawn

    yield from name_things(with_segments(), names.values())


def add_segments(
    picture: Annotated, annotation: dict[str, Any], names: dict[str, str], masks: Path, faults: Faults
) -> None:
    file, _ = find_image(masks, annotation["file_name"])
    numbers = np.asarray(read_image(Path(file))).astype(np.int64) @ [1, 256, 256**2]
    for segment in annotation["segments_info"]:
        with faults.reading(segment):
            add_thing(
                picture, segment, names, lambda segment: Shape("mask", encode_mask(numbers == int(segment["id"])))
            )
