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


# What a model wrote to itself before its answer, as lmms-eval takes it away. The chat template may have begun it.
THOUGHTS = re.compile(r"^.*</(?:think|analysis)>|<(think|analysis)>.*$", flags=re.DOTALL)
MARKUP = str.maketrans("", "", "*_`#")


@functools.lru_cache(maxsize=1 << 16)
def said(text: str) -> str:
    """
    What a prediction says: without thoughts before it and marks of Markdown, and with full-width letters as plain
    ones.
    """
    return THOUGHTS.sub("", text).translate(FULL_WIDTH).translate(MARKUP).strip()


@functools.lru_cache(maxsize=1 << 16)
def says_no(text: str) -> bool:
    """Applies POPE's own rule: the first sentence, without commas, has one of the words No, not and no."""
    return not {"No", "not", "no"}.isdisjoint(said(text).split(".")[0].replace(",", "").split(" "))


def says_yes_or_no(text: str) -> bool:
    """Whether POPE's rule has something to go by: the answer says no, or has a yes in it."""
    return says_no(text) or re.search(r"\byes\b", said(text), flags=re.IGNORECASE) is not None


def begins_with_yes_or_no(text: str) -> str | None:
    """
    Applies MME's rule: "yes" or "no" if that, or its letter alone, is the answer or stands in its first four
    characters.
    """
    plain = said(text).lower().replace(".", "")
    if len(plain) == 1:
        return {"y": "yes", "n": "no"}.get(plain)
    return next((word for word in ("yes", "no") if word in plain[:4]), None)


def first_of(text: str, words: Sequence[str]) -> str | None:
    """Applies NaturalBench's rule: the word that stands first in the text, in any case, in small letters."""
    found = re.search(rf"\b(?:{'|'.join(words)})\b", said(text), flags=re.IGNORECASE)
    return found and found[0].lower()


def parse_yes_no(text: str) -> str | None:
    """Returns "yes" or "no" if exactly one of the two words stands in the text, in any case, else None."""
    found = set(re.findall(r"\b(?:yes|no)\b", said(text).lower()))
    return found.pop() if len(found) == 1 else None


_WRONG = r"(?:wrong|incorrect|false|not|no)\b|(?:does|do|is|can|was)(?:\s+not\b|n['’]t\b)"
# "(b)"; "b." or "option b" (small letters only where they can be nothing else); B as a word of its own
_LETTER = re.compile(
    r"\(([A-Za-z])(?![\w'’])"
    r"|(?:^|\b(?i:option|choice)\s+)([a-z])(?![\w'’])(?=[.):]|\s+is\b|$)"
    r"|(?<![A-Za-z0-9'’-])([A-Z])(?![\w'’-])"
)
_ANSWER_IS = re.compile(
    r"\b(?i:answer|therefore|thus|so it|hence)(?:\s+(?i:is))?[\s,:]*"
    r"(?i:option\s+)?[(\"']*([A-Z]\b|[a-z](?=[).\"']*\s*$))"
    r"(?:\W{0,2}\s*(?:or|and)\s+\W?([A-Z])\b)?"
)
_ARTICLE = re.compile(r"(?<![\w(])A(?=\s+(?!(?:and|or|is|does|was|can)\b)[a-z])")
_DENIED = re.compile(
    r"\b(?:not|cannot|isn['’]t|can['’]t|neither|nor|rather than|instead of)\s+(?:be\s+)?"
    r"(?:(?i:option|choice)\s+)?(?:\([A-Za-z]\)|[A-Z]\b)"
    rf"|\b(?:(?i:option|choice)\s+)?\(?[A-Z]\)?\s+(?:is\s+)?(?:{_WRONG})"
)
_REASON = re.compile(r"\b(?:because|since|explanation|reason)\b.*", flags=re.IGNORECASE | re.DOTALL)


def words_of(text: str) -> str:
    """The words of a text without case, punctuation and an article in front."""
    return re.sub(r"^(?:the|an?) (?=\w)", "", " ".join(re.findall(r"\d+(?:[.,]\d+)*|\w+", text.lower())))


def parse_option(prediction: str, choices: Sequence[str]) -> str | None:
    """
    The letter of the option that a prediction names, or None if it names none or more than one.

    A letter counts as "B", "b", "(b)", "b.", "B: the car", "option b" or any capital of its own ("I think it is B"),
    but not the article in "A car", not what is denied ("not B", "B is wrong") and not what stands in a reason
    ("because A ..."). A first line that is nothing but an option outweighs what follows, then the last "answer is".
    Without a letter the option's own text counts, if it is the text of one option only; where one option's text is
    part of another's ("car", "red car"), the longer one. "(B) the car" is none where the car is option A.

    Args:
        prediction (`str`): What the model wrote.
        choices (`Sequence[str]`): Texts of the options A, B, ...; empty where they are not known.
    """
    options = {chr(ord("A") + n): words_of(choice) for n, choice in enumerate(choices)}
    text = said(prediction).strip("\"' \n")
    first = re.match(r"\(?([A-Za-z])(?:[).:]+|\s|$)\s*(.*)", text)
    if first and first[1].upper() in options and words_of(first[2]) in ("", options[first[1].upper()]):
        return first[1].upper()
    text = _REASON.sub("", _DENIED.sub("", _ARTICLE.sub("a", text)))
    concluded = [match for match in _ANSWER_IS.finditer(text) if match[1].upper() in options]
    if concluded:
        found = {letter.upper() for letter in concluded[-1].groups() if letter}
        return agreeing(found, words_of(text[: concluded[-1].start()] + text[concluded[-1].end() :]), options)
    found = {"".join(match.groups(default="")).upper() for match in _LETTER.finditer(text)} & options.keys()
    if found:
        return agreeing(found, words_of(_LETTER.sub(" ", text)), options)
    named, words = set(), f" {words_of(text)} "
    for option in sorted(set(options.values()) - {""}, key=len, reverse=True):
        words = re.sub(rf" not (?:(?:the|an?) )?{re.escape(option)} ", " | ", words)
        if f" {option} " in words:
            named.add(option)
            words = words.replace(f" {option} ", " | ")
    letters = [letter for letter, option in options.items() if option in named]
    return letters[0] if len(letters) == 1 else None


def agreeing(found: set[str], rest: str, options: dict[str, str]) -> str | None:
    """The one letter that was found, unless the words beside it are another option's."""
    others = {letter for letter, option in options.items() if option and option == rest} - found
    return found.pop() if len(found) == 1 and not others else None


def contains(prediction: str, answers: Iterable[str], formula: bool = False) -> bool:
    """
    Tells whether one of the answers is contained in the prediction, as OCRBench counts.

    Both are stripped, line breaks become spaces, full-width forms of ASCII characters are folded and case does not
    matter. Of a `formula` (data set HME100k) case matters and spaces do not.
    """

    def plain(text: str) -> str:
        if formula:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.translate(FULL_WIDTH).lower().strip().replace("\n", " ")

    prediction = THOUGHTS.sub("", prediction)
    return any(plain(answer) in plain(prediction) for answer in answers)


def first_number(prediction: str) -> str | None:
    """The first number in a prediction, in digits or as a word of `NUMBERS`, as a word where there is one."""
    found = re.search(rf"\b(\d+|{'|'.join(NUMBERS)})\b", said(prediction).lower())
    if found is None or not found[1].isdigit():
        return found and found[1]
    value = int(found[1]) if len(found[1]) < 10 else None  # Python reads no number of thousands of digits
    return dict(enumerate(NUMBERS)).get(value, found[1])


def first_side(prediction: str) -> str | None:
    """The first side (left, right, above, below) that a prediction names."""
    found = re.search(rf"\b({'|'.join(SIDES)})\b", said(prediction).lower())
    return found and found[1]


def score_count(answer: str, prediction: str) -> bool:
    """Tells whether the first number in the prediction is `answer` (a word)."""
    return first_number(prediction) == answer


def score_relation(answer: str, prediction: str) -> bool:
    """Tells whether the first side that the prediction names is `answer`."""
    return first_side(prediction) == answer
