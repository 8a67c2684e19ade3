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

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from recipes.evaluation.records import POPE_CATEGORIES, Record, grouped
from recipes.evaluation.rules import says_no
from recipes.terminal.tables import markdown


def share(records: Sequence[Record]) -> float:
    return sum(record["correct"] for record in records) / len(records)


def _share_of_groups(records: Iterable[Record], *columns: str) -> float:
    """The share of groups, records that are equal in some columns, in which every record is right."""
    groups = {}
    for record in records:
        key = tuple(str(record[column]) for column in columns)
        groups[key] = groups.get(key, True) and record["correct"]
    return sum(groups.values()) / len(groups)


def score_pope(answers: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Returns accuracy, precision, recall and f1 (of yes) and yes_ratio by the rule of the POPE authors.

    `answers` are "yes" or "no", `predictions` free texts. A ratio with nothing to divide by is 0. Raises `ValueError`
    when the lengths differ.
    """
    pairs = [(answer == "yes", not says_no(text)) for answer, text in zip(answers, predictions, strict=True)]
    table = Counter(pairs)
    said, true, hits = table[True, True] + table[False, True], sum(truth for truth, _ in pairs), table[True, True]
    precision, recall = hits / max(said, 1), hits / max(true, 1)
    return {
        "accuracy": (hits + table[False, False]) / max(len(pairs), 1),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": said / max(len(pairs), 1),
    }


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Area under the ROC curve: how often the score of a positive is above that of a negative, ties half."""
    negatives = np.sort(negatives)
    below, not_above = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    return int((below + not_above).sum()) / (2 * len(negatives) * len(below))


def _absence(records: list[Record]) -> dict[str, float]:
    """How well the attention's share on nothing tells what is not there, if the records have it and both answers."""
    shares = {"yes": [], "no": []}
    for record in records:
        shares[record["answer"].strip().lower()].append(record.get("on_nothing"))
    if None in shares["yes"] + shares["no"] or not shares["yes"] or not shares["no"]:
        return {}
    return {"absence_auc": area_under_curve(shares["no"], shares["yes"])}


def _summarize_hallusionbench(records: list[Record]) -> dict[str, float]:
    question_set = ("category", "subcategory", "set_id")
    with_figure = [record for record in records if str(record["visual_input"]) != "0"]
    return {
        "aAcc": 100 * share(records),
        "fAcc": 100 * _share_of_groups(with_figure, *question_set, "figure_id"),
        "qAcc": 100 * _share_of_groups(records, *question_set, "question_id"),
    }


def _summarize_pope(records: list[Record]) -> dict[str, float]:
    answers, predictions = zip(*((r["answer"].strip().lower(), r["prediction"]) for r in records), strict=True)
    exact = sum(said.strip().lower() == answer for answer, said in zip(answers, predictions, strict=True))
    return {**score_pope(answers, predictions), "accuracy_exact": exact / len(records), **_absence(records)}


def _summarize_ocrbench(records: list[Record]) -> dict[str, float]:
    counts = {"Scene Text-centric VQA": 0, "Key Information Extraction": 0}
    for record in records:
        counts[record["question_type"]] = counts.get(record["question_type"], 0) + record["correct"]
    return {"total": sum(counts.values()), **counts}


def _summarize_cvbench(records: list[Record]) -> dict[str, float]:
    by_type, by_source = grouped(records, "type"), grouped(records, "source")
    metrics = {name: share(by_type[name]) for name in ("2D", "3D") if name in by_type}
    metrics["accuracy"] = share(records)
    if by_source.keys() >= {"ADE20K", "COCO", "Omni3D"}:
        ade20k, coco, omni3d = (share(by_source[name]) for name in ("ADE20K", "COCO", "Omni3D"))
        metrics["source_weighted"] = ((ade20k + coco) / 2 + omni3d) / 2
    return metrics


def _summarize_scenes(records: list[Record]) -> dict[str, float]:
    metrics = {"accuracy": share(records)}
    if pope := [record for record in records if record["kind"] in POPE_CATEGORIES]:
        scores = _summarize_pope(pope)
        metrics |= {f"pope_{name}": scores[name] for name in ("accuracy", "f1", "yes_ratio")} | _absence(pope)
    return metrics | {f"{kind}_accuracy": share(group) for kind, group in grouped(records, "kind").items()}


_SUMMARIES = {
    "hallusionbench": _summarize_hallusionbench,
    "pope": _summarize_pope,
    "ocrbench": _summarize_ocrbench,
    "cvbench": _summarize_cvbench,
    "realworldqa": lambda records: {"accuracy": share(records)},
    "scenes": _summarize_scenes,
    "scenes_transfer": _summarize_scenes,
}


def summarize(records: Sequence[Record]) -> dict[str, float]:
    """
    The metrics of one benchmark from its marked records.

    - `pope`: accuracy, precision, recall, f1 (of yes), yes_ratio (of the predictions) and accuracy_exact ("yes" or "no"
      and nothing else, but for case); absence_auc where the records say what looks at nothing (`on_nothing`): the area under
      the ROC curve of that share for what is not there against what is.
    - `hallusionbench`, in percent: aAcc of all questions, fAcc of pictures with all their questions right, qAcc of questions
      that are right on every picture, the original (`visual_input` "1") and the edited ones ("2"). The image split has 951
      questions about 346 pictures, 455 different ones.
    - `cvbench`: 2D, 3D, accuracy, and source_weighted = 1/2 ((ADE20K + COCO) / 2 + Omni3D) where all three are there.
    - `ocrbench`: how many are right, the total and for each question_type.
    - `realworldqa`: accuracy.
    - `scenes`, `scenes_transfer`: accuracy of all and of each kind; pope_accuracy, pope_f1 and pope_yes_ratio of the three
      POPE kinds.

    Raises:
        ValueError: If the records are of no or of several benchmarks.
    """
    benchmarks = {record["benchmark"] for record in records}
    if len(benchmarks) != 1:
        raise ValueError(f"summarize needs the records of one benchmark, got {sorted(benchmarks) or 'none'}")
    return _SUMMARIES[benchmarks.pop()](list(records))


def metrics_table(benchmark: str, columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table of a benchmark's metrics, a column for each run: counts, percent or shares as `summarize` has them."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))

    def cell(value: float | None) -> str:
        if value is None:
            return "-"
        return str(value) if isinstance(value, int) else f"{value:.{2 if benchmark == 'hallusionbench' else 4}f}"

    return markdown([benchmark, *columns], [[name, *(cell(m.get(name)) for m in columns.values())] for name in names])
