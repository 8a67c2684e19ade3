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
"""Random access to a JSONL file of a million records, beside `datasets`."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset

from recipes.rows.json_files import Lines


def records(num_records: int, num_reads: int) -> dict[str, Any]:
    """Seconds and peak memory of the first and of a later look at a JSONL file, and of reading records at random."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "records.jsonl")
        with file.open("w") as out:
            for n in range(num_records):
                turns = [{"from": "human", "value": f"<image>\nWhat is {n}?"}, {"from": "gpt", "value": "words " * 50}]
                out.write(json.dumps({"id": str(n), "image": f"{n % 997}.jpg", "conversations": turns}) + "\n")
        found = {"megabytes": file.stat().st_size / 1e6}
        for name in ("lines", "datasets"):
            command = [sys.executable, "-m", __name__, name, str(file), str(num_reads)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(result.stdout.splitlines()[-1])
        return found


def read_records(name: str, file: Path, num_reads: int) -> dict[str, float]:
    """One of the two ways, in a process of its own."""
    numbers, start = np.random.default_rng(0), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name == "lines":
        rows = Lines(file)
        count, read = len(rows), lambda n: json.loads(rows[n])
    else:
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "cache"))
        count, read = len(rows), rows.__getitem__
    opened = time.perf_counter()
    for n in numbers.integers(0, count, num_reads).tolist():
        assert read(n)["id"] == str(n)
    done = time.perf_counter()
    again = time.perf_counter()
    if name == "lines":
        assert len(Lines(file)) == count
    else:
        assert (
            len(load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "cache")))
            == count
        )
    return {
        "first_look_s": opened - start,
        "later_look_s": time.perf_counter() - again,
        "reads_s": done - opened,
        "peak_megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000,
        "extra_disk_megabytes": sum(f.stat().st_size for f in file.parent.rglob("*") if f.is_file() and f != file)
        / 1e6,
    }


def records_table(result: dict[str, Any]) -> str:
    lines = [f"| {result['megabytes']:.0f} MB of JSONL | `recipes/data.py` | `datasets` |", "|---|---|---|"]
    for key in result["lines"]:
        lines.append(f"| {key.replace('_', ' ')} | {result['lines'][key]:.2f} | {result['datasets'][key]:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":  # in a process of its own, whose memory is measured
    print(json.dumps(read_records(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
