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

from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from modeling_agevlm.image_reading_agevlm import read_image
from trainers.data_collator import message_text, with_placeholders


@dataclass
class Query:
    """A text about a picture. `message` is the one whose words will look at the mask, and in which phrases are found."""

    image: int
    message: int
    text: str


@dataclass
class Prepared:
    """A row with its pictures read, as they are shown and in RGB, and the texts to look for. Or what is wrong with it."""

    row: dict[str, Any]
    pictures: list[PIL.Image.Image]
    queries: list[Query]
    failure: str | None = None


def find_queries(messages: list[dict[str, Any]], num_images: int, query: str) -> list[Query]:
    """
    The texts of a row, each with the last picture that its words can see.

    Args:
        messages (`list[dict]`): Messages of any kind that the trainer takes.
        num_images (`int`): Pictures of the row.
        query (`str`): `"question"`, `"answer"` or `"both"`; both together are the question's.
    """
    messages, queries, seen = with_placeholders(messages, num_images), [], 0
    for n, message in enumerate(messages):
        seen += sum(part["type"] == "image" for part in message["content"])
        words = message_text(message).strip()
        answer = messages[n + 1] if n + 1 < len(messages) and messages[n + 1]["role"] == "assistant" else None
        if query == "both" and message["role"] == "user" and answer is not None:
            words = f"{words} {message_text(answer).strip()}"
        wanted = "assistant" if query == "answer" else "user"
        if seen and words and message["role"] == wanted:
            queries.append(Query(seen - 1, n, words))
    return queries


def prepare(row: dict[str, Any], query: str) -> Prepared:
    """Reads the pictures of a row. What is wrong with it is told, not raised."""
    try:
        pictures = [read_image(image) for image in row["images"] or []]
        return Prepared(row, pictures, find_queries(row["messages"], len(pictures), query))
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        return Prepared(row, [], [], f"{type(error).__name__}: {error}"[:200])


@dataclass
class Instance:
    """One thing that a text refers to, in the picture's pixels."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    outline: list[list[float]] = field(default_factory=list)  # polygons, [x0, y0, x1, y1, ...] each


@dataclass
class Finding:
    """What was found for a query: the instances of the whole text, or of one phrase of it."""

    query: Query
    instances: list[Instance]
    phrase: str | None = None
