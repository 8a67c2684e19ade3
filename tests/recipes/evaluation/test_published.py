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
"""Benchmarks as their authors publish them: what is missing is named, and a judge's ratings are read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from testing_utils import picture

from recipes import scorers
from recipes.evaluation.judge import judge_prompt, verdict
from recipes.evaluation.metrics import summarize
from recipes.evaluation.published import rate, rating_in, read_rows, responses
from recipes.evaluation.records import mark, read_records, write_records


def rows() -> list[dict]:
    made = []
    for n, kind in enumerate(("attribute", "counting", "attribute", "counting")):
        row = {"benchmark": "mmhal", "id": str(n), "question": "What is it?", "answer": "A vase."}
        row |= {"prediction": "A vase.", "question_type": kind, "question_topic": "indoor"}
        row |= {"image_src": f"https://example.com/{n}.jpg", "image_content": "Vase, Table"}
        made.append(row | {"correct": mark(row)})
    return made


def reviews(*texts: str) -> list[dict]:
    return [{"choices": [{"message": {"content": text}}]} for text in texts]


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("It is so.\nRating: 5, very informative, no hallucination", 5),
        ("RATING: 0", 0),
        ("Rating: 2 ... no, rating: 4", 0),
        ("Rating: 4. Again: rating: 4", 4),
        ("Rating:3", 0),
        ("", 0),
    ],
)
def test_the_rating_in_a_review(text: str, rating: int):
    assert rating_in(text) == rating


def test_ratings_of_a_judges_file(tmp_path: Path):
    (tmp_path / "ratings.json").write_text(
        json.dumps(reviews("Rating: 6", "Rating: 3", "Rating: 2", "I cannot rate it."))
    )
    write_records(tmp_path / "mmhal.jsonl", rows())
    assert summarize(rows()) == {"unrated": 4, "unread": 0}
    command = [sys.executable, scorers.__file__, str(tmp_path / "mmhal.jsonl"), "--ratings"]
    run = subprocess.run([*command, str(tmp_path / "ratings.json")], capture_output=True, text=True)
    assert "| hallucination_rate | 0.5000 |" in run.stdout, run.stderr
    rated = read_records(tmp_path / "mmhal.jsonl")
    assert [(row["rating"], row["correct"]) for row in rated] == [(6, True), (3, True), (2, False), (0, False)]
    expected = {"score": 11 / 4, "hallucination_rate": 0.5, "score, attribute": 4.0, "score, counting": 1.5}
    assert summarize(rated) == pytest.approx(expected | {"unrated": 0, "unread": 0})
    # of the rated ones, where some are not
    some = [{key: value for key, value in row.items() if key != "rating" or n} for n, row in enumerate(rated)]
    expected = {"score": 5 / 3, "hallucination_rate": 2 / 3, "score, attribute": 2.0, "score, counting": 1.5}
    assert summarize(some) == pytest.approx(expected | {"unrated": 1, "unread": 0})
    (tmp_path / "ratings.json").write_text(json.dumps(reviews("Rating: 6")))
    run = subprocess.run([*command, str(tmp_path / "ratings.json")], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.endswith("ratings.json has 1 ratings, but there are 4 answers.\n")
    (tmp_path / "ratings.json").write_text(json.dumps([{}] * 4))
    with pytest.raises(ValueError, match="ratings.json: entry 0 is no answer of a judge"):
        rate(rows(), tmp_path / "ratings.json")
    write_records(tmp_path / "bad.jsonl", [rows()[0] | {"rating": 7}])
    with pytest.raises(ValueError, match="`rating` must be a rating from 0 to 6, got '7'"):
        read_records(tmp_path / "bad.jsonl")


def test_a_local_judge_rates():
    prompt = judge_prompt(rows()[0])
    assert "The picture holds: Vase, Table\n" in prompt and "Right answer: A vase.\n" in prompt
    assert "The answer to rate: A vase.\n" in judge_prompt(rows()[0] | {"prediction": "<think>A cup?</think> A vase."})
    replies = {
        "5": 5,
        "6.": 6,
        "Rating: 6.": 6,
        "**Rating:** 5": 5,
        "<think>\n1</think>0": 0,
        "Rating: 4, so rating: 4": 4,
    }
    assert [verdict(rows()[0], reply) for reply in replies] == [{"rating": rating} for rating in replies.values()]
    for unread in (
        "seven",
        "10",
        "On a scale of 0 to 6: 5",
        "4.5",
        "Rating: 4.5",
        "Rating: 2, no, rating: 4",
        "-1",
        "",
    ):
        assert verdict(rows()[0], unread) == {}
    assert verdict({"benchmark": "cvbench"}, "Yes.") == {"judged": True}


def test_answers_for_ambers_script():
    made = [{"benchmark": "amber_discriminative", "number": 1005 + n} for n in range(3)]
    texts = ("No, there is none.", "yes", "Perhaps")
    answers = responses([row | {"prediction": text} for row, text in zip(made, texts, strict=True)])
    assert [answer["response"] for answer in answers] == ["No", "Yes", "Perhaps"] and answers[2]["id"] == 1007
    assert responses([{"benchmark": "chair"}]) is None


def test_what_is_missing_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="mmhal needs `--data`, the folder that holds mmhal/."):
        read_rows("mmhal", None)
    with pytest.raises(ValueError, match="There is no .*amber/annotations.json, which the benchmark needs"):
        read_rows("amber_generative", tmp_path)
    file = tmp_path / "mmhal/response_template.json"
    (tmp_path / "mmhal/images").mkdir(parents=True)
    file.write_text("[")
    with pytest.raises(ValueError, match="response_template.json is no JSON"):
        read_rows("mmhal", tmp_path)
    entry = dict.fromkeys(("question_type", "question_topic", "question", "gt_answer"), "x")
    file.write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="are not as mmhal's authors publish them .*image_src"):
        read_rows("mmhal", tmp_path)
    file.write_text(json.dumps([entry | {"image_src": "https://example.com/a/1.jpg", "image_content": ["Cup"]}]))
    with pytest.raises(ValueError, match="1 of the 1 pictures of mmhal are missing, for example .*images/1.jpg"):
        read_rows("mmhal", tmp_path)
    picture(seed=0).save(tmp_path / "mmhal/images/1.jpg")
    assert read_rows("mmhal", tmp_path)[0]["image_content"] == "Cup"
