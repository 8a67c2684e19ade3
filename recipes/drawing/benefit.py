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
"""What guidance is good for, in one picture."""

from pathlib import Path
from typing import Any, NamedTuple

from recipes.drawing import plt
from recipes.drawing.attention import draw_legend, draw_sheet_line


COLORS = ("#9aa0a6", "#d9480f")  # without guidance, with it


class Measure(NamedTuple):
    """A share, model by model, with its 95 % interval, and what it would be by chance."""

    title: str
    values: dict[str, tuple[float, float, float]]  # by the model's name: value, low, high
    chance: float


def save_benefit(path: Path, rows: list[dict[str, Any]], columns: list[str], measures: list[Measure]) -> None:
    """
    Some questions with two models' answers and where they look, and beside them what the two measure up to.

    Args:
        path (`Path`): PNG file.
        rows (`list[dict]`): Questions as `save_attention_sheet` takes them.
        columns (`list[str]`): Names of the two models.
        measures (`list[Measure]`): What to draw as bars.
    """
    figure = plt.figure(figsize=(12.5, 3.4 * len(rows)))
    grid = figure.add_gridspec(len(rows), 5, width_ratios=[1, 1, 1, 0.12, 1.35])
    for n, row in enumerate(rows):
        draw_sheet_line([figure.add_subplot(grid[n, k]) for k in range(3)], row, columns)
    ax = figure.add_subplot(grid[:, 4])
    for n, measure in enumerate(measures):
        for k, (name, color) in enumerate(zip(columns, COLORS, strict=True)):
            value, low, high = measure.values[name]
            place = -(n * 3 + k)
            label = name if n == 0 else None
            ax.barh(place, value, xerr=[[value - low], [high - value]], color=color, label=label, height=0.85)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
            ax.text(max(value, high) + 0.02, place, f"{value:.2f}", va="center", fontsize=9, bbox=box)
        ax.text(0, -(n * 3) + 0.75, measure.title, fontsize=9)
        ax.plot([measure.chance] * 2, [-(n * 3) + 0.5, -(n * 3) - 1.5], color="black", linestyle=":", linewidth=1.2)
    ax.plot([], [], color="black", linestyle=":", label="by chance")
    ax.set_xlim(0, 1.12)
    ax.set_ylim(-(len(measures) * 3) + 1, 1.5)
    ax.set_yticks([])
    ax.set_xticks([0, 0.5, 1])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=3, frameon=False)
    figure.tight_layout()
    draw_legend(figure, center=0.32)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
