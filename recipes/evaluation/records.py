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
"""One JSON object per question and answer: what each benchmark's has to hold, and whether its answer is right."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.evaluation.rules import (
    HALLUSION_ANSWERS,
    NUMBERS,
    SIDES,
    contains,
    parse_option,
    parse_yes_no,
    says_no,
    score_count,
    score_relation,
)


Record = dict[str, Any]

COLUMNS = {
    "hallusionbench": ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input"),
    "pope": (),
    "ocrbench": ("dataset", "question_type"),
    "cvbench": ("type", "source", "choices"),
    "realworldqa": (),
    "scenes": ("kind",),
    "scenes_transfer": ("kind",),
}
# What else a record may hold, and of which type. The rest is not looked at.
OPTIONAL = {"correct": bool, "judged": bool, "image": str, "on_nothing": float}
POPE_CATEGORIES = ("random", "popular", "adversarial")
# Those whose rule has to read a choice out of free text, which a judge may do better.
JUDGED = ("hallusionbench", "cvbench", "realworldqa")


def _one_of(record: Record, answers: Iterable[str]) -> str:
    answer = record["answer"].strip().lower()
    if answer not in answers:
        raise ValueError(
            f"the answer of a {record['benchmark']} question is one of {', '.join(answers)}, got {record['answer']!r}"
        )
    return answer


def _mark_choice(record: Record) -> bool:
    answer, prediction = record["answer"].strip(), record["prediction"]
    if record["benchmark"] == "cvbench":
        letter = _one_of(record, [f"({chr(ord('a') + n)})" for n in range(len(record["choices"]))])
        return parse_option(prediction, record["choices"]) == letter.strip("()").upper()
    if not re.fullmatch("[A-Da-d]", answer):
        return prediction.lower().strip().rstrip(".") == answer.lower()
    lines = re.findall(r"^\s*\(?([A-Z])[.)]\s*(.*?)\s*$", record["question"], flags=re.MULTILINE)
    choices = [text for _, text in lines] if [letter for letter, _ in lines] == list("ABCD"[: len(lines)]) else []
    return parse_option(prediction, choices or [""] * 4) == answer.upper()


def mark(record: Record) -> bool:
    """
    Whether a record's prediction is right.

    Raises:
        ValueError: If the benchmark is unknown or its answer none that the benchmark has.
    """
    benchmark, prediction = record["benchmark"], record["prediction"]
    if benchmark == "pope":
        return says_no(prediction) == (_one_of(record, ("yes", "no")) == "no")
    if benchmark == "hallusionbench":
        return parse_yes_no(prediction) == HALLUSION_ANSWERS[_one_of(record, HALLUSION_ANSWERS)]
    if benchmark in ("cvbench", "realworldqa"):
        return _mark_choice(record)
    if benchmark == "ocrbench":
        answers = [record["answer"]] if isinstance(record["answer"], str) else record["answer"]
        return contains(prediction, answers, formula=record["dataset"] == "HME100k")
    if benchmark in ("scenes", "scenes_transfer"):
        answer = _one_of(record, ("yes", "no", *NUMBERS, *SIDES))
        if answer in ("yes", "no"):
            return says_no(prediction) == (answer == "no")
        return (score_count if answer in NUMBERS else score_relation)(answer, prediction)
    raise ValueError(f"`benchmark` must be one of {', '.join(COLUMNS)}, got {benchmark!r}")


def check_record(record: Any) -> None:
    """Raises `ValueError` unless this is a record with all that its benchmark needs."""
    if not isinstance(record, dict):
        raise ValueError(f"a record is a JSON object, got {str(record)[:60]!r}")
    benchmark = record.get("benchmark")
    if benchmark not in tuple(COLUMNS):
        raise ValueError(f"`benchmark` must be one of {', '.join(COLUMNS)}, got {benchmark!r}")
    needed = ("id", "question", "answer", "prediction", *COLUMNS[benchmark])
    if missing := [column for column in needed if record.get(column) is None]:
        raise ValueError(f"the record lacks {', '.join(missing)}")
    for column in needed[:4]:
        several = column == "answer" and benchmark == "ocrbench" and isinstance(record[column], list)
        for text in record[column] if several else [record[column]]:
            if not isinstance(text, str):
                raise ValueError(f"`{column}` must be a string, got {str(text)[:60]!r}")
            text.encode()  # JSON can hold half a character, which no file and no page takes
    for column in COLUMNS[benchmark]:
        if column == "choices":
            choices = record[column]
            if not (isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)):
                raise ValueError(f"`choices` must be a list of strings, got {str(choices)[:60]!r}")
        elif not isinstance(record[column], str | int | float):
            raise ValueError(f"`{column}` must be a string or a number, got {str(record[column])[:60]!r}")
    for column, kind in OPTIONAL.items():
        value = record.get(column)
        is_share = kind is not float or (isinstance(value, float) and 0 <= value <= 1)
        if column in record and not (isinstance(value, kind) and is_share):
            words = {bool: "true or false", str: "a string", float: "a share from 0.0 to 1.0"}[kind]
            raise ValueError(f"`{column}` must be {words}, got {str(value)[:60]!r}")


def read_records(path: Path | str) -> list[Record]:
    """
    The records of a JSONL file, marked where they were not.

    Raises:
        ValueError: If a line is no record, lacks a column that its benchmark needs, or has the id of another.
    """
    records, lines = [], {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line.decode())
                check_record(record)
                record.setdefault("correct", mark(record))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: this is no JSON ({error.msg} at character {error.pos})") from None
            except RecursionError:
                raise ValueError(f"{where}: it is nested too deeply") from None
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            first = lines.setdefault((record["benchmark"], record["id"]), number)
            if first != number:
                raise ValueError(f"{where}: the id {record['id']!r} stands in line {first} already")
            records.append(record)
    if not records:
        raise ValueError(f"There are no records in {path}: pass a JSONL file with one record a line.")
    return records


def write_records(path: Path | str, records: Iterable[Record]) -> None:
    """Writes a JSONL file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), "utf-8")
    unfinished.replace(path)


def grouped(records: Iterable[Record], column: str) -> dict[str, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[record[column]].append(record)
    return dict(groups)
