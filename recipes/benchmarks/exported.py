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
"""A checkpoint in PyTorch beside its graphs in ONNX, on one core."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from modeling_agevlm.conversion import loading
from recipes.answering.answers import generate, one_question, prompts
from recipes.answering.checkpoint import load_checkpoint
from recipes.benchmarks.int8 import saved_bytes
from recipes.benchmarks.timing import seconds_in_turns
from recipes.scenes.rows import load_scenes
from recipes.terminal.tables import markdown


LENGTH = 32  # tokens of the answer that is timed


def exported(model: str, rounds: int, num_scenes: int) -> dict[str, Any]:
    """
    Size, speed on one core and answers of PyTorch, of ONNX and of ONNX in int8.

    Args:
        model (`str`): Checkpoint folder or Hub id.
        rounds (`int`): How many times everything is timed.
        num_scenes (`int`): Pictures, each with the questions of its row, whose answers are compared.
    """
    from recipes.exporting.folders import export
    from recipes.exporting.running import OnnxModel

    with loading(model):
        eager, processor = load_checkpoint(model, dtype="float32", attn_implementation="eager")
        ours, _ = load_checkpoint(model, dtype="float32")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            written = export(eager, processor, Path(folder), int8=True)
            graphs = {
                "ONNX": OnnxModel(Path(folder), threads=1),
                "ONNX, int8": OnnxModel(Path(folder), int8=True, threads=1),
            }
        size = processor.image_processor.size.width
        questions = [
            (message["content"], row["images"][0])
            for row in load_scenes("test", "instruction", num_scenes, size, streaming=True)
            for message in row["messages"]
            if message["role"] == "user"
        ]
        same = dict.fromkeys(graphs, 0)
        ends = written["end_token_ids"]
        for question, image in questions:
            inputs = prompts(processor, [one_question(question, image)])
            expected = [token for token in generate(ours, inputs, max_new_tokens=64)[0].tolist() if token not in ends]
            arrays = inputs["input_ids"].numpy(), inputs["pixel_values"].numpy()
            for name, graph in graphs.items():
                same[name] += graph.generate(*arrays, 64) == expected
        seconds = {
            tokens: seconds_in_turns(
                {
                    "PyTorch": lambda n=tokens: generate(ours, inputs, min_new_tokens=n, max_new_tokens=n),
                    **{
                        name: lambda graph=graph, n=tokens: graph.generate(*arrays, n, min_new_tokens=n)
                        for name, graph in graphs.items()
                    },
                },
                rounds,
            )
            for tokens in (1, LENGTH + 1)
        }
    finally:
        torch.set_num_threads(num_threads)
    first, all_of = ({name: statistics.median(times) for name, times in of.items()} for of in seconds.values())
    num_bytes = written["bytes"]
    differences = {"ONNX": written["differences"], "ONNX, int8": written["differences_int8"]}
    return {
        "megabytes": {
            "PyTorch": saved_bytes(ours) / 1e6,
            "ONNX": sum(size for name, size in num_bytes.items() if "int8" not in name) / 1e6,
            "ONNX, int8": sum(size for name, size in num_bytes.items() if "int8" in name) / 1e6,
        },
        "seconds_to_first_token": first,
        "tokens_per_second": {name: LENGTH / (all_of[name] - first[name]) for name in first},
        "differences": differences,
        "same_answers": {name: count / len(questions) for name, count in same.items()},
        "questions": len(questions),
    }


def exported_table(result: dict[str, Any]) -> str:
    """The result for people."""
    names = list(result["megabytes"])

    def cells(values: dict[str, float], form: str) -> list[str]:
        return [format(values[name], form) if name in values else "" for name in names]

    largest = {kind: {name: of[kind] for name, of in result["differences"].items()} for kind in ("logits", "maps")}
    lines = [
        ["size, MB", *cells(result["megabytes"], ".1f")],
        [
            "picture and question to the first token, ms",
            *cells({name: 1e3 * value for name, value in result["seconds_to_first_token"].items()}, ".0f"),
        ],
        ["tokens per second from there", *cells(result["tokens_per_second"], ".0f")],
        ["largest difference from PyTorch, of the largest logit", *cells(largest["logits"], ".1e")],
        ["the same of the maps, which are shares", *cells(largest["maps"], ".1e")],
        [f"same answer as PyTorch, of {result['questions']} questions", *cells(result["same_answers"], ".0%")],
    ]
    return markdown(["on one core", *names], lines)
