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
"""The rule of each benchmark: from an answer in words to right or wrong."""

import functools
import re
from collections.abc import Iterable, Sequence


NUMBERS = ("zero", "one", "two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
HALLUSION_ANSWERS = {"0": "no", "1": "yes"}
FULL_WIDTH = {ord("！") + n: ord("!") + n for n in range(94)} | {ord("\u3000"): ord(" ")}


@functools.lru_cache(maxsize=1 << 16)
def says_no(text: str) -> bool:
    """Applies POPE's own rule: the first sentence, without commas, has one of the words No, not and no."""
    return not {"No", "not", "no"}.isdisjoint(text.split(".")[0].replace(",", "").split(" "))


def parse_yes_no(text: str) -> str | None:
    """Returns "yes" or "no" if exactly one of the two words stands in the text, in any case, else None."""
    found = set(re.findall(r"\b(?:yes|no)\b", text.lower()))
    return found.pop() if len(found) == 1 else None


# "(b)"; "b." or "option b" (small letters only where they can be nothing else); B as a word of its own
_LETTER = re.compile(r"\(([A-Za-z])\)|(?:^|\b(?i:option|choice)\s+)([a-z])(?=[.):]|$)|(?<![\w'’-])([A-Z])(?![\w'’-])")
_ANSWER_IS = re.compile(r"\b(?i:answer)(?:\s+(?i:is))?\s*:?\s*(?i:option\s+)?[(\"'*]*([A-Z]\b|[a-z](?=[).\"'*]*\s*$))")
_ARTICLE = re.compile(r"(?<![\w(])A(?=\s+(?!(?:and|or|is)\b)[a-z])")
_NEGATED = re.compile(r"\bnot\s+(?:(?i:option)\s+)?(?:\([A-Za-z]\)|[A-Z]\b)")


def words_of(text: str) -> str:
    """The words of a text without case, punctuation and an article in front."""
    return re.sub(r"^(?:the|an?) (?=\w)", "", " ".join(re.findall(r"\d+(?:[.,]\d+)*|\w+", text.lower())))


def parse_option(prediction: str, choices: Sequence[str]) -> str | None:
    """
    The letter of the option that a prediction names, or None if it names none or more than one.

    A letter counts as "B", "b", "(b)", "b.", "B: the car", "option b" or any capital of its own ("I think it is B"), but not
    the article in "A car" and not what is denied ("not B"). What follows "answer is" outweighs other letters. Without a letter
    the option's own text counts, if it is the text of one option only; where one option's text is part of another's
    ("car", "red car"), the longer one. "(B) the car" is none where the car is option A.

    Args:
        prediction (`str`): What the model wrote.
        choices (`Sequence[str]`): Texts of the options A, B, ...; empty where they are not known.
    """
    options = {chr(ord("A") + n): words_of(choice) for n, choice in enumerate(choices)}
    text = _NEGATED.sub("", _ARTICLE.sub("a", prediction.strip().strip("*\"'`").strip()))
    for pattern in (_ANSWER_IS, _LETTER):
        found = {"".join(match.groups(default="")).upper() for match in pattern.finditer(text)} & options.keys()
        if found:
            rest = words_of(pattern.sub(" ", text))
            others = {letter for letter, option in options.items() if option and option == rest} - found
            return found.pop() if len(found) == 1 and not others else None
    named, words = set(), f" {words_of(text)} "
    for option in sorted(set(options.values()) - {""}, key=len, reverse=True):
        if f" {option} " in words:
            named.add(option)
            words = words.replace(f" {option} ", " | ")
    letters = [letter for letter, option in options.items() if option in named]
    return letters[0] if len(letters) == 1 else None


def contains(prediction: str, answers: Iterable[str], formula: bool = False) -> bool:
    """
    Tells whether one of the answers is contained in the prediction, as OCRBench counts.

    Both are stripped, line breaks become spaces, full-width forms of ASCII characters are folded and case does not matter. Of a
    `formula` (data set HME100k) case matters and spaces do not.
    """

    def plain(text: str) -> str:
        if formula:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.translate(FULL_WIDTH).lower().strip().replace("\n", " ")

    return any(plain(answer) in plain(prediction) for answer in answers)


def score_count(answer: str, prediction: str) -> bool:
    """Tells whether the first number in the prediction, as a word or in digits, is `answer` (a word)."""
    found = re.search(rf"\b(\d+|{'|'.join(NUMBERS)})\b", prediction.lower())
    if found is None:
        return False
    word = found[1]
    return word == answer if word in NUMBERS else int(word) == NUMBERS.index(answer)


def score_relation(answer: str, prediction: str) -> bool:
    """Tells whether the first side (left, right, above, below) that the prediction names is `answer`."""
    found = re.search(rf"\b({'|'.join(SIDES)})\b", prediction.lower())
    return found is not None and found[1] == answer
