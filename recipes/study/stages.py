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
"""The four stages at the size of a laptop, on scenes: what the demo, the study and the trained model of scenes share."""

from pathlib import Path

import torch

from recipes.scenes import BACKBONES
from recipes.study.plans import IMAGE_SIZE, Run, Scale, llm_checkpoint
from recipes.terminal.progress import StageBar
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig


def train_all(out: Path, text: str, scale: Scale, runs: list[Run]) -> None:
    """Runs the stages one after the other."""
    for n, run in enumerate(runs):
        train(out, text, scale, *run, later_steps=sum(scale.steps[later.stage] for later in runs[n + 1 :]))


def train(
    out: Path,
    text: str,
    scale: Scale,
    folder: str,
    stage: int,
    variant: str,
    previous: str | None,
    later_steps: int = 0,
) -> None:
    """Runs one stage, unless an interrupted run has completed it. `later_steps` are those of the stages to come."""
    if (out / folder / "config.json").exists():
        print(f"{folder}: done before")
        return
    arguments = ModelArguments(
        model_name_or_path=None if previous is None else str(out / previous),
        variant=variant,
        vision=str(BACKBONES / "convnext"),
        text=llm_checkpoint(text),
        image_size=IMAGE_SIZE,
        cross_attention_layers=scale.cross_attention_layers,
    )
    training = GuidedSFTConfig(
        output_dir=str(out / folder),
        per_device_train_batch_size=scale.batch_size,
        max_steps=scale.steps[stage],
        learning_rate=scale.learning_rate[stage],
        guidance_query="question" if stage == 4 else "answer",
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=5,
        save_strategy="no" if scale.save_steps is None else "steps",
        save_steps=scale.save_steps or 500,
        save_total_limit=1,
        resume_from_checkpoint="true" if any((out / folder).glob("checkpoint-*")) else None,
        disable_tqdm=True,
        report_to="none",
        seed=stage,
    )
    # As in the paper, stages 1 to 3 read the same captions.
    steps = scale.steps[4] if stage == 4 else max(scale.steps[n] for n in (1, 2, 3))
    data = DataArguments(num_scenes=scale.batch_size * steps)
    trainer = run_stage(stage, arguments, data, training, progress=StageBar(folder, later_steps))
    trainer.accelerator.free_memory()
