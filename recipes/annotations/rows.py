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
"""Rows to train on, of pictures and what people have said of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from modeling_agevlm.processing_agevlm import find_words
from recipes.annotations.annotated import Annotated, Faults, Phrase, Shape, Size, Text, sizes_of, union
from recipes.annotations.names import is_plural, with_article
from recipes.rows.records import Fault, find_image
from trainers.run_lengths import decode_rle, encode_mask


REQUESTS = ("Describe the image.", "What does the image show?", "What can you see in the image?")
PARTS = ("Describe something in the image.", "Name something that the image shows.")
EXISTENCE = ("Is there {} in the image?", "Does the image show {}?", "Can you see {} in the image?")
PLURAL_EXISTENCE = ("Are there {} in the image?", *EXISTENCE[1:])
TURNS = 3  # of descriptions in a row, and of each answer about existence


class Canvas:
    """A picture's file, and shapes in its pixels as masks of the picture as it is shown."""

    def __init__(self, path: str, stated: Size | None, faults: Faults) -> None:
        stored, shown, turn = sizes_of(Path(path))
        if stated not in (None, shown, stored):
            raise Fault("picture of another size", f"{path} has {stored}, its annotations are of {stated}")
        # Most tools draw on the picture as it is shown. Where only the stored one has their size, they did on that.
        self.size, self.turn = (shown, None) if stated in (None, shown) else (stored, turn)
        self.faults = faults
        self.codes: dict[int, dict[str, Any] | None] = {}  # of each shape, drawn and counted once

    def draw(self, shape: Shape) -> dict[str, Any] | None:
        if id(shape) not in self.codes:
            self.codes[id(shape)] = None
            with self.faults.counting():
                self.codes[id(shape)] = shape.code(self.size)
                self.faults.notes["box, as a mask of its pixels"] += shape.kind == "box"
        return self.codes[id(shape)]

    def mask(self, shapes: Sequence[Shape]) -> dict[str, Any] | None:
        """The mask of several shapes; None if one of them is faulty: the others are not all that it would have to be."""
        codes = [self.draw(shape) for shape in shapes]
        if None in codes:
            return None
        code = union(codes, self.size)
        if self.turn is None:
            return code
        return encode_mask(np.asarray(PIL.Image.fromarray(decode_rle(code)).transpose(self.turn)))


def rows_of(
    picture: Annotated, images: Path, faults: Faults, seed: int, numbers: Counter[tuple[str, ...]]
) -> Iterator[dict[str, Any]]:
    """
    A row for each caption, rows of descriptions, and one of questions about what is there and what is verified not to be.
    What is wrong with the picture or with one of its shapes is counted, and left out. `numbers` are those of the rows of each
    picture, and of each id, so far.
    """
    with faults.counting():
        path, _ = find_image(images, picture.name)
        canvas = Canvas(path, picture.size, faults)
        rng = np.random.default_rng([seed, int.from_bytes(blake2b(picture.name.encode(), digest_size=8).digest())])
        for ask, turns in dialogs(picture, canvas, rng):
            messages, regions = [], []
            for question, answer in turns:
                for role, text in (("user", question), ("assistant", answer)):
                    regions += regions_of(text, len(messages), canvas)
                    messages.append({"role": role, "content": [{"type": "text", "text": text.words}]})
            messages[0]["content"].insert(0, {"type": "image", "text": None})
            row = {
                "id": row_id(picture, ask, numbers),
                "images": [{"path": path, "bytes": None}],
                "messages": messages,
            }
            yield {**row, "regions": regions}


def row_id(picture: Annotated, ask: str, numbers: Counter[tuple[str, ...]]) -> str:
    """An id that no other row has."""
    owner = ("picture", picture.name) if picture.id is None else ("id", picture.id)
    number = numbers[owner]
    numbers[owner] += 1
    if picture.id is None:
        return f"{picture.name}#{ask}{number}"
    return f"{picture.id}#{number}" if number else picture.id


def dialogs(
    picture: Annotated, canvas: Canvas, rng: np.random.Generator
) -> Iterator[tuple[str, list[tuple[Text, Text]]]]:
    """What is asked and answered about a picture, by its kind."""
    for caption in picture.captions:
        yield "caption", [(Text(str(rng.choice(REQUESTS))), caption)]
    for start in range(0, len(picture.descriptions), TURNS):
        some = picture.descriptions[start : start + TURNS]
        yield "description", [(Text(str(rng.choice(PARTS))), description) for description in some]
    known = [name for name, shapes in picture.things.items() if name not in picture.unknown and canvas.mask(shapes)]
    there = rng.permutation(known)[:TURNS].tolist()
    absent = [name for name in picture.absent if picture.is_absent(name)]
    nowhere = rng.permutation(absent)[: max(len(there), 1)].tolist()
    turns = [existence(name, picture.things[name], rng) for name in there]
    turns += [existence(name, [], rng) for name in nowhere]
    if turns:
        yield "existence", [turns[n] for n in rng.permutation(len(turns))]


def existence(name: str, shapes: list[Shape], rng: np.random.Generator) -> tuple[Text, Text]:
    """A question for a thing, which looks at its shapes, or at nothing, and the answer."""
    forms = PLURAL_EXISTENCE if is_plural(name) else EXISTENCE
    before, _, after = forms[int(rng.integers(len(forms)))].partition("{}")
    before += with_article(name).removesuffix(name)
    question = Text(f"{before}{name}{after}")
    question.phrases.append(Phrase(len(before), len(before) + len(name), shapes))
    return question, Text("Yes." if shapes else "No.")


def regions_of(text: Text, message: int, canvas: Canvas) -> Iterator[dict[str, Any]]:
    """The regions of a message's phrases, and of all of its words."""
    for phrase in (*text.phrases, *([None] if text.shapes else [])):
        shapes = text.shapes if phrase is None else phrase.shapes
        mask = canvas.mask(shapes) if shapes else None
        if shapes and mask is None:
            continue
        words = None if phrase is None else text.words[phrase.start : phrase.end]
        span = None
        if phrase is not None and find_words(text.words, words) != [(phrase.start, phrase.end)]:
            span = [phrase.start, phrase.end]
        yield {"mask": mask, "image": 0, "text": words, "span": span, "message": message}
