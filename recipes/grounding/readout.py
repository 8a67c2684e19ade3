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
"""How well regions that are read from attention fit what words name on scenes, and the readout that fits best."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm.grounding_agevlm import GroundingReadout, logit
from recipes.inside.measures import auc, with_interval
from recipes.rows.boxes import bounding_box, overlap_of_boxes
from recipes.scenes.evaluation import BATCH_SIZE, attend
from recipes.scenes.pictures import sample_scene
from recipes.scenes.questions import find_classes, load_questions
from trainers import decode_rle


THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
NUM_BINS = 10


class Looked(NamedTuple):
    """A phrase of a question and where its words look. L guided layers, S visual tokens."""

    scene: int
    maps: torch.Tensor
    """The attention, with the sink's share last: `(L, S + 1)`."""
    size: tuple[int, int]
    """Height and width of the picture."""
    mask: np.ndarray | None
    """What it names in the picture, `(height, width)`, or `None` if it is not there."""
    box: tuple[int, int, int, int] | None
    """Around the visible pixels, if it is one object."""
    cells: torch.Tensor
    """The share of each cell that the mask covers: `(S,)`."""

    @property
    def on_nothing(self) -> float:
        """What of the attention lies on the sink, 0 without one."""
        return float(self.maps[:, -1].mean())


def look(
    model: PreTrainedModel, processor: ProcessorMixin, split: str, num_images: int, seed: int, image_size: int
) -> list[Looked]:
    """Where every phrase of the questions about a split's scenes looks, each once."""
    questions = load_questions(split, num_images, image_size, seed)
    found = {}
    for first in range(0, len(questions), BATCH_SIZE):
        batch = questions[first : first + BATCH_SIZE]
        for question, (attention, sink, _) in zip(batch, attend(model, processor, batch), strict=True):
            objects = sample_scene(split, question["scene"], seed, image_size).objects
            for k, phrase in enumerate(question["phrases"], start=1):
                mask = None if phrase["mask"] is None else decode_rle(phrase["mask"])
                box = None
                if sum(thing.name == find_classes(phrase["text"])[0] for thing in objects) == 1:
                    box = bounding_box(mask)
                cells = torch.zeros(attention.shape[-1])
                if mask is not None:
                    cells = processor.image_processor.mask_coverage(mask).flatten()
                maps = torch.cat([attention[k], sink[k, :, None]], dim=-1)
                size = question["image"].height, question["image"].width
                key = question["scene"], question["question"], phrase["text"]
                found.setdefault(key, Looked(question["scene"], maps, size, mask, box, cells))
    return list(found.values())


class Read(NamedTuple):
    """What was read of one phrase."""

    scores: list[float]
    """Of its regions, the best first."""
    hits: list[bool]
    """Whether each one's point lies on what is named."""
    box_iou: float | None
    """Of the best region's box, if one object is named; 0 without a region."""
    mask_iou: float | None
    """Of all regions' masks together, if it is there and they were asked for."""


def read(
    processor: ProcessorMixin,
    looked: Looked,
    readout: GroundingReadout,
    by_mask: bool = False,
    return_masks: bool = True,
) -> Read:
    """
    What a readout makes of a phrase's attention or, for comparison, of the cells that its true mask covers (`by_mask`).
    """
    maps = [layer[None, None] for layer in looked.maps]
    if by_mask:
        maps = [(looked.cells / looked.cells.sum().clamp(min=1e-6))[None, None]]
    before, processor.grounding_readout = processor.grounding_readout, asdict(readout)
    try:
        (result,) = processor.post_process_grounded_object_detection(
            SimpleNamespace(grounding_maps=maps), [looked.size], threshold=0.0, return_masks=return_masks
        )
    finally:
        processor.grounding_readout = before
    mask, box_iou, mask_iou = looked.mask, None, None
    hits = [mask is not None and bool(mask[int(y), int(x)]) for x, y in result["points"].tolist()]
    if looked.box is not None:
        box_iou = overlap_of_boxes(result["boxes"][0].tolist(), looked.box) if hits else 0.0
    if mask is not None and return_masks:
        seen = result["masks"].any(dim=0).numpy()
        mask_iou = float((seen & mask).sum() / (seen | mask).sum())
    return Read(result["scores"].tolist(), hits, box_iou, mask_iou)


def fit(processor: ProcessorMixin, looked: list[Looked]) -> GroundingReadout:
    """
    The threshold with the largest mean IoU of boxes; and, of the scores of all regions, the logistic function of the
    largest likelihood that their point lies on what is named.
    """
    results = {
        t: [read(processor, one, GroundingReadout(t), return_masks=False) for one in looked] for t in THRESHOLDS
    }
    best = max(THRESHOLDS, key=lambda t: np.mean([one.box_iou for one in results[t] if one.box_iou is not None]))
    hits = np.array([hit for one in results[best] for hit in one.hits], dtype=float)
    if len(set(hits)) < 2:
        raise ValueError("Either all regions lie on what their words name or none does: there is nothing to fit.")
    known = {
        "slope": [logit(score) for one in results[best] for score in one.scores],
        "nothing": [logit(one.on_nothing) for one, of in zip(looked, results[best], strict=True) for _ in of.scores],
        "intercept": np.ones(len(hits)),
    }
    if not any(one.on_nothing for one in looked):  # without a sink
        del known["nothing"]
    inputs, weights = np.stack(list(known.values()), axis=1), np.zeros(len(known))
    for _ in range(50):  # Newton's method
        chances = 1 / (1 + np.exp(-(inputs @ weights)))
        curvature = (inputs * (chances * (1 - chances))[:, None]).T @ inputs + 1e-6 * np.eye(len(known))
        weights = weights + np.linalg.solve(curvature, inputs.T @ (hits - chances))
    return GroundingReadout(best, **{name: round(float(w), 4) for name, w in zip(known, weights, strict=True)})


def reliability(results: list[Read]) -> list[dict[str, float]]:
    """Of as many regions in each bin, by their scores: mean score and share of points on what is named."""
    pairs = sorted((score, hit) for one in results for score, hit in zip(one.scores, one.hits, strict=True))
    return [
        {"score": float(part[:, 0].mean()), "hits": float(part[:, 1].mean()), "num": len(part)}
        for part in np.array_split(np.array(pairs, dtype=float), NUM_BINS)
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean distance of scores and hits over the bins, by their numbers."""
    return sum(b["num"] * abs(b["score"] - b["hits"]) for b in bins) / sum(b["num"] for b in bins)


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def measure(processor: ProcessorMixin, looked: list[Looked], readout: GroundingReadout, by_mask: bool = False) -> dict:
    """
    `iou` and `acc_50` of the best region's box where one object is named, `mask_iou`, `pointing` (the best region's
    point), and `absence_auc` by the best region's score, each with its 95 % interval over the scenes; and `reliability`.
    """
    results = [read(processor, one, readout, by_mask) for one in looked]
    scenes = np.array([one.scene for one in looked])
    there = np.array([one.mask is not None for one in looked])
    best = np.array([max(one.scores, default=0.0) for one in results])
    boxes = np.array([np.nan if one.box_iou is None else one.box_iou for one in results])
    values = {
        "pointing": np.where(there, [bool(one.hits and one.hits[0]) for one in results], np.nan),
        "iou": boxes,
        "acc_50": np.where(np.isnan(boxes), np.nan, boxes >= 0.5),
        "mask_iou": np.array([np.nan if one.mask_iou is None else one.mask_iou for one in results]),
    }
    statistics = {name: lambda rows, of=of: mean_of_known(of[rows]) for name, of in values.items()}
    if not by_mask:
        statistics["absence_auc"] = lambda rows: auc(-best[rows], ~there[rows])
    measured: dict[str, Any] = {name: with_interval(statistic, scenes) for name, statistic in statistics.items()}
    if not by_mask:
        measured["reliability"] = reliability(results)
        measured["calibration_error"] = calibration_error(measured["reliability"])
    return measured


def compare(processor: ProcessorMixin, looked: list[Looked], readout: GroundingReadout) -> dict[str, dict]:
    """What the readout measures up to beside the default one, and beside true masks read from the model's cells."""
    return {
        "default readout": measure(processor, looked, GroundingReadout()),
        "fitted readout": measure(processor, looked, readout),
        "fitted threshold, true masks at the cells' resolution": measure(
            processor, looked, replace(readout, slope=1.0, nothing=0.0, intercept=0.0), by_mask=True
        ),
    }
