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

from typing import Any

from recipes.evaluation.benchmarks import PAPERS, PICTURES
from recipes.terminal.tables import markdown


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
    ("pope", "accuracy"): ("pope", "pope_accuracy"),
    ("pope", "precision"): ("pope", "pope_precision"),
    ("pope", "recall"): ("pope", "pope_recall"),
    ("pope", "f1"): ("pope", "pope_f1_score"),
    ("pope", "yes_ratio"): ("pope", "pope_yes_ratio"),
    ("pope", "accuracy_exact"): ("pope", "pope_accuracy"),
}
NOTES = (
    "lmms-eval's own rules: POPE counts the answers that are yes or no and nothing else, and its yes_ratio is that of the "
    "truth; CV-Bench takes the first letter of the answer; HallusionBench asks GPT-4 (`judge`), which is not done here; "
    "OCRBench's accuracy is the total's share of 1000."
)


def table_2(name: str, results: dict[str, dict[str, Any]]) -> str:
    """The paper's Table 2 with a row for every `picture` of ours."""

    def cell(picture: str, benchmark: str, metric: str, form: str) -> str:
        value = results.get(benchmark, {}).get(picture, {}).get("metrics", {}).get(metric)
        return "-" if value is None else form.format(value).rstrip("%")

    rows = [[method, *values.split()] for method, values in PAPER.items()]
    for picture, words in PICTURES.items():
        cells = [cell(picture, *column) for column in TABLE.values()]
        if set(cells) != {"-"}:
            rows.append([", ".join(filter(None, (name, words))), *cells])
    return markdown(["", *TABLE], rows)


def drop_table(results: dict[str, dict[str, Any]]) -> str:
    """Every metric with, without and with the wrong picture, and lmms-eval's own value."""
    rows = []
    for name, runs in results.items():
        first = next(iter(runs.values()))
        for metric, value in first["metrics"].items():
            form = "{:.0f}" if isinstance(value, int) else "{:.2f}" if name == "hallusionbench" else "{:.4f}"
            values = {picture: run["metrics"][metric] for picture, run in runs.items() if metric in run["metrics"]}
            cells = [form.format(values[picture]) if picture in values else "-" for picture in PICTURES]
            drops = [
                form.format(values["real"] - values[picture]) if {"real", picture} <= values.keys() else "-"
                for picture in ("none", "swapped")
            ]
            task, theirs = LMMS_EVAL.get((name, metric), (f"age_vlm_{name}", metric))
            own = runs.get("real", first)["lmms_eval"].get(task, {}).get(theirs)
            own = "judge" if name == "hallusionbench" else "-" if own is None else f"{own:.4f}"
            rows.append([f"{name} {metric}", cells[0], cells[1], drops[0], cells[2], drops[1], own])
    header = ["", "real picture", "none", "drop", "swapped", "drop", "lmms-eval"]
    return markdown(header, rows)


def report(name: str, results: dict[str, dict[str, Any]]) -> str:
    """Both tables and what there is to know about them."""
    counts = ", ".join(f"{benchmark} {next(iter(runs.values()))['questions']}" for benchmark, runs in results.items())
    limit = next(iter(next(iter(results.values())).values()))["settings"]["limit"]
    only = f" These are only the first {limit} of each task: too few to compare." if limit else ""
    parts = [drop_table(results), f"Questions: {counts}.{only} {NOTES}"]
    if not results.keys().isdisjoint(PAPERS):
        parts = [table_2(name, results), *parts]
    return "\n\n".join(parts)
