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
"""Training curves."""

from pathlib import Path

from recipes.drawing import plt


def save_curves(path: Path, histories: dict[str, list[dict[str, float]]]) -> None:
    """
    Language modeling loss, guidance loss and in-mask attention of every run over its stages' steps.

    Args:
        path (`Path`): PNG file.
        histories (`dict`): For every run the log entries in order, each with `step` counted through all stages, `stage`
            and the logged values.
    """
    panels = {
        "lm_loss": "language modeling loss (nats per token)",
        "guidance_loss": "guidance loss (nats)",
        "in_mask_mass": "attention inside the masks",
    }
    figure, grid = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.6))
    for ax, (key, title) in zip(grid, panels.items(), strict=True):
        for name, history in histories.items():
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            if points:
                ax.plot(*zip(*points, strict=True), label=name, linewidth=1.2, alpha=0.8)
        if key == "in_mask_mass":
            points = [(e["step"], e["uniform_mass"]) for h in histories.values() for e in h if "uniform_mass" in e]
            ax.plot(
                *zip(*sorted(points), strict=True), label="even attention", color="gray", linewidth=0.8, linestyle=":"
            )
        longest = max(histories.values(), key=len)
        for before, after in zip(longest, longest[1:], strict=False):
            if before["stage"] != after["stage"]:
                ax.axvline(before["step"], color="lightgray", linewidth=0.8)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("optimizer step, stage after stage", fontsize=8)
        ax.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
