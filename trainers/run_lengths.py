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
"""Masks as run lengths, as COCO writes them: how many pixels, column after column, are outside, then inside, and so on."""

from typing import Any

import numpy as np
import PIL.Image
from pycocotools import mask as coco_mask


# Of COCO's compressed counts: a character is 48 and 6 bits. Five of them are the number's, lowest first; the sixth says
# that more follow. The fifth of the last character is the sign.
FIRST_CHARACTER, BITS, MORE, SIGN = 48, 5, 0b100000, 0b10000
LONGEST_NUMBER = 7  # characters: more pixels than any picture has, and no sum of such numbers overflows an int64


def is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def mask_size(rle: dict[str, Any]) -> tuple[int, int]:
    """
    Height and width that run lengths are said to have.

    Raises:
        ValueError: If they are not two positive numbers, or of more pixels than Pillow takes of a picture.
    """
    size = rle["size"] if isinstance(rle, dict) and "size" in rle else None
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(is_whole(side) and side > 0 for side in size)):
        raise ValueError(
            "A mask is {'size': [height, width], 'counts': run lengths} of positive whole numbers of pixels, but its size "
            f"is {str(size)[:80]}."
        )
    height, width = map(int, size)
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:
        raise ValueError(
            f"The mask has {height} x {width} pixels, more than Pillow takes of a picture, which are twice "
            f"`PIL.Image.MAX_IMAGE_PIXELS` ({limit})."
        )
    return height, width


def decompress(counts: bytes) -> np.ndarray:
    """
    The run lengths of COCO's compressed counts.

    Raises:
        ValueError: If they are damaged.
    """
    bits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - FIRST_CHARACTER
    if bits.size == 0:
        return bits
    is_last = (bits & MORE) == 0
    if bits.min() < 0 or bits.max() >= 2 * MORE:
        raise ValueError("they have characters that run lengths do not have")
    if not is_last[-1]:
        raise ValueError("they end within a number")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > LONGEST_NUMBER:
        raise ValueError("they have a number that is too long")
    places = np.arange(bits.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((bits & (MORE - 1)) << (BITS * places), starts)
    numbers -= np.where(bits[ends] & SIGN, 1 << (BITS * lengths), 0)
    # From the fourth on they are differences to the last but one.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def run_lengths(rle: dict[str, Any]) -> np.ndarray:
    """
    The run lengths of a mask: pixels outside, inside, outside, ... that add up to its pixels.

    Args:
        rle (`dict`): `{"size": [height, width], "counts": ...}`, counts compressed (`str` or `bytes`) or as a list.

    Raises:
        ValueError: If the counts do not describe a mask of that size.
    """
    height, width = mask_size(rle)
    pixels, counts = height * width, rle.get("counts")
    try:
        if isinstance(counts, str):
            counts = counts.encode()
        if isinstance(counts, bytes):
            runs = decompress(counts)
        elif isinstance(counts, (list, tuple)):
            for count in counts:
                if not (is_whole(count) and 0 <= count <= pixels):
                    raise ValueError(f"one of them is {str(count)[:80]}")
            runs = np.array(counts, dtype=np.int64)
        else:
            raise ValueError(f"they are of type {type(counts).__name__}")
        wrong = runs[(runs < 0) | (runs > pixels)]
        if wrong.size:
            raise ValueError(f"one of them is {wrong[0]}")
        if runs.sum() != pixels:
            raise ValueError(f"they add up to {runs.sum()} pixels")
    except ValueError as error:
        raise ValueError(f"The mask's run lengths do not decode to {height} x {width} pixels: {error}.") from None
    return runs


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """
    A boolean mask of shape `(height, width)` from COCO run-length encoding.

    Args:
        rle (`dict`): `{"size": [height, width], "counts": ...}`, counts compressed (`str` or `bytes`) or as a list.

    Raises:
        ValueError: If the counts do not describe a mask of that size.
    """
    # pycocotools trusts what it is given: damaged counts make it read and write past the ends of its memory.
    height, width = mask_size(rle)
    runs = run_lengths(rle)
    inside = np.arange(runs.size) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """The compressed run lengths of a bool mask of shape `(height, width)`."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
