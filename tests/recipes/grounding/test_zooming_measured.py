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
"""What zooming in is worth."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes import zoom as recipe
from recipes.answering.checkpoint import load_checkpoint
from recipes.grounding import zooming
from recipes.scenes import TRAINED_MODEL
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.pictures import sample_scene
from recipes.scenes.questions import load_questions
from trainers.run_lengths import decode_rle


@pytest.mark.parametrize(("shrunk", "side", "scene"), [(1, 288, 288), (2, 192, 96), (4, 384, 96)])
def test_scenes_lie_in_large_pictures(shrunk: int, side: int, scene: int):
    """As they are drawn at that size, on a background that goes on around them."""
    image, (left, top, right, bottom) = zooming.large_picture("test", 5, 96, shrunk)
    assert image.size == (side, side) and (right - left, bottom - top) == (scene, scene)
    assert 0 <= left <= side - scene and 0 <= top <= side - scene
    drawn = sample_scene("test", 5, 0, scene)
    covered = np.logical_or.reduce([thing.mask for thing in drawn.objects])
    inside = np.asarray(image)[top:bottom, left:right]
    solid = np.asarray(drawn.image)[covered].astype(int) - inside[covered]
    assert np.median(np.abs(solid)) <= 2  # but for half transparent edges over another background
    if shrunk == 1:
        assert np.array_equal(inside, np.asarray(drawn.image))


def test_another_part_is_as_large_and_anywhere():
    image, _ = zooming.large_picture("test", 5, 96, 2)
    rng = np.random.default_rng(0)
    parts = [zooming.elsewhere((10, 20, 90, 110), image, rng) for _ in range(200)]
    assert {(right - left, bottom - top) for left, top, right, bottom in parts} == {(80, 90)}
    lefts = [left for left, *_ in parts]
    assert min(lefts) < 10 and max(lefts) > 102 and max(bottom for *_, bottom in parts) <= 192


def test_the_model_that_comes_along_zooms_in_on_what_is_asked_for():
    model, processor = load_checkpoint(str(TRAINED_MODEL))
    size, inside = processor.image_processor.size.height, []
    for question in load_questions("test", 20, size):
        if question["kind"] not in POPE_KINDS or question["answer"] == "no":
            continue
        image, (left, top, *_) = zooming.large_picture("test", question["scene"], size, 3)
        window = zooming.looked_at(model, processor, question["question"], image)
        down, across = np.argwhere(decode_rle(question["mask"])).mean(axis=0)
        inside.append(
            window is not None
            and window[0] <= left + across < window[2]
            and window[1] <= top + down < window[3]
            and window[2] - window[0] < image.width / 2
        )
    assert len(inside) >= 15 and np.mean(inside) > 0.7  # of parts of less than a quarter of the picture


def test_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Every way of every size, right for as many as there are, and its parts no smaller than what the model reads."""
    monkeypatch.setattr(zooming, "SHRUNK", (3,))
    monkeypatch.setattr(zooming, "NUM_TIMED", 2)
    monkeypatch.setattr(sys, "argv", ["zoom.py", "--num_images", "6", "--out", str(tmp_path / "zoom.json")])
    recipe.main()
    (found,) = json.loads((tmp_path / "zoom.json").read_text())["measured"]
    assert found["ways"].keys() == zooming.WAYS.keys()
    for by_kind in found["ways"].values():
        assert by_kind.keys() == zooming.KINDS.keys()
        assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in by_kind.values())
    assert found["zoomed"] > 0.9 and 1 / 3 <= found["part"] < 0.6 and found["cost"]["times"] > 1
    assert "| 1/3 of 960 | with what the words look at beside (`--zoom`) |" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["zoom.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: "):
        recipe.main()
