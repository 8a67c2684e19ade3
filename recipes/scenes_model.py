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
Makes the two checkpoints that the repository ships: a tiny AGE-VLM trained until it answers sensibly, and its twin without
guidance, for comparison.

    python recipes/scenes_model.py [--out runs/scenes_model]

The four stages are the demo's with more steps, and both models train at the same time from the same rows. In the end they
are scored on scenes of the test split and the transfer split, and each is written with its processor, its code, a card and
`metrics.json`: to `recipes/scenes/model/`, where `recipes/ask.py` finds it, and `recipes/scenes/unguided_model/`. A run that
was stopped goes on from its last checkpoints.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.study.plans import LLM_LAYERS, VARIANTS, Scale, plan
from recipes.terminal.tables import plain_table


SCALE = Scale(
    steps={1: 60, 2: 60, 3: 500, 4: 4200},
    learning_rate={1: 3e-3, 2: 3e-3, 3: 2e-3, 4: 1e-3},
    batch_size=16,
    cross_attention_layers=LLM_LAYERS["llama"],
    # Sides and numbers take many answers before they are read from the picture at all.
    shares={"layout": 0.3, "existence": 0.3, "numbers": 0.25, "caption": 0.08, "instruction": 0.07},
    image_size=320,  # numbers and small things are not read from the 8 x 8 cells of 256 pixels
    split="varied",
    positions=True,
    disturbed=True,
    save_steps=250,
)
NUM_IMAGES = 300
GOOD = 0.85  # of the guided model's answers about existence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes_model"), help="folder of the stages")
    args = parser.parse_args()

    from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
    from recipes.publishing.checkpoint import make_card
    from recipes.study.results import measure
    from recipes.study.side_by_side import Task, run_tasks
    from recipes.study.stages import tasks_of
    from recipes.training.record import card_template, public_command, public_name
    from trainers.hub import RECORD_NAME

    start = time.time()
    tasks = tasks_of(args.out, "llama", SCALE, plan(VARIANTS))
    measures = {
        f"{variant}, {split}": Task(measure, (args.out / variant, split, NUM_IMAGES), variant)
        for variant in VARIANTS
        for split in ("test", "transfer")
    }
    done = dict(run_tasks(tasks | measures, processes=2))
    metrics = {place: done[place] for place in measures}
    print(f"\n{plain_table(metrics)}\n\n{time.time() - start:.0f} s")
    existence = metrics[f"{VARIANTS[0]}, test"]["pope_accuracy"]
    if existence < GOOD:
        sys.exit(f"error: {existence:.3f} of the answers about existence are right, {GOOD} should be.")
    for variant, folder in zip(VARIANTS, (TRAINED_MODEL, UNGUIDED_MODEL), strict=True):
        shutil.rmtree(folder, ignore_errors=True)
        AgeVlmForConditionalGeneration.from_pretrained(args.out / variant).save_pretrained(folder)
        AgeVlmProcessor.from_pretrained(args.out / variant).save_pretrained(folder)
        entry = {"command": public_command(sys.argv), "steps": SCALE.steps, "num_test_images": NUM_IMAGES}
        entry |= metrics[f"{variant}, test"]
        entry |= {f"transfer_{name}": value for name, value in metrics[f"{variant}, transfer"].items()}
        (folder / "metrics.json").write_text(json.dumps(entry, indent=2) + "\n")
        shutil.copy(args.out / variant / RECORD_NAME, folder)
        (folder / "README.md").write_text(make_card(folder, public_name(str(folder)), card_template()))
        print(f"see {folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder}")


if __name__ == "__main__":
    main()
