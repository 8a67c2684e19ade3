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
Makes the checkpoint that the repository ships: the demo's AGE-VLM, trained until it answers sensibly.

    python recipes/scenes_model.py [--out runs/scenes_model]

The four stages are the demo's with more steps. In the end the model is scored on scenes of the test split and of the
transfer split (other drawings and backgrounds; its metrics begin with `transfer_`), and model, processor, their code, a card
and `metrics.json` are written to `recipes/scenes/model/`, where `recipes/ask.py` finds them. A run that was stopped goes on
from its last checkpoint.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from recipes.scenes import TRAINED_MODEL
from recipes.study.plans import IMAGE_SIZE, Scale, plan
from recipes.terminal.tables import plain_table


SCALE = Scale(
    steps={1: 60, 2: 60, 3: 500, 4: 3000},
    learning_rate={1: 3e-3, 2: 3e-3, 3: 2e-3, 4: 1e-3},
    batch_size=16,
    cross_attention_layers=[1, 3, 5],
    save_steps=250,
)
NUM_IMAGES = 300
GOOD = 0.85  # of the answers about existence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes_model"), help="folder of the stages")
    args = parser.parse_args()

    from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
    from recipes.publishing.checkpoint import make_card
    from recipes.scenes.evaluation import evaluate_all
    from recipes.study.stages import train_all
    from recipes.terminal.progress import show_own_bars_only
    from recipes.training.record import card_template, public_command, public_name
    from trainers.hub import RECORD_NAME

    show_own_bars_only()
    start = time.time()
    train_all(args.out, "llama", SCALE, plan(("age-vlm",)))
    model = AgeVlmForConditionalGeneration.from_pretrained(args.out / "age-vlm")
    processor = AgeVlmProcessor.from_pretrained(args.out / "age-vlm")
    metrics, transfer = (
        evaluate_all(model, processor, split, NUM_IMAGES, IMAGE_SIZE).metrics for split in ("test", "transfer")
    )
    print(f"\n{plain_table({'test': metrics, 'transfer': transfer})}\n\n{time.time() - start:.0f} s")
    if metrics["pope_accuracy"] < GOOD:
        sys.exit(f"error: {metrics['pope_accuracy']:.3f} of the answers about existence are right, {GOOD} should be.")
    shutil.rmtree(TRAINED_MODEL, ignore_errors=True)
    model.save_pretrained(TRAINED_MODEL)
    processor.save_pretrained(TRAINED_MODEL)
    entry = {"command": public_command(sys.argv), "steps": SCALE.steps, "num_test_images": NUM_IMAGES, **metrics}
    entry |= {f"transfer_{name}": value for name, value in transfer.items()}
    (TRAINED_MODEL / "metrics.json").write_text(json.dumps(entry, indent=2) + "\n")
    shutil.copy(args.out / "age-vlm" / RECORD_NAME, TRAINED_MODEL)
    (TRAINED_MODEL / "README.md").write_text(
        make_card(TRAINED_MODEL, public_name(str(TRAINED_MODEL)), card_template())
    )
    print(
        f"see {TRAINED_MODEL.relative_to(Path.cwd()) if TRAINED_MODEL.is_relative_to(Path.cwd()) else TRAINED_MODEL}"
    )


if __name__ == "__main__":
    main()
