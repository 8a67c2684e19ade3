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
"""A page of answers whose words can be pointed at, to see where they look."""

import base64
import hashlib
import html
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.words import LookingAnswer
from recipes.drawing.attention import COLORS, LONGEST_SIDE, MOST
from recipes.drawing.page import data_url


HERE = Path(__file__).parent


def as_bytes(maps: np.ndarray) -> np.ndarray:
    """Multiples of even attention in a byte each: 0 is nothing, and from 1 on, 1/64, each 16 are a doubling."""
    with np.errstate(divide="ignore"):
        steps = 16 * (np.log2(maps) + 6) + 1
    return np.where(steps < 0.5, 0, steps.clip(1, 255).round()).astype(np.uint8)


def base64_of(array: bytes | np.ndarray) -> str:
    return base64.b64encode(array if isinstance(array, bytes) else array.tobytes()).decode()


def answer_data(picture: PIL.Image.Image, answers: Sequence[LookingAnswer]) -> dict[str, Any]:
    """What `showAnswers` of answer.js takes."""
    picture = read_image(picture).copy()  # as the model gets it
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    models = []
    for answer in answers:
        maps = np.stack([word.maps for word in answer.words])
        words = [
            {
                "text": word.text,
                "space": word.space,
                "part": word.part,
                "onNothing": word.on_nothing.round(4).tolist(),
                "regions": [region._asdict() for region in word.regions],
            }
            for word in answer.words
        ]
        phrases = [
            phrase._asdict() | {"regions": [region._asdict() for region in phrase.regions]}
            for phrase in answer.phrases
        ]
        models.append(
            {
                "name": answer.name,
                "layers": answer.layers,
                "words": words,
                "phrases": phrases,
                "cells": maps.shape[2:],
                "maps": base64_of(zlib.compress(as_bytes(maps * maps[0, 0].size).tobytes(), level=9)),
            }
        )
    colors = (255 * COLORS).round().astype(np.uint8)
    return {"picture": data_url(picture), "colors": base64_of(colors), "most": MOST, "models": models}


def words_of(answer: LookingAnswer, part: str) -> str:
    return "".join(word.text + word.space for word in answer.words if word.part == part)


def answer_page(picture: PIL.Image.Image, answers: Sequence[LookingAnswer]) -> str:
    """
    The page, one file that needs nothing else:

        answer, inputs, prompt_length = ask(model, processor, picture, question, max_new_tokens=64)
        look = look_of_words(model, processor, inputs, prompt_length, picture, question)
        Path("answer.html").write_text(answer_page(picture, [look]), encoding="utf-8")

    Its words are words, whatever they are, and it forbids all scripts but its
    own and whatever comes from elsewhere.

    Args:
        picture (`PIL.Image.Image`): The picture.
        answers (`Sequence[LookingAnswer]`): To the same question about it, to be shown side by side.
    """
    script = (HERE / "answer.js").read_text(encoding="utf-8")
    data = json.dumps(answer_data(picture, answers)).replace("<", "\\u003c")
    script += (
        'showAnswers(document.querySelector("main"), JSON.parse(document.querySelector("script").textContent));\n'
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string((HERE / "answer.html.jinja").read_text(encoding="utf-8")).render(
        title=words_of(answers[0], "question"),
        answers=[" ".join([answer.name, words_of(answer, "answer")]) for answer in answers],
        style=(HERE / "answer.css").read_text(encoding="utf-8"),
        data=data,
        script=script,
        hash=base64_of(hashlib.sha256(script.encode()).digest()),
    )


def framed(page: str, num_answers: int = 1) -> str:
    """A page within another, of which it can reach nothing. Several answers stand one below the other where it is narrow."""
    return (
        "<style>.looks { width: 100%; height: 60rem; border: 0; } "
        f"@media (max-width: 48rem) {{ .looks {{ height: {60 * num_answers}rem; }} }}</style>"
        f'<iframe class="looks" title="Where the words look" sandbox="allow-scripts" srcdoc="{html.escape(page)}"></iframe>'
    )
