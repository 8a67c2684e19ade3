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
Does where words look tell a wrong answer? What is left when a model does not say what nothing in the picture speaks for.

    python recipes/abstain.py [--model CHECKPOINT] [--out runs/abstain]

Asks for what is and is not in 200 test scenes and has them described, tells false answers and mentions by the score of what
their words look at, by what of the attention lies on nothing, by its spread and by the word's own probability (AUC), and drops
those with the most on nothing, as `recipes/ask.py --abstain` does. Writes OUT.json and, with a curve for each
of the four, OUT.png.
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TRAINED_MODEL), help="checkpoint folder or Hub id of an AGE-VLM")
    parser.add_argument("--num_images", type=int, default=200, help="test scenes")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/abstain"), help="what the files are called but for .json and .png"
    )
    args = parser.parse_args()

    from recipes.drawing.abstaining import save_curves
    from recipes.grounding.abstaining import measure
    from recipes.grounding.tables import abstaining_tables
    from recipes.inside.vlm import AgeVlm, load_vlm
    from recipes.scenes.pictures import sample_scene
    from recipes.scenes.questions import load_questions

    try:
        vlm = load_vlm(args.model)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if not isinstance(vlm, AgeVlm) or not vlm.can_look_away:
        sys.exit(f"error: {args.model} is no AGE-VLM with an attention sink, whose words can look at nothing.")
    size = vlm.model.config.vision_config.image_size
    questions = load_questions("test", args.num_images, size)
    result = measure(vlm, questions, [sample_scene("test", n, 0, size) for n in range(args.num_images)])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_curves(args.out.with_suffix(".png"), result.pop("curves"))
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print("\n\n".join(abstaining_tables(result).values()))


if __name__ == "__main__":
    main()
