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
"""What is imported with what: nobody waits for TRL who needs a table."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trainers


LIGHT = """
import sys
from trainers.stages import get_stage
assert not {"torch", "transformers"} & set(sys.modules)
from trainers.guidance import guidance_loss
assert "transformers" not in sys.modules
from trainers.data_collator import DataCollatorForGuidedVisionLanguageModeling
from trainers.run_lengths import decode_rle
from trainers import BrokenRowError, STAGES
assert not {"trl", "peft", "transformers.trainer", "trainers.guided_sft_trainer"} & set(sys.modules)
"""


def test_light_modules_bring_no_trainer():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_every_name_of_the_package_is_there_for_people_and_for_type_checkers():
    statements = ast.walk(ast.parse(Path(trainers.__file__).read_text()))
    imported = {a.name: s.module for s in statements if isinstance(s, ast.ImportFrom) and s.level for a in s.names}
    assert imported == trainers.MODULES
    for name, module in imported.items():
        assert getattr(trainers, name) is getattr(sys.modules[f"trainers.{module}"], name)
    with pytest.raises(ImportError, match="cannot import name 'Stages'"):
        from trainers import Stages  # noqa: F401
