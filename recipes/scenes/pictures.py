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
"""Pictures of scenes, with the visible pixels of every object."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from recipes.rows.boxes import bounding_box
from recipes.scenes.classes import CLASSES
from recipes.scenes.plans import Item, Plan, draw_item, levels, make_plan, pick, row_generator, shape_of


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


def _clouds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, cells: int = 6) -> np.ndarray:
    coarse = PILImage.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((x.size, y.size), PILImage.Resampling.BICUBIC))


def _bricks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x * (count := rng.integers(5, 10)), y * count
    joint = ((x / 2 + y.astype(int) % 2 / 2) % 1 < 0.06) | (y % 1 < 0.12)
    return np.where(joint, 0.9, 0.2 + 0.1 * y / count)


def _mosaic(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Every place has the shade of the nearest of some points."""
    points, shades = rng.random((rng.integers(8, 25), 2)), rng.random(25)
    return shades[np.argmin([np.hypot(x - across, y - down) for across, down in points], axis=0)]


def _marble(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    turbulence = _clouds(rng, x, y) + 0.5 * _clouds(rng, x, y, cells=12) + 0.25 * _clouds(rng, x, y, cells=24)
    return np.abs(np.sin(np.pi * (rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y + 2 * turbulence)))


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
    "transfer": {
        "mosaic": _mosaic,
        "marble": _marble,
        "grain": lambda rng, x, y: 0.2 + 0.6 * _clouds(rng, x, y, cells=int(rng.integers(24, 49))),
        "rays": lambda rng, x, y: (
            (np.arctan2(y - rng.uniform(0.2, 0.8), x - rng.uniform(0.2, 0.8)) / np.pi * rng.integers(4, 10) % 1 < 0.5)
            * 0.7
        ),
        "plaid": lambda rng, x, y: (
            0.5 * (x * rng.integers(3, 8) % 1 < rng.uniform(0.3, 0.6))
            + 0.5 * (y * rng.integers(3, 8) % 1 < rng.uniform(0.3, 0.6))
        ),
    },
}
_FAMILIES["varied"] = _FAMILIES["train"]
# Saturation and brightness of a split's colors. Training and test are bright and differ by their hues; transfer is dark.
_TONES = {
    "train": ((0.15, 0.5), (0.6, 1.0)),
    "test": ((0.15, 0.5), (0.6, 1.0)),
    "transfer": ((0.3, 0.7), (0.35, 0.55)),
}
_TONES["varied"] = _TONES["train"]


def _color(rng: np.random.Generator, split: str) -> np.ndarray:
    """
    Draws a color (3,) in [0, 255]. The hue circle has twelve sectors that belong to training and test by turns; the
    transfer split's hues are those of training, in tones that neither of the two draws.
    """
    sector = 2 * rng.integers(6) + {"test": 1, "transfer": 2}.get(split, 0)
    hue, saturation, value = (sector + rng.random()) / 12, *(rng.uniform(*tones) for tones in _TONES[split])
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (255 * value * (1 - saturation * (1 - wheel))).astype(np.float32)


def draw_background(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """Draws a background (size, size, 3) uint8."""
    first, second = _color(rng, split), _color(rng, split)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    mix = np.clip(pick(rng, tuple(_FAMILIES[split].values()))(rng, axis[None, :], axis[:, None]), 0, 1).astype(
        np.float32
    )
    return (first + (second - first) * mix[..., None]).astype(np.uint8)


def _tint(hue: float, light: float) -> np.ndarray:
    """Returns the color matrix (3, 3) that turns the hue about the gray axis and scales the brightness."""
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue) / math.sqrt(3)
    turn = np.array([[0, -sin, sin], [sin, 0, -sin], [-sin, sin, 0]])
    return (light * (cos * np.eye(3) + (1 - cos) / 3 + turn)).astype(np.float32)


def _render(item: Item, size: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """Returns the part (y1 - y0, x1 - x0, 4) of the item's layer, float32 with premultiplied alpha in [0, 255]."""
    pattern, offset_x, offset_y = shape_of(item.sprite, item.angle)
    side = 64 * item.width * size / pattern.shape[1]  # of the whole drawing, in pixels
    level = next((level for level in levels(item.sprite) if level.width >= side), levels(item.sprite)[-1])
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


def _paint(canvas: np.ndarray, owner: np.ndarray, item: Item, value: int) -> tuple[tuple[int, int, int, int], int]:
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
    left, top, right, bottom = bounding_box(solid)
    return (x0 + left, y0 + top, x0 + right, y0 + bottom), len(alpha)


def compose(plan: Plan, background: np.ndarray) -> Scene:
    """Paints the plan on the background (S, S, 3) uint8, in place."""
    owner = np.full(background.shape[:2], -1, dtype=np.int8)
    painted = [_paint(background, owner, item, i) for i, item in enumerate(plan.items)]
    objects = []
    for i, (item, (box, area)) in enumerate(zip(plan.items, painted, strict=True)):
        mask = owner == i
        objects.append(SceneObject(item.name, box, mask, float(mask.sum() / area)))
    return Scene(PILImage.fromarray(background), objects, plan.context)


def sample_scene(split: str, index: int, seed: int = 0, image_size: int = 192) -> Scene:
    """Returns scene `index` of a split (of `SPLITS`) at `image_size` x `image_size` pixels.

    The same `(split, index, seed)` gives the same scene at every size. Raises `ValueError` for an unknown split.
    """
    background = draw_background(row_generator(split, index, seed, "background"), split, image_size)
    return compose(make_plan(split, index, seed), background)


def draw_object(split: str, index: int, seed: int = 0, size: int = 64) -> tuple[PILImage.Image, int]:
    """Returns a picture (RGB, `size` x `size`) of one object and its label, an index into `CLASSES`.

    Every second picture shows the edge of another object behind it. Raises `ValueError` for an unknown split.
    """
    rng = row_generator(split, index, seed, "object")
    label = int(rng.integers(len(CLASSES)))
    canvas = draw_background(rng, split, size)
    main = draw_item(rng, split, CLASSES[label], size=rng.uniform(0.42, 0.95))
    if rng.random() < 0.5:
        other = draw_item(rng, split, pick(rng, CLASSES), size=0.6)
        edge = {pick(rng, ("cx", "cy")): pick(rng, (0.0, 1.0))}
        _paint(canvas, np.zeros((size, size), dtype=np.int8), Item(**{**vars(other), **edge}), 0)
    _paint(canvas, np.zeros((size, size), dtype=np.int8), main, 0)
    return PILImage.fromarray(canvas), label
