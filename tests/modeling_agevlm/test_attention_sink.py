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

"""The place for nothing beside the visual tokens: a learned key whose value is zero."""

import copy
from pathlib import Path

import pytest
import torch
from test_caches import CACHES, GREEDY, streams  # noqa: F401, what offloading needs without a GPU
from test_grounding_maps import CROSS_ATTENTION_LAYERS, guided_batch, region_masks
from testing_utils import NUM_CELLS, TEXT, assert_close, picture, tiny_batch, tiny_model, tiny_processor

from modeling_agevlm import AgeVlmForConditionalGeneration
from modeling_agevlm.modeling_agevlm import AgeVlmCrossAttention


SINK = {"attention_sink": True}
HEAD_DIM = TEXT["hidden_size"] // TEXT["num_attention_heads"]
BACKENDS = pytest.mark.parametrize("backend", ["sdpa", "eager"])


@pytest.fixture(scope="module")
def model() -> AgeVlmForConditionalGeneration:
    return tiny_model(text_config=SINK).requires_grad_(False)


def layers_of(model: AgeVlmForConditionalGeneration) -> list[AgeVlmCrossAttention]:
    return [model.model.language_model.layers[n].cross_attn for n in CROSS_ATTENTION_LAYERS]


def test_off_it_is_not_there():
    assert all(layer.sink_key is None for layer in layers_of(tiny_model()))
    assert not any("sink" in name for name in tiny_model().state_dict())


def test_its_only_weights_are_a_key_per_key_head(model: AgeVlmForConditionalGeneration):
    new = {name: tuple(p.shape) for name, p in model.state_dict().items() if name not in tiny_model().state_dict()}
    shape = TEXT["num_key_value_heads"], 1, HEAD_DIM
    assert new == {f"model.language_model.layers.{n}.cross_attn.sink_key": shape for n in CROSS_ATTENTION_LAYERS}


@BACKENDS
def test_output_is_a_softmax_over_one_key_more_whose_value_is_zero(backend: str):
    """One layer in float64, by hand."""
    model, batch = tiny_model(attn_implementation=backend, text_config=SINK), tiny_batch()
    layer = layers_of(model)[0]
    seen = {}
    layer.register_forward_pre_hook(lambda module, args: seen.update(hidden=args[0], inputs=args[1]))
    layer.register_forward_hook(lambda module, args, output: seen.update(output=output[0]))
    model(**batch)
    w = {name: p.detach().double() for name, p in layer.named_parameters()}
    hidden, visual = seen["hidden"].double(), seen["inputs"].cross_attention_states.double()
    heads = lambda x: x.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)  # noqa: E731
    norm = lambda x, weight: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight  # noqa: E731
    q = norm(heads(hidden @ w["q_proj.weight"].T), w["q_norm.weight"])
    k = norm(heads(visual @ w["k_proj.weight"].T), w["k_norm.weight"]).repeat_interleave(2, dim=1)
    v = heads(visual @ w["v_proj.weight"].T).repeat_interleave(2, dim=1)
    scores = q @ k.transpose(2, 3) / HEAD_DIM**0.5
    sink = q @ w["sink_key"].repeat_interleave(2, dim=0).transpose(1, 2) / HEAD_DIM**0.5
    if seen["inputs"].cross_attention_mask is not None:
        scores = scores + seen["inputs"].cross_attention_mask[..., :-1].double()
    shares = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sink.exp())
    expected = (shares @ v).transpose(1, 2).flatten(2) @ w["o_proj.weight"].T
    sees = seen["inputs"].sees_image.squeeze(-1)
    assert_close(seen["output"][sees], expected[sees].float())


@BACKENDS
@pytest.mark.parametrize("seed", range(3))
def test_maps_and_sink_sum_to_one(backend: str, seed: int):
    """Padded cells and later pictures stay hidden; the sink is there for every word that sees a picture."""
    with_sink = tiny_model(attn_implementation=backend, text_config=SINK)
    batch = guided_batch(seed=seed)
    plain = tiny_model(attn_implementation=backend)(**batch).grounding_maps
    for found, expected in zip(with_sink(**batch).grounding_maps, plain, strict=True):
        assert found.shape[-1] == expected.shape[-1] + 1 == 3 * NUM_CELLS + 1
        assert torch.equal(found[..., :-1] > 0, expected > 0)
        assert torch.equal(found[..., -1] > 0, (expected > 0).any(dim=-1))
        assert_close(found.sum(dim=-1), (expected > 0).any(dim=-1).float())


@BACKENDS
def test_nowhere_is_a_region(backend: str):
    """The masks' last column is the sink, and even attention counts it as one place more."""
    model, batch = tiny_model(attn_implementation=backend, text_config=SINK), guided_batch()
    maps = model(**batch).grounding_maps
    masks = torch.zeros_like(maps[0])
    masks[..., -1] = 1
    outputs = model(**batch, region_masks=masks)
    for found, layer_map in zip(outputs.region_attention, maps, strict=True):
        assert_close(found, layer_map[..., -1])
    places = (maps[0] > 0).sum(dim=-1)
    assert_close(outputs.uniform_region_attention, torch.where(places > 0, 1 / places.clamp(min=1), 0))
    with pytest.raises(ValueError, match=r"values of 27 visual tokens, .* up to 27, .* \(and the sink, last\)"):
        model(**batch, region_masks=region_masks(batch))


@pytest.mark.parametrize("kind", CACHES)
def test_every_cache_goes_on_as_without_one(model: AgeVlmForConditionalGeneration, kind: str):
    batch = tiny_batch(placeholders=((0, 5), (2,)), length=9)
    whole = model(**batch, use_cache=False).logits
    cache = CACHES[kind](model.config)
    first = {"input_ids": batch["input_ids"][:, :7], "pixel_values": batch["pixel_values"]}
    found = [model(**first, cache=cache).logits]
    found += [model(input_ids=batch["input_ids"][:, n : n + 1], cache=cache).logits for n in (7, 8)]
    assert_close(torch.cat(found, dim=1), whole)


def test_generation_is_that_without_a_cache(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((0, 5), (2,)), length=9)
    with_cache = model.generate(**batch, **GREEDY)
    assert torch.equal(with_cache, model.generate(**batch, **GREEDY, use_cache=False))


def test_a_checkpoint_without_one_gets_one_that_is_learned(tmp_path: Path):
    """Loaded with the option, an older checkpoint has keys of zero; saved and loaded, learned ones stay."""
    tiny_model().save_pretrained(tmp_path / "plain")
    config = copy.deepcopy(tiny_model().config)
    config.text_config.attention_sink = True
    model = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "plain", config=config)
    assert all(not layer.sink_key.any() for layer in layers_of(model))
    batch = guided_batch()
    masks = torch.zeros(*batch["query_masks"].shape[:2], 3 * NUM_CELLS + 1)
    masks[..., -1] = 1
    sum(model(**batch, region_masks=masks).region_attention).sum().backward()
    assert all(layer.sink_key.grad.any() for layer in layers_of(model))
    with torch.no_grad():
        for layer in layers_of(model):
            layer.sink_key.normal_()
    model.save_pretrained(tmp_path / "sink")
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "sink")
    assert again.config.text_config.attention_sink
    for one, other in zip(layers_of(model), layers_of(again), strict=True):
        assert torch.equal(one.sink_key, other.sink_key)


def test_pictures_of_the_attention_leave_the_sink_out():
    """`post_process_grounding` gives each pixel its share, and what lies on the sink to none."""
    model, processor = tiny_model(text_config=SINK), tiny_processor()
    inputs = processor(text="<|image|>a cup and a cup", images=[picture()], return_tensors="pt")
    queries = torch.zeros(1, 1, inputs["input_ids"].shape[1], dtype=torch.bool)
    queries[..., 2:] = True
    with torch.no_grad():
        outputs = model(**inputs, query_masks=queries)
    height, width = picture().height, picture().width
    ((found,),) = processor.post_process_grounding(outputs, [(height, width)])
    sink = torch.stack(outputs.grounding_maps).mean(dim=0)[0, :, -1]
    assert found.shape == (1, height, width) and 0 < sink < 1
    assert_close(found.sum(dim=(1, 2)), 1 - sink)
