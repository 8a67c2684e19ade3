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
"""Scores a model on test scenes: its answers and captions, where its words look, and what it says without the picture."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import PIL.Image
import torch
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm import AgeVlmConfig
from recipes.answering.answers import answer, generate, one_question, prompts
from recipes.answering.rows import grounding_maps, query
from recipes.evaluation.captions import CaptionCounts, count_named
from recipes.evaluation.metrics import area_under_curve, score_pope
from recipes.evaluation.records import mark
from recipes.evaluation.rules import score_count, score_relation
from recipes.scenes.classes import NUMBERS, POPE_KINDS, SIDES
from recipes.scenes.edits import load_pairs, load_recolored
from recipes.scenes.pictures import sample_scene
from recipes.scenes.questions import find_classes, load_questions
from recipes.scenes.rows import load_scenes
from trainers import RegionAttention, collator_for
from trainers.any_vlm_collator import without_targets


BATCH_SIZE = 100


@dataclass
class Judged:
    """One question with the model's answer and where its words look: the whole question first, then each phrase."""

    question: dict[str, Any]
    prediction: str
    attention: torch.Tensor  # (1 + num_phrases, num_layers, num_image_tokens)
    sink: torch.Tensor  # (1 + num_phrases, num_layers), what of the attention lies on the sink
    cells: torch.Tensor  # (1 + num_phrases, num_image_tokens), 1 inside the mask, or everywhere without one

    @property
    def masses(self) -> torch.Tensor:
        """Share of the attention inside the masks, averaged over the layers: `(1 + num_phrases,)`."""
        return (self.attention * self.cells.unsqueeze(1)).sum(-1).mean(-1)

    @property
    def points_inside(self) -> torch.Tensor:
        """Whether the maximum of the layers' mean attention falls inside the mask: `(1 + num_phrases,)`."""
        return self.cells.gather(1, self.attention.mean(1).argmax(-1, keepdim=True))[:, 0]


def attend(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: list[dict[str, Any]],
    attention: RegionAttention | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Where each question's words look, as [`Judged`] keeps it: attention, sink and cells."""
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
    found = grounding_maps(model, processor, rows, attention)
    counts = [1 + len(question["phrases"]) for question in questions]
    return [tuple(tensor[row, :count] for tensor in found) for row, count in enumerate(counts)]


def judge(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Dataset,
    batch_size: int = BATCH_SIZE,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Judged]:
    """Answers and attention for all questions, in order."""
    model.eval()
    judged = []
    for first in range(0, len(questions), batch_size):
        batch = [questions[i] for i in range(first, min(first + batch_size, len(questions)))]
        predictions = answer(model, processor, [q["image"] for q in batch], [q["question"] for q in batch])
        looks = attend(model, processor, batch)
        judged += [Judged(*entry, *look) for *entry, look in zip(batch, predictions, looks, strict=True)]
        progress(len(judged))
    return judged


def summarize(judged: list[Judged]) -> dict[str, float]:
    """
    The demo's metrics: POPE per split, counting, relations; `in_mask_mass`, `uniform_mass` and `pointing_accuracy` of the
    words that name an object in the picture; and the first two for all words of the question together. Of a model with an
    attention sink also what lies on it of the attention of words that name an object, `sink_mass` for one in the picture
    and `absent_sink_mass` for one that is not, and how well that tells the two apart without any answer: `absence_auc`, the
    area under the ROC curve, and `absence_accuracy`, with one half as the limit.
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
    there, absent = (
        torch.stack([j.sink[1].mean() for j in judged if j.question["answer"] == truth]) for truth in ("yes", "no")
    )
    if there.any() or absent.any():
        metrics["sink_mass"], metrics["absent_sink_mass"] = there.mean().item(), absent.mean().item()
        metrics["absence_auc"] = area_under_curve(absent.tolist(), there.tolist())
        metrics["absence_accuracy"] = torch.cat([there <= 0.5, absent > 0.5]).float().mean().item()
    return metrics


def answer_all(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: list[PIL.Image.Image | None],
    questions: list[str],
    max_new_tokens: int = 24,
) -> list[str]:
    """
    Greedy answers to one question about each picture, or without a picture where it is `None`. Pictures that are alike are
    prepared and run through the vision tower together, once for all their questions.
    """
    if model.config.model_type != AgeVlmConfig.model_type:
        return _answer_each(model, processor, images, questions, max_new_tokens)
    rows_of = defaultdict(list)
    for row, image in enumerate(images):
        # A question without a picture is a group of its own.
        rows_of[(row,) if image is None else (image.size, image.tobytes())].append(row)
    predictions = [""] * len(questions)
    by_kind = sorted(rows_of.values(), key=lambda rows: (images[rows[0]] is None, len(rows)))
    for (is_blind, number), same in groupby(by_kind, key=lambda rows: (images[rows[0]] is None, len(rows))):
        groups = list(same)
        step = max(1, BATCH_SIZE // number)  # pictures
        for first in range(0, len(groups), step):
            batch = groups[first : first + step]
            rows = [row for group in batch for row in group]
            parts = [] if is_blind else [{"type": "image"}]
            chats = [[{"role": "user", "content": [*parts, {"type": "text", "text": questions[row]}]}] for row in rows]
            texts = processor.apply_chat_template(chats, add_generation_prompt=True)
            inputs = processor.tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
            if not is_blind:  # each picture once, for its `number` of neighboring rows
                pictures = [[images[group[0]]] for group in batch]
                for name, tensor in processor.image_processor(pictures, return_tensors="pt").items():
                    inputs[name] = tensor.unsqueeze(1).expand(-1, number, *tensor.shape[1:])
            output = generate(model, inputs, max_new_tokens=max_new_tokens)
            texts = processor.batch_decode(output, skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                predictions[row] = text
    return predictions


def _answer_each(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: list[PIL.Image.Image | None],
    questions: list[str],
    max_new_tokens: int,
) -> list[str]:
    """As `answer_all`, for any VLM: each question with a picture of its own."""
    predictions = [""] * len(questions)
    rows = sorted(range(len(questions)), key=lambda row: (images[row] is None, len(questions[row])))
    for _, same in groupby(rows, key=lambda row: images[row] is None):
        group = list(same)
        for first in range(0, len(group), BATCH_SIZE):
            batch = group[first : first + BATCH_SIZE]
            pictures = [[] if images[row] is None else [images[row]] for row in batch]
            chats = [one_question(questions[row], *shown) for row, shown in zip(batch, pictures, strict=True)]
            output = generate(model, prompts(processor, chats), max_new_tokens=max_new_tokens)
            texts = processor.batch_decode(output, skip_special_tokens=True)
            for row, text in zip(batch, texts, strict=True):
                predictions[row] = text
    return predictions


def as_record(question: dict[str, Any], identity: str, prediction: str, **over: str) -> dict[str, Any]:
    """A line of the file of per-question results: the question without its picture, and what became of it."""
    record = {
        "benchmark": "scenes",
        "id": identity,
        **{name: question[name] for name in ("kind", "question", "answer", "object", "context")},
        "prediction": prediction,
        **over,
    }
    return record | {"correct": mark(record)}


def pair_record(pair: dict[str, Any], prediction: str, edit: str = "pair") -> dict[str, Any]:
    """
    As [`as_record`], with HallusionBench's columns. Its kind is "pair_existence", "pair_count" or "pair_relation", or
    begins with another word for the `edit`, so that the two rows of a pair are not taken for questions of their own.
    """
    columns = {name: pair[name] for name in ("set_id", "figure_id", "question_id", "visual_input")}
    identity = f"{edit}-" + "-".join(columns[name] for name in ("set_id", "figure_id", "question_id"))
    return as_record(pair, identity, prediction, **columns | {"kind": f"{edit}_{pair['kind']}"})


def judge_pairs(
    model: PreTrainedModel, processor: ProcessorMixin, pairs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The records of all rows of [`load_pairs`], in order."""
    model.eval()
    predictions = answer_all(model, processor, [p["image"] for p in pairs], [p["question"] for p in pairs])
    return [pair_record(*entry) for entry in zip(pairs, predictions, strict=True)]


def summarize_pairs(records: list[dict[str, Any]]) -> dict[str, float]:
    """
    HallusionBench's metrics as shares: of the answers that are right (`pairs_aAcc`), of the pictures with all answers
    right (`pairs_fAcc`) and of the questions that are right before and after the edit (`pairs_qAcc`).
    """
    metrics = {"pairs_aAcc": sum(record["correct"] for record in records) / len(records)}
    for name, column in (("pairs_fAcc", "figure_id"), ("pairs_qAcc", "question_id")):
        groups = defaultdict(list)
        for record in records:
            groups[record["set_id"], record[column]].append(record["correct"])
        metrics[name] = sum(map(all, groups.values())) / len(groups)
    return metrics


def _said(record: dict[str, Any]) -> list[bool]:
    """Which of the answers that its question can have a prediction gives."""
    possible = next(words for words in (("yes", "no"), NUMBERS, SIDES) if record["answer"] in words)
    return [mark(record | {"answer": word}) for word in possible]


def summarize_recolored(records: list[dict[str, Any]]) -> dict[str, float]:
    """
    Of the questions about an object before and after it was recolored, the shares that have the same answer both times
    (`recolored_consistency`) and the right one both times (`recolored_qAcc`). The two records of a question stand one
    after the other.
    """
    pairs = list(zip(records[::2], records[1::2], strict=True))
    return {
        "recolored_consistency": sum(_said(before) == _said(after) for before, after in pairs) / len(pairs),
        "recolored_qAcc": sum(before["correct"] and after["correct"] for before, after in pairs) / len(pairs),
    }


def caption(model: PreTrainedModel, processor: ProcessorMixin, images: list[PIL.Image.Image]) -> list[str]:
    """Greedy captions."""
    model.eval()
    return answer_all(model, processor, images, ["Describe the image."] * len(images), max_new_tokens=64)


def count_mentions(text: str, there: Collection[str]) -> CaptionCounts:
    """Counts what CHAIR (Rohrbach et al., 2018) looks at in a caption of a picture with these classes of objects."""
    return count_named(find_classes(text), there, text)


def score_chair(captions: Sequence[CaptionCounts]) -> dict[str, float]:
    """
    CHAIR of captions: `chair_i`, the share of the mentions that name what is not there; `chair_s`, the share of the captions
    with such a mention; `chair_recall`, the share of the pictures' classes that are mentioned; `chair_num_words` of a caption
    on average. A share of nothing is 0.
    """
    sums = CaptionCounts(*map(sum, zip(*captions, strict=True))) if captions else CaptionCounts(0, 0, 0, 0, 0)
    return {
        "chair_i": sums.false / max(sums.mentions, 1),
        "chair_s": sum(counts.false > 0 for counts in captions) / max(len(captions), 1),
        "chair_recall": sums.found / max(sums.there, 1),
        "chair_num_words": sums.num_words / max(len(captions), 1),
    }


@torch.inference_mode()
def language_modeling_loss(
    model: PreTrainedModel, processor: ProcessorMixin, rows: list[dict[str, Any]], batch_size: int = BATCH_SIZE
) -> float:
    """Mean negative log-likelihood of the rows' answer tokens, in nats."""
    model.eval()
    collate = collator_for(model.config, processor)
    loss = num_tokens = 0
    for first in range(0, len(rows), batch_size):
        batch = collate([{**row, "regions": []} for row in rows[first : first + batch_size]])
        labels = batch["labels"]
        inputs = {name: value.to(model.device) for name, value in without_targets(batch).items()}
        inputs["labels"] = labels.to(model.device)
        count = (labels[:, 1:] != -100).sum().item()
        loss += model(**inputs).loss.item() * count
        num_tokens += count
    return loss / num_tokens


def exchanged(images: list[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Each row's picture replaced by another one, that of a row half of the list away or of the next that differs."""
    pixels, number = [image.tobytes() for image in images], len(images)

    def other(row: int) -> int:
        places = ((row + number // 2 + step) % number for step in range(number))
        return next(place for place in places if pixels[place] != pixels[row])

    return [images[other(row)] for row in range(number)]


class Evaluation(NamedTuple):
    """All that the scenes measure of a model."""

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    """Those of all questions and pairs."""
    by_picture: dict[str, list[tuple[int, int]]]
    """Of metrics that are shares: how many of how many, scene by scene. The metric is the ratio of the sums."""


def evaluate_all(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    split: str = "test",
    num_images: int = 200,
    image_size: int = 256,
    seed: int = 0,
    attention: RegionAttention | None = None,
) -> Evaluation:
    """
    All that the scenes measure, on the scenes 0 to `num_images` - 1 of a split. `attention` is of a model that is no AGE-VLM.

    The metrics are those of [`summarize`], [`summarize_pairs`], [`summarize_recolored`] and [`score_chair`]; `pope_accuracy`,
    `pope_f1` and `pope_yes_ratio` of the three kinds together, and the accuracy without the picture (`pope_accuracy_blind`)
    and with another row's (`pope_accuracy_swapped`); and `lm_loss` of the split's instructions.
    """
    model.eval()
    questions = load_questions(split, num_images, image_size, seed)
    pairs = load_pairs(split, num_images, image_size, seed)
    recolored = load_recolored(split, num_images, image_size, seed)
    scenes = [sample_scene(split, index, seed, image_size) for index in range(num_images)]
    instructions = list(load_scenes(split, "instruction", num_images, image_size, seed, streaming=True))
    pope = [question for question in questions if question["kind"] in POPE_KINDS]
    truths = [question["answer"] for question in pope]
    words = list(dict.fromkeys(question["question"] for question in pope))

    asked = [
        *((q["image"], q["question"]) for q in questions),
        *((p["image"], p["question"]) for p in (*pairs, *recolored)),
        *zip(exchanged([q["image"] for q in pope]), (q["question"] for q in pope), strict=True),
        *((None, text) for text in words),
    ]
    predictions = iter(answer_all(model, processor, *map(list, zip(*asked, strict=True))))
    records = [as_record(q, f"{q['kind']}-{n}", next(predictions)) for n, q in enumerate(questions)]
    pair_records = [pair_record(p, next(predictions)) for p in pairs]
    recolored_records = [pair_record(p, next(predictions), "recolored") for p in recolored]
    swapped = [next(predictions) for _ in pope]
    blind = {text: next(predictions) for text in words}

    looks = []
    for first in range(0, len(questions), BATCH_SIZE):
        looks += attend(model, processor, questions[first : first + BATCH_SIZE], attention)
    judged = [
        Judged(question, record["prediction"], *look)
        for question, record, look in zip(questions, records, looks, strict=True)
    ]

    said = score_pope(truths, [record["prediction"] for record in records if record["kind"] in POPE_KINDS])
    captions = caption(model, processor, [scene.image for scene in scenes])
    objects = [{thing.name for thing in scene.objects} for scene in scenes]
    counts = [count_mentions(*entry) for entry in zip(captions, objects, strict=True)]
    metrics = {
        "pope_accuracy": said["accuracy"],
        "pope_f1": said["f1"],
        "pope_yes_ratio": said["yes_ratio"],
        "pope_accuracy_blind": score_pope(truths, [blind[q["question"]] for q in pope])["accuracy"],
        "pope_accuracy_swapped": score_pope(truths, swapped)["accuracy"],
        **summarize(judged),
        **summarize_pairs(pair_records),
        **summarize_recolored(recolored_records),
        **score_chair(counts),
        "lm_loss": language_modeling_loss(model, processor, instructions),
    }
    kinds = dict.fromkeys(POPE_KINDS, "pope_accuracy") | {"count": "count_accuracy", "relation": "relation_accuracy"}
    answers = [(kinds[q["kind"]], q["scene"], r["correct"]) for q, r in zip(questions, records, strict=True)]
    both = [(r, s["correct"] and r["correct"]) for r, s in zip(pair_records[::2], pair_records[1::2], strict=True)]
    answers += [("pairs_qAcc", int(record["set_id"]), correct) for record, correct in both]
    by_picture = {name: [(0, 0)] * num_images for name in [*dict.fromkeys(kinds.values()), "pairs_qAcc"]}
    for name, scene, correct in answers:
        right, asked = by_picture[name][scene]
        by_picture[name][scene] = right + correct, asked + 1
    by_picture["chair_i"] = [(caption.false, caption.mentions) for caption in counts]
    by_picture["chair_recall"] = [(caption.found, caption.there) for caption in counts]
    return Evaluation(metrics, records + pair_records + recolored_records, by_picture)
