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
"""A training step of another VLM with guidance: regions read in its attention function, beside no guidance and beside kept maps."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.benchmarks.timing import DEVICE, DTYPE, bytes_row, make_result, peak_bytes, seconds_in_turns, time_row
from trainers import guidance_loss, guidance_loss_from_mass
from trainers.region_attention import RegionAttention


SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}  # SmolLM2-135M's
NUM_REGIONS = 4


def make_llama(num_layers: int, vocab_size: int, attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, num_hidden_layers=num_layers, vocab_size=vocab_size, max_position_embeddings=8192)
    with DEVICE:
        return LlamaForCausalLM._from_config(config, dtype=DTYPE, attn_implementation=attention).train()


def guidance(rounds: int, num_layers: int, image_tokens: int, words: int, vocab_size: int = 49152) -> dict[str, Any]:
    """
    One row of visual tokens before its words through a language model shaped as SmolLM2-135M, forward and backward: without
    guidance, guided in all layers, guided by two heads of two layers, and guided by the maps of eager attention, which are kept.

    Args:
        rounds (`int`): How many times everything is timed.
        num_layers (`int`), image_tokens (`int`), words (`int`), vocab_size (`int`): Of the language model and the row.
    """
    length = image_tokens + words
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(0, vocab_size, (1, length), generator=generator).to(DEVICE)
    labels = torch.where(torch.arange(length, device=DEVICE) < image_tokens, -100, input_ids)
    visual = labels == -100
    query_masks = torch.zeros(1, NUM_REGIONS, length, dtype=torch.bool, device=DEVICE)
    region_masks = torch.zeros(1, NUM_REGIONS, length + 1, device=DEVICE)
    for k in range(NUM_REGIONS):
        first = image_tokens + k * words // NUM_REGIONS
        query_masks[0, k, first : first + words // NUM_REGIONS] = True
        region_masks[0, k, k * image_tokens // NUM_REGIONS : (k + 1) * image_tokens // NUM_REGIONS] = 1

    plain = make_llama(num_layers, vocab_size, "sdpa")
    every, some = (make_llama(num_layers, vocab_size, "sdpa") for _ in range(2))
    readers = {
        "guided": (every, RegionAttention(every)),
        "some": (some, RegionAttention(some, sorted({num_layers // 3, num_layers // 2}), [0, 4])),
    }
    eager = make_llama(num_layers, vocab_size, "eager")

    def done(model: LlamaForCausalLM, loss: torch.Tensor) -> float:
        loss.backward()
        model.zero_grad()
        return loss.item()

    def unguided() -> float:
        return done(plain, plain(input_ids=input_ids, labels=labels, use_cache=False).loss)

    def by_channels(name: str) -> float:
        model, attention = readers[name]
        with attention.reading(query_masks, region_masks, visual) as reading:
            loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        read = (reading.masses, region_masks, reading.uniform_mass, reading.sees)
        return done(model, loss + guidance_loss_from_mass(*read).loss)

    def by_maps() -> float:
        outputs = eager(input_ids=input_ids, labels=labels, use_cache=False, output_attentions=True)
        weights = query_masks.float() / query_masks.sum(dim=-1, keepdim=True)
        maps = [(weights @ attention.float().mean(dim=1))[..., :image_tokens] for attention in outputs.attentions]
        return done(eager, outputs.loss + guidance_loss(tuple(maps), region_masks[..., :image_tokens]).loss)

    subjects: dict[str, Callable[[], float]] = {
        "unguided": unguided,
        "guided": lambda: by_channels("guided"),
        "some": lambda: by_channels("some"),
        "maps": by_maps,
    }
    of_channels, of_maps = subjects["guided"](), subjects["maps"]()
    if abs(of_channels - of_maps) > 1e-3 * of_maps:
        raise RuntimeError(f"Channels give a loss of {of_channels}, maps one of {of_maps}.")
    seconds = seconds_in_turns(subjects, rounds, warmup=1)
    held = {name: peak_bytes(subject) for name, subject in subjects.items()}
    rows = [
        time_row("step, guided in all layers by unguided", seconds["guided"], seconds["unguided"], "<= 1.05"),
        time_row("step, guided in two layers by unguided", seconds["some"], seconds["unguided"], "<= 1.05"),
        time_row("step, guided by kept maps by channels", seconds["maps"], seconds["guided"]),
        bytes_row("peak memory, guided in all layers by unguided", held["guided"], held["unguided"], "<= 1.02"),
        bytes_row("peak memory, guided in two layers by unguided", held["some"], held["unguided"], "<= 1.02"),
        bytes_row("peak memory, guided by kept maps by channels", held["maps"], held["guided"]),
    ]
    return make_result(
        f"{num_layers} layers, {image_tokens} visual tokens and {words} words, {DEVICE.type}",
        rows,
        f"Both ways of guidance give one loss: {of_channels:.5f} and {of_maps:.5f}.",
    )
