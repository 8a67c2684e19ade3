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
Measures the model and its training side by side, with random weights, in one run: what is compared takes turns.

    python recipes/benchmark_model.py train         # the step with guidance by the step without
    python recipes/benchmark_model.py architectures # AGE-VLM by Mllama's decoder, by a LLaVA-style LLM
    python recipes/benchmark_model.py decode        # tokens one by one, by a plain LLaMA
    python recipes/benchmark_model.py loss          # the head's loss as trained with, by full logits
    python recipes/benchmark_model.py data          # pictures, masks and batches; do they keep up with the step?
    python recipes/benchmark_model.py growth        # how time and memory grow; also a plot
    python recipes/benchmark_model.py stages        # stage 3 by stage 4; utilization; memory

`--size` is `tiny`, `small` (a CPU) or `paper` (a GPU, in bf16). Every command prints one table and writes it as JSON
under `runs/benchmark/`. `--profile` (train, architectures) also writes a trace and the 20 longest operations.

A ratio is the median over rounds, with its range; the subjects of a round run right after each other, every second
round the other way round. The limit beside it is what the operations and bytes of both sides alone would give, see
`recipes/benchmarks/costs.py`. Memory is weights, gradients, optimizer state and activations: of CUDA's allocator, on a
CPU of all tensors.
"""

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path


# command: the module of `recipes.benchmarks` with a function of its name, rounds, what it measures
COMMANDS = {
    "train": ("model", 7, "the step with guidance by the step without"),
    "architectures": ("model", 7, "AGE-VLM by Mllama's decoder, by a LLaVA-style LLM"),
    "decode": ("model", 7, "tokens one by one, by a plain LLaMA"),
    "loss": ("parts", 5, "the head's loss as trained with, by full logits"),
    "data": ("parts", 7, "pictures, masks and batches; do they keep up with the step?"),
    "growth": ("growth", 3, "how time and memory grow; also a plot"),
    "stages": ("stages", 5, "stage 3 by stage 4; utilization; memory"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, rounds, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what)
        command.add_argument("--size", choices=("tiny", "small", "paper"), default="small")
        command.add_argument("--rounds", type=int, default=rounds, help="how many times everything is timed")
        command.add_argument("--batch_size", type=int, help="rows of a training step and of `loss` (2, paper: 16)")
        command.add_argument("--text_tokens", type=int, help="tokens of a row (64)")
        command.add_argument("--image_size", type=int, help="height and width of the pictures (384, paper: 768)")
        command.add_argument("--out", type=Path, help="JSON file to write (runs/benchmark/COMMAND_SIZE_DEVICE.json)")
        if name in ("train", "architectures"):
            command.add_argument("--profile", action="store_true", help="write traces instead of measuring")
    args = parser.parse_args()

    import torch

    from recipes.benchmarks.subjects import make_size
    from recipes.benchmarks.timing import DEVICE, DTYPE, rows_table

    shapes = {name: getattr(args, name) for name in ("batch_size", "text_tokens") if getattr(args, name)}
    size = replace(make_size(args.size), **shapes)
    if args.image_size:
        size.config.vision_config.image_size = args.image_size
    torch.set_flush_denormal(True)
    out = args.out or Path(f"runs/benchmark/{args.command}_{args.size}_{DEVICE.type}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    more = {}
    if args.command == "growth":
        more["plot"] = out.with_suffix(".png")
    elif args.command in ("train", "architectures") and args.profile:
        more["profiles"] = out.parent / "profiles"
    measure = getattr(importlib.import_module(f"recipes.benchmarks.{COMMANDS[args.command][0]}"), args.command)
    result = measure(size, args.rounds, **more)
    if "profiles" in more:
        return
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    result |= {
        "size": args.size,
        "rounds": args.rounds,
        "device": device,
        "dtype": str(DTYPE),
        "torch": torch.__version__,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"size {args.size}, {device}, {DTYPE}, {args.rounds} rounds\n\n{rows_table(result)}")


if __name__ == "__main__":
    main()
