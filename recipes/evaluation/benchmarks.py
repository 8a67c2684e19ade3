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
import hashlib
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import Record, mark, write_records


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

    from recipes.evaluation.lmms_eval_model import ImageTextToTextModel


@dataclass(frozen=True)
class Benchmark:
    """
    Which tasks of lmms-eval a benchmark is, in which folder (none of lmms-eval's for our own) and split they are, and what
    its records keep of a row.
    """

    folder: str
    tasks: tuple[str, ...]
    columns: tuple[str, ...] = ()
    split: str = "test"
    answer: str = "answer"


BENCHMARKS = {
    "hallusionbench": Benchmark(
        "hallusion_bench",
        ("hallusion_bench_image",),
        ("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input"),
        split="image",
        answer="gt_answer",
    ),
    "ocrbench": Benchmark("ocrbench", ("ocrbench",), ("dataset", "question_type")),
    "cvbench": Benchmark("cv_bench", ("cv_bench_2d", "cv_bench_3d"), ("type", "task", "source", "choices")),
    "realworldqa": Benchmark("realworldqa", ("realworldqa",)),
    "pope": Benchmark("pope", ("pope",), ("category",)),
    "scenes": Benchmark("", ("age_vlm_scenes",), ("kind",)),
    "scenes_transfer": Benchmark("", ("age_vlm_scenes_transfer",), ("kind",)),
}
EXISTENCE = ("pope", "scenes", "scenes_transfer")  # ask whether something is there, also when it is not
PAPERS = ("hallusionbench", "ocrbench", "cvbench", "realworldqa", "pope")
PICTURES = {"real": "", "none": "no picture", "swapped": "swapped picture"}


def manifest() -> "ModelManifest":
    """What lmms-eval's entry point names. It stands here because importing the model's own module imports lmms-eval first."""
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


def run(
    lm: "ImageTextToTextModel", name: str, limit: int | None, data: Path | None, out: Path, save_pictures: bool
) -> tuple[list[Record], dict[str, dict[str, float]]] | None:
    """
    The records of one benchmark and, for each of its tasks, lmms-eval's own metrics; None on all processes but the first.

    Raises:
        ValueError: If the data cannot be loaded.
    """
    import lmms_eval.tasks  # here, because a table of what is there needs none of it
    from accelerate.utils import gather_object
    from lmms_eval.evaluator import simple_evaluate
    from tenacity import RetryError

    benchmark = BENCHMARKS[name]
    tasks = []
    for task in benchmark.tasks:
        tasks.append({"task": task})
        if name == "hallusionbench":
            tasks[-1]["metric_list"] = []  # Each would send every answer to GPT-4.
        if data is not None and benchmark.folder:
            tasks[-1] |= local_copy(task, benchmark.split, data)
    folder = Path(__file__).parents[1] / "scenes/lmms_eval_tasks"
    if benchmark.folder:
        folder = Path(lmms_eval.tasks.__file__).parent / benchmark.folder
    manager = lmms_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    try:
        with lm.accelerator.main_process_first():
            # `simple_evaluate` itself would take changed configurations for those of tasks without chats.
            loaded = manager.load_task_or_group(tasks, task_type="chat")
    except RetryError as error:
        reason = " ".join(str(error.last_attempt.exception()).split()).rstrip(".")
        raise ValueError(f"The data of {name} cannot be loaded: {reason}. `--data` takes local copies.") from error
    lm.asks_what_is_there, lm.on_nothing = name in EXISTENCE, {}
    lm.clean = lambda: None  # It would take the model away after the first benchmark.
    with redirect_stdout(sys.stderr):
        results = simple_evaluate(
            model=lm,
            tasks=list(loaded.values()),
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            # where tasks write files of their own; scoring does not need the pictures again
            cli_args=argparse.Namespace(output_path=str(out / "lmms_eval" / lm.picture), process_with_media=False),
        )
    on_nothing = dict(gather_object(list(lm.on_nothing.items())))
    if results is None:
        return None
    records = []
    for task in benchmark.tasks:
        for sample in sorted(results["samples"][task], key=lambda sample: sample["doc_id"]):
            doc = sample["doc"]
            record = {"benchmark": name, "id": f"{task}-{sample['doc_id']}", "question": doc["question"]}
            record |= {"answer": doc[benchmark.answer], "prediction": sample["filtered_resps"][0].strip()}
            record |= {column: doc[column] for column in benchmark.columns}
            record["correct"] = mark(record)
            if (task, sample["doc_id"]) in on_nothing:
                record["on_nothing"] = on_nothing[task, sample["doc_id"]]
            if save_pictures:
                record["image"] = save(lm.task_dict[task][benchmark.split][sample["doc_id"]]["image"], out)
            records.append(record)
    metrics = {
        task: {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, (int, float))}
        for task, values in results["results"].items()
    }
    return records, metrics


def save(image: Any, out: Path) -> str:
    """Saves a picture, at most 512 pixels wide and high, once for all its questions; returns its path from `out`."""
    image = image.convert("RGB")
    path = Path("pictures", f"{hashlib.sha256(image.tobytes()).hexdigest()[:16]}.jpg")
    if not (out / path).exists():
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        image.thumbnail((512, 512))
        image.save(out / path, quality=90)
    return str(path)


def weights_of(model: str) -> int:
    """When the weights in a checkpoint folder were last written, in ns; 0 of a Hub id."""
    return max((file.stat().st_mtime_ns for file in Path(model).glob("*.safetensors")), default=0)


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """
    Runs what is missing in the output folder, and returns what `results.json` then has of this model and these settings: for
    each benchmark and each `picture` the number of `questions`, our metrics (`metrics`) and lmms-eval's (`lmms_eval`).
    """
    file = args.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    settings = {"model": args.model, "weights": weights_of(args.model), "dtype": args.dtype, "limit": args.limit}
    settings["data"] = str(args.data) if args.data else None
    missing = [
        (name, picture)
        for name in args.benchmarks
        for picture in args.pictures
        if results.get(name, {}).get(picture, {}).get("settings") != settings
        or not (args.out / f"{name}-{picture}.jsonl").exists()
    ]
    lm = None
    for number, (name, picture) in enumerate(missing, start=1):
        if lm is None:
            from recipes.evaluation.lmms_eval_model import ImageTextToTextModel

            lm = ImageTextToTextModel(args.model, dtype=args.dtype, device=args.device, batch_size=args.batch_size)
        lm.picture = picture
        if lm.rank == 0:
            print(f"{number} of {len(missing)}: {name}, picture: {picture}", file=sys.stderr, flush=True)
        ran = run(lm, name, args.limit, args.data, args.out, args.save_pictures)
        if ran is None:
            continue
        records, metrics = ran
        write_records(args.out / f"{name}-{picture}.jsonl", records)
        entry = {"settings": settings, "questions": len(records), "metrics": summarize(records), "lmms_eval": metrics}
        results.setdefault(name, {})[picture] = entry
        unfinished = file.with_name("results.json.unfinished")
        unfinished.write_text(json.dumps(results, indent=2))
        unfinished.replace(file)
    same = {
        name: {picture: run for picture, run in runs.items() if run["settings"] == settings}
        for name, runs in results.items()
    }
    return {name: runs for name, runs in same.items() if runs}
