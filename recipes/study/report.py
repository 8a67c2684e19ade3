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
"""The study's page, table and plots from its results."""

import csv
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from recipes.drawing import plt
from recipes.evaluation.perplexity import perplexities
from recipes.inside.measures import interval as bootstrap_interval
from recipes.scenes.texts import scene_texts
from recipes.study.plans import llm_checkpoint
from recipes.study.settings import (
    ABLATIONS,
    BASELINE,
    CONCATENATION_MODELS,
    HEAD_ABLATIONS,
    HEADS,
    LONG,
    LONG_MODELS,
    MODELS,
    PAIRS,
    SAME_TIME,
    SMOLLM2_MODELS,
    STEPS,
    TEST_IMAGES,
    Setting,
)
from recipes.terminal.tables import markdown


COLUMNS = {
    "pope_accuracy": "POPE",
    "pope_accuracy_blind": "POPE, blind",
    "pope_accuracy_swapped": "POPE, other picture",
    "count_accuracy": "counting",
    "relation_accuracy": "relations",
    "pairs_aAcc": "pairs aAcc",
    "pairs_qAcc": "pairs qAcc",
    "recolored_consistency": "same answer after recoloring",
    "chair_i": "CHAIR i",
    "chair_s": "CHAIR s",
    "chair_recall": "caption recall",
    "in_mask_mass": "mass in mask",
    "pointing_accuracy": "pointing",
    "sink_mass": "mass on the sink, object there",
    "absent_sink_mass": "mass on the sink, object absent",
    "absence_auc": "absence by that mass, AUC",
    "lm_loss": "LM loss",
}
WITH_TEXT = COLUMNS | {"text_perplexity": "perplexity of text without a picture"}  # of models that were asked
# of every model by itself
SEED_COLUMNS = ("pope_accuracy", "pairs_qAcc", "chair_i", "chair_recall", "lm_loss")
# two-sided 95 % quantiles of Student's t by degrees of freedom; the last one, a little too wide, for more of them
STUDENT = (math.nan, 12.7062, 4.3027, 3.1824, 2.7764, 2.5706)


def interval(values: Sequence[float]) -> str:
    """Mean and half of the 95 % interval of the mean."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    quantile = STUDENT[min(len(values), len(STUDENT)) - 1]
    return f"{mean(values):.3f} ± {quantile * stdev(values) / math.sqrt(len(values)):.3f}"


def shares(result: dict[str, Any], key: str) -> np.ndarray:
    """How many of how many, picture by picture: `(num_pictures, 2)`."""
    return np.array([[int(n) for n in entry.split("/")] for entry in result["by_picture"][key].split()])


def interval_of(found: dict[int, dict[str, Any]], key: str) -> str:
    """The same of a metric, from the results of a model by seed."""
    values = [result["metrics"][key] for result in found.values() if key in result["metrics"]]
    return interval(values) if values else "-"


def picture_interval(
    models: dict[int, dict[str, Any]], baseline: dict[int, dict[str, Any]], key: str, number: int = 2000
) -> str:
    """
    Mean over the seeds of what a model adds to a metric, and its 95 % interval over the pictures, of which as many are
    drawn with replacement, the same for both (bootstrap).
    """
    pairs = [[shares(results[seed], key) for results in (models, baseline)] for seed in models if seed in baseline]

    def added(pictures: np.ndarray) -> float:
        sums = ([counts[pictures].sum(axis=0) for counts in pair] for pair in pairs)
        return mean(one[0] / one[1] - other[0] / other[1] for one, other in sums)

    low, high = bootstrap_interval(added, len(pairs[0][0]), number)
    return f"[{low:+.3f}, {high:+.3f}]"


def at_loss(curve: list[dict[str, float]], loss: float) -> float:
    """The accuracy on existence where the curve first comes down to an LM loss, interpolated between its points."""
    for before, after in zip(curve, curve[1:], strict=False):
        if after["lm_loss"] <= loss <= before["lm_loss"]:
            share = (before["lm_loss"] - loss) / max(before["lm_loss"] - after["lm_loss"], 1e-9)
            return before["pope_accuracy"] + share * (after["pope_accuracy"] - before["pope_accuracy"])
    return math.nan


def reached(curve: list[dict[str, float]], accuracy: float = 0.75) -> int | None:
    """The first step of a curve's points at which the accuracy on existence is at least `accuracy`."""
    return next((int(point["step"]) for point in curve if point["pope_accuracy"] >= accuracy), None)


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results so far by the folder of their model's last stage."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}


def of_seeds(results: dict[str, dict[str, Any]], setting: Setting) -> dict[int, dict[str, Any]]:
    """The results of a setting by seed."""
    found = {seed: results.get(replace(setting, seed=seed).folder(4)) for seed in range(len(results))}
    return {seed: result for seed, result in found.items() if result}


def differences(guided: dict[int, dict[str, Any]], unguided: dict[int, dict[str, Any]], key: str) -> str:
    """What guidance adds to a metric, over the seeds that both have."""
    pairs = [(guided[seed]["metrics"], unguided[seed]["metrics"]) for seed in guided if seed in unguided]
    added = [one[key] - other[key] for one, other in pairs if key in one and key in other]
    return interval(added) if added else "-"


def report(folder: Path) -> None:
    """Writes `results.csv`, the plots and `page.md` from all results so far."""
    results = load_results(folder)
    write_csv(folder / "results.csv", results)
    models = {name: found for name, setting in MODELS.items() if (found := of_seeds(results, setting))}
    sections = [
        "# Does guidance help?",
        "Made by `python recipes/claim.py`; every model is a row of [results.csv](results.csv). Attention is that of the guided heads, "
        "without guidance of all. What a model of some seed was not asked does not count there.",
    ]
    sections += heads_sections(folder, results)
    if models:
        sections += [
            "## Guidance or none, LLM frozen or trained",
            "Mean and 95 % interval over the seeds, whose number the titles tell.",
        ]
        rows = [[title, *(interval_of(found, key) for found in models.values())] for key, title in COLUMNS.items()]
        sections.append(markdown(["", *(f"{name} ({len(found)})" for name, found in models.items())], rows))
        plot_curves(folder / "curves.png", models)
        sections.append("![existence over steps and LM loss](curves.png)")
    pairs = [pair for pair in PAIRS if all(name in models for name in pair)]
    if pairs:
        sections += ["## What guidance adds", "Guided minus unguided of the same seed, mean and 95 % interval."]
        rows = [[title, *(differences(models[a], models[b], key) for a, b in pairs)] for key, title in COLUMNS.items()]
        sections.append(markdown(["", *(f"{a} - {b}" for a, b in pairs)], rows))
        sections += [
            "## Existence at the same LM loss",
            "The lowest that both come down to; and the step at which 0.75 is reached.",
        ]
        header = ["", "seed", "LM loss", "POPE, guided", "POPE, unguided", "step, guided", "step, unguided"]
        sections.append(markdown(header, [row for a, b in pairs for row in matched_rows(a, b, models[a], models[b])]))
    sections += concatenation_sections(folder, results)
    long = {name: found for name, setting in LONG_MODELS.items() if (found := of_seeds(results, setting))}
    if long:
        sections += ["## Trained longer", f"{LONG} times the steps of stage 4, one seed."]
        rows = [[title, *(value(found[0], key) for found in long.values())] for key, title in COLUMNS.items()]
        rows.append(["first step at 0.75", *(str(reached(found[0]["curve"]) or "never") for found in long.values())])
        plot_curves(folder / "long.png", long)
        sections += [markdown(["", *long], rows), "![the same for the long runs](long.png)"]
    smollm2 = {name: found for name, setting in SMOLLM2_MODELS.items() if (found := of_seeds(results, setting))}
    if smollm2:
        steps = " and ".join(f"{STEPS['smollm2'][n]} of stage {n} ({STEPS['llama'][n]:,} above)" for n in (3, 4))
        sections += ["## Around a real LLM", f"SmolLM2-135M-Instruct, one seed, fewer steps: {steps}."]
        rows = [[title, *(value(found[0], key) for found in smollm2.values())] for key, title in COLUMNS.items()]
        sections.append(markdown(["", *smollm2], rows))
    ablations = {name: found for name, setting in ABLATIONS.items() if (found := results.get(setting.folder(4)))}
    if ablations:
        sections += [
            "## One thing changed at a time",
            "One seed, which moves POPE by a few hundredths by itself: see the intervals above.",
        ]
        rows = [[name, *(value(found, key) for key in COLUMNS)] for name, found in ablations.items()]
        plot_ablations(folder / "ablations.png", {name: found["metrics"] for name, found in ablations.items()})
        sections += [markdown(["", *COLUMNS.values()], rows), "![the ablations as bars](ablations.png)"]
    (folder / "page.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def value(result: dict[str, Any], key: str) -> str:
    """A metric of a model, or a dash where it has none: what has no sink has no mass on it."""
    return f"{result['metrics'][key]:.3f}" if key in result["metrics"] else "-"


def heads_sections(folder: Path, results: dict[str, dict[str, Any]]) -> list[str]:
    """How much of the attention is guided, and whether there is a place for nothing."""
    heads = {name: found for name, setting in HEADS.items() if (found := of_seeds(results, setting))}
    # Models of before have no results by picture.
    heads = {name: {s: r for s, r in found.items() if r.get("by_picture")} for name, found in heads.items()}
    heads = {name: found for name, found in heads.items() if found}
    sections = []
    if heads:
        rows = [[title, *(interval_of(found, key) for found in heads.values())] for key, title in WITH_TEXT.items()]
        sections += [
            "## Guide one head, and give it a place for nothing",
            "Mean and 95 % interval over the seeds, whose number the titles tell. The LLM trains in stage 4.",
            markdown(["", *(f"{name} ({len(found)})" for name, found in heads.items())], rows),
        ]
        plot_curves(folder / "heads.png", heads)
        sections.append("![existence over steps and LM loss](heads.png)")
        rows = [
            [name, str(seed), *(value(result, key) for key in SEED_COLUMNS)]
            for name, found in heads.items()
            for seed, result in found.items()
        ]
        sections += ["Seed by seed:", markdown(["", "seed", *(COLUMNS[key] for key in SEED_COLUMNS)], rows)]
    if BASELINE in heads and len(heads) > 1:
        others = {name: found for name, found in heads.items() if name != BASELINE}
        by_picture = [key for key in COLUMNS if key in next(iter(heads[BASELINE].values()))["by_picture"]]
        rows = [
            [
                COLUMNS[key],
                *(
                    f"{differences(found, heads[BASELINE], key)} {picture_interval(found, heads[BASELINE], key)}"
                    for found in others.values()
                ),
            ]
            for key in by_picture
        ]
        sections += [
            f'What it adds to "{BASELINE}": mean and 95 % interval over the seeds, and in brackets the 95 % interval over the '
            "pictures (bootstrap).",
            markdown(["", *others], rows),
        ]
    ablations = {name: found for name, setting in HEAD_ABLATIONS.items() if (found := results.get(setting.folder(4)))}
    if len(ablations) > 1:
        plot_ablations(folder / "head_ablations.png", {name: found["metrics"] for name, found in ablations.items()})
        rows = [[name, *(value(found, key) for key in COLUMNS)] for name, found in ablations.items()]
        sections += [
            "### One thing changed of the guided head",
            "One seed.",
            markdown(["", *COLUMNS.values()], rows),
            "![these ablations as bars](head_ablations.png)",
        ]
    return sections


def concatenation_sections(folder: Path, results: dict[str, dict[str, Any]]) -> list[str]:
    """The same tower, projector and LLM with the visual tokens among the words, beside cross-attention."""
    concatenation = {
        name: found for name, setting in CONCATENATION_MODELS.items() if (found := of_seeds(results, setting))
    }
    if not concatenation:
        return []
    names = {
        "cross-attention, no guidance": BASELINE,
        "cross-attention, all heads": "all heads",
        "cross-attention, one head, denied words to the sink, weight 0.3": "the same, weight 0.3",
    }
    crossing = {name: found for name, known in names.items() if (found := of_seeds(results, HEADS[known]))}
    models = crossing | concatenation
    rows = [[title, *(interval_of(found, key) for found in models.values())] for key, title in WITH_TEXT.items()]
    plot_curves(folder / "concatenation.png", models)
    before = text_perplexity(llm_checkpoint("llama"), TEST_IMAGES)
    sections = [
        "## Visual tokens among the words",
        "The same ConvNeXt, projector and LLM as a concatenation model, trained by the same stages on the same rows, with as many steps or, "
        f"at the end, {SAME_TIME} of them, which take as long on two CPU cores with the paper's 576 visual tokens (on a GPU more of them "
        "would: [speed](../speed.md)). Its attention is a share of that on the picture, and what lies off the picture stands for the sink. "
        f"Mean and 95 % interval over the seeds. The LLM's own perplexity, before any stage, is {before:.3f}: a frozen one keeps it.",
        markdown(["", *(f"{name} ({len(found)})" for name, found in models.items())], rows),
        "![existence over steps and LM loss, by architecture](concatenation.png)",
    ]
    pairs = [(name, unguided_of(name)) for name in models if unguided_of(name) in models.keys() - {name}]
    if pairs:
        rows = [
            [title, *(differences(models[guided], models[unguided], key) for guided, unguided in pairs)]
            for key, title in WITH_TEXT.items()
        ]
        sections += [
            "What guidance adds to the unguided model of the same architecture, steps and seed:",
            markdown(["", *(guided for guided, _ in pairs)], rows),
        ]
    return sections


@functools.cache
def text_perplexity(checkpoint: str, num_chats: int) -> float:
    """Of a VLM or an LLM on chats about test scenes, without their pictures: what learning to see cost in language."""
    return perplexities(checkpoint, [], list(scene_texts("test", num_chats)))[checkpoint]["perplexity"]


def unguided_of(name: str) -> str:
    """The model without guidance beside which one of the two architectures stands."""
    architecture, *_, last = name.split(", ")
    return ", ".join([architecture, "no guidance", *([last] if last.startswith("steps") else [])])


def matched_rows(
    guided: str, unguided: str, guided_results: dict[int, dict[str, Any]], unguided_results: dict[int, dict[str, Any]]
) -> list[list[str]]:
    """For every seed, the two models' accuracies on existence at the lowest LM loss that both came down to."""
    rows = []
    for seed in sorted(set(guided_results) & set(unguided_results)):
        curves = [guided_results[seed]["curve"], unguided_results[seed]["curve"]]
        loss = max(min(point["lm_loss"] for point in curve) for curve in curves)
        accuracies = [f"{at_loss(curve, loss):.3f}" for curve in curves]
        steps = [str(reached(curve) or "never") for curve in curves]
        rows.append([f"{guided} / {unguided}", str(seed), f"{loss:.3f}", *accuracies, *steps])
    return rows


def write_csv(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """One row for every model: its name, its last stage's folder, its setting and what it scored."""
    settings = [*ABLATIONS.items(), *((f"one head: {name}", setting) for name, setting in HEAD_ABLATIONS.items())]
    settings += [
        *CONCATENATION_MODELS.items(),
        *SMOLLM2_MODELS.items(),
        *LONG_MODELS.items(),
        *MODELS.items(),
        *HEADS.items(),
    ]
    names = {replace(setting, seed=seed).folder(4): name for name, setting in settings for seed in range(len(results))}
    metrics = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    columns = [field.name for field in fields(Setting)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "checkpoint", *columns, *metrics])
        for checkpoint, result in results.items():
            chosen = [result["setting"].get(name, getattr(Setting, name)) for name in columns]
            scored = [result["metrics"].get(name, "") for name in metrics]
            writer.writerow([names[checkpoint], checkpoint, *chosen, *scored])


def plot_curves(path: Path, models: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Accuracy on existence over the steps of stage 4, and over the LM loss: better, or the same sooner?"""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True, layout="constrained")
    for color, (name, found) in enumerate(models.items()):
        for n, result in enumerate(found.values()):
            accuracy = [point["pope_accuracy"] for point in result["curve"]]
            style = {"color": f"C{color}", "linewidth": 1.2, "label": None if n else name}
            left.plot([point["step"] for point in result["curve"]], accuracy, **style)
            right.plot([point["lm_loss"] for point in result["curve"]], accuracy, marker=".", **style)
    for ax, title in ((left, "step of stage 4"), (right, "LM loss on test scenes (nats per token)")):
        ax.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        ax.set_xlabel(title)
    right.invert_xaxis()
    left.set_ylabel("existence, share of right answers")
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_ablations(path: Path, metrics: dict[str, dict[str, float]]) -> None:
    """What every change does to existence, attention and LM loss, the base as a line."""
    names, base = list(metrics), next(iter(metrics))
    panels = {"pope_accuracy": "POPE", "chair_i": "CHAIR i", "in_mask_mass": "mass in mask", "lm_loss": "LM loss"}
    figure, grid = plt.subplots(1, len(panels), figsize=(13, 0.32 * len(names) + 1.2), sharey=True)
    for ax, (key, title) in zip(grid, panels.items(), strict=True):
        values = [metrics[name].get(key, math.nan) for name in names]
        ax.barh(names, values, color=["C1" if name == base else "C0" for name in names])
        ax.axvline(values[0], color="C1", linewidth=0.8)
        ax.set_title(title, fontsize=10)
    grid[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
