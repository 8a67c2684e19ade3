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
What the paper's training costs in time, memory and data on GPUs, as Markdown tables.

    python recipes/scale_plan.py [--seconds 3=1.9 4=3.1] [--gpus 8 64] [--pictures_per_second 107]

Operations, states and gradients are computed from the sizes of the model. The seconds of a step are those of an H100 or
H200 at the share of its peak that was measured; `--seconds` takes measured ones instead (`recipes/benchmark_model.py stages --size paper`).
"""

import argparse


def stage_seconds(text: str) -> tuple[str, float]:
    """`"3=1.9"` as a stage and the seconds of its step."""
    from recipes.benchmarks.scale import STAGES

    name, _, seconds = text.partition("=")
    if name not in STAGES:
        raise argparse.ArgumentTypeError(f"{text!r} should be STAGE=SECONDS with a stage of {list(STAGES)}")
    return name, float(seconds)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", nargs="+", type=stage_seconds, default=[], help="measured steps of 16 rows")
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64], help="numbers of GPUs")
    parser.add_argument(
        "--pictures_per_second", type=float, default=107.0, help="that one core reads, see `benchmark_model.py data`"
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()

    from recipes.benchmarks.scale import tables

    for title, table in tables(dict(args.seconds), args.gpus, args.pictures_per_second).items():
        print(f"### {title}\n\n{table}\n")


if __name__ == "__main__":
    main()
