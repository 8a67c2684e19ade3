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
"""The paper's Table 2 with rows for a model, and every metric with and without the picture."""

from pathlib import Path
from typing import Any

from recipes.evaluation.benchmarks import PAPERS
from recipes.evaluation.comparison import choose
from recipes.evaluation.page import save_evaluation_page
from recipes.evaluation.records import read_with_pictures
from recipes.evaluation.results import PICTURES, records_file
from recipes.terminal.tables import Table


# Column of the paper's Table 2: benchmark, metric of `summarize`, how it is printed
TABLE = {
    "HallusionBench aAcc": ("hallusionbench", "aAcc", "{:.2f}"),
    "fAcc": ("hallusionbench", "fAcc", "{:.2f}"),
    "qAcc": ("hallusionbench", "qAcc", "{:.2f}"),
    "OCRBench scene": ("ocrbench", "Scene Text-centric VQA", "{:.0f}"),
    "key info.": ("ocrbench", "Key Information Extraction", "{:.0f}"),
    "CV-Bench 2D": ("cvbench", "2D", "{:.2f}"),
    "3D": ("cvbench", "3D", "{:.2f}"),
    "RWQA": ("realworldqa", "accuracy", "{:.2f}"),
    "POPE": ("pope", "accuracy", "{:.2%}"),
}
# A dash where the copy of the paper that we read leaves a doubt.
PAPER = {
    "CA-Baseline (paper)": "40.38 13.87 11.21 148 51 0.62 0.50 0.47 85.11",
    "ConvLLaVA (paper)": "24.71 8.96 4.84 117 26 0.59 0.57 0.51 77.76",
    "AGE-VLM (paper)": "43.85 15.32 11.21 - - - - - 87.34",
    "AGE-VLM-LM (paper)": "39.22 11.56 7.91 - - - - - 85.18",
}
# The metric of lmms-eval that asks the same by a rule of its own
LMMS_EVAL = {
    ("ocrbench", "total"): ("ocrbench", "ocrbench_accuracy"),
    ("cvbench", "2D"): ("cv_bench_2d", "cv_bench_acc"),
    ("cvbench", "3D"): ("cv_bench_3d", "cv_bench_acc"),
    ("realworldqa", "accuracy"): ("realworldqa", "exact_match"),
    ("mme", "perception"): ("mme", "mme_perception_score"),
    ("mme", "cognition"): ("mme", "mme_cognition_score"),
    ("mmvp", "accuracy"): ("mmvp", "mmvp_accuracy"),
    ("mmvp", "pair_accuracy"): ("mmvp", "mmvp_pair_accuracy"),
    ("pope", "accuracy"): ("pope", "pope_accuracy"),
    ("pope", "precision"): ("pope", "pope_precision"),
    ("pope", "recall"): ("pope", "pope_recall"),
    ("pope", "f1"): ("pope", "pope_f1_score"),
    ("pope", "yes_ratio"): ("pope", "pope_yes_ratio"),
    ("pope", "accuracy_exact"): ("pope", "pope_accuracy"),
}
NOTES = (
    "lmms-eval's own rules: POPE counts the answers that are yes or no and nothing else, and its yes_ratio is that of "
    "the truth; CV-Bench takes the first letter of the answer; HallusionBench asks GPT-4 (`judge`), which is not done "
    "here; OCRBench's accuracy is the total's share of 1000."
)


def table_2(name: str, results: dict[str, dict[str, Any]]) -> Table:
    """The paper's Table 2 with a row for every `picture` of ours."""

    def cell(picture: str, benchmark: str, metric: str, form: str) -> str:
        value = results.get(benchmark, {}).get(picture, {}).get("metrics", {}).get(metric)
        return "-" if value is None else form.format(value).rstrip("%")

    rows = [[method, *values.split()] for method, values in PAPER.items()]
    for picture, words in PICTURES.items():
        cells = [cell(picture, *column) for column in TABLE.values()]
        if set(cells) != {"-"}:
            rows.append([", ".join(filter(None, (name, words))), *cells])
    for floor in floor_names(results):
        found = {benchmark: of_run(runs).get("floors", {}).get(floor, {}) for benchmark, runs in results.items()}
        values = [(found.get(benchmark, {}).get(metric), form) for benchmark, metric, form in TABLE.values()]
        rows.append([floor, *("-" if value is None else form.format(value).rstrip("%") for value, form in values)])
    return Table(["", *TABLE], rows)


def of_run(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The run with the real picture, or another one."""
    return runs.get("real", next(iter(runs.values())))


def floor_names(results: dict[str, dict[str, Any]]) -> list[str]:
    """What needs no eyes, of any benchmark."""
    return list(dict.fromkeys(name for runs in results.values() for name in of_run(runs).get("floors", {})))


def benchmark_table(name: str, runs: dict[str, dict[str, Any]]) -> Table:
    """
    Every metric of a benchmark, with its 95% interval, without and with the wrong picture, of what needs no eyes, and
    lmms-eval's own value.
    """
    first, rows = of_run(runs), []
    for metric, value in first["metrics"].items():
        form = "{:.0f}" if isinstance(value, int) else "{:.2f}" if name == "hallusionbench" else "{:.4f}"
        values = {picture: run["metrics"][metric] for picture, run in runs.items() if metric in run["metrics"]}
        cells = [form.format(values[picture]) if picture in values else "-" for picture in PICTURES]
        drops = [
            form.format(values["real"] - values[picture]) if {"real", picture} <= values.keys() else "-"
            for picture in ("none", "swapped")
        ]
        interval = runs.get("real", {}).get("intervals", {}).get(metric)
        interval = "-" if interval is None else " to ".join(map(form.format, interval))
        task, theirs = LMMS_EVAL.get((name, metric), (f"age_vlm_{name}", metric))
        own = first["lmms_eval"].get(task, {}).get(theirs)
        own = "judge" if name == "hallusionbench" else "-" if own is None else f"{own:.4f}"
        guessed = [floor.get(metric) for floor in first["floors"].values()]
        guessed = ["-" if value is None else form.format(value) for value in guessed]
        rows.append([metric, cells[0], interval, cells[1], drops[0], cells[2], drops[1], *guessed, own])
    header = [name, "real picture", "95% interval", "none", "drop", "swapped", "drop", *first["floors"], "lmms-eval"]
    return Table(header, rows)


def report(name: str, results: dict[str, dict[str, Any]]) -> str:
    """All tables, and what there is to know about them."""
    counts = ", ".join(f"{benchmark} {of_run(runs)['questions']}" for benchmark, runs in results.items())
    few = [benchmark for benchmark, runs in results.items() if any(run["settings"]["limit"] for run in runs.values())]
    only = f" Of {', '.join(few)} these are only a few, by `--limit`: too few to compare." if few else ""
    parts = [str(benchmark_table(benchmark, runs)) for benchmark, runs in results.items()]
    parts.append(f"Questions: {counts}.{only} {NOTES}")
    if not results.keys().isdisjoint(PAPERS):
        parts = [str(table_2(name, results)), *parts]
    return "\n\n".join(parts)


def save_page(path: Path, name: str, results: dict[str, dict[str, Any]], rows: int = 8) -> None:
    """
    The same as a page, with right answers by category, and some wrong ones.

    Args:
        path (`Path`): HTML file, beside the records.
        name (`str`): Of the model.
        results (`dict`): What [`evaluate`] returns.
        rows (`int`, *optional*, defaults to 8): Up to how many wrong answers of each benchmark.
    """
    benchmarks = {}
    for benchmark, runs in results.items():
        file = records_file(path.parent, benchmark, "real")
        if "real" in runs and file.exists():  # not by other labels
            questions = [(record,) for record in read_with_pictures(file)]
            shown = choose([answers for answers in questions if not answers[0]["correct"]], rows)
            benchmarks[benchmark] = ([benchmark_table(benchmark, runs)], questions, shown)
    if benchmarks:
        save_evaluation_page(path, name, [name], benchmarks)
