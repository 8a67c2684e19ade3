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
"""Every recipe runs from its command line, from another directory, and refuses starts that make no sense."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from huggingface_hub import constants
from testing_utils import up_to_rounding

from modeling_agevlm import AgeVlmForConditionalGeneration
from recipes.scenes.rows import load_scenes
from recipes.terminal.tables import plain_table
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.data_sets import load_rows
from recipes.training.stage import Augmenting, load_model
from trainers import get_stage
from trainers.rows import check_regions


RECIPES = Path(__file__).parents[3] / "recipes"
PARTS = ["--vision", str(RECIPES / "scenes/backbones/convnext"), "--text", str(RECIPES / "scenes/backbones/llama")]
PARTS += ["--image_size", "64", "--cross_attention_layers", "2", "5"]
TWO_STEPS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--num_scenes", "8", "--logging_steps", "1"]
TWO_STEPS += ["--use_cpu", "true", "--save_strategy", "no"]


def run(tmp_path: Path, *command: str, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.CompletedProcess:
    """Runs a recipe in `tmp_path`, where nothing of the repository lies."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    name, *arguments = command
    return subprocess.run(
        [*launcher, str(RECIPES / name), *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


def log_of(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_four_stages_and_ask_from_the_command_line(tmp_path):
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu")
    results = [
        run(tmp_path, "stage1.py", *PARTS, *TWO_STEPS, "--output_dir", "s1"),
        run(tmp_path, "stage2.py", "--model_name_or_path", "s1", *TWO_STEPS, "--output_dir", "s2"),
        run(tmp_path, "stage3.py", "--model_name_or_path", "s2", *TWO_STEPS, "--output_dir", "s3", launcher=launch),
    ]
    (tmp_path / "stage4.yaml").write_text(
        "model_name_or_path: s3\nvariant: age-vlm-lm\nguidance_normalization: max\noutput_dir: s4\nuse_cpu: true\n"
        "max_steps: 2\nper_device_train_batch_size: 2\nnum_scenes: 8\nlogging_steps: 1\nsave_strategy: 'no'\n"
    )
    results.append(run(tmp_path, "stage4.py", "--config", "stage4.yaml"))
    PIL.Image.fromarray(np.zeros((50, 80, 3), np.uint8)).save(tmp_path / "picture.png")
    results.append(
        run(
            tmp_path, "ask.py", "--model", "s4", "--image", "picture.png", "--question", "Is there a cup in the image?"
        )
    )
    for result in results:
        assert result.returncode == 0, result.stderr[-2000:]

    assert "lm_loss" in log_of(tmp_path / "s1")[0]
    stage3 = log_of(tmp_path / "s3")[0]
    assert stage3["loss"] == up_to_rounding(stage3["lm_loss"] + stage3["guidance_loss"])
    stage4 = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "s4")
    assert stage4.config.training_stage == 4
    assert PIL.Image.open(tmp_path / "runs/ask.png").width > 500
    assert np.load(tmp_path / "runs/ask.npz")["question: cup"].shape == (50, 80)
    saved = {path.name for path in (tmp_path / "s4").iterdir()}
    assert {"modeling_agevlm.py", "processing_agevlm.py", "chat_template.jinja", "model.safetensors"} <= saved


def test_init_and_scenes_from_the_command_line(tmp_path):
    result = run(tmp_path, "init.py", *PARTS, "--output_dir", "init")
    assert result.returncode == 0, result.stderr[-2000:]
    assert AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "init").config.training_stage == 0
    result = run(tmp_path, "stage2.py", "--model_name_or_path", "init", *TWO_STEPS, "--output_dir", "s2")
    assert result.returncode != 0
    assert (
        "Stage 2 starts from a checkpoint of stage 1, or trains one of stage 2 on, but init is one of stage 0"
        in result.stderr
    )
    assert "Traceback" not in result.stderr


def test_backbones_from_the_command_line(tmp_path):
    result = run(tmp_path, "backbones.py", "--out", "made", "--convnext", "0.0005", "--llama_steps", "2")
    assert result.returncode == 0, result.stderr[-2000:]
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"convnext", "llama"}


@pytest.mark.parametrize("number", [2, 3, 4])
def test_a_later_stage_needs_a_checkpoint(number):
    with pytest.raises(ValueError, match=f"Stage {number} starts from a checkpoint of stage {number - 1}"):
        load_model(ModelArguments(), get_stage(number))


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        load_model(ModelArguments(model_name_or_path=str(tmp_path)), get_stage(2))


def test_stage_one_builds_from_the_default_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="^convnext_large_mlp.clip_laion2b_ft_soup_320 cannot be loaded: We couldn't"):
        load_model(ModelArguments(text=str(RECIPES / "scenes/backbones/llama")), get_stage(1))
    with pytest.raises(ValueError, match="^meta-llama/Llama-3.2-1B-Instruct cannot be loaded: We couldn't"):
        load_model(ModelArguments(vision=str(RECIPES / "scenes/backbones/convnext")), get_stage(1))


def test_a_guided_stage_needs_regions():
    rows = load_scenes("train", "caption", 4, image_size=64)
    check_regions(rows, 1.0, False)
    plain = rows.remove_columns("regions")
    untyped = [plain.map(lambda row, value=value: {"regions": value}) for value in ([], None)]
    for without in (plain, rows.map(lambda row: {"regions": []}, features=rows.features), *untyped):
        with pytest.raises(ValueError, match="no row of the data set has a region"):
            check_regions(without, 1.0, True)
        check_regions(without, 0.0, False)


@pytest.mark.parametrize("typed", [False, True])
def test_a_stage_guided_by_what_is_nowhere_alone_needs_a_sink(typed):
    rows = load_scenes("train", "caption", 4, image_size=64)
    region = {"mask": None, "image": 0, "text": None, "span": None, "message": 0}
    nowhere = rows.remove_columns("regions").map(
        lambda row: {"regions": [region]}, features=rows.features if typed else None
    )
    assert all(row["regions"] == [region] for row in nowhere)
    with pytest.raises(
        ValueError, match="every region of the data set is nowhere in its picture .* an `attention_sink`"
    ):
        check_regions(nowhere, 1.0, False)
    check_regions(nowhere, 1.0, True)
    check_regions(nowhere, 0.0, False)
    if typed:
        check_regions(concatenate_datasets([nowhere, rows]), 1.0, False)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("first", [{"mask": None, "image": 0, "text": None, "span": None, "message": 0}, None])
def test_files_of_a_folder_need_not_say_what_they_do_not_hold(tmp_path, streaming, first):
    """In the first file every mask is null, or there are no regions: its types say nothing of the other files."""
    mask = {"size": [2, 2], "counts": "04"}
    second = {"mask": mask, "image": 0, "text": "cup", "span": [2, 5], "message": 0}
    messages = [{"role": "user", "content": "A cup"}]
    for n, region in enumerate((first, second)):
        row = {"images": [], "messages": messages, "regions": [] if region is None else [region]}
        Dataset.from_list([row]).to_parquet(tmp_path / f"train-{n}.parquet")
    rows = load_rows(DataArguments(dataset_name=str(tmp_path), streaming=streaming), get_stage(3), 96)
    assert [row["regions"] for row in rows] == [[] if first is None else [first], [second]]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_read_from_folders(tmp_path, streaming):
    rows = load_scenes("train", "instruction", 4, image_size=64)
    rows.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet/train-00000.parquet")
    for name in ("saved", "parquet"):
        data = DataArguments(dataset_name=str(tmp_path / name), streaming=streaming)
        read = list(load_rows(data, get_stage(4), image_size=64))
        assert [row["messages"] for row in read] == [row["messages"] for row in rows]
        assert [row["regions"] for row in read] == [row["regions"] for row in rows]


def test_pictures_of_a_batch_are_changed_and_nothing_else():
    batch = {"pixel_values": torch.rand(2, 3, 3, 4, 4), "labels": torch.arange(4)}
    rows, seen = [{"images": []}], []

    def change(pictures: torch.Tensor) -> torch.Tensor:
        seen.append(pictures.shape)
        return -pictures

    found = Augmenting(lambda given: dict(batch) if given is rows else {}, change)(rows)
    assert seen == [(6, 3, 4, 4)] and torch.equal(found["pixel_values"], -batch["pixel_values"])
    assert found["labels"] is batch["labels"]
    assert Augmenting(lambda given: {"labels": batch["labels"]}, change)(rows).keys() == {"labels"}


def test_table():
    text = plain_table({"a": {"mass": 0.5}, "b": {"mass": 0.25}})
    assert "0.500" in text and "0.250" in text and text.splitlines()[0].split() == ["a", "b"]
