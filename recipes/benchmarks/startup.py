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
"""What commands cost before they do anything: the CPU time of every `--help`, and of one question."""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from recipes import FOLDER
from recipes.terminal.tables import markdown


def cost(command: list[str], rounds: int) -> dict[str, float]:
    """Median CPU seconds (user and system) of a command over its rounds, and the lines that it writes to stderr."""
    seconds = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"cpu_seconds": statistics.median(seconds), "stderr_lines": len(done.stderr.splitlines())}


def startup(rounds: int) -> dict[str, Any]:
    """
    The cost of every command's `--help`, and of `recipes/ask.py` with the model that comes along.

    Args:
        rounds (`int`): How many times everything runs.
    """
    files = sorted(file for file in FOLDER.glob("*.py") if file.name != "__init__.py")
    found = {f"{file.name} --help": cost([str(file), "--help"], rounds) for file in files}
    with tempfile.TemporaryDirectory() as folder:
        picture, drawing = Path(folder, "picture.png"), Path(folder, "ask.png")
        PIL.Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(picture)
        question = ["--image", str(picture), "--question", "Is there a cup in the image?", "--out", str(drawing)]
        found["ask.py"] = cost([str(FOLDER / "ask.py"), *question], rounds)
    return found


def startup_table(result: dict[str, Any]) -> str:
    rows = [[name, f"{found['cpu_seconds']:.2f}", str(found["stderr_lines"])] for name, found in result.items()]
    return markdown(["`recipes/`", "CPU seconds", "lines on stderr"], rows)
