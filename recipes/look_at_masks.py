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
Shows masks as `recipes/masks.py` made them: pictures, the texts and where they are said to be, the doubtful ones first.

    python recipes/look_at_masks.py --masks data/captions_with_masks --out runs/masks

Writes a contact sheet (`sheet.png`) and a page to browse (`index.html`, one file that holds its pictures).
"""

import argparse
from pathlib import Path

from recipes.terminal.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=Path, required=True, help="folder that recipes/masks.py wrote")
    parser.add_argument("--out", type=Path, default=Path("runs/masks"), help="folder for sheet and page")
    parser.add_argument("--number", type=int, default=30, help="masks of each kind on the page")
    parser.add_argument("--seed", type=int, default=0, help="shows others of the last kind")
    args = parser.parse_args()

    from recipes.segmentation.review import NOWHERE, choose, read_entries, save_masks_page, save_sheet, show

    with one_sentence():
        entries = read_entries(args.masks)
        shown = {
            kind: [show(entry) for entry in chosen] for kind, chosen in choose(entries, args.number, args.seed).items()
        }
        args.out.mkdir(parents=True, exist_ok=True)
        save_sheet(args.out / "sheet.png", shown)
        save_masks_page(args.out / "index.html", shown)
    num_masks = sum(entry.share is not None for entry in entries)
    counts = f"{num_masks:,} masks, {len(entries) - num_masks:,} names of what is {NOWHERE}"
    print(f"{counts}; see {args.out}/sheet.png and {args.out}/index.html")


if __name__ == "__main__":
    main()
