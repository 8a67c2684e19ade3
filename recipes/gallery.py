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
Draws what the model that comes along can do and what it cannot, beside its twin without guidance.

    python recipes/gallery.py [--out docs/gallery]

Asks both about test scenes and writes `hero.png`, the first question about two pictures, one that shows the thing and one that does
not, to which just one of them gives two right answers, with what the two measure up to; for each kind of question a sheet of the
first `--questions`, answered right or wrong; and `page.md`, which shows them. Nobody chooses: the questions come in the order of
the test split.
"""

import argparse
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.terminal.startup import lasting_imports


COLUMNS = {UNGUIDED_MODEL.name: "without guidance", TRAINED_MODEL.name: "with guidance"}
KINDS = {  # of the scenes' questions
    "adversarial": "Is it there? Objects that often stand beside what is",
    "count": "How many?",
    "relation": "On which side?",
}
PAGE = """# What it can do, and what it cannot

Test scenes, which training never showed, and the model that comes along beside its twin without guidance, which saw the same rows in
as many steps. The questions are the first {number} of each kind in the test split, as they come; below each answer is where the
named words look, in multiples of even attention. `python recipes/gallery.py` made this page.

![one question about two pictures, and what both measure up to](hero.png)

{sheets}"""
SHEET = """## {title}

{right}

![{title}](questions-{kind}.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"), help="folder to write to")
    parser.add_argument("--questions", type=int, default=4, help="questions of each kind that are drawn")
    parser.add_argument("--num_images", type=int, default=200, help="test scenes that both are asked about")
    args = parser.parse_args()
    if not 1 <= args.questions <= 20:
        sys.exit("error: `--questions` has to be from 1 to 20.")
    if args.num_images < 20:
        sys.exit("error: `--num_images` has to be 20 or more: fewer scenes lack kinds of questions.")

    with lasting_imports():
        from transformers.utils.logging import disable_progress_bar

        from recipes.drawing.attention import save_attention_sheet
        from recipes.drawing.benefit import save_benefit
        from recipes.scenes.evaluation import as_record, summarize
        from recipes.study.results import benefit, evaluate, sheet_row, sheet_rows

    disable_progress_bar()
    folders = {folder.name: folder for folder in (UNGUIDED_MODEL, TRAINED_MODEL)}
    judged = {name: evaluate(folder, args.num_images) for name, folder in folders.items()}
    names = list(COLUMNS.values())
    args.out.mkdir(parents=True, exist_ok=True)
    measures = benefit(judged, {name: summarize(of_model) for name, of_model in judged.items()}, COLUMNS)
    save_benefit(args.out / "hero.png", sheet_rows(judged, COLUMNS, num_rows=2), names, measures)

    sheets = []
    first = judged[TRAINED_MODEL.name]
    for kind, title in KINDS.items():
        asked = [n for n, one in enumerate(first) if one.question["kind"] == kind]
        marks = {
            name: [as_record(of_model[n].question, str(n), of_model[n].prediction)["correct"] for n in asked]
            for name, of_model in judged.items()
        }
        rows = [sheet_row(judged, COLUMNS, n) for n in asked[: args.questions]]
        save_attention_sheet(args.out / f"questions-{kind}.png", rows, names)
        counts = [f"{COLUMNS[name]}: {sum(right)} of {len(asked)} right" for name, right in marks.items()]
        sheets.append(SHEET.format(title=title, kind=kind, right="; ".join(counts) + "."))
    page = PAGE.format(number=args.questions, sheets="\n".join(sheets))
    (args.out / "page.md").write_text(page, encoding="utf-8")
    print(f"{args.out}/page.md")


if __name__ == "__main__":
    main()
