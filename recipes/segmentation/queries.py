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
"""From rows to the texts that masks are made for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from modeling_agevlm.image_reading_agevlm import read_image
from modeling_agevlm.processing_agevlm import find_words
from recipes.segmentation.denials import Span, denied_things
from trainers.data_collator import check_region, message_text, with_placeholders


@dataclass
class Query:
    """A text about a picture. `message` is the one whose words will look at the mask, and in which phrases are found."""

    image: int
    message: int
    text: str
    answer_start: int | None = None
    """Where the words of the next message begin, which answers this one."""

    def texts(self) -> dict[int, str]:
        """The words of each message."""
        if self.answer_start is None:
            return {self.message: self.text}
        return {self.message: self.text[: self.answer_start], self.message + 1: self.text[self.answer_start :]}


@dataclass
class Prepared:
    """
    A row with its pictures read, as they are shown and in RGB, the texts to look for, and the regions of what is nowhere in
    them. Or what is wrong with it.
    """

    row: dict[str, Any]
    pictures: list[PIL.Image.Image]
    queries: list[Query]
    nowhere: list[dict[str, Any]]
    failure: str | None = None


def find_queries(
    messages: list[dict[str, Any]], num_images: int, query: str, nowhere: Sequence[dict[str, Any]] = ()
) -> tuple[list[Query], list[dict[str, Any]]]:
    """
    The texts of a row, each with the last picture that its words can see, and the regions of what is nowhere in it.

    Something is found for every text. So where a question or its answer speaks of what is nowhere, neither is a text to
    look for: where a region of `nowhere` says so, or the question asks for a thing that the answer denies.

    Args:
        messages (`list[dict]`): Messages of any kind that the trainer takes.
        num_images (`int`): Pictures of the row.
        query (`str`): `"question"`, `"answer"` or `"both"`; both together are the question's.
        nowhere (`list[dict]`, *optional*): The row's own regions without a mask.
    """
    messages, queries, regions, seen = with_placeholders(messages, num_images), [], list(nowhere), 0
    texts = [message_text(message) for message in messages]
    roles = [message["role"] for message in messages]
    wanted = "assistant" if query == "answer" else "user"
    for n, message in enumerate(messages):
        seen += sum(part["type"] == "image" for part in message["content"])
        is_answered, is_answer = (roles[k : k + 2] == ["user", "assistant"] for k in (n, n - 1))
        exchange = range(n - is_answer, n + 1 + is_answered)
        if seen and is_answered and not any(stands_in(region, k, texts[k]) for region in regions for k in exchange):
            for k, spans in zip(exchange, denied_things(*texts[n : n + 2]), strict=True):
                regions += [nowhere_region(seen - 1, k, texts[k], span) for span in spans]
        if any(stands_in(region, k, texts[k]) for region in regions for k in exchange):
            continue
        words, answer_start = spoken(message), None
        if query == "both" and is_answered:
            answer_start = len(words) + 1
            words = f"{words} {spoken(messages[n + 1])}"
        if seen and words and message["role"] == wanted:
            queries.append(Query(seen - 1, n, words, answer_start))
    return queries, regions


def spoken(message: dict[str, Any]) -> str:
    """The words of a message of parts; those on both sides of a picture stay apart."""
    return " ".join(part["text"].strip() for part in message["content"] if part["type"] == "text").strip()


def stands_in(region: dict[str, Any], message: int, text: str) -> bool:
    """Whether the words of a region stand in this message."""
    if region["message"] not in (message, None):
        return False
    phrase = region["text"] or ""
    return phrase in text if region.get("span") or not phrase else bool(find_words(text, phrase))


def nowhere_region(image: int, message: int, text: str, span: Span) -> dict[str, Any]:
    """The region of a phrase of a message's text that means nothing in a picture."""
    phrase = text[slice(*span)]
    span = None if find_words(text, phrase) == [span] else list(span)
    return {"mask": None, "image": image, "text": phrase, "span": span, "message": message}


def prepare(row: dict[str, Any], query: str) -> Prepared:
    """Reads the pictures of a row. What is wrong with it is told, not raised."""
    try:
        nowhere = []
        for n, region in enumerate(row.get("regions") or []):
            if not isinstance(region, dict) or region.get("mask") is None:
                check_region(n, region)
                nowhere.append({name: region.get(name) for name in ("mask", "image", "text", "span", "message")})
        pictures = [read_image(image) for image in row["images"] or []]
        return Prepared(row, pictures, *find_queries(row["messages"], len(pictures), query, nowhere))
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        return Prepared(row, [], [], [], f"{type(error).__name__}: {error}"[:200])


@dataclass
class Instance:
    """One thing that a text refers to, in the picture's pixels."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    outline: list[list[float]] = field(default_factory=list)  # polygons, [x0, y0, x1, y1, ...] each
    code: dict[str, Any] | None = None  # its mask's run lengths, if whoever found it has drawn it, too
    score: float | None = None  # of that mask


@dataclass
class Finding:
    """What was found for a query: the instances of the whole text, or of one phrase of it."""

    query: Query
    instances: list[Instance]
    phrase: str | None = None


def findings_of(query: Query, found: dict[str, list[Instance]], level: str) -> list[Finding]:
    """What was found of the phrases of a text, as findings of it as a whole or of each phrase."""
    if level == "message":
        return [Finding(query, [instance for instances in found.values() for instance in instances])]
    return [Finding(query, instances, phrase) for phrase, instances in found.items() if instances]
