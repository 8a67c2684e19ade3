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
Fits how boxes, points and scores are read from a checkpoint's attention, and says how good they are.

    python recipes/readout.py [--model CHECKPOINT] [--save] [--out runs/readout.json]

The readout has four numbers: from which share of the attention's maximum a place belongs to a region, and the logistic
function that makes a chance of how much attention lies there, and how much on nothing. They are fitted on the phrases of questions about 200 scenes and
measured on those of 200 others. `--save` keeps them in the checkpoint's processor_config.json, where
`processor.post_process_grounded_object_detection` finds them.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from recipes.scenes import TRAINED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TRAINED_MODEL), help="checkpoint folder or Hub id")
    parser.add_argument("--num_images", type=int, default=200, help="scenes to fit on, and to measure on")
    parser.add_argument("--save", action="store_true", help="keep the readout in the checkpoint's folder")
    parser.add_argument("--out", type=Path, default=Path("runs/readout.json"), help="JSON file to write")
    args = parser.parse_args()
    if args.save and not Path(args.model).is_dir():
        sys.exit(f"error: `--save` needs a checkpoint's folder, but {args.model} is none.")

    from recipes.answering.checkpoint import load_checkpoint
    from recipes.grounding.readout import compare, fit, look
    from recipes.grounding.tables import readout_tables

    try:
        model, processor = load_checkpoint(args.model)
        image_size = model.config.vision_config.image_size
        looked = {seed: look(model, processor, "test", args.num_images, seed, image_size) for seed in (1, 0)}
        readout = fit(processor, looked[1])
    except ValueError as error:
        sys.exit(f"error: {error}")
    result = {"readout": asdict(readout), "num_images": args.num_images}
    result["measured"] = compare(processor, looked[0], readout)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print("\n\n".join(readout_tables(result).values()))
    if args.save:
        processor.grounding_readout = asdict(readout)
        processor.save_pretrained(args.model)
        print(f"\nkept in {args.model}")


if __name__ == "__main__":
    main()
