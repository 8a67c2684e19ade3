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
"""
Attention over pictures, everywhere in the same colors: how many times as much a place gets as it would if attention were even.

From even attention, which has no color, each doubling is a step, up to `MOST` times as much. So words that look nowhere in
particular look like that, and what lies on a model's sink is missing from the picture.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from recipes.drawing import plt


LONGEST_SIDE = 1000  # pixels of a picture that is drawn
MOST = 32  # times as much as even attention; what is beyond has the same color
# A color in RGBA, from 0 to 1, of each of 256 steps from even attention to `MOST` times as much.
COLORS = plt.get_cmap("plasma")(np.linspace(0.2, 1, 256))
COLORS[:, 3] = 0.8 * np.linspace(0, 1, 256) ** 0.6


def colored(multiples: np.ndarray) -> np.ndarray:
    """Multiples of even attention, `(height, width)`, as colors to lay over a picture: `(height, width, 4)`."""
    with np.errstate(divide="ignore"):
        steps = np.log2(multiples) / math.log2(MOST)
    return COLORS[(255 * steps.clip(0, 1)).round().astype(int)]


def in_numbers(attention: np.ndarray, on_nothing: float = 0.0) -> str:
    """
    In how little of the picture half of the attention lies, and before it what lies on a model's sink, if it has one.
    """
    falling = np.sort(attention, axis=None)[::-1].cumsum(dtype=float)
    if not falling[-1]:
        return f"{on_nothing:.0%} on nothing"
    share = f"{(np.searchsorted(falling, falling[-1] * (1 - 1e-6) / 2) + 1) / attention.size:.0%}"
    return (
        f"{on_nothing:.0%} on nothing, half the rest in {share}"
        if on_nothing
        else f"half of it in {share} of the picture"
    )


def draw_attention(axes: plt.Axes, picture: PIL.Image.Image, attention: np.ndarray) -> None:
    """
    The picture in gray, and over it the colors of attention.

    Args:
        axes (`plt.Axes`): Where to draw.
        picture (`PIL.Image.Image`): The picture.
        attention (`np.ndarray`): Attention over all of the picture, `(height, width)` in any resolution, which sums to 1 or,
            with a sink, to what is left. It is drawn smoothly.
    """
    extent = (0, picture.width, picture.height, 0)
    shown = picture.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    axes.imshow(shown.convert("L").convert("RGB"), extent=extent)
    multiples = PIL.Image.fromarray(np.asarray(attention, dtype=np.float32) * attention.size)
    axes.imshow(colored(np.asarray(multiples.resize(shown.size, PIL.Image.Resampling.BILINEAR))), extent=extent)
    axes.set_axis_off()


def draw_legend(figure: plt.Figure, center: float = 0.5) -> None:
    """Below all else in a figure, what the colors of attention mean; `center` is a share of the figure's width."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((center - 1.8 / width, -0.3 / height, 3.6 / width, 0.12 / height))
    axes.imshow(np.full((1, 256, 3), 0.5), extent=(0, 1, 0, 1), aspect="auto")
    axes.imshow(COLORS[None], extent=(0, 1, 0, 1), aspect="auto")
    doublings = int(math.log2(MOST))
    names = ["even", *(f"{2**n}x" for n in range(1, doublings)), f"{MOST}x or more"]
    axes.set_xticks([n / doublings for n in range(doublings + 1)], names, fontsize=7)
    axes.set_yticks([])


def legend_picture() -> PIL.Image.Image:
    """The legend by itself."""
    figure = plt.figure(figsize=(3.9, 0.01))
    draw_legend(figure)
    data = io.BytesIO()
    figure.savefig(data, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return PIL.Image.open(data).convert("RGB")


def attention_picture(picture: PIL.Image.Image, attention: np.ndarray) -> PIL.Image.Image:
    """What [`draw_attention`] draws, as a picture of the same size."""
    figure = plt.figure(figsize=(picture.width / 100, picture.height / 100), dpi=100)
    draw_attention(figure.add_axes((0, 0, 1, 1)), picture, attention)
    figure.canvas.draw()
    drawn = PIL.Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    plt.close(figure)
    return drawn


def draw_panels(
    axes: Iterable[plt.Axes],
    picture: PIL.Image.Image,
    attentions: dict[str, tuple[np.ndarray, float]],
    letters: int,
    width: int,
    fontsize: int,
) -> None:
    """
    The attentions of a picture, as in [`save_attention`], one on each of the axes, of which some may be left over. A title
    has so many `letters` at the most, `width` in a line.
    """
    for ax, (title, (attention, on_nothing)) in zip(axes, attentions.items(), strict=False):
        draw_attention(ax, picture, attention)
        title = textwrap.fill(textwrap.shorten(title, letters, placeholder=" ..."), width)
        title += f"\n{in_numbers(attention, on_nothing)}"
        ax.set_title(title, fontsize=fontsize, loc="left", parse_math=False)


def save_attention(
    path: Path, picture: PIL.Image.Image, attentions: dict[str, tuple[np.ndarray, float]], num_columns: int = 4
) -> None:
    """
    One picture and beside it where each text looks.

    Args:
        path (`Path`): PNG file.
        picture (`PIL.Image.Image`): The picture.
        attentions (`dict`): By title the attention over the picture as in [`draw_attention`], and the share that lies on the
            model's sink instead, 0 without one.
        num_columns (`int`, *optional*, defaults to 4): Panels in a line.
    """
    picture = picture.copy()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    num_panels = 1 + len(attentions)
    shape = (math.ceil(num_panels / num_columns), min(num_panels, num_columns))
    panel_height = 0.7 + 3.4 * min(
        2, picture.height / picture.width
    )  # inches, of a panel 3.6 inches wide with its title
    no_ticks = {"xticks": [], "yticks": []}  # matplotlib would measure their labels, drawn or not
    size = (3.6 * shape[1], panel_height * shape[0])
    figure, grid = plt.subplots(*shape, figsize=size, squeeze=False, subplot_kw=no_ticks)
    for ax in grid.flat:
        ax.set_axis_off()
    grid[0, 0].imshow(picture)
    draw_panels(grid.flat[1:], picture, attentions, letters=120, width=40, fontsize=9)
    figure.tight_layout()
    draw_legend(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


def save_attention_lines(
    path: Path, lines: Sequence[tuple[PIL.Image.Image, dict[str, tuple[np.ndarray, float]]]]
) -> None:
    """
    Several pictures, one below the other, and beside each where its texts look.

    Args:
        path (`Path`): PNG file.
        lines (`Sequence`): Of each picture its attentions as in [`save_attention`].
    """
    num_columns = 1 + max(len(attentions) for _, attentions in lines)
    figure, grid = plt.subplots(len(lines), num_columns, figsize=(2.6 * num_columns, 3.0 * len(lines)), squeeze=False)
    for axes, (picture, attentions) in zip(grid, lines, strict=True):
        for ax in axes:
            ax.set_axis_off()
        axes[0].imshow(picture)
        draw_panels(axes[1:], picture, attentions, letters=90, width=32, fontsize=8)
    figure.tight_layout()
    draw_legend(figure)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def draw_sheet_line(axes: Sequence[plt.Axes], row: dict[str, Any], columns: list[str]) -> None:
    """A line of [`save_attention_sheet`]: picture and question, then each model's answer and attention."""
    axes[0].imshow(row["image"])
    axes[0].set_axis_off()
    title = f"{textwrap.fill(row['question'], 34)}\ntruth: {row['truth']}"
    axes[0].set_title(title, fontsize=8, loc="left", parse_math=False)
    for ax, name in zip(axes[1:], columns, strict=True):
        prediction, attention, on_nothing = row[name]
        side = math.isqrt(attention.numel())
        attention = attention.view(side, side).numpy()
        draw_attention(ax, row["image"], attention)
        answer = textwrap.shorten(prediction, 70, placeholder=" ...")
        title = f"{name}\n{textwrap.fill(answer, 36)}\n{in_numbers(attention, on_nothing)}"
        ax.set_title(title, fontsize=8, loc="left", parse_math=False)


def save_attention_sheet(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """
    A sheet like the paper's Table 4: picture, question, and for each model its answer and attention.

    Args:
        path (`Path`): PNG file.
        rows (`list[dict]`): Each with `image`, `question`, `truth`, and under every name of `columns` its
            prediction, attention, `(num_image_tokens,)` over a square grid of cells, and the share that lies on the
            model's sink instead, 0 without one.
        columns (`list[str]`): Names of the models.
    """
    figure, grid = plt.subplots(
        len(rows), 1 + len(columns), figsize=(2.6 * (1 + len(columns)), 3.2 * len(rows)), squeeze=False
    )
    for axes, row in zip(grid, rows, strict=True):
        draw_sheet_line(axes, row, columns)
    figure.tight_layout()
    draw_legend(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
