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
"""Compares the graphs of a folder with the model that they came from."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from recipes.exporting.running import OnnxModel


TOLERANCE = 1e-4
# Rows by how many pictures they have; batches of one row, of several, without pictures, and of unlike rows.
BATCHES = ([0], [1], [2], [1, 1, 1], [0, 2, 1], [0, 0])
LENGTHS = (6, 23)
NUM_STEPS = 3


def random_batch(
    model: PreTrainedModel, image_size: Sequence[int], num_images: list[int], length: int, seed: int
) -> dict[str, torch.Tensor]:
    """Random tokens and pictures: row `n` has `num_images[n]` of these, and is padded on the left by `n` tokens."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    batch_size, vocab_size = len(num_images), config.text_config.vocab_size
    input_ids = torch.randint(vocab_size, (batch_size, length), generator=generator)
    other = (config.image_token_id + 1) % vocab_size
    input_ids[input_ids == config.image_token_id] = other
    attention_mask = torch.ones_like(input_ids)
    sides = config.vision_config.num_channels, *image_size
    pixel_values = torch.zeros(batch_size, max(num_images), *sides)
    for row, count in enumerate(num_images):
        attention_mask[row, :row] = 0
        for n in range(count):
            input_ids[row, row + 2 * n] = config.image_token_id
            pixel_values[row, n] = torch.randn(sides, generator=generator)
    query_masks = torch.rand(batch_size, 2, length, generator=generator) < 0.5
    query_masks &= attention_mask.bool()[:, None]
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
        "query_masks": query_masks,
    }


@torch.inference_mode()
def pairs(
    model: PreTrainedModel, onnx_model: OnnxModel, batch: dict[str, torch.Tensor]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """
    What the graphs give and what the model gives: at once, and where the last tokens come one by one onto the keys and values of
    those before. The model always reads the whole text.
    """
    input_ids, mask, queries = (batch[name].numpy() for name in ("input_ids", "attention_mask", "query_masks"))
    length = input_ids.shape[1]
    num_images = batch["pixel_values"].shape[1]
    visual = onnx_model.encode(batch["pixel_values"].numpy())
    visible_from = onnx_model.visible_from(input_ids, num_images)
    asked = {
        name: tensor for name, tensor in batch.items() if num_images or name not in ("pixel_values", "query_masks")
    }
    expected = model(**asked)
    logits, maps, _ = onnx_model(input_ids, mask, visual, visible_from, None, queries)
    yield "logits", logits, expected.logits[:, -1].numpy()
    if num_images:
        yield "maps", maps, torch.stack(expected.grounding_maps, dim=2).numpy()
        asked["query_masks"] = torch.eye(length, dtype=torch.bool)[-NUM_STEPS:].expand(len(input_ids), -1, -1)
        expected_maps = torch.stack(model(**asked).grounding_maps, dim=2).numpy()
    start, past = 0, None
    for end in range(length - NUM_STEPS, length + 1):
        alone = np.ones((len(input_ids), 1, end - start), bool) if past else None
        logits, maps, past = onnx_model(input_ids[:, start:end], mask[:, :end], visual, visible_from, past, alone)
        yield "logits", logits, expected.logits[:, end - 1].numpy()
        if start and num_images:
            yield "maps", maps, expected_maps[:, [start - length]]
        start = end


def differences(
    model: PreTrainedModel, description: dict[str, Any], folder: Path, int8: bool = False
) -> dict[str, float]:
    """
    The largest difference between what the graphs of a folder give and what the model gives for random inputs: batches of one
    row and of several, with 0, 1 and 2 pictures, short and long, padded and not, prompts as a whole and token by token.

    Returns:
        `dict[str, float]`: Of `logits`, by the largest of their batch or by 1 if that is less; of `maps`, which are shares.
    """
    _, _, *image_size = description["vision"]["inputs"]["pixel_values"]["shape"]
    onnx_model, found = OnnxModel(folder, description, int8), {"logits": 0.0, "maps": 0.0}
    for seed, (num_images, length) in enumerate(product(BATCHES, LENGTHS)):
        batch = random_batch(model, image_size, num_images, length, seed)
        for name, ours, expected in pairs(model, onnx_model, batch):
            off = np.abs(ours - expected).max() / max(1, np.abs(expected).max())
            found[name] = max(found[name], float(off) if np.isfinite(off) else float("inf"))
    return found
