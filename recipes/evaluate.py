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
    python recipes/evaluate.py --model runs/demo/age-vlm-lm --benchmarks scenes
    accelerate launch recipes/evaluate.py --model me/age-vlm --batch_size 16

lmms-eval asks the questions (its own prompts and data), `recipes/scorers.py` scores the answers. The output folder
gets `<benchmark>-<picture>.jsonl`, one record per question, `results.json`, and of all that it has of the model
`results.md` and `page.html`. What is there already is not asked again, as long as the checkpoint's files, the options
and the questions are the same, wherever they lie: a run that was stopped goes on with the batch that it was at. What a
run would replace with fewer or other questions stays: it needs another folder.

Without the Hub, `--data` takes a folder with `<task>.parquet` files, or `<task>` folders that `datasets` wrote or
reads, where the tasks are those of lmms-eval: hallusion_bench_image, ocrbench, cv_bench_2d, cv_bench_3d, realworldqa,
pope, mme, mmvp, naturalbench, coco_cap_chair. `amber_generative`, `amber_discriminative` and `mmhal` need it, with
`amber/` or `mmhal/` as their authors publish them (`recipes/evaluation/published.py`); the answers are also saved as
the authors' scripts read them (`<benchmark>-<picture>.responses.json`).

`refcoco_pointing` and `flickr30k_pointing` ask no question, but where a phrase looks: of an AGE-VLM by its guided
heads, of any other VLM by its attention to the picture. They need `--data`, with `refcoco/` (refs*.p, instances.json,
images) or `flickr30k/` (Sentences, Annotations, images, test.txt), as their authors publish them, and not lmms-eval.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from recipes.evaluation.benchmarks import BENCHMARKS, PAPERS
from recipes.evaluation.records import POINTING
from recipes.evaluation.results import PICTURES
from recipes.terminal.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder or Hub id of any image-text-to-text model")
    parser.add_argument("--out", type=Path, help="output folder; runs/evaluation/ and the model's path by default")
    parser.add_argument("--benchmarks", nargs="+", choices=(*BENCHMARKS, *POINTING), default=PAPERS, metavar="NAME")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES, default=list(PICTURES), help="all three by default")
    parser.add_argument("--limit", type=int, help="questions per task, of each kind as many, to try it out")
    parser.add_argument("--batch_size", type=int, default=8, help="questions at a time")
    parser.add_argument("--data", type=Path, help="folder with local copies of the data")
    parser.add_argument("--split", default="test", help="of RefCOCO's and Flickr30k Entities' phrases")
    parser.add_argument("--repope", type=Path, help="folder with RePOPE's labels, to score POPE by them as well")
    parser.add_argument("--dtype", default="auto", help="of the weights; the checkpoint's own by default")
    parser.add_argument("--device", help="cuda, cpu, ...; a GPU if there is one by default")
    parser.add_argument(
        "--save_pictures", action="store_true", help="save small copies and where questions look, for pages"
    )
    args = parser.parse_args()

    from accelerate import PartialState

    from recipes.evaluation.benchmarks import evaluate
    from recipes.evaluation.report import report, save_page
    from recipes.inside.vlm import load_vlm

    args.out = args.out or Path("runs/evaluation", "--".join(Path(args.model).parts).strip("-/."))
    if importlib.util.find_spec("lmms_eval") is None and not set(args.benchmarks) <= set(POINTING):
        sys.exit('error: lmms-eval is not installed. Run `pip install -e ".[eval]"`.')
    if args.limit is not None and args.limit < 1:
        sys.exit(f"error: `--limit` is a number of questions, but is {args.limit}.")
    if importlib.util.find_spec("loguru"):
        from loguru import logger

        logger.remove()
        logger.add(sys.stderr, level="WARNING")  # lmms-eval tells every step
    with one_sentence():
        results = evaluate(args, load_vlm)
    if PartialState().is_main_process:
        tables = report(args.out.name, results)
        (args.out / "results.md").write_text(f"{tables}\n")
        save_page(args.out / "page.html", args.out.name, results)
        print(tables)


if __name__ == "__main__":
    main()
