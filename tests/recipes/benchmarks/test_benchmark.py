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
"""Quantized checkpoints, and that the benchmark compares what it says."""

from pathlib import Path

import pytest
import torch
from testing_utils import tiny_batch, tiny_model, tiny_processor
from transformers import AutoModelForImageTextToText, TorchAoConfig

from recipes.benchmarks.int8 import int8, int8_table
from recipes.benchmarks.timing import ratio, seconds_in_turns


quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")


def test_int8_checkpoint_answers_alike_and_loads_back(tmp_path: Path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "float32")
    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantized = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "float32", trust_remote_code=True, dtype="float32", quantization_config=config
    ).eval()
    kinds = {name: type(parameter).__name__ for name, parameter in quantized.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            assert kinds[f"{name}.weight"] == "Int8Tensor", name
    assert kinds["model.language_model.embed_tokens.weight"] == "Parameter"  # the tied head, too
    with torch.no_grad():
        expected = model(**tiny_batch()).logits
        found = quantized(**tiny_batch()).logits
        assert 1e-3 < (found - expected).abs().max() < 0.1 * expected.std()
        quantized.save_pretrained(tmp_path / "int8")
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "int8", trust_remote_code=True).eval()
        assert torch.equal(again(**tiny_batch()).logits, found)
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "int8")}
    assert sizes["int8"] < 0.8 * sizes["float32"]


def test_subjects_take_turns():
    calls = []
    seconds = seconds_in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warmup=1)
    assert "".join(calls) == "abbaabba"
    assert [len(values) for values in seconds.values()] == [3, 3]


def test_ratio_is_taken_round_by_round():
    assert ratio([2.0, 9.0, 8.0], of=[1.0, 3.0, 8.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_int8_table(tmp_path: Path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    result = int8(str(tmp_path), rounds=1, num_scenes=1)
    assert 0 < result["logit_difference"]["mean"] < 0.1 < result["logit_difference"]["logits_std"]
    assert 0.9 < result["logit_difference"]["same_top_token"] <= 1
    table = int8_table(result)
    assert (
        f"| {result['size_ratio']:.2f} |" in table and f"{result['time_ratio']['generate']['median']:.2f} (" in table
    )
