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
"""What the scenes' scores are made of: CHAIR, pairs, answers with shared pictures, and the summary of everything."""

import math

import pytest
from testing_utils import picture, tiny_model, tiny_processor, up_to_rounding

from recipes.answering.answers import answer
from recipes.evaluation.records import mark
from recipes.scenes import evaluation
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.edits import load_pairs, load_recolored
from recipes.scenes.evaluation import (
    answer_all,
    caption,
    count_mentions,
    evaluate_all,
    exchanged,
    judge,
    judge_pairs,
    language_modeling_loss,
    pair_record,
    score_chair,
    summarize,
    summarize_pairs,
    summarize_recolored,
)
from recipes.scenes.pictures import sample_scene
from recipes.scenes.questions import load_questions
from recipes.scenes.rows import load_scenes


NUM_IMAGES = 12
SETTINGS = {"split": "test", "num_images": NUM_IMAGES, "image_size": 96}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def result(model, processor):
    return evaluate_all(model, processor, **SETTINGS)


def test_chair_by_hand():
    captions = [
        "A kitchen with a cup and two cups.",  # nothing wrong, two mentions
        "A car, a hot dog and a car.",  # two wrong mentions of one class
        "A teddy bear.",  # the bear is none
        "",
    ]
    objects = [{"cup", "bowl"}, {"hot dog"}, {"bear"}, {"tv"}]
    counts = [count_mentions(*entry) for entry in zip(captions, objects, strict=True)]
    assert counts == [(2, 0, 1, 2, 8), (3, 2, 1, 1, 8), (1, 1, 0, 1, 3), (0, 0, 0, 1, 0)]
    assert score_chair(counts) == {
        "chair_i": 3 / 6,
        "chair_s": 2 / 4,
        "chair_recall": 2 / 5,
        "chair_num_words": (8 + 8 + 3 + 0) / 4,
    }
    nothing = score_chair([count_mentions("Nothing.", {"cup"})])
    assert nothing == {"chair_i": 0, "chair_s": 0, "chair_recall": 0, "chair_num_words": 1}
    assert set(score_chair([]).values()) == {0}


def pair_records(right: str) -> list[dict]:
    """Two scenes with two questions each, every one before and after its edit; 1 where the answer is right."""
    rows = [(s, q, f) for s in "01" for q in "12" for f in ("1", str(int(q) + 1))]
    return [
        {"set_id": s, "question_id": q, "figure_id": f, "correct": mark == "1"}
        for (s, q, f), mark in zip(rows, right, strict=True)
    ]


@pytest.mark.parametrize(
    ("right", "a", "f", "q"),
    [
        ("11111111", 1, 1, 1),
        ("00000000", 0, 0, 0),
        ("10101010", 1 / 2, 2 / 6, 0),  # right on both unedited pictures
        ("01010101", 1 / 2, 4 / 6, 0),
        ("11000110", 1 / 2, 2 / 6, 1 / 4),
    ],
)
def test_pair_metrics_by_hand(right: str, a: float, f: float, q: float):
    assert summarize_pairs(pair_records(right)) == {"pairs_aAcc": a, "pairs_fAcc": f, "pairs_qAcc": q}


def test_pairs_of_a_model_that_always_says_the_same():
    pairs = load_pairs("test", NUM_IMAGES, 48)
    for prediction in ("Yes.", "No.", "To the left.", "two"):
        records = [pair_record(pair, prediction) for pair in pairs]
        assert len({record["id"] for record in records}) == len(records)
        assert summarize_pairs(records)["pairs_qAcc"] == 0
        if prediction in ("Yes.", "No."):
            existence = [record["correct"] for record in records if record["kind"] == "pair_existence"]
            assert sum(existence) == len(existence) / 2


@pytest.mark.parametrize(
    ("answer", "before", "after", "same", "right"),
    [
        ("yes", "Yes, there is a cup.", "Yes, there is a cup. It is on the left.", 1, 1),
        ("yes", "Yes.", "No.", 0, 0),
        ("yes", "No.", "No, there is no cup.", 1, 0),
        ("two", "There are two cups.", "2", 1, 1),
        ("two", "three", "one", 0, 0),
        ("two", "one", "There is one.", 1, 0),
        ("left", "The cup is to the left of the car.", "left", 1, 1),
        ("left", "above", "below", 0, 0),
        ("left", "I see a cup.", "A cup.", 1, 0),  # no answer, both times
        ("left", "To the left.", "A cup.", 0, 0),
    ],
)
def test_recolored_metrics_by_hand(answer: str, before: str, after: str, same: int, right: int):
    records = [
        {
            "benchmark": "scenes",
            "answer": answer,
            "prediction": said,
            "correct": mark({"benchmark": "scenes", "answer": answer, "prediction": said}),
        }
        for said in (before, after)
    ]
    assert summarize_recolored(records) == {"recolored_consistency": same, "recolored_qAcc": right}
    others = summarize_recolored(records + [record | {"correct": True, "prediction": answer} for record in records])
    assert others == {"recolored_consistency": (same + 1) / 2, "recolored_qAcc": (right + 1) / 2}


def test_exchanged_pictures_are_other_pictures():
    images = [picture(seed=seed) for seed in (0, 0, 1, 0, 0, 2)]
    others = exchanged(images)
    assert all(a.tobytes() != b.tobytes() for a, b in zip(images, others, strict=True))
    assert others[2] is images[5]


@pytest.mark.parametrize("do_pad", [False, True])
def test_shared_pictures_give_the_answers_of_single_ones(model, do_pad: bool, monkeypatch: pytest.MonkeyPatch):
    processor = tiny_processor(do_pad=do_pad)
    questions = ["Is there a cup in the image?", "How many?", "Is there a table on the red cup in the image?"] * 4
    # 1, 2, 4 and 5 questions about a picture, not in order; picture 1 comes in several copies
    images = [picture(seed=seed) for seed in (1, 0, 2, 1, 3, 2, 1, 2, 1, 2, 1, 3)]
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)
    tower, ran = model.model.vision_tower, []
    hook = tower.register_forward_pre_hook(lambda module, args: ran.append(len(args[0])))
    shared = answer_all(model, processor, images, questions, max_new_tokens=6)
    hook.remove()
    assert sum(ran) == 4
    single = [answer(model, processor, [i], [q], 6)[0] for i, q in zip(images, questions, strict=True)]
    assert shared == single and len(set(shared)) > 3


def test_answers_without_a_picture(model, processor):
    questions = ["Is there a cup in the image?", "How many?"]
    blind = answer_all(model, processor, [None, None], questions, max_new_tokens=6)
    for question, text in zip(questions, blind, strict=True):
        chat = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert "pixel_values" not in inputs
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert text == processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    mixed = answer_all(model, processor, [picture(), None], [questions[0]] * 2, max_new_tokens=6)
    assert mixed[1] == blind[0] != mixed[0]


def test_loss_is_the_mean_over_answer_tokens(model, processor):
    rows = list(load_scenes("test", "instruction", 3, 96, streaming=True))
    single = [language_modeling_loss(model, processor, [row]) for row in rows]
    together = language_modeling_loss(model, processor, rows)
    assert together == up_to_rounding(language_modeling_loss(model, processor, rows, batch_size=2))
    assert min(single) < together < max(single)
    assert abs(together - math.log(320)) < 3  # of a random model


def test_all_metrics_are_there(result):
    metrics, _, by_picture = result
    chair = {"chair_i", "chair_s", "chair_recall", "chair_num_words"}
    pope = {f"pope_{kind}_{score}" for kind in POPE_KINDS for score in ("accuracy", "f1")}
    pope |= {"pope_accuracy", "pope_f1", "pope_yes_ratio", "pope_accuracy_blind", "pope_accuracy_swapped"}
    looks = {"in_mask_mass", "uniform_mass", "pointing_accuracy", "question_in_mask_mass", "question_uniform_mass"}
    pairs = {"pairs_aAcc", "pairs_fAcc", "pairs_qAcc", "recolored_consistency", "recolored_qAcc"}
    assert metrics.keys() == chair | pope | looks | pairs | {"count_accuracy", "relation_accuracy", "lm_loss"}
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in metrics.values())
    assert metrics["pope_accuracy_blind"] == 0.5
    # the ratio of the sums over scenes is the metric
    assert by_picture.keys() == {
        "pope_accuracy",
        "count_accuracy",
        "relation_accuracy",
        "pairs_qAcc",
        "chair_i",
        "chair_recall",
    }
    for name, counts in by_picture.items():
        share, of = (sum(column) for column in zip(*counts, strict=True))
        assert len(counts) == NUM_IMAGES and metrics[name] == pytest.approx(share / max(of, 1))


def test_sink_tells_what_is_absent(processor):
    """By hand, from the maps of a model whose keys know nothing."""
    model = tiny_model(text_config={"attention_sink": True})
    questions = load_questions("test", NUM_IMAGES, 96)
    judged = judge(model, processor, questions)
    metrics = summarize(judged)
    scores = {}
    for question, j in zip(questions, judged, strict=True):
        assert j.sink.shape == j.attention.shape[:2] and (j.attention.sum(-1) + j.sink).sub(1).abs().max() < 1e-5
        if question["answer"] in ("yes", "no"):
            scores.setdefault(question["answer"], []).append(j.sink[1].mean().item())
    yes, no = scores["yes"], scores["no"]
    assert metrics["sink_mass"] == pytest.approx(sum(yes) / len(yes))
    assert metrics["absent_sink_mass"] == pytest.approx(sum(no) / len(no))
    above = sum(n > y for n in no for y in yes) + sum(n == y for n in no for y in yes) / 2
    assert metrics["absence_auc"] == pytest.approx(above / len(yes) / len(no))
    right = sum(n > 0.5 for n in no) + sum(y <= 0.5 for y in yes)
    assert metrics["absence_accuracy"] == pytest.approx(right / len(yes + no))


def test_metrics_are_those_of_the_plain_way(result, model, processor):
    metrics, records, _ = result
    questions = load_questions("test", NUM_IMAGES, 96)
    judged = judge(model, processor, questions)
    assert [record["prediction"] for record in records[: len(questions)]] == [j.prediction for j in judged]
    assert {name: metrics[name] for name in summarize(judged)} == pytest.approx(summarize(judged))
    pairs = judge_pairs(model, processor, load_pairs("test", NUM_IMAGES, 96))
    assert records[len(questions) :][: len(pairs)] == pairs
    recolored = judge_pairs(model, processor, load_recolored("test", NUM_IMAGES, 96))
    found = records[len(questions) + len(pairs) :]
    assert [record["prediction"] for record in found] == [record["prediction"] for record in recolored]
    assert {name: metrics[name] for name in summarize_recolored(found)} == summarize_recolored(recolored)
    scenes = [sample_scene("test", index, image_size=96) for index in range(NUM_IMAGES)]
    captions = caption(model, processor, [scene.image for scene in scenes])
    chair = score_chair(
        [count_mentions(text, {t.name for t in s.objects}) for text, s in zip(captions, scenes, strict=True)]
    )
    assert metrics["chair_num_words"] == chair["chair_num_words"]


@pytest.mark.parametrize("split", ["test", "transfer"])
def test_records_of_a_model_that_knows_everything(split: str, model, processor, monkeypatch: pytest.MonkeyPatch):
    settings = SETTINGS | {"split": split}
    rows = [row for load in (load_questions, load_pairs, load_recolored) for row in load(**settings)]
    truth = {(row["image"].tobytes(), row["question"]): row["answer"].capitalize() for row in rows}
    scenes = [sample_scene(split, index, image_size=96) for index in range(NUM_IMAGES)]
    for scene in scenes:
        listed = " and ".join(thing.name for thing in scene.objects[:-1])
        truth[scene.image.tobytes(), "Describe the image."] = f"A {listed} and a spaceship."

    def know(model, processor, images, questions, max_new_tokens=24):
        keys = [(image and image.tobytes(), question) for image, question in zip(images, questions, strict=True)]
        return [truth.get(key, "Yes") for key in keys]

    monkeypatch.setattr(evaluation, "answer_all", know)
    metrics, records, by_picture = evaluate_all(model, processor, **settings)
    assert all(n == of for name in ("pope_accuracy", "pairs_qAcc") for n, of in by_picture[name])
    assert len({record["id"] for record in records}) == len(records) == len(rows)
    for name in ("pope_accuracy", "pope_f1", "count_accuracy", "relation_accuracy"):
        assert metrics[name] == 1
    assert metrics["pope_yes_ratio"] == 0.5 == metrics["pope_accuracy_blind"]
    assert metrics["pope_accuracy_swapped"] < 0.8
    assert metrics["pairs_aAcc"] == metrics["pairs_fAcc"] == metrics["pairs_qAcc"] == 1
    assert metrics["recolored_consistency"] == metrics["recolored_qAcc"] == 1
    assert metrics["chair_i"] == metrics["chair_s"] == 0 and 0.5 < metrics["chair_recall"] < 1
    for row, record in zip(rows, records, strict=True):
        assert (
            record["benchmark"] == "scenes"
            and record["correct"]
            and record["prediction"] == row["answer"].capitalize()
        )
        assert all(record[name] == row[name] for name in ("question", "answer", "object", "context"))
        assert record["kind"].removeprefix("pair_").removeprefix("recolored_") == row["kind"]


def test_records_are_consistent_with_the_metrics(result):
    metrics, records, _ = result
    for name, kinds in (("pope", POPE_KINDS), ("count", ("count",)), ("relation", ("relation",))):
        marks = [record["correct"] for record in records if record["kind"] in kinds]
        assert metrics[f"{name}_accuracy"] == pytest.approx(sum(marks) / len(marks))
    pairs = [record for record in records if record["kind"].startswith("pair_")]
    assert {name: metrics[name] for name in ("pairs_aAcc", "pairs_fAcc", "pairs_qAcc")} == summarize_pairs(pairs)
    for record in records:
        assert record["correct"] == mark(record)
