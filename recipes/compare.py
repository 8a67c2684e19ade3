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
Compares runs of a benchmark question by question: who is right where, whether that can be chance, and what was said.

    python recipes/compare.py runs/ca-baseline/pope.jsonl runs/age-vlm/pope.jsonl --names baseline AGE-VLM         --out sheet.png --html page.html --rows 12 --only different

The files hold records as `recipes/scorers.py` describes them. Every run is compared with the first: how many questions only
one of the two gets right, the exact McNemar test of that, and the differences of the benchmark's metrics with the 95%
interval of a paired bootstrap. The sheet and the page are as the paper's Tables 3 and 5: picture, question, truth and every
model's answer.
"""

import argparse
from pathlib import Path

from recipes.terminal.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="two or more JSONL files of records")
    parser.add_argument("--names", nargs="+", help="names of the runs; without it, their files' names")
    parser.add_argument("--out", type=Path, help="PNG file for the answer sheet")
    parser.add_argument("--html", type=Path, help="file for the page")
    parser.add_argument("--rows", type=int, default=8, help="questions on sheet and page")
    parser.add_argument("--only", choices=["different"], help="show questions that some models get right, some wrong")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args()

    from recipes.evaluation.comparison import align, choose, counts_table, differences_table
    from recipes.evaluation.records import read_records
    from recipes.evaluation.sheet import save_answers_page, save_sheet

    stems = [file.stem for file in args.files]
    names = args.names or (stems if len(set(stems)) == len(stems) else [str(file) for file in args.files])
    if len(args.files) < 2 or len(set(names)) != len(args.files):
        parser.error("pass two or more files, and to --names a different name for each")
    with one_sentence():
        runs = {name: read_records(file) for name, file in zip(names, args.files, strict=True)}
        for file, records in zip(args.files, runs.values(), strict=True):
            for record in records:
                if "image" in record:
                    record["image"] = str(file.parent / record["image"])
        questions = align(runs)
        tables = []
        for n, name in enumerate(names[1:], start=1):
            pair, both = (names[0], name), [(answers[0], answers[n]) for answers in questions]
            differences = differences_table(pair, both, args.resamples, args.seed)  # says what is not one benchmark
            tables += [counts_table(pair, both), differences]
        print("\n\n".join(tables))
        shown = choose(questions, args.rows, args.only == "different")
        if args.out:
            save_sheet(args.out, names, shown)
        if args.html:
            save_answers_page(args.html, names, shown, "\n\n".join(tables))


if __name__ == "__main__":
    main()
