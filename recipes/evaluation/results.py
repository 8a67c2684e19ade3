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
"""
What an output folder of `recipes/evaluate.py` has: `results.json` says whose answers its records are, and to which
questions; the metrics are made of the records whenever they are asked for, and stand in `results.json` for readers
only.
"""

import json
from pathlib import Path
from typing import Any

from recipes.evaluation.comparison import resample
from recipes.evaluation.metrics import floors, measure_of, summarize
from recipes.evaluation.records import COLUMNS, Record, read_records
from recipes.rows.appearing import appearing


PICTURES = {"real": "", "none": "no picture", "swapped": "swapped picture"}
# Of the settings. All but the first are what answers depend on.
SETTINGS = ("model", "identity", "dtype", "limit", "data", "split", "lmms_eval")
Runs = dict[str, dict[str, dict[str, Any]]]  # by benchmark and picture


def is_run(run: Any) -> bool:
    """Whether this is what `results.json` has of a benchmark with one of the pictures."""
    if not isinstance(run, dict) or not all(
        isinstance(run.get(key), dict) for key in ("settings", "lmms_eval", "tasks")
    ):
        return False
    settings, theirs = run["settings"], [values for values in run["lmms_eval"].values() if isinstance(values, dict)]
    return (
        settings.keys() == set(SETTINGS)
        and all(value is None or isinstance(value, int if key == "limit" else str) for key, value in settings.items())
        and len(theirs) == len(run["lmms_eval"])
        and all(isinstance(value, (int, float)) for values in theirs for value in values.values())
        and all(isinstance(task, dict) and task.keys() == {"dataset", "metric"} for task in run["tasks"].values())
    )


def read_results(folder: Path) -> Runs:
    """
    A folder's `results.json`, whose metrics are those of some time ago; empty if there is none.

    Raises:
        ValueError: If it has another form.
    """
    file = folder / "results.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        good = all(
            name in COLUMNS and all(picture in PICTURES and is_run(run) for picture, run in runs.items())
            for name, runs in found.items()
        )
    except (ValueError, AttributeError, RecursionError):
        good = False
    if not good:
        raise ValueError(
            f"{file} is damaged, or of an older version of `recipes/evaluate.py`: evaluate again, to another `--out`."
        )
    return found


def store(folder: Path, runs: Runs) -> None:
    """Adds to a folder's `results.json`, which others may have added to in the meantime."""
    results = read_results(folder)
    for name, added in runs.items():
        results[name] = results.get(name, {}) | added
    with appearing(folder / "results.json") as aside:
        aside.write_text(json.dumps(results, indent=2))


def records_file(folder: Path, name: str, picture: str) -> Path:
    return folder / f"{name}-{picture}.jsonl"


def runs_of(folder: Path, identity: str, pictures: tuple[str, ...] = tuple(PICTURES)) -> Runs:
    """
    All that a folder has of a checkpoint: `results.json` with the number of `questions` of each run and their
    `metrics`, `intervals` and `floors`, by today's rules.

    Raises:
        ValueError: If a file has another form.
    """
    found: Runs = {}
    for name, runs in read_results(folder).items():
        for picture, run in runs.items():
            file = records_file(folder, name, picture)
            if picture in pictures and run["settings"]["identity"] == identity and file.exists():
                records = read_records(file)
                if {record["benchmark"] for record in records} != {name}:
                    raise ValueError(f"{file} has records of other benchmarks than {name}.")
                found.setdefault(name, {})[picture] = run | summary(records)
    return found


def summary(records: list[Record]) -> dict[str, Any]:
    """How many records there are, and their metrics with 95% intervals and floors."""
    intervals = {name: bounds for name, (_, *bounds) in resample(records, measure_of(records)).items()}
    return {
        "questions": len(records),
        "metrics": summarize(records),
        "intervals": intervals,
        "floors": floors(records),
    }
