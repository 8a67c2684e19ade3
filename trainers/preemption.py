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
"""Preemption: a training that is told to end saves where it is and stops there, on all processes."""

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Preemption(TrainerCallback):
    """
    At SIGTERM, has the step that is running end, a checkpoint saved and the training stopped.

    Takes the place of what transformers (5.24) does for `enable_jit_checkpoint`: there each process stops at a step of its
    own, and waits for the others in vain; the checkpoint may come in the middle of a step, whose random numbers are drawn
    by then; and its folder is in its place, empty, while it is being written.

    Args:
        accelerator ([`accelerate.Accelerator`]): By which the processes agree.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.is_asked = False
        """Whether this process got the signal."""
        self.has_stopped = False
        """Whether the training stopped before its end for it."""
        self._before: Any = signal.SIG_DFL

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.is_asked = self.has_stopped = False
        self._before = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Whoever was asked, all stop at the same step.
        asked = self.accelerator.reduce(torch.tensor(float(self.is_asked), device=self.accelerator.device), "sum")
        if asked > 0 and state.global_step < state.max_steps:
            self.has_stopped = True
            control.should_log = control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be no time

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignores SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def shield_workers(dataloader: DataLoader) -> None:
    """
    Has the workers of a data loader ignore SIGTERM, which schedulers send to all processes of a job: PyTorch ends a training
    with an error as soon as one of its workers is ended.
    """
    loader = getattr(
        dataloader, "base_dataloader", dataloader
    )  # accelerate's wrapper reads from it, and does not write
    loader.worker_init_fn = functools.partial(start_worker, start=loader.worker_init_fn)


def start_worker(number: int, start: Callable[[int], None] | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if start is not None:
        start(number)
