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
Writes scenes as a data set folder, or as a contact sheet where `--out` ends in .png.

    python recipes/look_at_scenes.py --out scenes_train --split train --task caption --num-rows 1000
    python recipes/look_at_scenes.py --out sheet.png --split test --num-rows 20
"""

import argparse
from pathlib import Path

from recipes.scenes.classes import SPLITS, TASKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder, or a .png file for a contact sheet")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--task", choices=TASKS, default="caption")
    parser.add_argument("--num-rows", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from recipes.scenes.rows import load_scenes
    from recipes.scenes.sheet import draw_sheet

    settings = (args.split, args.task, args.num_rows, args.image_size, args.seed)
    if args.out.suffix == ".png":
        draw_sheet(*settings).save(args.out)
    else:
        load_scenes(*settings).save_to_disk(args.out)
    print(f"{args.num_rows} scenes written to {args.out}")


if __name__ == "__main__":
    main()
