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
"""Where the words of any VLM look: measured on rows with regions, and drawn before and after it was guided."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from recipes.answering.rows import read_maps
from recipes.drawing.attention import save_attention_lines
from recipes.inside.measures import with_interval
from recipes.terminal.tables import markdown
from trainers import DataCollatorForAnyVisionLanguageModel, RegionAttention


logger = logging.get_logger(__name__)

GRID = (24, 24)  # cells of a picture that attention is drawn on
NUM_LINES, NUM_PER_LINE = 4, 2  # of a drawing: rows, and words of each
TITLES = {
    "in_mask_mass": "attention inside the mask",
    "uniform_mass": "even attention inside the mask",
    "pointing_accuracy": "its maximum inside the mask",
    "off_mass": "attention off the picture, of words for what is absent",
}


@dataclass
class Looked:
    """Where the words of one region look."""

    row: int
    words: str
    inside: float | None
    """Share of the attention on the row's pictures that is in the region; None for words that mean nothing there."""
    even: float | None
    """That share for even attention on what of the pictures stands before the words."""
    hit: bool | None
    """Whether the visual token with most attention is in the region."""
    off: float
    """Share of all attention that is not on the row's pictures."""
    picture: PIL.Image.Image | None = None
    """That of the region, in rows that are drawn."""
    attention: np.ndarray | None = None
    """That on it, `GRID`, of all that is on the row's pictures."""


def look(
    model: PreTrainedModel,
    collate: DataCollatorForAnyVisionLanguageModel,
    attention: RegionAttention,
    rows: Iterable[dict[str, Any]],
) -> list[Looked]:
    """
    Where the words of all regions of the rows look. Broken rows are left out, which is said, and regions that training would drop.

    Args:
        model ([`PreTrainedModel`]): Any VLM whose visual tokens stand among its words.
        collate ([`DataCollatorForAnyVisionLanguageModel`]): That of its training: which words guide to which visual tokens.
        attention ([`RegionAttention`]): Of the model: what is read are the layers and heads that it reads.
        rows (`Iterable[dict]`): Rows as for training.
    """
    training = model.training
    model.eval()
    found, broken, drawn = [], [], set()
    for number, row in enumerate(rows):
        try:
            example = collate.read_row(row)
            batch = collate.batch_of(example)
        except Exception as error:  # whatever a row raises
            broken.append(f"row {number}: {error}")
            continue
        if not example.region_masks:
            continue
        seen = read_maps(model, batch, attention)
        tokens = np.array(example.input_ids)
        places = np.flatnonzero(tokens == collate.config.image_token_id)
        pictures = {n for n, cells in example.region_masks if cells is not None} if len(drawn) < NUM_LINES else {}
        footprints = {n: collate.visual_tokens.footprints(example.images, n, GRID) for n in pictures}
        drawn |= {number} if footprints else set()
        for k, (picture, cells) in enumerate(example.region_masks):
            on_tokens = seen.maps[0, k].mean(dim=0)
            is_shown = cells is not None
            num_before = int((places <= example.query_masks[k].nonzero()[0].max()).sum())
            found.append(
                Looked(
                    number,
                    collate.processor.tokenizer.decode(tokens[example.query_masks[k]]).strip(),
                    (on_tokens * seen.cells[0, k]).sum().item() if is_shown else None,
                    seen.cells[0, k, :num_before].mean().item() if is_shown else None,
                    bool(seen.cells[0, k, on_tokens.argmax()]) if is_shown else None,
                    seen.sink[0, k].mean().item(),
                )
            )
            if is_shown and picture in footprints:
                found[-1].picture = example.images[picture]
                found[-1].attention = torch.einsum("v,vyx->yx", on_tokens, footprints[picture]).float().numpy()
    model.train(training)
    if broken:
        logger.warning(
            f"{len(broken)} of the rows to measure are broken and left out, the first one being {broken[0]}."
        )
    return found


def summarize(looked: Sequence[Looked]) -> dict[str, dict[str, float]]:
    """Means with 95% intervals over the rows (bootstrap), as far as there are regions of a kind."""
    shown = [one for one in looked if one.inside is not None]
    absent = [one for one in looked if one.inside is None]
    columns = {
        "in_mask_mass": [(one.row, one.inside) for one in shown],
        "uniform_mass": [(one.row, one.even) for one in shown],
        "pointing_accuracy": [(one.row, one.hit) for one in shown],
        "off_mass": [(one.row, one.off) for one in absent],
    }
    measured = {}
    for name, pairs in columns.items():
        if pairs:
            groups, values = (np.array(column) for column in zip(*pairs, strict=True))
            measured[name] = with_interval(lambda drawn, values=values: float(values[drawn].mean()), groups)
    return measured


def table(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> str:
    """What was measured before and after, with intervals."""

    def shown(measured: dict[str, float]) -> str:
        return "{value:.3f} [{low:.3f}, {high:.3f}]".format(**measured)

    rows = [[TITLES[name], shown(before[name]), shown(after[name])] for name in TITLES if name in before]
    return markdown(["", "before", "after"], rows)


def draw(path: Path, before: Sequence[Looked], after: Sequence[Looked]) -> None:
    """The first rows' pictures with where the same words look before and after: phrases first, for whole messages look around."""
    lines = []
    shown = [pair for pair in zip(before, after, strict=True) if pair[0].attention is not None]
    for number in dict.fromkeys(one.row for one, _ in shown):
        pairs = {
            one.words: (one, other) for one, other in reversed(shown) if one.row == number
        }  # the first of each words
        panels = {}
        for words in sorted(pairs, key=len)[:NUM_PER_LINE]:
            for when, looked in zip(("before", "after"), pairs[words], strict=True):
                panels[f"{words}, {when}: {looked.inside:.0%} inside"] = (looked.attention, 0.0)
        lines.append((next(iter(pairs.values()))[0].picture, panels))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_attention_lines(path, lines)
