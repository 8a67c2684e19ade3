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
What is there to be read in a checkpoint: do its visual tokens and its layers know a number and a side, said or not?

    python recipes/probe.py [CHECKPOINT ...] [--out runs/probe.json]

Fits a linear probe on questions about 1,500 scenes for each place where it could stand, and measures it on those of the
evaluation's scenes, beside what the model answers.
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=[TRAINED_MODEL, UNGUIDED_MODEL], help="checkpoint folders or Hub ids"
    )
    parser.add_argument("--num_fitted", type=int, default=1500, help="scenes to fit on")
    parser.add_argument("--num_images", type=int, default=300, help="scenes to measure on")
    parser.add_argument("--out", type=Path, default=Path("runs/probe.json"), help="JSON file to write")
    args = parser.parse_args()
    if min(args.num_fitted, args.num_images) < 20:
        sys.exit(
            "error: `--num_fitted` and `--num_images` have to be 20 or more: fewer scenes lack kinds of questions."
        )

    from recipes.answering.checkpoint import load_checkpoint
    from recipes.grounding.probing import probe
    from recipes.grounding.tables import probe_table
    from recipes.training.record import public_name

    result = {}
    for name in map(str, args.models):
        try:
            model, processor = load_checkpoint(name)
        except ValueError as error:
            sys.exit(f"error: {error}")
        result[public_name(name)] = probe(model, processor, args.num_fitted, args.num_images)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(probe_table(result))


if __name__ == "__main__":
    main()
