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
"""Plans of scenes: what stands where, without a picture."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as PILImage

from recipes.rows.boxes import bounding_box
from recipes.scenes import SPRITES
from recipes.scenes.classes import CLASSES, CONTEXTS, PARTNERS, SPLITS, VISITORS


@dataclass(frozen=True)
class Look:
    """Ranges `(low, high)` that a split draws its renderings from; those of training are disjoint from the others'."""

    sizes: tuple[tuple[float, float], ...]  # longest side of the object / side of the picture
    hues: tuple[tuple[float, float], ...]  # turns of the hue circle
    lights: tuple[tuple[float, float], ...]  # factors on the brightness
    angles: tuple[int, ...]  # degrees


LOOKS = {
    # A range that stands twice is drawn twice as often. The test split's lie between those of the training split, so that
    # a model has to fill gaps rather than to go beyond all that it has seen.
    "train": Look(
        sizes=((0.19, 0.34),) * 6 + ((0.14, 0.16), (0.38, 0.42)),
        hues=((-0.03, 0.03),) * 2 + ((-0.08, -0.05), (0.05, 0.08)),
        lights=((0.9, 1.1),) * 2 + ((0.7, 0.8), (1.2, 1.3)),
        angles=(-12, -6, 0, 6, 12),
    ),
    "test": Look(
        sizes=((0.16, 0.19), (0.34, 0.38)),
        hues=((-0.05, -0.035), (0.035, 0.05)),
        lights=((0.8, 0.9), (1.1, 1.2)),
        angles=(-9, -3, 3, 9),
    ),
}
# What differs from the test split is drawings and backgrounds, and nothing else.
LOOKS["transfer"] = LOOKS["test"]
# What differs from training is further drawings, and nothing else.
LOOKS["varied"] = LOOKS["train"]

# File stems of a split's drawings, by that of their class; any of them may go on with "_2", "_3", "_4".
_STEMS = {"train": ("{}",), "test": ("{}", "{}_test"), "transfer": ("twemoji/{}",), "varied": ("{}", "noto/{}")}


@dataclass(frozen=True)
class Item:
    """One object of a plan; `cx`, `cy`, `width` and `height` are shares of the side of the picture."""

    name: str
    sprite: str
    angle: int
    flip: bool
    hue: float
    light: float
    cx: float
    cy: float
    width: float
    height: float


@dataclass(frozen=True)
class Plan:
    context: str
    items: tuple[Item, ...]

    @functools.cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Class name -> indices of its items."""
        names = [item.name for item in self.items]
        return {name: tuple(i for i, other in enumerate(names) if other == name) for name in dict.fromkeys(names)}


# A stream's place is part of its seed: new ones go to the end.
_STREAMS = (
    "plan",
    "background",
    "caption",
    "instruction",
    "object",
    "pair",
    "existence",
    "recolor",
    "layout",
    "numbers",
)


def row_generator(split: str, index: int, seed: int, stream: str) -> np.random.Generator:
    """Returns the generator of one use (`stream`) of one row; raises `ValueError` for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return np.random.default_rng([seed, SPLITS.index(split), index, _STREAMS.index(stream)])


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _uniform(rng: np.random.Generator, ranges: Sequence[tuple[float, float]]) -> float:
    return float(rng.uniform(*pick(rng, ranges)))


def next_class(rng: np.random.Generator, context: str, present: Sequence[str]) -> str:
    """Returns a class that is not in `present` (in the order in which they were chosen)."""
    partner = PARTNERS.get(present[-1]) if present else None
    if partner and partner not in present and rng.random() < 0.5:
        return partner
    # a stranger comes third at the earliest, so that the context stays plain
    if len(present) >= 2 and rng.random() < 0.15:
        return pick(rng, [name for name in CLASSES if name not in present])
    weights = {name: 1 / (rank + 3) for rank, name in enumerate(CONTEXTS[context])}
    if present:
        weights |= dict.fromkeys(VISITORS[context], 0.12)
    weights = {name: weight for name, weight in weights.items() if name not in present}
    sums = list(itertools.accumulate(weights.values()))
    return list(weights)[int(np.searchsorted(sums, rng.random() * sums[-1]))]


def draw_names(rng: np.random.Generator) -> tuple[str, list[str]]:
    """Returns the context and the 2 to 5 class names of a scene: two classes at least, one class up to four times."""
    context = pick(rng, tuple(CONTEXTS))
    total = pick(rng, (2, 3, 3, 4, 4, 5, 5))
    counts: dict[str, int] = {}
    while (left := total - sum(counts.values())) > 0:
        room = left if counts else left - 1
        times = 1 + int(np.searchsorted([0.65, 0.8, 0.91], rng.random()))
        counts[next_class(rng, context, list(counts))] = min(times, room)
    return context, [name for name, count in counts.items() for _ in range(count)]


@functools.cache
def drawings(name: str, split: str) -> tuple[str, ...]:
    """
    Returns the paths of the class's drawings in `sprites/`, without their ending: the test split adds its own to those of
    the training split, the transfer split has none of either.
    """
    stems = [form.format(name.replace(" ", "_")) for form in _STEMS[split]]
    found = [stem + number for stem in stems for number in ("", "_2", "_3", "_4")]
    return tuple(path for path in found if (SPRITES / f"{path}.webp").exists())


@functools.cache
def levels(sprite: str) -> tuple[PILImage.Image, ...]:
    """Returns a drawing with premultiplied alpha at 64, 128 and 256 pixels."""
    with PILImage.open(SPRITES / f"{sprite}.webp") as file:
        full = file.convert("RGBa")
    return full.resize((64, 64), PILImage.Resampling.BOX), full.resize((128, 128), PILImage.Resampling.BOX), full


@functools.cache
def shape_of(sprite: str, angle: int) -> tuple[np.ndarray, float, float]:
    """Returns the bool pattern (h, w) of the turned drawing in units of 1/64 of its side, and its center's offset."""
    canvas = PILImage.new("L", (96, 96))
    canvas.paste(levels(sprite)[0].getchannel("a"), (16, 16))
    solid = np.asarray(canvas.rotate(angle, PILImage.Resampling.BILINEAR)) > 127
    x0, y0, x1, y1 = bounding_box(solid)
    return solid[y0:y1, x0:x1], ((x0 + x1) / 2 - 48) / 64, ((y0 + y1) / 2 - 48) / 64


def draw_item(rng: np.random.Generator, split: str, name: str, size: float | None = None) -> Item:
    """Draws a rendering of the class at a random place inside the picture; `size` overrides the split's range."""
    look = LOOKS[split]
    sprite, angle = pick(rng, drawings(name, split)), pick(rng, look.angles)
    height, width = shape_of(sprite, angle)[0].shape
    scale = (size or _uniform(rng, look.sizes)) / max(width, height)
    width, height = width * scale, height * scale
    return Item(
        name=name,
        sprite=sprite,
        angle=angle,
        flip=bool(rng.integers(2)),
        hue=_uniform(rng, look.hues),
        light=_uniform(rng, look.lights),
        cx=float(rng.uniform(0.01 + width / 2, 0.99 - width / 2)),
        cy=float(rng.uniform(0.01 + height / 2, 0.99 - height / 2)),
        width=width,
        height=height,
    )


def stamp(grid: np.ndarray, item: Item, value: int) -> int:
    """Writes `value` where the item covers the coarse `grid` (int8, side 64) and returns the number of cells."""
    pattern = shape_of(item.sprite, item.angle)[0]
    x, y = (np.arange(64) + 0.5) / 64 - item.cx, (np.arange(64) + 0.5) / 64 - item.cy
    xs, ys = np.flatnonzero(abs(x) < item.width / 2), np.flatnonzero(abs(y) < item.height / 2)
    columns = ((x[xs] / item.width + 0.5) * pattern.shape[1]).astype(int)
    rows = ((y[ys] / item.height + 0.5) * pattern.shape[0]).astype(int)
    covered = (pattern[:, ::-1] if item.flip else pattern)[np.ix_(rows, columns)]
    grid[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1][covered] = value
    return int(covered.sum())


def _place(rng: np.random.Generator, split: str, names: Sequence[str]) -> tuple[Item, ...] | None:
    """Draws the items one over the other; null when one finds no place that leaves the others in sight."""
    grid, items, areas = np.zeros((64, 64), dtype=np.int8), [], []
    for name in names:
        for _ in range(8):
            item, trial = draw_item(rng, split, name), grid.copy()
            area = stamp(trial, item, len(items) + 1)
            visible = np.bincount(trial.ravel(), minlength=len(items) + 2)[1:]
            # the grid is coarse: 70% of its cells keep an object far above 40% of its pixels, and plain to see
            if all(visible >= 0.7 * np.array([*areas, area])):
                break
        else:
            return None
        grid = trial
        items.append(item)
        areas.append(area)
    return tuple(items)


def make_plan(split: str, index: int, seed: int) -> Plan:
    rng = row_generator(split, index, seed, "plan")
    context, names = draw_names(rng)
    while (items := _place(rng, split, names)) is None:
        pass
    return Plan(context, items)
