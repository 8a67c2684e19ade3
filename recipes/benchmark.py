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
    python recipes/benchmark.py masks [--florence FLORENCE --sam SAM]
    python recipes/benchmark.py records

`int8` compares a checkpoint with itself under torchao's weight-only int8: size, speed, and how far the logits move on
questions about scenes and their right answers. Needs `pip install torchao`.

`masks` says where `recipes/masks.py` spends its time. Without checkpoints it takes the architectures of Florence-2-base and
SAM-ViT-B with random weights and a quarter of their depth.

`records` finds the lines of a JSONL file of a million records and reads 10,000 of them at random, beside `datasets`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Features, List, Value, load_dataset
from transformers import PreTrainedModel, TorchAoConfig

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes import masks as masks_recipe
from recipes.data import FEATURES, Lines, write_parquet
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


# Masks


class Clock:
    """Adds up the seconds of named stages; of nested ones, each counts its own."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.running: list[str] = []
        self.last = time.perf_counter()

    def _add(self) -> None:
        now = time.perf_counter()
        if self.running:
            name = self.running[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    @contextmanager
    def stage(self, name: str):
        self._add()
        self.running.append(name)
        try:
            yield
        finally:
            self._add()
            self.running.pop()

    def timed(self, name: str, function: Callable) -> Callable:
        def wrapped(*args, **kwargs):
            with self.stage(name):
                result = function(*args, **kwargs)
                return iter(list(result)) if hasattr(result, "__next__") else result

        return wrapped


NETWORKS = ("Florence-2", "SAM, pictures", "SAM, boxes")


def masks(florence: str, sam: str, num_rows: int, num_instances: int, size: tuple[int, int]) -> dict[str, Any]:
    """
    Seconds of every stage of making masks, from files to a file.

    Args:
        florence (`str`), sam (`str`): Checkpoint folders or Hub ids.
        num_rows (`int`): Rows with one JPEG picture and one text each.
        num_instances (`int`):
            Instances per text. Florence-2 writes what it writes, for as long as such an answer takes; then this many
            outlines are put in its place.
        size (`tuple[int, int]`): Height and width of the pictures.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens = 2 * 24 * num_instances  # outlines of 24 points
    arguments = masks_recipe.MaskArguments(
        out="", florence=florence, sam=sam, max_new_tokens=tokens, max_area=1, min_area=0
    )
    maker = masks_recipe.MaskMaker(
        arguments, masks_recipe.Locator(arguments, device, dtype), masks_recipe.Segmenter(arguments, device, dtype)
    )
    clock, rng = Clock(), np.random.default_rng(0)
    generate, read = maker.locator.generate, maker.locator.read
    maker.locator.generation["min_new_tokens"] = tokens

    def outlines() -> str:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        found = ""
        for x, y in rng.uniform(200, 800, (num_instances, 2)):
            points = np.stack([x + 150 * np.cos(angles), y + 150 * np.sin(angles)], axis=1).astype(int)
            found += f"<poly>{''.join(f'<loc_{n}>' for n in points.flatten())}</poly>"
        return found

    def generate_and_replace(texts: list[str], pictures: list[PIL.Image.Image]) -> list[str]:
        with clock.stage("Florence-2"):
            generate(texts, pictures)
        return [outlines() for _ in texts]

    maker.locator.generate = generate_and_replace
    maker.locator.read = clock.timed("outlines from tokens", read)
    maker.segmenter.encode = clock.timed("pictures for SAM", maker.segmenter.encode)
    maker.segmenter.embed = clock.timed("SAM, pictures", maker.segmenter.embed)
    maker.segmenter.decode = clock.timed("SAM, boxes", maker.segmenter.decode)
    maker.segmenter.masks = clock.timed("masks at the picture's size", maker.segmenter.masks)
    features = Features({**FEATURES, "regions": List(masks_recipe.REGION), "mask_problems": List(Value("string"))})
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for n in range(num_rows):
            pixels = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).resize(size[::-1]).save(f"{folder}/{n}.jpg")
            words = [("user", "image", None), ("assistant", "text", "a thing in the picture")]
            messages = [{"role": role, "content": [{"type": kind, "text": t}]} for role, kind, t in words]
            rows.append({"id": str(n), "images": [{"path": f"{folder}/{n}.jpg", "bytes": None}], "messages": messages})
        maker([masks_recipe.prepare(rows[0], "answer")])  # warm-up
        clock.seconds.clear()
        prepared = [clock.timed("pictures from files", masks_recipe.prepare)(row, "answer") for row in rows]
        with clock.stage("regions and run lengths"):
            done = maker(prepared)
        with clock.stage("writing"):
            write_parquet(Path(folder, "done.parquet"), done, features)
    seconds = {name: value / num_rows for name, value in clock.seconds.items()}
    networks = sum(seconds[name] for name in NETWORKS)
    return {"seconds_per_row": seconds, "bookkeeping_by_networks": sum(seconds.values()) / networks - 1}


def masks_table(result: dict[str, Any]) -> str:
    seconds = result["seconds_per_row"]
    total = sum(seconds.values())
    lines = ["| making masks | ms per row | share |", "|---|---|---|"]
    lines += [f"| {name} | {1000 * s:.1f} | {s / total:.1%} |" for name, s in seconds.items()]
    return "\n".join(lines) + f"\n\nAll but the networks, by the networks: {result['bookkeeping_by_networks']:.1%}"


def save_reduced(folder: Path) -> tuple[str, str]:
    """Florence-2-base and SAM-ViT-B with a quarter of their layers and random weights."""
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
        SamConfig,
        SamImageProcessor,
        SamModel,
        SamProcessor,
    )

    backbone = PreTrainedTokenizerFast.from_pretrained(Path(__file__).parent / "backbones/llama")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backbone._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        image_token="<image>",
    )
    tokenizer.add_tokens([*(f"<loc_{n}>" for n in range(1000)), "<poly>", "</poly>", "<sep>"])
    text = {"model_type": "bart", "d_model": 768, "vocab_size": 51289, "max_position_embeddings": 4096}
    text |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 12, "decoder_attention_heads": 12}
    text |= {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text |= {"decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": None}
    vision = {"model_type": "florence_vision", "projection_dim": 768, "depths": [1, 1, 3, 1]}
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    Florence2ForConditionalGeneration(config).save_pretrained(folder / "florence")
    side = {"height": 768, "width": 768}
    pictures = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    pictures.image_seq_length = 577
    Florence2Processor(pictures, tokenizer, post_processor_config={"polygons": {}}).save_pretrained(
        folder / "florence"
    )
    SamModel(SamConfig(vision_config={"num_hidden_layers": 3, "global_attn_indexes": [2]})).save_pretrained(
        folder / "sam"
    )
    SamProcessor(SamImageProcessor()).save_pretrained(folder / "sam")
    return str(folder / "florence"), str(folder / "sam")


# Records


def records(num_records: int, num_reads: int) -> dict[str, Any]:
    """Seconds and peak memory of the first and of a later look at a JSONL file, and of reading records at random."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "records.jsonl")
        with file.open("w") as out:
            for n in range(num_records):
                turns = [{"from": "human", "value": f"<image>\nWhat is {n}?"}, {"from": "gpt", "value": "words " * 50}]
                out.write(json.dumps({"id": str(n), "image": f"{n % 997}.jpg", "conversations": turns}) + "\n")
        found = {"megabytes": file.stat().st_size / 1e6}
        for name in ("lines", "datasets"):
            command = [sys.executable, __file__, f"records-{name}", str(file), str(num_reads)]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(result.stdout.splitlines()[-1])
        return found


def read_records(name: str, file: Path, num_reads: int) -> dict[str, float]:
    """One of the two ways, in a process of its own."""
    numbers, start = np.random.default_rng(0), time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if name == "lines":
        rows = Lines(file)
        count, read = len(rows), lambda n: json.loads(rows[n])
    else:
        rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "cache"))
        count, read = len(rows), rows.__getitem__
    opened = time.perf_counter()
    for n in numbers.integers(0, count, num_reads).tolist():
        assert read(n)["id"] == str(n)
    done = time.perf_counter()
    again = time.perf_counter()
    if name == "lines":
        assert len(Lines(file)) == count
    else:
        assert (
            len(load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "cache")))
            == count
        )
    return {
        "first_look_s": opened - start,
        "later_look_s": time.perf_counter() - again,
        "reads_s": done - opened,
        "peak_megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000,
        "extra_disk_megabytes": sum(f.stat().st_size for f in file.parent.rglob("*") if f.is_file() and f != file)
        / 1e6,
    }


def records_table(result: dict[str, Any]) -> str:
    lines = [f"| {result['megabytes']:.0f} MB of JSONL | `recipes/data.py` | `datasets` |", "|---|---|---|"]
    for key in result["lines"]:
        lines.append(f"| {key.replace('_', ' ')} | {result['lines'][key]:.2f} | {result['datasets'][key]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] and sys.argv[1].startswith("records-"):
        print(json.dumps(read_records(sys.argv[1].removeprefix("records-"), Path(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("int8", help="weight-only int8 against float32")
    command.add_argument("--model", required=True, help="checkpoint folder or Hub id")
    command.add_argument("--rounds", type=int, default=7, help="how many times everything is timed")
    command.add_argument("--num_scenes", type=int, default=20, help="scenes to compare the logits on")
    command = commands.add_parser("masks", help="where recipes/masks.py spends its time")
    command.add_argument("--florence", help="checkpoint folder or Hub id")
    command.add_argument("--sam", help="checkpoint folder or Hub id")
    command.add_argument("--num_rows", type=int, default=4, help="pictures")
    command.add_argument("--num_instances", type=int, default=2, help="instances per text")
    command.add_argument("--size", type=int, nargs=2, default=(1024, 1536), help="height and width of the pictures")
    command = commands.add_parser("records", help="random access to a JSONL file")
    command.add_argument("--num_records", type=int, default=1_000_000)
    command.add_argument("--num_reads", type=int, default=10_000)
    for command in commands.choices.values():
        command.add_argument("--out", type=Path, help="JSON file to write (runs/benchmark/COMMAND.json)")
    args = parser.parse_args()
    if args.command == "int8":
        result, table = int8(args.model, args.rounds, args.num_scenes), int8_table
    elif args.command == "records":
        result, table = records(args.num_records, args.num_reads), records_table
    else:
        with tempfile.TemporaryDirectory() as folder:
            networks = (args.florence, args.sam) if args.florence and args.sam else save_reduced(Path(folder))
            result, table = masks(*networks, args.num_rows, args.num_instances, tuple(args.size)), masks_table
    out = args.out or Path(f"runs/benchmark/{args.command}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
