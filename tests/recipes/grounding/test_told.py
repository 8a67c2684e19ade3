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
"""Told where to look: the pairs of objects, and how answers about them are scored."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recipes import told as recipe
from recipes.grounding import told
from recipes.rows.boxes import bounding_box


def test_pairs_stand_on_either_side():
    pointed = told.two_of_a_kind("test", 30, image_size=96)
    assert pointed and len(pointed) % 2 == 0
    for left, right in zip(pointed[::2], pointed[1::2], strict=True):
        assert (left.scene, left.name) == (right.scene, right.name) and {left.side, right.side} == {"left", "right"}
        for one in (left, right):
            mask, box, point = (one.masks[by] for by in ("mask", "box", "point"))
            middle = mask.any(axis=0).nonzero()[0].mean() / 96 - 0.5
            assert (middle < 0) == (one.side == "left") and mask.shape == box.shape == point.shape == (96, 96)
            assert point.sum() == 1 and (mask >= point).all() and (box >= mask).all()
            assert bounding_box(mask) == bounding_box(box) and box.sum() == np.prod(
                np.subtract(bounding_box(box)[2:], bounding_box(box)[:2])
            )


def test_an_answer_is_right_that_names_the_side_alone(monkeypatch: pytest.MonkeyPatch):
    one = told.two_of_a_kind("test", 30, image_size=96)[0]
    assert one.side == "left" or one.side == "right"
    other = "right" if one.side == "left" else "left"
    answers = [f"It is on the {one.side}.", f"On the {other}.", f"On the {one.side}, not on the {other}.", "Yes."]
    biases = []

    def generate(model, inputs, **more) -> list[str]:
        biases.append(inputs.get("visual_bias"))
        return answers

    monkeypatch.setattr(told, "prompts", lambda processor, chats: {"chats": chats})
    monkeypatch.setattr(told, "generate", generate)
    processor = SimpleNamespace(
        batch_decode=lambda output, **more: output,
        get_visual_bias=lambda masks, strength: (len(masks), strength),
    )
    assert told.named_sides(None, processor, [one] * 4, 2.0) == [True, False, False, False]
    assert told.named_sides(None, processor, [one] * 4, 0.0) == [True, False, False, False]
    assert biases == [(4, 2.0), None]


def test_the_model_that_comes_along_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(told, "STRENGTHS", (0.0, 4.0))
    monkeypatch.setattr(sys, "argv", ["told.py", "--num_images", "60", "--out", str(tmp_path / "told.json")])
    recipe.main()
    free, *pointed = json.loads((tmp_path / "told.json").read_text())["measured"]
    assert free["value"] < 0.6 and [one["by"] for one in pointed] == ["mask", "box", "point"]
    assert all(one["value"] > 0.7 for one in pointed)
    assert "| point | 4 |" in capsys.readouterr().out
