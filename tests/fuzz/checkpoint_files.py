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
"""A checkpoint of which one file but the weights is damaged."""

import json
import random
import tempfile
from functools import cache
from pathlib import Path

import PIL.Image

from fuzz.mutation import json_bytes, mutated_bytes, mutated_json
from recipes.answering.answers import ask
from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes import TRAINED_MODEL


FILES = (
    "config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "tokenizer.json",
)
WEIGHTS = (7, 4, 3, 3, 1, 1)  # how often each is damaged


# Of many a generation_config.json
OPTIONS = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
OPTIONS |= {"max_new_tokens": 8, "max_length": 100, "min_length": 0, "num_beams": 1, "length_penalty": 1.0}


@cache
def seeds() -> list[bytes]:
    """The name of the file, a line break, what it holds."""
    files = {file: (TRAINED_MODEL / file).read_bytes() for file in FILES}
    files["generation_config.json"] = json.dumps(json.loads(files["generation_config.json"]) | OPTIONS).encode()
    return [file.encode() + b"\n" + content for file, content in files.items()]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    [seed] = rng.choices(seeds, WEIGHTS)
    name, _, content = seed.partition(b"\n")
    if name.endswith(b".json") and rng.random() < 0.9:
        return name + b"\n" + json_bytes(mutated_json(json.loads(content), rng), rng)
    return name + b"\n" + mutated_bytes(content, rng, seeds)


def run(data: bytes) -> str:
    name, _, content = data.partition(b"\n")
    with tempfile.TemporaryDirectory() as folder:
        for file in TRAINED_MODEL.iterdir():
            (Path(folder) / file.name).symlink_to(file)
        (Path(folder) / name.decode()).unlink()
        (Path(folder) / name.decode()).write_bytes(content)
        ask(*load_checkpoint(folder), PIL.Image.new("RGB", (40, 30), "red"), "What is it?", max_new_tokens=2)
    return f"model with {name.decode()}"
