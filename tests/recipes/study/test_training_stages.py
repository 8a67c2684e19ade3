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

from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
import torch

from recipes.drawing.benefit import save_benefit
from recipes.scenes.evaluation import Judged
from recipes.study.plans import ALL_VARIANTS, LLM_LAYERS, SCALES, VARIANTS, lineage, plan
from recipes.study.results import benefit, right_by_one, sheet_rows, wilson
from recipes.study.stages import rows_of, tasks_of


def test_stages_that_variants_share_run_once():
    folders = [folder for folder, *_ in plan(VARIANTS)]
    assert folders == ["stage1", "stage2", "stage3-guided", "stage3-unguided", "age-vlm-lm", "ca-baseline"]
    runs = plan(ALL_VARIANTS)
    assert len(runs) == 8
    assert lineage(runs, "ca-baseline") == ["stage1", "stage2", "stage3-unguided", "ca-baseline"]
    assert lineage(runs, "age-vlm-lm") == ["stage1", "stage2", "stage3-guided", "age-vlm-lm"]


def test_what_is_done_does_not_run_again(tmp_path: Path):
    runs = plan(VARIANTS)
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "config.json").touch()
    (tmp_path / "stage2" / "checkpoint-20").mkdir(parents=True)  # begun, not done
    tasks = tasks_of(tmp_path, "llama", SCALES["llama"], runs)
    assert {name: task.after for name, task in tasks.items()} == {
        "stage2": "stage1",
        "stage3-guided": "stage2",
        "stage3-unguided": "stage2",
        "age-vlm-lm": "stage3-guided",
        "ca-baseline": "stage3-unguided",
    }
    steps = SCALES["llama"].steps
    assert tasks["stage2"].arguments[-1] == steps[3] + steps[4] and tasks["ca-baseline"].arguments[-1] == 0


def test_rows_have_the_shares_of_their_tasks():
    scale = replace(SCALES["llama"], steps={1: 1, 2: 1, 3: 2, 4: 10}, shares={"existence": 0.75, "caption": 0.25})
    rows, first, captions = rows_of(4, scale), rows_of(1, scale), rows_of(3, scale)
    answers = [row["messages"][1]["content"] for row in rows]
    assert len(rows) == 40 and sum(answer in ("Yes.", "No.") for answer in answers) == 30
    assert rows[0]["length"] == sum(len(message["content"]) for message in rows[0]["messages"])
    # Stages 1 to 3 read the same captions, as many as they have steps for.
    assert len(captions) == 8 and first["messages"] == captions["messages"][:4]


def test_cross_attention_layers_are_those_of_the_checkpoints():
    from modeling_agevlm.configuration_agevlm import default_cross_attention_layers

    assert LLM_LAYERS["smollm2"] == default_cross_attention_layers(30)


def test_intervals_of_shares():
    """Wilson's, by the table of Brown, Cai and DasGupta (2001): 0 of 10 ends at 0.278, 5 of 10 begins at 0.237."""
    assert wilson(0, 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)


def judged(truth: str, prediction: str, kind: str = "random") -> Judged:
    mask = {"size": [1, 1], "counts": "01"} if truth != "no" else None
    question = {"question": "Is it?", "answer": truth, "kind": kind, "mask": mask, "image": None}
    question["phrases"] = [{"text": "it", "mask": mask}]
    return Judged(question, prediction, torch.zeros(2, 1, 4), torch.tensor([[0.0], [0.25]]), torch.zeros(2, 4))


def test_the_sheet_begins_with_a_question_that_one_model_answers_right():
    kinds = [("no", "random"), ("yes", "random"), ("two", "count"), ("left", "relation"), ("yes", "adversarial")]
    truths = [*kinds * 2, ("no", "popular"), ("yes", "popular"), ("no", "popular"), ("yes", "popular")]
    guided, other, third = (
        [judged(truth, prediction, kind) for (truth, kind), prediction in zip(truths, said, strict=True)]
        for said in (["No.", *["Yes."] * 9, "No.", "No.", "No.", "Yes."], ["Yes."] * 14, ["No."] * 14)
    )
    assert right_by_one({"a": guided, "b": other}) == right_by_one({"a": other, "b": guided}) == [1, 0]
    for j in (guided[1], other[1], third[1]):
        j.question["question"] = "Is that?"  # of another thing
    assert right_by_one({"a": guided, "b": other}) == [13, 12]
    assert right_by_one({"a": guided, "b": guided}) == right_by_one({"a": other, "b": third}) == []
    both = {"a": guided, "b": other, "not drawn": guided}
    rows = sheet_rows(both, {"a": "with", "b": "without"}, num_rows=5)
    assert [row["truth"] for row in rows] == ["yes", "no", "yes", "two", "left"]
    assert rows[0]["with"][0] == "Yes." and rows[1]["with"][0] == "No." and rows[1]["without"][0] == "Yes."
    assert rows[0]["with"][2] == 0.25


def test_what_guidance_is_good_for(tmp_path: Path):
    questions = [("yes", "random"), ("no", "popular"), ("no", "adversarial"), ("two", "count")]
    both = {
        "age-vlm-lm": [judged(truth, truth.capitalize(), kind) for truth, kind in questions],
        "ca-baseline": [judged(truth, "Yes.", kind) for truth, kind in questions],
    }
    for j in both["age-vlm-lm"]:  # points at the first cell, the masks' only one
        j.attention[1:, :, 0], j.cells[1:, 0] = 0.75, 1.0
    for j in both["ca-baseline"]:
        j.attention[1:, :, 1], j.cells[1:, 0] = 0.75, 1.0
    metrics = {v: {"uniform_mass": 0.25, "in_mask_mass": 0.5, "absence_auc": 0.9} for v in both}
    names = {"ca-baseline": "without guidance", "age-vlm-lm": "with guidance"}
    existence, absence, mass, points = benefit(both, metrics, names)
    assert existence.values["with guidance"] == wilson(3, 3) and existence.values["without guidance"] == wilson(1, 3)
    assert points.values["with guidance"] == wilson(2, 2) and points.values["without guidance"] == wilson(0, 2)
    assert absence.values["with guidance"] == (0.9,) * 3 and mass.chance == 0.25
    for j in (*both["age-vlm-lm"], *both["ca-baseline"]):
        j.question["image"] = PIL.Image.new("RGB", (64, 64))
    rows = sheet_rows(both, names, num_rows=1)
    save_benefit(tmp_path / "benefit.png", rows, list(names.values()), [existence, absence, mass, points])
    assert PIL.Image.open(tmp_path / "benefit.png").size[0] > 1000
