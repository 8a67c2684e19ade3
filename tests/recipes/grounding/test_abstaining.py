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
"""What is left of answers and captions without what nothing in the picture speaks for."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from recipes import abstain as recipe
from recipes.evaluation.rules import parse_yes_no
from recipes.grounding import abstaining
from recipes.grounding.abstaining import Claim
from recipes.inside.vlm import load_vlm
from recipes.scenes import TRAINED_MODEL
from recipes.scenes.evaluation import attend, caption
from recipes.scenes.pictures import sample_scene
from recipes.scenes.questions import find_classes, load_questions


def claim(scene: int, name: str, is_false: bool, sink: float) -> Claim:
    return Claim(scene, name, is_false, {"score": 0.5, "sink": sink, "spread": 1 - sink, "improbable": sink})


CLAIMS = [
    claim(0, "cup", False, 0.05),
    claim(0, "cup", False, 0.15),
    claim(0, "dog", True, 0.9),
    claim(1, "cat", False, 0.55),
    claim(1, "dog", True, 0.35),
]


def test_detection_by_hand():
    found = abstaining.detection(CLAIMS)
    assert (found["num_claims"], found["num_false"]) == (5, 2)
    assert found["sink"]["value"] == pytest.approx(
        5 / 6
    )  # of the six pairs, the cat and the second dog alone are wrong
    assert found["spread"]["value"] == pytest.approx(1 / 6) and found["score"]["value"] == 0.5


def test_what_is_left_by_hand():
    answers = {entry["most"]: entry for entry in abstaining.kept_answers(CLAIMS)}
    assert [answers[most]["answered"]["value"] for most in (1.0, 0.5, 0.3, 0.1)] == pytest.approx([1, 0.6, 0.4, 0.2])
    assert [answers[most]["accuracy"]["value"] for most in (1.0, 0.5, 0.3, 0.1)] == pytest.approx([0.6, 2 / 3, 1, 1])
    captions = {entry["most"]: entry for entry in abstaining.kept_mentions(CLAIMS, [{"cup", "fork"}, {"cat"}])}
    assert [captions[most]["chair_i"]["value"] for most in (1.0, 0.5, 0.1)] == pytest.approx([0.4, 1 / 3, 0])
    assert [captions[most]["chair_recall"]["value"] for most in (1.0, 0.5, 0.1)] == pytest.approx(
        [2 / 3, 1 / 3, 1 / 3]
    )


def test_curves_end_with_everything():
    answers, captions = abstaining.curves(CLAIMS), abstaining.curves(CLAIMS, [{"cup", "fork"}, {"cat"}])
    assert all(points[-1] == pytest.approx((1.0, 0.6)) for points in answers.values())
    sink, score = (answers[abstaining.DOUBTS[name]] for name in ("sink", "score"))
    assert sink[0] == (0.2, 1.0) and len(score) == 1  # all alike
    assert all(points[-1] == pytest.approx((2 / 3, 0.4)) for points in captions.values())


def test_claims_are_those_of_the_model():
    """What is said, whether it is true, and what of the words' attention is on nothing, as the evaluation of scenes has it."""
    vlm, number = load_vlm(str(TRAINED_MODEL)), 6
    questions = [q for q in load_questions("test", number, 256) if q["answer"] in ("yes", "no")]
    claims = abstaining.claims_of_answers(vlm, questions)
    answers = [vlm.decode(vlm.generate([q["image"]], [q["question"]])[0]) for q in questions]
    assert [one.is_false for one in claims] == [
        parse_yes_no(answer) != question["answer"] for answer, question in zip(answers, questions, strict=True)
    ]
    for one, answer, question in zip(claims, answers, questions, strict=True):
        ((_, sink, _),) = attend(vlm.model, vlm.processor, [question])
        share = sink[1].mean().item()
        assert one.doubts["sink"] == pytest.approx(share if parse_yes_no(answer) == "yes" else 1 - share, abs=1e-3)
        assert all(0 <= doubt <= 1 for doubt in one.doubts.values())
    scenes = [sample_scene("test", n, 0, 256) for n in range(number)]
    mentions = abstaining.claims_of_captions(vlm, scenes)
    captions = caption(vlm.model, vlm.processor, [scene.image for scene in scenes])
    for n, (scene, text) in enumerate(zip(scenes, captions, strict=True)):
        named = sorted(find_classes(text))
        assert sorted(one.name for one in mentions if one.scene == n) == named
        there = {thing.name for thing in scene.objects}
        assert all(one.is_false == (one.name not in there) for one in mentions if one.scene == n)


def test_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["abstain.py", "--num_images", "12", "--out", str(tmp_path / "a")])
    recipe.main()
    result = json.loads((tmp_path / "a.json").read_text())
    left = [entry["chair_recall"]["value"] for entry in result["captions"]]
    assert (tmp_path / "a.png").exists() and left == sorted(left, reverse=True) and np.isfinite(left).all()
    assert "| attention on nothing | " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["abstain.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit, match="error: "):
        recipe.main()
