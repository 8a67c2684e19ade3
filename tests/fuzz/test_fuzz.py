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
"""Some damaged inputs of every kind, the same each time; and that the runner sees all that can go wrong."""

import ctypes
import os
import random
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fuzz import runner
from fuzz.mutation import json_bytes, mutated_bytes, mutated_json
from fuzz.runner import KINDS, fuzz, kind_module, make_input, outcome
from modeling_agevlm import read_image


class Hungry:
    """A file that asks for too much memory when it is read."""

    def read(self, *_: int) -> bytes:
        raise MemoryError


NUMBERS = {"records": 12, "checkpoint_files": 12, "configurations": 40, "weights": 12, "chat_requests": 60}
ENDINGS = {
    b"result": lambda: "a result",
    b"sentence": lambda: str(read_image(b"no picture")),
    b"crash": lambda: ctypes.string_at(0),
    b"exit": lambda: os._exit(3),
    b"loop": lambda: sum(1 for _ in iter(int, 1)),
    b"wait": lambda: time.sleep(100),
    b"memory": lambda: str(np.ones(2**29)),
    b"exception": lambda: {}["name"],
    b"of others": lambda: int("words"),
    b"memory in a sentence": lambda: str(read_image(Hungry())),
}
SAID = (
    "segmentation fault (",
    "the process ended with 3",
    "more than 1 s of CPU time (test_fuzz.py:",
    "no answer in 5 s",
    "MemoryError: Unable to allocate 4.00 GiB",
    "KeyError: 'name' (test_fuzz.py:",
    "ValueError: invalid literal for int() with base 10: 'words' (test_fuzz.py:",
    "out of memory)",
)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_inputs_end_in_a_result_or_a_sentence(name: str):
    kind = kind_module(name)
    seeds = kind.seeds()
    ends = [outcome(kind, make_input(kind, seeds, seed=0, number=n)) for n in range(NUMBERS.get(name, 200))]
    assert [end.text for end in ends if end.end == "failure"] == []
    assert {"result", "sentence"} >= {end.end for end in ends} and len(set(ends)) > 5


def test_inputs_are_those_of_their_seed_and_number():
    kind = kind_module("run_lengths")
    seeds = kind.seeds()
    made = [[make_input(kind, seeds, seed, n) for n in range(50)] for seed in (0, 0, 1)]
    assert made[0] == made[1] and len(set(made[0]) & set(made[2])) < 10


@pytest.mark.parametrize(
    "mutate", [mutated_bytes, lambda data, rng, others: json_bytes(mutated_json([data.decode()] * 3, rng), rng)]
)
def test_inputs_are_damaged_in_many_ways(mutate):
    data = b"some words to be damaged"
    made = {mutate(data, random.Random(n), [b"other"]) for n in range(300)}
    assert len(made) > 150


def test_the_runner_sees_what_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each of them is a failure of its input, and those behind it run all the same."""
    data = [*ENDINGS, b"result"]
    kind = SimpleNamespace(__name__="fuzz.endings", seeds=lambda: data, run=lambda data: ENDINGS[data]())
    monkeypatch.setattr(runner, "make_input", lambda kind, seeds, seed, number: seeds[number])
    monkeypatch.setattr(runner, "CPU_SECONDS", 1)
    monkeypatch.setattr(runner, "WAIT_SECONDS", 5)
    tally = fuzz(kind, seed=0, seconds=600, out=tmp_path, most=len(data))
    assert tally.number == len(data) and tally.ends == {"result": 2, "sentence": 1, "failure": len(data) - 3}
    failed = {Path(file).name: text for text, [file] in tally.failures}
    assert failed.keys() == {f"endings-0-{n}" for n in range(2, len(data) - 1)}
    for n, words in enumerate(SAID, start=2):
        assert words in failed[f"endings-0-{n}"] and (tmp_path / f"endings-0-{n}").read_bytes() == data[n]
