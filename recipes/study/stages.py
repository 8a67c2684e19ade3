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
"""The four stages at the size of a laptop, on scenes: what the demo and the trained model of scenes share."""

from pathlib import Path

import torch
from datasets import Dataset

from recipes.scenes import BACKBONES
from recipes.scenes.pretraining import disturb
from recipes.scenes.rows import load_scenes
from recipes.study.plans import Run, Scale, llm_checkpoint
from recipes.study.rows import dialogs, with_lengths
from recipes.study.side_by_side import Task
from recipes.terminal.progress import StageBar
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig


# One head of the first layer is guided, and words of what is not there look at nothing.
GUIDANCE = {"guidance_weight": 0.1, "guidance_heads": [0]}


def tasks_of(out: Path, text: str, scale: Scale, runs: list[Run]) -> dict[str, Task]:
    """The stages that an interrupted run has not completed, by their folders."""
    tasks = {}
    for run in runs:
        if not (out / run.folder / "config.json").exists():
            later = sum(scale.steps[number] for number in range(run.stage + 1, 5))
            tasks[run.folder] = Task(train, (out, text, scale, run, later), run.previous)
    return tasks


def rows_of(stage: int, scale: Scale) -> Dataset:
    """The rows of a stage. As in the paper, stages 1 to 3 read the same captions, each as many of them as it has steps for."""
    num_rows = scale.batch_size * scale.steps[stage]
    if stage == 4:
        return dialogs(scale.split, num_rows, scale.shares, scale.image_size)
    return with_lengths(load_scenes(scale.split, "caption", num_rows, scale.image_size))


def train(out: Path, text: str, scale: Scale, run: Run, later_steps: int = 0) -> None:
    """Runs one stage. `later_steps` are those of the stages to come."""
    folder = out / run.folder
    arguments = ModelArguments(
        model_name_or_path=None if run.previous is None else str(out / run.previous),
        variant=run.variant,
        vision=str(BACKBONES / "convnext"),
        text=llm_checkpoint(text),
        image_size=scale.image_size,
        cross_attention_layers=scale.cross_attention_layers,
        attention_sink=True,
        use_visual_positions=scale.positions,
    )
    training = GuidedSFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=scale.batch_size,
        max_steps=scale.steps[run.stage],
        learning_rate=scale.learning_rate[run.stage],
        train_sampling_strategy="group_by_length",  # a quarter of a mixed batch would be padding
        **GUIDANCE,
        guidance_layers=scale.cross_attention_layers[:1],
        guidance_query="question" if run.stage == 4 else "answer",
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_strategy="no" if scale.save_steps is None else "steps",
        save_steps=scale.save_steps or 500,
        save_total_limit=1,
        resume_from_checkpoint="true" if any(folder.glob("checkpoint-*")) else None,
        disable_tqdm=True,
        report_to="none",
        seed=run.stage,
    )
    bar, augment = StageBar(run.folder, later_steps), disturb if scale.disturbed else None
    rows = rows_of(run.stage, scale)
    data = DataArguments(num_scenes=len(rows))
    trainer = run_stage(run.stage, arguments, data, training, progress=bar, rows=rows, augment=augment)
    trainer.accelerator.free_memory()
