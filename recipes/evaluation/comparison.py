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
"""Two runs question by question: who is right where, and whether that can be chance."""

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import Record
from recipes.terminal.tables import markdown


# Columns by whose values the questions are also counted.
CATEGORIES = {
    "hallusionbench": ("category", "visual_input"),
    "pope": ("category",),
    "ocrbench": ("question_type",),
    "cvbench": ("task", "source"),
    "realworldqa": (),
    "scenes": ("kind",),
    "scenes_transfer": ("kind",),
}
QUESTION_SET = ("category", "subcategory", "set_id")


def align(runs: dict[str, list[Record]]) -> list[tuple[Record, ...]]:
    """
    The records of every question, in the order of the first run.

    Args:
        runs (`dict`): Records of one benchmark by the run's name.

    Raises:
        ValueError: If the runs are of other questions, or their answers differ.
    """
    first, *others = runs
    by_id = {name: {(record["benchmark"], record["id"]): record for record in runs[name]} for name in runs}
    for name in others:
        if by_id[name].keys() != by_id[first].keys():
            lacking, more = by_id[first].keys() - by_id[name].keys(), by_id[name].keys() - by_id[first].keys()
            raise ValueError(
                f"Runs of the same questions can be compared: {name} lacks {len(lacking)} of {first}'s and has {len(more)} "
                f"others (for example {' '.join(min(lacking or more))})."
            )
        for key, record in by_id[first].items():
            if by_id[name][key]["answer"] != record["answer"]:
                raise ValueError(
                    f"Runs of the same questions can be compared: the answer to {' '.join(key)} is {record['answer']!r} in "
                    f"{first} and {by_id[name][key]['answer']!r} in {name}."
                )
    return list(zip(*([by_id[name][key] for key in by_id[first]] for name in runs), strict=True))


def mcnemar(only_first: int, only_second: int) -> float:
    """
    The two-sided p-value of McNemar's exact test: how likely a split at least as uneven is, if each of the questions that
    only one model gets right falls to either with probability 1/2. It takes the questions as independent of each other.
    """
    number = only_first + only_second
    # binomial coefficients, each from the one before: thousands of `math.comb` take seconds
    steps = range(min(only_first, only_second))
    coefficients = itertools.accumulate(steps, lambda before, k: before * (number - k) // (k + 1), initial=1)
    return min(1.0, 2 * sum(coefficients) / 2**number)


def bootstrap(
    first: Sequence[Record], second: Sequence[Record], resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """
    What the second run has more than the first, for every metric of [`summarize`]: the difference and the 2.5 and 97.5
    percentiles of it over resamples, which draw the same questions for both runs.

    Drawn are questions; of HallusionBench whole sets, whose questions and pictures its metrics group.

    Args:
        first, second (`Sequence[dict]`): Records of the same questions in the same order.
        resamples (`int`, *optional*, defaults to 1000): How often to draw.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
    """
    units = defaultdict(list)
    for n, record in enumerate(first):
        in_sets = record["benchmark"] == "hallusionbench"
        units[tuple(str(record[column]) for column in QUESTION_SET) if in_sets else n].append(n)
    units, rng = list(units.values()), np.random.default_rng(seed)

    def metrics(records: Sequence[Record], drawn: np.ndarray) -> dict[str, float]:
        if len(units) == len(records):
            return summarize([records[units[unit][0]] for unit in drawn])
        # a set that is drawn twice is two sets
        return summarize([{**records[n], "set_id": copy} for copy, unit in enumerate(drawn) for n in units[unit]])

    def difference(drawn: np.ndarray) -> dict[str, float]:
        before, after = metrics(first, drawn), metrics(second, drawn)
        return {name: after[name] - before[name] for name in after if name in before}

    measured = difference(np.arange(len(units)))
    draws = [difference(rng.integers(len(units), size=len(units))) for _ in range(resamples)]
    # a metric of few questions may have none in a draw
    values = {name: [draw[name] for draw in draws if name in draw] for name in measured}
    return {name: (value, *np.percentile(values[name], (2.5, 97.5)).tolist()) for name, value in measured.items()}


def counts_table(names: tuple[str, str], pairs: Sequence[tuple[Record, Record]]) -> str:
    """A Markdown table of who is right where: for all questions, and for each category of theirs."""
    groups = {"all": list(pairs)}
    for column in CATEGORIES[pairs[0][0]["benchmark"]]:
        for value in sorted({str(first[column]) for first, _ in pairs if column in first}):
            groups[f"{column} {value}"] = [pair for pair in pairs if str(pair[0].get(column)) == value]
    header = [
        "questions",
        "number",
        "both right",
        *(f"only {name}" for name in names),
        "both wrong",
        *names,
        "McNemar p",
    ]
    rows = []
    for title, group in groups.items():
        right = [(first["correct"], second["correct"]) for first, second in group]
        both, one, other, none = (right.count(x) for x in ((True, True), (True, False), (False, True), (False, False)))
        shares = [f"{(both + right) / len(group):.2%}" for right in (one, other)]
        numbers = [str(number) for number in (len(group), both, one, other, none)]
        rows.append([title, *numbers, *shares, f"{mcnemar(one, other):.3g}"])
    return markdown(header, rows)


def differences_table(
    names: tuple[str, str], pairs: Sequence[tuple[Record, Record]], resamples: int, seed: int
) -> str:
    """A Markdown table of the benchmark's metrics: of both runs, their difference and its interval."""
    first, second = zip(*pairs, strict=True)
    before, after = summarize(first), summarize(second)
    rows = [
        [name, f"{before[name]:.4g}", f"{after[name]:.4g}", f"{value:+.4g}", f"{low:+.4g} to {high:+.4g}"]
        for name, (value, low, high) in bootstrap(first, second, resamples, seed).items()
    ]
    return markdown(["metric", *names, "difference", "95% interval"], rows)


def choose(questions: list[tuple[Record, ...]], number: int, only_different: bool) -> list[tuple[Record, ...]]:
    """Up to `number` questions, spread evenly over all of them or over those that not all models get right or wrong."""
    if only_different:
        questions = [answers for answers in questions if len({answer["correct"] for answer in answers}) > 1]
    number = min(number, len(questions))
    return [questions[n * len(questions) // number] for n in range(number)]
