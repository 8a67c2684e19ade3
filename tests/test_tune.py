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
"""docs/tune.md as a person follows it: two trainings, of which one is killed and goes on, and all their answers."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def start(script: str, place: Path) -> subprocess.Popen:
    """Runs a block of commands where `python` is this one."""
    words = re.sub(r"^python ", f"exec {sys.executable} ", script, flags=re.MULTILINE)
    return subprocess.Popen(["bash", "-euc", words], cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_the_result_answers_the_rows_right(tmp_path: Path):
    page = PAGES["docs/tune.md"]
    make_rows, ask_all = blocks(page, "python")
    whole, resumed, with_adapters, ask, *_ = blocks(page, "bash")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    subprocess.run([sys.executable, "-c", make_rows], cwd=tmp_path, check=True)
    stopped = start(whole, tmp_path)
    while not list(tmp_path.glob("runs/signs/checkpoint-*")):
        assert stopped.poll() is None, stopped.communicate()[1][-2000:]
        time.sleep(1)
    stopped.kill()
    stopped.communicate()
    assert not (tmp_path / "runs/signs/config.json").exists()
    for script in (resumed, with_adapters, ask):
        finish(start(script, tmp_path))
    found = subprocess.run(
        [sys.executable, "-c", ask_all], cwd=tmp_path, env=ENVIRONMENT, check=True, capture_output=True, text=True
    )
    assert "runs/signs: 50 of 50 right" in found.stdout and "runs/signs_lora: 50 of 50 right" in found.stdout
