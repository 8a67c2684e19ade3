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
"""A training ends in a saved model, or says before its first step why it could not; the old one stays until then."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_guided_sft_trainer import make_trainer, parameters_of
from test_lora import make_trainer as make_lora_trainer
from testing_utils import tiny_model, tiny_processor

from modeling_agevlm import AgeVlmForConditionalGeneration
from trainers import GuidedSFTTrainer, checkpointing
from trainers.checkpointing import UNFINISHED, remove, save_whole


def killed(*args: Any, **kwargs: Any) -> None:
    raise KeyboardInterrupt


def never_trains(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a step was begun")


def break_generation_config(trainer: GuidedSFTTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.model.generation_config.temperature = 0.5


def break_processor(trainer: GuidedSFTTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.processing_class.tokenizer.init_kwargs["other"] = object()


def break_config(trainer: GuidedSFTTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.model.config.text_config.note = object()


def fill_the_disk(trainer: GuidedSFTTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))


OBSTACLES = {
    break_generation_config: "The model could not be saved in .*temperature",
    break_processor: "The model could not be saved in ",
    break_config: "The model could not be saved in ",
    fill_the_disk: r"The model takes 0\.0 GB, but in .* there are 0\.0 GB left\.",
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("lora", [False, True])
def test_what_stops_the_saving_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: Any, lora: bool
):
    trainer = make_lora_trainer(tmp_path) if lora else make_trainer(tmp_path)
    obstacle(trainer, monkeypatch)
    monkeypatch.setattr(trainer, "training_step", never_trains)
    with pytest.raises((ValueError, OSError), match=OBSTACLES[obstacle]):
        trainer.train()
    assert not list(tmp_path.iterdir())


def test_a_rehearsal_leaves_nothing_and_changes_nothing(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    before = parameters_of(trainer.model)
    trainer.rehearse_saving()
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(before[name], value) for name, value in parameters_of(trainer.model).items())


@pytest.mark.parametrize("method", ["save_final_model", "save_model"])
def test_the_old_model_stays_until_the_new_one_is_complete(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
):
    trainer = make_trainer(tmp_path)
    trainer.save_model()
    old = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(1.0)
    save_processor = type(trainer.processing_class).save_pretrained

    def assert_old() -> None:
        found = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
        assert all(torch.equal(found.state_dict()[name], value) for name, value in old.items())

    def killed(*args: Any, **kwargs: Any) -> None:
        assert (tmp_path / UNFINISHED / "model.safetensors").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(type(trainer.processing_class), "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        getattr(trainer, method)()
    assert_old()
    monkeypatch.setattr(type(trainer.processing_class), "save_pretrained", save_processor)
    monkeypatch.setattr(checkpointing, "write_through", lambda folder: assert_old())
    getattr(trainer, method)()
    assert not (tmp_path / UNFINISHED).exists()
    saved = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(saved.get_parameter(name), value) for name, value in parameters_of(trainer.model).items())


def test_a_checkpoint_that_is_made_anew_is_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, processor = tiny_model(), tiny_processor()
    save_whole(tmp_path, model, processor)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(processor), "save_pretrained", killed)
        save_whole(tmp_path, model, processor)
    saved = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(saved.lm_head.weight, tiny_model().lm_head.weight)
    save_whole(tmp_path, model, processor)
    saved = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(saved.lm_head.weight, model.lm_head.weight)
    assert not (tmp_path / UNFINISHED).exists()


def test_weights_of_an_earlier_model_are_not_mixed_up_with_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`from_pretrained` prefers a single file to shards."""
    trainer = make_trainer(tmp_path)
    trainer.save_model()
    save_file({"note": torch.zeros(1)}, tmp_path / "notes.safetensors")
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(1.0)
    save = AgeVlmForConditionalGeneration.save_pretrained
    in_shards = lambda self, folder, **options: save(self, folder, **options, max_shard_size="50kB")  # noqa: E731
    monkeypatch.setattr(AgeVlmForConditionalGeneration, "save_pretrained", in_shards)
    trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists() and (tmp_path / "model.safetensors.index.json").exists()
    assert (tmp_path / "notes.safetensors").exists()
    saved = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(saved.lm_head.weight, trainer.model.lm_head.weight)
    assert not torch.equal(saved.lm_head.weight, tiny_model().lm_head.weight)


def test_a_checkpoint_is_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").touch()

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        if folder.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(checkpoint)
    assert not checkpoint.exists()
    checkpoint.mkdir()
    remove(checkpoint)
    assert not list(tmp_path.iterdir())
