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

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from tqdm.auto import tqdm

from recipes.evaluation.metrics import (
    DRAWS,
    SET,
    Measure,
    flags,
    floors,
    guesses,
    measure_of,
    right_of,
    share_of,
    summarize,
)
from recipes.evaluation.records import COLUMNS, POINTING, Record, is_marked
from recipes.terminal.tables import Table


# Columns by whose values the questions are also counted.
CATEGORIES = {
    "hallusionbench": ("category", "visual_input"),
    "pope": ("category",),
    "ocrbench": ("question_type",),
    "cvbench": ("task", "source"),
    "realworldqa": (),
    "mme": ("category",),
    "mmvp": (),
    "naturalbench": ("question_type",),
    "chair": (),
    "amber_generative": (),
    "amber_discriminative": ("type",),
    "mmhal": ("question_type",),
    "scenes": ("kind",),
    "scenes_transfer": ("kind",),
    **dict.fromkeys(POINTING, ("size", "place", "kind")),
}


GROUPS = {"mmvp": 2, "naturalbench": 4}  # questions that stand one after the other and belong together
# Columns that tell a picture from the others, where `picture` and `image` are not known
PICTURES = {
    "mme": ("category", "question_id"),
    "pope": ("image_source",),
    "chair": ("image_id",),
    "mmhal": ("image_src",),
}


def align(runs: dict[str, list[Record]]) -> list[tuple[Record, ...]]:
    """
    The records of every question, in the order of the first run.

    Args:
        runs (`dict`): Records of one benchmark by the run's name.

    Raises:
        ValueError: If the runs are of other questions, or these differ in an answer or a column that tells of what
            kind they are.
    """
    first, *others = runs
    by_id = {name: {(record["benchmark"], record["id"]): record for record in runs[name]} for name in runs}
    for name in others:
        if by_id[name].keys() != by_id[first].keys():
            lacking, more = by_id[first].keys() - by_id[name].keys(), by_id[name].keys() - by_id[first].keys()
            raise ValueError(
                f"Runs of the same questions can be compared: {name} lacks {len(lacking)} of {first}'s and has "
                f"{len(more)} others (for example {' '.join(min(lacking or more))})."
            )
        for key, record in by_id[first].items():
            asked = [column for column, form in COLUMNS[key[0]].items() if form.asked]
            for column in dict.fromkeys(("answer", *asked, *CATEGORIES[key[0]])):
                value, other = record.get(column), by_id[name][key].get(column)
                if str(value) != str(other):
                    raise ValueError(
                        f"Runs of the same questions can be compared: {column} of {' '.join(key)} is {value!r} in "
                        f"{first} and {other!r} in {name}."
                    )
    return list(zip(*([by_id[name][key] for key in by_id[first]] for name in runs), strict=True))


def unit_of(record: Record) -> tuple[str, ...]:
    """
    What a question shares with others that are right or wrong together with it: its picture, of HallusionBench the set
    with all edits of a picture, of MMVP and NaturalBench the pictures that are asked the same. By itself if nothing is
    known of its picture.
    """
    benchmark = record["benchmark"]
    if benchmark == "hallusionbench":
        return tuple(str(record[column]) for column in SET)
    if benchmark in GROUPS:
        return (str((int(record["index"]) - (benchmark == "mmvp")) // GROUPS[benchmark]),)
    for columns in (("picture",), ("image",), PICTURES.get(benchmark, ()), ("id",)):
        if columns and all(record.get(column) is not None for column in columns):
            break
    return columns[0], *(str(record[column]) for column in columns)


def numbered(records: Sequence[Record]) -> np.ndarray:
    """The number of each record's unit, `(num_records,)`."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(unit_of(record), len(numbers)) for record in records])


def sign_flip(differences: Sequence[int]) -> float:
    """
    The two-sided p-value of the exact sign-flip test: how likely a sum at least as far from 0 is, if each unit's
    difference has either sign with probability 1/2, as it has for equally good models. Of differences of 1 that is
    McNemar's exact test. Its relative error is below 1e-9, however small it is.

    The distribution of the sum is the Fourier transform of its characteristic function. As that rounds to about 1e-16,
    the signs are drawn with a bias that makes the sum that was found the expected one, and the probabilities are
    weighted back.

    Args:
        differences (`Sequence[int]`): Of each unit (picture), how many more questions the one model gets right than
            the other.
    """
    sizes, counts = np.unique(np.abs(np.array(differences, dtype=int)), return_counts=True)
    total, far = int(sizes @ counts), abs(sum(differences))
    if far == 0:
        return 1.0
    low, high = 0.0, 40.0  # at a bias of 40 all signs are the same
    for _ in range(60):
        bias = (low + high) / 2
        low, high = (bias, high) if sizes * np.tanh(bias * sizes) @ counts < far else (low, bias)
    length = 1 << total.bit_length()  # more than the sums from -total to total in steps of 2
    turns = np.arange(length // 2 + 1) / length
    characteristic = np.ones(len(turns), dtype=complex)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        plus = 1 / (1 + np.exp(-2 * bias * size))
        characteristic *= (1 - plus + plus * np.exp(-2j * np.pi * (size * turns % 1))) ** count
    probabilities = np.fft.irfft(characteristic, length)[(total + far) // 2 : total + 1]  # of far, far + 2, ...
    sums = far + 2.0 * np.arange(len(probabilities))
    weight = counts @ (np.logaddexp(bias * sizes, -bias * sizes) - np.log(2))
    return min(1.0, float(2 * probabilities @ np.exp(weight - bias * sums)))


def resample(
    records: Sequence[Record], measure: Measure, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """
    Metrics of records, each with the 2.5 and 97.5 percentiles of it over resamples, which draw pictures ([`unit_of`])
    with all their questions. Where all answers are right, or none, so they are in every draw, and the interval has no
    width: of n pictures the share of wrong ones can still be up to 3 / n.

    Args:
        records (`Sequence[dict]`): The questions.
        measure (`Measure`): Their metrics, of any number of times that each of them counts.
        resamples (`int`, *optional*, defaults to 1000): How often to draw.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
    """
    units, rng = numbered(records), np.random.default_rng(seed)
    num_units = units.max() + 1
    measured, draws = measure(np.ones((1, len(units)))), defaultdict(list)
    with tqdm(total=resamples, desc="resampling", delay=2) as bar:
        for start in range(0, resamples, DRAWS):
            number = min(DRAWS, resamples - start)
            drawn = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=number)
            for name, values in measure(drawn[:, units].astype(float)).items():
                draws[name].append(values)
            bar.update(number)
    return {
        # a metric of few questions may have none in a draw
        name: (float(value[0]), *np.nanpercentile(np.concatenate(draws[name]), (2.5, 97.5)).tolist())
        for name, value in measured.items()
        if not np.isnan(value[0])
    }


def bootstrap(
    first: Sequence[Record], second: Sequence[Record], resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """
    What the second run has more than the first, for every metric of [`summarize`], and its 95% interval: as
    [`resample`] has them, with the same draws for both runs, whose records are of the same questions in the same
    order.
    """
    measures = (measure_of(first), measure_of(second))

    def differences(counts: np.ndarray) -> dict[str, np.ndarray]:
        before, after = (measure(counts) for measure in measures)
        return {name: after[name] - before[name] for name in after if name in before}

    return resample(first, differences, resamples, seed)


def categories_of(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """Which records are of each category of their benchmark, `(num_records,)`."""
    found = {}
    for column in CATEGORIES[records[0]["benchmark"]]:
        for value in sorted({str(record[column]) for record in records if column in record}):
            found[f"{column} {value}"] = flags(str(record.get(column)) == value for record in records)
    return found


def category_measure(records: Sequence[Record]) -> Measure:
    """The share of right answers, of all questions and of each category, among those that are marked."""
    right, chosen = right_of(records), {"all": np.ones(len(records)), **categories_of(records)}
    marked = flags(map(is_marked, records))
    shares = {name: share_of(right, marked * of_category) for name, of_category in chosen.items()}
    return lambda counts: {name: share(counts) for name, share in shares.items()}


def category_floors(records: Sequence[Record]) -> dict[str, tuple[str, float]]:
    """Of all questions and of each category, which guess that needs no eyes is right most often, and how often."""
    best: dict[str, tuple[str, float]] = {}
    for guess, guessed in guesses(records).items():
        for name, (share,) in category_measure(guessed)(np.ones((1, len(guessed)))).items():
            if name not in best or share > best[name][1]:
                best[name] = (guess, float(share))
    return best


def counts_table(names: tuple[str, str], pairs: Sequence[tuple[Record, Record]]) -> Table:
    """Who is right where: for all questions that both are marked in, and for each category of theirs."""
    groups = {"all": list(pairs)}
    for name, chosen in categories_of([first for first, _ in pairs]).items():
        groups[name] = [pairs[n] for n in np.flatnonzero(chosen)]
    groups = {name: [pair for pair in group if all(map(is_marked, pair))] for name, group in groups.items()}
    header = [
        "questions",
        "number",
        "both right",
        *(f"only {name}" for name in names),
        "both wrong",
        *names,
        "p",
    ]
    rows = []
    for title, group in groups.items():
        if not group:
            continue
        right = [(first["correct"], second["correct"]) for first, second in group]
        both, one, other, none = (right.count(x) for x in ((True, True), (True, False), (False, True), (False, False)))
        shares = [f"{(both + right) / len(group):.2%}" for right in (one, other)]
        numbers = [str(number) for number in (len(group), both, one, other, none)]
        units = numbered([first for first, _ in group])
        added = [int(second["correct"]) - int(first["correct"]) for first, second in group]
        p = sign_flip(np.bincount(units, added).astype(int).tolist())
        rows.append([title, *numbers, *shares, f"{p:.3g}"])
    return Table(header, rows)


def differences_table(
    names: tuple[str, str], pairs: Sequence[tuple[Record, Record]], resamples: int, seed: int
) -> Table:
    """The benchmark's metrics: of both runs, their difference, its interval, and what needs no eyes."""
    first, second = zip(*pairs, strict=True)
    before, after, blind = summarize(first), summarize(second), floors(first)
    rows = [
        [
            name,
            f"{before[name]:.4g}",
            f"{after[name]:.4g}",
            f"{value:+.4g}",
            f"{low:+.4g} to {high:+.4g}",
            *(f"{metrics[name]:.4g}" if name in metrics else "-" for metrics in blind.values()),
        ]
        for name, (value, low, high) in bootstrap(first, second, resamples, seed).items()
    ]
    return Table(["metric", *names, "difference", "95% interval", *blind], rows)


def differing(questions: Sequence[tuple[Record, ...]]) -> list[tuple[Record, ...]]:
    """Those that not all models get right or wrong."""
    return [
        answers
        for answers in questions
        if all(map(is_marked, answers)) and len({answer["correct"] for answer in answers}) > 1
    ]


def choose(questions: Sequence[tuple[Record, ...]], number: int) -> list[tuple[Record, ...]]:
    """Up to `number` questions, spread evenly over all of them."""
    number = min(number, len(questions))
    return [questions[n * len(questions) // number] for n in range(number)]
