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
"""Scores a model on questions about test scenes: its answers, and where its words look."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from recipes.attention import answer, grounding_maps, query
from recipes.scenes import POPE_KINDS, score_count, score_pope, score_relation


@dataclass
class Judged:
    """One question with the model's answer and, if it has a mask, the attention of its words."""

    question: dict[str, Any]
    prediction: str
    attention: torch.Tensor  # (num_layers, num_image_tokens), of the question's words
    cells: torch.Tensor | None  # (num_image_tokens,), 1 inside the mask

    @property
    def in_mask_mass(self) -> float:
        """Share of the attention inside the mask, averaged over the layers."""
        return (self.attention * self.cells).sum(-1).mean().item()

    @property
    def points_inside(self) -> bool:
        """Whether the maximum of the layers' mean attention falls inside the mask."""
        return bool(self.cells[self.attention.mean(0).argmax()])


def attend(
    model: PreTrainedModel, processor: ProcessorMixin, questions: list[dict[str, Any]]
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """
    The attention of each question's words to the picture, `(num_questions, num_layers, num_image_tokens)`, and the
    cells of its mask.
    """
    rows = [
        {
            "images": [question["image"]],
            "messages": [
                {"role": "user", "content": question["question"]},
                {"role": "assistant", "content": question["answer"]},
            ],
            "regions": [query(question["image"], message=0, mask=question["mask"])],
        }
        for question in questions
    ]
    maps, masks = grounding_maps(model, processor, rows)
    cells = [mask[0] if q["mask"] else None for q, mask in zip(questions, masks, strict=True)]
    return maps[:, 0], cells


def judge(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Dataset,
    batch_size: int = 100,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Judged]:
    """Answers and attention for all questions, in order."""
    model.eval()
    judged = []
    for first in range(0, len(questions), batch_size):
        batch = [questions[i] for i in range(first, min(first + batch_size, len(questions)))]
        predictions = answer(model, processor, [q["image"] for q in batch], [q["question"] for q in batch])
        attention, cells = attend(model, processor, batch)
        judged += [Judged(*entry) for entry in zip(batch, predictions, attention, cells, strict=True)]
        progress(len(judged))
    return judged


def summarize(judged: list[Judged]) -> dict[str, float]:
    """The demo's metrics: POPE per split, counting, relations, and where the words of questions with a mask look."""
    metrics = {}
    for kind in POPE_KINDS:
        chosen = [j for j in judged if j.question["kind"] == kind]
        scores = score_pope([j.question["answer"] for j in chosen], [j.prediction for j in chosen])
        metrics[f"pope_{kind}_accuracy"] = scores["accuracy"]
        metrics[f"pope_{kind}_f1"] = scores["f1"]
    for kind, score in (("count", score_count), ("relation", score_relation)):
        chosen = [j for j in judged if j.question["kind"] == kind]
        metrics[f"{kind}_accuracy"] = sum(score(j.question["answer"], j.prediction) for j in chosen) / len(chosen)
    masked = [j for j in judged if j.cells is not None]
    metrics["in_mask_mass"] = sum(j.in_mask_mass for j in masked) / len(masked)
    metrics["uniform_mass"] = sum(j.cells.mean().item() for j in masked) / len(masked)
    metrics["pointing_accuracy"] = sum(j.points_inside for j in masked) / len(masked)
    return metrics
