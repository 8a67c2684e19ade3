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
"""Does guidance help? The paper's claim and its open points, tested on scenes with the demo's tiny model.

    python recipes/claim.py [--out runs/claim] [--results docs/claim] [--only PART] [--processes 2]

The parts: `heads`, how many attention heads are guided, and whether there is a place for nothing, with several seeds; `head
ablations`, one thing changed at a time of a single guided head, one seed; `2x2`, guidance or none, LLM frozen or trained in stage 4,
and the control whose masks belong to other pictures, with several seeds; `ablations`, one thing changed at a time of the paper's
model, one seed; `concatenation`, the same parts with the visual tokens among the words, with several seeds; `long`, until the
unguided model is good. Only where it is named: `smollm2`, around an LLM of
135M that has learned to write elsewhere (see docs/train.md for its package), one seed.
All models go through the recipes of the four stages; stages that models share run once. A run that was stopped goes on where it
stopped; of a model whose result is there, nothing runs. `results.csv`, `page.md` and its plots are written anew whenever a model
is done.
"""

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/claim"), help="folder of the stages")
    parser.add_argument("--results", type=Path, help="folder of the results and their page; default: that of --out")
    parser.add_argument(
        "--only",
        choices=("heads", "head ablations", "2x2", "ablations", "concatenation", "long", "smollm2"),
        help="part of the study; default: all but smollm2",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="models trained at the same time")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of heads, 2x2 and concatenation")
    args = parser.parse_args()

    from recipes.study.plans import llm_checkpoint
    from recipes.study.report import report
    from recipes.study.runs import planned, run

    if args.only == "smollm2":
        llm_checkpoint("smollm2")  # says what is missing before the first stage
    results = args.results or args.out
    run(args.out, results, planned(args.only, args.seeds), args.processes)
    report(results)
    print(f"see {results}/page.md and results.csv")


if __name__ == "__main__":
    main()
