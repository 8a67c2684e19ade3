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
"""Boxes of pictures: left, top, right and bottom in pixels, the last two excluded."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a mask `(height, width)` that is not empty."""
    xs, ys = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def overlap_of_boxes(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union."""
    found, there = (
        np.array([[left, top, right - left, bottom - top]], dtype=float)
        for left, top, right, bottom in (first, second)
    )
    return float(coco_mask.iou(found, there, [0])[0, 0])
