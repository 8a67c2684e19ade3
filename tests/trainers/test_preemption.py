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
"""A training that is told to end saves where it is, stops, and goes on later as if it never had."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_resume import NUM_STEPS, assert_same_training, eight_rows, trainer_of
from transformers import TrainerCallback

from trainers import GuidedSFTTrainer
from trainers.checkpointing import UNFINISHED, last_checkpoint


class Scheduler(TrainerCallback):
    """
    Sends SIGTERM to all processes of the training in the middle of a step, twice, from a process of its own: PyTorch's workers
    heed who sends it.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            training = [process.pid for process in (*psutil.Process().children(recursive=True), psutil.Process())]
            subprocess.run(["kill", "-TERM", *map(str, training * 2)], check=True)
            time.sleep(0.1)  # for what a dead worker would bring about


def preempted(out: Path, step: int, **arguments: Any) -> GuidedSFTTrainer:
    trainer = trainer_of(out, eight_rows(), enable_jit_checkpoint=True, **{"save_strategy": "no"} | arguments)
    trainer.add_callback(Scheduler(step))
    trainer.train()
    return trainer


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 5])  # in the first pass through the rows, in the second
def test_preempted_training_goes_on(tmp_path: Path, step: int, workers: int):
    before = signal.getsignal(signal.SIGTERM)
    trainer = preempted(tmp_path, step, dataloader_num_workers=workers)
    assert trainer.is_preempted and trainer.state.global_step == step
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", f"checkpoint-{step}"}
    assert last_checkpoint(tmp_path) == tmp_path / f"checkpoint-{step}"
    assert signal.getsignal(signal.SIGTERM) == before
    resumed = trainer_of(tmp_path, eight_rows(), enable_jit_checkpoint=True, save_strategy="no")
    resumed.train(resume_from_checkpoint=True)
    assert not resumed.is_preempted
    whole = trainer_of(tmp_path / "whole", eight_rows(), save_strategy="no")
    whole.train()
    assert_same_training(resumed, whole)


def test_told_to_end_in_its_last_step_it_ends_as_ever(tmp_path: Path):
    trainer = preempted(tmp_path, NUM_STEPS)
    assert not trainer.is_preempted and trainer.state.global_step == NUM_STEPS
    assert last_checkpoint(tmp_path) is None


def test_without_the_option_it_ends_at_once(tmp_path: Path):
    trainer, heard = trainer_of(tmp_path, eight_rows(), save_strategy="no"), []
    trainer.add_callback(Scheduler(1))
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(trainer.state.global_step))
    try:
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard and not trainer.is_preempted and trainer.state.global_step == NUM_STEPS


def test_preempted_training_keeps_its_last_checkpoint_beside_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """transformers would load the best model, and with this limit remove the other."""
    monkeypatch.setattr(GuidedSFTTrainer, "_determine_best_metric", best_at_first)
    trainer = preempted(
        tmp_path,
        3,
        save_strategy="steps",
        save_total_limit=1,
        eval_dataset=eight_rows(2),
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
    )
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    assert not (tmp_path / UNFINISHED).exists()


def best_at_first(self: GuidedSFTTrainer, metrics: dict[str, float], trial: Any) -> bool:
    self.state.best_global_step = 1
    return self.state.global_step == 1


def test_the_final_model_is_saved_though_it_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = trainer_of(tmp_path, eight_rows(), enable_jit_checkpoint=True, save_strategy="no")
    trainer.train()
    before, save = signal.getsignal(signal.SIGTERM), trainer._save

    def save_when_told_to_end(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*args, **kwargs)

    monkeypatch.setattr(trainer, "_save", save_when_told_to_end)
    trainer.save_final_model()
    assert (tmp_path / "config.json").exists() and signal.getsignal(signal.SIGTERM) == before
