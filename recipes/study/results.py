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
"""What a finished demo shows: scored questions, and a sheet of some of them."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling_agevlm.conversion import loading
from recipes.answering.checkpoint import load_checkpoint
from recipes.drawing.benefit import Measure
from recipes.evaluation.rules import says_no
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.evaluation import Judged, evaluate_all, judge
from recipes.scenes.questions import load_questions
from recipes.terminal import progress


def evaluate(checkpoint: Path, num_images: int) -> list[Judged]:
    """The answers of a checkpoint about test scenes, as large as it reads them, and where its words look."""
    with loading(str(checkpoint)):
        model, processor = load_checkpoint(str(checkpoint))
    questions = load_questions("test", num_images=num_images, image_size=model.config.vision_config.image_size)
    form = "{desc} |{bar:20}| {n_fmt}/{total_fmt} questions"
    with tqdm(total=len(questions), desc=f"{checkpoint.name:<26}", bar_format=form, position=progress.line) as bar:
        return judge(model, processor, questions, progress=lambda done: bar.update(done - bar.n))


def measure(checkpoint: Path, split: str, num_images: int) -> dict[str, float]:
    """All that the scenes of a split, as large as the checkpoint reads them, measure of it."""
    model, processor = load_checkpoint(str(checkpoint))
    return evaluate_all(model, processor, split, num_images, model.config.vision_config.image_size).metrics


def wilson(right: int, number: int) -> tuple[float, float, float]:
    """A share and its 95 % interval (Wilson's)."""
    share, z = right / number, 1.96
    center = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z / (1 + z**2 / number) * math.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
    return share, center - half, center + half


def benefit(
    judged: dict[str, list[Judged]], metrics: dict[str, dict[str, float]], names: dict[str, str]
) -> list[Measure]:
    """What guidance is good for, of the variants that have names."""
    existence, points = {}, {}
    for variant, name in names.items():
        asked = [j for j in judged[variant] if j.question["kind"] in POPE_KINDS]
        right = sum(says_no(j.prediction) == (j.question["answer"] == "no") for j in asked)
        existence[name] = wilson(right, len(asked))
        inside = [bool(hit) for j in judged[variant] if j.question["mask"] for hit in j.points_inside[1:]]
        points[name] = wilson(sum(inside), len(inside))
    even = next(iter(metrics.values()))["uniform_mass"]
    masses = {name: (metrics[variant]["in_mask_mass"],) * 3 for variant, name in names.items()}
    absence = {name: (metrics[variant]["absence_auc"],) * 3 for variant, name in names.items()}
    return [
        Measure('"Is there a ...?": right answers', existence, 0.5),
        Measure("what is absent, told by the attention (AUC)", absence, 0.5),
        Measure("object words' attention inside the object", masses, even),
        Measure("its maximum inside the object", points, even),
    ]


def right_by_one(judged: dict[str, list[Judged]]) -> list[int]:
    """
    The first question about two pictures, one that shows the thing and one that does not, to which just one of the models gives
    two right answers: the picture that shows it first. None where there is no such question.
    """
    questions = [j.question for j in next(iter(judged.values()))]
    for no, yes in pairwise(range(len(questions))):
        pair = [questions[n] for n in (no, yes)]
        if [q["answer"] for q in pair] == ["no", "yes"] and pair[0]["question"] == pair[1]["question"]:
            right = [says_no(of[no].prediction) and not says_no(of[yes].prediction) for of in judged.values()]
            if sum(right) == 1:
                return [yes, no]
    return []


def sheet_rows(judged: dict[str, list[Judged]], names: dict[str, str], num_rows: int = 8) -> list[dict[str, Any]]:
    """
    The question about two pictures that one of the models answers right, then the first of each kind about something in the
    picture: nobody picked them by how they look.
    """
    first = next(iter(judged.values()))
    chosen = right_by_one({variant: judged[variant] for variant in names})
    kinds = ["random", "count", "relation", "adversarial"]
    for n in range(num_rows - len(chosen)):
        kind = kinds[n % len(kinds)]
        chosen.append(
            next(
                i for i, j in enumerate(first) if j.question["kind"] == kind and j.question["mask"] and i not in chosen
            )
        )
    return [sheet_row(judged, names, n) for n in chosen]


def sheet_row(judged: dict[str, list[Judged]], names: dict[str, str], number: int) -> dict[str, Any]:
    """A question as `save_attention_sheet` takes it, of the variants that have names: where its first phrase looks."""
    question = next(iter(judged.values()))[number].question
    row = {"image": question["image"], "truth": question["answer"]}
    row["question"] = f"{question['question']} Words: {question['phrases'][0]['text']}"
    for variant, name in names.items():
        one = judged[variant][number]
        row[name] = (one.prediction, one.attention[1].mean(0), one.sink[1].mean().item())
    return row
