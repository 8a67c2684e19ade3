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
"""Stage 3 beside stage 4: time, utilization, memory."""

from typing import Any

import numpy as np
import torch

from recipes.benchmarks.costs import guidance_work, text_work, total, tower_work
from recipes.benchmarks.model import STAGES
from recipes.benchmarks.subjects import Size, Trained, make_batch, make_model, make_trainer, trainer_loss
from recipes.benchmarks.timing import (
    Row,
    bytes_row,
    make_result,
    measure_machine,
    peak_flops,
    seconds_in_turns,
    time_row,
)
from trainers import GuidedSFTTrainer, apply_stage


def stages(size: Size, rounds: int) -> dict[str, Any]:
    """Guided stage 3 by guided stage 4 with the LLM trained; utilization; memory of stage 4."""
    peak, peak_name = peak_flops(measure_machine())
    trainer = make_trainer(make_model(size.config))
    rows = stage_rows(size, rounds, trainer, size.text_tokens, peak, "<= 0.50", ">= 0.28")
    rows += stage_rows(size, rounds, trainer, size.long_text_tokens, peak, "<= 0.62", ">= 0.40")
    note = (
        f"Utilization is of {peak_name}. It counts what has to be computed once: the forward pass, gradients of weights "
        "that train and of inputs above the first of these, full (not halved) self-attention; not norms, activations, "
        "the optimizer, nor what checkpointing or the fused head compute again. The tower is timed alone; the text and "
        "the rest (projector, head, optimizer) are what is left of the step."
    )
    visual = size.config.vision_config.num_image_tokens
    return make_result(f"stages, guided, {size.batch_size} rows, {visual} visual tokens", rows, note)


def stage_rows(
    size: Size,
    rounds: int,
    trainer: GuidedSFTTrainer,
    text_tokens: int,
    peak: float,
    ratio_target: str,
    utilization_target: str,
) -> list[Row]:
    config, images, model = size.config, size.batch_size, trainer.model
    batch, tower = make_batch(config, images, text_tokens), model.model.vision_tower
    trained = {name: Trained(model, lambda stage=stage: apply_stage(model, stage)) for name, stage in STAGES.items()}
    three, four = STAGES

    def guided() -> torch.Tensor:
        return trainer_loss(trainer, batch)

    def checkpointed() -> torch.Tensor:
        tower.timm_model.set_grad_checkpointing(True)
        value = guided()
        tower.timm_model.set_grad_checkpointing(False)
        return value

    def tower_alone() -> None:
        apply_stage(model, STAGES[three])
        features = tower(batch["pixel_values"].flatten(0, 1)).last_hidden_state
        features.backward(torch.ones_like(features))
        model.zero_grad()

    subjects = {name: lambda t=t: t.step(guided) for name, t in trained.items()}
    subjects |= {"checkpointed": lambda: trained[four].step(checkpointed), "tower": tower_alone}
    seconds = seconds_in_turns(subjects, rounds)
    used = {name: float(np.median(values)) for name, values in seconds.items()}
    memory = {name: t.peak_bytes(guided) for name, t in trained.items()}
    memory["checkpointed"] = trained[four].peak_bytes(checkpointed)
    visual = config.vision_config.num_image_tokens
    flops, tower_flops = {}, {}
    for name, stage in STAGES.items():
        works = text_work(config, images, text_tokens, visual, images * (text_tokens - 1), stage)
        works += guidance_work(config, images, text_tokens, visual, 1, maps=False)
        tower_flops[name] = total(tower_work(config, images, stage), step=True)
        flops[name] = tower_flops[name] + total(works, step=True)

    what, limit = f"{text_tokens} tokens: stage 3 / stage 4, LLM trained", flops[three] / flops[four]
    rows = [
        time_row(f"{what}, time", seconds[three], seconds[four], ratio_target, limit),
        bytes_row(f"{what}, memory", memory[three], memory[four], "report"),
    ]
    what = f"{text_tokens} tokens: stage 4, tower checkpointed"
    target = "<= 80 at the paper's size" if text_tokens == size.long_text_tokens else "report"
    rows += [
        time_row(f"{what} / not, time", seconds["checkpointed"], seconds[four], "report"),
        bytes_row(f"{what} / not, memory", memory["checkpointed"], memory[four], "report"),
        Row(f"{what}: peak memory, GB", memory["checkpointed"] / 1e9, target=target),
    ]
    parts = {
        three: (flops[three], used[three], utilization_target),
        f"{three}, tower": (tower_flops[three], used["tower"], "report"),
        f"{three}, text and the rest": (flops[three] - tower_flops[three], used[three] - used["tower"], "report"),
        four: (flops[four], used[four], "report"),
    }
    for name, (part_flops, part_used, target) in parts.items():
        sides = f"{part_flops / 1e12:.3g} TFLOP in {part_used:.3g} s"
        if name in STAGES:
            sides += f", {images / part_used:.3g} images/s"
        what = f"{text_tokens} tokens: utilization, {name}"
        rows.append(Row(what, part_flops / part_used / peak, target=target, sides=sides))
    return rows
