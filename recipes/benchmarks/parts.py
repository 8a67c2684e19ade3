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
"""The parts around the model that `recipes/benchmark_model.py` measures: the loss of the head, and the data."""

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from pycocotools import mask as coco_mask
from transformers import CLIPImageProcessor, MllamaImageProcessor
from transformers.loss.loss_utils import ForCausalLMLoss
from trl.trainer.utils import add_fused_lm_head

from recipes.benchmarks.subjects import (
    FUSED_OUTPUTS,
    Size,
    Trained,
    make_batch,
    make_model,
    make_processor,
    make_trainer,
    trainer_loss,
)
from recipes.benchmarks.timing import (
    DEVICE,
    DTYPE,
    Row,
    bytes_row,
    make_result,
    median_seconds,
    peak_bytes,
    seconds_in_turns,
    time_row,
)
from trainers import DataCollatorForGuidedVisionLanguageModeling, apply_stage, get_stage


# Loss


class Head(torch.nn.Module):
    """As much of a model as TRL's fused head looks at: last hidden states, and the matrix of the head."""

    def __init__(self, config: Any, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.lm_head = torch.nn.Linear(hidden_size, vocab_size, bias=False)
        self.base_model = lambda hidden_states, **kwargs: argparse.Namespace(last_hidden_state=hidden_states)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.lm_head

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.lm_head(hidden_states)


def loss(size: Size, rounds: int) -> dict[str, Any]:
    """Head and loss, forward and backward, with all words as labels and with one in four."""
    batch_size, (length, hidden_size, vocab_size) = size.batch_size, size.loss_shape
    head = Head(size.config, hidden_size, vocab_size).to(DEVICE, DTYPE)
    add_fused_lm_head(head, outputs=FUSED_OUTPUTS)
    labels = torch.randint(vocab_size, (batch_size, length), device=DEVICE)
    rows = loss_rows(head, labels, rounds, "all words are labels")
    labels = labels.where(torch.arange(length, device=DEVICE) % 4 == 0, -100)
    rows += loss_rows(head, labels, rounds, "a quarter is")
    shape = f"{batch_size} x {length} tokens, hidden size {hidden_size}, vocabulary {vocab_size}"
    note = "Where there is no Triton (a CPU), TRL (1.16) scores the positions without a label too."
    return make_result(f"loss of the head, {shape}", rows, note)


def loss_rows(head: Head, labels: torch.Tensor, rounds: int, what: str) -> list[Row]:
    vocab_size, hidden_size = head.lm_head.weight.shape
    hidden = torch.randn(*labels.shape, hidden_size, device=DEVICE, dtype=DTYPE, requires_grad=True)

    def fused() -> torch.Tensor:
        return head(hidden, labels=labels, fused_lm_head=True).loss

    def full() -> torch.Tensor:
        return ForCausalLMLoss(head(hidden), labels, vocab_size)

    def run(compute: Callable[[], torch.Tensor]) -> float:
        value = compute()
        value.backward()
        head.lm_head.weight.grad = hidden.grad = None
        return value.item()

    torch.testing.assert_close(run(fused), run(full), rtol=1e-2, atol=0)
    subjects = {"fused": lambda: run(fused), "full": lambda: run(full)}
    seconds = seconds_in_turns(subjects, rounds, warmup=1)
    memory = {name: peak_bytes(subject) for name, subject in subjects.items()}
    return [
        time_row(f"{what}: TRL's head / full logits, time", seconds["fused"], seconds["full"], "<= 1.0"),
        bytes_row(f"{what}: TRL's head / full logits, memory", memory["fused"], memory["full"], "<= 0.2"),
    ]


# Data


def data(size: Size, rounds: int) -> dict[str, Any]:
    """Pictures from JPEG files to `pixel_values` of the same size, masks to cells, rows to batches; on one core."""
    config, num_pictures, rng = size.config, 8, np.random.default_rng(0)
    side, height, width = config.vision_config.image_size, 480, 640
    processor = make_processor(config)
    others = {
        "CLIP": CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False),
        "Mllama": MllamaImageProcessor(size={"height": side, "width": side}, max_image_tiles=1),
    }
    collator = DataCollatorForGuidedVisionLanguageModeling(processor)
    model = make_model(config)
    trainer, threads = make_trainer(model), torch.get_num_threads()
    trained = Trained(model, lambda: apply_stage(model, get_stage(3)))
    batch = make_batch(config, size.batch_size, size.text_tokens)
    rows_per_s = size.batch_size / median_seconds(lambda: trained.step(lambda: trainer_loss(trainer, batch)), 3)
    with tempfile.TemporaryDirectory() as place:
        paths, data_rows = [Path(place, f"{n}.jpg") for n in range(num_pictures)], []
        for path in paths:
            pixels = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).resize((width, height)).save(path, quality=90)
            mask = np.zeros((height, width), dtype=np.uint8, order="F")
            mask[100:300, 150:450] = 1
            encoded = coco_mask.encode(mask)
            counts = {"size": [height, width], "counts": encoded["counts"].decode("ascii")}
            region = {"mask": counts, "image": 0, "text": None, "span": None, "message": None}
            words = "There is a thing on the table. " * 6
            turns = [("user", "image", None), ("user", "text", "What is it?"), ("assistant", "text", words)]
            messages = [{"role": r, "content": [{"type": kind, "text": t}]} for r, kind, t in turns]
            picture = {"path": None, "bytes": path.read_bytes()}
            data_rows.append({"images": [picture], "messages": messages, "regions": [region]})

        def pictures() -> list[PIL.Image.Image]:
            return [PIL.Image.open(io.BytesIO(row["images"][0]["bytes"])).convert("RGB") for row in data_rows]

        def with_masks() -> None:
            for picture, row in zip(pictures(), data_rows, strict=True):
                processor.image_processor([picture], return_tensors="pt")
                mask = coco_mask.decode(row["regions"][0]["mask"]).astype(bool)
                processor.image_processor.mask_coverage(mask)

        def each(image_processor: Any) -> None:
            for picture in pictures():
                image_processor([picture], return_tensors="pt")

        subjects = {"decode only": pictures, "AGE-VLM": lambda: each(processor.image_processor)}
        subjects |= {name: lambda other=other: each(other) for name, other in others.items()}
        subjects |= {"AGE-VLM and masks": with_masks, "collator": lambda: collator(data_rows)}
        torch.set_num_threads(1)  # as in a worker of a DataLoader
        try:
            seconds = seconds_in_turns(subjects, rounds)
        finally:
            torch.set_num_threads(threads)
    rates = {name: num_pictures / float(np.median(s)) for name, s in seconds.items()}
    rows = []
    for name in others:
        row = time_row(f"images/s, decode and resize: AGE-VLM / {name}", seconds[name], seconds["AGE-VLM"], "report")
        row.sides = f"{rates['AGE-VLM']:.1f} / {rates[name]:.1f} images/s"
        rows.append(row)
    row = time_row("images/s: with masks / without", seconds["AGE-VLM"], seconds["AGE-VLM and masks"], "report")
    row.sides = f"{rates['AGE-VLM and masks']:.1f} / {rates['AGE-VLM']:.1f} images/s"
    rows.append(row)
    row = time_row("images/s: decode only / decode and resize", seconds["AGE-VLM"], seconds["decode only"], "report")
    row.sides = f"{rates['decode only']:.1f} / {rates['AGE-VLM']:.1f} images/s"
    rows.append(row)
    workers = rows_per_s / rates["collator"]
    sides = f"{rates['collator']:.1f} / {rows_per_s:.2f} rows/s"
    rows.append(
        Row("rows/s: one worker's collator / stage-3 step", 1 / workers, target=">= 1 with all workers", sides=sides)
    )
    note = f"So {int(np.ceil(workers))} worker(s) keep up with the step."
    return make_result(f"data, {width} x {height} JPEG to {side} x {side}, one thread", rows, note)
