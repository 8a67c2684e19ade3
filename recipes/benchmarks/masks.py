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
"""Where making masks spends its time."""

import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from datasets import Features, List, Value

from recipes.rows.files import write_parquet
from recipes.rows.records import FEATURES
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.florence import Locator
from recipes.segmentation.maker import MaskMaker
from recipes.segmentation.queries import prepare
from recipes.segmentation.regions import MADE_REGION
from recipes.segmentation.sam import Segmenter


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
    arguments = MaskArguments(out="", florence=florence, sam=sam, max_new_tokens=tokens, max_area=1, min_area=0)
    maker = MaskMaker(arguments, Locator(arguments, device, dtype), Segmenter(arguments, device, dtype))
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
    features = Features({**FEATURES, "regions": List(MADE_REGION), "mask_problems": List(Value("string"))})
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for n in range(num_rows):
            pixels = rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).resize(size[::-1]).save(f"{folder}/{n}.jpg")
            words = [("user", "image", None), ("assistant", "text", "a thing in the picture")]
            messages = [{"role": role, "content": [{"type": kind, "text": t}]} for role, kind, t in words]
            rows.append({"id": str(n), "images": [{"path": f"{folder}/{n}.jpg", "bytes": None}], "messages": messages})
        maker([prepare(rows[0], "answer")])  # warm-up
        clock.seconds.clear()
        prepared = [clock.timed("pictures from files", prepare)(row, "answer") for row in rows]
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

    backbone = PreTrainedTokenizerFast.from_pretrained(Path(__file__).parents[1] / "scenes/backbones/llama")
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
