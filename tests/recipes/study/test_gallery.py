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
"""The gallery tells what the models that come along answer, in the order of the test split."""

import re
import sys
from pathlib import Path

import PIL.Image
import pytest

from recipes import gallery
from recipes.answering.answers import answer
from recipes.answering.checkpoint import load_checkpoint
from recipes.evaluation.rules import score_count
from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.scenes.questions import load_questions


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gallery.py", *map(str, options)])
    gallery.main()


def test_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = {}
    monkeypatch.setattr(
        "recipes.drawing.attention.save_attention_sheet", lambda path, rows, columns: drawn.update({path.stem: rows})
    )
    run(monkeypatch, "--out", tmp_path, "--num_images", 20, "--questions", 2)
    page = (tmp_path / "page.md").read_text()
    questions = [q for q in load_questions("test", num_images=20, image_size=320) if q["kind"] == "count"]
    for folder, name in ((TRAINED_MODEL, "with guidance"), (UNGUIDED_MODEL, "without guidance")):
        said = answer(
            *load_checkpoint(str(folder)), [q["image"] for q in questions], [q["question"] for q in questions]
        )
        right = sum(score_count(q["answer"], text) for q, text in zip(questions, said, strict=True))
        assert f"{name}: {right} of {len(questions)} right" in page.split("## How many?")[1].split("##")[0]
        assert [row[name][0] for row in drawn["questions-count"]] == said[:2]
    assert [row["question"].split(" Words:")[0] for row in drawn["questions-count"]] == [
        q["question"] for q in questions[:2]
    ]
    assert PIL.Image.open(tmp_path / "hero.png").width > 1000
    assert {f"{name}.png" for name in (*drawn, "hero")} == set(re.findall(r"\]\((\S+)\)", page))


@pytest.mark.parametrize(("option", "value"), [("questions", 0), ("questions", 21), ("num_images", 19)])
def test_too_few_are_refused(option: str, value: int, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match=f"error: `--{option}` has to be "):
        run(monkeypatch, f"--{option}", value)
