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
A page of an evaluation, or of several side by side: metrics, right answers by category, and answers with where they
looked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from recipes.drawing.attention import attention_picture, in_numbers, legend_picture
from recipes.drawing.page import Bar, Bars, Block, Card, Section, save_page
from recipes.evaluation.comparison import categories_of, category_floors, category_measure, resample
from recipes.evaluation.records import Record, is_marked
from recipes.evaluation.sheet import load_picture, looks, truth
from recipes.terminal.tables import Table


def chart(names: Sequence[str], questions: Sequence[tuple[Record, ...]], resamples: int, seed: int) -> list[Bars]:
    """The share of right answers of every model, of all questions and of each category, above what needs no eyes."""
    runs = dict(zip(names, zip(*questions, strict=True), strict=True))
    first = next(iter(runs.values()))
    lows = category_floors(first)
    shares = {name: resample(records, category_measure(records), resamples, seed) for name, records in runs.items()}
    counts = {name: int(chosen.sum()) for name, chosen in {"all": np.ones(len(first)), **categories_of(first)}.items()}
    lines = []
    for category, count in counts.items():
        guess, share = lows.get(category, ("", None))
        bars = [Bar(name, *shares[name][category]) for name in names if category in shares[name]]
        if bars:
            lines.append(Bars(f"{category} ({count})", bars, share, guess))
    return lines


def answers(names: Sequence[str], records: tuple[Record, ...]) -> Card:
    """A question, its picture, and what every model said, right or wrong, and where it looked, if its record knows."""
    picture = load_picture(records[0])
    blocks = [Block("question", records[0]["question"]), Block("truth", truth(records[0]))]
    for name, record in zip(names, records, strict=True):
        text, looked = [record["prediction"] or "(nothing)"], None
        if "map" in record and isinstance(picture, PIL.Image.Image):
            attention = np.array(record["map"])
            numbers = in_numbers(attention, record.get("on_nothing", 0.0))
            text.append(f"where {record.get('phrase', 'it')!r} looks: {numbers}")
            looked = attention_picture(picture, attention)
        else:
            text += looks(record)
        verdict = ("right" if record["correct"] else "wrong") if is_marked(record) else None
        blocks.append(Block(name, "\n".join(text), verdict, looked))
    return Card(picture, blocks)


def save_evaluation_page(
    path: Path,
    title: str,
    names: Sequence[str],
    benchmarks: Mapping[str, tuple[Sequence[Table], Sequence[tuple[Record, ...]], Sequence[tuple[Record, ...]]]],
    resamples: int = 1000,
    seed: int = 0,
) -> None:
    """
    Writes the page, a file by itself.

    Args:
        path (`Path`): HTML file.
        title (`str`): Of the page.
        names (`Sequence[str]`): Of the models.
        benchmarks (`Mapping`): Of each benchmark its tables, all its questions with a record for every model, and
            those whose answers are shown.
        resamples, seed (`int`, *optional*, defaults to 1000 and 0): Of the bars' intervals.
    """
    sections = [
        Section(name, [answers(names, records) for records in shown], tables, chart(names, questions, resamples, seed))
        for name, (tables, questions, shown) in benchmarks.items()
    ]
    is_looked_at = any(block.picture for section in sections for card in section.cards for block in card.blocks)
    save_page(path, title, sections, wide=True, legend=legend_picture() if is_looked_at else None)
