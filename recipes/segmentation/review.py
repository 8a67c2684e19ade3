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
"""Shows masks: pictures, their texts, and where these are said to be, the doubtful ones first."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.drawing import plt
from recipes.drawing.page import Block, Card, Section, save_page
from trainers.run_lengths import decode_rle, run_lengths


COLOR = np.array([255, 40, 120])
SIDE = 320  # pixels of a picture on the page


@dataclass(frozen=True)
class Entry:
    """One region of one row."""

    file: Path
    row: int
    region: int
    share: float | None  # of the picture that the mask covers; None if it is nowhere in the picture
    score: float | None  # None if whoever made the region gave none
    outlines_kept: int


# Why a region is shown: a title, and what comes first. Doubtful kinds before the others.
Key = Callable[[Entry], float]
NOWHERE = "nowhere in the picture"
KINDS: dict[str, Key | None] = {
    "smallest": lambda entry: entry.share,
    "largest": lambda entry: -entry.share,
    "lowest score": lambda entry: entry.score,
    "outlines that SAM disagreed with": lambda entry: -entry.outlines_kept,
    "any": None,
    NOWHERE: None,
}


def read_entries(folder: Path) -> list[Entry]:
    """
    All regions of the files in a folder.

    Raises:
        ValueError: If there are none, or one is damaged.
    """
    entries = []
    for file in sorted(folder.glob("[!.]*.parquet")):
        for n, regions in enumerate(pq.read_table(file, columns=["regions"]).column(0).to_pylist()):
            for k, region in enumerate(regions or []):
                share = None
                if region["mask"] is not None:
                    try:
                        runs = run_lengths(region["mask"])
                    except ValueError as error:
                        raise ValueError(f"{file}, row {n}, region {k}: {error} Make the masks again.") from None
                    share = float(runs[1::2].sum() / runs.sum())
                entries.append(Entry(file, n, k, share, region.get("score"), region.get("outlines_kept") or 0))
    if not entries:
        raise ValueError(f"There are no masks in {folder}: pass the folder that `recipes/masks.py` wrote.")
    return entries


def choose(entries: list[Entry], number: int, seed: int) -> dict[str, list[Entry]]:
    """Some of each kind, none twice."""
    rng, taken, chosen = np.random.default_rng(seed), set(), {}
    for kind, key in KINDS.items():
        left = [entry for entry in entries if entry not in taken and (entry.share is None) == (kind == NOWHERE)]
        if kind.startswith("outlines"):
            left = [entry for entry in left if entry.outlines_kept]
        if kind == "lowest score":
            left = [entry for entry in left if entry.score is not None]
        order = np.argsort([key(entry) for entry in left], kind="stable") if key else rng.permutation(len(left))
        chosen[kind] = [left[n] for n in order[:number]]
        taken.update(chosen[kind])
    return chosen


def show(entry: Entry) -> tuple[PIL.Image.Image, str, str]:
    """The picture with its mask, if there is one, the text that belongs to it, and what is known of the mask."""
    row = pq.read_table(entry.file).slice(entry.row, 1).to_pylist()[0]
    region = row["regions"][entry.region]
    picture = read_image(row["images"][region["image"]])
    picture.thumbnail((SIDE, SIDE))
    messages = row["messages"] if region["message"] is None else [row["messages"][region["message"]]]
    text = region["text"] or " ".join(words_of(message) for message in messages)
    name = row.get("id", f"{entry.file.name}, row {entry.row}")
    if region["mask"] is None:
        return picture, text, f"{name}: {NOWHERE}"
    mask = PIL.Image.fromarray(decode_rle(region["mask"]))
    inside = np.asarray(mask.resize(picture.size, PIL.Image.Resampling.BOX))[..., None]
    pixels = np.asarray(picture)
    marked = np.where(inside, pixels * 0.45 + COLOR * 0.55, pixels * 0.6 + 100).astype(np.uint8)
    facts = f"{name}: {entry.share:.1%} of the picture"
    facts += f", score {entry.score:.2f}" if entry.score is not None else ""
    facts += f", {entry.outlines_kept} outlines kept" if entry.outlines_kept else ""
    return PIL.Image.fromarray(marked), text, facts


def words_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part.get("text"))


def save_sheet(path: Path, shown: dict[str, list[tuple[PIL.Image.Image, str, str]]], columns: int = 6) -> None:
    """A line of pictures for each kind."""
    shown = {kind: cards[:columns] for kind, cards in shown.items() if cards}
    figure, grid = plt.subplots(len(shown), columns, figsize=(2.9 * columns, 3.4 * len(shown)), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (kind, cards) in zip(grid, shown.items(), strict=True):
        for axes, (picture, text, facts) in zip(line, cards, strict=False):
            axes.imshow(picture)
            title = textwrap.fill(textwrap.shorten(text, 90, placeholder=" ..."), 38)
            axes.set_title(f"{kind}\n{title}\n{facts}", fontsize=7, loc="left", parse_math=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


def save_masks_page(path: Path, shown: dict[str, list[tuple[PIL.Image.Image, str, str]]]) -> None:
    """A page with a section for each kind."""
    sections = [
        Section(kind, [Card(picture, [Block("", text), Block("mask", facts)]) for picture, text, facts in cards])
        for kind, cards in shown.items()
    ]
    save_page(path, "Masks", sections)
