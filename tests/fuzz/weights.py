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
"""A checkpoint whose model.safetensors is damaged: its length, its header, its end."""

import json
import random
import tempfile
from functools import cache
from pathlib import Path

from fuzz.mutation import EXTREMES, json_bytes, mutated_bytes, mutated_json
from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes import TRAINED_MODEL


NAME = "model.safetensors"


@cache
def seeds() -> list[bytes]:
    return [(TRAINED_MODEL / NAME).read_bytes()]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    [data] = seeds
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    match rng.randrange(5):
        case 0 | 1 | 2:
            header = json_bytes(mutated_json(json.loads(header), rng), rng)
            if rng.random() < 0.2:
                header = mutated_bytes(header, rng, seeds)
            length = len(header)
        case 3:
            length = (rng.choice((*EXTREMES, length)) + rng.choice((-8, -1, 0, 1, 8))) % 2**64
        case 4:
            return mutated_bytes(data, rng, seeds, head=length)
    return length.to_bytes(8, "little") + header + rest[: rng.choice((None, None, 0, 1000, -1, -4))]


def run(data: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        for file in TRAINED_MODEL.iterdir():
            if file.name != NAME:
                (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / NAME).write_bytes(data)
        load_checkpoint(folder)
    return "model"
