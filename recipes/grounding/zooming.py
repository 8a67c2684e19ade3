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
"""Zooming in: what a second look at the part that words look at is worth, in pictures that are larger than a model reads."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.answers import Window, ask, generate, one_question, prompts
from recipes.answering.zooming import zoom_window
from recipes.evaluation.records import mark
from recipes.inside.measures import with_interval
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.evaluation import BATCH_SIZE
from recipes.scenes.pictures import compose, draw_background
from recipes.scenes.plans import make_plan, row_generator
from recipes.scenes.questions import load_questions


LARGE = 3  # a picture's side, in those that a model reads
SHRUNK = (1, 2, 3, 4)  # a scene's side in shares of the picture's, so many to one
NUM_TIMED = 20  # questions, one by one
KINDS = {"existence": POPE_KINDS, "relation": ("relation",), "count": ("count",)}
WAYS = {
    "one pass": "one pass",
    "random": "with a random part beside",
    "zoom": "with what the words look at beside (`--zoom`)",
    "part": "what the words look at alone",
    "scene": "the scene alone, as large as it is",
}


def large_picture(split: str, index: int, size: int, shrunk: int) -> tuple[PIL.Image.Image, Window]:
    """A scene somewhere on a background, of that share of its side, and where. Both are as large as a model of that size reads, or larger."""
    side = size * max(shrunk, LARGE if shrunk == 1 else 0)
    background = draw_background(row_generator(split, index, 0, "background"), split, side)
    left, top = np.random.default_rng([index, shrunk]).integers(0, side - side // shrunk + 1, 2).tolist()
    window = left, top, left + side // shrunk, top + side // shrunk
    compose(make_plan(split, index, 0), background[window[1] : window[3], window[0] : window[2]])
    return PIL.Image.fromarray(background), window


def answers_of(model: PreTrainedModel, processor: ProcessorMixin, asked: list[tuple]) -> Iterator[str]:
    """Greedy answers to questions, each with its pictures."""
    for first in range(0, len(asked), BATCH_SIZE):
        inputs = prompts(processor, [one_question(*one) for one in asked[first : first + BATCH_SIZE]])
        answers = generate(model, inputs, max_new_tokens=24)
        yield from (text.strip() for text in processor.batch_decode(answers, skip_special_tokens=True))


def looked_at(
    model: PreTrainedModel, processor: ProcessorMixin, question: str, image: PIL.Image.Image
) -> Window | None:
    """Where [`zoom_window`] zooms in; a question of scenes always names something, so that no answer is needed."""
    inputs = prompts(processor, [one_question(question, image)]).to(model.device)
    return zoom_window(model, processor, inputs, inputs["input_ids"].shape[1], question, image.size[::-1])


def elsewhere(window: Window, image: PIL.Image.Image, rng: np.random.Generator) -> Window:
    """A part of that size anywhere in the picture."""
    width, height = window[2] - window[0], window[3] - window[1]
    left, top = (int(rng.integers(0, room + 1)) for room in (image.width - width, image.height - height))
    return left, top, left + width, top + height


def cost_of_zooming(
    model: PreTrainedModel, processor: ProcessorMixin, asked: list[tuple[str, PIL.Image.Image]]
) -> dict[str, float]:
    """The seconds that one pass takes for a question, and how many times these both passes take with all between them."""
    once = twice = 0.0
    for question, image in asked:
        begin = time.perf_counter()
        _, inputs, length = ask(model, processor, image, question, 24)
        middle = time.perf_counter()
        window = zoom_window(model, processor, inputs, length, question, image.size[::-1])
        if window is not None:
            ask(model, processor, image, question, 24, window=window)
        once, twice = once + middle - begin, twice + time.perf_counter() - begin
    return {"seconds": once / len(asked), "times": twice / once}


@torch.inference_mode()
def measure(model: PreTrainedModel, processor: ProcessorMixin, num_images: int) -> list[dict[str, Any]]:
    """
    For each size of scenes and way to ask: the share of right answers by kind of question, with 95 % intervals over scenes; how
    many pictures are zoomed into, how large the parts are (mean side, as a share), and what [`cost_of_zooming`] is.
    """
    size = processor.image_processor.size.height
    questions = load_questions("test", num_images, size)
    scenes = np.array([question["scene"] for question in questions])
    measured = []
    for shrunk in SHRUNK:
        large = {n: large_picture("test", n, size, shrunk) for n in sorted(set(scenes.tolist()))}
        rng = np.random.default_rng(shrunk)
        images = [large[question["scene"]][0] for question in questions]
        texts = [question["question"] for question in questions]
        said = {"one pass": list(answers_of(model, processor, list(zip(texts, images, strict=True))))}
        windows = [looked_at(model, processor, *one) for one in zip(texts, images, strict=True)]
        zoomed = [
            (text, image) if window is None else (text, image, image.crop(window))
            for text, image, window in zip(texts, images, windows, strict=True)
        ]
        said["zoom"] = list(answers_of(model, processor, zoomed))
        asked: dict[str, list[tuple]] = {"random": [], "part": [], "scene": []}
        for question, image, window in zip(questions, images, windows, strict=True):
            part = (0, 0, *image.size) if window is None else window
            other = [] if window is None else [image.crop(elsewhere(window, image, rng))]
            asked["random"].append((question["question"], image, *other))
            asked["part"].append((question["question"], image.crop(part)))
            asked["scene"].append((question["question"], image.crop(large[question["scene"]][1])))
        said |= {way: list(answers_of(model, processor, pairs)) for way, pairs in asked.items()}
        sides = [(w[2] - w[0]) / image.width for w, image in zip(windows, images, strict=True) if w is not None]
        entry: dict[str, Any] = {"shrunk": shrunk, "side": images[0].width, "part": float(np.mean(sides))}
        entry |= {"zoomed": float(np.mean([w is not None for w in windows])), "ways": {}}
        entry["cost"] = cost_of_zooming(
            model, processor, list(zip(texts, images, strict=True))[:: len(texts) // NUM_TIMED]
        )
        for way, answers in said.items():
            right = np.array(
                [
                    mark({**question, "benchmark": "scenes", "prediction": answer})
                    for question, answer in zip(questions, answers, strict=True)
                ]
            )
            entry["ways"][way] = {}
            for name, kinds in KINDS.items():
                chosen = np.array([question["kind"] in kinds for question in questions])
                of_kind = right[chosen]
                entry["ways"][way][name] = with_interval(lambda rows, r=of_kind: float(r[rows].mean()), scenes[chosen])
        measured.append(entry)
    return measured
