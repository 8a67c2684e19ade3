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
"""Scenes: pictures composed of emoji drawings with exact masks, captions, instructions and evaluation questions.

Every picture shows 2 to 5 objects of one of five contexts in front of a procedural background. Objects keep to their
contexts and some go in pairs, so a language prior exists that a model can fall for. Everything follows from
`(seed, split, index)`: row `i` never depends on row `i - 1`. The test split draws backgrounds (families and palettes),
hues, brightness, angles and sizes that the training split never draws, and some drawings that it never shows.

Columns of a row of `load_scenes`:

| column     | content                                                                                                |
|------------|--------------------------------------------------------------------------------------------------------|
| `images`   | list of one PIL picture, RGB, `image_size` x `image_size` pixels                                       |
| `messages` | list of `{"role": "user" or "assistant", "content": str}`                                              |
| `regions`  | list of `{"mask", "image", "text", "span", "message"}`, one for each phrase or message with a mask     |

Fields of a region:

| field     | content                                                                                                 |
|-----------|---------------------------------------------------------------------------------------------------------|
| `mask`    | `{"size": [H, W], "counts": str}`, COCO compressed RLE of the visible pixels                            |
| `image`   | index into `images`, always 0                                                                           |
| `text`    | phrase of the message that the mask belongs to, or null: the whole text of the message                  |
| `span`    | `[start, end)` characters of the phrase when it stands more than once in the message, or null           |
| `message` | index into `messages`                                                                                   |

Command line:

    python recipes/scenes.py --out scenes_train --split train --task caption --num-rows 1000
    python recipes/scenes.py --out sheet.png --split test --num-rows 20
"""

import argparse
import functools
import hashlib
import io
import itertools
import math
import os
import re
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from PIL import Image as PILImage
from PIL import ImageDraw
from pycocotools import mask as coco_mask


SPLITS = ("train", "test")
TASKS = ("caption", "instruction", "existence")
POPE_KINDS = ("random", "popular", "adversarial")

# context: its own classes, the frequent ones first
CONTEXTS = {
    context: tuple(names.split(", "))
    for context, names in {
        "kitchen": "cup, bowl, apple, knife, bottle, spoon, banana, pizza, cake, wine glass, orange, sandwich, "
        "carrot, donut, hot dog",
        "office": "laptop, book, keyboard, mouse, cell phone, pencil, printer, backpack, briefcase, camera",
        "street": "car, person, traffic light, bicycle, bus, truck, motorcycle, umbrella, stop sign, handbag, train, "
        "suitcase, skateboard, airplane, kite, sports ball",
        "safari": "elephant, giraffe, zebra, tree, lion, monkey, tiger, deer, camel, bird, cow, horse, sheep, bear",
        "living room": "couch, tv, chair, potted plant, cat, clock, vase, bed, dog, candle, teddy bear, guitar",
    }.items()
}
CLASSES = tuple(name for names in CONTEXTS.values() for name in names)

_PLACES = {
    "kitchen": "a kitchen",
    "office": "an office",
    "street": "a street",
    "safari": "a safari park",
    "living room": "a living room",
}
# classes of other contexts that are now and then seen in a context
_VISITORS = {
    "kitchen": ("person", "chair", "cat", "clock"),
    "office": ("cup", "person", "clock", "chair", "potted plant"),
    "street": ("dog", "backpack", "cell phone", "bird", "tree"),
    "safari": ("person", "camera", "truck", "car"),
    "living room": ("book", "person", "cup", "sports ball"),
}
_PARTNERS = {
    "keyboard": "mouse",
    "mouse": "keyboard",
    "laptop": "mouse",
    "bowl": "spoon",
    "spoon": "bowl",
    "wine glass": "bottle",
    "car": "traffic light",
    "traffic light": "car",
    "bicycle": "person",
    "couch": "tv",
    "tv": "couch",
    "candle": "vase",
    "zebra": "giraffe",
    "giraffe": "tree",
}
_PLURALS = {
    "bus": "buses",
    "couch": "couches",
    "deer": "deer",
    "knife": "knives",
    "mouse": "mice",
    "person": "people",
    "sandwich": "sandwiches",
    "sheep": "sheep",
    "wine glass": "wine glasses",
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five")
_OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
_SIDES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


# --- Plans: what stands where, without a picture ---


@dataclass(frozen=True)
class _Look:
    """Ranges `(low, high)` that a split draws its renderings from; the ranges of the two splits are disjoint."""

    sizes: tuple[tuple[float, float], ...]  # longest side of the object / side of the picture
    hues: tuple[tuple[float, float], ...]  # turns of the hue circle
    lights: tuple[tuple[float, float], ...]  # factors on the brightness
    angles: tuple[int, ...]  # degrees


_LOOKS = {
    # A range that stands twice is drawn twice as often. The test split's lie between those of the training split, so that
    # a model has to fill gaps rather than to go beyond all that it has seen.
    "train": _Look(
        sizes=((0.19, 0.34),) * 6 + ((0.14, 0.16), (0.38, 0.42)),
        hues=((-0.03, 0.03),) * 2 + ((-0.08, -0.05), (0.05, 0.08)),
        lights=((0.9, 1.1),) * 2 + ((0.7, 0.8), (1.2, 1.3)),
        angles=(-12, -6, 0, 6, 12),
    ),
    "test": _Look(
        sizes=((0.16, 0.19), (0.34, 0.38)),
        hues=((-0.05, -0.035), (0.035, 0.05)),
        lights=((0.8, 0.9), (1.1, 1.2)),
        angles=(-9, -3, 3, 9),
    ),
}


@dataclass(frozen=True)
class _Item:
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
class _Plan:
    context: str
    items: tuple[_Item, ...]

    @functools.cached_property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Class name -> indices of its items."""
        names = [item.name for item in self.items]
        return {name: tuple(i for i, other in enumerate(names) if other == name) for name in dict.fromkeys(names)}


def _generator(split: str, index: int, seed: int, stream: str) -> np.random.Generator:
    """Returns the generator of one use (`stream`) of one row; raises `ValueError` for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    streams = ("plan", "background", "caption", "instruction", "object", "pair", "existence")
    return np.random.default_rng([seed, SPLITS.index(split), index, streams.index(stream)])


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _uniform(rng: np.random.Generator, ranges: Sequence[tuple[float, float]]) -> float:
    return float(rng.uniform(*_pick(rng, ranges)))


def _next_class(rng: np.random.Generator, context: str, present: Sequence[str]) -> str:
    """Returns a class that is not in `present` (in the order in which they were chosen)."""
    partner = _PARTNERS.get(present[-1]) if present else None
    if partner and partner not in present and rng.random() < 0.5:
        return partner
    # a stranger comes third at the earliest, so that the context stays plain
    if len(present) >= 2 and rng.random() < 0.15:
        return _pick(rng, [name for name in CLASSES if name not in present])
    weights = {name: 1 / (rank + 3) for rank, name in enumerate(CONTEXTS[context])}
    if present:
        weights |= dict.fromkeys(_VISITORS[context], 0.12)
    weights = {name: weight for name, weight in weights.items() if name not in present}
    sums = list(itertools.accumulate(weights.values()))
    return list(weights)[int(np.searchsorted(sums, rng.random() * sums[-1]))]


def _draw_names(rng: np.random.Generator) -> tuple[str, list[str]]:
    """Returns the context and the 2 to 5 class names of a scene: two classes at least, one class up to four times."""
    context = _pick(rng, tuple(CONTEXTS))
    total = _pick(rng, (2, 3, 3, 4, 4, 5, 5))
    counts: dict[str, int] = {}
    while (left := total - sum(counts.values())) > 0:
        room = left if counts else left - 1
        times = 1 + int(np.searchsorted([0.65, 0.8, 0.91], rng.random()))
        counts[_next_class(rng, context, list(counts))] = min(times, room)
    return context, [name for name, count in counts.items() for _ in range(count)]


@functools.cache
def _drawings(name: str, split: str) -> tuple[str, ...]:
    """Returns the file stems of the class: the test split adds its own drawings to those of the training split."""
    stem = name.replace(" ", "_")
    tails = [tail + number for tail in ("", "_test")[: 1 + (split == "test")] for number in ("", "_2", "_3", "_4")]
    return tuple(stem + tail for tail in tails if (_sprite_folder() / f"{stem}{tail}.webp").exists())


def _sprite_folder() -> Path:
    return Path(__file__).parent / "sprites"


@functools.cache
def _levels(sprite: str) -> tuple[PILImage.Image, ...]:
    """Returns a drawing with premultiplied alpha at 64, 128 and 256 pixels."""
    with PILImage.open(_sprite_folder() / f"{sprite}.webp") as file:
        full = file.convert("RGBa")
    return full.resize((64, 64), PILImage.Resampling.BOX), full.resize((128, 128), PILImage.Resampling.BOX), full


@functools.cache
def _shape(sprite: str, angle: int) -> tuple[np.ndarray, float, float]:
    """Returns the bool pattern (h, w) of the turned drawing in units of 1/64 of its side, and its center's offset."""
    canvas = PILImage.new("L", (96, 96))
    canvas.paste(_levels(sprite)[0].getchannel("a"), (16, 16))
    solid = np.asarray(canvas.rotate(angle, PILImage.Resampling.BILINEAR)) > 127
    x0, y0, x1, y1 = _box(solid)
    return solid[y0:y1, x0:x1], ((x0 + x1) / 2 - 48) / 64, ((y0 + y1) / 2 - 48) / 64


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the box (x0, y0, x1, y1), ends excluded, of a non-empty bool mask (H, W)."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _draw_item(rng: np.random.Generator, split: str, name: str, size: float | None = None) -> _Item:
    """Draws a rendering of the class at a random place inside the picture; `size` overrides the split's range."""
    look = _LOOKS[split]
    sprite, angle = _pick(rng, _drawings(name, split)), _pick(rng, look.angles)
    height, width = _shape(sprite, angle)[0].shape
    scale = (size or _uniform(rng, look.sizes)) / max(width, height)
    width, height = width * scale, height * scale
    return _Item(
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


def _stamp(grid: np.ndarray, item: _Item, value: int) -> int:
    """Writes `value` where the item covers the coarse `grid` (int8, side 64) and returns the number of cells."""
    pattern = _shape(item.sprite, item.angle)[0]
    x, y = (np.arange(64) + 0.5) / 64 - item.cx, (np.arange(64) + 0.5) / 64 - item.cy
    xs, ys = np.flatnonzero(abs(x) < item.width / 2), np.flatnonzero(abs(y) < item.height / 2)
    columns = ((x[xs] / item.width + 0.5) * pattern.shape[1]).astype(int)
    rows = ((y[ys] / item.height + 0.5) * pattern.shape[0]).astype(int)
    covered = (pattern[:, ::-1] if item.flip else pattern)[np.ix_(rows, columns)]
    grid[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1][covered] = value
    return int(covered.sum())


def _place(rng: np.random.Generator, split: str, names: Sequence[str]) -> tuple[_Item, ...] | None:
    """Draws the items one over the other; null when one finds no place that leaves the others in sight."""
    grid, items, areas = np.zeros((64, 64), dtype=np.int8), [], []
    for name in names:
        for _ in range(8):
            item, trial = _draw_item(rng, split, name), grid.copy()
            area = _stamp(trial, item, len(items) + 1)
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


def _plan(split: str, index: int, seed: int) -> _Plan:
    rng = _generator(split, index, seed, "plan")
    context, names = _draw_names(rng)
    while (items := _place(rng, split, names)) is None:
        pass
    return _Plan(context, items)


# --- Pictures ---


@dataclass
class SceneObject:
    """An object in a scene.

    `bbox` (x0, y0, x1, y1), ends excluded, holds the whole object with its hidden part; `mask` (H, W) bool holds the
    visible pixels, and `visible` is their share of the object's pixels (0.4 at least).
    """

    name: str
    bbox: tuple[int, int, int, int]
    mask: np.ndarray
    visible: float


@dataclass
class Scene:
    """A picture (RGB), its objects, back to front, and its context, a key of `CONTEXTS`."""

    image: PILImage.Image
    objects: list[SceneObject]
    context: str


def _clouds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    coarse = PILImage.fromarray(rng.random((6, 6), dtype=np.float32))
    return np.asarray(coarse.resize((x.size, y.size), PILImage.Resampling.BICUBIC))


def _bricks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x * (count := rng.integers(5, 10)), y * count
    joint = ((x / 2 + y.astype(int) % 2 / 2) % 1 < 0.06) | (y % 1 < 0.12)
    return np.where(joint, 0.9, 0.2 + 0.1 * y / count)


# A family maps x (1, W) and y (H, 1) in [0, 1] to the mix (H, W) of two colors.
_FAMILIES = {
    "train": {
        "ramp": lambda rng, x, y: 0.5 + rng.uniform(-0.7, 0.7) * (x - 0.5) + rng.uniform(-0.7, 0.7) * (y - 0.5),
        "floor": lambda rng, x, y: np.where(y < rng.uniform(0.4, 0.75), 0.3 * y, 1.3 - 0.5 * y) + 0 * x,
        "tiles": lambda rng, x, y: ((x * (n := rng.integers(3, 9))).astype(int) + (y * n).astype(int)) % 2 * 0.6,
        "stripes": lambda rng, x, y: (np.sin(2 * np.pi * (rng.integers(3, 10) * x)) > 0) * 0.6 + 0.3 * y,
        "clouds": _clouds,
    },
    "test": {
        "diagonals": lambda rng, x, y: (
            0.5 + 0.4 * np.sin(2 * np.pi * rng.integers(3, 8) * (x + rng.uniform(0.6, 1.4) * y))
        ),
        "rings": lambda rng, x, y: (
            np.hypot(x - rng.uniform(0.2, 0.8), y - rng.uniform(0.2, 0.8)) * rng.integers(3, 9) % 1
        ),
        "bricks": _bricks,
        "dots": lambda rng, x, y: np.hypot(x * (n := rng.integers(4, 9)) % 1 - 0.5, y * n % 1 - 0.5) < 0.3,
        "waves": lambda rng, x, y: (rng.integers(4, 9) * y + np.sin(2 * np.pi * rng.integers(1, 4) * x) / 4) % 1,
    },
}


def _color(rng: np.random.Generator, split: str) -> np.ndarray:
    """Draws a light color (3,) in [0, 255]; the hue circle has twelve sectors that belong to the splits by turns."""
    sector = 2 * rng.integers(6) + SPLITS.index(split)
    hue, saturation, value = (sector + rng.random()) / 12, rng.uniform(0.15, 0.5), rng.uniform(0.6, 1.0)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (255 * value * (1 - saturation * (1 - wheel))).astype(np.float32)


def _background(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """Draws a background (size, size, 3) uint8."""
    first, second = _color(rng, split), _color(rng, split)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    mix = np.clip(_pick(rng, tuple(_FAMILIES[split].values()))(rng, axis[None, :], axis[:, None]), 0, 1).astype(
        np.float32
    )
    return (first + (second - first) * mix[..., None]).astype(np.uint8)


def _tint(hue: float, light: float) -> np.ndarray:
    """Returns the color matrix (3, 3) that turns the hue about the gray axis and scales the brightness."""
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue) / math.sqrt(3)
    turn = np.array([[0, -sin, sin], [sin, 0, -sin], [-sin, sin, 0]])
    return (light * (cos * np.eye(3) + (1 - cos) / 3 + turn)).astype(np.float32)


def _render(item: _Item, size: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Returns the part (y1 - y0, x1 - x0, 4) of the item's layer, float32 with premultiplied alpha in [0, 255]."""
    pattern, offset_x, offset_y = _shape(item.sprite, item.angle)
    side = 64 * item.width * size / pattern.shape[1]  # of the whole drawing, in pixels
    level = next((level for level in _levels(item.sprite) if level.width >= side), _levels(item.sprite)[-1])
    step = level.width / side
    turn, mirror = -math.radians(item.angle), -1 if item.flip else 1
    cos, sin = math.cos(turn), math.sin(turn)
    dx = mirror * (x0 - item.cx * size) * step + offset_x * level.width
    dy = (y0 - item.cy * size) * step + offset_y * level.width
    half = level.width / 2
    rows = (mirror * cos * step, sin * step, cos * dx + sin * dy + half)
    rows += (-mirror * sin * step, cos * step, cos * dy - sin * dx + half)
    part = level.transform((x1 - x0, y1 - y0), PILImage.Transform.AFFINE, rows, PILImage.Resampling.BILINEAR)
    return np.asarray(part).astype(np.float32)


def _paint(canvas: np.ndarray, owner: np.ndarray, item: _Item, value: int) -> tuple[tuple[int, int, int, int], int]:
    """Paints the item on `canvas` (S, S, 3) uint8 and `value` on `owner` (S, S) int8; returns its box and its area.

    Pixels with an alpha of one half or less are left alone, so every pixel outside the masks is background.
    """
    size = len(canvas)
    x0, x1 = (int(np.clip((item.cx + s * item.width / 2) * size + 3 * s, 0, size)) for s in (-1, 1))
    y0, y1 = (int(np.clip((item.cy + s * item.height / 2) * size + 3 * s, 0, size)) for s in (-1, 1))
    layer = _render(item, size, x0, y0, x1, y1)
    alpha = layer[..., 3]
    solid = alpha > 127.5
    color, alpha = layer[solid, :3] @ _tint(item.hue, item.light).T, alpha[solid][:, None]
    below = canvas[y0:y1, x0:x1]
    below[solid] = np.clip(color, 0, alpha) + below[solid] * (1 - alpha / 255)
    owner[y0:y1, x0:x1][solid] = value
    left, top, right, bottom = _box(solid)
    return (x0 + left, y0 + top, x0 + right, y0 + bottom), len(alpha)


def _compose(plan: _Plan, background: np.ndarray) -> Scene:
    """Paints the plan on the background (S, S, 3) uint8, in place."""
    owner = np.full(background.shape[:2], -1, dtype=np.int8)
    painted = [_paint(background, owner, item, i) for i, item in enumerate(plan.items)]
    objects = []
    for i, (item, (box, area)) in enumerate(zip(plan.items, painted, strict=True)):
        mask = owner == i
        objects.append(SceneObject(item.name, box, mask, float(mask.sum() / area)))
    return Scene(PILImage.fromarray(background), objects, plan.context)


def sample_scene(split: str, index: int, seed: int = 0, image_size: int = 192) -> Scene:
    """Returns scene `index` of a split (`"train"` or `"test"`) at `image_size` x `image_size` pixels.

    The same `(split, index, seed)` gives the same scene at every size. Raises `ValueError` for an unknown split.
    """
    background = _background(_generator(split, index, seed, "background"), split, image_size)
    return _compose(_plan(split, index, seed), background)


def draw_object(split: str, index: int, seed: int = 0, size: int = 64) -> tuple[PILImage.Image, int]:
    """Returns a picture (RGB, `size` x `size`) of one object and its label, an index into `CLASSES`.

    Every second picture shows the edge of another object behind it. Raises `ValueError` for an unknown split.
    """
    rng = _generator(split, index, seed, "object")
    label = int(rng.integers(len(CLASSES)))
    canvas = _background(rng, split, size)
    main = _draw_item(rng, split, CLASSES[label], size=rng.uniform(0.42, 0.95))
    if rng.random() < 0.5:
        other = _draw_item(rng, split, _pick(rng, CLASSES), size=0.6)
        edge = {_pick(rng, ("cx", "cy")): _pick(rng, (0.0, 1.0))}
        _paint(canvas, np.zeros((size, size), dtype=np.int8), _Item(**{**vars(other), **edge}), 0)
    _paint(canvas, np.zeros((size, size), dtype=np.int8), main, 0)
    return PILImage.fromarray(canvas), label


# --- Texts ---


@dataclass(frozen=True)
class _Message:
    """A message: `mentions` are (phrase, start, item indices), `items` those that the message as a whole is about."""

    role: str
    content: str
    mentions: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    items: tuple[int, ...] = ()


_Phrase = tuple[str, tuple[int, ...]]


def _message(role: str, *parts: str | _Phrase, whole: bool = True) -> _Message:
    """Joins texts and phrases `(text, item indices)`; `whole`: the message is about all items of its phrases."""
    content, mentions = "", []
    for part in parts:
        text, items = part if isinstance(part, tuple) else (part, ())
        if items:
            mentions.append((text, len(content), items))
        content += text
    union = sorted({i for _, _, items in mentions for i in items}) if whole else ()
    return _Message(role, content, tuple(mentions), tuple(union))


def _one(name: str) -> str:
    return ("an " if name[0] in "aeiou" else "a ") + name


def _plural(name: str) -> str:
    return _PLURALS.get(name, name + "s")


def _counted(name: str, count: int) -> str:
    return _one(name) if count == 1 else f"{_NUMBERS[count]} {_plural(name)}"


def _some(name: str, count: int) -> str:
    """Names the objects without their number, which another question may ask for."""
    return _one(name) if count == 1 else f"some {_plural(name)}"


def _listed(phrases: Sequence[_Phrase]) -> list[str | _Phrase]:
    """Puts commas and an "and" between phrases."""
    parts: list[str | _Phrase] = []
    for i, phrase in enumerate(phrases):
        parts += [" and " if i == len(phrases) - 1 else ", ", phrase] if i else [phrase]
    return parts


def _position(item: _Item) -> str:
    if abs(item.cx - 0.5) >= 0.12:
        return "on the left" if item.cx < 0.5 else "on the right"
    if abs(item.cy - 0.5) >= 0.12:
        return "at the top" if item.cy < 0.5 else "at the bottom"
    return "in the middle"


def _relations(plan: _Plan) -> list[tuple[str, str, str]]:
    """Returns all (class, side, class) that hold by a margin between classes that stand once in the plan."""
    single = {name: plan.items[ids[0]] for name, ids in plan.groups.items() if len(ids) == 1}
    found = []
    for (name, item), (other_name, other) in itertools.permutations(single.items(), 2):
        if abs(item.cx - other.cx) >= 0.15:
            found.append((name, "left" if item.cx < other.cx else "right", other_name))
        if abs(item.cy - other.cy) >= 0.15:
            found.append((name, "above" if item.cy < other.cy else "below", other_name))
    return found


def _relation_parts(plan: _Plan, name: str, side: str, other: str) -> list[str | _Phrase]:
    return ["The ", (name, plan.groups[name]), f" is {_SIDES[side]} the ", (other, plan.groups[other]), "."]


def _caption(plan: _Plan, rng: np.random.Generator) -> list[_Message]:
    """Returns a request and a caption: all objects with their numbers, then a relation or a position."""
    requests = ("Describe the image.", "What does the image show?", "What can you see in the image?")
    opening = _pick(rng, ("{} with ", "The image shows {} with ", "This is a picture of {} with "))
    opening = opening.format(_PLACES[plan.context])
    names = [str(name) for name in rng.permutation(list(plan.groups))]
    parts = [opening[0].upper() + opening[1:]]
    parts += [*_listed([(_counted(name, len(plan.groups[name])), plan.groups[name]) for name in names]), "."]
    single = [name for name in names if len(plan.groups[name]) == 1]
    if relations := _relations(plan):
        parts += [" ", *_relation_parts(plan, *_pick(rng, relations))]
    elif single:
        item = plan.groups[single[0]]
        parts += [" The ", (single[0], item), f" is {_position(plan.items[item[0]])}."]
    return [_message("user", _pick(rng, requests)), _message("assistant", *parts)]


def _affirm(plan: _Plan, name: str, template: str) -> list[_Message]:
    items = plan.groups[name]
    verb, tail = ("is", f" It is {_position(plan.items[items[0]])}.") if len(items) == 1 else ("are", "")
    answer = (f"Yes, there {verb} ", (_some(name, len(items)), items), " in the image." + tail)
    question = _message("user", *_split(template, "{}", _one(name).removesuffix(name), (name, items)))
    return [question, _message("assistant", *answer, whole=False)]


def _split(template: str, mark: str, *parts: str | _Phrase) -> list[str | _Phrase]:
    """Puts the parts in the place of the mark."""
    before, _, after = template.partition(mark)
    return [before, *parts, after]


def _deny(plan: _Plan, name: str, template: str, shown: Sequence[str]) -> list[_Message]:
    """Returns a question about an absent class; the answer tells of some `shown` classes instead."""
    listed = "".join(_listed([_some(other, len(plan.groups[other])) for other in shown]))
    answer = f"No, there is no {name} in the image. The image shows {listed}."
    return [_message("user", template.format(_one(name))), _message("assistant", answer)]


def _count_turn(plan: _Plan, name: str, template: str) -> list[_Message]:
    items = plan.groups[name]
    phrase = f"one {name}" if len(items) == 1 else _counted(name, len(items))
    answer = (f"There {'is' if len(items) == 1 else 'are'} ", (phrase, items), " in the image.")
    question = _message("user", *_split(template, "{}", (_plural(name), items)))
    return [question, _message("assistant", *answer, whole=False)]


def _relation_question(plan: _Plan, name: str, sides: tuple[str, str], other: str) -> _Message:
    """Asks on which of the two sides of `other` the object is; the sides stand in the order of the question."""
    choice = " or ".join(_SIDES[side].removesuffix(" of") for side in sides)
    choice += " of" if "left" in sides else ""
    return _message("user", "Is the ", (name, plan.groups[name]), f" {choice} the ", (other, plan.groups[other]), "?")


_EXISTENCE = ("Is there {} in the image?", "Does the image show {}?", "Can you see {} in the image?")
_COUNTS = ("How many {} are in the image?", "How many {} can you see?", "How many {} does the image show?")


def _absent(plan: _Plan, rng: np.random.Generator, asked: Sequence[str]) -> str:
    """Draws a class that is not in the plan: any one, or one that goes with its context, half of the time each."""
    taken = [*plan.groups, *asked]
    if rng.random() < 0.5:
        return _pick(rng, [name for name in CLASSES if name not in taken])
    while (name := _next_class(rng, plan.context, taken[:1])) in taken:
        pass
    return name


def _existence_turns(plan: _Plan, rng: np.random.Generator, names: Sequence[str]) -> list[list[_Message]]:
    """Returns 2 to 4 existence turns; `names` are the classes of the plan in a random order.

    Every answer is a fair coin of its own and no answer names a class that is asked for in another turn: neither the
    other turns nor the number of yes among them tell the answer.
    """
    count = int(rng.integers(2, min(4, len(names)) + 1))
    affirmed = names[: int(rng.binomial(count, 0.5))]
    free = names[len(affirmed) :]
    turns = [_affirm(plan, name, _pick(rng, _EXISTENCE)) for name in affirmed]
    asked: list[str] = []
    for _ in range(count - len(affirmed)):
        asked.append(_absent(plan, rng, asked))
        turns.append(_deny(plan, asked[-1], _pick(rng, _EXISTENCE), free[:2]))
    return [turns[i] for i in rng.permutation(count)]


def _existence(plan: _Plan, rng: np.random.Generator) -> list[_Message]:
    """Returns 2 to 4 turns about existence with answers of one word."""
    turns = _existence_turns(plan, rng, [str(name) for name in rng.permutation(list(plan.groups))])
    return [m for ask, tell in turns for m in (ask, _message("assistant", tell.content.partition(",")[0] + "."))]


def _instruction(plan: _Plan, rng: np.random.Generator) -> list[_Message]:
    """
    Returns 2 to 6 turns: existence first, as the other questions give away what is there, then the rest. A third of the
    dialogs are without existence, so that every kind of question comes first in some.
    """
    names = [str(name) for name in rng.permutation(list(plan.groups))]
    existence = _existence_turns(plan, rng, names) if rng.random() < 2 / 3 else []
    relations = _relations(plan)
    rest = []
    if relations:
        name, side, other = _pick(rng, relations)
        sides = (side, _OPPOSITES[side]) if rng.random() < 0.5 else (_OPPOSITES[side], side)
        question = _relation_question(plan, name, sides, other)
        rest.append([question, _message("assistant", *_relation_parts(plan, name, side, other), whole=False)])
    # first the classes that stand more than once, then those that were the least likely to be named above
    names.reverse()
    names.sort(key=lambda name: len(plan.groups[name]) == 1)
    several = sum(len(items) > 1 for items in plan.groups.values())
    number = max(min(2, several), 4 - len(existence) - len(rest))
    rest += [_count_turn(plan, name, _pick(rng, _COUNTS)) for name in names[:number]]
    turns = existence + [rest[i] for i in rng.permutation(len(rest))]
    return [message for turn in turns for message in turn]


def _dialog(plan: _Plan, task: str, split: str, index: int, seed: int) -> list[_Message]:
    """Returns the messages of a row; raises `ValueError` for an unknown task."""
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    rng = _generator(split, index, seed, task)
    return {"caption": _caption, "instruction": _instruction, "existence": _existence}[task](plan, rng)


def scene_texts(split: str, num: int, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """Yields the messages of `num` chats without drawing the pictures: captions, instructions and both by turns.

    They are the messages that `load_scenes` gives for row 0 of `"caption"`, row 1 of `"instruction"`, rows 2 and 3 of
    either, one after the other, and so on. In the last kind the answers follow from the caption.
    """
    for index in range(num):
        plan = _plan(split, index, seed)
        both = ("caption", "instruction")
        tasks = (both[:1], both[1:], both, both)[index % 4]
        dialog = [message for task in tasks for message in _dialog(plan, task, split, index, seed)]
        yield [{"role": message.role, "content": message.content} for message in dialog]


# --- Data sets ---

_MASK = {"size": List(Value("int32")), "counts": Value("string")}
FEATURES = Features(
    {
        "images": List(Image()),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "regions": List(
            {
                "mask": _MASK,
                "image": Value("int32"),
                "text": Value("string"),
                "span": List(Value("int32")),
                "message": Value("int32"),
            }
        ),
    }
)


def _encode(scene: Scene, items: Sequence[int]) -> dict[str, Any]:
    """Returns the COCO compressed RLE of the union of the objects' visible masks."""
    union = np.logical_or.reduce([scene.objects[i].mask for i in items])
    code = coco_mask.encode(np.asfortranarray(union, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def _regions(scene: Scene, dialog: Sequence[_Message]) -> list[dict[str, Any]]:
    encode = functools.cache(functools.partial(_encode, scene))
    regions = []
    for i, message in enumerate(dialog):
        if message.items:
            regions.append({"mask": encode(message.items), "text": None, "span": None, "message": i})
        for phrase, start, items in message.mentions:
            # "a car" also stands in "a carrot": count characters, not words
            span = [start, start + len(phrase)] if message.content.count(phrase) > 1 else None
            regions.append({"mask": encode(items), "text": phrase, "span": span, "message": i})
    return [{**region, "image": 0} for region in regions]


def _row(split: str, task: str, index: int, image_size: int, seed: int) -> dict[str, Any]:
    """Returns row `index` with its picture as PNG bytes."""
    plan = _plan(split, index, seed)
    scene = _compose(plan, _background(_generator(split, index, seed, "background"), split, image_size))
    dialog = _dialog(plan, task, split, index, seed)
    file = io.BytesIO()
    scene.image.save(file, format="PNG", compress_level=1)
    return {
        "images": [{"bytes": file.getvalue(), "path": None}],
        "messages": [{"role": message.role, "content": message.content} for message in dialog],
        "regions": _regions(scene, dialog),
    }


def _rows(
    ranges: list[tuple[int, int]], split: str, task: str, image_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    for start, stop in ranges:
        for index in range(start, stop):
            yield _row(split, task, index, image_size, seed)


def load_scenes(
    split: str,
    task: str,
    num_rows: int,
    image_size: int = 192,
    seed: int = 0,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> Dataset | IterableDataset:
    """Returns rows 0 to `num_rows` - 1 of a split (`"train"`, `"test"`) and a task (`TASKS`).

    A map-style data set is written once to `cache_dir` (null: the cache of `datasets`). A streaming one draws its rows
    when they are asked for, in shards that the workers of a data loader share. Raises `ValueError` for an unknown
    split or task.
    """
    if split not in SPLITS or task not in TASKS:
        raise ValueError(f"split must be one of {SPLITS} and task one of {TASKS}, got {split!r} and {task!r}")
    step = max(1, min(256, num_rows // 16))
    ranges = [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]
    settings = {"ranges": ranges, "split": split, "task": task, "image_size": image_size, "seed": seed}
    if streaming:
        return IterableDataset.from_generator(_rows, features=FEATURES, gen_kwargs=settings)
    # the cache must not outlive a change of this file
    fingerprint = hashlib.sha256(Path(__file__).read_bytes() + repr(settings).encode()).hexdigest()[:16]
    return Dataset.from_generator(
        _rows,
        features=FEATURES,
        gen_kwargs=settings,
        cache_dir=cache_dir,
        fingerprint=fingerprint,
        num_proc=min(os.cpu_count() or 1, len(ranges)) if num_rows >= 500 else None,  # below, starting them costs more
    )


# --- Evaluation ---


@functools.cache
def _habits() -> tuple[np.ndarray, np.ndarray]:
    """Returns how often classes (C,) and pairs of classes (C, C) are seen in 4000 scenes."""
    rng = np.random.default_rng(0)
    shown = np.zeros((4000, len(CLASSES)))
    for row in shown:
        row[[CLASSES.index(name) for name in set(_draw_names(rng)[1])]] = 1
    return shown.sum(axis=0), shown.T @ shown


def _ranked(plan: _Plan, kind: str, rng: np.random.Generator) -> list[str]:
    """Returns the classes that are not in the plan, those to ask for first.

    They are in a random order, the most frequent ones first, or those first that are most often seen together with
    what the plan shows (POPE's random, popular and adversarial).
    """
    frequency, together = _habits()
    present = [CLASSES.index(name) for name in plan.groups]
    scores = {
        "random": rng.random(len(CLASSES)),
        "popular": frequency,
        "adversarial": together[present].sum(axis=0),
    }[kind]
    return [CLASSES[i] for i in np.argsort(-scores, kind="stable") if i not in present]


# picture, question, short answer, kind, class that is asked for, phrases (text, start, items) of what is in the picture
_Draft = tuple[int, str, str, str, str, tuple[tuple[str, int, tuple[int, ...]], ...]]


def _pope_drafts(plans: Sequence[_Plan], kind: str, first: int, rng: np.random.Generator) -> Iterator[_Draft]:
    """Yields a no for every third picture and, for each, a yes about the same class from a picture of that context."""
    holders = defaultdict(list)
    for i in rng.permutation(len(plans)):
        for name in plans[i].groups:
            holders[plans[i].context, name].append(int(i))
    for i in range(first, len(plans), 3):
        names = (name for name in _ranked(plans[i], kind, rng) if holders[plans[i].context, name])
        if (name := next(names, None)) is None:
            continue
        other = holders[plans[i].context, name].pop()
        question = _EXISTENCE[0].format(_one(name))
        yield i, question, "no", kind, name, ()
        yield other, question, "yes", kind, name, ((name, question.index(name), plans[other].groups[name]),)


def _count_drafts(plans: Sequence[_Plan], total: int, rng: np.random.Generator) -> Iterator[_Draft]:
    """Yields up to `total` questions, taking the numbers one to four by turns while there are any left."""
    pools = defaultdict(list)
    for i in rng.permutation(len(plans)):
        for name, items in plans[i].groups.items():
            pools[len(items)].append((int(i), name, items))
    turns = itertools.zip_longest(*(pools[count] for count in sorted(pools)))
    for i, name, items in itertools.islice((entry for turn in turns for entry in turn if entry), total):
        question = _COUNTS[0].format(_plural(name))
        phrase = (_plural(name), question.index(_plural(name)), items)
        yield i, question, _NUMBERS[len(items)], "count", name, (phrase,)


def _relation_drafts(plans: Sequence[_Plan], total: int, rng: np.random.Generator) -> Iterator[_Draft]:
    """Yields up to `total` questions, as many about every side, at most one about a picture and an axis."""
    pools = defaultdict(list)
    for i in rng.permutation(len(plans)):
        relations = _relations(plans[i])
        for sides in (("left", "right"), ("above", "below")):
            # a relation and its converse are both there, so either answer can be had from any picture
            side = min(sides, key=lambda side: len(pools[side]))
            if options := [relation for relation in relations if relation[1] == side]:
                pools[side].append((int(i), sides, _pick(rng, options)))
    for turn in itertools.islice(zip(*(pools[side] for side in _SIDES), strict=False), total // 4):
        for i, sides, (name, side, other) in turn:
            message = _relation_question(plans[i], name, sides, other)
            yield i, message.content, side, "relation", name, message.mentions


def _question_row(
    scene: Scene, question: str, answer: str, kind: str, name: str, phrases: Sequence[tuple[str, int, tuple[int, ...]]]
) -> dict[str, Any]:
    return {
        "image": scene.image,
        "question": question,
        "answer": answer,
        "kind": kind,
        "object": name,
        "context": scene.context,
        "mask": _encode(scene, [n for _, _, items in phrases for n in items]) if phrases else None,
        "phrases": [
            {"text": text, "span": [start, start + len(text)], "mask": _encode(scene, items)}
            for text, start, items in phrases
        ],
    }


def load_questions(
    split: str = "test", num_images: int = 300, image_size: int = 192, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the evaluation questions about the scenes 0 to `num_images` - 1 of a split.

    About 2 `num_images` questions are about existence, two thirds of `num_images` each about numbers and relations.
    Rows: `image` (PIL), `question`, `answer` ("yes", "no", a number as a word, or a side), `kind` (of `POPE_KINDS`,
    "count" or "relation"), `object` (class), `context`, `mask` (RLE of the visible pixels of all that is asked about,
    null for a no), `phrases` (the words that name something in the picture: `text`, `span`, `mask`).

    For every no there is a yes to the same question in another picture of the same context and for the same kind, so a
    model that sees nothing but the question has an accuracy of exactly one half.
    """
    plans = [_plan(split, index, seed) for index in range(num_images)]
    rng = np.random.default_rng([seed, SPLITS.index(split), num_images])
    drafts = [
        *(draft for i, kind in enumerate(POPE_KINDS) for draft in _pope_drafts(plans, kind, i, rng)),
        *_count_drafts(plans, 2 * num_images // 3, rng),
        *_relation_drafts(plans, 2 * num_images // 3, rng),
    ]
    scenes = {i: sample_scene(split, i, seed, image_size) for i in sorted({draft[0] for draft in drafts})}
    return [_question_row(scenes[i], *draft) for i, *draft in drafts]


# --- Evaluation: the same question on a picture and on an edited one ---


def _without(plan: _Plan, index: int) -> _Plan:
    return replace(plan, items=plan.items[:index] + plan.items[index + 1 :])


def _in_sight(items: Sequence[_Item]) -> bool:
    """Tells whether every item keeps the share of the coarse grid's cells that `_place` leaves it."""
    grid = np.zeros((64, 64), dtype=np.int8)
    areas = np.array([_stamp(grid, item, i) for i, item in enumerate(items, start=1)])
    return bool(np.all(np.bincount(grid.ravel(), minlength=len(items) + 1)[1:] >= 0.7 * areas))


def _moved(plan: _Plan, rng: np.random.Generator, name: str, side: str, other: str) -> _Plan | None:
    """Moves the object straight to the opposite side of `other`; null when the others leave it no place there."""
    (index,), (fixed,) = plan.groups[name], plan.groups[other]
    item = plan.items[index]
    axis, extent = ("cx", "width") if side in ("left", "right") else ("cy", "height")
    low, high = 0.01 + getattr(item, extent) / 2, 0.99 - getattr(item, extent) / 2
    if side in ("left", "above"):
        low = max(low, getattr(plan.items[fixed], axis) + 0.15)
    else:
        high = min(high, getattr(plan.items[fixed], axis) - 0.15)
    if low >= high:
        return None
    for _ in range(8):
        place = {axis: float(rng.uniform(low, high))}
        items = (*plan.items[:index], replace(item, **place), *plan.items[index + 1 :])
        if _in_sight(items):
            return replace(plan, items=items)
    return None


def _edits(plan: _Plan, rng: np.random.Generator) -> Iterator[tuple[_Plan, str, str, str | None, str | None]]:
    """Yields up to one edited plan, kind, class, and for a relation side (in `plan`) and class, for each kind."""
    if len(plan.items) > 2:  # no scene has less than two objects
        for kind, chosen in (("existence", lambda count: count == 1), ("count", lambda count: count > 1)):
            if names := [name for name, items in plan.groups.items() if chosen(len(items))]:
                name = _pick(rng, names)
                yield _without(plan, _pick(rng, plan.groups[name])), kind, name, None, None
    relations = _relations(plan)
    for i in rng.permutation(len(relations)):
        if edited := _moved(plan, rng, *relations[i]):
            yield edited, "relation", *relations[i]
            return


def _pair_draft(plan: _Plan, kind: str, name: str, side: str | None, other: str | None) -> tuple[Any, ...]:
    """Returns what `_question_row` takes; the answer is read off the plan, `side` says which axis is asked for."""
    if kind == "relation":
        sides = ("left", "right") if side in ("left", "right") else ("above", "below")
        message = _relation_question(plan, name, sides, other)
        answer = next(side for side in sides if (name, side, other) in _relations(plan))
        return message.content, answer, kind, name, message.mentions
    items = plan.groups.get(name, ())
    if kind == "count":
        word, question, answer = _plural(name), _COUNTS[0].format(_plural(name)), _NUMBERS[len(items)]
    else:
        word, question, answer = name, _EXISTENCE[0].format(_one(name)), "yes" if items else "no"
    return question, answer, kind, name, ((word, question.index(word), items),) if items else ()


def load_pairs(
    split: str = "test", num_images: int = 100, image_size: int = 192, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns questions about the scenes 0 to `num_images` - 1 of a split, each asked a second time after an edit.

    As in HallusionBench, the edit changes the answer and nothing that it need not change: one object is gone ("Is there
    ...?", "How many ...?") or has moved straight to the other side of another ("Is the ... to the left or right of the
    ...?"). Background and other objects stay where and as they are, and all objects stay in sight. Each scene has up to
    three edited pictures, one for each of the kinds "existence", "count" and "relation", as far as it allows them.

    Rows are those of `load_questions` with HallusionBench's columns, all strings: `set_id` (the scene), `figure_id` (the
    picture within the scene, "1" is the unedited one), `question_id` (within the scene) and `visual_input` ("1" before
    the edit, "2" after it). The two rows of a question stand one after the other.

    A model that sees nothing but the question never gets both rows of a question right, and one half of the rows about
    existence if it says yes or no.
    """
    rows = []
    for index in range(num_images):
        plan = _plan(split, index, seed)
        background = _background(_generator(split, index, seed, "background"), split, image_size)
        scene = _compose(plan, background.copy())
        for number, (edited, *subject) in enumerate(_edits(plan, _generator(split, index, seed, "pair")), start=1):
            place = {"set_id": str(index), "question_id": str(number)}
            before = _question_row(scene, *_pair_draft(plan, *subject))
            after = _question_row(_compose(edited, background.copy()), *_pair_draft(edited, *subject))
            rows.append(before | place | {"figure_id": "1", "visual_input": "1"})
            rows.append(after | place | {"figure_id": str(number + 1), "visual_input": "2"})
    return rows


@functools.cache
def _forms() -> dict[str, str]:
    """Returns singulars and plurals with their class, the longest ones first."""
    forms = {form: name for name in CLASSES for form in (name, _plural(name))}
    return {form: forms[form] for form in sorted(forms, key=len, reverse=True)}


def find_classes(text: str) -> list[str]:
    """Returns the classes that a text names, one for each mention: whole words, and as many of them as make a name."""
    text = re.sub(r"[\s-]+", " ", text.lower())
    return [_forms()[form] for form in re.findall(rf"\b(?:{'|'.join(_forms())})\b", text)]


# --- Command line ---


def _sheet(split: str, task: str, num_rows: int, image_size: int, seed: int) -> PILImage.Image:
    """Returns a contact sheet, five scenes in a row, with what is written about each below it."""
    height = image_size + (64 if task == "caption" else 192)
    sheet = PILImage.new("RGB", (5 * image_size, math.ceil(num_rows / 5) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(num_rows):
        x, y = index % 5 * image_size, index // 5 * height
        sheet.paste(sample_scene(split, index, seed, image_size).image, (x, y))
        dialog = _dialog(_plan(split, index, seed), task, split, index, seed)
        text = "\n".join(message.content for message in dialog)
        lines = [textwrap.fill(line, image_size // 6) for line in text.split("\n")]
        pen.multiline_text((x + 2, y + image_size + 2), "\n".join(lines), fill="black", font_size=11, spacing=1)
    return sheet


def main() -> None:
    """Command line: writes a data set folder, or a contact sheet when `--out` ends in .png."""
    parser = argparse.ArgumentParser(description="Write scenes as a data set folder or as a contact sheet.")
    parser.add_argument("--out", type=Path, required=True, help="folder, or a .png file for a contact sheet")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--task", choices=TASKS, default="caption")
    parser.add_argument("--num-rows", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = (args.split, args.task, args.num_rows, args.image_size, args.seed)
    if args.out.suffix == ".png":
        _sheet(*settings).save(args.out)
    else:
        load_scenes(*settings).save_to_disk(args.out)
    print(f"{args.num_rows} scenes written to {args.out}")


if __name__ == "__main__":
    main()
