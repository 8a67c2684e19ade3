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

import os
from pathlib import Path

import pytest

from recipes.study.side_by_side import Task, run_tasks


def note(file: Path, name: str) -> tuple[str, str]:
    """Adds its name to a file, and tells what stood there before and how many threads it may use."""
    before = file.read_text() if file.exists() else ""
    with file.open("a") as log:
        log.write(f"{name} ")
    return before, os.environ["OMP_NUM_THREADS"]


def fail() -> None:
    raise ValueError("a stage that cannot start")


def test_a_task_waits_for_the_one_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    log = tmp_path / "log"
    tasks = {
        "last": Task(note, (log, "last"), "second"),
        "second": Task(note, (log, "second"), "first"),
        "first": Task(note, (log, "first"), "done before"),  # not among the tasks
    }
    done = dict(run_tasks(tasks, processes=2))
    assert list(done) == ["first", "second", "last"]
    assert done == {"first": ("", "3"), "second": ("first ", "3"), "last": ("first second ", "3")}


def test_what_fails_ends_it_with_its_own_words():
    with pytest.raises(ValueError, match="a stage that cannot start"):
        list(run_tasks({"one": Task(fail, ()), "other": Task(fail, (), "one")}, processes=1))
