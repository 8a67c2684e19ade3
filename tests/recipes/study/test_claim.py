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
"""The study of the paper's claim: what its settings share, what they change of the rows, and what it reports."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recipes.scenes.questions import load_questions
from recipes.study import report, runs, settings
from recipes.study.rows import exchange_masks, reshape, reshape_mask, training_rows
from recipes.study.settings import ABLATIONS, CONCATENATION_MODELS, HEADS, LM, LONG_MODELS, MODELS, Setting
from trainers.run_lengths import decode_rle


ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "claim"
NAME_OF_LM, NAME_OF_BASELINE = "0b4264ed42", "0eea028958"


def test_models_share_the_stages_that_they_agree_on():
    for number in (1, 2):
        assert len({setting.folder(number) for setting in MODELS.values()}) == 1
    assert MODELS["age-vlm"].folder(3) == MODELS["age-vlm-lm"].folder(3)
    assert MODELS["ca-baseline"].folder(3) == MODELS["ca-baseline-frozen"].folder(3)
    assert len({setting.folder(4) for setting in MODELS.values()}) == len(MODELS)
    # without guidance it makes no difference what the guidance would have been
    assert replace(LM, guided=(), weight=3.0).folder(4) == replace(LM, guided=()).folder(4)
    # stage 3 does not know how long stage 4 will be
    long = LONG_MODELS["age-vlm-lm, long"]
    assert long.folder(3) == LM.folder(3) and long.folder(4) != LM.folder(4)


def test_every_ablation_is_another_model():
    for models in (ABLATIONS, CONCATENATION_MODELS):
        assert len({setting.folder(4) for setting in models.values()}) == len(models)
    assert MODELS["age-vlm-lm"] == ABLATIONS["base (age-vlm-lm)"]


def test_the_variants_run_the_stages():
    for name, setting in MODELS.items():
        assert setting.variant(4) == name.partition(",")[0]
        assert (setting.variant(3) == "age-vlm") == name.startswith("age-vlm")
    for setting in CONCATENATION_MODELS.values():
        kinds = [setting.variant(number) for number in (2, 3, 4)]
        assert kinds == ["concatenation"] + ["concatenation-guided" if setting.guided else "concatenation"] * 2
    with pytest.raises(ValueError, match="no variant that guides stage 4"):
        Setting(guided=(4,)).variant(4)


def test_what_guidance_adds_is_of_the_same_architecture_and_steps():
    for name, setting in CONCATENATION_MODELS.items():
        unguided = CONCATENATION_MODELS[report.unguided_of(name)]
        assert unguided == replace(
            setting, guided=(), guidance_layers=None, guidance_heads=None, weight=1.0, denied=True
        )
    assert report.unguided_of("cross-attention, all heads") == "cross-attention, no guidance"


def test_exchanged_masks_belong_to_other_rows():
    rows = [[{"mask": f"{n}{k}", "text": k} for k in range(count)] for n, count in enumerate((2, 0, 3, 1))]
    exchanged = exchange_masks(rows)
    assert [[region["text"] for region in row] for row in exchanged] == [[0, 1], [], [0, 1, 2], [0]]
    assert all(region["mask"][0] != str(n) for n, row in enumerate(exchanged) for region in row)
    # what is nowhere stays so, and lends no mask
    rows[0][1]["mask"] = None
    (first, second), _, third, _ = exchange_masks(rows)
    assert first["mask"] == "20" and second["mask"] is None and [r["mask"] for r in third] == ["30"] * 3


def test_denied_words_are_guided_or_left_alone(monkeypatch):
    monkeypatch.setitem(settings.STEPS, "llama", {1: 2, 2: 2, 3: 2, 4: 10})
    with_them, without = (
        training_rows(replace(HEADS["one head, sink"], denied=denied), 4) for denied in (True, False)
    )
    nowhere = [[region["mask"] is None for region in row] for row in with_them["regions"]]
    assert any(map(any, nowhere))
    kept = [[region for region in row if region["mask"]] for row in with_them["regions"]]
    assert without["regions"][:] == kept and without["messages"][:] == with_them["messages"][:]


def test_settings_of_before_keep_their_names():
    """The results of models that were trained before there were heads to choose are found by these."""
    assert LM.folder(4) == "stage4-" + NAME_OF_LM
    assert replace(LM, guided=()).folder(4) == "stage4-" + NAME_OF_BASELINE
    # without guidance it makes no difference which heads it would have had, but the sink does
    unguided = replace(LM, guided=())
    assert replace(unguided, guidance_heads=(0,), denied=False).folder(4) == unguided.folder(4)
    assert replace(unguided, attention_sink=True).folder(1) != unguided.folder(1)
    changes = [{}, {"guidance_heads": (0,)}, {"guidance_layers": (1,)}, {"attention_sink": True}, {"denied": False}]
    changes += [{"fades": True}, {"positions": True}]
    assert len({replace(LM, **change).folder(4) for change in changes}) == len(changes)
    assert replace(LM, fades=True).folder(3) == LM.folder(3)


def test_interval_over_pictures():
    """By hand: one model is right on every picture, the other on half of them."""
    right = {0: {"by_picture": {"pope_accuracy": " ".join(["2/2"] * 50)}}}
    half = {0: {"by_picture": {"pope_accuracy": " ".join(["1/2"] * 50)}}}
    assert report.picture_interval(right, half, "pope_accuracy") == "[+0.500, +0.500]"
    mixed = {0: {"by_picture": {"pope_accuracy": " ".join(["2/2", "0/2"] * 25)}}}
    low, high = (float(bound) for bound in report.picture_interval(right, mixed, "pope_accuracy")[1:-1].split(","))
    # the standard error of a share of one half over 50 pictures
    assert low == pytest.approx(0.5 - 1.96 * 0.5 / 50**0.5, abs=0.03)
    assert high == pytest.approx(0.5 + 1.96 * 0.5 / 50**0.5, abs=0.03)


def test_rows_with_masks(monkeypatch):
    monkeypatch.setitem(settings.STEPS, "llama", {1: 2, 2: 2, 3: 10, 4: 2})
    monkeypatch.setattr(settings, "BATCH_SIZE", 16)
    plain = training_rows(LM, 3)
    part = training_rows(replace(LM, masked_share=0.1), 3)
    masked = [n for n, regions in enumerate(part["regions"]) if regions]
    assert len(masked) == 16
    assert all(part[n]["regions"] == plain[n]["regions"] for n in masked)
    assert part["messages"][:] == plain["messages"][:]
    other = training_rows(replace(LM, masks="other"), 3)
    assert all(
        a["mask"] != b["mask"] if a["mask"] else b["mask"] is None
        for mine, theirs in zip(plain["regions"], other["regions"], strict=True)
        for a, b in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("kind", ["stretched", "padded", "padded in the picture"])
def test_masks_go_through_the_picture_s_change(kind):
    question = next(q for q in load_questions("test", num_images=12, image_size=256) if q["mask"])
    mask = decode_rle(question["mask"])
    changed = decode_rle(reshape_mask(question["mask"], kind))
    picture = reshape(question["image"], kind)
    assert changed.shape == (picture.height, picture.width)
    top = 48 if kind == "padded in the picture" else 0
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    new_rows, new_columns = (np.flatnonzero(changed.any(axis)) for axis in (1, 0))
    assert abs(new_rows[0] - (top + rows[0] * 5 / 8)) <= 1.5 and abs(new_rows[-1] - (top + rows[-1] * 5 / 8)) <= 1.5
    assert abs(new_columns[0] - columns[0]) <= 1.5 and abs(new_columns[-1] - columns[-1]) <= 1.5


def test_accuracy_at_the_same_loss():
    curve = [{"step": 1, "lm_loss": 0.6, "pope_accuracy": 0.5}, {"step": 2, "lm_loss": 0.4, "pope_accuracy": 0.7}]
    assert report.at_loss(curve, 0.5) == pytest.approx(0.6)
    assert math.isnan(report.at_loss(curve, 0.3))
    better = [{"step": 1, "lm_loss": 0.6, "pope_accuracy": 0.5}, {"step": 2, "lm_loss": 0.3, "pope_accuracy": 0.8}]
    first, second = ({0: {"curve": points}, 1: {"curve": curve}} for points in (better, curve))
    del second[1]
    row = report.matched_rows("a", "b", first, second)
    assert row == [["a / b", "0", "0.400", "0.700", "0.700", "2", "never"]]
    assert report.reached(better, 0.8) == 2 and report.reached(better, 0.81) is None


def test_interval():
    assert report.interval([0.5]) == "0.500"
    # 4.30 x 0.1 / sqrt(3)
    assert report.interval([0.4, 0.5, 0.6]) == "0.500 ± 0.248"


def test_what_guidance_adds_is_of_the_same_seeds():
    guided = {seed: {"metrics": {"x": value}} for seed, value in enumerate((0.5, 0.7, 0.9))}
    unguided = {seed: {"metrics": {"x": value}} for seed, value in enumerate((0.4, 0.6))}
    assert report.differences(guided, unguided, "x") == "0.100 ± 0.000"


def test_what_has_a_result_is_not_run(tmp_path, monkeypatch, capsys):
    path = runs.result_file(tmp_path / "results", LM)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    runs.run(tmp_path / "out", tmp_path / "results", [("base", LM)], processes=1)
    assert "1 of 1 results are there; 0 stages and evaluations to go" in capsys.readouterr().out


def test_the_committed_page_is_that_of_the_committed_results(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results")
    report.report(tmp_path)
    for name in ("page.md", "results.csv"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text()


LOCALIZING = "concatenation, three heads that localize already, else the same"


@pytest.mark.slow
def test_a_model_from_its_first_stage_to_the_page(tmp_path, monkeypatch):
    monkeypatch.setitem(settings.STEPS, "llama", {1: 2, 2: 2, 3: 2, 4: 2})
    monkeypatch.setattr(settings, "BATCH_SIZE", 4)
    monkeypatch.setattr(settings, "TEST_IMAGES", 20)
    monkeypatch.setattr(settings, "CURVE_POINTS", 2)
    padded = ABLATIONS["wide pictures, padding masked"]
    concatenation = [CONCATENATION_MODELS[name] for name in ("concatenation, no guidance", LOCALIZING)]
    for setting in (LM, padded, *concatenation):
        for number in range(1, 5):
            if not (tmp_path / "stages" / setting.folder(number) / "config.json").exists():
                runs.train(tmp_path / "stages", setting, number)
        runs.evaluate(tmp_path / "stages", tmp_path, setting)
    report.report(tmp_path)
    result = json.loads(runs.result_file(tmp_path, LM).read_text())
    assert [point["step"] for point in result["curve"]] == [1, 2]
    page = (tmp_path / "page.md").read_text()
    assert "| wide pictures, padding masked |" in page and (tmp_path / "ablations.png").exists()
    assert "| age-vlm-lm (1) |" in page and (tmp_path / "curves.png").exists()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 5
    assert "| concatenation, no guidance (1) |" in page and "| perplexity of text without a picture |" in page
    assert (tmp_path / "concatenation.png").exists()


def test_the_whole_study_needs_no_further_package():
    """What it takes SmolLM2's package for is run where it is named."""
    assert {setting.text for _, setting in runs.planned(None, 3)} == {"llama"}
    assert {setting.text for _, setting in runs.planned("smollm2", 3)} == {"smollm2"}
