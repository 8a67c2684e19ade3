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
"""The same question on a scene and on an edited one, as in HallusionBench."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recipes.annotations.names import plural, with_article
from recipes.scenes.classes import NUMBERS
from recipes.scenes.pictures import compose, draw_background
from recipes.scenes.plans import Item, Plan, levels, make_plan, pick, row_generator, stamp
from recipes.scenes.questions import question_row
from recipes.scenes.texts import (
    COUNT_QUESTIONS,
    EXISTENCE_QUESTIONS,
    relation_question,
    relations_of,
)


# An edited plan, the kind of the question, its class and, for a relation, side (in the unedited plan) and other class.
_Edit = tuple[Plan, str, str, str | None, str | None]
# Of another color they may be taken for something else.
_KNOWN_BY_COLOR = ("orange", "stop sign")


def _without(plan: Plan, index: int) -> Plan:
    return replace(plan, items=plan.items[:index] + plan.items[index + 1 :])


def _in_sight(items: Sequence[Item]) -> bool:
    """Tells whether every item keeps the share of the coarse grid's cells that `_place` leaves it."""
    grid = np.zeros((64, 64), dtype=np.int8)
    areas = np.array([stamp(grid, item, i) for i, item in enumerate(items, start=1)])
    return bool(np.all(np.bincount(grid.ravel(), minlength=len(items) + 1)[1:] >= 0.7 * areas))


def _moved(plan: Plan, rng: np.random.Generator, name: str, side: str, other: str) -> Plan | None:
    """Moves the object straight to the opposite side of `other`; null when the others leave it no place there."""
    (index,), (fixed,) = plan.groups[name], plan.groups[other]
    item = plan.items[index]
    axis, extent = ("cx", "width") if side in ("left", "right") else ("cy", "height")
    low, high = 0.01 + getattr(item, extent) / 2, 0.99 - getattr(item, extent) / 2
    if side in ("left", "above"):
        low = max(low, getattr(plan.items[fixed], axis) + 0.15)
    else:
        high = min(high, getattr(plan.items[fixed], axis) - 0.15)
    if low >= high:
        return None
    for _ in range(8):
        place = {axis: float(rng.uniform(low, high))}
        items = (*plan.items[:index], replace(item, **place), *plan.items[index + 1 :])
        if _in_sight(items):
            return replace(plan, items=items)
    return None


def _edits(plan: Plan, rng: np.random.Generator) -> Iterator[_Edit]:
    """Yields up to one edit for each kind."""
    if len(plan.items) > 2:  # no scene has less than two objects
        for kind, chosen in (("existence", lambda count: count == 1), ("count", lambda count: count > 1)):
            if names := [name for name, items in plan.groups.items() if chosen(len(items))]:
                name = pick(rng, names)
                yield _without(plan, pick(rng, plan.groups[name])), kind, name, None, None
    relations = relations_of(plan)
    for i in rng.permutation(len(relations)):
        if edited := _moved(plan, rng, *relations[i]):
            yield edited, "relation", *relations[i]
            return


@functools.cache
def _colorfulness(sprite: str) -> float:
    """Returns the mean chroma, largest minus smallest of red, green and blue in [0, 1], of a drawing's pixels."""
    pixels = np.asarray(levels(sprite)[0]).reshape(-1, 4)
    return float(np.ptp(pixels[pixels[:, 3] > 127, :3], axis=1).mean() / 255)


def _recolorings(plan: Plan, rng: np.random.Generator) -> Iterator[_Edit]:
    """Yields an edit that turns the hue of one object; none when turning hues would be hard to see on all of them."""
    found = [
        i
        for i, item in enumerate(plan.items)
        if item.name not in _KNOWN_BY_COLOR and _colorfulness(item.sprite) >= 0.3
    ]
    if found:
        i = pick(rng, found)
        item = plan.items[i]
        turned = replace(item, hue=item.hue + float(rng.uniform(0.3, 0.7)))
        subjects = [("existence", item.name, None, None), ("count", item.name, None, None)]
        if relations := [relation for relation in relations_of(plan) if relation[0] == item.name]:
            subjects.append(("relation", *pick(rng, relations)))
        yield replace(plan, items=(*plan.items[:i], turned, *plan.items[i + 1 :])), *pick(rng, subjects)


def _pair_draft(plan: Plan, kind: str, name: str, side: str | None, other: str | None) -> tuple[Any, ...]:
    """Returns what `question_row` takes; the answer is read off the plan, `side` says which axis is asked for."""
    if kind == "relation":
        sides = ("left", "right") if side in ("left", "right") else ("above", "below")
        message = relation_question(plan, name, sides, other)
        answer = next(side for side in sides if (name, side, other) in relations_of(plan))
        return message.content, answer, kind, name, message.mentions
    items = plan.groups.get(name, ())
    if kind == "count":
        word, question, answer = plural(name), COUNT_QUESTIONS[0].format(plural(name)), NUMBERS[len(items)]
    else:
        word, question, answer = name, EXISTENCE_QUESTIONS[0].format(with_article(name)), "yes" if items else "no"
    return question, answer, kind, name, ((word, question.index(word), items),)


def _asked_twice(
    edits: Callable[[Plan, np.random.Generator], Iterator[_Edit]],
    stream: str,
    split: str,
    num_images: int,
    image_size: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Returns the rows before and after all edits of the scenes, which are drawn from a stream of `row_generator`."""
    rows = []
    for index in range(num_images):
        plan = make_plan(split, index, seed)
        background = draw_background(row_generator(split, index, seed, "background"), split, image_size)
        scene = compose(plan, background.copy())
        for number, (edited, *subject) in enumerate(edits(plan, row_generator(split, index, seed, stream)), start=1):
            place = {"set_id": str(index), "question_id": str(number)}
            before = question_row(scene, *_pair_draft(plan, *subject))
            after = question_row(compose(edited, background.copy()), *_pair_draft(edited, *subject))
            rows.append(before | place | {"figure_id": "1", "visual_input": "1"})
            rows.append(after | place | {"figure_id": str(number + 1), "visual_input": "2"})
    return rows


def load_pairs(
    split: str = "test", num_images: int = 100, image_size: int = 192, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns questions about the scenes 0 to `num_images` - 1 of a split, each asked a second time after an edit.

    As in HallusionBench, the edit changes the answer and nothing that it need not change: one object is gone ("Is there
    ...?", "How many ...?") or has moved straight to the other side of another ("Is the ... to the left or right of the
    ...?"). Background and other objects stay where and as they are, and all objects stay in sight. Each scene has up to
    three edited pictures, one for each of the kinds "existence", "count" and "relation", as far as it allows them.

    Rows are those of `load_questions` with HallusionBench's columns, all strings: `set_id` (the scene), `figure_id` (the
    picture within the scene, "1" is the unedited one), `question_id` (within the scene) and `visual_input` ("1" before
    the edit, "2" after it). The two rows of a question stand one after the other.

    A model that sees nothing but the question never gets both rows of a question right, and one half of the rows about
    existence if it says yes or no.
    """
    return _asked_twice(_edits, "pair", split, num_images, image_size, seed)


def load_recolored(
    split: str = "test", num_images: int = 100, image_size: int = 192, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns a question about an object of each scene, asked a second time after the object's hue was turned.

    The turn is by 0.3 to 0.7 of the hue circle, and no answer changes by it: existence (always yes), a number or a
    relation is asked for, one of them for each scene. A scene whose objects are all near to gray, or known by their color,
    has no question. Rows are those of `load_pairs`.

    A model that sees nothing but the question answers alike both times: the numbers say something beside `load_pairs`'.
    """
    return _asked_twice(_recolorings, "recolor", split, num_images, image_size, seed)
