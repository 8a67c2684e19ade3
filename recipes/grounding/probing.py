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
"""What is there to be read: numbers and sides from what cross-attention reads and from each layer's state, by linear probes."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.answers import Chat, one_question, prompts
from recipes.evaluation.rules import score_count, score_relation
from recipes.inside.measures import with_interval
from recipes.scenes.evaluation import BATCH_SIZE, judge
from recipes.scenes.questions import load_questions
from trainers import decode_rle


SCORES = {"count": score_count, "relation": score_relation}
# As far as all answers of a kind begin alike: what comes next tells the number ("There is", "There are two") or the side.
BEGINNINGS = {"count": "There", "relation": "The {} is"}
FITTED_SEED, MEASURED_SEED = 1, 0  # of the scenes to fit on, and of those of the evaluation
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
NUM_FOLDS = 5


def probe(
    model: PreTrainedModel, processor: ProcessorMixin, num_fitted: int, num_measured: int
) -> dict[str, list[dict[str, Any]]]:
    """
    For each kind of question, how often a linear probe finds the answer on the test scenes of the evaluation, with its 95 %
    interval over the scenes, and at last how often the model says it. A probe is fitted on `num_fitted` other scenes. It reads

    - nothing, which leaves the commonest answer of the scenes that it was fitted on;
    - the visual tokens as cross-attention reads them, averaged over the cells of each thing that the question names, as
      attention does that knows the masks; and their sum, of which alone the number can be told where things are alike;
    - the state behind each layer at the last word before the answer tells the number or the side.
    """
    size = model.config.vision_config.image_size
    numbers = ((num_fitted, FITTED_SEED), (num_measured, MEASURED_SEED))
    questions = [load_questions("test", number, size, seed) for number, seed in numbers]
    found = {}
    for kind, score in SCORES.items():
        fitted, measured = ([q for q in asked if q["kind"] == kind] for asked in questions)
        answers = sorted({q["answer"] for q in fitted})
        labels = torch.tensor([answers.index(q["answer"]) for q in fitted])
        scenes = np.array([q["scene"] for q in measured])
        guesses = {"commonest answer": [answers[labels.mode().values]] * len(measured)}
        features = (read(model, processor, questions) for questions in (fitted, measured))
        for (name, of_fitted), (_, of_measured) in zip(*features, strict=True):
            guesses[name] = [answers[n] for n in classify(of_fitted, labels, of_measured)]
        guesses["the model's answer"] = [one.prediction for one in judge(model, processor, measured)]
        found[kind] = []
        for name, given in guesses.items():
            right = np.array([score(q["answer"], guess) for q, guess in zip(measured, given, strict=True)], float)
            found[kind].append({"read": name} | with_interval(lambda rows, of=right: float(of[rows].mean()), scenes))
    return found


@torch.inference_mode()
def read(
    model: PreTrainedModel, processor: ProcessorMixin, questions: list[dict[str, Any]]
) -> list[tuple[str, torch.Tensor]]:
    """What probes read of questions of one kind: names and `(num_questions, num_features)`."""
    visual = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: visual.update(tokens=kwargs["cross_attention_states"]), with_kwargs=True
    )
    parts = []
    try:
        for first in range(0, len(questions), BATCH_SIZE):
            batch = questions[first : first + BATCH_SIZE]
            inputs = prompts(processor, [begun(question) for question in batch]).to(model.device)
            states = model(**inputs, output_hidden_states=True).hidden_states
            cells = torch.stack([cells_of(processor, question) for question in batch])  # (B, num_phrases, S)
            sums = cells @ visual["tokens"].cpu()
            means = sums / cells.sum(-1, keepdim=True)
            parts.append([means.flatten(1), sums.flatten(1), *(state[:, -1].cpu() for state in states[1:])])
    finally:
        hook.remove()
    crossed = model.config.get_text_config().cross_attention_layers
    names = [
        "visual tokens of the masks, mean",
        "visual tokens of the masks, sum",
        *(
            f"behind layer {n}" + " (cross-attention)" * (n in crossed) + " (words alone)" * (n < min(crossed))
            for n in range(len(states) - 1)
        ),
    ]
    return [(name, torch.cat(part)) for name, part in zip(names, zip(*parts, strict=True), strict=True)]


def begun(question: dict[str, Any]) -> Chat:
    """A question and the beginning of its answer."""
    beginning = BEGINNINGS[question["kind"]].format(question["object"])
    said = {"role": "assistant", "content": [{"type": "text", "text": beginning}]}
    return [*one_question(question["question"], question["image"]), said]


def cells_of(processor: ProcessorMixin, question: dict[str, Any]) -> torch.Tensor:
    """The cells that each thing touches which a question names: `(num_phrases, num_image_tokens)`."""
    masks = [decode_rle(phrase["mask"]) for phrase in question["phrases"]]
    return torch.stack([processor.image_processor.mask_coverage(mask).flatten() > 0 for mask in masks]).float()


def classify(features: torch.Tensor, labels: torch.Tensor, others: torch.Tensor) -> list[int]:
    """The labels of `others`, by ridge regression of each label; how much it shrinks is chosen by cross-validation."""
    features, others = features.double(), others.double()
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-9)
    features, others = ((x - mean) / scale for x in (features, others))
    targets = torch.nn.functional.one_hot(labels).double()

    def guess(rows: torch.Tensor, penalty: float, of: torch.Tensor) -> torch.Tensor:
        x, even = features[rows], targets[rows].mean(0)
        shrunk = x.T @ x + penalty * len(rows) * torch.eye(x.shape[1], dtype=x.dtype)
        return (of @ torch.linalg.solve(shrunk, x.T @ (targets[rows] - even)) + even).argmax(-1)

    folds = torch.arange(len(labels)) % NUM_FOLDS

    def right(penalty: float) -> int:
        return sum(
            (guess((folds != n).nonzero()[:, 0], penalty, features[folds == n]) == labels[folds == n]).sum().item()
            for n in range(NUM_FOLDS)
        )

    return guess(torch.arange(len(labels)), max(PENALTIES, key=right), others).tolist()
