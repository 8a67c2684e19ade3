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
"""
Do words look at what they name? The pointing game, the attention's mass and boxes that are read from it, on the field's own
annotations.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from modeling_agevlm.grounding_agevlm import GroundingReadout, find_regions
from modeling_agevlm.image_reading_agevlm import read_image
from recipes.annotations.annotated import Annotated, Faults, Shape, Size
from recipes.annotations.names import with_article
from recipes.annotations.phrases import read_flickr30k, read_refcoco
from recipes.annotations.rows import Canvas
from recipes.answering.attention import map_size
from recipes.evaluation.journal import Journal, digest_of
from recipes.evaluation.pictures import save
from recipes.evaluation.records import Record
from recipes.rows.boxes import bounding_box, overlap_of_boxes
from recipes.rows.records import Fault, find_image
from trainers.run_lengths import decode_rle


if TYPE_CHECKING:
    from recipes.inside.vlm import Vlm


QUESTION = "Is there {} in the image?"  # of a referring expression
REQUEST = "Describe the image."  # of a caption
DETERMINERS = "a an the this that these those his her its their one two three".split()
# Shares of the picture, as COCO's 32 x 32 and 96 x 96 pixels are of 640 x 480
SIZES = {"small": 32**2 / (640 * 480), "medium": 96**2 / (640 * 480), "large": 1.0}
Box = tuple[int, int, int, int]  # left, top, right, bottom


class Asked(NamedTuple):
    """A phrase of a picture: of the answer to a question, or of the question if there is no answer."""

    picture: str
    size: Size | None
    question: str
    answer: str
    start: int
    end: int
    shapes: list[Shape]
    kind: str

    @property
    def text(self) -> str:
        return self.answer or self.question

    @property
    def words(self) -> str:
        return self.text[self.start : self.end]


class Phrases(NamedTuple):
    """The phrases of a benchmark's split, the folder of the pictures' files, and what was left out."""

    asked: list[Asked]
    folder: Path
    faults: Faults

    def digest(self, numbers: Sequence[int]) -> str:
        """What tells some of the phrases with their pictures from others."""
        chosen, found = [self.asked[number] for number in numbers], Faults()

        def rows() -> Iterator[list[Any]]:
            for name, group in groupby(chosen, key=lambda asked: asked.picture):
                yield [
                    [*asked[:6], [[shape.kind, shape.value] for shape in asked.shapes], asked.kind] for asked in group
                ]
                with found.counting():  # of missing ones is told when they are looked at
                    yield [{"bytes": None, "path": find_image(self.folder, name)[0]}]

        return digest_of(rows())


def read_pictures(name: str, data: Path, split: str, faults: Faults) -> tuple[Iterator[Annotated], Path]:
    """
    The annotated pictures of a benchmark's split, and the folder of their files.

    - `refcoco_pointing`: `refcoco/` with `refs*.p`, `instances.json` and `images`, RefCOCO's, RefCOCO+'s or
      RefCOCOg's;
    - `flickr30k_pointing`: `flickr30k/` with `Sentences`, `Annotations`, `images` and the list of each split
      (`test.txt`).

    Raises:
        ValueError: If they are not there.
    """
    folder = data / name.removesuffix("_pointing")
    files = {"refcoco_pointing": ("instances.json",), "flickr30k_pointing": (f"{split}.txt",)}[name]
    for file in (*files, "images"):
        if not (folder / file).exists():
            raise ValueError(
                f"There is no {folder / file}, which {name} needs: `--data` is the folder that holds {folder.name}."
            )
    if name == "refcoco_pointing":
        references = sorted(folder.glob("refs*.p"))
        if len(references) != 1:
            raise ValueError(f"{folder} has {len(references)} files refs*.p, but should have the one to evaluate on.")
        return read_refcoco(references[0], folder / "instances.json", split, faults), folder / "images"
    chosen = set((folder / f"{split}.txt").read_text().split())
    pictures = read_flickr30k(folder, faults)
    return (picture for picture in pictures if Path(picture.name).stem in chosen), folder / "images"


def phrases_of(picture: Annotated) -> Iterator[Asked]:
    """The phrases of a picture."""
    for description in picture.descriptions:
        words = description.words
        named = words if words.split()[0].lower() in DETERMINERS else with_article(words)
        end = QUESTION.index("{}") + len(named)
        place = (QUESTION.format(named), "", end - len(words), end)
        yield Asked(picture.name, picture.size, *place, description.shapes, description.kind or "any")
    for caption in picture.captions:
        for phrase in caption.phrases:
            place = (REQUEST, caption.words, phrase.start, phrase.end)
            yield Asked(picture.name, picture.size, *place, phrase.shapes, phrase.kind or "any")


def read_phrases(name: str, data: Path, split: str) -> Phrases:
    """
    The phrases of a benchmark's split.

    Raises:
        ValueError: If there are none.
    """
    faults = Faults()
    pictures, folder = read_pictures(name, data, split, faults)
    found = [asked for picture in pictures for asked in phrases_of(picture)]
    if not found:
        raise ValueError(f"{data} has no phrase of the split {split!r} of {name}: {dict(faults) or 'it is empty'}.")
    return Phrases(found, folder, faults)


def point(
    vlm: "Vlm",
    name: str,
    phrases: Phrases,
    numbers: Sequence[int],
    journal: Journal,
    pictures: Path | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """
    Looks for phrases, and writes an entry of the journal for every picture: the `records` of its phrases, and what was
    left out (`faults`). What is wrong with the model is an error.

    Args:
        vlm (`Vlm`): The model.
        name (`str`): Of the benchmark.
        phrases (`Phrases`): All of its phrases.
        numbers (`Sequence[int]`): Those that are looked for.
        journal (`Journal`): Where the entries are kept.
        pictures (`Path`, *optional*): Folder to save small copies of the pictures to; then the records say where
            phrases look.
        rank, world_size (`int`, *optional*, defaults to 0 and 1): This process, and how many share the pictures.
    """
    groups = [list(group) for _, group in groupby(numbers, key=lambda number: phrases.asked[number].picture)]
    for group in tqdm(groups[rank::world_size], unit=" pictures", desc=name, disable=rank != 0):
        if journal.has([(name, group[0])]):
            continue
        records, masks, faults = [], {}, Faults()
        first = phrases.asked[group[0]]
        with faults.counting():
            path, _ = find_image(phrases.folder, first.picture)
            canvas, image = Canvas(path, first.size, faults), read_image(Path(path))
            for number in group:
                code = canvas.mask(phrases.asked[number].shapes)
                if code is not None:
                    masks[number] = decode_rle(code)
        placed = None
        for number, mask in masks.items():
            asked = phrases.asked[number]
            ids = (
                vlm.processor.tokenizer(asked.answer, add_special_tokens=False)["input_ids"] if asked.answer else None
            )
            inputs, _ = vlm.encode(image, asked.question, ids)
            words = None
            with faults.counting():
                try:
                    words = vlm.find_place(inputs, asked.text, asked.start, asked.end)
                except ValueError as error:
                    raise Fault("phrase not among the words", str(error)) from error
            if words is None:
                continue
            look = vlm.look(inputs, words[None])
            attention = look.maps[0].mean(dim=0)
            placed = placed or vlm.placement(image, tuple(attention.shape))
            attention = attention.masked_fill(placed[1], 0)
            record = {"benchmark": name, "id": f"{asked.picture}#{number}", "question": asked.question}
            record |= {"answer": asked.words, "prediction": "", "picture": asked.picture, "kind": asked.kind}
            record |= measured(attention, mask, *placed)
            box, truth = read_box(attention, *placed, mask.shape, vlm.readout), bounding_box(mask)
            record["iou"] = 0.0 if box is None else overlap_of_boxes(box, truth)
            record["iou_whole"] = overlap_of_boxes((0, 0, mask.shape[1], mask.shape[0]), truth)
            record["correct"] = record["touches"]
            if pictures is not None:
                shown = over_picture(attention.numpy(), placed[0], mask.shape)
                record |= {"image": save(image, pictures), "phrase": asked.words, "map": shown}
                if look.on_nothing.any():  # rounding can take a mean of ones above 1
                    record["on_nothing"] = min(1.0, float(look.on_nothing[0].mean()))
            records.append(record)
        entry = {"task": name, "number": group[0], "records": records, "faults": dict(faults), "first": faults.first}
        journal.add([entry])


def gathered(entries: Sequence[dict[str, Any]], faults: Faults) -> list[Record]:
    """
    The records of a journal's entries; what was left out is added to `faults`.

    Raises:
        ValueError: If there are none.
    """
    entries = sorted(entries, key=lambda entry: entry["number"])
    for entry in entries:
        faults.update(entry["faults"])
        faults.first = entry["first"] | faults.first
    records = [record for entry in entries for record in entry["records"]]
    if not records:
        raise ValueError(f"None of the phrases could be looked for: {dict(faults)}.")
    return records


def measured(attention: torch.Tensor, mask: np.ndarray, box: Box, padding: torch.BoolTensor) -> dict[str, Any]:
    """
    What a record says of a phrase's attention `(h, w)`, averaged over the layers that are read, and of its mask
    `(height, width)`: `touches`, whether the attention's maximum is in a cell that the mask touches, and `exact`,
    whether the cell's middle lies in the mask, as the pointing game counts; `mass`, the share of the attention in
    cells that it touches, and `even`, their share of all; `centre`, whether the mask holds the picture's centre; the
    mask's `size` and `place`.
    """
    cells = touched(mask, box, tuple(attention.shape))
    share, best = float(mask.mean()), int(attention.argmax())
    row, column = divmod(best, attention.shape[1])
    y = box[1] + (row + 0.5) * (box[3] - box[1]) / attention.shape[0]
    x = box[0] + (column + 0.5) * (box[2] - box[0]) / attention.shape[1]
    on_picture = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
    return {
        "touches": bool(cells.flatten()[best]),
        "exact": on_picture and bool(mask[int(y), int(x)]),
        "mass": float((attention * cells).sum()),
        "even": float(cells[~padding].float().mean()),
        "centre": bool(mask[mask.shape[0] // 2, mask.shape[1] // 2]),
        "size": next(name for name, limit in SIZES.items() if share <= limit),
        "place": place_of(mask),
    }


def read_box(
    attention: torch.Tensor, box: Box, padding: torch.BoolTensor, size: Size, readout: GroundingReadout
) -> tuple[float, float, float, float] | None:
    """
    The box of what looks the most, as `post_process_grounded_object_detection` of a processor reads it, of attention
    `(h, w)` over a box of a picture of some `size` (height, width); `None` where it looks everywhere alike.
    """
    grid, sides = [], []  # down, then across
    for axis, length in enumerate(size):
        shown = (~padding).any(dim=1 - axis).nonzero()[:, 0]
        start, end = box[1 - axis], box[3 - axis]
        first, last = (start + (end - start) * n / padding.shape[axis] for n in (int(shown[0]), int(shown[-1]) + 1))
        attention = attention.index_select(axis, shown)
        sides.append(min(length, 8 * padding.shape[axis]))
        grid.append(2 * ((torch.arange(sides[axis]) + 0.5) * length / sides[axis] - first) / (last - first) - 1)
    places = torch.stack(torch.meshgrid(grid[1], grid[0], indexing="xy"), dim=-1)
    smooth = torch.nn.functional.grid_sample(
        attention[None, None].float(), places[None], padding_mode="border", align_corners=False
    )[0, 0]
    smooth = smooth * (places.abs() <= 1).all(dim=-1)  # nothing lies on what was cropped
    regions = find_regions(smooth * (attention.sum() / smooth.sum().clamp(min=1e-12)), readout.threshold)
    if not regions:
        return None
    scale = size[1] / sides[1], size[0] / sides[0]
    return tuple(side * scale[n % 2] for n, side in enumerate(regions[0].box))


def over_picture(attention: np.ndarray, box: Box, size: Size) -> list[list[float]]:
    """
    The attention of cells of a box over a picture of some `size` (height, width), in up to 24 x 24 cells of the
    picture, which add up to what the cells do.
    """
    places = [(np.arange(number) + 0.5) * side / number for number, side in zip(map_size(*size), size, strict=True)]
    starts, ends = (box[1], box[0]), (box[3], box[2])
    numbers = [
        np.floor((place - start) / (end - start) * length).astype(int)
        for place, start, end, length in zip(places, starts, ends, attention.shape, strict=True)
    ]
    inside = [(number >= 0) & (number < length) for number, length in zip(numbers, attention.shape, strict=True)]
    found = attention[np.ix_(*(number * within for number, within in zip(numbers, inside, strict=True)))]
    found = found * np.outer(*inside)
    return (found * (attention.sum() / (found.sum() or 1))).round(5).tolist()


def touched(mask: np.ndarray, box: tuple[int, int, int, int], grid: tuple[int, int]) -> torch.BoolTensor:
    """The cells, of shape `grid`, of a box of the picture that a mask covers any part of."""
    left, top, right, bottom = box
    whole = torch.zeros(bottom - top, right - left)
    height, width = mask.shape
    inside = torch.from_numpy(mask[max(top, 0) : bottom, max(left, 0) : right].astype(np.float32))
    whole[max(-top, 0) : max(-top, 0) + inside.shape[0], max(-left, 0) : max(-left, 0) + inside.shape[1]] = inside
    return torch.nn.functional.adaptive_max_pool2d(whole[None], grid)[0] > 0


def place_of(mask: np.ndarray) -> str:
    """Whether a mask's middle is in the middle third of the picture, both ways, or at its border."""
    rows, columns = mask.nonzero()
    middle = ((rows.mean() + 0.5) / mask.shape[0], (columns.mean() + 0.5) / mask.shape[1])
    return "middle" if all(1 / 3 <= place <= 2 / 3 for place in middle) else "border"
