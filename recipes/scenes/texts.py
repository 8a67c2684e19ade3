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
"""What is said about scenes: captions and dialogs, each phrase with the objects that it names."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.annotations.names import plural, with_article
from recipes.scenes.classes import CLASSES, NUMBERS, OPPOSITES, PLACES, SIDES, TASKS
from recipes.scenes.plans import Item, Plan, make_plan, next_class, pick, row_generator


@dataclass(frozen=True)
class Message:
    """
    A message: `mentions` are (phrase, start, item indices), without indices for what is not in the picture; `items` those
    that the message as a whole is about.
    """

    role: str
    content: str
    mentions: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    items: tuple[int, ...] = ()


_Phrase = tuple[str, tuple[int, ...]]


def make_message(role: str, *parts: str | _Phrase, whole: bool = True) -> Message:
    """Joins texts and phrases `(text, item indices)`; `whole`: the message is about all items of its phrases."""
    content, mentions = "", []
    for part in parts:
        text = part
        if isinstance(part, tuple):
            text, items = part
            mentions.append((text, len(content), items))
        content += text
    union = sorted({i for _, _, items in mentions for i in items}) if whole else ()
    return Message(role, content, tuple(mentions), tuple(union))


def _counted(name: str, count: int) -> str:
    return with_article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def _some(name: str, count: int) -> str:
    """Names the objects without their number, which another question may ask for."""
    return with_article(name) if count == 1 else f"some {plural(name)}"


def _listed(phrases: Sequence[_Phrase]) -> list[str | _Phrase]:
    """Puts commas and an "and" between phrases."""
    parts: list[str | _Phrase] = []
    for i, phrase in enumerate(phrases):
        parts += [" and " if i == len(phrases) - 1 else ", ", phrase] if i else [phrase]
    return parts


def _position(item: Item) -> str:
    if abs(item.cx - 0.5) >= 0.12:
        return "on the left" if item.cx < 0.5 else "on the right"
    if abs(item.cy - 0.5) >= 0.12:
        return "at the top" if item.cy < 0.5 else "at the bottom"
    return "in the middle"


def relations_of(plan: Plan) -> list[tuple[str, str, str]]:
    """Returns all (class, side, class) that hold by a margin between classes that stand once in the plan."""
    single = {name: plan.items[ids[0]] for name, ids in plan.groups.items() if len(ids) == 1}
    found = []
    for (name, item), (other_name, other) in itertools.permutations(single.items(), 2):
        if abs(item.cx - other.cx) >= 0.15:
            found.append((name, "left" if item.cx < other.cx else "right", other_name))
        if abs(item.cy - other.cy) >= 0.15:
            found.append((name, "above" if item.cy < other.cy else "below", other_name))
    return found


def _relation_parts(plan: Plan, name: str, side: str, other: str) -> list[str | _Phrase]:
    return ["The ", (name, plan.groups[name]), f" is {SIDES[side]} the ", (other, plan.groups[other]), "."]


def _caption(plan: Plan, rng: np.random.Generator) -> list[Message]:
    """Returns a request and a caption: all objects with their numbers, then a relation or a position."""
    requests = ("Describe the image.", "What does the image show?", "What can you see in the image?")
    opening = pick(rng, ("{} with ", "The image shows {} with ", "This is a picture of {} with "))
    opening = opening.format(PLACES[plan.context])
    names = [str(name) for name in rng.permutation(list(plan.groups))]
    parts = [opening[0].upper() + opening[1:]]
    parts += [*_listed([(_counted(name, len(plan.groups[name])), plan.groups[name]) for name in names]), "."]
    single = [name for name in names if len(plan.groups[name]) == 1]
    if relations := relations_of(plan):
        parts += [" ", *_relation_parts(plan, *pick(rng, relations))]
    elif single:
        item = plan.groups[single[0]]
        parts += [" The ", (single[0], item), f" is {_position(plan.items[item[0]])}."]
    return [make_message("user", pick(rng, requests)), make_message("assistant", *parts)]


def _affirm(plan: Plan, name: str, template: str) -> list[Message]:
    items = plan.groups[name]
    verb, tail = ("is", f" It is {_position(plan.items[items[0]])}.") if len(items) == 1 else ("are", "")
    answer = (f"Yes, there {verb} ", (_some(name, len(items)), items), " in the image." + tail)
    question = make_message("user", *_split(template, "{}", with_article(name).removesuffix(name), (name, items)))
    return [question, make_message("assistant", *answer, whole=False)]


def _split(template: str, mark: str, *parts: str | _Phrase) -> list[str | _Phrase]:
    """Puts the parts in the place of the mark."""
    before, _, after = template.partition(mark)
    return [before, *parts, after]


def _deny(plan: Plan, name: str, template: str, shown: Sequence[str]) -> list[Message]:
    """Returns a question about an absent class; the answer tells of some `shown` classes instead."""
    listed = "".join(_listed([_some(other, len(plan.groups[other])) for other in shown]))
    nowhere = name, ()
    question = make_message("user", *_split(template, "{}", with_article(name).removesuffix(name), nowhere))
    answer = make_message("assistant", "No, there is no ", nowhere, f" in the image. The image shows {listed}.")
    return [question, answer]


def _count_turn(plan: Plan, name: str, template: str) -> list[Message]:
    items = plan.groups[name]
    phrase = f"one {name}" if len(items) == 1 else _counted(name, len(items))
    answer = (f"There {'is' if len(items) == 1 else 'are'} ", (phrase, items), " in the image.")
    question = make_message("user", *_split(template, "{}", (plural(name), items)))
    return [question, make_message("assistant", *answer, whole=False)]


def relation_question(plan: Plan, name: str, sides: tuple[str, str], other: str) -> Message:
    """Asks on which of the two sides of `other` the object is; the sides stand in the order of the question."""
    choice = " or ".join(SIDES[side].removesuffix(" of") for side in sides)
    choice += " of" if "left" in sides else ""
    return make_message(
        "user", "Is the ", (name, plan.groups[name]), f" {choice} the ", (other, plan.groups[other]), "?"
    )


def _relation_turn(plan: Plan, rng: np.random.Generator, name: str, side: str, other: str) -> list[Message]:
    sides = (side, OPPOSITES[side]) if rng.random() < 0.5 else (OPPOSITES[side], side)
    answer = make_message("assistant", *_relation_parts(plan, name, side, other), whole=False)
    return [relation_question(plan, name, sides, other), answer]


def _place_turn(plan: Plan, name: str) -> list[Message]:
    """Asks where an object is that stands once in the plan; the answer tells both axes where both tell something."""
    phrase = name, plan.groups[name]
    item = plan.items[plan.groups[name][0]]
    place = _position(item)
    if abs(item.cx - 0.5) >= 0.12 and abs(item.cy - 0.5) >= 0.12:
        place = f"at the {'top' if item.cy < 0.5 else 'bottom'} {'left' if item.cx < 0.5 else 'right'}"
    answer = "The ", phrase, f" is {place}."
    return [make_message("user", "Where is the ", phrase, "?"), make_message("assistant", *answer, whole=False)]


EXISTENCE_QUESTIONS = ("Is there {} in the image?", "Does the image show {}?", "Can you see {} in the image?")
COUNT_QUESTIONS = ("How many {} are in the image?", "How many {} can you see?", "How many {} does the image show?")


def _absent(plan: Plan, rng: np.random.Generator, asked: Sequence[str]) -> str:
    """Draws a class that is not in the plan: any one, or one that goes with its context, half of the time each."""
    taken = [*plan.groups, *asked]
    if rng.random() < 0.5:
        return pick(rng, [name for name in CLASSES if name not in taken])
    while (name := next_class(rng, plan.context, taken[:1])) in taken:
        pass
    return name


def _existence_turns(plan: Plan, rng: np.random.Generator, names: Sequence[str]) -> list[list[Message]]:
    """Returns 2 to 4 existence turns; `names` are the classes of the plan in a random order.

    Every answer is a fair coin of its own and no answer names a class that is asked for in another turn: neither the
    other turns nor the number of yes among them tell the answer.
    """
    count = int(rng.integers(2, min(4, len(names)) + 1))
    affirmed = names[: int(rng.binomial(count, 0.5))]
    free = names[len(affirmed) :]
    turns = [_affirm(plan, name, pick(rng, EXISTENCE_QUESTIONS)) for name in affirmed]
    asked: list[str] = []
    for _ in range(count - len(affirmed)):
        asked.append(_absent(plan, rng, asked))
        turns.append(_deny(plan, asked[-1], pick(rng, EXISTENCE_QUESTIONS), free[:2]))
    return [turns[i] for i in rng.permutation(count)]


def _existence(plan: Plan, rng: np.random.Generator) -> list[Message]:
    """Returns 2 to 4 turns about existence with answers of one word."""
    turns = _existence_turns(plan, rng, [str(name) for name in rng.permutation(list(plan.groups))])
    return [m for ask, tell in turns for m in (ask, make_message("assistant", tell.content.partition(",")[0] + "."))]


def _instruction(plan: Plan, rng: np.random.Generator) -> list[Message]:
    """
    Returns 2 to 6 turns: existence first, as the other questions give away what is there, then the rest. A third of the
    dialogs are without existence, so that every kind of question comes first in some.
    """
    names = [str(name) for name in rng.permutation(list(plan.groups))]
    existence = _existence_turns(plan, rng, names) if rng.random() < 2 / 3 else []
    relations = relations_of(plan)
    rest = []
    if relations:
        rest.append(_relation_turn(plan, rng, *pick(rng, relations)))
    # first the classes that stand more than once, then those that were the least likely to be named above
    names.reverse()
    names.sort(key=lambda name: len(plan.groups[name]) == 1)
    several = sum(len(items) > 1 for items in plan.groups.values())
    number = max(min(2, several), 4 - len(existence) - len(rest))
    rest += [_count_turn(plan, name, pick(rng, COUNT_QUESTIONS)) for name in names[:number]]
    turns = existence + [rest[i] for i in rng.permutation(len(rest))]
    return [message for turn in turns for message in turn]


def _counted_names(plan: Plan, rng: np.random.Generator, names: Sequence[str]) -> list[str]:
    """
    Returns the classes to ask the number of: of those that stand once a tenth and of those that stand twice one half, for
    otherwise nine answers of ten would be "one" and "two".
    """
    return [name for name in names if rng.random() < {1: 0.1, 2: 0.5}.get(len(plan.groups[name]), 1)]


def _numbers(plan: Plan, rng: np.random.Generator) -> list[Message]:
    """Returns turns about numbers alone: among the words of longer dialogs the few that tell a number are not learned."""
    names = [str(name) for name in rng.permutation(list(plan.groups))]
    counted = _counted_names(plan, rng, names) or names[:1]
    return [m for name in counted for m in _count_turn(plan, name, pick(rng, COUNT_QUESTIONS))]


def _layout(plan: Plan, rng: np.random.Generator) -> list[Message]:
    """
    Returns turns about how many things there are and where: first numbers, then the places of up to 3 objects and up to 6
    relations in a random order.

    Many answers per picture, for each says little: a relation is one bit, and what reads it has to learn to read places
    first. No two relations are about the same objects and axis, for one gives away the other; and what is asked for by its
    place stands once, which nothing tells before its number is asked for.
    """
    names = [str(name) for name in rng.permutation(list(plan.groups))]
    single = [name for name in names if len(plan.groups[name]) == 1]
    counted = _counted_names(plan, rng, names)
    relations: dict[tuple[frozenset[str], bool], tuple[str, str, str]] = {}
    for name, side, other in rng.permutation(relations_of(plan)).tolist():
        relations.setdefault((frozenset((name, other)), side in ("left", "right")), (name, side, other))
    if not (single or counted):
        counted = names[:1]
    numbers = [_count_turn(plan, name, pick(rng, COUNT_QUESTIONS)) for name in counted]
    places = [_place_turn(plan, name) for name in single[:3]]
    places += [_relation_turn(plan, rng, *relation) for relation in list(relations.values())[:6]]
    return [message for turns in (numbers, places) for i in rng.permutation(len(turns)) for message in turns[i]]


def make_dialog(plan: Plan, task: str, split: str, index: int, seed: int) -> list[Message]:
    """Returns the messages of a row; raises `ValueError` for an unknown task."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    rng = row_generator(split, index, seed, task)
    dialogs = (_caption, _instruction, _existence, _layout, _numbers)
    return dialogs[TASKS.index(task)](plan, rng)


def scene_texts(split: str, num: int, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """Yields the messages of `num` chats without drawing the pictures: captions, instructions and both by turns.

    They are the messages that `load_scenes` gives for row 0 of `"caption"`, row 1 of `"instruction"`, rows 2 and 3 of
    either, one after the other, and so on. In the last kind the answers follow from the caption.
    """
    for index in range(num):
        plan = make_plan(split, index, seed)
        both = ("caption", "instruction")
        tasks = (both[:1], both[1:], both, both)[index % 4]
        dialog = [message for task in tasks for message in make_dialog(plan, task, split, index, seed)]
        yield [{"role": message.role, "content": message.content} for message in dialog]
