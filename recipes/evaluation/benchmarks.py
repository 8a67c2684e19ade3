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
"""The benchmarks, run through lmms-eval's own tasks."""

import argparse
import functools
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.evaluation.published import count_objects, read_rows, responses
from recipes.evaluation.records import POINTING, Record, mark, read_records, write_records
from recipes.evaluation.repope import read_labels, relabel
from recipes.evaluation.results import SETTINGS, Runs, read_results, records_file, runs_of, store, summary


if TYPE_CHECKING:
    from lmms_eval.api.task import Task
    from lmms_eval.models.registry_v2 import ModelManifest

    from recipes.evaluation.journal import Journal
    from recipes.evaluation.lmms_eval_model import ImageTextToTextModel
    from recipes.evaluation.pointing import Phrases
    from recipes.inside.vlm import Vlm


# Tasks of our own: drawn here, and read from files as their authors publish them
SCENES = Path(__file__).parents[1] / "scenes/lmms_eval_tasks"
PUBLISHED = Path(__file__).with_name("lmms_eval_tasks")


@dataclass(frozen=True)
class Benchmark:
    """
    Which tasks of lmms-eval a benchmark is, in which folder (of lmms-eval's, or our own) and split they are, and what
    its records keep of a row, by which name (`names`) if another, and of what is said of it (`count`, from a row, the
    prediction and the folder of the data). `question` is the same of all rows that have none; `group` rows one after
    the other belong together. `headlines` are the metrics that stand for each task, if it is not accuracy.
    """

    folder: str | Path
    tasks: tuple[str, ...]
    columns: tuple[str, ...] = ()
    split: str = "test"
    answer: str | Callable[[Mapping[str, Any]], str] = "answer"
    names: Mapping[str, str] = field(default_factory=dict)
    question: str = ""
    group: int = 1
    count: Callable[[Mapping[str, Any], str, Path], Record] | None = None
    headlines: tuple[str, ...] = ("accuracy",)

    @property
    def needed(self) -> dict[str, str]:
        """The row's column of each of the record's."""
        asked = () if self.question else ("question",)
        return {name: self.names.get(name, name) for name in (*asked, *self.columns)}

    def read(self, doc: Mapping[str, Any]) -> Record:
        """What a record keeps of a row."""
        record = {"question": self.question} | {name: doc[column] for name, column in self.needed.items()}
        if isinstance(record.get("choices"), str):  # "(a) Open (b) Closed"
            record["choices"] = [text.strip() for text in re.findall(r"\([a-z]\)([^(]+)", record["choices"])]
        answer = doc[self.answer] if isinstance(self.answer, str) else self.answer(doc)
        return {"question": record.pop("question"), "answer": answer, **record}


def naturalbench_answer(doc: Mapping[str, Any]) -> str:
    """By the order of its four: the first question is right of the first picture, the second of the second."""
    answers = ("Yes", "No") if doc["Question_Type"] == "yes_no" else ("A", "B")
    return answers[int(doc["Index"]) % 4 in (1, 2)]


BENCHMARKS = {
    "hallusionbench": Benchmark(
        "hallusion_bench",
        ("hallusion_bench_image",),
        ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input"),
        split="image",
        answer="gt_answer",
        headlines=("aAcc",),
    ),
    "ocrbench": Benchmark("ocrbench", ("ocrbench",), ("dataset", "question_type"), headlines=("total",)),
    "cvbench": Benchmark(
        "cv_bench", ("cv_bench_2d", "cv_bench_3d"), ("type", "task", "source", "choices"), headlines=("2D", "3D")
    ),
    "realworldqa": Benchmark("realworldqa", ("realworldqa",)),
    "mme": Benchmark("mme", ("mme",), ("category", "question_id"), group=2, headlines=("perception",)),
    "mmvp": Benchmark(
        "mmvp",
        ("mmvp",),
        ("index", "choices"),
        split="train",
        answer="Correct Answer",
        names={"question": "Question", "index": "Index", "choices": "Options"},
        group=2,
    ),
    "naturalbench": Benchmark(
        "naturalbench",
        ("naturalbench",),
        ("index", "question_type"),
        answer=naturalbench_answer,
        names={"question": "Question", "index": "Index", "question_type": "Question_Type"},
        group=4,
        headlines=("group_accuracy",),
    ),
    "chair": Benchmark(
        "coco_cap_chair",
        ("coco_cap_chair",),
        ("image_id",),
        answer=lambda doc: ", ".join(sorted(set(doc["gt_object"]))),
        names={"image_id": "question_id"},
        question="Please describe this image in detail.",
        headlines=("chair_s",),
    ),
    "amber_generative": Benchmark(
        PUBLISHED,
        ("age_vlm_amber_generative",),
        ("number",),
        answer=lambda doc: ", ".join(doc["truth"]),
        count=count_objects,
    ),
    "amber_discriminative": Benchmark(
        PUBLISHED, ("age_vlm_amber_discriminative",), ("number", "type"), answer="truth"
    ),
    "mmhal": Benchmark(
        PUBLISHED,
        ("age_vlm_mmhal",),
        ("question_type", "question_topic", "image_src", "image_content"),
        answer="gt_answer",
    ),
    "pope": Benchmark("pope", ("pope",), ("category", "image_source")),
    "scenes": Benchmark(SCENES, ("age_vlm_scenes",), ("kind",)),
    "scenes_transfer": Benchmark(SCENES, ("age_vlm_scenes_transfer",), ("kind",)),
}
KINDS = ("category", "question_type", "type", "kind")  # columns by which a limited number of questions is spread
EXISTENCE = ("pope", "scenes", "scenes_transfer")  # ask whether something is there, also when it is not
KEPT = ("picture", "image", "phrase", "map", "on_nothing")  # of an answer's entry in the journal
PAPERS = ("hallusionbench", "ocrbench", "cvbench", "realworldqa", "pope")


def manifest() -> "ModelManifest":
    """What lmms-eval's entry point names; here, because importing the model's own module imports lmms-eval first."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="age_vlm", chat_class_path="recipes.evaluation.lmms_eval_model.ImageTextToTextModel")


def local_copy(task: str, split: str, data: Path) -> dict[str, Any]:
    """What of a task's configuration changes so that it reads `data`."""
    file, folder = data / f"{task}.parquet", data / task
    if file.exists():
        kwargs = {"data_files": {split: str(file)}}
        return {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": kwargs}
    if not folder.is_dir():
        raise ValueError(f"There is neither {file} nor a folder {folder}.")
    kwargs = {"load_from_disk": True} if (folder / "dataset_dict.json").exists() else {}
    return {"dataset_path": str(folder), "dataset_name": None, "dataset_kwargs": kwargs}


def load_tasks(name: str, data: Path | None, limit: int | None) -> dict[str, "Task"]:
    """
    A benchmark's tasks of lmms-eval, with their questions or `limit` of each.

    Raises:
        ValueError: If the data cannot be loaded, or lack a column.
    """
    import lmms_eval.tasks  # here, because those who only look for phrases need not have it
    from accelerate import PartialState
    from tenacity import RetryError

    benchmark = BENCHMARKS[name]
    tasks = []
    for task in benchmark.tasks:
        tasks.append({"task": task})
        if name in ("hallusionbench", "naturalbench", "chair"):
            # They would send every answer to GPT-4; fail on less than all of the questions; need downloads of NLTK's.
            tasks[-1]["metric_list"] = []
        if name == "chair":
            tasks[-1]["process_results"] = lambda doc, results: {}
        if benchmark.folder == PUBLISHED:
            read_rows(name, data)
            tasks[-1]["dataset_kwargs"] = {"name": name, "data": str(data)}
        elif data is not None and benchmark.folder != SCENES:
            tasks[-1] |= local_copy(task, benchmark.split, data)
    folder = Path(lmms_eval.tasks.__file__).parent / benchmark.folder
    manager = lmms_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    try:
        with PartialState().main_process_first():
            # `simple_evaluate` itself would take changed configurations for those of tasks without chats.
            loaded = manager.load_task_or_group(tasks, task_type="chat")
    except RetryError as error:
        reason = " ".join(str(error.last_attempt.exception()).split()).rstrip(".")
        raise ValueError(f"The data of {name} cannot be loaded: {reason}. `--data` takes local copies.") from error
    for task, found in loaded.items():
        rows = found.dataset[benchmark.split]
        needed = [benchmark.answer] if isinstance(benchmark.answer, str) else []
        needed = (*needed, *benchmark.needed.values())
        if missing := [column for column in needed if column not in rows.column_names]:
            raise ValueError(
                f"The data of {task} lack {', '.join(missing)}; they have {', '.join(rows.column_names)}."
            )
        if limit is not None:
            kinds = [rows[benchmark.names.get(name, name)] for name in benchmark.columns if name in KINDS]
            chosen = sample(len(rows), kinds, limit, benchmark.group)
            found.numbers = chosen  # which they have among all of them
            for part in (found.dataset, found.dataset_no_image):
                part[benchmark.split] = part[benchmark.split].select(chosen)
    return loaded


def sample(number: int, columns: Sequence[Sequence[Any]], limit: int, group: int = 1) -> list[int]:
    """
    Up to `limit` of the `number` questions: of every kind, which `columns` tell, as many, drawn with the same seed
    always, whole groups of them (one at least).
    """
    kinds: dict[tuple[str, ...], list[int]] = {}
    for n in np.random.default_rng(0).permutation(number // group).tolist():
        kinds.setdefault(tuple(str(column[group * n]) for column in columns), []).append(n)
    in_turns = [n for turn in itertools.zip_longest(*kinds.values()) for n in turn if n is not None]
    return [group * n + k for n in sorted(in_turns[: max(1, limit // group)]) for k in range(group)]


def run(lm: "ImageTextToTextModel", name: str, args: argparse.Namespace) -> tuple[list[Record], dict[str, Any]] | None:
    """
    The records of one benchmark and what else `results.json` has of it: lmms-eval's own metrics of each of its tasks
    (`lmms_eval`), and the data set on the Hub and the metric that stand for each (`tasks`), unless the data are a
    local copy. None on all processes but the first.
    """
    from accelerate.utils import gather_object
    from lmms_eval.evaluator import simple_evaluate

    benchmark, loaded = BENCHMARKS[name], load_tasks(name, args.data, args.limit)
    lm.asks_what_is_there = name in EXISTENCE
    lm.question_of = lambda doc: benchmark.read(doc)["question"]
    lm.pictures = args.out / "pictures" if args.save_pictures else None
    lm.clean = lambda: None  # It would take the model away after the first benchmark.
    with redirect_stdout(sys.stderr):
        results = simple_evaluate(
            model=lm,
            tasks=list(loaded.values()),
            bootstrap_iters=0,
            # where tasks write files of their own; scoring does not need the pictures again
            cli_args=argparse.Namespace(
                output_path=str(args.out / "lmms_eval" / lm.picture),
                process_with_media=False,
                reasoning_tags='[["<think>", "</think>"], ["<analysis>", "</analysis>"]]',  # its own command's default
            ),
        )
    answers = dict(gather_object(list(lm.journal.answers.items())))
    if results is None:
        return None
    records = []
    for task in benchmark.tasks:
        numbers = getattr(loaded[task], "numbers", None)
        for asked in sorted(results["samples"][task], key=lambda sample: sample["doc_id"]):
            doc, number = asked["doc"], asked["doc_id"]
            record = {"benchmark": name, "id": f"{task}-{number if numbers is None else numbers[number]}"}
            record |= benchmark.read(doc) | {"prediction": asked["filtered_resps"][0].strip()}
            if benchmark.count is not None:
                record |= benchmark.count(doc, record["prediction"], args.data)
            record["correct"] = mark(record)
            entry = answers[task, number]
            record |= {column: entry[column] for column in KEPT if column in entry}
            records.append(record)
    metrics = {
        task: {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, (int, float))}
        for task, values in results["results"].items()
    }
    tasks = {
        task: {"dataset": loaded[task].config.dataset_path, "metric": metric}
        for task, metric in zip(benchmark.tasks, benchmark.headlines, strict=True)
        if benchmark.folder not in (SCENES, PUBLISHED) and args.data is None
    }
    return records, {"lmms_eval": metrics, "tasks": tasks}


def look(
    vlm: "Vlm", name: str, args: argparse.Namespace, journal: "Journal"
) -> tuple[list[Record], dict[str, Any]] | None:
    """As [`run`] of a benchmark that looks for phrases. What is wrong with its annotations is said and left out."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    from recipes.evaluation.pointing import gathered, point, read_phrases

    phrases, state = read_phrases(name, args.data, args.split), PartialState()
    pictures = args.out / "pictures" if args.save_pictures else None
    numbers = chosen_phrases(phrases, args.limit)
    point(vlm, name, phrases, numbers, journal, pictures, state.process_index, state.num_processes)
    entries = dict(gather_object(list(journal.answers.items())))
    if not state.is_main_process:
        return None
    records = gathered(list(entries.values()), phrases.faults)
    for kind, count in phrases.faults.most_common():
        print(f"left out: {count} {kind}, {phrases.faults.first[kind]}", file=sys.stderr)
    return records, {"lmms_eval": {}, "tasks": {}}


def chosen_phrases(phrases: "Phrases", limit: int | None) -> list[int]:
    """The numbers of the phrases that are looked for."""
    number = len(phrases.asked)
    return list(range(number)) if limit is None else sample(number, [[asked.kind for asked in phrases.asked]], limit)


def digest(name: str, args: argparse.Namespace) -> str:
    """
    What tells a benchmark's questions and pictures from others.

    Raises:
        ValueError: If they cannot be loaded.
    """
    from recipes.evaluation.journal import digest_of

    if name in POINTING:
        from recipes.evaluation.pointing import read_phrases

        if args.data is None:
            raise ValueError(f"{name} needs `--data`, the folder that holds {name.removesuffix('_pointing')}/.")
        phrases = read_phrases(name, args.data, args.split)
        return phrases.digest(chosen_phrases(phrases, args.limit))
    split = BENCHMARKS[name].split
    docs = [task.dataset[split].with_format("arrow") for task in load_tasks(name, args.data, args.limit).values()]
    return digest_of(row for rows in docs for part in rows.iter(64) for row in part.to_pylist())


def check_model(out: Path, results: Runs, settings: Mapping[str, Any]) -> None:
    """Raises `ValueError` if a folder has the answers of another model."""
    of_runs = [run["settings"] for runs in results.values() for run in runs.values()]
    others = [run for run in of_runs if run["identity"] != settings["identity"] and run["model"] != settings["model"]]
    if others:
        raise ValueError(
            f"{out} has the answers of {others[0]['model']}: choose another `--out` for {settings['model']}."
        )


def is_there(out: Path, results: Runs, name: str, picture: str, settings: Mapping[str, Any]) -> bool:
    """
    Whether a folder has a benchmark with one of the pictures, with these settings.

    Raises:
        ValueError: If it has one of the same model with others, which would be lost. Of fewer questions it may be.
    """
    stored = results.get(name, {}).get(picture, {}).get("settings")
    file = records_file(out, name, picture)
    if stored is None or not file.exists() or stored["identity"] != settings["identity"]:
        return False
    differ = [key for key in SETTINGS[1:] if stored[key] != settings[key]]
    old, new = stored["limit"], settings["limit"]
    if differ and (old is None or (new is not None and new <= old)):
        words = [f"{key} {stored[key]}, not {settings[key]}" for key in differ if key != "data"]
        words = words or ["other questions or pictures"]
        raise ValueError(
            f"{file} has answers that this run would replace ({'; '.join(words)}): choose another `--out`, or remove "
            "the file."
        )
    return not differ


def evaluate(args: argparse.Namespace, load_vlm: Callable[[str], "Vlm"]) -> Runs:
    """
    Runs what is missing in the output folder, and returns all that it then has of this model: for each benchmark and
    each `picture` the number of `questions`, our metrics (`metrics`) with their 95% `intervals`, those of what needs
    no eyes (`floors`), lmms-eval's (`lmms_eval`), and what stands for its tasks on the Hub (`tasks`). Empty on all
    processes but the first.

    Args:
        args (`argparse.Namespace`): Of `recipes/evaluate.py`.
        load_vlm (`Callable[[str], Vlm]`): Opens a checkpoint, to see where its words look.

    Raises:
        ValueError: If the folder has another model's answers, or more of this one than is asked for, or the data or
            the model cannot be loaded.
    """
    import torch  # here, so that `--help` does not wait for it
    from accelerate import PartialState

    from recipes.evaluation.journal import Journal, identity_of

    # Several processes on a CPU find each other only if accelerate is told that it is one.
    state = PartialState(cpu=args.device == "cpu" or not torch.accelerator.is_available())
    results, identity = read_results(args.out), identity_of(args.model)
    model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
    settings = {"model": model, "identity": identity, "dtype": args.dtype, "limit": args.limit}
    check_model(args.out, results, settings)
    labels = None if args.repope is None else read_labels(args.repope)
    of_benchmarks = {}
    for name in sorted(
        args.benchmarks, key=lambda name: name not in POINTING
    ):  # which not every model can do: at once
        own = {"split": args.split, "lmms_eval": None} if name in POINTING else {"split": None}
        of_benchmarks[name] = settings | {"data": digest(name, args)} | {"lmms_eval": lmms_eval_version()} | own
    missing = [
        (name, picture)
        for name, own in of_benchmarks.items()
        for picture in (("real",) if name in POINTING else args.pictures)
        if not is_there(args.out, results, name, picture, own)
    ]

    @functools.cache
    def lm() -> "ImageTextToTextModel":
        from recipes.evaluation.lmms_eval_model import ImageTextToTextModel

        return ImageTextToTextModel(args.model, dtype=args.dtype, device=args.device, batch_size=args.batch_size)

    @functools.cache
    def vlm() -> "Vlm":
        found = load_vlm(args.model)
        move(found, args.dtype, args.device if args.device and state.num_processes == 1 else state.device)
        return found

    for number, (name, picture) in enumerate(missing, start=1):
        asked = {key: of_benchmarks[name][key] for key in SETTINGS[1:]}
        asked |= {"batch_size": args.batch_size, "save_pictures": args.save_pictures}
        journal = Journal(args.out / "answers", f"{name}-{picture}", asked, state.process_index)
        if state.is_main_process:
            there = f" ({len(journal.answers)} answers are there)" * bool(journal.answers)
            print(f"{number} of {len(missing)}: {name}, picture: {picture}{there}", file=sys.stderr, flush=True)
        if name in POINTING:
            ran = look(vlm(), name, args, journal)
        else:
            lm().picture, lm().journal = picture, journal
            ran = run(lm(), name, args)
        if ran is None:
            continue
        records, more = ran
        write_records(records_file(args.out, name, picture), records)
        if (answers := responses(records)) is not None:
            (args.out / f"{name}-{picture}.responses.json").write_text(json.dumps(answers, indent=2))
        store(args.out, {name: {picture: {"settings": of_benchmarks[name], **more}}})
        journal.remove()
    if not state.is_main_process:
        return {}
    found = runs_of(args.out, identity)
    store(args.out, found)
    if args.save_pictures:
        tell_without_pictures(args.out, [(name, p) for name in args.benchmarks for p in found.get(name, ())])
    if labels is not None and "pope" in found:
        found["pope, RePOPE's labels"] = {
            picture: run
            | summary(relabel(read_records(records_file(args.out, "pope", picture)), labels))
            | {"lmms_eval": {}, "tasks": {}}
            for picture, run in found["pope"].items()
        }
    return found


def lmms_eval_version() -> str | None:
    return version("lmms_eval") if find_spec("lmms_eval") else None


def move(vlm: "Vlm", dtype: str, device: Any) -> None:
    """
    Moves a model to a device, and its weights to a type unless it is `"auto"`.

    Raises:
        ValueError: If there is no such type, or the device cannot be used.
    """
    import torch

    kind = None if dtype == "auto" else getattr(torch, dtype, None)
    if dtype != "auto" and not isinstance(kind, torch.dtype):
        raise ValueError(f"`--dtype` is auto or a type of torch's, such as bfloat16, but is {dtype}.")
    try:
        vlm.model.to(device=device, dtype=kind)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`--device {device}` cannot be used here: {str(error).splitlines()[0]}.") from error


def tell_without_pictures(out: Path, runs: Sequence[tuple[str, str]]) -> None:
    """Says of which runs there are records without pictures, which were asked for."""
    for name, picture in runs:
        file = records_file(out, name, picture)
        if picture != "none" and not any("image" in record for record in read_records(file)):
            print(
                f"{file} is of a run without --save_pictures: remove it to run that again, with pictures.",
                file=sys.stderr,
            )
