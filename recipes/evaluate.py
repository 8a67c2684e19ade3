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
Runs the paper's benchmarks, with, without and with the wrong picture, and prints its Table 2 with a row for the model.

    pip install -e ".[eval]"
    python recipes/evaluate.py --model runs/demo/age-vlm --benchmarks scenes
    accelerate launch recipes/evaluate.py --model me/age-vlm --batch_size 16

lmms-eval asks the questions (its own prompts and data), `recipes/scorers.py` scores the answers. The output folder gets
`<benchmark>-<picture>.jsonl`, one record per question, `results.json` and `results.md`. What is there already is not run
again, so a run that was stopped goes on with the benchmark it was at.

Without the Hub, `--data` takes a folder with `<task>.parquet` files, or `<task>` folders that `datasets` wrote or reads, where
the tasks are those of lmms-eval: hallusion_bench_image, ocrbench, cv_bench_2d, cv_bench_3d, realworldqa, pope.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from recipes.errors import one_sentence
from recipes.scorers import Record, mark, summarize, write_records
from recipes.tables import markdown


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

    from recipes.lmms_eval_model import ImageTextToTextModel


@dataclass(frozen=True)
class Benchmark:
    """Which tasks of lmms-eval a benchmark is, in which folder and split they are, and what its records keep of a row."""

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
}
PAPERS = ("hallusionbench", "ocrbench", "cvbench", "realworldqa", "pope")
PICTURES = {"real": "", "none": "no picture", "swapped": "swapped picture"}

# Column of the paper's Table 2: benchmark, metric of `summarize`, how it is printed
TABLE = {
    "HallusionBench aAcc": ("hallusionbench", "aAcc", "{:.2f}"),
    "fAcc": ("hallusionbench", "fAcc", "{:.2f}"),
    "qAcc": ("hallusionbench", "qAcc", "{:.2f}"),
    "OCRBench scene": ("ocrbench", "Scene Text-centric VQA", "{:.0f}"),
    "key info.": ("ocrbench", "Key Information Extraction", "{:.0f}"),
    "CV-Bench 2D": ("cvbench", "2D", "{:.2f}"),
    "3D": ("cvbench", "3D", "{:.2f}"),
    "RWQA": ("realworldqa", "accuracy", "{:.2f}"),
    "POPE": ("pope", "accuracy", "{:.2%}"),
}
# A dash where the copy of the paper that we read leaves a doubt.
PAPER = {
    "CA-Baseline (paper)": "40.38 13.87 11.21 148 51 0.62 0.50 0.47 85.11",
    "ConvLLaVA (paper)": "24.71 8.96 4.84 117 26 0.59 0.57 0.51 77.76",
    "AGE-VLM (paper)": "43.85 15.32 11.21 - - - - - 87.34",
    "AGE-VLM-LM (paper)": "39.22 11.56 7.91 - - - - - 85.18",
}
# The metric of lmms-eval that asks the same by a rule of its own
LMMS_EVAL = {
    ("ocrbench", "total"): ("ocrbench", "ocrbench_accuracy"),
    ("cvbench", "2D"): ("cv_bench_2d", "cv_bench_acc"),
    ("cvbench", "3D"): ("cv_bench_3d", "cv_bench_acc"),
    ("realworldqa", "accuracy"): ("realworldqa", "exact_match"),
    ("pope", "accuracy"): ("pope", "pope_accuracy"),
    ("pope", "precision"): ("pope", "pope_precision"),
    ("pope", "recall"): ("pope", "pope_recall"),
    ("pope", "f1"): ("pope", "pope_f1_score"),
    ("pope", "yes_ratio"): ("pope", "pope_yes_ratio"),
    ("pope", "accuracy_exact"): ("pope", "pope_accuracy"),
}
NOTES = (
    "lmms-eval's own rules: POPE counts the answers that are yes or no and nothing else, and its yes_ratio is that of the "
    "truth; CV-Bench takes the first letter of the answer; HallusionBench asks GPT-4 (`judge`), which is not done here; "
    "OCRBench's accuracy is the total's share of 1000."
)


# --- Running ---


def manifest() -> "ModelManifest":
    """What lmms-eval's entry point names. It stands here because importing the model's own module imports lmms-eval first."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="age_vlm", chat_class_path="recipes.lmms_eval_model.ImageTextToTextModel")


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
    from lmms_eval.evaluator import simple_evaluate
    from tenacity import RetryError

    benchmark = BENCHMARKS[name]
    tasks = []
    for task in benchmark.tasks:
        tasks.append({"task": task})
        if name == "hallusionbench":
            tasks[-1]["metric_list"] = []  # Each would send every answer to GPT-4.
        if data is not None and name != "scenes":
            tasks[-1] |= local_copy(task, benchmark.split, data)
    folder = Path(__file__).parent / "lmms_eval_tasks"
    if name != "scenes":
        folder = Path(lmms_eval.tasks.__file__).parent / benchmark.folder
    manager = lmms_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    try:
        with lm.accelerator.main_process_first():
            # `simple_evaluate` itself would take changed configurations for those of tasks without chats.
            loaded = manager.load_task_or_group(tasks, task_type="chat")
    except RetryError as error:
        reason = " ".join(str(error.last_attempt.exception()).split()).rstrip(".")
        raise ValueError(f"The data of {name} cannot be loaded: {reason}. `--data` takes local copies.") from error
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
            from recipes.lmms_eval_model import ImageTextToTextModel

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


# --- Tables ---


def table_2(name: str, results: dict[str, dict[str, Any]]) -> str:
    """The paper's Table 2 with a row for every `picture` of ours."""

    def cell(picture: str, benchmark: str, metric: str, form: str) -> str:
        value = results.get(benchmark, {}).get(picture, {}).get("metrics", {}).get(metric)
        return "-" if value is None else form.format(value).rstrip("%")

    rows = [[method, *values.split()] for method, values in PAPER.items()]
    for picture, words in PICTURES.items():
        cells = [cell(picture, *column) for column in TABLE.values()]
        if set(cells) != {"-"}:
            rows.append([", ".join(filter(None, (name, words))), *cells])
    return markdown(["", *TABLE], rows)


def drop_table(results: dict[str, dict[str, Any]]) -> str:
    """Every metric with, without and with the wrong picture, and lmms-eval's own value."""
    rows = []
    for name, runs in results.items():
        first = next(iter(runs.values()))
        for metric, value in first["metrics"].items():
            form = "{:.0f}" if isinstance(value, int) else "{:.2f}" if name == "hallusionbench" else "{:.4f}"
            values = {picture: run["metrics"][metric] for picture, run in runs.items() if metric in run["metrics"]}
            cells = [form.format(values[picture]) if picture in values else "-" for picture in PICTURES]
            drops = [
                form.format(values["real"] - values[picture]) if {"real", picture} <= values.keys() else "-"
                for picture in ("none", "swapped")
            ]
            task, theirs = LMMS_EVAL.get((name, metric), ("age_vlm_scenes", metric))
            own = runs.get("real", first)["lmms_eval"].get(task, {}).get(theirs)
            own = "judge" if name == "hallusionbench" else "-" if own is None else f"{own:.4f}"
            rows.append([f"{name} {metric}", cells[0], cells[1], drops[0], cells[2], drops[1], own])
    header = ["", "real picture", "none", "drop", "swapped", "drop", "lmms-eval"]
    return markdown(header, rows)


def report(name: str, results: dict[str, dict[str, Any]]) -> str:
    """Both tables and what there is to know about them."""
    counts = ", ".join(f"{benchmark} {next(iter(runs.values()))['questions']}" for benchmark, runs in results.items())
    limit = next(iter(next(iter(results.values())).values()))["settings"]["limit"]
    only = f" These are only the first {limit} of each task: too few to compare." if limit else ""
    parts = [drop_table(results), f"Questions: {counts}.{only} {NOTES}"]
    if not results.keys().isdisjoint(PAPERS):
        parts = [table_2(name, results), *parts]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id of any image-text-to-text model")
    parser.add_argument("--out", type=Path, help="output folder; runs/evaluation/ and the model's name by default")
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=PAPERS, metavar="NAME")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES, default=list(PICTURES), help="all three by default")
    parser.add_argument("--limit", type=int, help="questions per task of lmms-eval, to try it out")
    parser.add_argument("--batch_size", type=int, default=8, help="questions at a time")
    parser.add_argument("--data", type=Path, help="folder with local copies of the data")
    parser.add_argument("--dtype", default="auto", help="of the weights; the checkpoint's own by default")
    parser.add_argument("--device", help="cuda, cpu, ...; a GPU if there is one by default")
    parser.add_argument("--save_pictures", action="store_true", help="save small copies, for recipes/compare.py")
    args = parser.parse_args()
    args.out = args.out or Path("runs/evaluation", Path(args.model).name)
    if importlib.util.find_spec("lmms_eval") is None:
        sys.exit('error: lmms-eval is not installed. Run `pip install -e ".[eval]"`.')
    if args.limit is not None and args.limit < 1:
        sys.exit(f"error: `--limit` is a number of questions, but is {args.limit}.")
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")  # lmms-eval tells every step
    with one_sentence():
        results = evaluate(args)
    if PartialState().is_main_process:
        tables = report(args.out.name, results)
        (args.out / "results.md").write_text(f"{tables}\n")
        print(tables)


if __name__ == "__main__":
    main()
