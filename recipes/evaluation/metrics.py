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
"""From marked records to the metrics of each benchmark."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from recipes.evaluation.captions import CaptionCounts, count_coco
from recipes.evaluation.records import POINTING, POPE_CATEGORIES, Record, is_marked, is_unread, listed_options, mark
from recipes.evaluation.rules import SIDES, first_of, said, says_no
from recipes.terminal.tables import markdown


# A benchmark's metrics, each `(num_draws,)`, from how often every record counts in each draw,
# `(num_draws, num_records)`.
Measure = Callable[[np.ndarray], dict[str, np.ndarray]]
SET = ("category", "subcategory", "set_id")  # of HallusionBench: questions about a picture and its edits
DRAWS = 64  # whose counts are in memory at the same time


def ratio(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Their ratio, and `empty` where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full(part.shape, empty, dtype=float), where=whole != 0)


def flags(values: Sequence[bool]) -> np.ndarray:
    return np.array(list(values), dtype=float)


def right_of(records: Sequence[Record]) -> np.ndarray:
    return flags(record["correct"] for record in records)


def share_of(right: np.ndarray, chosen: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The share of the chosen records that are right."""
    return lambda counts: ratio(counts @ (right * chosen), counts @ chosen)


def share_of_groups(
    records: Sequence[Record], chosen: np.ndarray, *columns: str
) -> Callable[[np.ndarray], np.ndarray]:
    """
    The share of groups, chosen records that are equal in some columns, in which every record is right. A group counts
    as often as its first record.
    """
    groups: dict[Hashable, list[int]] = {}
    for n in np.flatnonzero(chosen):
        groups.setdefault(tuple(str(records[n][column]) for column in columns), []).append(int(n))
    first, right = np.zeros(len(records)), np.zeros(len(records))
    for members in groups.values():
        first[members[0]] = 1
        right[members[0]] = all(records[n]["correct"] for n in members)
    return share_of(right, first)


# --- POPE's rule ---


def pope_measure(truths: Sequence[bool], said: Sequence[bool], chosen: np.ndarray | None = None) -> Measure:
    """
    Accuracy, precision, recall and f1 (of yes) and yes_ratio by the rule of the POPE authors. A ratio with nothing to
    divide by is 0, but of no questions there is none.

    Args:
        truths (`Sequence[bool]`): Whether the answer to each question is yes.
        said (`Sequence[bool]`): Whether yes was said.
        chosen (`np.ndarray`, *optional*): Which questions count, `(num_records,)`.
    """
    truths, said = flags(truths), flags(said)
    chosen = np.ones(len(truths)) if chosen is None else chosen

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        terms = (truths * said, (1 - truths) * (1 - said), said, truths, np.ones(len(truths)))
        hits, rejections, yes, positive, number = (counts @ (chosen * term) for term in terms)
        precision, recall = ratio(hits, yes, 0.0), ratio(hits, positive, 0.0)
        scores = {
            "accuracy": ratio(hits + rejections, number),
            "precision": precision,
            "recall": recall,
            "f1": ratio(2 * precision * recall, precision + recall, 0.0),
            "yes_ratio": ratio(yes, number),
        }
        return {name: np.where(number > 0, values, np.nan) for name, values in scores.items()}

    return measure


def score_pope(answers: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """
    The metrics of [`pope_measure`] of `answers`, "yes" or "no", and `predictions`, free texts, of the same number; 0
    if there are none.
    """
    if len(answers) != len(predictions):
        raise ValueError(f"{len(answers)} answers, but {len(predictions)} predictions")
    measure = pope_measure([answer == "yes" for answer in answers], [not says_no(text) for text in predictions])
    return {name: float(np.nan_to_num(value[0])) for name, value in measure(np.ones((1, len(answers)))).items()}


def area_under_curve(
    positives: Sequence[float], negatives: Sequence[float], counts: tuple[np.ndarray, np.ndarray] | None = None
) -> float | np.ndarray:
    """
    Area under the ROC curve: how often the score of a positive is above that of a negative, ties half.

    Args:
        positives, negatives (`Sequence[float]`): Scores.
        counts (`tuple[np.ndarray, np.ndarray]`, *optional*): How often each of them counts, `(num_draws, num_scores)`;
            then the areas are `(num_draws,)`.
    """
    order = np.argsort(negatives, kind="stable")
    sorted_negatives = np.asarray(negatives)[order]
    below, not_above = (np.searchsorted(sorted_negatives, positives, side) for side in ("left", "right"))
    if counts is None:
        return int((below + not_above).sum()) / (2 * len(order) * len(below))
    of_positives, of_negatives = counts[0], counts[1][:, order]
    sums = np.concatenate([np.zeros((len(of_negatives), 1)), of_negatives.cumsum(axis=1)], axis=1)
    won = (of_positives * (sums[:, below] + sums[:, not_above])).sum(axis=1)
    return ratio(won, 2 * of_positives.sum(axis=1) * sums[:, -1])


def absence_measure(records: Sequence[Record], chosen: np.ndarray) -> Measure:
    """How well the attention's share on nothing tells what is not there, if the records have it and both answers."""
    chosen = np.flatnonzero(chosen)
    truths = np.array([records[n]["answer"].strip().lower() == "yes" for n in chosen], dtype=bool)
    shares = [records[n].get("on_nothing") for n in chosen]
    if None in shares or truths.all() or not truths.any():
        return lambda counts: {}
    shares, there, absent = np.array(shares), chosen[truths], chosen[~truths]
    return lambda counts: {
        "absence_auc": area_under_curve(shares[~truths], shares[truths], (counts[:, absent], counts[:, there]))
    }


# --- The benchmarks ---


def _hallusionbench(records: Sequence[Record]) -> Measure:
    everything = np.ones(len(records))
    metrics = {
        "aAcc": share_of(right_of(records), everything),
        "fAcc": share_of_groups(records, flags(str(r["visual_input"]) != "0" for r in records), *SET, "figure_id"),
        "qAcc": share_of_groups(records, everything, *SET, "question_id"),
    }
    return lambda counts: {name: 100 * metric(counts) for name, metric in metrics.items()}


def _pope(records: Sequence[Record]) -> Measure:
    truths = [record["answer"].strip().lower() == "yes" for record in records]
    affirmed = [not says_no(record["prediction"]) for record in records]
    exact = flags(said(r["prediction"]).lower() == r["answer"].strip().lower() for r in records)
    sets = {name: flags(record.get("category") == name for record in records) for name in POPE_CATEGORIES}
    of_sets = {name: pope_measure(truths, affirmed, chosen) for name, chosen in sets.items() if chosen.any()}
    everything = np.ones(len(records))
    whole, absence = pope_measure(truths, affirmed), absence_measure(records, everything)

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        metrics = {**whole(counts), "accuracy_exact": share_of(exact, everything)(counts), **absence(counts)}
        found = {name: of_set(counts) for name, of_set in of_sets.items()}
        for name, scores in found.items():
            metrics |= {f"{name}_{metric}": scores[metric] for metric in ("accuracy", "f1", "yes_ratio")}
        if len(found) == len(POPE_CATEGORIES):
            metrics["mean_f1"] = np.mean([scores["f1"] for scores in found.values()], axis=0)
        return metrics

    return measure


def _ocrbench(records: Sequence[Record]) -> Measure:
    right = right_of(records)
    kinds = dict.fromkeys(
        ["Scene Text-centric VQA", "Key Information Extraction", *(r["question_type"] for r in records)]
    )
    chosen = {kind: flags(record["question_type"] == kind for record in records) for kind in kinds}
    return lambda counts: {
        "total": counts @ right,
        **{kind: counts @ (right * of_kind) for kind, of_kind in chosen.items()},
    }


def _cvbench(records: Sequence[Record]) -> Measure:
    right = right_of(records)

    def of(column: str, value: str) -> Callable[[np.ndarray], np.ndarray] | None:
        chosen = flags(record[column] == value for record in records)
        return share_of(right, chosen) if chosen.any() else None

    shares = {name: of("type", name) for name in ("2D", "3D")}
    shares["accuracy"] = share_of(right, np.ones(len(records)))
    sources = [of("source", name) for name in ("ADE20K", "COCO", "Omni3D")]

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        metrics = {name: share(counts) for name, share in shares.items() if share}
        if all(sources):
            ade20k, coco, omni3d = (share(counts) for share in sources)
            metrics["source_weighted"] = ((ade20k + coco) / 2 + omni3d) / 2
        return metrics

    return measure


def _scenes(records: Sequence[Record]) -> Measure:
    right, everything = right_of(records), np.ones(len(records))
    metrics = {"accuracy": share_of(right, everything)}
    for kind in dict.fromkeys(record["kind"] for record in records):
        metrics[f"{kind}_accuracy"] = share_of(right, flags(record["kind"] == kind for record in records))
    asked = flags(record["kind"] in POPE_CATEGORIES for record in records)
    truths = [record["answer"].strip().lower() == "yes" for record in records]
    pope = pope_measure(truths, [not says_no(record["prediction"]) for record in records], asked)
    absence = absence_measure(records, asked)

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: metric(counts) for name, metric in metrics.items()}
        if asked.any():
            scores = pope(counts)
            found |= {f"pope_{name}": scores[name] for name in ("accuracy", "f1", "yes_ratio")} | absence(counts)
        return found

    return measure


# MME's kinds of questions, whose scores add up to 2,000 and to 800
MME = {
    "perception": "existence count position color posters celebrity scene landmark artwork OCR".split(),
    "cognition": "commonsense_reasoning numerical_calculation text_translation code_reasoning".split(),
}


def _mme(records: Sequence[Record]) -> Measure:
    right, scores = right_of(records), {}
    for category in dict.fromkeys(record["category"] for record in records):
        chosen = flags(record["category"] == category for record in records)
        both = share_of_groups(records, chosen, "question_id")
        one = share_of(right, chosen)
        scores[category] = lambda counts, one=one, both=both: 100 * (one(counts) + both(counts))

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: score(counts) for name, score in scores.items()}
        sums = {part: [found[name] for name in names if name in found] for part, names in MME.items()}
        return {part: np.sum(values, axis=0) for part, values in sums.items() if values} | found

    return measure


def _mmvp(records: Sequence[Record]) -> Measure:
    everything = np.ones(len(records))
    pairs = [{**record, "pair": (int(record["index"]) - 1) // 2} for record in records]
    accuracy, of_pairs = share_of(right_of(records), everything), share_of_groups(pairs, everything, "pair")
    return lambda counts: {"accuracy": accuracy(counts), "pair_accuracy": of_pairs(counts)}


def _naturalbench(records: Sequence[Record]) -> Measure:
    everything = np.ones(len(records))
    # Four questions in a row: the first about both pictures, then the second
    placed = [
        {**record, "group": n // 4, "asked": (n // 4, n % 4 // 2), "shown": (n // 4, n % 2)}
        for record, n in ((record, int(record["index"])) for record in records)
    ]
    metrics = {"accuracy": share_of(right_of(records), everything)}
    for name, column in (("question_accuracy", "asked"), ("image_accuracy", "shown"), ("group_accuracy", "group")):
        metrics[name] = share_of_groups(placed, everything, column)
    return lambda counts: {name: metric(counts) for name, metric in metrics.items()}


def sums_of(columns: Mapping[str, Sequence[int]]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The sums of the records' numbers."""
    values = {name: np.array(column, dtype=float) for name, column in columns.items()}
    return lambda counts: {name: counts @ column for name, column in values.items()}


def _chair(records: Sequence[Record]) -> Measure:
    captions = [count_coco(record["prediction"], record["answer"]) for record in records]
    sums, right = (
        sums_of({name: [getattr(c, name) for c in captions] for name in CaptionCounts._fields}),
        right_of(records),
    )

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        of, number = sums(counts), counts.sum(axis=1)
        return {
            "chair_i": ratio(of["false"], of["mentions"]),
            "chair_s": 1 - ratio(counts @ right, number),
            "recall": ratio(of["found"], of["there"]),
            "num_words": ratio(of["num_words"], number),
        }

    return measure


def _amber_generative(records: Sequence[Record]) -> Measure:
    names = ("mentions", "false", "found", "there", "imagined", "expected")
    sums, right = sums_of({name: [record[name] for record in records] for name in names}), right_of(records)

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        of = sums(counts)
        return {
            "chair": ratio(of["false"], of["mentions"]),
            "cover": ratio(of["found"], of["there"]),
            "hal": 1 - ratio(counts @ right, counts.sum(axis=1)),
            "cog": ratio(of["imagined"], of["expected"]),
        }

    return measure


# AMBER's kinds of questions, by their prefix of the metrics
AMBER = {
    "": (),
    "existence_": ("hallucination",),
    "attribute_": ("attribute-state", "attribute-number", "attribute-action"),
    "state_": ("attribute-state",),
    "number_": ("attribute-number",),
    "action_": ("attribute-action",),
    "relation_": ("relation",),
}


def _amber_discriminative(records: Sequence[Record]) -> Measure:
    right, everything = right_of(records), np.ones(len(records))
    absent = [record["answer"].strip().lower() == "no" for record in records]
    denied = [first_of(record["prediction"], ("yes", "no")) == "no" for record in records]
    metrics = {}
    for prefix, kinds in AMBER.items():
        chosen = everything if not prefix else flags(record["type"] in kinds for record in records)
        if chosen.any():
            metrics[prefix] = (share_of(right, chosen), pope_measure(absent, denied, chosen))

    def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for prefix, (accuracy, of_no) in metrics.items():
            scores = of_no(counts) | {"accuracy": accuracy(counts)}
            found |= {f"{prefix}{name}": scores[name] for name in ("accuracy", "precision", "recall", "f1")}
        return found

    return measure


def _mmhal(records: Sequence[Record]) -> Measure:
    rated, right = flags(map(is_marked, records)), right_of(records)
    ratings = np.array([record.get("rating", 0) for record in records], dtype=float)
    metrics = {"score": share_of(ratings, rated), "hallucination_rate": share_of(1 - right, rated)}
    for kind in dict.fromkeys(record["question_type"] for record in records):
        chosen = rated * flags(record["question_type"] == kind for record in records)
        metrics[f"score, {kind}"] = share_of(ratings, chosen)
    return lambda counts: (
        {name: metric(counts) for name, metric in metrics.items()} | {"unrated": counts @ (1 - rated)}
    )


def _pointing(records: Sequence[Record]) -> Measure:
    everything = np.ones(len(records))
    names = {"pointing_accuracy": "touches", "pointing_accuracy_exact": "exact", "in_mask_mass": "mass"}
    metrics = {name: share_of(flags(r[column] for r in records), everything) for name, column in names.items()}
    metrics["box_iou"] = share_of(np.array([r["iou"] for r in records]), everything)
    metrics["box_accuracy_50"] = share_of(flags(r["iou"] >= 0.5 for r in records), everything)
    for column in ("size", "place", "kind"):
        for value in sorted({record[column] for record in records}):
            chosen = flags(record[column] == value for record in records)
            metrics[f"pointing_accuracy, {column} {value}"] = share_of(right_of(records), chosen)
    return lambda counts: {name: metric(counts) for name, metric in metrics.items()}


_MEASURES = {
    **dict.fromkeys(POINTING, _pointing),
    "hallusionbench": _hallusionbench,
    "pope": _pope,
    "ocrbench": _ocrbench,
    "cvbench": _cvbench,
    "realworldqa": lambda records: (
        lambda counts: {"accuracy": share_of(right_of(records), np.ones(len(records)))(counts)}
    ),
    "mme": _mme,
    "mmvp": _mmvp,
    "naturalbench": _naturalbench,
    "chair": _chair,
    "amber_generative": _amber_generative,
    "amber_discriminative": _amber_discriminative,
    "mmhal": _mmhal,
    "scenes": _scenes,
    "scenes_transfer": _scenes,
}


def measure_of(records: Sequence[Record]) -> Measure:
    """
    The metrics of one benchmark's marked records, for any number of times that each of them counts.

    Raises:
        ValueError: If the records are of no or of several benchmarks.
    """
    benchmarks = {record["benchmark"] for record in records}
    if len(benchmarks) != 1:
        raise ValueError(f"summarize needs the records of one benchmark, got {sorted(benchmarks) or 'none'}")
    measure, unread = _MEASURES[records[0]["benchmark"]](records), flags(map(is_unread, records))
    if benchmarks <= set(POINTING):  # nothing was said
        return measure
    return lambda counts: {**measure(counts), "unread": counts @ unread}


def once(measure: Measure, num_records: int) -> dict[str, float]:
    """The metrics where each record counts once, without those of no records."""
    metrics = {name: float(value[0]) for name, value in measure(np.ones((1, num_records))).items()}
    return {name: value for name, value in metrics.items() if not np.isnan(value)}


def summarize(records: Sequence[Record]) -> dict[str, float]:
    """
    The metrics of one benchmark from its marked records.

    - `pope`: accuracy, precision, recall, f1 (of yes), yes_ratio (of the predictions) and accuracy_exact ("yes" or
      "no" and nothing else, but for case); accuracy, f1 and yes_ratio of each set (random, popular, adversarial) and,
      as papers print it, their mean_f1; absence_auc where the records say what looks at nothing (`on_nothing`): the
      area under the ROC curve of that share for what is not there against what is.
    - `hallusionbench`, in percent: aAcc of all questions, fAcc of pictures with all their questions right, qAcc of
      questions that are right on every picture, the original (`visual_input` "1") and the edited ones ("2"). The image
      split has 951 questions about 346 pictures, 455 different ones.
    - `cvbench`: 2D, 3D, accuracy, and source_weighted = 1/2 ((ADE20K + COCO) / 2 + Omni3D) where all three are there.
    - `ocrbench`: how many are right, the total and for each question_type.
    - `realworldqa`: accuracy.
    - `mme`: of each category 100 times the share of right answers plus the share of pictures with both right;
      perception and cognition, the sums over theirs.
    - `mmvp`: accuracy, and pair_accuracy of pairs of pictures with both right.
    - `naturalbench`: accuracy, and the shares of questions that are right on both pictures, of pictures with both
      questions right, and of groups of two questions and two pictures with all four right.
    - `chair`: chair_i, the share of mentioned objects that are not there; chair_s, of captions with any of them;
      recall, the share of the pictures' objects that are mentioned; num_words of a caption.
    - `amber_generative`: chair, of mentioned objects; hal, of captions, as above; cover, as recall; cog, the share of
      the objects that people would imagine that are mentioned.
    - `amber_discriminative`: accuracy, and precision, recall and f1 of no, of all and of each kind.
    - `mmhal`, of the answers that a judge has rated from 0 to 6: the mean score, also of each question_type, and
      hallucination_rate, the share below 3; unrated, the number of the others.
    - `scenes`, `scenes_transfer`: accuracy of all and of each kind; pope_accuracy, pope_f1 and pope_yes_ratio of the
      three POPE kinds.
    - `refcoco_pointing`, `flickr30k_pointing`: pointing_accuracy, how often the attention's maximum is in a cell that
      the phrase's region touches, of all and by size, place and kind, and pointing_accuracy_exact, how often the
      cell's middle is in the region; in_mask_mass, the share of the attention in the cells that the region touches;
      box_iou and box_accuracy_50, the intersection over union of the box that is read from the attention and the one
      around the region, and how often that is 0.5 or more (RefCOCO's Acc@0.5).
    - of those that ask: unread, the number of predictions in which the benchmark's rule finds no answer.

    Raises:
        ValueError: If the records are of no or of several benchmarks.
    """
    metrics = once(measure_of(records), len(records))
    counted = metrics if records[0]["benchmark"] == "ocrbench" else ("unread", "unrated")
    return {name: int(value) if name in counted else value for name, value in metrics.items()}


# --- What needs no eyes ---


def _kind(record: Record) -> Hashable:
    """
    What a question itself gives away, without its words: how many options it has; of the scenes its kind, and which
    sides it leaves to choose from.
    """
    if record["benchmark"] in ("cvbench", "mmvp"):
        return len(record["choices"])
    if record["benchmark"] == "realworldqa":
        return len(listed_options(record["question"]))
    words = re.findall("[a-z]+", record["question"].lower()) if record["kind"] == "relation" else ()
    return record["kind"], *(side for side in SIDES if side in words)


def guesses(records: Sequence[Record]) -> dict[str, list[Record]]:
    """
    The records as they would be, marked, of what needs neither a picture nor a question: always yes, always no (of
    NaturalBench always yes or A, always no or B), and, where there are other answers, the most frequent one of each
    kind of question ([`_kind`]). None of OCRBench, of answers in sentences and of those that point.
    """
    benchmark, answers = records[0]["benchmark"], {}
    if benchmark in ("chair", "amber_generative", "mmhal", "ocrbench", *POINTING):
        return {}
    if benchmark in ("pope", "hallusionbench", "mme", "amber_discriminative", "scenes", "scenes_transfer"):
        answers = {f"always {answer.lower()}": [answer] * len(records) for answer in ("Yes", "No")}
    if benchmark == "naturalbench":
        for pair in (("Yes", "A"), ("No", "B")):
            name = f"always {pair[0].lower()} or {pair[1]}"
            answers[name] = [pair[record["question_type"] != "yes_no"] for record in records]
    if benchmark in ("cvbench", "mmvp", "realworldqa", "scenes", "scenes_transfer"):
        by_kind: dict[Hashable, Counter] = {}
        for record in records:
            by_kind.setdefault(_kind(record), Counter())[record["answer"].strip().lower()] += 1
        most = {kind: counts.most_common(1)[0][0] for kind, counts in by_kind.items()}
        answers["most frequent answer"] = [most[_kind(record)] for record in records]
    guessed = {}
    for name, guess in answers.items():
        guessed[name] = [{**record, "prediction": answer} for record, answer in zip(records, guess, strict=True)]
        for record in guessed[name]:
            record.pop("on_nothing", None)
            record["correct"] = mark(record)
    return guessed


def floors(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """
    The metrics of what needs no eyes: of [`guesses`], or, where phrases are looked for, of the picture's centre, of
    even attention, and of the box around the whole picture.
    """
    if records[0]["benchmark"] in POINTING:
        known = {name: np.array([record[name] for record in records]) for name in ("centre", "even", "iou_whole")}
        centre, even, whole = (float(values.mean()) for values in known.values())
        return {
            "centre": {"pointing_accuracy_exact": centre},
            "even attention": {"in_mask_mass": even},
            "whole picture": {"box_iou": whole, "box_accuracy_50": float((known["iou_whole"] >= 0.5).mean())},
        }
    return {
        name: {metric: value for metric, value in summarize(guessed).items() if metric != "unread"}
        for name, guessed in guesses(records).items()
    }


def metrics_table(benchmark: str, columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table of a benchmark's metrics by run: counts, percent or shares as `summarize` has them."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))

    def cell(value: float | None) -> str:
        if value is None:
            return "-"
        return str(value) if isinstance(value, int) else f"{value:.{2 if benchmark == 'hallusionbench' else 4}f}"

    return markdown([benchmark, *columns], [[name, *(cell(m.get(name)) for m in columns.values())] for name in names])
