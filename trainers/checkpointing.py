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
"""Checkpoints that are complete wherever a run is killed, and that training goes on from as if it never had stopped."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from peft import PeftModel
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import CONFIG_NAME

from .hub import RECORD_NAME


# What is being written. The trainer does not take it for a checkpoint, and the Hub is not sent what begins with "_".
UNFINISHED = "_unfinished"


class CheckpointMixin:
    """
    What [`GuidedSFTTrainer`] does otherwise than [`transformers.Trainer`] when it saves and resumes. A checkpoint, and the
    model in the end, appears when it is complete; every step can be resumed from. Most of this overrides private methods.
    """

    _aside: Path | None = None
    """Where a checkpoint is being written."""
    _record: list[dict[str, Any]] | None = None
    """What each stage up to this one was."""

    @contextlib.contextmanager
    def _written_aside(self, folder: str) -> Iterator[Path]:
        """
        An absent folder in `folder`, to write into. When that is complete on all processes, what it holds moves to
        `folder` and replaces what is there of the same name, a config.json last.
        """
        aside = Path(folder, UNFINISHED)
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._aside = aside
        try:
            yield aside
        finally:
            self._aside = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for path in sorted(aside.iterdir(), key=lambda path: path.name == CONFIG_NAME):
                place = Path(folder, path.name)
                if place.is_dir():
                    place.rename(aside / f"replaced-{path.name}")
                path.replace(place)
            shutil.rmtree(aside)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._aside is None else str(self._aside)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """
        A run that is killed meanwhile resumes from the checkpoint before, which goes (`save_total_limit`) only when this
        one is in its place.
        """
        run_dir = self._get_output_dir(trial)
        place = Path(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        with self._written_aside(run_dir) as aside:
            super()._save_checkpoint(model, trial)
            if self.state.best_model_checkpoint == str(aside / place.name):
                self.state.best_model_checkpoint = str(place)
                if self.args.should_save:
                    self.state.save_to_json(str(aside / place.name / TRAINER_STATE_NAME))
        if self.args.should_save:
            rotate_checkpoints(run_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # else it is not in its place yet
            super()._push_from_checkpoint(checkpoint_folder)

    def save_final_model(self) -> None:
        """
        Saves model, processor, code and log to the output folder, adapters merged into the model, and pushes them if
        `push_to_hub`. A run that is killed meanwhile leaves no config.json, and so nothing to be taken for a model.
        """
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            self.model = model.merge_and_unload()
        if self.args.should_save:
            Path(self.args.output_dir, CONFIG_NAME).unlink(missing_ok=True)
        with self._written_aside(self.args.output_dir) as aside:
            self.save_state()
            self.save_model(str(aside), _internal_call=True)
        if self.args.push_to_hub:
            self.push_to_hub()

    def _current_record(self) -> list[dict[str, Any]]:
        *before, run = self._record or [None]
        return [*before, {**run, "steps": self.state.global_step}] if run else []

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._record and self.args.should_save:
            record = json.dumps(self._current_record(), indent=2)
            Path(output_dir or self.args.output_dir, RECORD_NAME).write_text(record + "\n", encoding="utf-8")

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """
        Also resumes where transformers (5.24) does not: at the last step, and after the first pass of a stream
        (https://github.com/huggingface/transformers/issues/26413).
        """
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.state.global_step >= max_steps:
            if self.args.should_save:  # a kill may have come between the last checkpoint and this
                best = self.state.best_model_checkpoint
                rotate_checkpoints(self._get_output_dir(trial), self.args.save_total_limit, best, use_mtime=True)
            return num_train_epochs, 0  # there is nothing left to do; it would take one more step
        if isinstance(self.train_dataset, IterableDataset) and not self.args.ignore_data_skip:
            # It takes all steps for one epoch, and would skip more batches than a pass has.
            passes, batches_per_epoch = int(self.state.epoch or 0), max_steps * self.args.gradient_accumulation_steps
            return passes, round(((self.state.epoch or 0) - passes) * batches_per_epoch)
        return position
