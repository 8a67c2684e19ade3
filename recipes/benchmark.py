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
Measures side by side, in one run: what is compared takes turns, so that whatever else the machine does meets all alike.

    python recipes/benchmark.py guidance
    python recipes/benchmark.py int8 --model runs/init
    python recipes/benchmark.py onnx
    python recipes/benchmark.py masks [--florence FLORENCE --sam SAM]
    python recipes/benchmark.py records
    python recipes/benchmark.py startup

`guidance` compares a training step of a language model that reads visual tokens among its words (as LLaVA's does) with and without
guidance, and with guidance by the maps of eager attention.

`int8` compares a checkpoint with itself under torchao's weight-only int8: size, speed, and how far the logits move on
questions about scenes and their right answers. Needs `pip install torchao`.

`onnx` compares a checkpoint in PyTorch with its graphs in ONNX, in float32 and in int8, on one core: size, speed, answers. Needs
`pip install -e ".[onnx]"`.

`masks` says where `recipes/masks.py` spends its time. Without checkpoints it takes the architectures of Florence-2-base and
SAM-ViT-B with random weights and a quarter of their depth.

`records` finds the lines of a JSONL file of a million records and reads 10,000 of them at random, beside `datasets`.

`startup` tells the CPU time that every command takes for its `--help`, and `recipes/ask.py` for a question.
"""

import argparse
import json
import tempfile
from pathlib import Path

from recipes.scenes import TRAINED_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "guidance", help="guidance of another VLM's attention against none, and against maps"
    )
    command.add_argument("--rounds", type=int, default=7, help="how many times everything is timed")
    command.add_argument("--num_layers", type=int, default=8, help="of a language model shaped as SmolLM2-135M")
    command.add_argument("--image_tokens", type=int, default=576, help="visual tokens of the row")
    command.add_argument("--words", type=int, default=512, help="tokens of the row's text")
    command = commands.add_parser("int8", help="weight-only int8 against float32")
    command.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    command.add_argument("--rounds", type=int, default=7, help="how many times everything is timed")
    command.add_argument("--num_scenes", type=int, default=20, help="scenes to compare the logits on")
    command = commands.add_parser("onnx", help="ONNX against PyTorch, on one core")
    command.add_argument("--model", default=str(TRAINED_MODEL), help="checkpoint folder or Hub id")
    command.add_argument("--rounds", type=int, default=7, help="how many times everything is timed")
    command.add_argument("--num_scenes", type=int, default=40, help="scenes to compare the answers on")
    command = commands.add_parser("masks", help="where recipes/masks.py spends its time")
    command.add_argument("--florence", help="checkpoint folder or Hub id")
    command.add_argument("--sam", help="checkpoint folder or Hub id")
    command.add_argument("--num_rows", type=int, default=4, help="pictures")
    command.add_argument("--num_instances", type=int, default=2, help="instances per text")
    command.add_argument("--size", type=int, nargs=2, default=(1024, 1536), help="height and width of the pictures")
    command = commands.add_parser("records", help="random access to a JSONL file")
    command.add_argument("--num_records", type=int, default=1_000_000)
    command.add_argument("--num_reads", type=int, default=10_000)
    command = commands.add_parser("startup", help="what commands cost before they do anything")
    command.add_argument("--rounds", type=int, default=3, help="how many times everything runs")
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, help="JSON file to write (runs/benchmark/COMMAND.json)")
    args = parser.parse_args()

    if args.command == "guidance":
        from recipes.benchmarks.guidance import guidance
        from recipes.benchmarks.timing import rows_table

        result, table = guidance(args.rounds, args.num_layers, args.image_tokens, args.words), rows_table
    elif args.command == "int8":
        from recipes.benchmarks.int8 import int8, int8_table

        result, table = int8(args.model, args.rounds, args.num_scenes), int8_table
    elif args.command == "onnx":
        from recipes.benchmarks.exported import exported, exported_table

        result, table = exported(args.model, args.rounds, args.num_scenes), exported_table
    elif args.command == "masks":
        from recipes.benchmarks.masks import masks, masks_table, save_reduced

        with tempfile.TemporaryDirectory() as folder:
            networks = (args.florence, args.sam) if args.florence and args.sam else save_reduced(Path(folder))
            result, table = masks(*networks, args.num_rows, args.num_instances, tuple(args.size)), masks_table
    elif args.command == "records":
        from recipes.benchmarks.records import records, records_table

        result, table = records(args.num_records, args.num_reads), records_table
    else:
        from recipes.benchmarks.startup import startup, startup_table

        result, table = startup(args.rounds), startup_table
    out = args.out or Path(f"runs/benchmark/{args.command}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
