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
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from testing_utils import EOT, VOCAB_SIZE, picture, tiny_model, tiny_processor

from recipes import evaluate
from recipes.evaluation import report
from recipes.evaluation.benchmarks import PAPERS, PICTURES
from recipes.evaluation.benchmarks import evaluate as run_benchmarks
from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import mark, read_records
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


ROWS = {
    "hallusion_bench_image": list(hallusionbench()),
    "pope": list(pope()),
    "ocrbench": list(ocrbench()),
    "cv_bench_2d": list(cvbench("2D")),
    "cv_bench_3d": list(cvbench("3D")),
    "realworldqa": list(realworldqa()),
}


def data_set(rows):
    kinds = {
        "image": Image(),
        "answer": List(Value("string")),
        "choices": List(Value("string")),
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
        }
        names = {"model": checkpoint, "out": tmp_path / "out", "benchmarks": benchmarks, "pictures": pictures}
        return run_benchmarks(argparse.Namespace(**defaults | names | options))

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
        predictions = {}
        for kind, entry in runs.items():
            records = read_records(out / f"{name}-{kind}.jsonl")
            assert entry["metrics"] == summarize(records)
            assert all(record["correct"] == mark(record) and (out / record["image"]).exists() for record in records)
            predictions[kind] = [record["prediction"] for record in records]
        assert predictions["real"] != predictions["none"], name
        assert predictions["real"] != predictions["swapped"], name
    assert json.loads((out / "results.json").read_text()) == results
    record = read_records(out / "cvbench-real.jsonl")[2]
    assert {name: record[name] for name in record if name not in ("prediction", "correct", "image")} == {
        "benchmark": "cvbench",
        "id": "cv_bench_3d-0",
        "question": "Which is closer in the road?",
        "answer": "(B)",
        "type": "3D",
        "task": "Depth",
        "source": "Omni3D",
        "choices": ["the car", "the tree"],
    }
    different = {picture.tobytes() for rows in ROWS.values() for picture in (row["image"] for row in rows)}
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
    assert "| pope absence_auc |" in report.report("sink", results)


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
    assert ours["hallusionbench"] == {"aAcc": 50.0, "fAcc": 0.0, "qAcc": 0.0}
    assert not theirs["hallusion_bench_image"].keys() & {"aAcc", "fAcc", "qAcc"}

    table = report.report("ours", {name: {"real": entry} for name, entry in results.items()})
    assert "| AGE-VLM (paper) | 43.85 | 15.32 | 11.21 | - | - | - | - | - | 87.34 |" in table
    assert "| ours | 50.00 | 0.00 | 0.00 | 1 | 0 | 1.00 | 0.00 | 1.00 | 66.67 |" in table
    assert "| cvbench 2D | 1.0000 | - | - | - | - | 0.5000 |" in table
    assert "| hallusionbench aAcc | 50.00 | - | - | - | - | judge |" in table


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
    assert metrics == summarize(records) == entry["metrics"]
    assert {f"{kind}_accuracy" for kind in (*classes.POPE_KINDS, "count", "relation")} <= metrics.keys()
    existence = [record | {"benchmark": "pope"} for record in records if record["kind"] in classes.POPE_KINDS]
    assert exact == summarize(existence)["accuracy_exact"]
    assert 0 < exact < metrics["pope_accuracy"] < 1 and 0 < metrics["count_accuracy"] < 1
    assert len(records) == len(few(split, 12)) == entry["questions"]
    assert f"| {name} accuracy | {entry['metrics']['accuracy']:.4f} | - | - | - | - | {metrics['accuracy']:.4f} |" in (
        report.report("ours", {name: {"real": entry}})
    )


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
    limited = run("realworldqa", limit=1)  # other settings: nothing of the above counts
    assert asked == [("realworldqa", "real")]
    assert list(limited) == ["realworldqa"] and limited["realworldqa"]["real"]["questions"] == 1


def test_table_with_drops():
    def entry(accuracy, exact):
        metrics = {"accuracy": accuracy, "accuracy_exact": exact}
        theirs = {"pope": {"pope_accuracy": exact}}
        return {"settings": {"limit": 5}, "questions": 9, "metrics": metrics, "lmms_eval": theirs}

    results = {"pope": {"real": entry(0.85, 0.5), "none": entry(0.5, 0.25), "swapped": entry(0.625, 0.0)}}
    lines = report.report("mine", results).splitlines()
    assert "| mine | - | - | - | - | - | - | - | - | 85.00 |" in lines
    assert "| mine, no picture | - | - | - | - | - | - | - | - | 50.00 |" in lines
    assert "| mine, swapped picture | - | - | - | - | - | - | - | - | 62.50 |" in lines
    assert "| pope accuracy | 0.8500 | 0.5000 | 0.3500 | 0.6250 | 0.2250 | 0.5000 |" in lines
    assert "Questions: pope 9. These are only the first 5 of each task: too few to compare." in lines[-1]
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
