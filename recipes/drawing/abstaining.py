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
"""What is left of answers and captions without what is doubtful."""

from pathlib import Path

from recipes.drawing import plt


Points = list[tuple[float, float]]


def save_curves(path: Path, curves: dict[str, dict[str, Points]]) -> None:
    """
    Draws what is left of answers and captions, one curve for each reason to doubt.

    Args:
        path (`Path`): PNG file.
        curves (`dict`): Of `answers` and `captions`, the points of each curve by its name in the legend.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for axes, of in ((left, "answers"), (right, "captions")):
        for name, points in curves[of].items():
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.3)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    left.set_xlabel("share of the questions that are answered", fontsize=9)
    left.set_ylabel("right answers", fontsize=9)
    left.set_title("Is it there? The most doubtful answers are left out", fontsize=10)
    left.legend(fontsize=8, title="doubtful by", title_fontsize=8)
    right.set_xlabel("objects that are named (recall)", fontsize=9)
    right.set_ylabel("false mentions (CHAIR i)", fontsize=9)
    right.set_title("Captions: the most doubtful mentions are struck out", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
