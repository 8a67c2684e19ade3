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
Which objects a caption names: COCO's, as CHAIR counts them (arXiv 1809.02156), and AMBER's (arXiv 2311.07397), without
what their scripts download: lemmatizers, for AMBER also a tagger and word vectors. Words are those of the two tables,
and their plurals.

That is CHAIR's own rule. Its lemmatizer only loses "bus" and "ties": of six published sets of captions (2,800), CHAIR
s differs by 0 to 0.8 points, CHAIR i by 0 to 0.2. Its ports (lmms-eval's `coco_cap_chair`, OPERA's) take the lemmas of
verbs, too, so that "seated" names a chair and "skiing" skis, and lose "men" and "vases". CHAIR s, CHAIR i and recall
in percent:

| captions                                         | as published     | here             |
|--------------------------------------------------|------------------|------------------|
| LLaVA-1.5, 500 pictures                          | 44.6, 12.7, 79.2 | 44.8, 12.6, 79.4 |
| the same, with VCD                               | 54.8, 15.2, 79.0 | 55.0, 15.1, 79.3 |
| the same, with DeCo                              | 41.6, 10.2, 73.6 | 41.2, 10.0, 73.6 |
| a model that often writes "seated", 300 pictures | 28.3, 8.6, 62.4  | 22.3, 7.2, 61.1  |

AMBER takes nouns by a tagger. Here "can" and "hot" never are, all else in its table always. Its word vectors play no
part: with its tagger and equal words alone, both of these come out as published. CHAIR, Cover, Hal and Cog in percent:

| descriptions | as published         | here                 |
|--------------|----------------------|----------------------|
| LLaVA        | 7.3, 51.3, 34.5, 3.9 | 7.5, 51.6, 35.5, 4.0 |
| InstructBLIP | 7.9, 53.7, 37.4, 4.0 | 8.0, 53.9, 38.1, 4.1 |
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from recipes.evaluation.rules import said


class CaptionCounts(NamedTuple):
    """
    What a caption of a picture names: mentions of objects, those that are false, and the objects found of those there.
    """

    mentions: int
    false: int
    found: int
    there: int
    num_words: int


def count_named(named: Sequence[str], there: Collection[str], text: str) -> CaptionCounts:
    """Counts what CHAIR looks at in a caption that names objects, of a picture with the objects `there`."""
    false = sum(name not in there for name in named)
    return CaptionCounts(len(named), false, len(set(named) & set(there)), len(set(there)), len(said(text).split()))


IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "gentleman": "gentlemen",
    "goose": "geese",
    "knife": "knives",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "policeman": "policemen",
    "scarf": "scarves",
    "serviceman": "servicemen",
    "shelf": "shelves",
    "woman": "women",
}


def forms(word: str) -> Iterator[str]:
    """A noun in the singular and the plural."""
    yield word
    if word in IRREGULAR:
        yield IRREGULAR[word]
    elif re.search(r"(?:[sxz]|ch|sh)$", word):
        yield f"{word}es"
    elif re.search(r"[^aeiou]y$", word):
        yield f"{word[:-1]}ies"
    else:
        yield f"{word}s"
        if word.endswith("o"):
            yield f"{word}es"


def singulars(words: Collection[str]) -> dict[str, str]:
    """Each word by all its forms. A word that is another's plural is itself."""
    return {form: word for word in words for form in forms(word)} | {word: word for word in words}


def tokens(text: str) -> list[str]:
    """Words, also with hyphens, and punctuation."""
    return re.findall(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*|[^\w\s]", said(text))


# --- COCO ---

# Two words that are one, of those that hold another object's name
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub".split()
_PAIRS = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")},
    **dict.fromkeys(("home plate", "train track"), ""),
    "bow tie": "tie",
    "toilet seat": "toilet",
}


@cache
def coco_names() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """
    COCO's class by each of its names, names of two words with what counts instead of them, and words by their forms.
    """
    text = Path(__file__).with_name("coco_synonyms.txt").read_text(encoding="utf-8")
    lines = [line.split(", ") for line in text.splitlines() if not line.startswith("#")]
    names = {name: line[0] for line in lines for name in line}
    pairs = {name: name for name in names if name.count(" ") == 1} | _PAIRS
    alone = {name for name in names if " " not in name} | {word for pair in pairs for word in pair.split()}
    return names, pairs, singulars(alone)


def coco_objects(text: str) -> list[str]:
    """The classes of COCO that a caption names, in order and as often as it does."""
    names, pairs, singular = coco_names()
    words = [singular.get(word, word) for word in tokens(text.lower())]
    named, n = [], 0
    while n < len(words):
        pair = " ".join(words[n : n + 2])
        named.append(pairs.get(pair, words[n]))
        n += 2 if pair in pairs else 1
    if "toilet" in named:
        named = [word for word in named if word != "seat"]
    return [names[word] for word in named if word in names]


def count_coco(text: str, there: str) -> CaptionCounts:
    """Counts a caption's objects by those of the picture, "cat, dining table"."""
    return count_named(coco_objects(text), [name for name in there.split(", ") if name], text)


# --- AMBER ---

NEVER_NOUNS = {"can", "hot"}  # "can be seen", "hot dog"
# Plurals that its lemmatizer makes other words of: it knows a noun "men", vasa and leaves of a tree
OTHER_LEMMAS = {"men", "vases", "leaves"}


def count_amber(
    text: str,
    there: Sequence[str],
    expected: Sequence[str],
    related: Mapping[str, Sequence[str]],
    safe: Collection[str],
) -> dict[str, int]:
    """
    Counts a caption's objects as AMBER does. A word stands for the first object that it is related to, or, if there is
    none, is named by it.

    Args:
        text (`str`): The caption.
        there (`Sequence[str]`): The picture's objects (`truth`).
        expected (`Sequence[str]`): Objects that people would imagine in it, but are not there (`hallu`).
        related (`dict`): The words that may mean an object (`relation.json`).
        safe (`Collection[str]`): Words that are never false (`safe_words.txt`).

    Returns:
        `dict`: `mentions` and those that are `false`; how many of the objects `there` are `found`, of the `expected`
        are `imagined`.
    """
    table = set(related).union(*related.values())
    singular = {form: word for form, word in singulars(table).items() if form not in OTHER_LEMMAS | NEVER_NOUNS}

    def places(objects: Sequence[str]) -> dict[str, int]:
        pairs = [(word, n) for n, name in enumerate(objects) for word in related.get(name, ())]
        pairs += [(name, n) for n, name in enumerate(objects)]
        return dict(reversed(pairs))

    in_picture, in_mind = places(there), places(expected)
    mentioned = [singular[word] for word in tokens(text) if word in singular]
    named = [word for word in mentioned if word not in safe]
    false = [word for word in named if word not in in_picture]
    return {
        "mentions": len(mentioned),
        "false": len(false),
        "found": len({in_picture[word] for word in named if word in in_picture}),
        "there": len(there),
        "imagined": len({in_mind[word] for word in false if word in in_mind}),
        "expected": len(expected),
    }
