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
Zooming in: what a second look at the part that the words look at is worth, and costs.

    python recipes/zoom.py [--model CHECKPOINT] [--out runs/zoom.json]

Asks the questions of 200 test scenes that lie on a half, a third and a quarter of the side of pictures as many times as large as
the model reads, so that one look loses most of their pixels; and, to see whether zooming in does harm, of scenes that fill
such a picture. In one pass, and in two: with a part of the picture beside the whole, the one that the words look at, as
`recipes/ask.py --zoom` has it, or any of that size; and that part alone.
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TRAINED_MODEL), help="checkpoint folder or Hub id")
    parser.add_argument("--num_images", type=int, default=200, help="test scenes")
    parser.add_argument("--out", type=Path, default=Path("runs/zoom.json"), help="JSON file to write")
    args = parser.parse_args()

    from recipes.answering.checkpoint import load_checkpoint
    from recipes.grounding.tables import zoom_table
    from recipes.grounding.zooming import measure

    try:
        model, processor = load_checkpoint(args.model)
    except ValueError as error:
        sys.exit(f"error: {error}")
    result = {"num_images": args.num_images, "measured": measure(model, processor, args.num_images)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(zoom_table(result))


if __name__ == "__main__":
    main()
