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
"""A checkpoint beside itself in torchao's weight-only int8."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TorchAoConfig

from modeling_agevlm.conversion import loading
from recipes.answering.checkpoint import load_checkpoint
from recipes.benchmarks.timing import ratio, seconds_in_turns
from recipes.scenes.rows import load_scenes
from trainers import DataCollatorForGuidedVisionLanguageModeling


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

    rounded_to = TorchAoConfig(Int8WeightOnlyConfig())
    with loading(model):
        exact, processor = load_checkpoint(model, dtype="float32")
        models = {"float32": exact, "int8": load_checkpoint(model, dtype="float32", quantization_config=rounded_to)[0]}
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
