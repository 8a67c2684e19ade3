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
"""From attention over a picture to regions of it, and how sure they are."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import nn


@dataclass(frozen=True)
class GroundingReadout:
    """
    How regions are read from attention over a picture. A checkpoint keeps one in its processor's `grounding_readout`.

    Args:
        threshold (`float`, *optional*, defaults to 0.2):
            A place belongs to a region from this share of the attention's maximum on, if it has more than the picture's mean.
        slope (`float`, *optional*, defaults to 1.0), nothing (`float`, *optional*, defaults to 0.0), intercept (`float`, *optional*, defaults to 0.0):
            Of the logistic function that makes a score of a region's `excess`, the attention that it has beyond the picture's
            mean, and of what lies `on_nothing` of its words' attention:
            `sigmoid(slope * logit(excess) + nothing * logit(on_nothing) + intercept)`. By default the score is the excess
            itself; fitted on held-out pictures (Platt, 1999), it is the chance that the region's point lies on what the words
            name.
    """

    threshold: float = 0.2
    slope: float = 1.0
    nothing: float = 0.0
    intercept: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"`{field.name}` of a grounding readout should be a number, but is {value!r}.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"`threshold` of a grounding readout is {self.threshold}, but should be in (0, 1].")

    def score(self, excess: float, on_nothing: float = 0.0) -> float:
        """The score of a region, in [0, 1]."""
        x = self.slope * logit(excess) + self.nothing * logit(on_nothing) + self.intercept
        return 1 / (1 + math.exp(-min(max(x, -50.0), 50.0)))


def logit(share: float) -> float:
    """Of a share that is at least 0.0001 from 0 and 1."""
    inside = min(max(share, 1e-4), 1 - 1e-4)
    return math.log(inside / (1 - inside))


class Region(NamedTuple):
    """A connected part of a picture that words look at."""

    mask: torch.BoolTensor
    """Where it is, `(height, width)`."""
    box: tuple[int, int, int, int]
    """Its first column and row, and those after its last."""
    point: tuple[float, float]
    """The middle of its attention, across and down, from the edges of the first column and row on."""
    excess: float
    """What it has of the attention beyond the picture's mean, summed over its places."""


def find_regions(attention: torch.Tensor, threshold: float) -> list[Region]:
    """
    The regions that words look at, the one with the most attention first.

    Args:
        attention (`torch.FloatTensor` of shape `(height, width)`):
            Shares of the attention, which sum to 1, or to less where some of it lies on nothing.
        threshold (`float`):
            As in [`GroundingReadout`].
    """
    mean = attention.mean().item()
    # rounding raises even attention above its mean
    inside = (attention >= threshold * attention.max()) & (attention > mean * (1 + 1e-4))
    height, width = attention.shape
    # The number of each place spreads over its neighbors, the corners' too, until a region has its largest.
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=attention.device)
    numbers = numbers.view(height, width) * inside
    while True:
        spread = nn.functional.max_pool2d(numbers[None, None], 3, stride=1, padding=1)[0, 0] * inside
        if torch.equal(spread, numbers):
            break
        numbers = spread
    regions = []
    for number in numbers.unique().tolist():
        if number == 0:
            continue
        mask = numbers == number
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        box = columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1
        weights = (attention * mask).double()
        down, across = (
            (weights.sum(dim=1 - axis) @ torch.arange(0.5, size, dtype=torch.float64, device=weights.device)).item()
            for axis, size in enumerate((height, width))
        )
        total = weights.sum().item()
        regions.append(Region(mask, box, (across / total, down / total), (attention[mask] - mean).sum().item()))
    return sorted(regions, key=lambda region: -region.excess)
