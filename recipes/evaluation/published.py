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
Benchmarks that lie in a folder as their authors publish them, for which lmms-eval has no task: AMBER (arXiv
2311.07397) and MMHal-Bench (arXiv 2309.14525). Their rows, our answers in the form that their own scripts read, and
the ratings of MMHal-Bench's judge.

| folder | files |
|---|---|
| `amber` | `annotations.json`, `relation.json`, `safe_words.txt`, `query/query_*.json` of its `data`; `image` |
| `mmhal` | `response_template.json`, and in `images` the pictures under the last part of their `image_src` |
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from recipes.evaluation.captions import count_amber
from recipes.evaluation.records import Record, mark
from recipes.evaluation.rules import first_of


def read_json(file: Path) -> Any:
    """The content of a file. Raises `ValueError` if it is not there, or no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"There is no {file}, which the benchmark needs ({error.strerror}).") from error
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def read_rows(name: str, data: Path | None) -> list[dict[str, Any]]:
    """
    The rows of a benchmark: `image` (a path), `question` and its own columns.

    Raises:
        ValueError: If a file or a picture is missing or of another form.
    """
    folder = name.split("_")[0]
    if data is None:
        raise ValueError(f"{name} needs `--data`, the folder that holds {folder}/.")
    try:
        rows = _ROWS[name](data / folder)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The files in {data / folder} are not as {name}'s authors publish them ({error!r})."
        ) from error
    if missing := [row["image"] for row in rows if not Path(row["image"]).is_file()]:
        raise ValueError(
            f"{len(missing)} of the {len(rows)} pictures of {name} are missing, for example {missing[0]}."
        )
    return rows


def _amber(part: str) -> Callable[[Path], list[dict[str, Any]]]:
    def read(folder: Path) -> list[dict[str, Any]]:
        truths = {entry["id"]: entry for entry in read_json(folder / "annotations.json")}
        rows = []
        for query in read_json(folder / f"query/query_{part}.json"):
            truth = truths[query["id"]]
            row = {"image": str(folder / "image" / query["image"]), "question": query["query"], "number": query["id"]}
            if part == "generative":
                row |= {"truth": list(truth["truth"]), "hallu": list(truth["hallu"])}
            else:
                row |= {"truth": truth["truth"], "type": truth["type"].removeprefix("discriminative-")}
            rows.append(row)
        return rows

    return read


def _mmhal(folder: Path) -> list[dict[str, Any]]:
    columns = ("question_type", "question_topic", "image_src", "question", "gt_answer")
    return [
        {column: entry[column] for column in columns}
        | {
            "image": str(folder / "images" / entry["image_src"].rsplit("/", 1)[-1]),
            "image_content": ", ".join(entry["image_content"]),
        }
        for entry in read_json(folder / "response_template.json")
    ]


_ROWS = {"amber_generative": _amber("generative"), "amber_discriminative": _amber("discriminative"), "mmhal": _mmhal}


@cache
def amber_words(folder: Path) -> tuple[dict[str, list[str]], set[str]]:
    """AMBER's words that may mean an object, and those that are never false."""
    safe = (folder / "safe_words.txt").read_text(encoding="utf-8").split()
    return read_json(folder / "relation.json"), set(safe)


def count_objects(row: Mapping[str, Any], prediction: str, data: Path) -> Record:
    """What a record keeps of a description's objects."""
    return count_amber(prediction, row["truth"], row["hallu"], *amber_words(data / "amber"))


def responses(records: Sequence[Record]) -> list[dict[str, Any]] | None:
    """Answers as the benchmark's own script reads them; None of others."""
    if records[0]["benchmark"] == "mmhal":
        names = ("question_type", "question_topic", "image_src", "question")
        return [
            {name: record[name] for name in names}
            | {"image_content": record["image_content"].split(", ")}
            | {"gt_answer": record["answer"], "model_answer": record["prediction"]}
            for record in records
        ]
    if records[0]["benchmark"] == "amber_generative":
        return [{"id": record["number"], "response": record["prediction"]} for record in records]
    if records[0]["benchmark"] == "amber_discriminative":
        said = [(record, first_of(record["prediction"], ("yes", "no"))) for record in records]
        return [
            {"id": record["number"], "response": (word or record["prediction"]).capitalize()} for record, word in said
        ]
    return None


def rating_in(review: str) -> int:
    """The rating, 0 to 6, that a judge's text gives; 0 if it gives none or several, as MMHal-Bench counts."""
    found = set(re.findall(r"rating: ([0-6])", review.lower()))
    return int(found.pop()) if len(found) == 1 else 0


def rate(records: Sequence[Record], file: Path) -> None:
    """
    Stores the ratings of MMHal-Bench's judge, `--evaluation` of its `eval_gpt4.py`, in the field `rating`.

    Raises:
        ValueError: If the file is not of that form, or has another number of ratings.
    """
    reviews = read_json(file)
    if not isinstance(reviews, list) or len(reviews) != len(records):
        number = len(reviews) if isinstance(reviews, list) else "no list of"
        raise ValueError(f"{file} has {number} ratings, but there are {len(records)} answers.")
    for n, (record, review) in enumerate(zip(records, reviews, strict=True)):
        try:
            record["rating"] = rating_in(review["choices"][0]["message"]["content"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: entry {n} is no answer of a judge ({error!r})") from error
        record["correct"] = mark(record)
