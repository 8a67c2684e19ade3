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
Noun phrases of an English text, for what takes nothing longer: "A woman in a red coat is holding two dogs." has "A woman", "a
red coat" and "two dogs".

The rule is short rather than complete. A phrase begins with a determiner, a number or what may be a plural behind no noun, and
ends before a word that does not go into one.
"""

import itertools
import re


LONGEST = 5  # words


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


_BEGIN = _words(
    "a an the this that these those some several many few both each every another other one two three four five six seven "
    "eight nine ten eleven twelve his her its their my your our"
)
# What stands in no phrase, or ends it
_END = _words(
    "of in on at by with without and or but nor to from into onto upon for as than near beside besides behind under over above "
    "below beneath between among against along across around through inside outside off out up down next while where which who "
    "whom whose that there here it he she they them him we you i is are was were be been being am has have had having do does did "
    "can could will would shall should may might must not no yes also very just only then so if when because about during after "
    "before until like via per it's there's he's she's what how why wearing holding show shows contain contains feature features "
    "depict depicts display displays include includes sit sits stand stands lie lies hang hangs look looks wear wears hold holds "
    "ride rides walk walks run runs play plays eat eats see sees"
)
# Of words in "-ing", those that are things or tell of what kind a thing is
_THINGS = _words(
    "building ceiling painting king ring string wing spring swing sling clothing evening morning railing awning lightning thing "
    "something nothing anything pudding wedding dressing earring living dining parking baking cutting frying swimming bedding "
    "flooring siding icing seasoning housing lighting drawing herring sibling darling duckling stuffing topping rolling running "
    "washing vending shopping landing crossing serving sewing opening covering carving"
)
# Words that name no thing of a picture
_VOID = _words(
    "image picture photo photograph scene background foreground front back side top bottom middle left right lot group view"
)
_COLORS = _words("black white red green blue yellow orange brown gray grey pink purple tan beige gold golden silver")


def noun_phrases(text: str) -> list[str]:
    """The noun phrases of a text, in its order and as they stand there, each once."""
    phrases: dict[str, str] = {}
    for clause in re.split(r"[.,;:!?()\[\]\"\n]|\s-\s", text):
        current: list[str] = []
        before = "of"
        for word, following in itertools.pairwise([*clause.split(), "of", "of"]):
            plain = word.lower().strip("'\u2019")
            has_noun = any(other.lower() not in _BEGIN for other in current)
            is_verb = (
                plain.endswith("ing") and plain not in _THINGS and has_noun
            )  # "a smiling man", but "a man smiling"
            is_mixed = plain == "and" and before in _COLORS and following.lower() in _COLORS  # "a black and white cat"
            ends = (plain in _END and not is_mixed) or plain in _BEGIN or is_verb or len(current) == LONGEST
            if ends and current:
                nouns = [other for other in current if other.lower() not in _BEGIN]
                if nouns and nouns[-1].lower() not in _VOID | _END:
                    phrase = " ".join(current)
                    phrases.setdefault(phrase.lower(), phrase)
                current = []
            is_plural = before in _END and plain.endswith("s") and not plain.endswith("ss") and plain not in _END
            if plain in _BEGIN or (not current and is_plural) or (current and not ends):
                current.append(word)
            before = plain
    return list(phrases.values())
