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
import random
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask
from testing_utils import box_mask, rle

from trainers import decode_rle
from trainers.run_lengths import run_lengths


@pytest.mark.parametrize("kind", ["str", "bytes", "list"])
def test_run_lengths_decode(kind: str):
    mask = box_mask(7, 5, (2, 4), (1, 5))
    encoded = rle(mask)
    if kind == "bytes":
        encoded["counts"] = encoded["counts"].encode()
    elif kind == "list":
        flat = mask.flatten(order="F")
        borders = np.flatnonzero(np.diff(flat)) + 1
        encoded["counts"] = np.diff([0, *borders, flat.size]).tolist()
    decoded = decode_rle(encoded)
    assert decoded.dtype == bool and np.array_equal(decoded, mask)


@pytest.mark.parametrize("value", [False, True])
def test_uniform_masks_decode(value: bool):
    mask = np.full((7, 5), value)
    assert np.array_equal(decode_rle(rle(mask)), mask)


def as_list(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F")
    borders = [*np.flatnonzero(np.diff(flat)) + 1]
    return np.diff([0, *([0] if flat[0] else []), *borders, flat.size]).tolist()


def random_mask(rng: np.random.Generator) -> np.ndarray:
    height, width = rng.integers(1, 60, 2)
    return rng.random((height, width)) < rng.choice([0.0, 0.02, 0.5, 0.98, 1.0])


def test_masks_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = random_mask(rng)
        encoded = rle(mask)
        expected = coco_mask.decode({**encoded, "counts": encoded["counts"].encode()}).astype(bool)
        found = decode_rle(encoded)
        assert np.array_equal(found, mask) and np.array_equal(expected, mask)
        assert found.dtype == expected.dtype and found.flags.f_contiguous and expected.flags.f_contiguous
        assert run_lengths(encoded).tolist() == as_list(mask)
        assert np.array_equal(decode_rle({**encoded, "counts": as_list(mask)}), mask)


def test_a_large_mask_decodes():
    """Long runs, whose numbers take several characters and change by more than they are."""
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[:, 500:3000] = True
    mask[1500, 100:3900] ^= True
    assert np.array_equal(decode_rle(rle(mask)), mask)


SOUND = rle(box_mask())["counts"]
DAMAGED = {
    "ends within a number": (SOUND[:-1] + "o", "they end within a number"),
    "one character, which says that more follow": ("P", "they end within a number"),
    "control characters": ("\x00\x01", "characters that run lengths do not have"),
    "other letters": ("0\u00e9", "characters that run lengths do not have"),
    "above the characters": ("~~", "characters that run lengths do not have"),
    "a number without end": ("o" * 5000 + "0", "a number that is too long"),
    "a huge number": ("oooooo0", r"one of them is 1073741823"),
    "too few": (SOUND[:-3], "add up to"),
    "too many": (SOUND + "5", "add up to"),
    "negative": ("O", "one of them is -1"),
    "negative by a difference": ("550O", "."),
    "no counts": (None, "they are of type NoneType"),
    "a number": (5120, "they are of type int"),
    "an object": ({"a": 1}, "they are of type dict"),
    "empty list": ([], "they add up to 0 pixels"),
    "floats": ([5000.0, 120.0], r"one of them is 5000\.0"),
    "not a number": ([float("nan")], "one of them is nan"),
    "truth values": ([True, 5119], "one of them is True"),
    "strings": (["5120"], "one of them is 5120"),
    "lists": ([[5120]], r"one of them is \[5120\]"),
    "negative in a list": ([-1, 5121], "one of them is -1"),
    "beyond 32 bits": ([2**32, 5120], "one of them is 4294967296"),
    "beyond 64 bits": ([2**64 + 5120], "one of them is 18446744073709556736"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_counts_get_a_sentence(name: str):
    counts, sentence = DAMAGED[name]
    with pytest.raises(ValueError, match=f"The mask's run lengths do not decode to 64 x 80 pixels: .*{sentence}"):
        decode_rle({"size": [64, 80], "counts": counts})


def test_what_damaged_the_heap_is_refused():
    """pycocotools reads behind a string that ends within a number, where the one before may lie, and writes as much."""
    for counts in ("PPPPPPPPPPPPPPP", "11111o") * 20:
        with pytest.raises(ValueError, match="do not decode to 8 x 26 pixels: they end within a number"):
            decode_rle({"size": [8, 26], "counts": counts})


@pytest.mark.parametrize(
    "size",
    [
        None,
        [],
        [64],
        [64, 80, 1],
        ["64", "80"],
        [64.0, 80.0],
        [True, 80],
        [-64, -80],
        [0, 80],
        [[64], [80]],
        "64",
        5120,
    ],
)
def test_sizes_that_are_none_get_a_sentence(size: Any):
    with pytest.raises(ValueError, match="A mask is .* of positive whole numbers of pixels, but its size is "):
        decode_rle({"size": size, "counts": SOUND})


@pytest.mark.parametrize("mask", [None, [], "mask", {}, {"counts": SOUND}])
def test_what_is_no_mask_gets_a_sentence(mask: Any):
    with pytest.raises(ValueError, match="A mask is .* but its size is None"):
        decode_rle(mask)


def test_mask_larger_than_any_picture_is_refused_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="has 1000000 x 1000000 pixels, more than Pillow takes"):
        decode_rle({"size": [10**6, 10**6], "counts": [10**12]})
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2559)
    with pytest.raises(ValueError, match=r"has 64 x 80 pixels, more than Pillow takes .* \(2559\)"):
        decode_rle({"size": [64, 80], "counts": SOUND})
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 2560)
    assert np.array_equal(decode_rle({"size": [64, 80], "counts": SOUND}), box_mask())


def test_mutated_counts_give_a_mask_or_a_sentence():
    """What its run lengths, now known to be sound, are in pycocotools is the mask."""
    rng = random.Random(0)
    masks = [rle(random_mask(np.random.default_rng(n))) for n in range(20)]
    ends = {"mask": 0, "sentence": 0}
    for _ in range(5000):
        encoded = rng.choice(masks)
        counts = list(encoded["counts"])
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(counts) + 1)
            change = rng.choice(("cut", "drop", "insert", "replace", "swap"))
            if change == "cut":
                counts = counts[:place]
            elif change == "drop":
                counts = counts[:place] + counts[place + 1 :]
            elif change == "insert":
                counts.insert(place, chr(rng.randrange(48, 112)))
            elif change == "replace":
                counts[place : place + 1] = chr(rng.randrange(256))
            else:
                other = rng.choice(masks)["counts"]
                counts[place:] = other[place:]
        try:
            runs = run_lengths({"size": encoded["size"], "counts": "".join(counts)})
        except ValueError as error:
            assert str(error).startswith("The mask's run lengths do not decode to ")
            ends["sentence"] += 1
            continue
        ends["mask"] += 1
        height, width = encoded["size"]
        mask = decode_rle({"size": [height, width], "counts": "".join(counts)})
        again = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
        assert np.array_equal(mask, coco_mask.decode(again).astype(bool))
    assert min(ends.values()) > 100, ends
