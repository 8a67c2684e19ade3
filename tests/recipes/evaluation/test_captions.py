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
"""Which objects captions name, and what CHAIR and AMBER make of that."""

import numpy as np
import pytest

from recipes.evaluation.captions import coco_names, coco_objects, count_amber, count_coco, forms
from recipes.evaluation.comparison import bootstrap
from recipes.evaluation.metrics import floors, measure_of, summarize
from recipes.evaluation.records import mark


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A man and two women ride bikes.", ["person", "person", "bicycle"]),
        ("Children with knives, sandwiches and tomatoes; buses.", ["person", "knife", "sandwich", "bus"]),
        ("A dining table by the Table", ["dining table", "dining table"]),
        ("hot dogs, not dogs", ["hot dog", "dog"]),
        ("Stop, sign! Traffic lights and a light.", ["traffic light"]),  # no name goes over a comma
        ("A baby elephant, an adult bear and a baby", ["elephant", "bear", "person"]),
        ("a passenger jet, a passenger train and a passenger", ["airplane", "train", "person"]),
        ("home plate and a train track", []),
        ("The seat of the toilet; a toilet seat", ["toilet", "toilet"]),
        ("He is seated, skiing, and ties his bow tie.", ["tie", "tie"]),  # verbs name nothing, as far as one can see
        ("a teddy-bear, a half-eaten pizza", ["pizza"]),
        ("<think>A cat?</think> A **dog**", ["dog"]),
        ("a wine glass, wine glasses and glasses", ["wine glass", "wine glass"]),
        ("", []),
    ],
)
def test_objects_of_coco(text: str, named: list[str]):
    assert coco_objects(text) == named


def test_the_published_table():
    names, pairs, singular = coco_names()
    assert len(set(names.values())) == 80 and len(names) == 403
    assert names["settee"] == "couch" and names["lorry"] == "truck" and names["motor bike"] == "motorcycle"
    assert pairs["baby zebra"] == "zebra" and singular["geese"] == "goose" and singular["skis"] == "skis"


def test_plurals():
    assert [list(forms(word))[1:] for word in ("bench", "lady", "boy", "video", "ox", "glass")] == [
        ["benches"],
        ["ladies"],
        ["boys"],
        ["videos", "videoes"],
        ["oxen"],
        ["glasses"],
    ]


def record(benchmark: str, number: int, answer: str, prediction: str, **columns: object) -> dict:
    made = {"benchmark": benchmark, "id": str(number), "question": "?", "answer": answer, "prediction": prediction}
    made |= columns
    return made | {"correct": mark(made)}


def test_chair():
    texts = ("A man walks a dog and a cat.", "A man, a woman and a child eat pizza.", "Nothing is here.", "")
    rows = [record("chair", n, ("dog, person", "person, pizza", "cup", "")[n], text) for n, text in enumerate(texts)]
    assert [row["correct"] for row in rows] == [False, True, True, True]
    assert count_coco(texts[1], "person, pizza") == (4, 0, 2, 2, 9)
    assert count_coco("<think>a cat is here maybe</think> A dog.", "dog") == (1, 0, 1, 1, 2)  # words, too
    expected = {"chair_i": 1 / 7, "chair_s": 1 / 4, "recall": 4 / 5, "num_words": 20 / 4, "unread": 1}
    assert summarize(rows) == pytest.approx(expected)
    assert floors(rows) == {} and summarize(rows[2:])["chair_s"] == 0 and "chair_i" not in summarize(rows[2:])
    # as if the first picture were drawn twice and the second not at all
    drawn = measure_of(rows)(np.array([[2.0, 0.0, 1.0, 1.0]]))
    assert drawn["chair_i"] == 2 / 6 and drawn["chair_s"] == 2 / 4 and drawn["recall"] == 4 / 5
    better = [row | {"prediction": row["prediction"].replace(" and a cat", "")} for row in rows]
    better = [row | {"correct": mark(row)} for row in better]
    difference, low, high = bootstrap(rows, better, resamples=50)["chair_s"]
    assert difference == -1 / 4 and low < high == 0


RELATED = {"man": ["person", "boy"], "person": ["man", "people"], "dog": [], "TV": ["screen"], "can": [], "leave": []}


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        # the word of an object that comes before counts for that one: a person is the man
        ("A person.", {"mentions": 1, "false": 0, "found": 1}),
        ("The people and a boy, a screen.", {"mentions": 3, "false": 1, "found": 2, "imagined": 1}),
        ("Two TVs by dogs, which can be seen.", {"mentions": 2, "false": 2, "imagined": 1}),
        # names at the beginning of a sentence are none to it, and some plurals are other words to it
        ("People. Men and men leave leaves.", {"mentions": 1, "false": 1}),
        ("cans, a sign, signs", {"mentions": 3, "false": 1}),
    ],
)
def test_objects_of_amber(text: str, counts: dict[str, int]):
    related = RELATED | {"sign": []}
    found = count_amber(text, ["man", "person"], ["TV", "cup"], related, {"sign"})
    assert found == {"mentions": 0, "false": 0, "found": 0, "there": 2, "imagined": 0, "expected": 2} | counts


def test_amber_of_descriptions():
    columns = [(4, 1, 2, 3, 1, 2), (2, 0, 1, 5, 0, 2), (0, 0, 0, 2, 0, 1)]
    names = ("mentions", "false", "found", "there", "imagined", "expected")
    rows = [
        record("amber_generative", n, "man", "A man.", **dict(zip(names, values, strict=True)))
        for n, values in enumerate(columns)
    ]
    expected = {"chair": 1 / 6, "cover": 3 / 10, "hal": 1 / 3, "cog": 1 / 5, "unread": 0}
    assert summarize(rows) == pytest.approx(expected) and floors(rows) == {}


def test_amber_of_questions():
    """No is what AMBER counts: its precision is that of no, its recall that of what is not so."""
    asked = [
        ("hallucination", "no", "No, there is none."),
        ("hallucination", "no", "Yes"),
        ("attribute-state", "yes", "NO"),
        ("attribute-number", "no", "no. yes"),
        ("relation", "yes", "Perhaps."),
        ("relation", "yes", "Well, yes."),
    ]
    rows = [record("amber_discriminative", n, answer, text, type=kind) for n, (kind, answer, text) in enumerate(asked)]
    found = summarize(rows)
    expected = {"accuracy": 3 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "unread": 1}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    existence = {"accuracy": 1 / 2, "precision": 1, "recall": 1 / 2, "f1": 2 / 3}
    assert {name: found[f"existence_{name}"] for name in existence} == pytest.approx(existence)
    assert (found["relation_accuracy"], found["relation_f1"], found["attribute_recall"]) == (1 / 2, 0, 1)
    assert found["state_accuracy"] == 0 and found["number_f1"] == 1 and "action_f1" not in found
    blind = floors(rows)
    assert list(blind) == ["always yes", "always no"]
    assert blind["always no"]["f1"] == pytest.approx(2 / 3) and blind["always yes"]["accuracy"] == 0.5
