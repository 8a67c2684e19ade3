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
Does attention tell when a model hallucinates? What might tell of each answer, and how well it does; drawn by `figures.py`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.phrases import guess_phrases
from recipes.drawing import plt
from recipes.evaluation.metrics import score_pope
from recipes.inside.measures import auc, concentration, interval, roc
from recipes.inside.vlm import AgeVlm, Vlm, by_layers, read_rows


TARGETS = {"wrong": "the answer is wrong", "false_yes": "a yes is wrong"}
# Of models whose words can look at nothing, for questions of existence: whether they do so by themselves.
ABSENT = {"absent": "it is not there"}


@dataclass
class Case:
    """
    One answered question. `wrong`, `false_yes` and `absent` are what is to be told; the second only where the answer is yes,
    the third, that what the question asks about is not there, only of models with a sink.
    """

    scores: dict[str, float]  # each expected to be higher where the answer is wrong
    wrong: bool
    false_yes: bool | None
    absent: bool | None


def read_answers(records: Path) -> list[dict[str, Any]]:
    """
    Questions with the answers that a model gave, as the evaluation recipes save them.

    Raises:
        ValueError: If a row lacks a field, or its picture cannot be read.
    """
    fields = {"image": str, "question": str, "answer": str, "prediction": str, "correct": bool}
    rows = read_rows(records, fields)
    return [row | {"image": read_image(row["image"])} for row in rows]


def answer_questions(vlm: Vlm, questions: list[dict[str, Any]], batch_size: int = 50) -> list[dict[str, Any]]:
    """The questions with the model's `prediction`, its tokens `ids`, and whether it is `correct` by POPE's rule."""
    rows = []
    for start in range(0, len(questions), batch_size):
        batch = questions[start : start + batch_size]
        answers = vlm.generate([q["image"] for q in batch], [q["question"] for q in batch])
        for question, ids in zip(batch, answers, strict=True):
            prediction = vlm.decode(ids)
            correct = score_pope([question["answer"]], [prediction])["accuracy"] == 1
            rows.append({**question, "prediction": prediction, "ids": ids, "correct": correct})
    return rows


def score(vlm: Vlm, row: dict[str, Any], layers: str) -> Case:
    """
    What might tell that an answer is wrong, known before looking at the truth: how spread out the attention is of the
    object's word in the question (`object`), of the position that the answer's first word comes from (`before the
    answer`) and of that word itself (`answer`); how little of it goes to the picture; of an AGE-VLM, how low the best region
    that it looks at scores; and how improbable the word was.
    """
    ids = row.get("ids") or vlm.processor.tokenizer(row["prediction"], add_special_tokens=False)["input_ids"]
    inputs, prompt_length = vlm.encode(row["image"], row["question"], ids)
    num_tokens = inputs["input_ids"].shape[1]
    places = torch.arange(num_tokens, device=inputs["input_ids"].device)
    named = row.get("object") or next(iter(guess_phrases(row["question"])), row["question"])
    queries = {
        "object": vlm.find(inputs, named) & (places < prompt_length),
        "before the answer": places == prompt_length - 1,
        "answer": (places >= prompt_length) & (places < prompt_length + vlm.first_word(ids)),
    }
    look = vlm.look(inputs, torch.stack(list(queries.values())))
    scores = {}
    for k, query in enumerate(queries):
        on_nothing = by_layers(look.on_nothing[k])[layers].item()
        measured = concentration(by_layers(look.maps[k])[layers], on_nothing)
        scores[f"{query}: high entropy"] = measured["entropy"]
        scores[f"{query}: low max"] = -measured["max"]
        scores[f"{query}: low top 5%"] = -measured["top 5%"]
        if vlm.can_look_away:
            scores[f"{query}: low share on picture"] = -by_layers(look.image_share[k])[layers].item()
    if isinstance(vlm, AgeVlm):
        scores |= {
            f"{query}: low region score": -best for query, best in zip(queries, vlm.best_scores(look), strict=True)
        }
    scores["answer: low probability"] = -look.logits[prompt_length - 1].float().softmax(-1)[ids[0]].item()
    is_existence = row["answer"] in ("yes", "no")
    says_yes = is_existence and score_pope([row["answer"]], [row["prediction"]])["yes_ratio"] == 1
    is_absent = row["answer"] == "no"
    knows_nothing = is_existence and isinstance(vlm, AgeVlm) and vlm.can_look_away
    return Case(scores, not row["correct"], is_absent if says_yes else None, is_absent if knows_nothing else None)


def tell(cases: list[Case]) -> dict[str, Any]:
    """
    For every target the counts, and for every score its AUC with a bootstrap interval over the answers. Of so many
    scores one or the other leaves 0.5 by chance.
    """
    numbers = {}
    for target in TARGETS | (ABSENT if any(case.absent is not None for case in cases) else {}):
        chosen = [case for case in cases if getattr(case, target) is not None]
        positive = np.array([getattr(case, target) for case in chosen], dtype=bool)
        numbers[target] = {"num_answers": len(chosen), "num_positive": int(positive.sum()), "auc": {}}
        if positive.all() or not positive.any():
            continue
        for key in cases[0].scores:
            scores = np.array([case.scores[key] for case in chosen])
            low, high = interval(lambda rows, s=scores, p=positive: auc(s[rows], p[rows]), len(scores))
            numbers[target]["auc"][key] = {"auc": auc(scores, positive), "low": low, "high": high}
    return numbers


def draw_curves(axes: plt.Axes, cases: list[Case]) -> None:
    wrong = np.array([case.wrong for case in cases])
    axes.plot([0, 1], [0, 1], color="lightgray", linewidth=1)
    keys = [key for key in cases[0].scores if key.endswith(("high entropy", "low probability"))]
    for key in keys:
        scores = np.array([case.scores[key] for case in cases])
        axes.plot(*roc(scores, wrong), label=f"{key} ({auc(scores, wrong):.2f})", linewidth=1.3)
    axes.set_xlabel("right answers that are called wrong", fontsize=8)
    axes.set_ylabel("wrong answers that are called wrong", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_aspect("equal")
    axes.legend(fontsize=8, loc="lower right", title="score (AUC)", title_fontsize=8)


def draw_aucs(axes: plt.Axes, told: dict[str, Any]) -> None:
    axes.axvline(0.5, color="lightgray", linewidth=1)
    keys = list(max((told[target]["auc"] for target in told), key=len))
    titles = {target: title for target, title in (TARGETS | ABSENT).items() if target in told}
    shifts = np.linspace(-0.075, 0.075, len(titles)) * len(titles)
    for (target, title), shift, color in zip(
        titles.items(), shifts, ("tab:blue", "tab:red", "tab:green")[: len(titles)], strict=True
    ):
        entries = told[target]["auc"]
        label = f"{title} ({told[target]['num_positive']} of {told[target]['num_answers']})"
        places = np.arange(len(entries)) + shift
        values = np.array([[entry["low"], entry["auc"], entry["high"]] for entry in entries.values()]).reshape(-1, 3)
        errors = np.abs(values[:, [0, 2]] - values[:, [1]]).T
        axes.errorbar(values[:, 1], places, xerr=errors, fmt="o", markersize=4, color=color, label=label)
    axes.set_yticks(range(len(keys)), keys, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("AUC with 95% bootstrap interval; 0.5 tells nothing", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)
