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
"""The checkpoint that the repository ships answers as well as its `metrics.json` says."""

import json
import re
import sys
from pathlib import Path

import pytest

import modeling_agevlm
from recipes import ask
from recipes.answering.checkpoint import load_checkpoint
from recipes.evaluation.metrics import score_pope
from recipes.publishing.checkpoint import load_problems, make_card
from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.evaluation import answer_all, exchanged
from recipes.scenes.pictures import sample_scene
from recipes.scenes.questions import load_questions
from recipes.training.record import card_template
from trainers.hub import CODE


MODELS = {"guided": TRAINED_MODEL, "unguided": UNGUIDED_MODEL}
LEAST = {TRAINED_MODEL: 0.85, UNGUIDED_MODEL: 0.7}  # of the questions for existence, right


@pytest.fixture(scope="module")
def questions():
    return [q for q in load_questions("test", num_images=60, image_size=320, seed=1) if q["kind"] in POPE_KINDS]


def accuracy(checkpoint, questions, images) -> float:
    predictions = answer_all(*checkpoint, images, [q["question"] for q in questions])
    return score_pope([q["answer"] for q in questions], predictions)["accuracy"]


@pytest.mark.parametrize("folder", MODELS.values(), ids=MODELS)
def test_it_is_small(folder: Path):
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12e6


@pytest.mark.parametrize("folder", MODELS.values(), ids=MODELS)
def test_it_answers_as_its_metrics_say(folder: Path, questions: list[dict]):
    """On scenes that its metrics were not measured on: one hundred answers, so a standard error of 0.035 to 0.05."""
    metrics = json.loads((folder / "metrics.json").read_text())
    checkpoint, images = load_checkpoint(str(folder)), [q["image"] for q in questions]
    assert metrics["pope_accuracy"] >= LEAST[folder] and metrics["pope_accuracy_blind"] == 0.5
    assert accuracy(checkpoint, questions, images) == pytest.approx(metrics["pope_accuracy"], abs=0.1)
    assert accuracy(checkpoint, questions, [None] * len(questions)) == 0.5
    assert accuracy(checkpoint, questions, exchanged(images)) < 0.65


@pytest.mark.parametrize("folder", MODELS.values(), ids=MODELS)
def test_it_is_a_checkpoint_as_any_other(folder: Path):
    """It loads where nothing of this project is, and runs what this project runs."""
    assert load_problems([folder]) == [None]
    for file in Path(modeling_agevlm.__file__).parent.glob(CODE):
        copy = folder / file.name
        assert copy.read_text() == file.read_text(), f"cp modeling_agevlm/{CODE} {folder}"
    card = (folder / "README.md").read_text()
    expected = make_card(folder, f"recipes/scenes/{folder.name}", card_template())
    assert re.sub("Code: .*", "", card) == re.sub("Code: .*", "", expected)
    assert f"| `pope_accuracy` | {str(LEAST[folder])[:3]}" in card


def test_ask_finds_it(tmp_path, monkeypatch, capsys):
    scene = sample_scene("test", 3, image_size=320)
    scene.image.save(tmp_path / "scene.png")
    name = scene.objects[0].name
    arguments = ["--image", str(tmp_path / "scene.png"), "--question", f"Is there a {name} in the image?"]
    monkeypatch.setattr(sys, "argv", ["ask.py", *arguments, "--out", str(tmp_path / "ask.png")])
    ask.main()
    assert capsys.readouterr().out.startswith(("Yes, ", "No, ", "Yes.", "No."))
    assert (tmp_path / "ask.png").exists()
