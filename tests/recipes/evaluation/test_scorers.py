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
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from testing_utils import TEXT, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from recipes import scorers
from recipes.evaluation import records
from recipes.evaluation.comparison import numbered, resample
from recipes.evaluation.judge import judge, judge_prompt, judged_summary
from recipes.evaluation.metrics import area_under_curve, floors, measure_of, score_pope, summarize
from recipes.evaluation.records import mark, read_records, write_records
from recipes.evaluation.repope import read_labels, relabel
from recipes.evaluation.rules import contains, parse_option, parse_yes_no, score_count, score_relation


def record(benchmark: str, answer: Any, prediction: str, **columns: Any) -> dict[str, Any]:
    made = {"benchmark": benchmark, "id": "1", "question": "What?", "answer": answer, "prediction": prediction}
    made |= columns
    return {**made, "correct": mark(made)}


def pope(answer: str, prediction: str) -> dict[str, Any]:
    return record("pope", answer, prediction, category="random")


def hallusion(rows: int, figures: int, questions: int) -> list[dict[str, Any]]:
    """
    951 questions about 346 pictures, 455 different ones, of which exactly so many rows, figures and questions come out
    right. A figure stands in the rows n, n + 346, ...; the rows of a question follow each other.
    """
    figure_of = [n % 346 for n in range(951)]
    question_of = [n // 3 if n < 123 else 41 + (n - 123) // 2 for n in range(951)]
    right = {n for n in range(951) if figure_of[n] % 2 == 0 and figure_of[n] < 2 * figures}
    right |= {n for n in range(951) if question_of[n] >= 455 - questions}

    def completes_nothing(n: int) -> bool:
        return all(any(of[m] == of[n] and m != n and m not in right for m in range(951)) for of in groups)

    groups = (figure_of, question_of)
    for n in range(951):
        if len(right) < rows and n not in right and completes_nothing(n):
            right.add(n)
    assert len(right) == rows and len(set(figure_of)) == 346 and len(set(question_of)) == 455
    return [
        record(
            "hallusionbench",
            "01"[n % 2],
            ("No.", "Yes, it is.")[n % 2 if n in right else 1 - n % 2],
            id=str(n),
            category="VD",
            subcategory="figure",
            set_id="0",
            figure_id=str(figure_of[n]),
            question_id=str(question_of[n]),
            visual_input="12"[n % 2],
        )
        for n in range(951)
    ]


@pytest.mark.parametrize(
    ("numerators", "published"),
    [
        ((384, 48, 51), (40.38, 13.87, 11.21)),  # CA-Baseline
        ((235, 31, 22), (24.71, 8.96, 4.84)),  # ConvLLaVA
        ((417, 53, 51), (43.85, 15.32, 11.21)),  # AGE-VLM
        ((373, 40, 36), (39.22, 11.56, 7.91)),  # AGE-VLM-LM
    ],
)
def test_hallusionbench_gives_the_published_numbers(numerators: tuple, published: tuple):
    metrics = summarize(hallusion(*numerators))
    assert tuple(round(metrics[name], 2) for name in ("aAcc", "fAcc", "qAcc")) == published


def test_hallusionbench_groups():
    def row(set_id: int, figure: int, question: int, right: bool, category: str = "VD", **more: str) -> dict:
        columns = {"set_id": set_id, "figure_id": figure, "question_id": question, "category": category}
        prediction = "Yes" if right else "No"
        return record("hallusionbench", "1", prediction, **columns, subcategory="map", **{"visual_input": "1", **more})

    rows = [row(0, 0, 0, True), row(0, 0, 1, True), row(0, 1, 0, False, visual_input="2"), row(0, 1, 1, True)]
    # another set, or category, with the same figure and question numbers is another figure and question
    rows += [row(1, 0, 0, True), row(0, 0, 0, False, "VS")]
    metrics = summarize(rows)
    assert metrics == pytest.approx({"aAcc": 400 / 6, "fAcc": 100 * 2 / 4, "qAcc": 100 * 2 / 4, "unread": 0})
    # a question without a picture is no figure
    assert summarize([*rows, row(2, 0, 0, True, visual_input="0")])["fAcc"] == 50


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Yes. No.", None),
        ("not visible", None),
        ("", None),
        ("Yes, there is no cup.", None),
        ("YES!", "yes"),
        ("No, it is not.", "no"),
        ("I know nothing of it, none", None),
        ("The answer is **no**", "no"),
        ("yes yes", "yes"),
    ],
)
def test_hallusionbench_rule(text: str, says: str | None):
    assert parse_yes_no(text) == says
    columns = dict.fromkeys(records.COLUMNS["hallusionbench"], "1")
    assert record("hallusionbench", "1", text, **columns)["correct"] == (says == "yes")
    assert record("hallusionbench", "0", text, **columns)["correct"] == (says == "no")


@pytest.mark.parametrize(
    ("text", "says_no"),
    [
        ("Yes. No.", False),
        ("", False),
        ("not visible", True),
        ("There is not a cup", True),
        ("no, there is none", True),
        ("No", True),
        ("NO", False),
        ("Yes, there is no doubt", True),
        ("Nothing like that", False),
        ("I see a cup.\nnot here", False),
    ],
)
def test_pope_rule(text: str, says_no: bool):
    assert pope("no", text)["correct"] == says_no and pope("yes", text)["correct"] != says_no


def test_pope_scores():
    scores = score_pope(["yes", "yes", "no", "no"], ["Yes", "No", "Yes", "No"])
    assert scores == {"accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_ratio": 0.5}
    assert score_pope(["yes"], ["no"])["f1"] == 0 and score_pope([], [])["accuracy"] == 0
    assert summarize([pope("yes", "<think>hm</think>Yes")])["accuracy_exact"] == 1


def test_pope_summary():
    # hits 2, false alarms 1 (no rule can read it), misses 1, rejections 1; word for word only "yes" and "No" are right
    answered = [("yes", "yes"), ("yes", "Yes, there is."), ("Yes", "no"), ("no", "I see one"), ("no", "No")]
    rates = {"accuracy": 0.6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.6}
    rates |= {f"random_{name}": rates[name] for name in ("accuracy", "f1", "yes_ratio")}
    assert summarize([pope(*pair) for pair in answered]) == pytest.approx(rates | {"accuracy_exact": 0.4, "unread": 1})


def test_pope_sets_as_papers_print_them():
    """Accuracy, F1 and the share of yes in each set, and the mean of the three F1s."""
    said = {"random": ("yes", "no", "no", "yes"), "popular": ("yes", "yes", "no", "no"), "adversarial": ("no",) * 4}
    rows = [
        {**pope(answer, prediction), "id": f"{category}{n}", "category": category}
        for category, predictions in said.items()
        for n, (answer, prediction) in enumerate(zip(("yes", "yes", "no", "no"), predictions, strict=True))
    ]
    metrics = summarize(rows)
    assert [metrics[f"{category}_accuracy"] for category in said] == [0.5, 1, 0.5]
    assert [metrics[f"{category}_f1"] for category in said] == [0.5, 1, 0]
    assert [metrics[f"{category}_yes_ratio"] for category in said] == [0.5, 0.5, 0]
    assert metrics["mean_f1"] == 0.5 and metrics["accuracy"] == pytest.approx(8 / 12)
    assert "mean_f1" not in summarize(rows[:8])


def test_a_set_that_is_not_drawn_has_no_scores():
    """
    Of who always says yes, yes_ratio is 1 in every draw that has any of the set, and the sets' mean f1 is theirs.
    """
    rows = [
        {**pope("no" if n % 2 else "yes", "Yes"), "id": str(n), "category": records.POPE_CATEGORIES[n % 3]}
        for n in range(12)
    ]
    found = resample(rows, measure_of(rows), 200)
    assert found["random_yes_ratio"] == found["yes_ratio"] == (1, 1, 1)
    drawn = np.ones((2, 12))
    drawn[0, ::3] = 0  # none of the random ones
    scores = measure_of(rows)(drawn)
    assert np.isnan([scores[name][0] for name in ("random_accuracy", "random_f1", "mean_f1")]).all()
    assert scores["mean_f1"][1] == pytest.approx(2 / 3) and scores["popular_f1"].tolist() == pytest.approx([2 / 3] * 2)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("B", "B"),
        ("(b)", "B"),
        ("b", "B"),
        ("\n B.\n", "B"),
        ("B)", "B"),
        ("B. the bus", "B"),
        ("B the bus", "B"),
        ("**B**", "B"),
        ("The answer is: **B**", "B"),
        ("Answer: b", "B"),
        ("Option b", "B"),
        ("I think it is B", "B"),
        ("A is the car, so the answer is B", "B"),
        ("not A but B", "B"),
        ("(B), farther than the car", "B"),
        ("the bus", "B"),
        ("It is a bus.", "B"),
        ("A bus", "B"),  # A is the article
        ("The answer is a bus", "B"),
        ("A", "A"),
        ("A: the car", "A"),
        ("", None),
        ("not visible", None),
        ("Yes. No.", None),
        ("D", None),
        ("The answer is not A", None),
        ("A or B", None),
        ("(A) the car (B) the bus", None),
        ("the car, not the bus", "A"),
        ("The answer is A or B.", None),
        ("It is neither A nor B.", None),
        ("It cannot be B", None),
        ("option b is right", "B"),
        ("Option b is what I would choose.", "B"),
        ("B\n\nExplanation: the car is nearer, so A is wrong.", "B"),
        ("B. the bus\n\nA is wrong because there is no car.", "B"),
        ("First I thought that the answer is A. But the answer is B.", "B"),
        ("The answer isn't A, it's B.", "B"),
        ("Option A does not fit. Option C does not fit. Therefore B.", "B"),
        ("It is B because C is a car and A is not.", "B"),
        ("<think>Maybe (A), or (C).</think>\n(B)", "B"),
        ("Maybe (A).</think> B", "B"),  # the chat template began the thought
        ("<think>It may be A", None),  # and nothing after it
        ("答案是B", "B"),
        ("Ｂ", "B"),
        ("(b", "B"),
        ("(B) the car", None),
        ("the busy street", None),
        ("It is in front of the house", None),
    ],
)
def test_option_parser(text: str, letter: str | None):
    assert parse_option(text, ["the car", "the bus", "the red car"]) == letter


def test_option_parser_with_the_options_own_text():
    assert parse_option("It is the red car", ["the car", "the red car"]) == "B"
    assert parse_option("The red car and the car", ["the car", "the red car"]) is None
    assert parse_option("There are 2 chairs", ["1", "2", "12"]) == "B" and parse_option("12", ["1", "2"]) is None
    assert parse_option("2.5 m", ["2", "5"]) is None and parse_option("2.5 m", ["2", "2.5"]) == "B"
    assert parse_option("left", ["left", "left"]) is None
    assert parse_option("C", ["", "", ""]) == "C" and parse_option("nothing", ["", ""]) is None


def cvbench(source: str, right: bool, prediction: str | None = None) -> dict[str, Any]:
    kind = "3D" if source == "Omni3D" else "2D"
    prediction = prediction or ("(B)" if right else "(A)")
    return record("cvbench", "(B)", prediction, type=kind, task="Count", source=source, choices=["1", "2"])


def test_cvbench_summary():
    rows = [cvbench("ADE20K", n < 1) for n in range(4)] + [cvbench("COCO", n < 1) for n in range(2)]
    expected = {"2D": 2 / 6, "accuracy": 2 / 6, "unread": 0}
    assert summarize(rows) == pytest.approx(expected)  # weights need all three sources
    rows += [cvbench("Omni3D", n < 1) for n in range(1)]
    weighted = ((1 / 4 + 1 / 2) / 2 + 1) / 2
    expected |= {"3D": 1.0, "accuracy": 3 / 7, "source_weighted": weighted}
    assert summarize(rows) == pytest.approx(expected)
    assert cvbench("COCO", True, "There are 2 of them.")["correct"]


@pytest.mark.parametrize(
    ("prediction", "answers", "formula", "right"),
    [
        ("The sign says CENTRE\nSTREET.", ["centre street"], False, True),
        ("centre  street", ["centre street"], False, False),
        ("ＳＴＯＰ！", ["stop!"], False, True),
        ("a　b", ["A B"], False, True),
        ("14", ["4", "15"], False, True),
        ("", ["4"], False, False),
        ("not visible", ["12"], False, False),
        ("\\frac { a } { B }\n+ 1", ["\\frac{a}{B} +1"], True, True),
        ("\\frac{a}{b}+1", ["\\frac{a}{B}+1"], True, False),
    ],
)
def test_ocrbench_rule(prediction: str, answers: list[str], formula: bool, right: bool):
    assert contains(prediction, answers, formula) == right
    dataset = "HME100k" if formula else "IIIT5K"
    assert record("ocrbench", answers, prediction, dataset=dataset, question_type="x")["correct"] == right


def test_ocrbench_counts():
    def row(kind: str, prediction: str) -> dict:
        return record("ocrbench", "cup", prediction, dataset="IIIT5K", question_type=kind)

    scene, digits = "Scene Text-centric VQA", "Digit String Recognition"
    metrics = summarize([row(scene, "A CUP"), row(scene, "cups"), row(scene, "cap"), row(digits, "cup")])
    assert metrics == {"total": 3, scene: 2, "Key Information Extraction": 0, digits: 1, "unread": 0}
    assert all(type(count) is int for count in metrics.values())


def test_realworldqa():
    def right(
        answer: str, prediction: str, question: str = "Where?\nA. Left\nB. Right\nAnswer with the letter."
    ) -> bool:
        return record("realworldqa", answer, prediction, question=question)["correct"]

    assert (
        right("B", "The answer is (B).") and right("B", "right.") and right("B", "B. Right") and not right("B", "left")
    )
    assert right("C", "C", question="Which?") and not right("C", "Yes. No.", question="Which?")
    assert right("Downhill", " downhill. ") and not right("Downhill", "It is downhill") and not right("3", "")
    assert right("3", "3") and not right("3", "13")
    rows = [record("realworldqa", "3", said) for said in ("3", "4", "3.", "three")]
    assert summarize(rows) == {"accuracy": 0.5, "unread": 0}


def test_count_and_relation_scores():
    assert score_count("two", "There are two cups.") and score_count("two", "2 cups, not three")
    assert not score_count("two", "Many") and not score_count("two", "12")
    assert not score_count("one", "There is none") and not score_count("two", "three or two")
    assert not score_count("two", "2" * 5000) and score_count("two", "02") and not score_count("five", "1000000005")
    assert score_relation("left", "The cup is to the left of the apple, not right.")
    assert not score_relation("left", "Right, left") and not score_relation("above", "")


def test_scenes_summary():
    said = [("yes", "Yes, on the left.", "random"), ("no", "Yes", "popular"), ("no", "No", "removed")]
    said += [("two", "two cups", "count"), ("above", "below", "relation")]
    metrics = summarize([record("scenes", answer, text, kind=kind) for answer, text, kind in said])
    shares = {"random": 1, "popular": 0, "removed": 1, "count": 1, "relation": 0}
    expected = {"accuracy": 0.6, "pope_accuracy": 0.5, "pope_f1": 2 / 3, "pope_yes_ratio": 1, "unread": 0}
    assert metrics == pytest.approx(expected | {f"{kind}_accuracy": share for kind, share in shares.items()})


def test_what_looks_at_nothing_tells_what_is_not_there():
    """Of the pairs of an absent and a present object the absent one has more on nothing in 4 of 6, ties half."""
    shares = [("no", 0.75), ("yes", 0.25), ("Yes", 0.75), ("no", 0.25), ("yes", 0.125)]
    records = [{**pope(answer, "yes"), "on_nothing": share} for answer, share in shares]
    assert summarize(records)["absence_auc"] == (1 + 1 / 2 + 1 + 1 / 2 + 0 + 1) / 6
    of_scenes = [
        {**record("scenes", answer.lower(), "", kind="random"), "on_nothing": share} for answer, share in shares
    ]
    count = {**record("scenes", "two", "two", kind="count"), "on_nothing": 0.9}
    assert summarize([*of_scenes, count])["absence_auc"] == summarize(records)["absence_auc"]
    assert "absence_auc" not in summarize([*records, pope("no", "no")])  # one of them is not known
    assert "absence_auc" not in summarize(records[1:3])  # nothing to tell apart


@pytest.mark.parametrize("seed", range(3))
def test_area_under_curve_counts_pairs(seed: int):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.integers(0, 5, 30).tolist(), rng.integers(0, 4, 20).tolist()
    won = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    assert area_under_curve(positives, negatives) == sum(won) / 600


def test_summarize_wants_one_benchmark():
    with pytest.raises(ValueError, match="one benchmark, got .'pope', 'realworldqa'"):
        summarize([pope("yes", "yes"), record("realworldqa", "3", "3")])
    with pytest.raises(ValueError, match="got none"):
        summarize([])


def test_records_come_back_from_a_file(tmp_path: Path):
    records = [pope("yes", "Ja, „ß“"), record("ocrbench", ["a", "b"], "A", id="2", dataset="x", question_type="y")]
    write_records(tmp_path / "runs" / "a.jsonl", records)
    assert read_records(tmp_path / "runs" / "a.jsonl") == records
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["a.jsonl"]
    unmarked = {key: value for key, value in records[0].items() if key != "correct"}
    write_records(tmp_path / "b.jsonl", [unmarked])
    assert read_records(tmp_path / "b.jsonl") == records[:1]


GOOD = {"benchmark": "pope", "id": "7", "question": "Is it?", "answer": "yes", "prediction": "Yes"}
LOOKS = GOOD | {"benchmark": "refcoco_pointing", "kind": "any", "size": "small", "place": "middle"}
LOOKS |= {"touches": True, "exact": True, "centre": True, "mass": 0.5, "even": 0.2, "iou": 0.4, "iou_whole": 0.1}
AMBER = records.COLUMNS["amber_generative"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"id": 1', "line 3: this is no JSON (Expecting ',' delimiter at character"),
        ("[1]", "line 3: a record is a JSON object"),
        (GOOD, "line 3: the id '7' stands in line 1 already"),
        ({**GOOD, "benchmark": "vqa"}, "line 3: `benchmark` must be one of hallusionbench, pope,"),
        ({**GOOD, "id": "8", "prediction": None}, "line 3: the record lacks prediction"),
        ({**GOOD, "benchmark": "ocrbench"}, "line 3: the record lacks dataset, question_type"),
        ({**GOOD, "id": 8}, "line 3: `id` must be a string, got '8'"),
        ({**GOOD, "id": "8", "question": {"a": 1}}, """line 3: `question` must be a string, got "{'a': 1}\""""),
        ({**GOOD, "id": "8", "prediction": "\ud800"}, "line 3: 'utf-8' codec can't encode character '\\ud800'"),
        (
            {**GOOD, "id": "8", "correct": "x onmouseover=alert(document.location) "},
            "line 3: `correct` must be true or false, got 'x onmouseover=alert(document.location) '",
        ),
        ({**GOOD, "id": "8", "correct": 1}, "line 3: `correct` must be true or false, got '1'"),
        ({**GOOD, "id": "8", "correct": None}, "line 3: `correct` must be true or false, got 'None'"),
        ({**GOOD, "id": "8", "judged": "yes"}, "line 3: `judged` must be true or false, got 'yes'"),
        ({**GOOD, "id": "8", "on_nothing": "79%"}, "line 3: `on_nothing` must be a share from 0.0 to 1.0, got '79%'"),
        ({**GOOD, "id": "8", "on_nothing": 79.0}, "line 3: `on_nothing` must be a share from 0.0 to 1.0, got '79.0'"),
        (
            {**GOOD, "id": "8", "on_nothing": float("nan")},
            "line 3: `on_nothing` must be a share from 0.0 to 1.0, got 'nan'",
        ),
        ({**GOOD, "id": "8", "image": ["a.png"]}, """line 3: `image` must be a string, got "['a.png']\""""),
        (
            {**GOOD, "id": "8", "benchmark": "scenes", "kind": ["count"]},
            """line 3: `kind` must be a string, got "['count']\"""",
        ),
        (
            {**GOOD, "id": "8", "benchmark": "cvbench", "type": "2D", "source": "COCO", "choices": "ab"},
            "line 3: `choices` must be a list of 1 to 26 strings, got 'ab'",
        ),
        *(
            (LOOKS | {"id": "8"} | wrong, f"line 3: `{next(iter(wrong))}` must be {words}, got '{shown}'")
            for wrong, words, shown in (
                ({"kind": 3}, "a string", 3),
                ({"centre": "x"}, "true or false", "x"),
                ({"touches": "false"}, "true or false", "false"),
                ({"mass": 1e308}, "a share from 0.0 to 1.0", 1e308),
                ({"even": float("nan")}, "a share from 0.0 to 1.0", "nan"),
            )
        ),
        *(
            (
                {**GOOD, "id": "8", "benchmark": benchmark, **columns, "index": index},
                f"line 3: `index` must be a number from 0 on, of up to 9 digits, got '{str(index)[:60]}'",
            )
            for benchmark, columns in (
                ("mmvp", {"answer": "(a)", "choices": ["x", "y"]}),
                ("naturalbench", {"question_type": "yes_no"}),
            )
            for index in (float("inf"), 1.5, -1, "1.5", "9" * 5000, True)
        ),
        *(
            ({**GOOD, "id": "8", "benchmark": "amber_generative", **dict.fromkeys(AMBER, 1), **wrong}, sentence)
            for wrong, sentence in (
                ({"mentions": -1}, "line 3: `mentions` must be a number from 0 to 1,000,000, got '-1'"),
                ({"found": 1.5}, "line 3: `found` must be a number from 0 to 1,000,000, got '1.5'"),
                ({"false": 5}, "line 3: `false` is a part of `mentions`, but 5 is more than 1"),
            )
        ),
        (
            {**GOOD, "id": "8", "benchmark": "mme", "category": "\ud800", "question_id": 1},
            "line 3: 'utf-8' codec can't encode character '\\ud800'",
        ),
        ("[" * 100_000, "line 3: it is nested too deeply"),
        (
            {**GOOD, "id": "8", "answer": "maybe"},
            "line 3: the answer of a pope question is one of yes, no, got 'maybe'",
        ),
        (
            {**GOOD, "benchmark": "cvbench", "answer": "(C)", "type": "2D", "source": "COCO", "choices": ["1", "2"]},
            "line 3: the answer of a cvbench question is one of (a), (b), got '(C)'",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | dict, sentence: str):
    file = tmp_path / "run.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(ValueError) as error:
        read_records(file)
    assert str(error.value).startswith(f"{file}, {sentence}") and "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    file = tmp_path / "run.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match=rf"^{file}, line 2: 'utf-8' codec can't decode byte 0xff"):
        read_records(file)


def test_command_line(tmp_path: Path):
    write_records(tmp_path / "a.jsonl", [{**pope("yes", text), "id": text} for text in ("yes", "no")])
    write_records(tmp_path / "b.jsonl", [pope("yes", "Yes."), *hallusion(417, 53, 51)])
    (tmp_path / "empty.jsonl").touch()

    def run(*files: str) -> subprocess.CompletedProcess:
        command = [sys.executable, scorers.__file__, *(str(tmp_path / file) for file in files)]
        return subprocess.run(command, capture_output=True, text=True)

    lines = run("a.jsonl", "b.jsonl").stdout.splitlines()
    assert lines[0] == f"| pope | {tmp_path}/a.jsonl | {tmp_path}/b.jsonl | always yes | always no |"
    assert (
        "| questions | 2 | 1 | - | - |" in lines and "| accuracy_exact | 0.5000 | 0.0000 | 1.0000 | 0.0000 |" in lines
    )
    assert "| questions | 951 | - | - |" in lines and any(line.startswith("| fAcc | 15.32 |") for line in lines)
    failed = run("empty.jsonl")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert failed.stderr.startswith(f"error: There are no records in {tmp_path}/empty.jsonl")


def test_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    sizes = {key: value for key, value in TEXT.items() if key not in ("cross_attention_layers", "rope_parameters")}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    prompts, replies = [], []
    generate = LlamaForCausalLM.generate

    def spy(self, **inputs: Any) -> torch.Tensor:
        output = generate(self, **inputs)
        prompts.extend(tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True))
        # the longest prompt has no padding: all are padded on the left
        assert inputs["attention_mask"][:, -1].all() and inputs["attention_mask"].sum(1).max() == output.shape[1] - 8
        replies.append(["Yes.", "no"][len(replies) % 2])
        said = tokenizer(replies[-1], add_special_tokens=False, return_tensors="pt").input_ids
        return torch.cat([inputs["input_ids"], said.expand(len(output), -1)], dim=1)

    monkeypatch.setattr(LlamaForCausalLM, "generate", spy)
    rows = [cvbench("COCO", False, text) for text in ("two", "a pair " * 9, "  ", "one or two or three")]
    judge([*rows, pope("yes", "yes")], str(tmp_path), batch_size=2)
    assert [row["judged"] for row in rows] == [True, False, False, True] and len(replies) == 2
    assert all("Right answer: (B) 2" in prompt and "(A) 1" in prompt for prompt in prompts) and len(prompts) == 3
    assert judged_summary(rows) == {"2D (judged)": 0.5, "accuracy (judged)": 0.5}
    assert summarize(rows)["accuracy"] == 0 and judged_summary([pope("yes", "yes")]) == {}

    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="has no chat template: the judge must be an instruct model"):
        judge(rows, str(tmp_path / "base"))
    with pytest.raises(ValueError, match="nowhere/at-all cannot be loaded: .* `--judge` is an instruct model"):
        judge(rows, "nowhere/at-all")


def test_judge_prompt_tells_the_truth_in_words():
    columns = dict.fromkeys(records.COLUMNS["hallusionbench"], "1")
    assert "Right answer: no\n" in judge_prompt(record("hallusionbench", "0", "not visible", **columns))
    assert "Right answer: B\n" in judge_prompt(record("realworldqa", "B", "b"))


@pytest.mark.parametrize("answer", ["(B)", "(b)", " (B) "])
@pytest.mark.parametrize("benchmark", ["cvbench", "mmvp"])
def test_judge_prompt_names_the_right_option_as_it_lists_them(benchmark: str, answer: str):
    columns = {"type": "2D", "source": "COCO", "choices": ["Open", "Closed"], "index": 1}
    prompt = judge_prompt(record(benchmark, answer, "<think>Open?</think>It is closed.", **columns))
    assert "What?\n(A) Open\n(B) Closed\n\nRight answer: (B) Closed\n" in prompt
    assert "The pupil's answer: It is closed.\n" in prompt and "Open?" not in prompt


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Yes.", "yes"),
        ("no, it is not", "no"),
        ("N", "no"),
        ("Nothing", "no"),  # MME's rule: in the first four characters
        ("It is. Yes", None),
        ("", None),
    ],
)
def test_mmes_rule(said: str, expected: str | None):
    rows = [record("mme", answer, said, category="color", question_id="1") for answer in ("Yes", "No")]
    assert [row["correct"] for row in rows] == [expected == "yes", expected == "no"]
    assert summarize(rows)["unread"] == 2 * (expected is None)


def test_mmes_score():
    """
    Of a category the share of right answers and that of pictures with both right, in percent; the parts are sums.
    """
    said = {"existence": ("yes", "no", "yes", "yes"), "code_reasoning": ("no", "yes", "no", "yes")}
    rows = [
        record("mme", ("Yes", "No")[n % 2], text, category=category, question_id=f"{category}/{n // 2}")
        for category, texts in said.items()
        for n, text in enumerate(texts)
    ]
    metrics = summarize(rows)
    assert metrics == {"perception": 125, "existence": 125, "cognition": 0, "code_reasoning": 0, "unread": 0}
    assert floors(rows)["always yes"]["existence"] == 50


def test_mmvps_pairs():
    rows = [
        record("mmvp", f"({'ab'[n % 2]})", text, index=n + 1, choices=["Open", "Closed"])
        for n, text in enumerate(("A", "(b) Closed", "A.", "Open"))
    ]
    assert summarize(rows) == {"accuracy": 0.75, "pair_accuracy": 0.5, "unread": 0}
    assert numbered(rows).tolist() == [0, 0, 1, 1]


def test_naturalbenchs_groups():
    """Two questions about two pictures: right are yes, no, no, yes."""
    texts = ["Yes", "No", "no.", "Yes, it is, no doubt", "A", "B", "A", "A"]
    rows = [
        record("naturalbench", answer, text, index=n, question_type="yes_no" if n < 4 else "multiple_choice")
        for n, (answer, text) in enumerate(zip(["Yes", "No", "No", "Yes", "A", "B", "B", "A"], texts, strict=True))
    ]
    expected = {"accuracy": 7 / 8, "question_accuracy": 3 / 4, "image_accuracy": 3 / 4, "group_accuracy": 1 / 2}
    assert summarize(rows) == pytest.approx(expected | {"unread": 0})
    assert numbered(rows).tolist() == [0] * 4 + [1] * 4
    blind = {"accuracy": 1 / 2, "question_accuracy": 0, "image_accuracy": 0, "group_accuracy": 0}
    found = floors([*rows, *({**row, "index": 8, "id": str(n)} for n, row in enumerate(rows[:1]))])
    assert floors(rows) == {"always yes or A": blind, "always no or B": blind}
    assert [floor["accuracy"] for floor in found.values()] == [5 / 9, 4 / 9]


@pytest.mark.parametrize(
    ("benchmark", "columns"),
    [
        ("mme", ({"category": "count", "question_id": 1}, {"category": "color", "question_id": 1})),
        ("pope", ({"image_source": "COCO_1"}, {"image_source": "COCO_2"})),
        ("chair", ({"image_id": 1}, {"image_id": 2})),
        ("mmhal", ({"image_src": "1.jpg"}, {"image_src": "2.jpg"})),
        ("amber_discriminative", ({"picture": "1"}, {"picture": "2"})),
        ("cvbench", ({"image": "1.png"}, {"image": "2.png"})),
    ],
)
def test_questions_about_a_picture_belong_together(benchmark: str, columns: tuple[dict, dict]):
    """Also where a file of others names pictures by its benchmark's own columns."""
    rows = [{"benchmark": benchmark, "id": str(n), **columns[n // 2]} for n in range(4)]
    assert numbered(rows).tolist() == [0, 0, 1, 1]
    assert numbered([{"benchmark": benchmark, "id": row["id"]} for row in rows]).tolist() == [0, 1, 2, 3]


def test_mmes_scores_are_drawn_together():
    """
    Two questions of a picture are both drawn or none: the score of who is wrong about one picture of three is 0 to
    200.
    """
    rows = [
        record(
            "mme",
            ("Yes", "No")[n % 2],
            ("Yes", "No")[(n + (n < 2)) % 2],
            category="count",
            question_id=n // 2,
            id=str(n),
        )
        for n in range(6)
    ]
    score, low, high = resample(rows, measure_of(rows), 400)["count"]
    assert score == pytest.approx(2 * 100 * 2 / 3) and (low, high) == (0, 200)


def test_what_needs_no_eyes():
    """Always no has the published trap of HallusionBench: more right than models that look."""
    right = [record("pope", answer, answer, category="random") for answer in ("yes", "yes", "yes", "no")]
    found = floors(right)
    assert [found[name]["accuracy"] for name in ("always yes", "always no")] == [0.75, 0.25]
    columns = {"category": "VD", "subcategory": "map", "set_id": "0", "visual_input": "1"}
    rows = [
        record("hallusionbench", "01"[n == 0], "Yes", figure_id=str(n // 2), question_id=str(n % 2), **columns)
        for n in range(4)
    ]
    found = floors(rows)
    assert found["always no"] == {"aAcc": 75, "fAcc": 50, "qAcc": 50}
    assert found["always yes"] == {"aAcc": 25, "fAcc": 0, "qAcc": 0}
    of_scenes = [("two", "count"), ("two", "count"), ("one", "count"), ("left", "relation"), ("yes", "random")]
    found = floors([record("scenes", answer, "", kind=kind) for answer, kind in of_scenes])
    assert found["most frequent answer"]["count_accuracy"] == pytest.approx(2 / 3)
    assert found["most frequent answer"]["relation_accuracy"] == 1 and found["always no"]["accuracy"] == 0
    of_sides = [("left or right", "left"), ("left or right", "right"), ("above or below", "below")]
    rows = [record("scenes", side, "", kind="relation", question=f"Is it {sides}?") for sides, side in of_sides]
    assert floors(rows)["most frequent answer"]["relation_accuracy"] == pytest.approx(2 / 3)  # not 1 / 3
    assert floors([cvbench("COCO", True), cvbench("ADE20K", False)])["most frequent answer"]["accuracy"] == 1
    # of two options mostly A, of three C; the question that lists options has A, the others 3
    columns, choices = {"type": "2D", "source": "COCO"}, ["x", "y", "z"]
    asked = [("(A)", 2), ("(A)", 2), ("(a)", 2), ("(B)", 2), ("(C)", 3), ("(C)", 3), ("(B)", 3)]
    rows = [record("cvbench", answer, "", choices=choices[:number], **columns) for answer, number in asked]
    assert floors(rows)["most frequent answer"]["accuracy"] == pytest.approx(5 / 7)
    pairs = [record("mmvp", f"({'ab'[n % 2]})", "", index=n + 1, choices=["x", "y"]) for n in range(4)]
    assert floors(pairs)["most frequent answer"] == {"accuracy": 0.5, "pair_accuracy": 0}
    asked = [("Where?\nA. x\nB. y", answer) for answer in "AAB"] + [("How many?", answer) for answer in "3345"]
    rows = [record("realworldqa", answer, "", question=question) for question, answer in asked]
    assert floors(rows)["most frequent answer"]["accuracy"] == pytest.approx(4 / 7)
    assert floors([record("ocrbench", ["a"], "a", dataset="x", question_type="y")]) == {}
    assert (
        floors([record("realworldqa", answer, "") for answer in ("A", "A", "3")])["most frequent answer"]["accuracy"]
        == 2 / 3
    )


def test_repopes_labels_stand_beside_popes(tmp_path: Path):
    """A label that was wrong, and a question that is ambiguous, which is left out."""
    asked = [("1", "cup", "yes"), ("1", "dog", "no"), ("2", "cup", "yes"), ("2", "car", "no")]
    rows = [
        {
            **pope(answer, "Yes"),
            "id": str(n),
            "question": f"Is there a {thing} in the image?",
            "image_source": f"COCO_{image}",
        }
        for n, (image, thing, answer) in enumerate(asked)
    ]
    labels = [("1", "cup", "yes"), ("1", "dog", "yes"), ("2", "cup", "no")]
    lines = [
        {"question_id": n, "image": f"COCO_{image}.jpg", "text": f"Is there a {thing} in the image?", "label": label}
        for n, (image, thing, label) in enumerate(labels)
    ]
    (tmp_path / "coco_repope_random.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    found = relabel(rows, read_labels(tmp_path))
    assert [record["answer"] for record in found] == ["yes", "yes", "no"]
    assert summarize(rows)["accuracy"] == 0.5 and summarize(found)["accuracy"] == pytest.approx(2 / 3)
    write_records(tmp_path / "pope.jsonl", rows)
    command = [sys.executable, scorers.__file__, str(tmp_path / "pope.jsonl"), "--repope", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    assert "| pope, RePOPE's labels |" in printed and "| accuracy | 0.6667 | 0.6667 | 0.3333 |" in printed
    with pytest.raises(ValueError, match="which these records do not name"):
        relabel([pope("yes", "Yes")], {})
    with pytest.raises(ValueError, match="None of the questions has one of RePOPE's labels"):
        relabel(rows, {})
    with pytest.raises(ValueError, match="There are no coco_repope"):
        read_labels(tmp_path / "nowhere")
    (tmp_path / "coco_repope_popular.json").write_text('{"image": "a"}')
    with pytest.raises(ValueError, match="popular.json, line 1: this is no label of RePOPE's"):
        read_labels(tmp_path)
