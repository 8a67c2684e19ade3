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
    """One question with the model's answer and where its words look: the whole question first, then each phrase."""

    question: dict[str, Any]
    prediction: str
    attention: torch.Tensor  # (1 + num_phrases, num_layers, num_image_tokens)
    cells: torch.Tensor  # (1 + num_phrases, num_image_tokens), 1 inside the mask

    @property
    def masses(self) -> torch.Tensor:
        """Share of the attention inside the masks, averaged over the layers: `(1 + num_phrases,)`."""
        return (self.attention * self.cells.unsqueeze(1)).sum(-1).mean(-1)

    @property
    def points_inside(self) -> torch.Tensor:
        """Whether the maximum of the layers' mean attention falls inside the mask: `(1 + num_phrases,)`."""
        return self.cells.gather(1, self.attention.mean(1).argmax(-1, keepdim=True))[:, 0]


def attend(
    model: PreTrainedModel, processor: ProcessorMixin, questions: list[dict[str, Any]]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Where each question's words look, `(1 + num_phrases, num_layers, num_image_tokens)`, and the cells of the masks
    that they should look at, `(1 + num_phrases, num_image_tokens)`.
    """
    rows = [
        {
            "images": [question["image"]],
            "messages": [
                {"role": "user", "content": question["question"]},
                {"role": "assistant", "content": question["answer"]},
            ],
            "regions": [
                query(question["image"], message=0, mask=question["mask"]),
                *(query(question["image"], message=0, **phrase) for phrase in question["phrases"]),
            ],
        }
        for question in questions
    ]
    maps, cells = grounding_maps(model, processor, rows)
    counts = [1 + len(question["phrases"]) for question in questions]
    return [m[:n] for m, n in zip(maps, counts, strict=True)], [c[:n] for c, n in zip(cells, counts, strict=True)]


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
    """
    The demo's metrics: POPE per split, counting, relations; `in_mask_mass`, `uniform_mass` and `pointing_accuracy` of the
    words that name an object in the picture; and the first two for all words of the question together.
    """
    metrics = {}
    for kind in POPE_KINDS:
        chosen = [j for j in judged if j.question["kind"] == kind]
        scores = score_pope([j.question["answer"] for j in chosen], [j.prediction for j in chosen])
        metrics[f"pope_{kind}_accuracy"] = scores["accuracy"]
        metrics[f"pope_{kind}_f1"] = scores["f1"]
    for kind, score in (("count", score_count), ("relation", score_relation)):
        chosen = [j for j in judged if j.question["kind"] == kind]
        metrics[f"{kind}_accuracy"] = sum(score(j.question["answer"], j.prediction) for j in chosen) / len(chosen)
    # Only what is in the picture can be looked at: questions with a mask. A phrase is the words that name an object.
    seen = [j for j in judged if j.question["mask"] is not None]
    masses, inside = torch.cat([j.masses[1:] for j in seen]), torch.cat([j.points_inside[1:] for j in seen])
    metrics["in_mask_mass"] = masses.mean().item()
    metrics["uniform_mass"] = torch.cat([j.cells[1:].mean(-1) for j in seen]).mean().item()
    metrics["pointing_accuracy"] = inside.mean().item()
    metrics["question_in_mask_mass"] = torch.stack([j.masses[0] for j in seen]).mean().item()
    metrics["question_uniform_mass"] = torch.stack([j.cells[0].mean() for j in seen]).mean().item()
    return metrics
