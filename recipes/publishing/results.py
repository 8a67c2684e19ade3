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
"""An evaluation in the forms that the Hub shows beside a model: the card's `model-index`, and `.eval_results`."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml
from huggingface_hub.constants import EVAL_RESULTS_FOLDER

from recipes.evaluation.journal import identity_of
from recipes.evaluation.results import Runs, read_results, runs_of


TASK_TYPE = "image-text-to-text"


def results_of(evaluation: Path, checkpoint: Path) -> Runs:
    """
    What a folder that `recipes/evaluate.py` wrote has of a checkpoint with the right pictures, by benchmark.

    Raises:
        ValueError: If it was measured on another checkpoint, on another state of this one, or on a part of the
            questions, or there is nothing to show.
    """
    identity, stored = identity_of(str(checkpoint)), read_results(evaluation)
    for name, runs in stored.items():
        if "real" in runs and runs["real"]["settings"]["identity"] != identity:
            raise ValueError(
                f"The evaluation of {name} in {evaluation} is not of {checkpoint} as it is now: evaluate it again."
            )
    found = {name: runs["real"] for name, runs in runs_of(evaluation, identity, ("real",)).items()}
    for name, run in found.items():
        run["metrics"].pop("unread", None)  # of the answers, not of the model
        if (limit := run["settings"]["limit"]) is not None:
            raise ValueError(f"The evaluation has only {limit} questions of {name}'s tasks: evaluate it on all.")
    found = {name: run for name, run in found.items() if run["metrics"]}
    if not found:
        raise ValueError(
            f"{evaluation} has no answers to questions with their own pictures, or nobody has rated them: there is "
            "nothing to show. `recipes/evaluate.py` writes them as BENCHMARK-real.jsonl, beside results.json."
        )
    return found


def with_model_index(card: str, name: str, results: Runs) -> str:
    """A card whose header holds every metric of an evaluation. What was not asked of the Hub's own data says so."""
    with_header = ModelCard(card)
    with_header.data.model_name = name
    with_header.data.eval_results = [
        EvalResult(
            task_type=TASK_TYPE,
            dataset_type=next((task["dataset"] for task in run["tasks"].values()), benchmark),
            dataset_name=benchmark if run["tasks"] else f"{benchmark} ({run['questions']} questions from local files)",
            metric_type=metric,
            metric_value=value,
        )
        for benchmark, run in results.items()
        for metric, value in run["metrics"].items()
    ]
    return str(with_header)


def eval_results(results: Runs) -> dict[str, bytes]:
    """By their paths in the repository, the files with what stands for each task whose data set is on the Hub."""
    files = {}
    for benchmark, run in results.items():
        entries = [
            EvalResultEntry(
                dataset_id=task["dataset"],
                task_id=name,
                value=run["metrics"][task["metric"]],
                notes=notes(run, task["metric"]),
            )
            for name, task in run["tasks"].items()
            if task["metric"] in run["metrics"]
        ]
        if entries:
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
            files[f"{EVAL_RESULTS_FOLDER}/{benchmark}.yaml"] = text.encode()
    return files


def notes(run: dict[str, Any], metric: str) -> str:
    low, high = run["intervals"][metric]
    version = run["settings"]["lmms_eval"]
    return f"{metric}; {run['questions']} questions; 95% interval {low:.4g} to {high:.4g}; lmms-eval {version}"
