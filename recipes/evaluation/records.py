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
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from recipes.evaluation.captions import count_coco
from recipes.evaluation.rules import (
    HALLUSION_ANSWERS,
    NUMBERS,
    SIDES,
    begins_with_yes_or_no,
    contains,
    first_number,
    first_of,
    first_side,
    parse_option,
    parse_yes_no,
    said,
    says_no,
    says_yes_or_no,
    score_count,
    score_relation,
)
from recipes.rows.appearing import appearing


logger = logging.getLogger(__name__)

Record = dict[str, Any]

LONGEST_MAP = 256  # cells
NUM_LETTERS = 26


class Form(NamedTuple):
    """
    What a column holds: in words, and whether a value is that. `asked` of columns that tell questions, not answers.
    """

    words: str
    fits: Callable[[Any], bool]
    asked: bool = True


def is_text(value: Any) -> bool:
    """
    Raises `UnicodeEncodeError`, a `ValueError`, of half a character: JSON can hold it, but no file and no page takes
    it.
    """
    return isinstance(value, str) and value.encode() is not None


def is_share(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value <= 1.0001  # sums of rounded shares


def is_map(value: Any) -> bool:
    """Whether this is attention over a picture, rows of as many shares."""
    if not (isinstance(value, list) and 0 < len(value) <= LONGEST_MAP and all(isinstance(row, list) for row in value)):
        return False
    width = len(value[0])
    return 0 < width <= LONGEST_MAP and all(len(row) == width and all(map(is_share, row)) for row in value)


def is_number(value: Any, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= highest


def are_texts(value: Any, most: int) -> bool:
    return isinstance(value, list) and 0 < len(value) <= most and all(map(is_text, value))


NAME = Form("a string", is_text)
KEY = Form("a string or a number", lambda value: is_text(value) or isinstance(value, int | float))
INDEX = Form("a number from 0 on, of up to 9 digits", lambda value: re.fullmatch("[0-9]{1,9}", str(value)) is not None)
CHOICES = Form(f"a list of 1 to {NUM_LETTERS} strings", lambda value: are_texts(value, NUM_LETTERS))
TEXTS = Form("a string or a list of strings", lambda value: is_text(value) or are_texts(value, 1000))
COUNT = Form("a number from 0 to 1,000,000", lambda value: is_number(value, 10**6), asked=False)
RATING = Form("a rating from 0 to 6", lambda value: is_number(value, 6), asked=False)
FLAG = Form("true or false", lambda value: isinstance(value, bool), asked=False)
SHARE = Form("a share from 0.0 to 1.0", is_share, asked=False)
MAP = Form(f"up to {LONGEST_MAP} rows of as many shares from 0.0 to 1.0 each", is_map, asked=False)

POINTING = ("refcoco_pointing", "flickr30k_pointing")  # have no answers, but where a phrase looks
AMBER_COUNTS = {"false": "mentions", "found": "there", "imagined": "expected"}  # each with what it is a part of
COLUMNS = {
    "hallusionbench": dict.fromkeys(
        ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input"), KEY
    ),
    "pope": {},
    "ocrbench": {"dataset": NAME, "question_type": NAME},
    "cvbench": {"type": NAME, "source": NAME, "choices": CHOICES},
    "realworldqa": {},
    "mme": {"category": NAME, "question_id": KEY},
    "mmvp": {"index": INDEX, "choices": CHOICES},
    "naturalbench": {"index": INDEX, "question_type": NAME},
    "chair": {},
    "amber_generative": dict.fromkeys((*AMBER_COUNTS.values(), *AMBER_COUNTS), COUNT),
    "amber_discriminative": {"type": NAME},
    "mmhal": {"question_type": NAME},
    "scenes": {"kind": NAME},
    "scenes_transfer": {"kind": NAME},
    **dict.fromkeys(
        POINTING,
        dict.fromkeys(("kind", "size", "place"), NAME)
        | dict.fromkeys(("touches", "exact", "centre"), FLAG)
        | dict.fromkeys(("mass", "even", "iou", "iou_whole"), SHARE),
    ),
}
# What else a record may hold. The rest is not looked at.
OPTIONAL = {
    "correct": FLAG,
    "judged": FLAG,
    "image": NAME,
    "picture": NAME,
    "on_nothing": SHARE,
    "phrase": NAME,
    "map": MAP,
    "rating": RATING,
}
POPE_CATEGORIES = ("random", "popular", "adversarial")
# Those whose rule has to read a choice out of free text, which a judge may do better.
JUDGED = ("hallusionbench", "cvbench", "realworldqa", "mmvp", "mmhal")


def _one_of(record: Record, answers: Iterable[str]) -> str:
    answer = record["answer"].strip().lower()
    if answer not in answers:
        raise ValueError(
            f"the answer of a {record['benchmark']} question is one of {', '.join(answers)}, got {record['answer']!r}"
        )
    return answer


def letter_of(record: Record) -> str:
    """The letter of the right one of a record's `choices`, which benchmarks write as "(B)" or "(b)"."""
    letters = [f"({chr(ord('a') + n)})" for n in range(len(record["choices"]))]
    return _one_of(record, letters).strip("()").upper()


def listed_options(question: str) -> list[str]:
    """The texts of the options A, B, ... that stand in a question's lines, if they do."""
    lines = re.findall(r"^\s*\(?([A-Z])[.)]\s*(.*?)\s*$", question, flags=re.MULTILINE)
    return [text for _, text in lines] if [letter for letter, _ in lines] == list("ABCD"[: len(lines)]) else []


def _options(record: Record) -> list[str] | None:
    """The texts of a question's options, as far as they are known; None if it has none."""
    if record["benchmark"] in ("cvbench", "mmvp"):
        return record["choices"]
    if not re.fullmatch("[A-Da-d]", record["answer"].strip()):
        return None
    return listed_options(record["question"]) or [""] * 4


def mark(record: Record) -> bool:
    """
    Whether a record's prediction is right.

    Raises:
        ValueError: If the benchmark is unknown or its answer none that the benchmark has.
    """
    benchmark, prediction = record["benchmark"], record["prediction"]
    if benchmark in POINTING:
        return bool(record["touches"])
    if benchmark == "pope":
        return says_no(prediction) == (_one_of(record, ("yes", "no")) == "no")
    if benchmark == "hallusionbench":
        return parse_yes_no(prediction) == HALLUSION_ANSWERS[_one_of(record, HALLUSION_ANSWERS)]
    if benchmark == "mme":
        return begins_with_yes_or_no(prediction) == _one_of(record, ("yes", "no"))
    if benchmark == "naturalbench":
        answer = _one_of(record, ("yes", "no") if record["question_type"] == "yes_no" else ("a", "b"))
        return first_of(prediction, ("yes", "no") if answer in ("yes", "no") else ("A", "B")) == answer
    if benchmark == "chair":
        return count_coco(prediction, record["answer"]).false == 0
    if benchmark == "amber_generative":
        return record["false"] == 0
    if benchmark == "amber_discriminative":
        return first_of(prediction, ("yes", "no")) == _one_of(record, ("yes", "no"))
    if benchmark == "mmhal":
        return record.get("rating", 0) >= 3
    if benchmark in ("cvbench", "mmvp"):
        return parse_option(prediction, record["choices"]) == letter_of(record)
    if benchmark == "realworldqa":
        answer, options = record["answer"].strip(), _options(record)
        if options is None:
            return said(prediction).lower().rstrip(".") == answer.lower()
        return parse_option(prediction, options) == answer.upper()
    if benchmark == "ocrbench":
        answers = [record["answer"]] if isinstance(record["answer"], str) else record["answer"]
        return contains(prediction, answers, formula=record["dataset"] == "HME100k")
    if benchmark in ("scenes", "scenes_transfer"):
        answer = _one_of(record, ("yes", "no", *NUMBERS, *SIDES))
        if answer in ("yes", "no"):
            return says_no(prediction) == (answer == "no")
        return (score_count if answer in NUMBERS else score_relation)(answer, prediction)
    raise ValueError(f"`benchmark` must be one of {', '.join(COLUMNS)}, got {benchmark!r}")


def is_marked(record: Record) -> bool:
    """Whether it is known if a record's prediction is right: of an answer in sentences, once a judge has rated it."""
    return record["benchmark"] != "mmhal" or "rating" in record


def is_unread(record: Record) -> bool:
    """Whether the benchmark's rule finds none of its possible answers in a prediction, whatever it then counts as."""
    benchmark, prediction, answer = record["benchmark"], record["prediction"], record["answer"]
    if benchmark == "hallusionbench":
        return parse_yes_no(prediction) is None
    if benchmark == "mme":
        return begins_with_yes_or_no(prediction) is None
    if benchmark == "naturalbench":
        words = ("yes", "no") if record["question_type"] == "yes_no" else ("A", "B")
        return first_of(prediction, words) is None
    if benchmark == "amber_discriminative":
        return first_of(prediction, ("yes", "no")) is None
    if benchmark == "pope" or answer in ("yes", "no"):
        return not says_yes_or_no(prediction)
    if benchmark in ("scenes", "scenes_transfer"):
        return (first_number if answer in NUMBERS else first_side)(prediction) is None
    options = _options(record) if benchmark in ("cvbench", "mmvp", "realworldqa") else None
    return not said(prediction) if options is None else parse_option(prediction, options) is None


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
    forms = dict.fromkeys(needed[:4], NAME) | COLUMNS[benchmark]
    forms |= {column: form for column, form in OPTIONAL.items() if column in record}
    if benchmark == "ocrbench":
        forms["answer"] = TEXTS
    for column, form in forms.items():
        if not form.fits(record[column]):
            raise ValueError(f"`{column}` must be {form.words}, got {str(record[column])[:60]!r}")
    for part, whole in AMBER_COUNTS.items() if benchmark == "amber_generative" else ():
        if record[part] > record[whole]:
            raise ValueError(f"`{part}` is a part of `{whole}`, but {record[part]} is more than {record[whole]}")


def read_records(path: Path | str) -> list[Record]:
    """
    The records of a JSONL file, marked by the rules; that others were stored is said.

    Raises:
        ValueError: If a line is no record, lacks a column that its benchmark needs, or has the id of another.
    """
    records, lines, changed = [], {}, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line.decode())
                check_record(record)
                correct = mark(record)
                changed += record.setdefault("correct", correct) != correct
                record["correct"] = correct
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
    if changed:
        logger.warning(
            f"{changed} of the {len(records)} marks in {path} are not what the rules say now, and made anew."
        )
    if not records:
        raise ValueError(f"There are no records in {path}: pass a JSONL file with one record a line.")
    return records


def read_with_pictures(file: Path) -> list[Record]:
    """
    The same, with the pictures' paths from here instead of from the file's folder, which they have to lie in: whoever
    wrote the records does not choose which other pictures get on a page.

    Raises:
        ValueError: As [`read_records`], or if a picture is outside of the folder.
    """
    from recipes.rows.records import check_inside  # `datasets`, which scores do not need

    records = read_records(file)
    for record in records:
        if "image" in record:
            path = file.parent / record["image"]
            try:
                check_inside(file.parent, path, record["image"])
            except ValueError as error:  # also of a name that no file can have
                raise ValueError(
                    f"{file}, id {record['id']!r}: {error}. Put the pictures beside the file, or in a folder there."
                ) from None
            record["image"] = str(path)
    return records


def write_records(path: Path | str, records: Iterable[Record]) -> None:
    """Writes a JSONL file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing(path) as aside:
        aside.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), "utf-8")


def grouped(records: Iterable[Record], column: str) -> dict[str, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[record[column]].append(record)
    return dict(groups)
