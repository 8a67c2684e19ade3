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
"""What long work shows on the terminal: one bar for each part of it, and how long all of it will still take."""

import time
import warnings
from typing import Any

from datasets import disable_progress_bars
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils.logging import disable_progress_bar


line = 0  # of the terminal, on which this process draws its bar


def show_own_bars_only() -> None:
    """Keeps the bars of transformers and datasets, and what transformers says of its own renamings, off the terminal."""
    disable_progress_bar()
    disable_progress_bars()
    warnings.simplefilter("ignore", FutureWarning)


def duration(seconds: float) -> str:
    """Minutes and seconds for people."""
    return f"{round(seconds)} s" if seconds < 90 else f"{round(seconds / 60)} min"


class StageBar(TrainerCallback):
    """
    The bar of one stage, with its losses, where the attention falls, and the time that is left.

    Args:
        name (`str`): What the bar is called.
        later_steps (`int`, *optional*, defaults to 0): Steps of the stages to come, which are taken to be as long as these.
    """

    def __init__(self, name: str, later_steps: int = 0) -> None:
        self.name, self.later_steps = name, later_steps
        self.bar = tqdm(desc=f"{name:<26} makes its rows", bar_format="{desc}", position=line, leave=False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.first_step, self.start = state.global_step, time.monotonic()
        self.bar.close()
        form = "{desc} |{bar:20}| {n_fmt}/{total_fmt}{postfix}"
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=f"{self.name:<26}", bar_format=form, position=line
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.update()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "lm_loss" not in logs:
            return
        parts = [f"{key} {logs[key]:.2f}" for key in ("lm_loss", "guidance_loss", "in_mask_mass") if key in logs]
        step_seconds = (time.monotonic() - self.start) / (state.global_step - self.first_step)
        left = (state.max_steps - state.global_step + self.later_steps) * step_seconds
        self.bar.set_postfix_str("  ".join([*parts, f"{duration(left)} left"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()
