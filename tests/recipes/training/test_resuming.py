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
"""What a stage does with what is in its output folder, and what is left of one that was told to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_recipes import PARTS, RECIPES, run

from modeling_agevlm import AgeVlmForConditionalGeneration
from recipes.training import stage as stages
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.resuming import check_finished, check_writable, checkpoint_to_resume
from recipes.training.stage import load_model, run_stage
from trainers import GuidedSFTConfig, GuidedSFTTrainer, get_stage


BACKBONES = RECIPES / "scenes/backbones"


def first_stage(out: Path, **over: Any) -> GuidedSFTTrainer:
    """Stage 1, four scenes, two of them a step."""
    names = ModelArguments.__dataclass_fields__
    parts = {"vision": str(BACKBONES / "convnext"), "text": str(BACKBONES / "llama"), "image_size": 64}
    parts |= {"cross_attention_layers": [2]} | {name: over.pop(name) for name in list(over) if name in names}
    data = DataArguments(num_scenes=over.pop("num_scenes", 4))
    training = {
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "save_steps": 1,
        "learning_rate": 1e-3,
        "seed": 3,
    }
    training |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_steps": 2} | over
    return run_stage(1, ModelArguments(**parts), data, GuidedSFTConfig(output_dir=str(out), **training))


def rates(folder: Path) -> list[float]:
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["learning_rate"] for entry in log if "learning_rate" in entry]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two steps, its model and both checkpoints."""
    out = tmp_path_factory.mktemp("finished") / "s1"
    first_stage(out)
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "s1"))


OTHERS = {
    "learning_rate": (1e-5, "its learning_rate was 0.001, not 1e-05"),
    "seed": (4, "its seed was 3, not 4"),
    "num_scenes": (6, "its dataset was '4 scenes, seed 0 .train.', not '6 scenes, seed 0 .train.'"),
    "per_device_train_batch_size": (1, "its rows_per_step was 2, not 1"),
    "variant": ("ca-baseline", "its variant was 'age-vlm', not 'ca-baseline'"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    value, message = OTHERS[name]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(stages, "load_model", None)  # it is found before that
    with pytest.raises(ValueError, match=f"checkpoint-2 is of another run: {message}. Go on with what"):
        first_stage(folder, resume_from_checkpoint="true", **{name: value})
    with pytest.raises(ValueError, match=r"s1 holds the checkpoints of another run \(checkpoint-1, checkpoint-2\)"):
        first_stage(folder, **{name: value})
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_rows_of_the_same_name_but_another_number_are_another_run(folder: Path):
    record = json.loads((folder / "checkpoint-2/training.json").read_text())
    assert record[-1]["rows"] == 4
    record[-1]["rows"] = 5
    (folder / "checkpoint-2/training.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="its rows was 5, not 4"):
        first_stage(folder, resume_from_checkpoint="true")


def test_a_run_goes_on_with_more_steps_and_says_so(folder: Path, capsys: pytest.CaptureFixture):
    first = rates(folder)
    trainer = first_stage(folder, resume_from_checkpoint="True", max_steps=3, save_total_limit=1)
    assert trainer.state.global_step == 3 and rates(folder)[:2] == first
    assert f"Goes on from {folder / 'checkpoint-2'}, after step 2 of 2. There are 3 now" in capsys.readouterr().out
    record = json.loads((folder / "training.json").read_text())
    assert [entry["steps"] for entry in record] == [3]
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-3"}


def test_overwriting_begins_anew(folder: Path):
    first_stage(folder, overwrite_output_dir=True, learning_rate=1e-5, save_strategy="no")
    assert max(rates(folder)) <= 1e-5 and not list(folder.glob("checkpoint-*"))
    record = json.loads((folder / "training.json").read_text())
    assert record[-1]["hyperparameters"]["learning_rate"] == 1e-5


def test_overwriting_removes_nothing_before_it_begins(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "load_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        first_stage(folder, overwrite_output_dir=True, learning_rate=1e-5)
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    monkeypatch.undo()
    with pytest.raises(ValueError, match="would clear away .*checkpoint-1, from which the run starts"):
        first_stage(folder, overwrite_output_dir=True, model_name_or_path=str(folder / "checkpoint-1"))


def test_true_on_a_first_start_begins_and_false_is_no_path(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "new"
    (out / "checkpoint-7").mkdir(parents=True)  # as a copy that was cut off leaves it
    assert first_stage(out, resume_from_checkpoint="true", save_strategy="no", max_steps=1).state.global_step == 1
    printed = capsys.readouterr().out
    assert f"There is no checkpoint in {out} to go on from: the run begins. (Not complete, and left alone: " in printed
    for word in ("false", "False", None):
        assert checkpoint_to_resume(str(tmp_path / "none"), word, False, []) is None
    with pytest.raises(ValueError, match="or the folder of a checkpoint, but there is no folder s9/checkpoint-1"):
        checkpoint_to_resume(str(out), "s9/checkpoint-1", False, [])
    with pytest.raises(ValueError, match="leave one of them out"):
        checkpoint_to_resume(str(out), "true", True, [])


def test_a_checkpoint_that_does_not_say_whose_it_is_is_refused(folder: Path):
    with pytest.raises(ValueError, match="s1 is no checkpoint to go on from"):  # though its model is complete
        (folder / "trainer_state.json").unlink()
        first_stage(folder, resume_from_checkpoint=str(folder))
    (folder / "checkpoint-2/training.json").unlink()
    with pytest.raises(ValueError, match="nothing in it says of which run it is"):
        first_stage(folder, resume_from_checkpoint="true")


def test_a_checkpoint_of_a_folder_may_be_named(folder: Path, tmp_path: Path):
    record = json.loads((folder / "checkpoint-1/training.json").read_text())
    named = str(folder / "checkpoint-1")
    assert checkpoint_to_resume(str(folder), named, False, record) == Path(named)
    assert checkpoint_to_resume(str(tmp_path / "other"), named, False, record) == Path(named)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with pytest.raises(ValueError, match="other holds the checkpoints of another run"):
        checkpoint_to_resume(str(other), named, False, record)


def test_a_model_beside_a_run_that_has_not_ended_is_not_taken_for_its(folder: Path):
    check_finished(str(folder))
    last = folder / "checkpoint-2/training.json"
    record = json.loads(last.read_text())
    for change in ({"steps": 3}, {"variant": "ca-baseline"}):
        last.write_text(json.dumps([{**record[0], **change}]))
        with pytest.raises(
            ValueError, match="holds checkpoint-2 of a run that has not ended, beside the model of another"
        ):
            load_model(ModelArguments(model_name_or_path=str(folder)), get_stage(2))
    shutil.rmtree(folder / "checkpoint-2")
    assert load_model(ModelArguments(model_name_or_path=str(folder)), get_stage(2))[0].config.training_stage == 1


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Nothing can be saved in .*file \(File exists\): choose another"):
        check_writable(str(tmp_path / "file"))
    result = run(tmp_path, "stage1.py", *PARTS, "--output_dir", "file/s1", "--use_cpu", "true", "--max_steps", "1")
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith(
        "error: Nothing can be saved in file/s1"
    )


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file"]
LAUNCH += [str(RECIPES / "accelerate_configs/two_cpu_processes.yaml")]


@pytest.mark.parametrize(
    "launcher", [[sys.executable], pytest.param(LAUNCH, marks=pytest.mark.slow)], ids=["one process", "two processes"]
)
def test_a_stage_that_was_told_to_end_is_not_taken_for_finished(tmp_path: Path, launcher: list[str]):
    """The launcher is told, as a scheduler would."""
    command = [
        *launcher,
        str(RECIPES / "stage1.py"),
        *PARTS,
        "--per_device_train_batch_size",
        "2",
        "--num_scenes",
        "50",
    ]
    command += ["--logging_steps", "1", "--use_cpu", "true", "--save_strategy", "no", "--disable_tqdm", "true"]
    command += ["--output_dir", "s1", "--enable_jit_checkpoint", "true", "--resume_from_checkpoint", "true"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment, "cwd": tmp_path}
    with subprocess.Popen([*command, "--max_steps", "4000"], **pipes) as process:
        for line in process.stdout:
            if "'lm_loss'" in line:
                process.send_signal(signal.SIGTERM)
                break
        output = process.stdout.read()
    assert process.returncode == (143 if launcher == [sys.executable] else 1), output[-3000:]
    (checkpoint,) = (tmp_path / "s1").glob("checkpoint-*")
    steps = int(checkpoint.name.removeprefix("checkpoint-"))
    assert f"Told to end, after step {steps} of 4000. The checkpoint is saved" in output
    assert {path.name for path in (tmp_path / "s1").iterdir()} == {"README.md", checkpoint.name}
    with pytest.raises(ValueError, match="It holds checkpoints of a stage that has not ended: go on with that first"):
        load_model(ModelArguments(model_name_or_path=str(tmp_path / "s1")), get_stage(2))

    result = subprocess.run([*command, "--max_steps", str(steps + 2)], **pipes)
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"Goes on from s1/{checkpoint.name}, after step {steps} of 4000. There are {steps + 2} now" in result.stdout
    assert len(rates(tmp_path / "s1")) == steps + 2
    assert AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "s1").config.training_stage == 1
