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
"""Pictures of where words look, beside the curves of a training."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.scenes import BACKBONES
from recipes.scenes.rows import FEATURES, load_scenes
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.looks import NUM_REGIONS, NUM_ROWS, Looks
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig


def train(folder: Path, rows: Dataset, report_to: str, max_steps: int = 2):
    arguments = ModelArguments(
        vision=str(BACKBONES / "convnext"),
        text=str(BACKBONES / "llama"),
        image_size=64,
        cross_attention_layers=[1, 3],
        attention_sink=True,
    )
    training = GuidedSFTConfig(
        output_dir=str(folder),
        max_steps=max_steps,
        per_device_train_batch_size=2,
        broken_rows="skip",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=report_to,
    )
    return run_stage(1, arguments, DataArguments(), training, rows=rows)


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """Eight rows. The picture of the first is broken, the second has no masks."""
    rows = load_scenes("train", "caption", 8, image_size=64).to_list()
    rows[0]["images"] = [{"bytes": b"no picture", "path": None}]
    rows[1]["regions"] = []
    return Dataset.from_list(rows, features=FEATURES)


def test_pictures_beside_the_curves(tmp_path, rows):
    trainer = train(tmp_path / "with", rows, "tensorboard", max_steps=17)
    names = sorted(path.name for path in (tmp_path / "with/looks").iterdir())
    steps = [1, 2, 4, 6, 8, 10, 12, 14, 16, 17]
    assert names == [f"step-{step:06}.png" for step in steps]
    events = EventAccumulator(str(next((tmp_path / "with/runs").iterdir())), size_guidance={"images": 0}).Reload()
    shown = events.Images("where words look")
    assert [image.step for image in shown] == steps
    with Image.open(tmp_path / "with/looks" / names[0]) as picture:
        assert (shown[0].width, shown[0].height) == picture.size
    assert "train/loss" in events.Tags()["scalars"]

    # Nothing of the training is another for it.
    train(tmp_path / "without", rows, "none", max_steps=17)
    assert not (tmp_path / "without/looks").exists()
    with_looks, without = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_looks.items())
    assert trainer.model.training


def test_rows_that_can_be_shown(tmp_path, rows):
    shown = Looks(train(tmp_path, rows, "none")).rows
    assert len(shown) == NUM_ROWS
    for n, (picture, words, batch) in enumerate(shown, start=2):
        assert picture.size == (64, 64)
        phrases = {region["text"] for region in rows[n]["regions"] if region["mask"]} - {None}
        assert 0 < len(words) <= NUM_REGIONS and words[0] in phrases and len(set(words)) == len(words)
        assert batch["query_masks"].shape[1] == len(words)


def test_what_it_draws_is_what_the_trainer_logs(tmp_path, rows):
    """Attention inside the masks, over the picture and by the title."""
    trainer = train(tmp_path, rows, "none")
    looks = Looks(trainer)
    picture, words, batch = looks.rows[0]
    panels = looks.panels(trainer.model.eval(), picture, words, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "query_masks")}
    outputs = trainer.model(
        **inputs, region_masks=torch.cat([batch["region_masks"], 0 * batch["region_masks"][..., :1]], -1)
    )
    inside = torch.stack(outputs.region_attention).mean(0)[0]
    for (title, (attention, sink)), word, share in zip(panels.items(), words, inside.tolist(), strict=True):
        assert title == f"{word} ({share:.0%} inside)"
        assert attention.shape == (64, 64) and 0 <= sink <= 1
