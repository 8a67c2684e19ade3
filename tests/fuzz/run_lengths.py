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
"""Run lengths of masks; those that are taken decode to what pycocotools decodes them to."""

import json
import random

import numpy as np
from pycocotools import mask as coco_mask

from fuzz.mutation import json_bytes, mutated_bytes, mutated_json
from trainers.run_lengths import decode_rle


CHARACTERS = "".join(map(chr, range(48, 112)))


def seeds() -> list[bytes]:
    rng, made = np.random.default_rng(0), []
    for share in (0, 0.02, 0.5, 1):
        mask = rng.random((13, 9)) < share
        encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        borders = np.flatnonzero(np.diff(mask.flatten(order="F"))) + 1
        start = [0] if mask[0, 0] else []
        made += [{"size": [13, 9], "counts": encoded["counts"].decode()}]
        made += [{"size": [13, 9], "counts": np.diff([0, *start, *borders, mask.size]).tolist()}]
    made += [{"size": [600, 800], "counts": [0, 480000]}, {"size": [2**14, 2**13], "counts": [2**27]}]
    return [json.dumps(rle).encode() for rle in made]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    rle = json.loads(rng.choice(seeds))
    if isinstance(rle["counts"], str) and rng.random() < 0.7:
        if rng.random() < 0.3:
            rle["counts"] = "".join(rng.choices(CHARACTERS, k=rng.randrange(40)))
        else:
            rle["counts"] = mutated_bytes(rle["counts"].encode(), rng, seeds).decode("latin-1")
        return json_bytes(rle, rng)
    return json_bytes(mutated_json(rle, rng), rng)


def run(data: bytes) -> str:
    try:
        rle = json.loads(data)
    except (ValueError, RecursionError):
        return "no JSON"
    mask = decode_rle(rle)
    assert mask.dtype == bool and mask.shape == tuple(rle["size"])
    counts = rle["counts"]
    if mask.size < 10**6:
        if isinstance(counts, list):
            encoded = coco_mask.frPyObjects(rle, *rle["size"])
        else:
            encoded = {"size": rle["size"], "counts": counts.encode()}
        assert np.array_equal(coco_mask.decode(encoded), mask)
    return f"mask of {type(counts).__name__}"
