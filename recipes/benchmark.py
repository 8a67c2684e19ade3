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

    python recipes/benchmark.py int8 --model runs/init

`int8` compares a checkpoint with itself under torchao's weight-only int8: size, speed, and how far the logits move on
questions about scenes and their right answers. Needs `pip install torchao`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TorchAoConfig

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.scenes import load_scenes
from trainers import DataCollatorForGuidedVisionLanguageModeling


def seconds_in_turns(subjects: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds per call of every subject, one per round; every second round goes the other way round."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for n in range(warmup + rounds):
        for name in list(subjects)[:: -1 if n % 2 else 1]:
            start = time.perf_counter()
            subjects[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if n >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], of: list[float]) -> dict[str, float]:
    """Median and range, over the rounds, of one subject's seconds by another's."""
    ratios = sorted(a / b for a, b in zip(seconds, of, strict=True))
    return {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


def saved_bytes(model: PreTrainedModel) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


@torch.inference_mode()
def int8(model: str, rounds: int, num_scenes: int) -> dict[str, Any]:
    """
    Weight-only int8 of all linear layers (the embedding and a tied head stay as they are) against float32.

    Args:
        model (`str`): Checkpoint folder or Hub id.
        rounds (`int`): How many times everything is timed.
        num_scenes (`int`): Pictures whose questions and answers the logits are compared on.
    """
    from torchao.quantization import Int8WeightOnlyConfig

    processor = AgeVlmProcessor.from_pretrained(model)
    models = {
        "float32": AgeVlmForConditionalGeneration.from_pretrained(model, dtype="float32"),
        "int8": AgeVlmForConditionalGeneration.from_pretrained(
            model, dtype="float32", quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
        ),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {name: m.to(device).eval() for name, m in models.items()}
    image_size = models["float32"].config.vision_config.image_size

    differences, agreements, scales = [], [], []
    collator = DataCollatorForGuidedVisionLanguageModeling(processor)
    for row in load_scenes("test", "instruction", num_scenes, image_size):
        batch = collator([row])
        inputs = {name: batch[name].to(device) for name in processor.model_input_names if name in batch}
        exact, rounded = (m(**inputs).logits[0].float() for m in models.values())
        differences.append((exact - rounded).abs())
        scales.append(exact.std())
        agreements.append(exact.argmax(-1) == rounded.argmax(-1))

    content = [{"type": "image", "image": row["images"][0]}, {"type": "text", "text": "Describe the image."}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(device)
    tasks = {
        "prefill": {name: lambda m=m: m(**prompt, logits_to_keep=1) for name, m in models.items()},
        "generate": {
            name: lambda m=m: m.generate(**prompt, do_sample=False, min_new_tokens=32, max_new_tokens=32)
            for name, m in models.items()
        },
    }
    times = {task: seconds_in_turns(subjects, rounds) for task, subjects in tasks.items()}
    sizes = {name: saved_bytes(m) for name, m in models.items()}
    return {
        "megabytes": {name: size / 1e6 for name, size in sizes.items()},
        "size_ratio": sizes["int8"] / sizes["float32"],
        "logit_difference": {
            "mean": torch.cat(differences).mean().item(),
            "max": torch.cat(differences).max().item(),
            "logits_std": torch.stack(scales).mean().item(),
            "same_top_token": torch.cat(agreements).float().mean().item(),
            "tokens": sum(len(d) for d in differences),
        },
        "seconds": {
            task: {name: statistics.median(values) for name, values in of.items()} for task, of in times.items()
        },
        "time_ratio": {task: ratio(of["int8"], of["float32"]) for task, of in times.items()},
    }


def int8_table(result: dict[str, Any]) -> str:
    """The result for people."""
    megabytes, logits = result["megabytes"], result["logit_difference"]
    lines = [
        "| int8 by float32 | ratio (range) | float32 | int8 |",
        "|---|---|---|---|",
        f"| size, MB | {result['size_ratio']:.2f} | {megabytes['float32']:.1f} | {megabytes['int8']:.1f} |",
    ]
    lines += [
        f"| {task}, s | {r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f}) | {result['seconds'][task]['float32']:.3f} | "
        f"{result['seconds'][task]['int8']:.3f} |"
        for task, r in result["time_ratio"].items()
    ]
    lines.append(
        f"\nLogits over {logits['tokens']} tokens: mean difference {logits['mean']:.4f}, largest {logits['max']:.3f} "
        f"(their standard deviation is {logits['logits_std']:.2f}); same best token {logits['same_top_token']:.1%}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("int8", help="weight-only int8 against float32")
    command.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    command.add_argument("--rounds", type=int, default=7, help="how many times everything is timed")
    command.add_argument("--num_scenes", type=int, default=20, help="scenes to compare the logits on")
    command.add_argument("--out", type=Path, default=Path("runs/benchmark/int8.json"), help="JSON file to write")
    args = parser.parse_args()
    result = int8(args.model, args.rounds, args.num_scenes)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(int8_table(result))


if __name__ == "__main__":
    main()
