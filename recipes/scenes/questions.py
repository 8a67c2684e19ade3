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
"""Evaluation questions about scenes: existence by POPE's rules, counting and relations."""

import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from recipes.annotations.names import plural, with_article
from recipes.scenes.classes import CLASSES, NUMBERS, POPE_KINDS, SIDES, SPLITS
from recipes.scenes.pictures import Scene, sample_scene
from recipes.scenes.plans import Plan, draw_names, make_plan, pick
from recipes.scenes.rows import union_of
from recipes.scenes.texts import (
    COUNT_QUESTIONS,
    EXISTENCE_QUESTIONS,
    relation_question,
    relations_of,
)


@functools.cache
def _habits() -> tuple[np.ndarray, np.ndarray]:
    """Returns how often classes (C,) and pairs of classes (C, C) are seen in 4000 scenes."""
    rng = np.random.default_rng(0)
    shown = np.zeros((4000, len(CLASSES)))
    for row in shown:
        row[[CLASSES.index(name) for name in set(draw_names(rng)[1])]] = 1
    return shown.sum(axis=0), shown.T @ shown


def _ranked(plan: Plan, kind: str, rng: np.random.Generator) -> list[str]:
    """Returns the classes that are not in the plan, those to ask for first.

    They are in a random order, the most frequent ones first, or those first that are most often seen together with
    what the plan shows (POPE's random, popular and adversarial).
    """
    frequency, together = _habits()
    present = [CLASSES.index(name) for name in plan.groups]
    scores = {
        "random": rng.random(len(CLASSES)),
        "popular": frequency,
        "adversarial": together[present].sum(axis=0),
    }[kind]
    return [CLASSES[i] for i in np.argsort(-scores, kind="stable") if i not in present]


# picture, question, short answer, kind, class that is asked for, phrases (text, start, items) that name classes
_Draft = tuple[int, str, str, str, str, tuple[tuple[str, int, tuple[int, ...]], ...]]


def _pope_drafts(plans: Sequence[Plan], kind: str, first: int, rng: np.random.Generator) -> Iterator[_Draft]:
    """Yields a no for every third picture and, for each, a yes about the same class from a picture of that context."""
    holders = defaultdict(list)
    for i in rng.permutation(len(plans)):
        for name in plans[i].groups:
            holders[plans[i].context, name].append(int(i))
    for i in range(first, len(plans), 3):
        names = (name for name in _ranked(plans[i], kind, rng) if holders[plans[i].context, name])
        if (name := next(names, None)) is None:
            continue
        other = holders[plans[i].context, name].pop()
        question = EXISTENCE_QUESTIONS[0].format(with_article(name))
        yield i, question, "no", kind, name, ((name, question.index(name), ()),)
        yield other, question, "yes", kind, name, ((name, question.index(name), plans[other].groups[name]),)


def _count_drafts(plans: Sequence[Plan], total: int, rng: np.random.Generator) -> Iterator[_Draft]:
    """Yields up to `total` questions, taking the numbers one to four by turns while there are any left."""
    pools = defaultdict(list)
    for i in rng.permutation(len(plans)):
        for name, items in plans[i].groups.items():
            pools[len(items)].append((int(i), name, items))
    turns = itertools.zip_longest(*(pools[count] for count in sorted(pools)))
    for i, name, items in itertools.islice((entry for turn in turns for entry in turn if entry), total):
        question = COUNT_QUESTIONS[0].format(plural(name))
        phrase = (plural(name), question.index(plural(name)), items)
        yield i, question, NUMBERS[len(items)], "count", name, (phrase,)


def _relation_drafts(plans: Sequence[Plan], total: int, rng: np.random.Generator) -> Iterator[_Draft]:
    """Yields up to `total` questions, as many about every side, at most one about a picture and an axis."""
    pools = defaultdict(list)
    for i in rng.permutation(len(plans)):
        relations = relations_of(plans[i])
        for sides in (("left", "right"), ("above", "below")):
            # a relation and its converse are both there, so either answer can be had from any picture
            side = min(sides, key=lambda side: len(pools[side]))
            if options := [relation for relation in relations if relation[1] == side]:
                pools[side].append((int(i), sides, pick(rng, options)))
    for turn in itertools.islice(zip(*(pools[side] for side in SIDES), strict=False), total // 4):
        for i, sides, (name, side, other) in turn:
            message = relation_question(plans[i], name, sides, other)
            yield i, message.content, side, "relation", name, message.mentions


def question_row(
    scene: Scene, question: str, answer: str, kind: str, name: str, phrases: Sequence[tuple[str, int, tuple[int, ...]]]
) -> dict[str, Any]:
    asked = [n for _, _, items in phrases for n in items]
    return {
        "image": scene.image,
        "question": question,
        "answer": answer,
        "kind": kind,
        "object": name,
        "context": scene.context,
        "mask": union_of(scene, asked) if asked else None,
        "phrases": [
            {"text": text, "span": [start, start + len(text)], "mask": union_of(scene, items) if items else None}
            for text, start, items in phrases
        ],
    }


def load_questions(
    split: str = "test", num_images: int = 300, image_size: int = 192, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the evaluation questions about the scenes 0 to `num_images` - 1 of a split.

    About 2 `num_images` questions are about existence, two thirds of `num_images` each about numbers and relations.
    Rows: `image` (PIL), `scene` (its index), `question`, `answer` ("yes", "no", a number as a word, or a side), `kind` (of `POPE_KINDS`,
    "count" or "relation"), `object` (class), `context`, `mask` (RLE of the visible pixels of all that is asked about,
    null for a no), `phrases` (the words that name a class: `text`, `span`, `mask`, null where it is not in the picture).

    For every no there is a yes to the same question in another picture of the same context and for the same kind, so a
    model that sees nothing but the question has an accuracy of exactly one half.
    """
    plans = [make_plan(split, index, seed) for index in range(num_images)]
    rng = np.random.default_rng([seed, SPLITS.index(split), num_images])
    drafts = [
        *(draft for i, kind in enumerate(POPE_KINDS) for draft in _pope_drafts(plans, kind, i, rng)),
        *_count_drafts(plans, 2 * num_images // 3, rng),
        *_relation_drafts(plans, 2 * num_images // 3, rng),
    ]
    scenes = {i: sample_scene(split, i, seed, image_size) for i in sorted({draft[0] for draft in drafts})}
    return [{**question_row(scenes[i], *draft), "scene": i} for i, *draft in drafts]


@functools.cache
def _forms() -> dict[str, str]:
    """Returns singulars and plurals with their class, the longest ones first."""
    forms = {form: name for name in CLASSES for form in (name, plural(name))}
    return {form: forms[form] for form in sorted(forms, key=len, reverse=True)}


def find_classes(text: str) -> list[str]:
    """Returns the classes that a text names, one for each mention: whole words, and as many of them as make a name."""
    text = re.sub(r"[\s-]+", " ", text.lower())
    return [_forms()[form] for form in re.findall(rf"\b(?:{'|'.join(_forms())})\b", text)]
