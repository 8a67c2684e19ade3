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
"""Does where words look tell what is wrong? Answers and captions of scenes, how well their errors are told, and what is left."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from recipes.answering.phrases import phrase_spans
from recipes.evaluation.rules import parse_yes_no
from recipes.inside.measures import auc, concentration, with_interval
from recipes.inside.vlm import AgeVlm
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.pictures import Scene
from recipes.scenes.questions import find_classes


# What makes a claim doubtful: the higher, the likelier it is false.
DOUBTS = {
    "score": "low score of what its words look at",
    "sink": "attention on nothing",
    "spread": "spread of the attention (entropy)",
    "improbable": "low probability of the word",
}
MOST = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001, 0.0003)  # shares of the attention on nothing
BATCH_SIZE = 50


class Claim(NamedTuple):
    """That an object is in a scene, or is not."""

    scene: int
    name: str
    """The object's class."""
    is_false: bool
    doubts: dict[str, float]
    """By the names of `DOUBTS`. What speaks against the object's presence speaks for a no."""


def doubts_of(
    vlm: AgeVlm,
    inputs: dict[str, torch.Tensor],
    queries: torch.BoolTensor,
    words: Sequence[int],
    says_yes: bool = True,
) -> list[dict[str, float]]:
    """Of each query `(K, T)` about an object, what makes doubtful that it is there, or else that it is not; `words` are the numbers of the tokens that say so."""
    look, found = vlm.look(inputs, queries), []
    scores = vlm.best_scores(look)
    for k, word in enumerate(words):
        on_nothing = float(look.on_nothing[k].mean())
        doubts = {
            "score": 1 - scores[k],
            "sink": on_nothing,
            "spread": concentration(look.maps[k].mean(dim=0), on_nothing)["entropy"],
        }
        if not says_yes:
            doubts = {name: 1 - doubt for name, doubt in doubts.items()}
        chances = look.logits[word - 1].float().softmax(-1)
        found.append(doubts | {"improbable": 1 - chances[inputs["input_ids"][0, word]].item()})
    return found


def claims_of_answers(vlm: AgeVlm, questions: list[dict[str, Any]]) -> list[Claim]:
    """The answers to questions about existence; those that are neither yes nor no claim nothing."""
    questions, claims = [question for question in questions if question["kind"] in POPE_KINDS], []
    for first in range(0, len(questions), BATCH_SIZE):
        batch = questions[first : first + BATCH_SIZE]
        answers = vlm.generate([q["image"] for q in batch], [q["question"] for q in batch])
        for question, ids in zip(batch, answers, strict=True):
            said = parse_yes_no(vlm.decode(ids))
            if said is None:
                continue
            inputs, length = vlm.encode(question["image"], question["question"], ids)
            start = question["question"].index(question["object"])
            words = vlm.find_place(inputs, question["question"], start, start + len(question["object"]))
            (doubts,) = doubts_of(vlm, inputs, words[None], [length], said == "yes")
            claims.append(Claim(question["scene"], question["object"], said != question["answer"], doubts))
    return claims


def claims_of_captions(vlm: AgeVlm, scenes: Sequence[Scene]) -> list[Claim]:
    """The objects that the captions of scenes name, each as often as they do."""
    claims = []
    for first in range(0, len(scenes), BATCH_SIZE):
        images = [scene.image for scene in scenes[first : first + BATCH_SIZE]]
        captions = vlm.generate(images, ["Describe the image."] * len(images), max_new_tokens=64)
        for number, (image, ids) in enumerate(zip(images, captions, strict=True), start=first):
            text = vlm.decode(ids)
            named = {(start, end): find_classes(text[start:end]) for start, end in phrase_spans(text)}
            named = {span: classes for span, classes in named.items() if classes}
            if not named:
                continue
            inputs, _ = vlm.encode(image, "Describe the image.", ids)
            queries = torch.stack([vlm.find_place(inputs, text, *span) for span in named])
            words = [int(query.nonzero()[0, 0]) for query in queries]
            there = {thing.name for thing in scenes[number].objects}
            for classes, doubts in zip(named.values(), doubts_of(vlm, inputs, queries, words), strict=True):
                claims += [Claim(number, name, name not in there, doubts) for name in classes]
    return claims


def detection(claims: list[Claim]) -> dict[str, Any]:
    """How many claims are false, and how well each doubt tells them from the others: AUC."""
    scenes, false = np.array([c.scene for c in claims]), np.array([c.is_false for c in claims])
    found: dict[str, Any] = {"num_claims": len(claims), "num_false": int(false.sum())}
    for name in DOUBTS:
        doubts = np.array([claim.doubts[name] for claim in claims])
        found[name] = with_interval(lambda rows, d=doubts: auc(d[rows], false[rows]), scenes)
    return found


def kept_answers(claims: list[Claim]) -> list[dict[str, Any]]:
    """For each largest share on nothing, as `ask.py --abstain` takes it, how many answers are left, and how many of these are right."""
    scenes, found = np.array([c.scene for c in claims]), []
    false = np.array([c.is_false for c in claims])
    for most in MOST:
        kept = np.array([claim.doubts["sink"] <= most for claim in claims])
        found.append(
            {
                "most": most,
                "answered": with_interval(lambda rows, k=kept: float(k[rows].mean()), scenes),
                "accuracy": with_interval(lambda rows, k=kept: share((~false)[rows][k[rows]]), scenes)
                if kept.any()
                else None,
            }
        )
    return found


def share(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def kept_mentions(claims: list[Claim], objects: Sequence[Collection[str]]) -> list[dict[str, Any]]:
    """For each largest share on nothing `chair_i` and `chair_recall` of what is left of the captions of scenes with these objects."""
    found = []
    for most in MOST:
        kept = [claim for claim in claims if claim.doubts["sink"] <= most]
        counts = np.zeros((len(objects), 4))  # mentions, false, found, there
        for number, there in enumerate(objects):
            counts[number, 3] = len(set(there))
        for claim in kept:
            counts[claim.scene, :2] += 1, claim.is_false
        for number, _ in {(claim.scene, claim.name) for claim in kept if not claim.is_false}:
            counts[number, 2] += 1
        entry: dict[str, Any] = {"most": most}
        for name, (top, bottom) in {"chair_i": (1, 0), "chair_recall": (2, 3)}.items():
            entry[name] = with_interval(
                lambda rows, c=counts, t=top, b=bottom: float(c[rows, t].sum() / max(c[rows, b].sum(), 1)),
                np.arange(len(objects)),
            )
        found.append(entry)
    return found


def curves(
    claims: list[Claim], objects: Sequence[Collection[str]] | None = None
) -> dict[str, list[tuple[float, float]]]:
    """
    For each doubt, by its title, the points of its curve, the least doubtful claims first: the share of answers that are left and how many of
    these are right; or, with the `objects` of captioned scenes, the recall of what is left, and its CHAIR i.
    """
    found = {}
    for name, title in DOUBTS.items():
        ordered, points = sorted(claims, key=lambda claim: claim.doubts[name]), []
        false, named = 0, set()
        for number, claim in enumerate(ordered, start=1):
            false += claim.is_false
            if not claim.is_false:
                named.add((claim.scene, claim.name))
            if number < len(ordered) and ordered[number].doubts[name] == claim.doubts[name]:
                continue
            if objects is None:
                points.append((number / len(ordered), 1 - false / number))
            else:
                points.append((len(named) / sum(len(set(there)) for there in objects), false / number))
        found[title] = points
    return found


def measure(vlm: AgeVlm, questions: list[dict[str, Any]], scenes: Sequence[Scene]) -> dict[str, Any]:
    """All of this of one model: numbers for tables, and `curves` to draw."""
    answers, mentions = claims_of_answers(vlm, questions), claims_of_captions(vlm, scenes)
    objects = [{thing.name for thing in scene.objects} for scene in scenes]
    return {
        "num_images": len(scenes),
        "detection": {"answers": detection(answers), "mentions": detection(mentions)},
        "answers": kept_answers(answers),
        "captions": kept_mentions(mentions, objects),
        "curves": {"answers": curves(answers), "captions": curves(mentions, objects)},
    }
