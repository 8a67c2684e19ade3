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
"""The readout of boxes, points and scores: what it measures and what it fits, on attention that is made up."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from testing_utils import tiny_processor

from modeling_agevlm import AgeVlmProcessor
from modeling_agevlm.grounding_agevlm import GroundingReadout
from recipes import readout as recipe
from recipes.grounding import readout
from recipes.grounding.readout import Looked
from recipes.rows.boxes import bounding_box
from recipes.scenes import TRAINED_MODEL


SIDE = 96


def looked(scene: int, cells: list[int], mask: np.ndarray | None, on_picture: float = 1.0) -> Looked:
    """A phrase that looks at some of the 3 x 3 cells alike."""
    maps = torch.zeros(1, 10)
    maps[0, cells] = on_picture / len(cells)
    maps[0, 9] = 1 - on_picture
    box = None if mask is None else bounding_box(mask)
    coverage = torch.zeros(9) if mask is None else tiny_processor().image_processor.mask_coverage(mask).flatten()
    return Looked(scene, maps, (SIDE, SIDE), mask, box, coverage)


def block(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def test_what_is_read_of_a_phrase():
    here, there = block(0, 0, 40, 40), block(60, 60, 96, 96)
    hit = readout.read(tiny_processor(), looked(0, [0], here), GroundingReadout())
    assert hit.hits == [True] and hit.box_iou > 0.8 and hit.mask_iou > 0.7
    missed = readout.read(tiny_processor(), looked(0, [0], there), GroundingReadout())
    assert missed.hits == [False] and missed.box_iou == missed.mask_iou == 0 and missed.scores == hit.scores
    absent = readout.read(tiny_processor(), looked(0, [0], None), GroundingReadout())
    assert absent.hits == [False] and absent.box_iou is absent.mask_iou is None
    nowhere = readout.read(tiny_processor(), looked(0, list(range(9)), here), GroundingReadout())
    assert nowhere == readout.Read([], [], 0.0, 0.0)
    # the true mask, whatever the attention does
    true = readout.read(tiny_processor(), looked(0, [8], here), GroundingReadout(), by_mask=True)
    assert true.hits == [True] and true.box_iou > 0.5


def made_up() -> list[Looked]:
    """Words that look at their object with half of their attention are right in three of four cases, others in one."""
    masks = [block(0, 0, 32, 32)] * 3 + [block(64, 64, 96, 96)]
    sure = [looked(n, [0], mask, 0.8) for n, mask in enumerate(masks * 5)]
    unsure = [looked(20 + n, [8], mask, 0.3) for n, mask in enumerate(masks * 5)]
    return sure + unsure + [looked(40, [4], None, 0.05)]


def test_fitted_scores_are_shares_of_hits():
    processor, phrases = tiny_processor(), made_up()
    fitted = readout.fit(processor, phrases)
    assert fitted.threshold in readout.THRESHOLDS and processor.grounding_readout is None
    scores = [readout.read(processor, one, fitted).scores[0] for one in phrases]
    assert scores[0] == pytest.approx(0.75, abs=0.05) and scores[20] == pytest.approx(0.25, abs=0.05)
    # the largest likelihood: nothing near it has a larger one
    hits = np.array([readout.read(processor, one, fitted).hits[0] for one in phrases])

    def likelihood(**change: float) -> float:
        other = replace(fitted, **{name: getattr(fitted, name) + by for name, by in change.items()})
        chances = np.array([readout.read(processor, one, other).scores[0] for one in phrases])
        return np.log(np.where(hits, chances, 1 - chances)).sum()

    for name in ("slope", "nothing", "intercept"):
        assert max(likelihood(**{name: by}) for by in (-0.05, 0.05)) < likelihood()
    # without a sink there is nothing to weigh
    seen = [one._replace(maps=one.maps * torch.tensor([1.0] * 9 + [0.0])) for one in phrases]
    assert readout.fit(processor, seen).nothing == 0


def test_measures_by_hand():
    measured = readout.measure(tiny_processor(), made_up(), GroundingReadout())
    # 15 of the 20 sure ones and 5 of the 20 unsure ones; what is absent has no point to be right
    assert measured["pointing"]["value"] == 0.5
    assert measured["pointing"]["low"] < 0.5 < measured["pointing"]["high"]
    assert measured["absence_auc"]["value"] == 1.0  # the absent word looks at the picture least of all
    assert measured["acc_50"]["value"] <= 0.5 and 0 < measured["iou"]["value"] < 0.5
    assert sum(entry["num"] for entry in measured["reliability"]) == 41
    bins = [{"score": 0.5, "hits": 0.25, "num": 1}, {"score": 0.9, "hits": 1.0, "num": 3}]
    assert readout.calibration_error(bins) == pytest.approx((0.25 + 0.3) / 4)


def test_nothing_to_fit_is_refused():
    with pytest.raises(ValueError, match="nothing to fit"):
        readout.fit(tiny_processor(), [looked(0, [0], block(0, 0, 32, 32))])


def test_the_recipe_keeps_the_readout_with_the_checkpoint(tmp_path: Path, monkeypatch, capsys):
    shutil.copytree(TRAINED_MODEL, tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--num_images", "6", "--out", str(tmp_path / "r.json"), "--save"]
    monkeypatch.setattr(sys, "argv", ["readout.py", *arguments])
    recipe.main()
    found = json.loads((tmp_path / "r.json").read_text())
    assert AgeVlmProcessor.from_pretrained(tmp_path / "model").grounding_readout == found["readout"]
    assert "| fitted readout |" in capsys.readouterr().out and set(found["measured"]) >= {"fitted readout"}
    monkeypatch.setattr(sys, "argv", ["readout.py", "--model", "owner/name", "--save"])
    with pytest.raises(SystemExit, match="needs a checkpoint's folder"):
        recipe.main()
