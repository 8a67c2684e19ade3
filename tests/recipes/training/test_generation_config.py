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
"""A generation config that cannot be saved is mended before the training whose model it is saved with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_guided_sft_trainer import logs_of
from test_recipes import RECIPES
from transformers import GenerationConfig

from recipes.training.arguments import ModelArguments, PartsArguments
from recipes.training.parts import build, mend_generation_config
from recipes.training.stage import load_model
from trainers import get_stage


BACKBONES = RECIPES / "scenes/backbones"
CONFIGS = [
    ({"temperature": 0.9, "top_p": 0.6, "eos_token_id": [1, 2]}, {"eos_token_id": [1, 2]}),
    ({"early_stopping": True, "max_new_tokens": 7}, {"max_new_tokens": 7}),
    ({"num_beams": 3, "early_stopping": True, "top_k": 3}, {"num_beams": 3, "early_stopping": True}),
    ({"pad_token_id": -1}, {}),
]


@pytest.mark.parametrize(("given", "kept"), CONFIGS)
def test_what_cannot_be_saved_is_unset_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, given: dict[str, Any], kept: dict[str, Any]
):
    config = GenerationConfig(**given)
    with pytest.raises(ValueError, match="Fix these issues to save"):
        config.save_pretrained(tmp_path)
    with logs_of(caplog, "recipes"):
        mend_generation_config(config, "an-llm")
    assert {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"} == kept
    named = ", ".join(name for name in given if name not in kept)
    assert f"The generation config of an-llm cannot be saved as it is; without {named} it can." in caplog.text
    config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "given", [{}, {"do_sample": True, "temperature": 0.7}, {"num_beams": 2, "length_penalty": 2.0}]
)
def test_what_can_be_saved_stays(caplog: pytest.LogCaptureFixture, given: dict[str, Any]):
    config = GenerationConfig(**given)
    before = config.to_dict()
    with logs_of(caplog, "recipes"):
        mend_generation_config(config, "an-llm")
    assert config.to_dict() == before and not caplog.text


def with_temperature(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.9, "top_p": 0.6}))


def test_a_model_around_an_older_llm_can_be_saved_and_gone_on_with(tmp_path: Path):
    text = Path(shutil.copytree(BACKBONES / "llama", tmp_path / "llm"))
    with_temperature(text)
    parts = {"vision": str(BACKBONES / "convnext"), "text": str(text), "image_size": 64, "cross_attention_layers": [2]}
    model, processor = build(PartsArguments(**parts))
    assert model.generation_config.temperature is None and model.generation_config.top_p is None
    model.save_pretrained(tmp_path / "s0")
    processor.save_pretrained(tmp_path / "s0")
    with_temperature(tmp_path / "s0")  # as versions of before saved it
    model, _ = load_model(ModelArguments(model_name_or_path=str(tmp_path / "s0")), get_stage(1))
    model.generation_config.max_length = 99
    model.save_pretrained(tmp_path / "s1")
