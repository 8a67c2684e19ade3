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
import os
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from datasets import IterableDataset
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, ProcessorMixin, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_jit_checkpoint import JITCheckpointCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, sort_checkpoints
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .hub import RECORD_NAME, WEIGHTS
from .preemption import Preemption, shield_workers, undisturbed


logger = logging.get_logger(__name__)

# What is being written or removed. The trainer does not take it for a checkpoint, and the Hub is not sent what begins
# with "_".
UNFINISHED = "_unfinished"
# In a checkpoint that transformers (5.24) has begun at a preemption.
INCOMPLETE = "checkpoint-is-incomplete.txt"


def is_complete(checkpoint: Path) -> bool:
    """Whether training can go on from a checkpoint: its trainer's state is what is written last, wherever it comes from."""
    return (checkpoint / TRAINER_STATE_NAME).is_file() and not (checkpoint / INCOMPLETE).exists()


def check_complete(checkpoint: Path) -> None:
    """Raises `ValueError` if training cannot go on from what was named as a checkpoint."""
    if not is_complete(checkpoint):
        raise ValueError(
            f"{checkpoint} is no checkpoint to go on from: it has no {TRAINER_STATE_NAME}, or was cut off."
        )


def checkpoints_of(folder: str | Path) -> list[Path]:
    """The checkpoints in an output folder, complete or not, by their steps."""
    steps = {path: re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name) for path in Path(folder).glob("*")}
    found = {path: int(match[1]) for path, match in steps.items() if match is not None and path.is_dir()}
    return sorted(found, key=lambda path: found[path])


def last_checkpoint(folder: str | Path) -> Path | None:
    """The checkpoint of most steps in an output folder that is complete."""
    return next((path for path in reversed(checkpoints_of(folder)) if is_complete(path)), None)


def remove(checkpoint: str | Path) -> None:
    """Removes a folder so that a kill leaves all or nothing of it in its place."""
    aside = Path(checkpoint).parent / UNFINISHED
    aside.mkdir(exist_ok=True)
    place = aside / f"removed-{Path(checkpoint).name}"
    shutil.rmtree(place, ignore_errors=True)
    Path(checkpoint).rename(place)
    shutil.rmtree(aside)


def write_through(folder: Path) -> None:
    """Has what a folder holds on the disk, where also the loss of the machine leaves it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def move(source: Path, folder: Path) -> None:
    """
    Moves what a complete `source` holds to `folder`, in the place of what is there of the same name. Where it brings
    a model, weights and adapters that are there go, for `from_pretrained` could mix them up with its own, and there is no
    config.json until the rest is in its place.
    """
    files = sorted(source.iterdir(), key=lambda path: path.name == CONFIG_NAME)
    if (source / CONFIG_NAME).exists():
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_file() and any(fnmatch(path.name, pattern) for pattern in (*WEIGHTS, "adapter_*")):
                path.unlink()
    for path in files:
        place = folder / path.name
        if place.is_dir():
            place.rename(source / f"replaced-{path.name}")
        path.replace(place)


def fresh(aside: Path) -> None:
    """Makes an empty folder, whatever a kill has left there."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def put_in_place(aside: Path, folder: Path) -> None:
    """Moves what was written aside, and is complete, to its folder."""
    write_through(aside)
    move(aside, folder)
    shutil.rmtree(aside)


def save_whole(folder: str | Path, *parts: PreTrainedModel | ProcessorMixin) -> None:
    """Saves what makes a checkpoint to a folder, where it appears when all of it is written."""
    aside = Path(folder, UNFINISHED)
    fresh(aside)
    for part in parts:
        part.save_pretrained(aside)
    put_in_place(aside, Path(folder))


def is_saved_by_own_names(model: nn.Module, checkpoint: Path) -> bool:
    """Whether the tensors of a checkpoint are called as the model's are; also if it has none, as one with adapters."""
    index, weights = checkpoint / SAFE_WEIGHTS_INDEX_NAME, checkpoint / SAFE_WEIGHTS_NAME
    names: set[str] = set()
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    elif weights.is_file():
        with safe_open(weights, framework="pt") as tensors:
            names = set(tensors.keys())
    return names <= model.state_dict().keys()


class CheckpointMixin:
    """
    What [`GuidedSFTTrainer`] does otherwise than [`transformers.Trainer`] when it saves and resumes. A checkpoint, and the
    model in the end, appears when it is complete; every step can be resumed from. Most of this overrides private methods.
    """

    _aside: Path | None = None
    """Where a checkpoint is being written."""
    _record: list[dict[str, Any]] | None = None
    """What each stage up to this one was."""

    _preemption: Preemption | None = None
    """Where `enable_jit_checkpoint` asks for it."""

    @contextlib.contextmanager
    def _written_aside(self, folder: str) -> Iterator[Path]:
        """
        An empty folder in `folder`, to write into. When that is complete on all processes, what it holds moves to
        `folder` and replaces what is there of the same name, a config.json last.
        """
        aside = Path(folder, UNFINISHED)
        if self.args.should_save:
            fresh(aside)
        self.accelerator.wait_for_everyone()
        self._aside = aside
        try:
            yield aside
        finally:
            self._aside = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            put_in_place(aside, Path(folder))
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
        self._rotate(run_dir)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(place))

    def _rotate(self, run_dir: str) -> None:
        """Removes the oldest checkpoints over `save_total_limit`, but never the last or the best one."""
        limit = self.args.save_total_limit
        if not self.args.should_save or limit is None or limit <= 0:
            return
        checkpoints = sort_checkpoints(run_dir, use_mtime=True)
        best = self.state.best_model_checkpoint
        kept = {*checkpoints[-1:], *([] if best is None else [str(Path(best))])}
        over = len(checkpoints) - max(limit, len(kept))
        for checkpoint in [path for path in checkpoints if path not in kept][: max(over, 0)]:
            remove(checkpoint)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        """
        A training that was stopped before its end keeps its model and its last checkpoint. Otherwise transformers (5.24)
        removes, with `save_total_limit=1`, all but the best one, file by file.
        """
        best = self.state.best_model_checkpoint
        if self.is_preempted:
            self.state.best_model_checkpoint = None
        elif self.args.should_save and best is not None and self.args.save_total_limit == 1:
            for checkpoint in sort_checkpoints(self.args.output_dir):
                if not os.path.samefile(checkpoint, best):
                    remove(checkpoint)
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self.state.best_model_checkpoint = best

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._aside is None:  # else it is not in its place yet
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self._aside is not None:
            return super().save_model(output_dir, _internal_call)
        with self._written_aside(output_dir or self.args.output_dir) as aside:
            super().save_model(str(aside), _internal_call=True)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def save_final_model(self) -> None:
        """
        Saves model, processor, code and log to the output folder, adapters merged into the model, and pushes them if
        `push_to_hub`. What is there of an earlier model stays until all of this one is written; a run that is killed while
        it takes its place leaves no config.json, and so nothing to be taken for a model.
        """
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            self.model = model.merge_and_unload()
        if self.is_fsdp_enabled:  # sharded checkpoints hold no model
            self.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        with undisturbed() if self.args.enable_jit_checkpoint else contextlib.nullcontext():
            with self._written_aside(self.args.output_dir) as aside:
                self.save_state()
                self.save_model(str(aside), _internal_call=True)
        if self.args.push_to_hub:
            self.push_to_hub()

    def rehearse_saving(self) -> None:
        """
        Writes all of the final model but its weights, and takes it away again: what stops that would otherwise be found
        when the training is over.

        Raises:
            OSError: If there is no room for the weights.
            ValueError: If something cannot be written.
        """
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir)
        aside = folder / UNFINISHED
        model = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if isinstance(model, PeftModel) else model
        try:
            fresh(aside)
            model.save_pretrained(aside, state_dict={})
            self.processing_class.save_pretrained(aside)
            free = shutil.disk_usage(aside).free
        except Exception as error:
            reason = " ".join((str(error) or repr(error)).split())
            raise ValueError(
                f"The model could not be saved in {folder} when its training is over: {reason}"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        if size > free:
            raise OSError(f"The model takes {size / 1e9:.1f} GB, but in {folder} there are {free / 1e9:.1f} GB left.")

    def _current_record(self) -> list[dict[str, Any]]:
        *before, run = self._record or [None]
        return [*before, {**run, "steps": self.state.global_step}] if run else []

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self._record and self.args.should_save:
            record = json.dumps(self._current_record(), indent=2)
            Path(output_dir or self.args.output_dir, RECORD_NAME).write_text(record + "\n", encoding="utf-8")

    # Going on

    @property
    def is_preempted(self) -> bool:
        """Whether the last training stopped before its end because the process was told to end."""
        return self._preemption is not None and self._preemption.has_stopped

    def _heed_preemption(self) -> None:
        """Replaces transformers' callback where `enable_jit_checkpoint` asks for it."""
        if self.args.enable_jit_checkpoint:
            callback = self.pop_callback(JITCheckpointCallback)
            signal.signal(signal.SIGTERM, callback.jit_manager._original_sigterm_handler or signal.SIG_DFL)
            self._preemption = Preemption(self.accelerator)
            self.add_callback(self._preemption)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Callable | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        dataloader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        if self.args.enable_jit_checkpoint:
            shield_workers(dataloader)
        return dataloader

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        As [`transformers.Trainer.train`], after a rehearsal of the saving in the end, and never from a checkpoint that is not
        complete.

        Raises:
            OSError: If there is no room for the model.
            ValueError: If the model could not be saved, or there is no such checkpoint.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir} to go on from.")
        elif resume_from_checkpoint:
            check_complete(Path(resume_from_checkpoint))
        self.rehearse_saving()
        checkpoint = str(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """
        Also the weights of models that are saved under other names than they run with (LLaVA, Qwen2.5-VL, ...), of which
        transformers (5.24) loads nothing, with a warning (https://github.com/huggingface/transformers/issues/43701).
        """
        loaded = self.model if model is None else model
        if self.is_fsdp_enabled or is_saved_by_own_names(loaded, Path(resume_from_checkpoint)):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(loaded).from_pretrained(resume_from_checkpoint, dtype=loaded.dtype)
        loaded.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        """As [`_load_from_checkpoint`]."""
        best = self.state.best_model_checkpoint
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or is_saved_by_own_names(self.model, Path(best)):
            return super()._load_best_model()
        self._load_from_checkpoint(best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """
        Also says where a checkpoint has no states of the optimizer, as with `save_only_model`. transformers (5.24) then begins
        the schedule of the learning rate anew, in the middle of the steps; here it stands where it was.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.is_deepspeed_enabled:
            return
        if not any(path.name.startswith("optimizer") for path in Path(checkpoint).iterdir()):
            logger.warning(
                f"{checkpoint} has no states of the optimizer (`save_only_model`): the weights go on, the moments of the "
                "optimizer and the random numbers begin anew."
            )
            if isinstance(self.lr_scheduler, LambdaLR):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before")
                    for _ in range(self.state.global_step):
                        self.lr_scheduler.step()

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
            self._rotate(self._get_output_dir(trial))  # a kill may have come between the last checkpoint and this
            return num_train_epochs, 0  # there is nothing left to do; it would take one more step
        if (
            resume_from_checkpoint is not None
            and isinstance(self.train_dataset, IterableDataset)
            and not self.args.ignore_data_skip
        ):
            # It takes all steps for one epoch, and would skip more batches than a pass has. How many steps those were is
            # in the checkpoint; by now there may be others to do.
            before = TrainerState.load_from_json(str(Path(resume_from_checkpoint, TRAINER_STATE_NAME)))
            passes = int(before.epoch or 0)
            steps = round(((before.epoch or 0) - passes) * before.max_steps)
            return passes, steps * self.args.gradient_accumulation_steps
        return position
