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
Told where to look: of two objects that are alike, does a model speak of the one that it is told to look at?

    python recipes/told.py [--model CHECKPOINT] [--out runs/told.json]

Asks where the object is, of all pairs in 400 test scenes that stand on either side; each of both is pointed at once, with its
mask, the box around it or a point of it, by `processor.get_visual_bias`. Who is not told has one half by chance.
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TRAINED_MODEL), help="checkpoint folder or Hub id")
    parser.add_argument("--num_images", type=int, default=400, help="test scenes to look through")
    parser.add_argument("--out", type=Path, default=Path("runs/told.json"), help="JSON file to write")
    args = parser.parse_args()

    from recipes.answering.checkpoint import load_checkpoint
    from recipes.grounding.tables import told_table
    from recipes.grounding.told import measure, two_of_a_kind

    try:
        model, processor = load_checkpoint(args.model)
    except ValueError as error:
        sys.exit(f"error: {error}")
    pointed = two_of_a_kind("test", args.num_images, model.config.vision_config.image_size)
    if not pointed:
        sys.exit(f"error: {args.num_images} scenes have no pair that stands on either side: look through more.")
    result = {"num_pointed": len(pointed), "measured": measure(model, processor, pointed)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(told_table(result))


if __name__ == "__main__":
    main()
