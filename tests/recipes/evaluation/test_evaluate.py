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
The paper's benchmarks through lmms-eval's own task code, on local files with the columns of the real ones and a tiny
checkpoint: what is asked, what is saved, and that its numbers and ours are about the same rows.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from testing_utils import EOT, VOCAB_SIZE, picture, tiny_model, tiny_processor

from recipes import evaluate
from recipes.evaluation import report
from recipes.evaluation.benchmarks import BENCHMARKS, KEPT, PAPERS
from recipes.evaluation.benchmarks import evaluate as run_benchmarks
from recipes.evaluation.journal import Journal
from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import mark, read_records, write_records
from recipes.evaluation.results import PICTURES
from recipes.inside.vlm import load_vlm
from recipes.scenes import classes, questions


pytest.importorskip("lmms_eval", reason="needs lmms-eval: `make test-eval`")

import requests  # noqa: E402

from recipes.evaluation.lmms_eval_model import ImageTextToTextModel  # noqa: E402


LETTERS = "Please answer directly with only the letter of the correct option and nothing else."
ROOT = Path(__file__).parents[3]


def hallusionbench():
    for figure, (visual_input, answer) in enumerate((("1", "1"), ("2", "0"))):
        for question in ("Is the left circle larger?", "Are both circles black?"):
            yield {
                "category": "VD",
                "subcategory": "illusion",
                "visual_input": visual_input,
                "set_id": "0",
                "figure_id": str(figure),
                "sample_note": "circle",
                "question_id": str(len(question)),
                "question": question,
                "gt_answer_details": "The left circle is.",
                "gt_answer": answer,
                "filename": f"./{figure}.png",
                "image": picture(seed=figure),
            }


def pope():
    for n, category in enumerate(("random", "popular", "adversarial") * 2):
        yield {
            "id": str(n),
            "question_id": str(n % 3),
            "question": f"Is there a {('cup', 'bowl', 'fork', 'dog', 'cat', 'cow')[n]} in the image?",
            "answer": "yes" if n < 3 else "no",
            "image_source": f"COCO_val2014_{n // 3}",
            "image": picture(seed=n // 3),
            "category": category,
        }


def ocrbench():
    kinds = ("Scene Text-centric VQA", "Key Information Extraction", "Handwritten Mathematical Expression Recognition")
    sets = ("TextVQA", "FUNSD", "HME100k")
    for n, (dataset, kind) in enumerate(zip(sets, kinds, strict=True)):
        yield {
            "dataset": dataset,
            "question": f"What is written on the {kind[:5]}?",
            "question_type": kind,
            "answer": ["Exit", "Way out"] if n == 0 else ["x ^ { 2 }"],
            "image": picture(seed=n),
        }


def cvbench(kind):
    places = {"2D": (("ADE20K", "kitchen", "(A)"), ("COCO", "field", "(B)")), "3D": (("Omni3D", "road", "(B)"),) * 2}
    for n, (source, place, answer) in enumerate(places[kind]):
        question = f"Which is closer in the {place}?"
        yield {
            "idx": n,
            "type": kind,
            "task": "Relation" if kind == "2D" else "Depth",
            "image": picture(seed=10 * len(place) + n),
            "question": question,
            "choices": ["the car", "the tree"],
            "answer": answer,
            "prompt": f"{question} Select from the following choices.\n(A) the car\n(B) the tree",
            "filename": f"img/{kind}/{n}.png",
            "source": source,
        }


def realworldqa():
    for n, (question, answer) in enumerate(
        (
            (f"Which way?\n\nA. Left\nB. Right\n{LETTERS}", "B"),
            ("How many cars are there? Please answer directly with a single word or number.", "2"),
        )
    ):
        yield {"image": picture(seed=n), "image_path": f"{n}.webp", "question": question, "answer": answer}


def mme():
    for n, category in enumerate(("existence", "existence", "color", "color", "code_reasoning", "code_reasoning")):
        yield {
            "question_id": f"{category}/{n // 2}.png",
            "image": picture(seed=n // 2),
            "question": f"Is the {category} right {n % 2}? Please answer yes or no.",
            "answer": ("Yes", "No")[n % 2],
            "category": category,
        }


def mmvp():
    for n in range(4):
        yield {
            "Index": n + 1,
            "Question": f"Are the wings open or closed, {n // 2}?",
            "Options": "(a) Open (b) Closed",
            "Correct Answer": ("(a)", "(b)")[n % 2],
            "image": picture(seed=20 + n),
        }


def naturalbench():
    for n in range(8):
        kind = ("yes_no", "multiple_choice")[n // 4]
        options = " Option: A: left; B: right;" * (n // 4)
        yield {
            "Index": str(n),
            "Image": picture(seed=30 + 2 * (n // 4) + n % 2),
            "Question": f"Which is natural, {n // 2}?{options}",
            "Question_Type": kind,
        }


def coco_cap_chair():
    for n, objects in enumerate((["person", "dining table", "pizza"], ["dog"])):
        yield {"question_id": str(n), "gt_object": objects, "image": picture(seed=40 + n)}


ROWS = {
    "hallusion_bench_image": list(hallusionbench()),
    "pope": list(pope()),
    "ocrbench": list(ocrbench()),
    "cv_bench_2d": list(cvbench("2D")),
    "cv_bench_3d": list(cvbench("3D")),
    "realworldqa": list(realworldqa()),
    "mme": list(mme()),
    "mmvp": list(mmvp()),
    "naturalbench": list(naturalbench()),
    "coco_cap_chair": list(coco_cap_chair()),
}


def data_set(rows):
    kinds = {
        "image": Image(),
        "Image": Image(),
        "Index": Value("int64" if isinstance(rows[0].get("Index"), int) else "string"),
        "answer": List(Value("string")),
        "choices": List(Value("string")),
        "gt_object": List(Value("string")),
        "idx": Value("int32"),
    }
    features = {name: kinds.get(name, Value("string")) for name in rows[0]}
    if isinstance(rows[0].get("answer"), str):
        features["answer"] = Value("string")
    return Dataset.from_list(rows, features=Features(features))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = tiny_model()
    # Half of the words end an answer, so that none goes on for the thousand words that CV-Bench allows.
    model.generation_config.eos_token_id = [EOT, *range(VOCAB_SIZE // 2, VOCAB_SIZE)]
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for task, rows in ROWS.items():
        data_set(rows).to_parquet(folder / f"{task}.parquet")
    return folder


@pytest.fixture
def run(checkpoint, data, tmp_path):
    """Runs benchmarks as the command line would."""

    def run(*benchmarks, pictures=("real",), **options):
        defaults = {
            "limit": None,
            "data": data,
            "dtype": "auto",
            "device": None,
            "batch_size": 3,
            "save_pictures": False,
            "split": "test",
            "repope": None,
        }
        names = {"model": checkpoint, "out": tmp_path / "out", "benchmarks": benchmarks, "pictures": pictures}
        return run_benchmarks(argparse.Namespace(**defaults | names | options), load_vlm)

    return run


@pytest.fixture
def say(monkeypatch):
    """Puts answers into the model's mouth: that of the question which the chat holds."""

    def say(answers):
        def answer(self, chats, gen_kwargs):
            texts = [chat[0]["content"][-1]["text"] for chat in chats]
            return [next(answer for question, answer in answers.items() if question in text) for text in texts]

        monkeypatch.setattr(ImageTextToTextModel, "answer", answer)

    return say


def test_the_papers_benchmarks_with_without_and_with_another_picture(run, tmp_path, monkeypatch):
    posted = []
    monkeypatch.setattr(requests, "post", lambda *args, **kwargs: posted.append(args))
    results = run(*PAPERS, pictures=list(PICTURES), save_pictures=True)
    assert not posted  # HallusionBench's judge is not asked
    assert {name: runs["real"]["questions"] for name, runs in results.items()} == {
        "hallusionbench": 4,
        "ocrbench": 3,
        "cvbench": 4,
        "realworldqa": 2,
        "pope": 6,
    }
    out = tmp_path / "out"
    for name, runs in results.items():
        predictions, shown = {}, {}
        for kind, entry in runs.items():
            records = read_records(out / f"{name}-{kind}.jsonl")
            assert entry["metrics"] == summarize(records)
            assert all(record["correct"] == mark(record) for record in records)
            shown[kind] = [record.get("image") for record in records]
            assert all(image is None if kind == "none" else (out / image).exists() for image in shown[kind])
            predictions[kind] = [record["prediction"] for record in records]
        assert predictions["real"] != predictions["none"], name
        assert predictions["real"] != predictions["swapped"], name
        assert not any(map(str.__eq__, shown["real"], shown["swapped"])), name
    assert json.loads((out / "results.json").read_text()) == results
    record = read_records(out / "cvbench-real.jsonl")[2]
    assert {name: record[name] for name in record if name not in ("prediction", "correct", *KEPT)} == {
        "benchmark": "cvbench",
        "id": "cv_bench_3d-0",
        "question": "Which is closer in the road?",
        "answer": "(B)",
        "type": "3D",
        "task": "Depth",
        "source": "Omni3D",
        "choices": ["the car", "the tree"],
    }
    assert f"pictures/{record['picture']}.jpg" == record["image"]
    assert record["phrase"] == "closer" and sum(map(sum, record["map"])) == pytest.approx(1, abs=1e-3)
    report.save_page(out / "page.html", "tiny", results)
    page = (out / "page.html").read_text()
    assert page.count("<h2") == 5 and page.count("<table>") == 5 and "where &#39;" in page
    assert all(runs["real"]["metrics"].keys() >= set(BENCHMARKS[name].headlines) for name, runs in results.items())
    assert all(runs["real"]["tasks"] == {} for runs in results.values())  # of local copies nothing is known
    assert not (out / "answers").exists()
    asked = ("hallusion_bench_image", "pope", "ocrbench", "cv_bench_2d", "cv_bench_3d", "realworldqa")
    different = {row["image"].tobytes() for task in asked for row in ROWS[task]}
    assert len(list((out / "pictures").iterdir())) == len(different)


def test_records_say_what_looks_at_nothing(run, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "sink")
    tiny_model(text_config={"attention_sink": True, "guidance_heads": [1]}).save_pretrained(tmp_path / "sink")
    results = run("pope", "realworldqa", model=str(tmp_path / "sink"), pictures=["real", "none"])
    records = read_records(tmp_path / "out/pope-real.jsonl")
    shares = [record["on_nothing"] for record in records]
    assert len(set(shares)) == 6 and 0 < min(shares) and max(shares) < 1
    won = [absent > there for absent in shares[3:] for there in shares[:3]]
    assert results["pope"]["real"]["metrics"]["absence_auc"] == pytest.approx(sum(won) / 9)
    assert "absence_auc" not in results["pope"]["none"]["metrics"]
    assert not any("on_nothing" in record for record in read_records(tmp_path / "out/realworldqa-real.jsonl"))
    assert "| absence_auc |" in report.report("sink", results)


def test_lmms_evals_rules_and_ours(run, say):
    say(
        {
            "cup": "yes",
            "bowl": "Yes, there is a bowl.",
            "fork": "No.",
            "dog": " no\n",
            "cat": "No, there is no cat.",
            "cow": "Yes",
            "Scene": "The sign says: WAY OUT",
            "Key I": "exit",
            "Handw": "x^{2}",
            "kitchen": "A",
            "field": "The answer is (B).",
            "road": "(A) the car",
            "Which way?": "B. Right",
            "How many cars": "2.",
            "left circle": "Yes.",
            "both circles": "They are not black. No.",
        }
    )
    results = {name: runs["real"] for name, runs in run(*PAPERS).items()}
    ours = {name: entry["metrics"] for name, entry in results.items()}
    theirs = {task: metrics for entry in results.values() for task, metrics in entry["lmms_eval"].items()}

    assert theirs["pope"]["pope_accuracy"] == ours["pope"]["accuracy_exact"] == 2 / 6
    assert ours["pope"]["accuracy"] == 4 / 6
    assert ours["pope"]["yes_ratio"] == 3 / 6
    assert theirs["ocrbench"]["ocrbench_accuracy"] * 1000 == ours["ocrbench"]["total"] == 2
    assert (ours["ocrbench"]["Scene Text-centric VQA"], ours["ocrbench"]["Key Information Extraction"]) == (1, 0)
    assert (ours["cvbench"]["2D"], ours["cvbench"]["3D"]) == (1.0, 0.0)
    assert (theirs["cv_bench_2d"]["cv_bench_acc"], theirs["cv_bench_3d"]["cv_bench_acc"]) == (0.5, 0.0)
    assert theirs["realworldqa"]["exact_match"] == ours["realworldqa"]["accuracy"] == 1.0
    assert ours["hallusionbench"] == {"aAcc": 50.0, "fAcc": 0.0, "qAcc": 0.0, "unread": 0}
    assert not theirs["hallusion_bench_image"].keys() & {"aAcc", "fAcc", "qAcc"}

    table = report.report("ours", {name: {"real": entry} for name, entry in results.items()})
    assert "| AGE-VLM (paper) | 43.85 | 15.32 | 11.21 | - | - | - | - | - | 87.34 |" in table
    assert "| ours | 50.00 | 0.00 | 0.00 | 1 | 0 | 1.00 | 0.00 | 1.00 | 66.67 |" in table
    assert "| 2D | 1.0000 | 1.0000 to 1.0000 | - | - | - | - | 0.5000 | 0.5000 |" in table
    assert "| aAcc | 50.00 | 50.00 to 50.00 | - | - | - | - | 50.00 | 50.00 | judge |" in table
    assert "| always no | 50.00 | 50.00 | 0.00 | - | - | - | - | - | 50.00 |" in table


def test_benchmarks_of_pairs(run, say, tmp_path):
    say(
        {
            "existence right": "Yes",
            "color right 0": "yes",
            "color right 1": "No.",
            "code_reasoning": "maybe",
            "closed, 0": "A",
            "closed, 1": "(b) Closed",
            "natural, 0": "Yes.",
            "natural, 1": "no",
            "natural, 2": "A",
            "natural, 3": "right",
        }
    )
    results = {name: runs["real"] for name, runs in run("mme", "mmvp", "naturalbench").items()}
    ours = {name: entry["metrics"] for name, entry in results.items()}
    assert ours["mme"] == {
        "perception": 250,
        "existence": 50,
        "color": 200,
        "cognition": 0,
        "code_reasoning": 0,
        "unread": 2,
    }
    theirs = {task: metrics for entry in results.values() for task, metrics in entry["lmms_eval"].items()}
    assert (theirs["mme"]["mme_perception_score"], theirs["mme"]["mme_cognition_score"]) == (250, 0)
    assert ours["mmvp"] == {"accuracy": 0.5, "pair_accuracy": 0, "unread": 0}
    assert all(ours[name].keys() >= set(BENCHMARKS[name].headlines) for name in ours)
    assert theirs["mmvp"]["mmvp_accuracy"] == 0.5 and theirs["mmvp"]["mmvp_pair_accuracy"] == 0
    # Yes, yes; no, no; A, A; none, none: of yes, no; no, yes; A, B; B, A.
    expected = {"accuracy": 3 / 8, "question_accuracy": 0, "image_accuracy": 1 / 4, "group_accuracy": 0, "unread": 2}
    assert ours["naturalbench"] == pytest.approx(expected)
    few = run("mme", "mmvp", "naturalbench", limit=3, out=tmp_path / "few")
    assert [runs["real"]["questions"] for runs in few.values()] == [2, 2, 4]


def test_objects_that_captions_name(run, monkeypatch, tmp_path):
    captions = ["Two women eat pizzas at a dining table; a cat sleeps.", "Dogs."]
    monkeypatch.setattr(ImageTextToTextModel, "answer", lambda self, chats, gen_kwargs: captions[: len(chats)])
    entry = run("chair")["chair"]["real"]
    assert entry["metrics"] == pytest.approx(
        {"chair_i": 1 / 5, "chair_s": 1 / 2, "recall": 1.0, "num_words": 6.0, "unread": 0}
    )
    assert entry["floors"] == {}
    first, second = read_records(tmp_path / "out/chair-real.jsonl")
    assert first["question"] == "Please describe this image in detail."
    assert (first["answer"], first["image_id"], first["correct"]) == ("dining table, person, pizza", "0", False)
    assert second["correct"] and first["picture"] != second["picture"]


@pytest.fixture
def published(tmp_path):
    """AMBER and MMHal-Bench as their authors publish them."""
    amber, mmhal = tmp_path / "published/amber", tmp_path / "published/mmhal"
    pictures = (*(amber / f"image/AMBER_{n}.jpg" for n in (1, 2)), *(mmhal / f"images/{n}_o.jpg" for n in range(2)))
    for n, file in enumerate(pictures):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(seed=50 + n).save(file)
    queries = {"generative": ["Describe this image."] * 2, "discriminative": ["Is the sky sunny?", "Is there a dog?"]}
    (amber / "query").mkdir()
    for start, (part, texts) in zip((1, 3), queries.items(), strict=True):
        entries = [{"id": start + n, "image": f"AMBER_{n + 1}.jpg", "query": text} for n, text in enumerate(texts)]
        (amber / f"query/query_{part}.json").write_text(json.dumps(entries))
    annotations = [
        {"id": 1, "type": "generative", "truth": ["man", "person", "sky"], "hallu": ["dog", "car"]},
        {"id": 2, "type": "generative", "truth": ["table"], "hallu": ["cup"]},
        {"id": 3, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 4, "type": "discriminative-hallucination", "truth": "no"},
    ]
    (amber / "annotations.json").write_text(json.dumps(annotations))
    related = {
        "man": ["person", "boy"],
        "person": ["man"],
        "sky": [],
        "dog": [],
        "car": ["tire"],
        "cup": [],
        "table": [],
    }
    (amber / "relation.json").write_text(json.dumps(related))
    (amber / "safe_words.txt").write_text("light\nsign")
    entries = [
        {
            "question_type": kind,
            "question_topic": "outdoor",
            "image_id": str(n),
            "image_src": f"https://example.com/1/{n}_o.jpg",
            "image_content": ["Vase", "Table"],
            "question": f"What is {kind}?",
            "gt_answer": "The vase.",
            "model_answer": "",
        }
        for n, kind in enumerate(("attribute", "counting"))
    ]
    (mmhal / "response_template.json").write_text(json.dumps(entries))
    return tmp_path / "published"


def test_amber(run, say, published, tmp_path):
    say({"Describe": "A person and dogs by a car, with tires.", "sunny": "Yes, it is.", "a dog": "yes"})
    results = {
        name: runs["real"] for name, runs in run("amber_generative", "amber_discriminative", data=published).items()
    }
    # Mentions: person (a word for the man), dog, car, tire; of the second picture all are false, and none imagined.
    metrics = {"chair": 7 / 8, "cover": 1 / 4, "hal": 1.0, "cog": 2 / 3, "unread": 0}
    assert results["amber_generative"]["metrics"] == pytest.approx(metrics)
    wrong = {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0}
    found = results["amber_discriminative"]["metrics"]
    assert {name: found[name] for name in wrong} == wrong
    assert (found["existence_accuracy"], found["state_accuracy"], found["attribute_accuracy"]) == (0, 1, 1)
    assert not any(name.startswith(("relation_", "number_", "action_")) for name in found)
    floor = results["amber_discriminative"]["floors"]["always no"]
    assert (floor["accuracy"], floor["precision"], floor["recall"]) == (0.5, 0.5, 1)
    out = tmp_path / "out"
    assert json.loads((out / "amber_discriminative-real.responses.json").read_text()) == [
        {"id": 3, "response": "Yes"},
        {"id": 4, "response": "Yes"},
    ]
    responses = json.loads((out / "amber_generative-real.responses.json").read_text())
    assert responses[1] == {"id": 2, "response": "A person and dogs by a car, with tires."}
    record = read_records(out / "amber_generative-real.jsonl")[0]
    assert (record["answer"], record["false"], record["imagined"]) == ("man, person, sky", 3, 2)
    (published / "amber/image/AMBER_2.jpg").unlink()
    with pytest.raises(
        ValueError, match="1 of the 2 pictures of amber_generative are missing, for example .*AMBER_2.jpg"
    ):
        run("amber_generative", data=published, limit=1)


def test_mmhal_is_rated_afterwards(run, say, published, tmp_path):
    say({"attribute": "A vase.", "counting": "Three dogs."})
    entry = run("mmhal", data=published)["mmhal"]["real"]
    assert entry["metrics"] == {"unrated": 2, "unread": 0} and entry["floors"] == {}
    out = tmp_path / "out"
    expected = json.loads((published / "mmhal/response_template.json").read_text())
    answers = json.loads((out / "mmhal-real.responses.json").read_text())
    for template, answer, said in zip(expected, answers, ("A vase.", "Three dogs."), strict=True):
        del template["image_id"]
        assert answer == template | {"model_answer": said}


@pytest.mark.parametrize(("name", "split"), [("scenes", "test"), ("scenes_transfer", "transfer")])
def test_scenes_get_the_same_numbers_from_lmms_eval_and_from_our_scorer(name, split, run, say, tmp_path, monkeypatch):
    few = questions.load_questions
    monkeypatch.setattr(questions, "load_questions", lambda split, num_images, image_size: few(split, 12, image_size))
    say({" bowl ": "yes", " a car ": "No.", "How many": "There are two.", "or": "left, not right", "Is there": "no"})
    entry = run(name, data=None)[name]["real"]
    records = read_records(tmp_path / "out" / f"{name}-real.jsonl")
    metrics = {key: value for key, value in entry["lmms_eval"][f"age_vlm_{name}"].items() if "stderr" not in key}
    assert [record["question"] for record in records] == [row["question"] for row in few(split, 12)]
    exact = metrics.pop("pope_accuracy_exact")
    assert metrics | {"unread": entry["metrics"]["unread"]} == summarize(records) == entry["metrics"]
    assert {f"{kind}_accuracy" for kind in (*classes.POPE_KINDS, "count", "relation")} <= metrics.keys()
    existence = [record | {"benchmark": "pope"} for record in records if record["kind"] in classes.POPE_KINDS]
    assert exact == summarize(existence)["accuracy_exact"]
    assert 0 < exact < metrics["pope_accuracy"] < 1 and 0 < metrics["count_accuracy"] < 1
    assert len(records) == len(few(split, 12)) == entry["questions"]
    table = report.report("ours", {name: {"real": entry}})
    low, high = entry["intervals"]["accuracy"]
    assert f"| accuracy | {entry['metrics']['accuracy']:.4f} | {low:.4f} to {high:.4f} | - | - | - | - | " in table
    assert f" | {metrics['accuracy']:.4f} |\n" in table


def test_a_run_goes_on_where_it_was(run, tmp_path, monkeypatch):
    asked = []
    generate = ImageTextToTextModel.generate_until
    monkeypatch.setattr(
        ImageTextToTextModel,
        "generate_until",
        lambda self, requests: asked.append((requests[0].task_name, self.picture)) or generate(self, requests),
    )
    first = run("pope", "realworldqa", pictures=("real", "none"))
    assert asked == [(task, kind) for task in ("pope", "realworldqa") for kind in ("real", "none")]
    asked.clear()
    assert run("pope", "realworldqa", pictures=("real", "none")) == first and asked == []
    (tmp_path / "out" / "pope-none.jsonl").unlink()
    assert run("pope", "realworldqa", pictures=("real", "none")) == first and asked == [("pope", "none")]
    asked.clear()
    with pytest.raises(ValueError, match="realworldqa-real.jsonl .*would replace .limit None, not 1.: choose"):
        run("realworldqa", limit=1)
    assert not asked


def test_fewer_questions_do_not_replace_more(run, tmp_path, asked):
    few = run("realworldqa", limit=1)
    whole = run("realworldqa")
    assert [found["realworldqa"]["real"]["questions"] for found in (few, whole)] == [1, 2] and len(asked) == 2
    for options in ({"limit": 1}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match="realworldqa-real.jsonl has answers that this run would replace"):
            run("realworldqa", **options)
    assert run("realworldqa") == whole and len(asked) == 2
    table = report.report("tiny", whole | run("pope", limit=3))
    assert "Of pope these are only a few, by `--limit`" in table


def test_other_data_are_noticed_and_the_same_elsewhere_are_the_same(run, data, tmp_path, asked, monkeypatch):
    rows = [*ROWS["pope"]]
    (tmp_path / "data").mkdir()
    save = lambda: data_set(rows).to_parquet(tmp_path / "data/pope.parquet")  # noqa: E731
    save()
    first = run("pope", data=tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert run("pope", data=Path("data")) == run("pope", data=data) == first and len(asked) == 2
    for column, value in (("question", "Is there a cup in the picture?"), ("image", picture(seed=9))):
        rows[0] = ROWS["pope"][0] | {column: value}
        save()
        with pytest.raises(ValueError, match="pope-real.jsonl .*would replace .other questions or pictures"):
            run("pope", data=tmp_path / "data")


def test_answers_to_other_questions_are_not_taken_after_a_kill(run, say, tmp_path, monkeypatch):
    answers = {row["question"]: f"I was asked: {row['question']}" for row in ROWS["pope"]}
    rows = [*ROWS["pope"]]
    (tmp_path / "data").mkdir()
    data_set(rows).to_parquet(tmp_path / "data/pope.parquet")
    say(answers)
    ask, batches = ImageTextToTextModel.ask, []

    def killed(self, batch):
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return ask(self, batch)

    monkeypatch.setattr(ImageTextToTextModel, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        run("pope", data=tmp_path / "data")
    data_set([*reversed(rows)]).to_parquet(tmp_path / "data/pope.parquet")
    run("pope", data=tmp_path / "data")
    for record in read_records(tmp_path / "out/pope-real.jsonl"):
        assert record["prediction"] == f"I was asked: {record['question']}"


def test_metrics_are_those_of_the_records_as_they_are(run, say, published, tmp_path):
    """A judge rates later, and rules change: what `results.json` says of metrics is for readers."""
    say({"attribute": "A vase.", "counting": "Three dogs."})
    run("mmhal", data=published)
    file = tmp_path / "out/mmhal-real.jsonl"
    records = read_records(file)
    for record, rating in zip(records, (6, 1), strict=True):
        record["rating"] = rating
    write_records(file, records)
    stored = json.loads((tmp_path / "out/results.json").read_text())
    stored["mmhal"]["real"] |= {"metrics": {"score": 99}, "floors": {"always yes": {"score": 98}}}
    (tmp_path / "out/results.json").write_text(json.dumps(stored))
    again = run("mmhal", data=published)["mmhal"]["real"]
    assert again["metrics"]["score"] == 3.5 and again["metrics"]["hallucination_rate"] == 0.5
    assert again["floors"] == {} and again["intervals"]["score"] == [1.0, 6.0]
    assert json.loads((tmp_path / "out/results.json").read_text())["mmhal"]["real"] == again


def test_all_that_a_folder_has_of_the_model_is_told(run, published, say, asked):
    """Whatever this call's data; those that read neither split nor data are asked once."""
    say({"": "yes"})
    run("realworldqa")
    before = len(asked)
    found = run("amber_discriminative", data=published, split="val")
    assert set(found) == {"realworldqa", "amber_discriminative"} and len(asked) > before
    before = len(asked)
    assert set(run("realworldqa", split="testA")) == set(found) and len(asked) == before


def test_two_evaluations_at_once_keep_the_results_of_both(run, tmp_path, monkeypatch):
    ask = ImageTextToTextModel.ask

    def with_another(self, batch):
        monkeypatch.setattr(ImageTextToTextModel, "ask", ask)
        run("pope")
        return ask(self, batch)

    monkeypatch.setattr(ImageTextToTextModel, "ask", with_another)
    assert set(run("realworldqa")) == {"realworldqa", "pope"}
    assert set(json.loads((tmp_path / "out/results.json").read_text())) == {"realworldqa", "pope"}


OLD = {"settings": {"model": "m", "weights": "1 2", "limit": None}, "questions": 2, "metrics": {}, "lmms_eval": {}}


@pytest.mark.parametrize(
    "content",
    ["[]", "{", "5", '{"pope": []}', '{"pope": {"real": 5}}', '{"../a": {}}', json.dumps({"pope": {"real": OLD}})],
)
def test_results_of_another_form_are_refused(run, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.json").write_text(content)
    with pytest.raises(ValueError, match="results.json is damaged, or of an older version .*evaluate again"):
        run("pope")


def test_pictures_that_are_asked_for_later_are_not_forgotten(run, tmp_path, capsys):
    run("realworldqa", pictures=("real", "none"))
    capsys.readouterr()
    run("realworldqa", pictures=("real", "none"), save_pictures=True)
    told = capsys.readouterr().err
    assert "realworldqa-real.jsonl is of a run without --save_pictures: remove it" in told
    assert "realworldqa-none.jsonl" not in told
    (tmp_path / "out/realworldqa-real.jsonl").unlink()
    run("realworldqa", save_pictures=True)
    assert "image" in read_records(tmp_path / "out/realworldqa-real.jsonl")[0]
    assert "without --save_pictures" not in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch):
    """The questions that the model is asked, batch by batch."""
    batches, ask = [], ImageTextToTextModel.ask

    def noting(self, batch):
        batches.append([(task, number) for *_, number, task, _ in batch])
        return ask(self, batch)

    monkeypatch.setattr(ImageTextToTextModel, "ask", noting)
    return batches


CHANGES = ["chat template", "picture options", "generation options", "weights", "code", "tokenizer"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_has_changed_is_asked_again(run, checkpoint, tmp_path, asked, change):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    first = run("realworldqa", model=str(model))
    assert len(asked) == 1 and run("realworldqa", model=str(model)) == first and len(asked) == 1
    if change == "chat template":
        (model / "chat_template.jinja").write_text("Say no. " + (model / "chat_template.jinja").read_text())
    elif change == "weights":
        content = bytearray((model / "model.safetensors").read_bytes())
        content[-1] ^= 1
        (model / "model.safetensors").write_bytes(content)
    elif change in ("code", "tokenizer"):
        (model / {"code": "modeling_agevlm.py", "tokenizer": "merges.txt"}[change]).write_text("# new\n")
    else:
        name = "processor_config.json" if change == "picture options" else "generation_config.json"
        (model / name).write_text((model / name).read_text() + "\n")
    again = run("realworldqa", model=str(model))
    assert len(asked) == 2 and list(again) == ["realworldqa"]


def test_the_answers_of_another_model_are_left_alone(run, checkpoint, tmp_path, asked):
    run("realworldqa")
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "optimizer.pt").write_text("state")
    os.utime(other / "model.safetensors", ns=(0, 0))
    run("realworldqa", model=str(other))
    assert len(asked) == 1  # a copy is the same model
    (other / "generation_config.json").write_text((other / "generation_config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="out has the answers of .*: choose another `--out` for .*other"):
        run("realworldqa", model=str(other))


def test_a_run_that_was_killed_goes_on_with_its_batch(run, tmp_path, asked, monkeypatch):
    """The questions go together as before, and so the answers are the same to the byte."""
    run("pope", out=tmp_path / "whole", batch_size=2, save_pictures=True)
    batches, noting = [*asked], ImageTextToTextModel.ask
    for stop in (1, 2):

        def killed(self, batch, stop=stop):
            if [(task, number) for *_, number, task, _ in batch] == batches[stop]:
                raise KeyboardInterrupt
            return noting(self, batch)

        monkeypatch.setattr(ImageTextToTextModel, "ask", killed)
        with pytest.raises(KeyboardInterrupt):
            run("pope", out=tmp_path / "killed", batch_size=2, save_pictures=True)
    monkeypatch.setattr(ImageTextToTextModel, "ask", noting)
    asked.clear()
    results = run("pope", out=tmp_path / "killed", batch_size=2, save_pictures=True)
    assert asked == batches[2:] and results["pope"]["real"]["questions"] == 6
    whole, killed = (tmp_path / name / "pope-real.jsonl" for name in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_an_answer_that_was_cut_off_is_no_answer(tmp_path):
    journal = Journal(tmp_path, "pope-real", {"a": 1}, rank=0)
    journal.add([{"task": "pope", "number": n, "answer": "yes"} for n in range(3)])
    journal.file.write_bytes(journal.file.read_bytes()[:-5])
    again = Journal(tmp_path, "pope-real", {"a": 1}, rank=0)
    assert again.has([("pope", 0), ("pope", 1)]) and not again.has([("pope", 2)])
    again.add([{"task": "pope", "number": 2, "answer": "no"}])
    assert Journal(tmp_path, "pope-real", {"a": 1}, rank=1).answers["pope", 2]["answer"] == "no"
    assert not Journal(tmp_path, "pope-real", {"a": 2}, rank=0).answers  # of other settings


def test_a_limited_number_of_questions_is_of_every_kind(run, tmp_path):
    run("pope", limit=3)
    records = read_records(tmp_path / "out/pope-real.jsonl")
    assert sorted(record["category"] for record in records) == ["adversarial", "popular", "random"]
    questions = [row["question"] for row in ROWS["pope"]]
    assert [record["id"] for record in records] == [f"pope-{questions.index(r['question'])}" for r in records]


def test_a_missing_column_is_named_before_the_first_question(run, tmp_path, asked):
    rows = [{name: value for name, value in row.items() if name != "category"} for row in ROWS["pope"]]
    (tmp_path / "data").mkdir()
    data_set(rows).to_parquet(tmp_path / "data/pope.parquet")
    data_set(ROWS["realworldqa"]).to_parquet(tmp_path / "data/realworldqa.parquet")
    with pytest.raises(ValueError, match="The data of pope lack category; they have id, question_id, question"):
        run("realworldqa", "pope", data=tmp_path / "data")
    assert not asked


def test_thoughts_are_no_answers_to_anybody(run, say, tmp_path):
    say({"Is there": "<think>At first I saw no such thing.</think>\nYes"})
    entry = run("pope")["pope"]["real"]
    assert entry["metrics"]["yes_ratio"] == 1 and entry["metrics"]["accuracy"] == 0.5
    assert entry["lmms_eval"]["pope"]["pope_accuracy"] == 0.5


def test_table_with_drops():
    def entry(accuracy, exact):
        metrics = {"accuracy": accuracy, "accuracy_exact": exact}
        theirs = {"pope": {"pope_accuracy": exact}}
        found = {"settings": {"limit": 5}, "questions": 9, "metrics": metrics, "lmms_eval": theirs}
        return {**found, "intervals": {"accuracy": [0.8, 0.9]}, "floors": {"always yes": {"accuracy": 0.5}}}

    results = {"pope": {"real": entry(0.85, 0.5), "none": entry(0.5, 0.25), "swapped": entry(0.625, 0.0)}}
    lines = report.report("mine", results).splitlines()
    assert "| mine | - | - | - | - | - | - | - | - | 85.00 |" in lines
    assert "| mine, no picture | - | - | - | - | - | - | - | - | 50.00 |" in lines
    assert "| mine, swapped picture | - | - | - | - | - | - | - | - | 62.50 |" in lines
    assert "| pope | real picture | 95% interval | none | drop | swapped | drop | always yes | lmms-eval |" in lines
    assert "| accuracy | 0.8500 | 0.8000 to 0.9000 | 0.5000 | 0.3500 | 0.6250 | 0.2250 | 0.5000 | 0.5000 |" in lines
    assert "| accuracy_exact | 0.5000 | - | 0.2500 | 0.2500 | 0.0000 | 0.5000 | - | 0.5000 |" in lines
    assert "Questions: pope 9. Of pope these are only a few, by `--limit`: too few to compare." in lines[-1]
    assert len({line.count("|") for line in lines if line.startswith("| mine") or "paper" in line}) == 1


def test_data_in_folders(run, tmp_path):
    folder = tmp_path / "data"
    data_set(ROWS["pope"]).to_parquet(folder / "pope" / "test-00000-of-00001.parquet")
    DatasetDict({"test": data_set(ROWS["realworldqa"])}).save_to_disk(folder / "realworldqa")
    results = run("pope", "realworldqa", data=folder)
    assert [results[name]["real"]["questions"] for name in ("pope", "realworldqa")] == [6, 2]
    with pytest.raises(ValueError, match=f"neither {folder}/ocrbench.parquet nor a folder {folder}/ocrbench"):
        run("ocrbench", data=folder)


def test_data_that_cannot_be_had(run, monkeypatch):
    from lmms_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask.download.retry, "wait", lambda state: 0)
    with pytest.raises(ValueError, match="The data of pope cannot be loaded: .*POPE.*`--data` takes local copies"):
        run("pope", data=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "0"], "error: `--limit` is a number of questions, but is 0."),
        (["--benchmarks", "pope", "--data", "nowhere"], "error: There is neither nowhere/pope.parquet nor a folder"),
    ],
)
def test_bad_arguments_end_in_one_sentence(monkeypatch, checkpoint, tmp_path, arguments, message):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", checkpoint, "--out", str(tmp_path), *arguments])
    with pytest.raises(SystemExit) as error:
        evaluate.main()
    assert str(error.value).startswith(message)


def test_without_lmms_eval(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", "any"])
    with pytest.raises(SystemExit, match="error: lmms-eval is not installed"):
        evaluate.main()


@pytest.mark.slow
def test_lmms_evals_own_command_on_two_processes(checkpoint, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ROOT / "recipes/accelerate_configs/two_cpu_processes.yaml")]
    command += ["-m", "lmms_eval", "--model", "age_vlm", "--model_args", f"pretrained={checkpoint},picture=swapped"]
    command += ["--include_path", str(ROOT / "recipes/scenes/lmms_eval_tasks"), "--tasks", "age_vlm_scenes"]
    command += ["--batch_size", "4", "--limit", "15", "--log_samples", "--output_path", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr[-3000:]
    (samples,) = tmp_path.rglob("*_samples_age_vlm_scenes.jsonl")
    samples = [json.loads(line) for line in samples.read_text().splitlines()]
    assert sorted(sample["doc_id"] for sample in samples) == list(range(15))
    right = sum(sample["accuracy"]["correct"] for sample in samples)
    assert f"|accuracy           |↑  |{right / 15:.4f}|" in run.stdout
