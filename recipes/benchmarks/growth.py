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
"""How time and memory grow with the number of pictures and words."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.benchmarks.costs import guidance_work, text_work, total, tower_work
from recipes.benchmarks.model import STAGES
from recipes.benchmarks.subjects import Size, Trained, make_batch, make_model, make_trainer, trainer_loss
from recipes.benchmarks.timing import make_result, seconds_in_turns, time_row
from recipes.drawing import plt
from trainers import apply_stage


def growth(size: Size, rounds: int, plot: Path | None = None) -> dict[str, Any]:
    """Guided stage-3 step and prefill over each axis; at 1.0 stand the values of the first."""
    config = size.config
    axes = {
        "text tokens": size.lengths,
        "batch": size.batch_sizes,
        "images per row": size.image_counts,
        "regions": size.region_counts,
        "resolution": size.image_sizes,
    }
    keys = dict(zip(axes, ("text_tokens", "batch_size", "num_images", "num_regions", "image_size"), strict=True))
    model = make_model(config)
    trainer = make_trainer(model)
    trained = Trained(model, lambda: apply_stage(model, STAGES["stage 3"]))
    vlm_inputs = ("input_ids", "attention_mask", "pixel_values")
    rows, points = [], []
    for axis, values in axes.items():
        losses, prefills, flops = {}, {}, {}
        for value in values:
            shape = {"batch_size": 2, "text_tokens": size.text_tokens, keys[axis]: value}
            batch = make_batch(config, **shape)
            inputs = {name: batch[name] for name in vlm_inputs}
            losses[value] = lambda batch=batch: trainer_loss(trainer, batch)
            prefills[value] = lambda inputs=inputs: torch.no_grad()(model)(**inputs, use_cache=True, logits_to_keep=1)
            images = batch["pixel_values"].shape[:2].numel()
            side, visual = batch["pixel_values"].shape[-1], batch["region_masks"].shape[-1]
            works = tower_work(config, images, STAGES["stage 3"], side)
            labels = int((batch["labels"][:, 1:] != -100).sum())
            works += text_work(config, *batch["input_ids"].shape, visual, labels, STAGES["stage 3"])
            works += guidance_work(config, *batch["input_ids"].shape, visual, batch["region_masks"].shape[1], False)
            flops[value] = total(works, step=True)
        seconds = seconds_in_turns({v: lambda f=f: trained.step(f) for v, f in losses.items()}, rounds, warmup=1)
        prefill_seconds = seconds_in_turns(prefills, rounds, warmup=1)
        first = values[0]
        for value in values:
            memory = trained.peak_bytes(losses[value])
            point = {"axis": axis, "value": value, "memory": memory}
            point |= {"step": float(np.median(seconds[value])), "prefill": float(np.median(prefill_seconds[value]))}
            points.append(point)
            row = time_row(f"{axis} {value}", seconds[value], seconds[first], "", flops[value] / flops[first])
            row.sides = f"step {point['step']:.3g} s, prefill {point['prefill']:.3g} s, memory {memory / 1e9:.3g} GB"
            rows.append(row)
    if plot:
        plot_growth(points, plot)
    note = (
        f"Step by the step at the axis' first value; 2 rows of {size.text_tokens} tokens, 1 image, 1 region elsewhere."
    )
    return make_result("growth", rows, note) | {"points": points}


def plot_growth(points: list[dict[str, Any]], path: Path) -> None:
    axes = list(dict.fromkeys(point["axis"] for point in points))
    figure, grid = plt.subplots(3, len(axes), figsize=(3 * len(axes), 7), sharey="row", layout="constrained")
    labels = {"step": "step, s", "prefill": "prefill, s", "memory": "memory of a step, GB"}
    for column, axis in enumerate(axes):
        for line, (key, label) in enumerate(labels.items()):
            x, y = zip(
                *[(p["value"], p[key] / (1e9 if key == "memory" else 1)) for p in points if p["axis"] == axis],
                strict=True,
            )
            cell = grid[line][column]
            cell.plot(x, y, marker="o")
            cell.set_xscale("log", base=2)
            cell.set_yscale("log")
            cell.set_xticks(x, [str(value) for value in x])
            cell.xaxis.minorticks_off()
            cell.grid(alpha=0.3, which="both", axis="y")
            if column == 0:
                cell.set_ylabel(label)
        grid[-1][column].set_xlabel(axis)
    figure.savefig(path, dpi=120)
    plt.close(figure)
