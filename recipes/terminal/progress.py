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
"""What long work shows on the terminal."""

from transformers import TrainerCallback


class StepLine(TrainerCallback):
    """One line that shows the step, the losses and where the attention falls, instead of one line per log entry."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_log(self, args, state, control, logs: dict[str, float] | None = None, **kwargs) -> None:
        if logs and "lm_loss" in logs:
            parts = [f"{key} {logs[key]:.2f}" for key in ("lm_loss", "guidance_loss", "in_mask_mass") if key in logs]
            print(
                f"\r{self.name}: step {state.global_step}/{state.max_steps}  {'  '.join(parts)}", end="   ", flush=True
            )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        print(flush=True)
