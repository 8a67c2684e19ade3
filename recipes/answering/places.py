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
"""Places that somebody points at in a picture."""

from collections.abc import Sequence

import numpy as np


def mask_of_place(place: Sequence[float], height: int, width: int) -> np.ndarray:
    """
    The pixels of a picture that a place covers, `(height, width)`.

    Args:
        place (`Sequence[float]`): A point, across and down, or a box: left, top, right and bottom, in pixels.
        height (`int`), width (`int`): Size of the picture as it is shown (after its EXIF rotation).

    Raises:
        ValueError: If it is neither, or not in the picture.
    """
    if len(place) not in (2, 4):
        raise ValueError(f"A place to look at is a point or a box, two or four numbers, but has {len(place)}.")
    left, top, right, bottom = (*place, *place)[:4]
    is_box = len(place) == 4 and left < right and top < bottom
    inside = 0 <= left <= right <= width and 0 <= top <= bottom <= height
    if not (inside and (is_box or (len(place) == 2 and left < width and top < height))):
        kind = "point" if len(place) == 2 else "box"
        numbers = " ".join(f"{number:g}" for number in place)
        raise ValueError(f"{numbers} is no {kind} in the picture, which is {width} x {height} pixels.")
    mask = np.zeros((height, width), dtype=bool)
    mask[int(top) : max(int(bottom), int(top) + 1), int(left) : max(int(right), int(left) + 1)] = True
    return mask
