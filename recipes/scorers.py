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
Scores the answers of a model to benchmark questions, each benchmark by one written rule and without a paid judge.

    python recipes/scorers.py runs/pope.jsonl runs/cvbench.jsonl [--judge Qwen/Qwen2.5-7B-Instruct]

A *record* is one question with one answer, a line of a JSONL file:

| field        | content                                                                                          |
|--------------|--------------------------------------------------------------------------------------------------|
| `benchmark`  | one of `COLUMNS`                                                                                 |
| `id`         | string, unique in the benchmark                                                                  |
| `question`   | what was asked                                                                                   |
| `answer`     | the truth as the benchmark writes it: "yes", "0", "(B)", "Downhill"; for OCRBench all accepted   |
| `prediction` | what the model wrote                                                                             |
| `correct`    | whether that is right by the rule below; made where it is missing                                |
| `judged`     | optional: whether a judge says that it is right                                                  |
| `image`      | optional: file of the picture, relative to the JSONL file                                        |
| others       | the benchmark's own columns, of which `COLUMNS` lists those that its metrics need                |

When a prediction is right:

| benchmark        | rule                                                                                         |
|------------------|----------------------------------------------------------------------------------------------|
| `pope`           | as its authors': "no" if one of the words No, not and no stands in the first sentence, else  |
|                  | "yes". So "Yes. No." and an empty answer say yes, "Yes, there is no doubt" says no           |
| `hallusionbench` | the words yes and no in any case: exactly one of the two stands in the whole answer, and it  |
|                  | is the right one. "Yes. No.", "Yes, there is no cup", "not visible" and nothing are wrong    |
| `cvbench`        | the one option that the answer names, see `parse_option`; none or several are wrong          |
| `realworldqa`    | a letter as for `cvbench`; any other truth word for word, but for case and a last full stop  |
| `ocrbench`       | an accepted text is contained in the answer, see `contains`                                  |
| `scenes`         | the first number or side that is named; yes and no as in `pope`                              |
"""

import argparse
import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recipes.errors import one_sentence
from recipes.tables import markdown


Record = dict[str, Any]

COLUMNS = {
    "hallusionbench": ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input"),
    "pope": (),
    "ocrbench": ("dataset", "question_type"),
    "cvbench": ("type", "source", "choices"),
    "realworldqa": (),
    "scenes": ("kind",),
}
POPE_CATEGORIES = ("random", "popular", "adversarial")
# Those whose rule has to read a choice out of free text, which a judge may do better.
JUDGED = ("hallusionbench", "cvbench", "realworldqa")

NUMBERS = ("zero", "one", "two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
HALLUSION_ANSWERS = {"0": "no", "1": "yes"}
FULL_WIDTH = {ord("！") + n: ord("!") + n for n in range(94)} | {ord("\u3000"): ord(" ")}


# --- What an answer says ---


@functools.lru_cache(maxsize=1 << 16)
def says_no(text: str) -> bool:
    """Applies POPE's own rule: the first sentence, without commas, has one of the words No, not and no."""
    return not {"No", "not", "no"}.isdisjoint(text.split(".")[0].replace(",", "").split(" "))


def parse_yes_no(text: str) -> str | None:
    """Returns "yes" or "no" if exactly one of the two words stands in the text, in any case, else None."""
    found = set(re.findall(r"\b(?:yes|no)\b", text.lower()))
    return found.pop() if len(found) == 1 else None


# "(b)"; "b." or "option b" (small letters only where they can be nothing else); B as a word of its own
_LETTER = re.compile(r"\(([A-Za-z])\)|(?:^|\b(?i:option|choice)\s+)([a-z])(?=[.):]|$)|(?<![\w'’-])([A-Z])(?![\w'’-])")
_ANSWER_IS = re.compile(r"\b(?i:answer)(?:\s+(?i:is))?\s*:?\s*(?i:option\s+)?[(\"'*]*([A-Z]\b|[a-z](?=[).\"'*]*\s*$))")
_ARTICLE = re.compile(r"(?<![\w(])A(?=\s+(?!(?:and|or|is)\b)[a-z])")
_NEGATED = re.compile(r"\bnot\s+(?:(?i:option)\s+)?(?:\([A-Za-z]\)|[A-Z]\b)")


def _words(text: str) -> str:
    """The words of a text without case, punctuation and an article in front."""
    return re.sub(r"^(?:the|an?) (?=\w)", "", " ".join(re.findall(r"\d+(?:[.,]\d+)*|\w+", text.lower())))


def parse_option(prediction: str, choices: Sequence[str]) -> str | None:
    """
    The letter of the option that a prediction names, or None if it names none or more than one.

    A letter counts as "B", "b", "(b)", "b.", "B: the car", "option b" or any capital of its own ("I think it is B"), but not
    the article in "A car" and not what is denied ("not B"). What follows "answer is" outweighs other letters. Without a letter
    the option's own text counts, if it is the text of one option only; where one option's text is part of another's
    ("car", "red car"), the longer one. "(B) the car" is none where the car is option A.

    Args:
        prediction (`str`): What the model wrote.
        choices (`Sequence[str]`): Texts of the options A, B, ...; empty where they are not known.
    """
    options = {chr(ord("A") + n): _words(choice) for n, choice in enumerate(choices)}
    text = _NEGATED.sub("", _ARTICLE.sub("a", prediction.strip().strip("*\"'`").strip()))
    for pattern in (_ANSWER_IS, _LETTER):
        found = {"".join(match.groups(default="")).upper() for match in pattern.finditer(text)} & options.keys()
        if found:
            rest = _words(pattern.sub(" ", text))
            others = {letter for letter, option in options.items() if option and option == rest} - found
            return found.pop() if len(found) == 1 and not others else None
    named, words = set(), f" {_words(text)} "
    for option in sorted(set(options.values()) - {""}, key=len, reverse=True):
        if f" {option} " in words:
            named.add(option)
            words = words.replace(f" {option} ", " | ")
    letters = [letter for letter, option in options.items() if option in named]
    return letters[0] if len(letters) == 1 else None


def contains(prediction: str, answers: Iterable[str], formula: bool = False) -> bool:
    """
    Tells whether one of the answers is contained in the prediction, as OCRBench counts.

    Both are stripped, line breaks become spaces, full-width forms of ASCII characters are folded and case does not matter. Of a
    `formula` (data set HME100k) case matters and spaces do not.
    """

    def plain(text: str) -> str:
        if formula:
            return text.strip().replace("\n", " ").replace(" ", "")
        return text.translate(FULL_WIDTH).lower().strip().replace("\n", " ")

    return any(plain(answer) in plain(prediction) for answer in answers)


def score_count(answer: str, prediction: str) -> bool:
    """Tells whether the first number in the prediction, as a word or in digits, is `answer` (a word)."""
    found = re.search(rf"\b(\d+|{'|'.join(NUMBERS)})\b", prediction.lower())
    if found is None:
        return False
    word = found[1]
    return word == answer if word in NUMBERS else int(word) == NUMBERS.index(answer)


def score_relation(answer: str, prediction: str) -> bool:
    """Tells whether the first side (left, right, above, below) that the prediction names is `answer`."""
    found = re.search(rf"\b({'|'.join(SIDES)})\b", prediction.lower())
    return found is not None and found[1] == answer


# --- Records ---


def _one_of(record: Record, answers: Iterable[str]) -> str:
    answer = record["answer"].strip().lower()
    if answer not in answers:
        raise ValueError(
            f"the answer of a {record['benchmark']} question is one of {', '.join(answers)}, got {record['answer']!r}"
        )
    return answer


def _check(record: Any) -> None:
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
                raise ValueError(f"`{column}` must be a string, got {text!r}")


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
    if benchmark == "scenes":
        answer = _one_of(record, ("yes", "no", *NUMBERS, *SIDES))
        if answer in ("yes", "no"):
            return says_no(prediction) == (answer == "no")
        return (score_count if answer in NUMBERS else score_relation)(answer, prediction)
    raise ValueError(f"`benchmark` must be one of {', '.join(COLUMNS)}, got {benchmark!r}")


def read_records(path: Path | str) -> list[Record]:
    """
    The records of a JSONL file, marked where they were not.

    Raises:
        ValueError: If a line is no record, lacks a column that its benchmark needs, or has the id of another.
    """
    records, lines = [], {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line)
                _check(record)
                record.setdefault("correct", mark(record))
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: this is no JSON ({error.msg} at character {error.pos})") from None
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


# --- Metrics ---


def _share(records: Sequence[Record]) -> float:
    return sum(record["correct"] for record in records) / len(records)


def _share_of_groups(records: Iterable[Record], *columns: str) -> float:
    """The share of groups, records that are equal in some columns, in which every record is right."""
    groups = {}
    for record in records:
        key = tuple(str(record[column]) for column in columns)
        groups[key] = groups.get(key, True) and record["correct"]
    return sum(groups.values()) / len(groups)


def _by(records: Iterable[Record], column: str) -> dict[str, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[record[column]].append(record)
    return dict(groups)


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


def _summarize_hallusionbench(records: list[Record]) -> dict[str, float]:
    question_set = ("category", "subcategory", "set_id")
    with_figure = [record for record in records if str(record["visual_input"]) != "0"]
    return {
        "aAcc": 100 * _share(records),
        "fAcc": 100 * _share_of_groups(with_figure, *question_set, "figure_id"),
        "qAcc": 100 * _share_of_groups(records, *question_set, "question_id"),
    }


def _summarize_pope(records: list[Record]) -> dict[str, float]:
    answers, predictions = zip(*((r["answer"].strip().lower(), r["prediction"]) for r in records), strict=True)
    exact = sum(said.strip().lower() == answer for answer, said in zip(answers, predictions, strict=True))
    return {**score_pope(answers, predictions), "accuracy_exact": exact / len(records)}


def _summarize_ocrbench(records: list[Record]) -> dict[str, float]:
    counts = {"Scene Text-centric VQA": 0, "Key Information Extraction": 0}
    for record in records:
        counts[record["question_type"]] = counts.get(record["question_type"], 0) + record["correct"]
    return {"total": sum(counts.values()), **counts}


def _summarize_cvbench(records: list[Record]) -> dict[str, float]:
    by_type, by_source = _by(records, "type"), _by(records, "source")
    metrics = {name: _share(by_type[name]) for name in ("2D", "3D") if name in by_type}
    metrics["accuracy"] = _share(records)
    if by_source.keys() >= {"ADE20K", "COCO", "Omni3D"}:
        ade20k, coco, omni3d = (_share(by_source[name]) for name in ("ADE20K", "COCO", "Omni3D"))
        metrics["source_weighted"] = ((ade20k + coco) / 2 + omni3d) / 2
    return metrics


def _summarize_scenes(records: list[Record]) -> dict[str, float]:
    metrics = {"accuracy": _share(records)}
    if pope := [record for record in records if record["kind"] in POPE_CATEGORIES]:
        scores = _summarize_pope(pope)
        metrics |= {f"pope_{name}": scores[name] for name in ("accuracy", "f1", "yes_ratio")}
    return metrics | {f"{kind}_accuracy": _share(group) for kind, group in _by(records, "kind").items()}


_SUMMARIES = {
    "hallusionbench": _summarize_hallusionbench,
    "pope": _summarize_pope,
    "ocrbench": _summarize_ocrbench,
    "cvbench": _summarize_cvbench,
    "realworldqa": lambda records: {"accuracy": _share(records)},
    "scenes": _summarize_scenes,
}


def summarize(records: Sequence[Record]) -> dict[str, float]:
    """
    The metrics of one benchmark from its marked records.

    - `pope`: accuracy, precision, recall, f1 (of yes), yes_ratio (of the predictions) and accuracy_exact ("yes" or "no"
      and nothing else, but for case).
    - `hallusionbench`, in percent: aAcc of all questions, fAcc of pictures with all their questions right, qAcc of questions
      that are right on every picture, the original (`visual_input` "1") and the edited ones ("2"). The image split has 951
      questions about 346 pictures, 455 different ones.
    - `cvbench`: 2D, 3D, accuracy, and source_weighted = 1/2 ((ADE20K + COCO) / 2 + Omni3D) where all three are there.
    - `ocrbench`: how many are right, the total and for each question_type.
    - `realworldqa`: accuracy.
    - `scenes`: accuracy of all and of each kind; pope_accuracy, pope_f1 and pope_yes_ratio of the three POPE kinds.

    Raises:
        ValueError: If the records are of no or of several benchmarks.
    """
    benchmarks = {record["benchmark"] for record in records}
    if len(benchmarks) != 1:
        raise ValueError(f"summarize needs the records of one benchmark, got {sorted(benchmarks) or 'none'}")
    return _SUMMARIES[benchmarks.pop()](list(records))


# --- The judge ---


def judge_prompt(record: Record) -> str:
    """What the judge is asked."""
    answer = record["answer"]
    if record["benchmark"] == "hallusionbench":
        answer = HALLUSION_ANSWERS[answer]
    elif record["benchmark"] == "cvbench":
        answer = f"{answer} {record['choices'][ord(answer.strip('()')) - ord('A')]}"
    options = "".join(f"\n({chr(ord('A') + n)}) {choice}" for n, choice in enumerate(record.get("choices") or ()))
    return (
        "You mark the answer of a pupil. Decide only whether the pupil chose the right answer, however it is worded. A pupil "
        "who chose another answer, several or none is wrong.\n\n"
        f"Question: {record['question']}{options}\n\nRight answer: {answer}\n\n"
        f"The pupil's answer: {record['prediction']}\n\nDid the pupil choose the right answer? Reply with yes or no."
    )


def judge(records: Sequence[Record], name: str, batch_size: int = 16) -> None:
    """
    Asks an instruct model whether each prediction is right, and stores its verdicts in the field `judged`.

    Args:
        records (`Sequence[dict]`): Those of the benchmarks in `JUDGED` are judged; an empty prediction is wrong unasked.
        name (`str`): Folder or Hub id of any causal language model with a chat template.
        batch_size (`int`, *optional*, defaults to 16): Questions at a time.

    Raises:
        ValueError: If the model has no chat template.
    """
    import torch  # Only the judge needs them, and they take seconds.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(f"{name} has no chat template: the judge must be an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto" if device == "cuda" else torch.float32)
    model = model.to(device).eval()
    chosen = [record for record in records if record["benchmark"] in JUDGED]
    for record in chosen:
        record["judged"] = False
    asked = sorted((r for r in chosen if r["prediction"].strip()), key=lambda r: len(judge_prompt(r)))
    for first in range(0, len(asked), batch_size):
        batch = asked[first : first + batch_size]
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": judge_prompt(record)}] for record in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            enable_thinking=False,  # of templates that know it, as Qwen3's
        ).to(device)
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        replies = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for record, reply in zip(batch, replies, strict=True):
            record["judged"] = parse_yes_no(reply) == "yes"


def judged_summary(records: Sequence[Record]) -> dict[str, float]:
    """The metrics as the judge sees them; empty unless it has seen every record."""
    if not all("judged" in record for record in records):
        return {}
    metrics = summarize([{**record, "correct": record["judged"]} for record in records])
    return {f"{name} (judged)": value for name, value in metrics.items()}


def metrics_table(benchmark: str, columns: dict[str, dict[str, float]]) -> str:
    """A Markdown table of a benchmark's metrics, a column for each run: counts, percent or shares as `summarize` has them."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))

    def cell(value: float | None) -> str:
        if value is None:
            return "-"
        return str(value) if isinstance(value, int) else f"{value:.{2 if benchmark == 'hallusionbench' else 4}f}"

    return markdown([benchmark, *columns], [[name, *(cell(m.get(name)) for m in columns.values())] for name in names])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSONL files of records")
    parser.add_argument("--judge", help="instruct model (folder or Hub id) whose verdicts are stored in the files too")
    args = parser.parse_args()
    with one_sentence():
        runs = {str(file): read_records(file) for file in args.files}
        if args.judge:
            judge([record for records in runs.values() for record in records], args.judge)
            for file, records in runs.items():
                write_records(file, records)
        tables = defaultdict(dict)
        for file, records in runs.items():
            for benchmark, group in _by(records, "benchmark").items():
                tables[benchmark][file] = {"questions": len(group), **summarize(group), **judged_summary(group)}
    print("\n\n".join(metrics_table(benchmark, columns) for benchmark, columns in tables.items()))


if __name__ == "__main__":
    main()
