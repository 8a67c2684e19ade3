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
import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from testing_utils import (
    GRADIENT_LENGTH,
    IMAGE,
    MAP_LENGTH,
    NUM_CELLS,
    PAD,
    VISION,
    assert_close,
    llama_twin,
    tiny_batch,
    tiny_model,
    up_to_rounding,
)
from transformers import AutoConfig, AutoModel, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modeling_agevlm import AgeVlmForConditionalGeneration
from modeling_agevlm.modeling_agevlm import AgeVlmCrossAttention, AgeVlmCrossAttentionInputs, sincos_position_code


BACKENDS = pytest.mark.parametrize("backend", ["sdpa", "eager"])
# The weights are random: without being told, they would write a placeholder now and then.
NEW_TOKENS = {"min_new_tokens": 8, "max_new_tokens": 8, "pad_token_id": PAD, "suppress_tokens": [IMAGE]}


@pytest.fixture(scope="module")
def model() -> AgeVlmForConditionalGeneration:
    return tiny_model().requires_grad_(False)


def some_queries(batch: dict[str, torch.Tensor], num_regions: int = 3) -> torch.Tensor:
    """Random queries, each with the last token, which sees every image of its row."""
    batch_size, length = batch["input_ids"].shape
    queries = torch.rand(batch_size, num_regions, length, generator=torch.Generator().manual_seed(1)) < 0.4
    queries[..., -1] = True
    return queries


def sees_image(input_ids: torch.Tensor) -> torch.Tensor:
    return (input_ids == IMAGE).cumsum(-1) > 0


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    length = max(map(len, rows))
    pad = torch.nn.functional.pad
    return {
        "input_ids": torch.stack([pad(row, (length - len(row), 0), value=PAD) for row in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row), (length - len(row), 0)) for row in rows]),
    }


# The language model is untouched where there is no image


@BACKENDS
def test_text_only_logits_are_those_of_the_llm_to_the_bit(backend: str):
    model = tiny_model(attn_implementation=backend)
    batch = tiny_batch(placeholders=((), ()))
    batch["attention_mask"][0, -3:] = 0
    assert torch.equal(model(**batch).logits, llama_twin(model)(**batch).logits)


@BACKENDS
def test_at_initialization_the_model_is_its_llm_with_images_too(backend: str):
    model = tiny_model(redrawn=False, attn_implementation=backend)
    batch = tiny_batch()
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model(**batch).logits, llama_twin(model)(**text).logits)


def test_text_only_row_of_a_mixed_batch_is_untouched(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((), (2,)))
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**batch).logits
    other = model(**batch | {"pixel_values": 2 * batch["pixel_values"]}).logits
    assert torch.equal(logits[0], llama_twin(model)(**text).logits[0])
    assert torch.equal(logits[0], other[0]) and not torch.equal(logits[1], other[1])


def test_tokens_before_the_placeholder_do_not_see_the_image(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((4,), (4,)))
    logits = model(**batch).logits
    other = model(**batch | {"pixel_values": batch["pixel_values"].flip(0)}).logits
    assert torch.equal(logits[:, :4], other[:, :4])
    assert (logits[:, 4:] - other[:, 4:]).abs().amax(dim=-1).min() > 1e-3


def test_second_image_is_seen_from_its_placeholder_on(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6),))
    logits = model(**batch).logits
    pixel_values = batch["pixel_values"].clone()
    pixel_values[:, 1] += 1
    other = model(**batch | {"pixel_values": pixel_values}).logits
    assert torch.equal(logits[:, :6], other[:, :6])
    assert (logits[:, 6:] - other[:, 6:]).abs().amax(dim=-1).min() > 1e-3


def test_images_belong_to_the_placeholders_in_order(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6),))
    first_only = model(
        input_ids=batch["input_ids"][:, :6], pixel_values=batch["pixel_values"][:, :1], use_cache=False
    ).logits
    assert_close(model(**batch).logits[:, :6], first_only)


def test_input_embeddings_are_the_tokens_that_they_embed(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embeddings, pixel_values=batch["pixel_values"]).logits
    assert_close(found, model(**batch).logits)


def test_cross_attention_layer_is_equation_2(model: AgeVlmForConditionalGeneration):
    """H + o(softmax(q k / sqrt(d)) v), then + MLP(norm(.)), head after head; head `h` reads key and value head `h // 2`."""
    layer = model.model.language_model.layers[1]
    attention, mlp = layer.cross_attn, layer.mlp
    hidden_states, visual = torch.randn(1, 5, 32), torch.randn(1, NUM_CELLS, 32)
    inputs = AgeVlmCrossAttentionInputs(
        cross_attention_states=visual,
        visible_from=torch.zeros(1, 1, dtype=torch.long),
        cross_attention_mask=torch.zeros(1, 1, 5, NUM_CELLS),
        sees_image=torch.ones(1, 5, 1, dtype=torch.bool),
        query_weights=None,
        region_channels=None,
    )
    found, _ = layer(hidden_states, inputs, cache=None)

    def rms_norm(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return states / (states.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    normed = rms_norm(hidden_states, layer.input_layernorm.weight)
    heads = []
    for head in range(4):
        own, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        query = rms_norm(normed @ attention.q_proj.weight[own].T, attention.q_norm.weight)
        key = rms_norm(visual @ attention.k_proj.weight[shared].T, attention.k_norm.weight)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(weights @ (visual @ attention.v_proj.weight[shared].T))
    expected = hidden_states + torch.cat(heads, dim=-1) @ attention.o_proj.weight.T
    normed = rms_norm(expected, layer.post_attention_layernorm.weight)
    gate = torch.nn.functional.silu(normed @ mlp.gate_proj.weight.T)
    expected = expected + (gate * (normed @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T
    assert_close(found, expected)


def test_tower_is_timms_last_feature_map_row_by_row(model: AgeVlmForConditionalGeneration):
    tower = timm.create_model(VISION["architecture"], num_classes=0, features_only=True, **VISION["model_args"]).eval()
    own = model.model.vision_tower.timm_model.state_dict()
    tower.load_state_dict({name.replace("stem.", "stem_").replace("stages.", "stages_"): t for name, t in own.items()})
    pixel_values = torch.randn(2, 3, 64, 96)
    expected = tower(pixel_values)[-1]  # (2, 24, 2, 3)
    found = model.get_image_features(pixel_values)
    for row in range(2):
        for column in range(3):
            cell = found.last_hidden_state[:, 3 * row + column]
            assert_close(cell, expected[:, :, row, column])
    projector = model.model.multi_modal_projector
    hidden = torch.nn.functional.gelu(found.last_hidden_state @ projector.linear_1.weight.T + projector.linear_1.bias)
    projected = hidden @ projector.linear_2.weight.T + projector.linear_2.bias
    assert_close(found.pooler_output, projected)


def test_image_outputs_are_of_the_images_that_there_are(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (), (3,)))
    pixel_values = batch["pixel_values"]
    expected = model.get_image_features(torch.stack([pixel_values[0, 0], pixel_values[0, 1], pixel_values[2, 0]]))
    for outputs in (model(**batch, output_hidden_states=True), model.model(**batch, output_hidden_states=True)):
        found = outputs.image_outputs
        assert found.pooler_output.shape == (3, NUM_CELLS, 32)
        assert torch.equal(found.pooler_output, expected.pooler_output)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert len(found.hidden_states) == 5 and len(outputs.hidden_states) == 6
    as_tuple = model(**batch, return_dict=False)
    assert any(isinstance(entry, tuple) and torch.equal(entry[1], expected.pooler_output) for entry in as_tuple)
    assert model(input_ids=batch["input_ids"][1:2]).image_outputs is None


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_auto_classes_know_the_parts(model: AgeVlmForConditionalGeneration, part: str, tmp_path: Path):
    own = {"text_config": model.model.language_model, "vision_config": model.model.vision_tower}[part]
    config = getattr(model.config, part)
    assert type(AutoModel.from_config(copy.deepcopy(config))) is type(own)
    assert type(AutoConfig.for_model(config.model_type)) is type(config)
    own.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is type(own) and again.state_dict().keys() == own.state_dict().keys()
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in again.state_dict().items())


# Attention backends


def test_eager_and_sdpa_agree(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    eager = tiny_model(attn_implementation="eager")
    assert_close(model(**batch).logits, eager(**batch).logits)


def first_token_reads_the_last_cell(model: AgeVlmForConditionalGeneration) -> bool:
    batch = tiny_batch(placeholders=((0,),), length=NUM_CELLS - 4)
    shift = torch.zeros(NUM_CELLS, 1)
    shift[-1] = 5
    logits = model(**batch).logits
    hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: output + shift)
    other = model(**batch).logits
    hook.remove()
    return not torch.equal(logits[:, 0], other[:, 0])


@BACKENDS
def test_cross_attention_is_not_causal(backend: str):
    assert first_token_reads_the_last_cell(tiny_model(attn_implementation=backend))


def test_causal_cross_attention_would_be_noticed(
    model: AgeVlmForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
):
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def causal(module, query, key, value, attention_mask, **kwargs):
        if isinstance(module, AgeVlmCrossAttention):
            attention_mask, kwargs["is_causal"] = None, True
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", causal)
    assert not first_token_reads_the_last_cell(model)


def test_backends_are_told_that_cross_attention_is_not_causal(
    model: AgeVlmForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
):
    told = []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def listen(module, *args, **kwargs):
        if isinstance(module, AgeVlmCrossAttention):
            told.append((module.is_causal, kwargs["is_causal"]))
        return sdpa(module, *args, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", listen)
    model(**tiny_batch())
    assert told == [(False, False)] * len(model.config.text_config.cross_attention_layers)


def test_visual_keys_cut_to_the_texts_length_would_be_noticed(
    model: AgeVlmForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
):
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def cut(module, query, key, value, attention_mask, **kwargs):
        if isinstance(module, AgeVlmCrossAttention):
            length = query.shape[2]
            key, value = key[:, :, :length], value[:, :, :length]
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", cut)
    assert not first_token_reads_the_last_cell(model)


@BACKENDS
def test_a_whole_picture_per_row_needs_no_mask(backend: str):
    """Which spares the attention, and changes nothing: not for rows without a picture, words before it or later turns."""
    model = tiny_model(attn_implementation=backend).requires_grad_(False)
    masks = []
    for layer in model.modules():
        if isinstance(layer, AgeVlmCrossAttention):
            layer.register_forward_pre_hook(lambda module, args: masks.append(args[1].cross_attention_mask))
    batch = tiny_batch(placeholders=((2,), ()))
    batch["query_masks"] = some_queries(batch)
    later = torch.full((2, 3), 7)
    second = {"input_ids": torch.cat([torch.full((2, 1), IMAGE), later], dim=1)}
    second["pixel_values"] = batch["pixel_values"].flip(0)

    def three_turns(**padding: torch.Tensor) -> list[torch.Tensor]:
        first = model(**batch, **padding, use_cache=True)
        cache = first.cache
        turns = [first, model(input_ids=later, cache=cache), model(**second, cache=cache)]
        return [turn.logits for turn in turns] + list(first.grounding_maps)

    spared = three_turns()
    assert [mask is None for mask in masks] == [True] * 4 + [False] * 2
    masks.clear()
    masked = three_turns(pixel_attention_mask=torch.ones_like(batch["pixel_values"][:, :, 0]))
    assert not any(mask is None for mask in masks)
    for without, with_mask in zip(spared, masked, strict=True):
        assert_close(without, with_mask)
    # The row without a picture does not see what fills its place when another row's comes before its own.
    texts = [batch["input_ids"][1:], later[1:], second["input_ids"][1:]]
    alone = model(input_ids=torch.cat(texts, dim=1), pixel_values=second["pixel_values"][1:]).logits
    assert_close(alone[:, -4:], spared[2][1:])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (2, 5), (1, 24)])
def test_position_code_tells_places_apart(height: int, width: int):
    """Every place has a code of its own, of mean square 1, and neighbors are closer to each other than others."""
    code = sincos_position_code(height, width, 64, torch.device("cpu"))
    assert code.shape == (height * width, 64)
    assert_close(code.square().mean(dim=-1), torch.ones(height * width))
    distances = torch.cdist(code, code).view(height, width, height, width)
    assert distances.flatten(2).flatten(0, 1).fill_diagonal_(1).min() > 0.1
    from_first = distances[0, 0, 0]
    assert from_first[1] == from_first[1:].min()
    # by hand: the slowest column wave has a quarter of a period over the width
    wave = 2**0.5 * math.sin(2 * math.pi * 0.25 * 0.5 / width)
    assert code[0, 32].item() == up_to_rounding(wave)


def test_values_hold_positions_as_well_as_keys():
    """A picture of even color, whose cells differ by their place alone: its values differ by it as well."""
    model = tiny_model(use_visual_positions=True)
    batch = tiny_batch()
    seen = {}
    layer = model.model.language_model.layers[1].cross_attn
    layer.register_forward_pre_hook(lambda module, args: seen.update(states=args[1].cross_attention_states))
    model(**batch)
    tokens = model.model.get_image_features(batch["pixel_values"]).pooler_output
    strengths = tokens.square().mean(dim=-1, keepdim=True).sqrt()
    code = sincos_position_code(3, 3, tokens.shape[-1], tokens.device)
    expected = (tokens + strengths * code).view(*batch["pixel_values"].shape[:2], *code.shape).flatten(1, 2)
    used = batch["pixel_values"].flatten(2).any(dim=-1).repeat_interleave(len(code), dim=1)
    assert_close(seen["states"][used], expected[used])
    plain = tiny_model()
    plain.load_state_dict(model.state_dict())
    assert (plain(**batch).logits - model(**batch).logits).abs().max() > 1e-3
    # what fills up rows with fewer pictures has no strength, and no gradient that is none
    batch = tiny_batch(placeholders=((0, 5), (2,)))
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_cross_attention_without_an_mlp():
    model = tiny_model(text_config={"cross_attention_intermediate_size": 0})
    assert model.model.language_model.layers[1].mlp is model.model.language_model.layers[3].mlp is None
    batch = tiny_batch()
    logits = model(**batch).logits
    assert logits.isfinite().all()
    assert not torch.equal(logits, model(**batch | {"pixel_values": batch["pixel_values"].flip(0)}).logits)


# Grounding maps


@BACKENDS
def test_maps_are_the_averaged_softmax(backend: str):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    queries = some_queries(batch)
    eager = tiny_model(attn_implementation="eager")
    softmax = eager(**batch, output_attentions=True).cross_attentions
    maps = tiny_model(attn_implementation=backend)(**batch, query_masks=queries).grounding_maps
    sees = sees_image(batch["input_ids"])
    assert len(maps) == len(softmax) == 2
    for layer_map, attention in zip(maps, softmax, strict=True):
        assert layer_map.shape == (2, 3, 2 * NUM_CELLS) and layer_map.dtype == torch.float32
        for b in range(2):
            for k in range(3):
                by_hand = attention[b].mean(dim=0)[queries[b, k] & sees[b]].mean(dim=0)
                assert_close(layer_map[b, k], by_hand)


def test_maps_are_distributions_and_not_uniform(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    for layer_map in model(**batch, query_masks=some_queries(batch)).grounding_maps:
        assert_close(layer_map.sum(-1), torch.ones(2, 3), MAP_LENGTH)
        assert (layer_map.amax(dim=-1) > 1.2 / NUM_CELLS / 2).all()


def test_maps_are_zero_on_images_not_yet_seen(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    queries = torch.zeros(2, 1, 10, dtype=torch.bool)
    queries[:, 0, 3:6] = True
    for layer_map in model(**batch, query_masks=queries).grounding_maps:
        assert (layer_map[..., :NUM_CELLS] > 0).all()
        assert (layer_map[..., NUM_CELLS:] == 0).all()
        assert_close(layer_map.sum(-1), torch.ones(2, 1), MAP_LENGTH)


def test_maps_are_zero_on_padded_cells(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    pixel_attention_mask = torch.zeros(2, 1, 96, 96, dtype=torch.long)
    pixel_attention_mask[..., 31:64, :] = (
        1  # one row of pixels in the first row of cells, the second row, not the third
    )
    batch["pixel_attention_mask"] = pixel_attention_mask
    for layer_map in model(**batch, query_masks=some_queries(batch)).grounding_maps:
        assert (layer_map[..., :6] > 0).all() and (layer_map[..., 6:] == 0).all()
        assert_close(layer_map.sum(-1), torch.ones(2, 3), MAP_LENGTH)


def test_padded_cells_do_not_reach_the_logits(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    batch["pixel_attention_mask"] = torch.ones(2, 1, 96, 96, dtype=torch.long)
    batch["pixel_attention_mask"][..., 64:, :] = 0
    shift = torch.zeros(NUM_CELLS, 1)
    shift[6:] = 5
    logits = model(**batch).logits
    hook = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: output + shift)
    other = model(**batch).logits
    hook.remove()
    assert torch.equal(logits, other)


def test_query_without_a_seeing_token_has_a_map_of_zeros(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((4,), ()))
    queries = torch.zeros(2, 3, 10, dtype=torch.bool)
    queries[0, 0, :4] = True  # before the placeholder
    queries[0, 1, :5] = True
    queries[1, 0] = True  # a row without an image
    for layer_map in model(**batch, query_masks=queries).grounding_maps:
        assert_close(layer_map.sum(-1), torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), MAP_LENGTH)


@BACKENDS
def test_gradient_of_the_maps_reaches_queries_and_keys(backend: str):
    model = tiny_model(attn_implementation=backend)
    batch = tiny_batch()
    maps = model(**batch, query_masks=some_queries(batch)).grounding_maps
    for layer, layer_map in zip((1, 3), maps, strict=True):
        model.zero_grad()
        layer_map[..., 0].sum().backward(retain_graph=True)
        attention = model.model.language_model.layers[layer].cross_attn
        assert attention.q_proj.weight.grad.abs().max() > 1e-5
        assert attention.k_proj.weight.grad.abs().max() > 1e-5


def test_no_maps_unless_asked_for(model: AgeVlmForConditionalGeneration):
    assert model(**tiny_batch()).grounding_maps is None


# Gradient checkpointing


def losses_and_gradients(model: AgeVlmForConditionalGeneration) -> dict[str, torch.Tensor]:
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    outputs = model(**batch, labels=batch["input_ids"], query_masks=some_queries(batch), use_cache=False)
    (outputs.loss + sum(layer_map[..., 0].sum() for layer_map in outputs.grounding_maps)).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return gradients | {"loss": outputs.loss, "maps": torch.stack(outputs.grounding_maps)}


def test_gradient_checkpointing_changes_nothing():
    plain = tiny_model().train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    calls = []
    block, layer = checkpointed.model.vision_tower.stages[0].blocks[0], checkpointed.model.language_model.layers[1]
    block.register_forward_pre_hook(lambda *_: calls.append("block"))
    layer.cross_attn.q_proj.register_forward_pre_hook(lambda *_: calls.append("q"))
    expected, found = losses_and_gradients(plain), losses_and_gradients(checkpointed)
    assert sorted(calls) == ["block", "block", "q", "q"]  # each ran again in the backward pass
    for name in expected:
        assert_close(found[name], expected[name], GRADIENT_LENGTH, name)


# Generation and the cache


@pytest.mark.parametrize(
    "arguments", [{}, {"num_beams": 3}, {"do_sample": True}, {"num_beams": 2, "num_return_sequences": 2}]
)
def test_cached_generation_is_uncached_generation(model: AgeVlmForConditionalGeneration, arguments: dict):
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    results = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        results.append(model.generate(**batch, **NEW_TOKENS, **{"do_sample": False} | arguments, use_cache=use_cache))
    assert torch.equal(*results)
    assert results[0].shape == (3 * arguments.get("num_return_sequences", 1), 18)


def test_cached_generation_does_not_see_padded_cells(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    batch["pixel_attention_mask"] = torch.ones(2, 2, 96, 96, dtype=torch.long)
    batch["pixel_attention_mask"][..., 32:, :] = 0
    scores = [
        torch.stack(
            model.generate(
                **batch,
                **NEW_TOKENS,
                do_sample=False,
                use_cache=use_cache,
                output_logits=True,
                return_dict_in_generate=True,
            ).logits
        )
        for use_cache in (True, False)
    ]
    assert_close(*scores)


def test_cache_follows_the_rows(model: AgeVlmForConditionalGeneration):
    """What beam search and its like do to a cache happens to the visual keys and to what is visible as well."""
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))

    def rows_of(change: Callable[[DynamicCache], None], rows: list[int]) -> None:
        cache = DynamicCache(config=model.config)
        model(**batch, cache=cache, use_cache=True)
        before = copy.deepcopy(cache.layers[1])
        change(cache)
        for name in ("keys", "values", "visible_from"):
            assert torch.equal(getattr(cache.layers[1], name), getattr(before, name)[rows]), name
        token = torch.full((len(rows), 1), 50)
        full = torch.cat([batch["input_ids"][rows], token], dim=1)
        expected = model(input_ids=full, pixel_values=batch["pixel_values"][rows], use_cache=False).logits[:, -1]
        found = model(input_ids=token, cache=cache, use_cache=True).logits[:, -1]
        assert_close(found, expected)

    rows_of(lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1])
    rows_of(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2])
    rows_of(lambda cache: cache.batch_select_indices(torch.tensor([1])), [1])


def test_generation_depends_on_the_picture(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    flipped = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    outputs = [model.generate(**inputs, **NEW_TOKENS, do_sample=False) for inputs in (batch, flipped)]
    assert not torch.equal(*outputs)


def test_static_cache_is_the_dynamic_cache(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    dynamic = model.generate(**batch, **NEW_TOKENS, do_sample=False)
    static = model.generate(
        **batch, **NEW_TOKENS, do_sample=False, cache_implementation="static", disable_compile=True
    )
    assert torch.equal(static, dynamic)


def test_left_padded_rows_generate_as_alone(model: AgeVlmForConditionalGeneration):
    alone = [tiny_batch(((1,),), length=9, seed=1), tiny_batch(((2, 5),), length=12, seed=2)]
    alone.append(tiny_batch(((),), length=6, seed=3))
    expected = [model.generate(**batch, **NEW_TOKENS, do_sample=False)[0, -8:] for batch in alone]
    batch = left_padded([batch["input_ids"][0] for batch in alone])
    batch["pixel_values"] = torch.zeros(3, 2, 3, 96, 96)
    batch["pixel_values"][0, :1] = alone[0]["pixel_values"][0]
    batch["pixel_values"][1] = alone[1]["pixel_values"][0]
    generated = model.generate(**batch, **NEW_TOKENS, do_sample=False)[:, -8:]
    assert torch.equal(generated, torch.stack(expected))


def test_right_padded_rows_have_the_logits_of_the_row_alone(model: AgeVlmForConditionalGeneration):
    long, short = tiny_batch(((1, 5),), length=12, seed=1), tiny_batch(((2,),), length=7, seed=2)
    batch = {name: torch.zeros(2, 12, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["pixel_values"] = torch.zeros(2, 2, 3, 96, 96)
    for row, alone in enumerate((long, short)):
        length = alone["input_ids"].shape[1]
        batch["input_ids"][row, :length] = alone["input_ids"]
        batch["attention_mask"][row, :length] = 1
        batch["pixel_values"][row, : alone["pixel_values"].shape[1]] = alone["pixel_values"][0]
    logits = model(**batch).logits
    assert_close(logits[:1], model(**long).logits)
    assert_close(logits[1:, :7], model(**short).logits)


@pytest.mark.parametrize("make_cache", [lambda model: DynamicCache(config=model.config), lambda model: DynamicCache()])
def test_image_of_a_later_turn_is_appended_to_the_cache(model: AgeVlmForConditionalGeneration, make_cache: Callable):
    batch = tiny_batch(placeholders=((1, 7), (2, 6)))
    ids, pictures = batch["input_ids"], batch["pixel_values"]
    at_once = model(**batch, use_cache=False).logits
    cache = make_cache(model)
    first = model(input_ids=ids[:, :5], pixel_values=pictures[:, :1], cache=cache, use_cache=True).logits
    second = model(input_ids=ids[:, 5:9], pixel_values=pictures[:, 1:], cache=cache, use_cache=True).logits
    last = model(input_ids=ids[:, 9:], cache=cache, use_cache=True).logits
    assert_close(torch.cat([first, second, last], dim=1), at_once)


def test_first_image_may_come_in_a_later_turn(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((7,),))
    cache = DynamicCache(config=model.config)
    first = model(input_ids=batch["input_ids"][:, :5], cache=cache, use_cache=True).logits
    second = model(
        input_ids=batch["input_ids"][:, 5:], pixel_values=batch["pixel_values"], cache=cache, use_cache=True
    ).logits
    at_once = model(**batch, use_cache=False).logits
    assert_close(torch.cat([first, second], dim=1), at_once)


def test_the_cache_goes_by_its_old_name_too(model: AgeVlmForConditionalGeneration):
    ids = tiny_batch(placeholders=((7,),))["input_ids"][:, :7]  # no image
    for part in (model, model.model, model.model.language_model):
        cache = DynamicCache(config=model.config)
        with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
            first = part(input_ids=ids[:, :4], past_key_values=cache, use_cache=True)
        assert first.cache is cache and cache.get_seq_length() == 4
        with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
            last = part(input_ids=ids[:, 4:], past_key_values=cache, use_cache=True)
        assert_close(last[0], part(input_ids=ids, use_cache=False)[0][:, 4:])


def test_generation_continues_a_chat_with_another_image(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1,),), length=6)
    cache = DynamicCache(config=model.config)
    answer = model.generate(**batch, **NEW_TOKENS, do_sample=False, cache=cache)
    turn = tiny_batch(placeholders=((1,),), length=6, seed=5)
    ids = torch.cat([answer, turn["input_ids"]], dim=1)
    both = torch.cat([batch["pixel_values"], turn["pixel_values"]], dim=1)
    expected = model.generate(input_ids=ids, pixel_values=both, **NEW_TOKENS, do_sample=False)
    found = model.generate(
        input_ids=ids, pixel_values=turn["pixel_values"], **NEW_TOKENS, do_sample=False, cache=cache
    )
    assert torch.equal(found, expected)


def test_cropping_the_cache_leaves_the_visual_keys(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    cache = DynamicCache(config=model.config)
    model(**batch, cache=cache, use_cache=True)
    before = [cache.layers[layer].keys.clone() for layer in (1, 3)]
    cache.crop(-4)
    assert [cache.layers[layer].keys.shape[-2] for layer in (0, 2, 4)] == [6, 6, 6]
    assert all(torch.equal(cache.layers[layer].keys, keys) for layer, keys in zip((1, 3), before, strict=True))
    again = model(input_ids=batch["input_ids"][:, 6:], cache=cache, use_cache=True).logits
    assert_close(again, model(**batch, use_cache=False).logits[:, 6:])


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generate_runs_the_tower_once_per_picture(model: AgeVlmForConditionalGeneration, arguments: dict):
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    pictures = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda module, args: pictures.append(len(args[0])))
    model.generate(**batch, **NEW_TOKENS, **{"do_sample": False} | arguments)
    hook.remove()
    assert pictures == [3]  # the fillers do not run


# What cannot be is refused


def test_query_masks_of_another_length_are_refused(model: AgeVlmForConditionalGeneration):
    with pytest.raises(ValueError, match="`query_masks` marks 9 tokens per row, but the text has 10"):
        model(**tiny_batch(), query_masks=torch.ones(2, 1, 9, dtype=torch.bool))


def test_query_masks_without_an_image_are_refused(model: AgeVlmForConditionalGeneration):
    with pytest.raises(
        ValueError, match="`query_masks` asks for grounding maps, but no row of the batch has an image"
    ):
        model(**tiny_batch(((), ())), query_masks=torch.ones(2, 1, 10, dtype=torch.bool))


def test_placeholders_without_images_are_refused(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(((1,), (2, 5)))
    del batch["pixel_values"]
    for run in (model, partial(model.generate, **NEW_TOKENS)):
        with pytest.raises(ValueError, match="Row 1 has 2 image placeholders .* but there are no `pixel_values`"):
            run(**batch)


@pytest.mark.parametrize(
    ("placeholders", "message"),
    {
        ((1,), (2,)): None,
        ((), (2, 5)): r"The rows have \[0, 2\] image placeholders .* holds others",
        ((1,), (2, 3, 5)): r"The rows have \[1, 3\] image placeholders",
        ((), ()): r"The rows have \[0, 0\] image placeholders",
    }.items(),
)
def test_images_of_other_placeholders_are_refused(
    model: AgeVlmForConditionalGeneration, placeholders: tuple, message: str | None
):
    """The second row has an image more than its text, which nothing tells but its pixels."""
    pixel_values = tiny_batch(((1,), (2, 5)))["pixel_values"]
    if message is None:
        pixel_values[1, 1] = 0
    batch = tiny_batch(placeholders) | {"pixel_values": pixel_values}
    embeddings = {"inputs_embeds": model.get_input_embeddings()(batch["input_ids"]), "pixel_values": pixel_values}
    for run in (model, partial(model.generate, **NEW_TOKENS)):
        for inputs in (batch, embeddings):
            if message is None:
                run(**inputs)
            else:
                with pytest.raises(ValueError, match=message):
                    run(**inputs)


def test_room_for_no_image_is_no_image(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(((), ()))
    assert torch.equal(model(**batch, pixel_values=torch.zeros(2, 0, 3, 96, 96)).logits, model(**batch).logits)


def test_rows_that_share_their_images_are_rows_with_copies_of_them(model: AgeVlmForConditionalGeneration):
    """Each with its placeholders where they are; the tower runs once for both."""
    batch = tiny_batch(((1, 4), (2, 7), (3,), (5,)))
    batch["pixel_values"][1::2] = batch["pixel_values"][::2]
    batch["pixel_attention_mask"] = torch.ones(4, 2, 96, 96, dtype=torch.long)
    batch["pixel_attention_mask"][:2, :, :32] = 0
    shared = {
        name: tensor[::2].unsqueeze(1).expand(-1, 2, *tensor.shape[1:])
        for name, tensor in batch.items()
        if "pixel" in name
    }
    assert_close(model(**batch | shared).logits, model(**batch).logits)
    assert torch.equal(
        *(model.generate(**inputs, **NEW_TOKENS, do_sample=False) for inputs in (batch, batch | shared))
    )
    batch["input_ids"][1, 7] = batch["input_ids"][1, 0]
    with pytest.raises(ValueError, match=r"The rows have \[2, 1, 1, 1\] image placeholders"):
        model(**batch | shared)


@pytest.mark.parametrize(("rows", "images"), [(4, 2), (1, 2), (2, 1), (3, 2)])
def test_images_of_another_number_of_rows_are_refused(model: AgeVlmForConditionalGeneration, rows: int, images: int):
    batch = tiny_batch(((1,),) * rows) | {"pixel_values": torch.randn(images, 1, 3, 96, 96)}
    for run in (model, partial(model.generate, **NEW_TOKENS)):
        with pytest.raises(ValueError, match=f"has images of {images} rows, but the text has {rows}"):
            run(**batch)


def test_four_dimensional_pixel_values_are_refused(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    with pytest.raises(ValueError, match=r"`pixel_values` has to be of shape .* has shape \(2, 3, 96, 96\)"):
        model(**batch | {"pixel_values": batch["pixel_values"][:, 0]})


# Checkpoints


def test_save_and_load_keep_every_tensor(model: AgeVlmForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path)
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(again(**tiny_batch()).logits, model(**tiny_batch()).logits)


def test_layer_scale_is_set_when_vision_weights_are_missing(model: AgeVlmForConditionalGeneration, tmp_path: Path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "vision_tower" not in name}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path)
    gammas = [p for name, p in again.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 5
    assert all(torch.equal(gamma, torch.full_like(gamma, 1e-6)) for gamma in gammas)
    assert again(**tiny_batch()).logits.isfinite().all()
