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
"""It is the masks that teach the words where to look: with the masks of other pictures they do not learn it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset

from recipes.answering.rows import grounding_maps
from recipes.scenes import BACKBONES
from recipes.scenes.rows import load_scenes
from recipes.training.arguments import PartsArguments
from recipes.training.parts import build
from trainers import GuidedSFTConfig, GuidedSFTTrainer, apply_stage, get_stage


pytestmark = pytest.mark.slow

IMAGE_SIZE = 192
NUM_STEPS = 40
BATCH_SIZE = 16


class Masses(NamedTuple):
    """Share of the attention of the words that name an object, on pictures that the model was not trained on."""

    own: float
    """In the object's mask."""
    other: float
    """In the masks that other pictures' words name: what the place alone gives, for objects stand in the middle."""
    uniform: float
    """In the object's mask if the attention were even."""


@pytest.fixture(autouse=True)
def both_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def captions(split: str, number: int, seed: int) -> Dataset:
    """Rows whose regions are those of phrases, at least one in each."""
    rows = load_scenes(split, "caption", number, IMAGE_SIZE, seed)
    rows = rows.map(lambda row: {"regions": [r for r in row["regions"] if r["text"] is not None]})
    return rows.filter(lambda row: len(row["regions"]) > 0)


def exchange_masks(rows: Dataset) -> Dataset:
    """Each row with the masks of another one; pictures, words and phrases stay."""
    regions, shift = rows["regions"], len(rows) // 2

    def of_another(row: dict, index: int) -> dict:
        masks = [region["mask"] for region in regions[(index + shift) % len(rows)]]
        return {"regions": [{**r, "mask": masks[k % len(masks)]} for k, r in enumerate(row["regions"])]}

    return rows.map(of_another, with_indices=True, features=rows.features)


def masses(model: torch.nn.Module, processor, rows: Dataset) -> Masses:
    """As `recipes.scenes.evaluation` measures them."""
    model.eval()
    maps, _, cells = grounding_maps(model, processor, list(rows))
    maps = maps.mean(2)  # of the layers: (num_rows, num_regions, num_image_tokens)
    row, _ = named = (cells.sum(-1) > 0).nonzero(as_tuple=True)
    maps, cells = maps[named], cells[named]
    in_cells = maps @ cells.T  # of each phrase in the mask of each
    elsewhere = row.unsqueeze(1) != row
    return Masses(in_cells.diagonal().mean().item(), in_cells[elsewhere].mean().item(), cells.mean().item())


def train(out: Path, rows: Dataset, held_out: Dataset, seed: int) -> tuple[Masses, Masses]:
    """A short stage 3 from the pretrained parts: the masses before and after."""
    torch.manual_seed(seed)
    parts = {"vision": str(BACKBONES / "convnext"), "text": str(BACKBONES / "llama")}
    model, processor = build(PartsArguments(**parts, image_size=IMAGE_SIZE, cross_attention_layers=[1, 3, 5]))
    apply_stage(model, get_stage(3))
    before = masses(model, processor, held_out)
    arguments = GuidedSFTConfig(
        output_dir=str(out),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=NUM_STEPS,
        learning_rate=3e-3,
        activation_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=seed,
    )
    GuidedSFTTrainer(model, arguments, train_dataset=rows, processing_class=processor).train()
    return before, masses(model, processor, held_out)


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_of_other_pictures_teach_nothing(tmp_path: Path, seed: int):
    rows, held_out = captions("train", BATCH_SIZE * NUM_STEPS // 2, seed), captions("test", 60, seed)
    exchanged = exchange_masks(rows)
    same = [
        a == b
        for left, right in zip(rows, exchanged, strict=True)
        for a, b in zip(left["regions"], right["regions"], strict=True)
    ]
    assert not any(same) and rows["messages"] == exchanged["messages"]
    before, right = train(tmp_path, rows, held_out, seed)
    _, wrong = train(tmp_path, exchanged, held_out, seed)
    print(f"\nbefore {before}\nright masks {right}\nmasks of other pictures {wrong}")  # noqa: T201
    assert before.own < 1.2 * before.uniform
    assert right.own > 2 * right.uniform and right.own > 1.5 * right.other
    # Not even, for other pictures' masks teach that objects stand in the middle, and that they are no background. Of what
    # tells an object from others, 0.17 to 0.23 of the right masks' lesson remains (seeds 0 to 3, scatter 0.025).
    assert wrong.own / wrong.other - 1 < (right.own / right.other - 1) / 3
    assert wrong.own < 0.8 * right.own
