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
Scores the answers of a model to benchmark questions, each benchmark by one written rule and without a paid judge.

    python recipes/scorers.py runs/pope.jsonl runs/cvbench.jsonl [--judge Qwen/Qwen2.5-7B-Instruct]

A *record* is one question with one answer, a line of a JSONL file:

| field        | content                                                                                          |
|--------------|--------------------------------------------------------------------------------------------------|
| `benchmark`  | one of `COLUMNS`                                                                                 |
| `id`         | string, unique in the benchmark                                                                  |
| `question`   | what was asked                                                                                   |
| `answer`     | the truth as the benchmark writes it: "yes", "0", "(B)", "Downhill"; for OCRBench all accepted   |
| `prediction` | what the model wrote                                                                             |
| `correct`    | whether that is right by the rule below; made anew, and said where another one was stored        |
| `judged`     | optional: whether a judge says that it is right                                                  |
| `rating`     | optional: 0 to 6, what a judge gives an answer of MMHal-Bench                                    |
| `on_nothing` | optional: share of the attention of what is asked about that looks at nothing, of 1              |
| `picture`    | optional: what the question's picture is told from others by                                     |
| `image`      | optional: file of the picture that was shown, relative to the JSONL file and in its folder       |
| others       | the benchmark's own columns, of which `COLUMNS` lists those that its metrics need                |

When a prediction is right:

| benchmark              | rule                                                                                       |
|------------------------|--------------------------------------------------------------------------------------------|
| all                    | thoughts (`<think>...</think>`) and marks of Markdown are taken away before                |
| `pope`                 | as its authors': "no" if one of the words No, not and no stands in the first sentence,     |
|                        | else "yes". So "Yes. No." and an empty answer say yes, "Yes, there is no doubt" says no    |
| `hallusionbench`       | the words yes and no in any case: exactly one of the two stands in the whole answer, and   |
|                        | it is the right one, as in none of "Yes. No.", "Yes, there is no cup" and "not visible"    |
| `cvbench`              | the one option that the answer names, see `parse_option`; none or several are wrong        |
| `realworldqa`          | a letter as for `cvbench`; any other truth word for word, but for case and a last period   |
| `ocrbench`             | an accepted text is contained in the answer, see `contains`                                |
| `chair`                | no object of COCO is named but those of the picture, `answer` ("cat, dining table")        |
| `amber_generative`     | no object is named but those of the picture: `false`, as `evaluate.py` counts it, is 0     |
| `amber_discriminative` | the first yes or no, in any case                                                           |
| `mmhal`                | a judge's rating is 3 or more; what nobody has rated is neither right nor wrong            |
| `scenes`               | the first number or side that is named; yes and no as in `pope`                            |

`unread` is the number of answers in which the rule finds none of the benchmark's. Beside the runs stands what needs no
eyes: always yes, always no (or A, B), the most frequent answer to questions with as many options.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from recipes.terminal.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSONL files of records")
    parser.add_argument("--judge", help="instruct model (folder or Hub id) whose verdicts are stored in the files too")
    parser.add_argument("--ratings", type=Path, help="what MMHal-Bench's eval_gpt4.py saved, stored in the files too")
    parser.add_argument("--repope", type=Path, help="folder with RePOPE's labels, to score POPE by them as well")
    args = parser.parse_args()

    from recipes.evaluation.judge import judge, judged_summary
    from recipes.evaluation.metrics import floors, metrics_table, summarize
    from recipes.evaluation.published import rate
    from recipes.evaluation.records import grouped, read_records, write_records
    from recipes.evaluation.repope import read_labels, relabel

    with one_sentence():
        runs = {str(file): read_records(file) for file in args.files}
        if args.judge:
            judge([record for records in runs.values() for record in records], args.judge)
        if args.ratings:
            rate([record for record in sum(runs.values(), []) if record["benchmark"] == "mmhal"], args.ratings)
        if args.judge or args.ratings:
            for file, records in runs.items():
                write_records(file, records)
        labels = None if args.repope is None else read_labels(args.repope)
        tables, of_floors = defaultdict(dict), {}
        for file, records in runs.items():
            groups = grouped(records, "benchmark")
            if labels is not None and "pope" in groups:
                groups["pope, RePOPE's labels"] = relabel(groups["pope"], labels)
            for benchmark, group in groups.items():
                tables[benchmark][file] = {"questions": len(group), **summarize(group), **judged_summary(group)}
                of_floors.setdefault(benchmark, floors(group))
        for benchmark, columns in tables.items():
            columns |= of_floors[benchmark]
    print("\n\n".join(metrics_table(benchmark, columns) for benchmark, columns in tables.items()))


if __name__ == "__main__":
    main()
