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
"""The help that is read from sources lists what the imported classes have."""

import dataclasses
import re
import sys

import pytest
from transformers import TrainingArguments

from recipes.terminal.options import TRAINING, print_help, read_options
from recipes.training.arguments import DataArguments, ModelArguments
from trainers import GuidedSFTConfig


def test_the_sources_are_the_classes_own():
    owners = [owner for owner in reversed(GuidedSFTConfig.__mro__) if dataclasses.is_dataclass(owner)]
    assert [(owner.__module__, owner.__name__) for owner in owners] == list(TRAINING)
    assert owners[0] is TrainingArguments


def test_every_field_is_found_with_its_help():
    found = {option.name: option for source in TRAINING for option in read_options(*source)}
    fields = {field.name: field for field in dataclasses.fields(GuidedSFTConfig) if field.init}
    assert found.keys() == fields.keys()
    for name in ("learning_rate", "warmup_steps", "max_length", "guidance_weight", "output_dir", "packing"):
        assert found[name].default == repr(fields[name].default)
    for name in ("guidance_query", "max_length", "packing", "output_dir"):
        assert found[name].help == " ".join(fields[name].metadata["help"].split())


def test_help_lists_every_option_once(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["stage3.py", "--help"])
    print_help("What it does.", ModelArguments, DataArguments, training=True)
    printed = capsys.readouterr().out
    listed = re.findall(r"^  (?:-\w, )?--(\w+)", printed, flags=re.MULTILINE)
    expected = {
        field.name
        for owner in (ModelArguments, DataArguments, GuidedSFTConfig)
        for field in dataclasses.fields(owner)
        if field.init
    }
    assert len(listed) == len(set(listed))
    assert set(listed) - {"help"} == expected
    assert "What it does." in printed
