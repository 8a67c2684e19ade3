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
Compares runs question by question: who is right where, whether that can be chance, what was said, and where it looked.

    python recipes/compare.py runs/evaluation/baseline runs/evaluation/age-vlm --names baseline AGE-VLM \
        --out sheet.png --html page.html --rows 12 --only different

Each is a folder that `recipes/evaluate.py` wrote, of which the benchmarks that all of them have are compared, or a
file of records as `recipes/scorers.py` describes them. Every run is compared with the first: how many questions only
one of the two gets right, the exact sign-flip test of that, and the differences of the benchmark's metrics with the
95% interval of a paired bootstrap. Both go by pictures, whose questions are right or wrong together (`picture` or
`image` of the records, or the columns by which their benchmark names pictures; without them every question is taken as
one by itself). The sheet and the page are as the paper's Tables 3 and 5: picture, question, truth and every model's
answer. The page also has the tables, the right answers of each category as bars, and where each model looked, if
`evaluate.py` was told to `--save_pictures`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.terminal.errors import one_sentence


END = "-real.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", type=Path, nargs="+", help="two or more folders of evaluations, or JSONL files of records"
    )
    parser.add_argument("--names", nargs="+", help="names of the runs; without it, their folders' or files' names")
    parser.add_argument("--out", type=Path, help="PNG file for the answer sheet")
    parser.add_argument("--html", type=Path, help="file for the page")
    parser.add_argument("--rows", type=int, default=8, help="questions of each benchmark on sheet and page")
    parser.add_argument("--only", choices=["different"], help="show questions that some models get right, some wrong")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args()

    from recipes.evaluation.comparison import align, choose, counts_table, differences_table, differing
    from recipes.evaluation.page import save_evaluation_page
    from recipes.evaluation.records import read_with_pictures
    from recipes.evaluation.sheet import save_sheet

    stems = [run.stem for run in args.runs]
    names = args.names or (stems if len(set(stems)) == len(stems) else [str(run) for run in args.runs])
    if len(args.runs) < 2 or len(set(names)) != len(args.runs):
        parser.error("pass two or more runs, and to --names a different name for each")
    if args.resamples < 1:
        parser.error(f"--resamples is a number of draws, but is {args.resamples}")
    with one_sentence():
        printed, shown, benchmarks = [], [], {}
        for benchmark, files in common(args.runs).items():
            records = {name: read_with_pictures(file) for name, file in zip(names, files, strict=True)}
            questions, tables = align(records), []
            for n, name in enumerate(names[1:], start=1):
                pair, both = (names[0], name), [(answers[0], answers[n]) for answers in questions]
                differences = differences_table(
                    pair, both, args.resamples, args.seed
                )  # says what is not one benchmark
                tables += [counts_table(pair, both), differences]
            some = choose(differing(questions) if args.only else questions, args.rows)
            printed += [f"## {benchmark}"] * bool(benchmark) + [str(table) for table in tables]
            shown += some
            benchmarks[benchmark or questions[0][0]["benchmark"]] = (tables, questions, some)
        print("\n\n".join(printed))
        if args.out:
            save_sheet(args.out, names, shown)
        if args.html:
            save_evaluation_page(args.html, " and ".join(names), names, benchmarks, args.resamples, args.seed)


def common(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """
    The files of all runs by benchmark, of folders of evaluations those with the right picture; by no name if the runs
    are files.

    Raises:
        ValueError: If some are folders and some are files, or the folders have no benchmark in common.
    """
    folders = [run.is_dir() for run in runs]
    if not any(folders):
        return {"": list(runs)}
    if not all(folders):
        raise ValueError("Folders of evaluations can be compared, or files of records, not one with the other.")
    found = [{file.name.removesuffix(END): file for file in sorted(run.glob(f"*{END}"))} for run in runs]
    names = [name for name in found[0] if all(name in files for files in found)]
    if not names:
        has = "; ".join(f"{run} has {', '.join(files) or 'none'}" for run, files in zip(runs, found, strict=True))
        raise ValueError(f"There is no benchmark that all of these were evaluated on: {has}.")
    return {name: [files[name] for files in found] for name in names}


if __name__ == "__main__":
    main()
