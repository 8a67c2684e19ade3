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
"""Half precision, ways to load a checkpoint, a larger vocabulary and export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from testing_utils import (
    HALF_LENGTH,
    IMAGE,
    MAP_LENGTH,
    PAD,
    VOCAB_SIZE,
    assert_close,
    tiny_batch,
    tiny_config,
    tiny_model,
    tolerance,
)
from torch import nn

from modeling_agevlm import AgeVlmForConditionalGeneration
from modeling_agevlm.modeling_agevlm import LAYER_SCALE_INIT, AgeVlmOutputProjection
from trainers.guidance import guidance_loss


GREEDY = {
    "min_new_tokens": 6,
    "max_new_tokens": 6,
    "pad_token_id": PAD,
    "suppress_tokens": [IMAGE],
    "do_sample": False,
}


@pytest.fixture(scope="module")
def model() -> AgeVlmForConditionalGeneration:
    return tiny_model(tie_word_embeddings=False).requires_grad_(False)


@pytest.fixture(scope="module")
def checkpoint(model: AgeVlmForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    return path


def mixed_batch() -> dict[str, torch.Tensor]:
    return tiny_batch(placeholders=((1, 6), (3,), ()))


def assert_same_model(
    found: AgeVlmForConditionalGeneration,
    expected: AgeVlmForConditionalGeneration,
    batch: dict[str, torch.Tensor] | None = None,
) -> None:
    batch = mixed_batch() if batch is None else batch
    assert torch.equal(found(**batch).logits, expected(**batch).logits)
    assert torch.equal(found.generate(**batch, **GREEDY), expected.generate(**batch, **GREEDY))


# Half precision


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_and_its_maps_stay_float32(
    checkpoint: Path, model: AgeVlmForConditionalGeneration, backend: str, dtype: torch.dtype
):
    rounding = tolerance(dtype, HALF_LENGTH)
    half = AgeVlmForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype, attn_implementation=backend)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    batch = mixed_batch()
    batch["labels"] = batch["input_ids"]
    batch["pixel_attention_mask"] = torch.ones_like(batch["pixel_values"][:, :, 0], dtype=torch.long)
    batch["pixel_attention_mask"][0, :, 32:] = 0
    batch["query_masks"] = torch.zeros(3, 2, 10, dtype=torch.bool)
    batch["query_masks"][:, 0, 4:6] = batch["query_masks"][:, 1, 7] = True
    masks = (torch.rand(3, 2, 18, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    outputs, expected = half(**batch), model(**batch)
    guidance, expected_guidance = (guidance_loss(o.grounding_maps, masks) for o in (outputs, expected))

    assert outputs.logits.dtype == dtype and outputs.logits.isfinite().all()
    assert_close(outputs.loss.to(dtype), expected.loss.to(dtype), HALF_LENGTH)
    for layer_map, expected_map in zip(outputs.grounding_maps, expected.grounding_maps, strict=True):
        assert layer_map.dtype == torch.float32
        assert_close(layer_map, expected_map, atol=rounding * expected_map.max().item())
        assert_close(layer_map.sum(-1), expected_map.sum(-1), MAP_LENGTH)
        assert torch.equal(layer_map == 0, expected_map == 0)
    assert guidance.loss.dtype == torch.float32
    assert_close(guidance.loss, expected_guidance.loss, atol=rounding * expected_guidance.loss.item())

    (outputs.loss + guidance.loss).backward()
    for name, parameter in half.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_generates_from_float32_pictures(checkpoint: Path, dtype: torch.dtype):
    half = AgeVlmForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype)
    batch = mixed_batch()
    arguments = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    cached, uncached = (half.generate(**batch, **arguments, use_cache=use_cache) for use_cache in (True, False))
    assert all(logits.isfinite().all() for logits in cached.logits)
    # Later steps may part ways: rounding decides between words that are almost equally likely.
    assert_close(cached.logits[1].to(dtype), uncached.logits[1].to(dtype), HALF_LENGTH)
    in_half = batch | {"pixel_values": batch["pixel_values"].to(dtype)}
    assert torch.equal(half(**batch).logits, half(**in_half).logits)


# Loading


@pytest.mark.parametrize(
    "arguments",
    [{"device_map": {"": "cpu"}}, {"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}],
    ids=str,
)
def test_ways_to_load(checkpoint: Path, model: AgeVlmForConditionalGeneration, arguments: dict[str, Any]):
    again = AgeVlmForConditionalGeneration.from_pretrained(checkpoint, **arguments)
    assert_same_model(again, model)
    assert {tensor.device.type for tensor in again.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_parts_may_be_offloaded_to_the_disk(
    checkpoint: Path, model: AgeVlmForConditionalGeneration, tmp_path: Path, share: float
):
    room = int(share * sum(4 * parameter.numel() for parameter in model.parameters()))
    again = AgeVlmForConditionalGeneration.from_pretrained(
        checkpoint, device_map="auto", max_memory={"cpu": room}, offload_folder=tmp_path
    )
    assert "disk" in again.hf_device_map.values()
    assert_same_model(again, model)


def test_shards(model: AgeVlmForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 4
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    assert_same_model(again, model)


@pytest.fixture
def uninitialized_memory_is_nan() -> Iterator[None]:
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def assert_is_initialized(model: AgeVlmForConditionalGeneration, names: set[str]) -> None:
    """Every parameter of `names` has the values, or the spread, that a new model gives it."""
    for prefix, module in model.named_modules():
        for own, parameter in module.named_parameters(prefix, recurse=False):
            if own not in names:
                continue
            assert parameter.isfinite().all(), own
            if own.endswith("gamma"):
                assert (parameter == LAYER_SCALE_INIT).all(), own
            elif own.endswith("bias") or isinstance(module, AgeVlmOutputProjection):
                assert (parameter == 0).all(), own
            elif parameter.dim() == 1:  # norms
                assert (parameter == 1).all(), own
            else:
                drawn = parameter[1:] if isinstance(module, nn.Embedding) else parameter  # row 0 is the padding
                std = model.config.text_config.initializer_range
                assert 0.75 * std < drawn.std() < 1.25 * std, own
                assert drawn.mean().abs() < 0.25 * std, own
    for name, buffer in model.named_buffers():
        assert buffer.isfinite().all(), name
    expected = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(model.model.language_model.rotary_emb.inv_freq, expected)


GROUPS = {
    "all": lambda name: True,
    "tower": lambda name: "vision_tower" in name,
    "projector": lambda name: "multi_modal_projector" in name,
    "cross-attention": lambda name: ".layers.1." in name or ".layers.3." in name,
    "llm": lambda name: "language_model" in name and ".layers.1." not in name and ".layers.3." not in name,
    "head": lambda name: name == "lm_head.weight",
    "weights": lambda name: name.endswith("weight"),
    "biases": lambda name: name.endswith("bias"),
} | {f"random {seed}": seed for seed in range(6)}


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.usefixtures("uninitialized_memory_is_nan")
def test_missing_weights_are_initialized(checkpoint: Path, tmp_path: Path, group: str):
    weights = load_file(checkpoint / "model.safetensors")
    if callable(GROUPS[group]):
        missing = set(filter(GROUPS[group], weights))
    else:
        drawn = torch.rand(len(weights), generator=torch.Generator().manual_seed(GROUPS[group])) < 0.4
        missing = {name for name, is_missing in zip(sorted(weights), drawn, strict=True) if is_missing}
    kept = {name: tensor for name, tensor in weights.items() if name not in missing}
    assert missing
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = AgeVlmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == missing and not info["unexpected_keys"]
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert_is_initialized(model, missing)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())


@pytest.mark.usefixtures("uninitialized_memory_is_nan")
def test_model_from_the_meta_device_is_initialized():
    with torch.device("meta"):
        model = AgeVlmForConditionalGeneration(tiny_config(tie_word_embeddings=False))
    model.to_empty(device="cpu")
    assert all(parameter.isnan().all() for parameter in model.parameters())
    model.init_weights()
    assert_is_initialized(model, {name for name, _ in model.named_parameters()})
    assert model.eval()(**mixed_batch()).logits.isfinite().all()


def test_new_model_is_initialized():
    model = tiny_model(redrawn=False, tie_word_embeddings=False)
    assert_is_initialized(model, {name for name, _ in model.named_parameters()})


# Vocabulary


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE + 64, VOCAB_SIZE - 16])
def test_resized_vocabulary_keeps_the_other_logits(tied: bool, vocab_size: int, tmp_path: Path):
    model = tiny_model(tie_word_embeddings=tied).requires_grad_(False)
    batch = mixed_batch()
    batch["input_ids"].clamp_(max=VOCAB_SIZE - 17)
    logits = model(**batch).logits
    model.resize_token_embeddings(vocab_size)
    assert model.config.text_config.vocab_size == vocab_size
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    resized = model(**batch).logits
    common = min(vocab_size, VOCAB_SIZE)
    assert resized.shape[-1] == vocab_size
    assert_close(resized[..., :common], logits[..., :common])
    assert model(**batch, labels=batch["input_ids"]).loss.isfinite()
    assert model.generate(**batch, **GREEDY).shape == (3, 16)
    if vocab_size > VOCAB_SIZE:
        batch["input_ids"][:, -1] = vocab_size - 1
        assert model(**batch).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    assert_same_model(again, model, batch)


# Export


def test_exported_prefill_is_the_forward(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    program = torch.export.export(model, (), batch | {"use_cache": False})
    expected = model(**batch, use_cache=False)
    found = program.module()(**batch, use_cache=False)
    assert_close(found.logits, expected.logits)
    other = batch | {"pixel_values": batch["pixel_values"].flip(0), "input_ids": batch["input_ids"].flip(0)}
    found, expected = program.module()(**other, use_cache=False), model(**other, use_cache=False)
    assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("attention_sink", [False, True])
def test_exported_prefill_takes_any_number_of_rows_and_tokens(attention_sink: bool):
    model = tiny_model(text_config={"attention_sink": attention_sink})
    rows, tokens = torch.export.Dim("rows", max=64), torch.export.Dim("tokens", max=256)
    shapes = {"input_ids": {0: rows, 1: tokens}, "attention_mask": {0: rows, 1: tokens}, "pixel_values": {0: rows}}
    program = torch.export.export(
        model,
        (),
        tiny_batch(placeholders=((1, 6), (3,))) | {"use_cache": False},
        dynamic_shapes=shapes | {"use_cache": None},
    )
    for placeholders, length in ((((1, 6), (3,), ()), 13), (((0, 20), ()), 21)):
        batch = tiny_batch(placeholders, length)
        batch["attention_mask"][-1, :3] = 0
        found, expected = program.module()(**batch, use_cache=False), model(**batch, use_cache=False)
        real = batch["attention_mask"] == 1
        assert_close(found.logits[real], expected.logits[real])
