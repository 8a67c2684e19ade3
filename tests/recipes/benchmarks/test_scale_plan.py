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
"""The scale plan's arithmetic, and that its page holds what the command prints."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from modeling_agevlm import AgeVlmConfig
from recipes.benchmarks.scale import (
    CONFIGS,
    LLAMAS,
    STAGES,
    make_config,
    parameters,
    reduce_seconds,
    state_bytes,
    tables,
)
from recipes.scale_plan import make_parser


ROOT = Path(__file__).parents[3]


def test_the_page_holds_what_the_command_prints():
    page = (ROOT / "docs" / "scale_plan.md").read_text()
    args = make_parser().parse_args([])
    for title, table in tables(dict(args.seconds), args.gpus, args.pictures_per_second).items():
        assert table in page, f"{title}: run recipes/scale_plan.py and put its table into docs/scale_plan.md"


def test_the_1b_model_is_the_default_configuration():
    assert make_config("1B").to_dict() == AgeVlmConfig().to_dict()


@pytest.mark.parametrize("llama", LLAMAS)
def test_other_llamas_are_models_of_that_size(llama):
    every, trained = parameters(make_config(llama), STAGES["3"][0])
    size = float(llama[:-1]) * 1e9
    assert size < every < 1.75 * size  # the tower, the projector and the cross-attention layers on top
    assert trained < every / 4
    assert parameters(make_config(llama), STAGES["4, LLM trained"][0]) == (every, every)


def test_bytes_of_every_sharding():
    # 10 weights of which 4 are trained, on 2 GPUs
    assert state_bytes(10, 4, "ddp", 2) == 10 * 4 + 4 * (4 + 8)
    assert state_bytes(10, 4, "zero2", 2) == 10 * 2 + 4 * (2 + 4 + 8) / 2
    assert state_bytes(10, 4, "fsdp2", 2) == (10 * 4 + 4 * (4 + 8)) / 2


def test_a_ring_sends_nearly_twice_the_gradients():
    assert reduce_seconds(trained=1000, gpus=2, bandwidth=4000.0) == 1.0
    assert reduce_seconds(trained=1000, gpus=1, bandwidth=4000.0) == 0.0


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_one_of_accelerate(name):
    config = load_config_from_file(str(ROOT / "recipes" / "accelerate_configs" / f"{name}.yaml"))
    assert config.mixed_precision == "bf16"
    assert config.num_processes == 8


def test_measured_seconds_replace_the_assumed():
    args = make_parser().parse_args(["--seconds", "3=9.0", "4, LLM trained=3.6", "--gpus", "8"])
    time = tables(dict(args.seconds), args.gpus, args.pictures_per_second)["Time"]
    row = next(line for line in time.splitlines() if line.startswith("| 3 |"))
    assert "| 9.00 | 391 | 48.8 h |" in row  # 2.5M rows / 16 * 9 s


def test_seconds_of_no_stage(capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--seconds", "5=1.0"])
    assert "'5=1.0' should be STAGE=SECONDS with a stage of" in capsys.readouterr().err
