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
"""How much attention lies in a region without a map of it, and the guidance loss from that."""

import pytest
import torch
from test_grounding_maps import guided_batch, region_masks
from testing_utils import (
    GRADIENT_LENGTH,
    HALF_LENGTH,
    NUM_CELLS,
    assert_close,
    redraw,
    tiny_batch,
    tiny_model,
    tolerance,
)

from trainers import guidance_loss, guidance_loss_from_mass


BACKENDS = pytest.mark.parametrize("backend", ["sdpa", "eager"])


@BACKENDS
@pytest.mark.parametrize("num_regions", [1, 4, 9])
def test_means_are_those_under_the_maps(backend: str, num_regions: int):
    model = tiny_model(attn_implementation=backend)
    batch = guided_batch(num_regions=num_regions)
    values = torch.randn(4, num_regions, 3 * NUM_CELLS, generator=torch.Generator().manual_seed(1))
    by_maps, by_masks = model(**batch), model(**batch, region_masks=values)
    assert by_masks.grounding_maps is None and by_maps.region_attention is None
    assert len(by_masks.region_attention) == len(by_maps.grounding_maps) == 2
    for maps, means in zip(by_maps.grounding_maps, by_masks.region_attention, strict=True):
        assert_close(means, (maps * values).sum(-1))
    assert_close(by_masks.logits, by_maps.logits)


def test_uniform_means_are_those_of_attention_that_knows_nothing():
    """Keys that are all zero make every score the same."""
    model, batch = tiny_model(), tiny_batch(placeholders=((0,), (2,)), length=12)
    batch["query_masks"] = guided_batch()["query_masks"][:2]
    for layer in model.config.text_config.cross_attention_layers:
        model.model.language_model.layers[layer].cross_attn.k_proj.weight.data.zero_()
    outputs = model(**batch, region_masks=region_masks(batch))
    for means in outputs.region_attention:
        assert_close(means, outputs.uniform_region_attention)


@BACKENDS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_by_maps(backend: str, checkpointing: bool):
    model, batch = tiny_model(attn_implementation=backend), guided_batch()
    redraw(model)
    masks = region_masks(batch)
    masks[1, :, 0] = 1  # one of the few cells that this row sees
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    results = []
    for by_mask in (False, True):
        model.zero_grad()
        outputs = model(**batch, use_cache=False, **({"region_masks": masks} if by_mask else {}))
        if by_mask:
            guidance = guidance_loss_from_mass(outputs.region_attention, masks, outputs.uniform_region_attention)
        else:
            guidance = guidance_loss(outputs.grounding_maps, masks)
        guidance.loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((guidance, gradients))
    (by_maps, wanted), (by_mass, gradients) = results
    assert torch.equal(by_mass.is_guided, by_maps.is_guided) and by_maps.is_guided.any()
    assert_close(by_mass.loss, by_maps.loss)
    assert_close(by_mass.in_mask_mass, by_maps.in_mask_mass)
    assert {n for n, g in gradients.items() if g.any()} == {n for n, g in wanted.items() if g.any()}
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient, GRADIENT_LENGTH, name)


def test_uniform_mass_of_one_picture_is_that_by_maps():
    model, batch = tiny_model(), tiny_batch(placeholders=((0,), (2,)), length=8)
    batch["query_masks"] = torch.zeros(2, 2, 8, dtype=torch.bool)
    batch["query_masks"][:, 0, 3:5] = batch["query_masks"][:, 1, 6:] = True
    masks = region_masks(batch)
    outputs = model(**batch, region_masks=masks)
    by_mass = guidance_loss_from_mass(outputs.region_attention, masks, outputs.uniform_region_attention)
    by_maps = guidance_loss(model(**batch).grounding_maps, masks)
    assert_close(by_mass.uniform_mass, by_maps.uniform_mass)


def test_bfloat16_means_are_close():
    model, batch = tiny_model(), guided_batch()
    masks = region_masks(batch)
    exact = model(**batch, region_masks=masks).region_attention
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    rounded = model.bfloat16()(**batch, region_masks=masks).region_attention
    assert all(means.dtype == torch.float32 for means in rounded)
    for found, expected in zip(rounded, exact, strict=True):
        assert_close(found, expected, atol=tolerance(torch.bfloat16, HALF_LENGTH) * expected.max().item())


def test_regions_without_words_or_mask_are_not_guided():
    masks = torch.tensor([[[1.0, 0, 0, 0], [0, 0, 0, 0]], [[1.0, 1, 0, 0], [1, 1, 1, 1]]])
    uniform = torch.tensor([[0.25, 0.0], [0.0, 1.0]])  # the first of the second row has no words that see
    mass = torch.tensor([[0.5, 0.0], [0.0, 1.0]], requires_grad=True)
    guidance = guidance_loss_from_mass((mass,), masks, uniform)
    # -log(2 * 0.5 / 2) and -log(2 / 5)
    assert_close(guidance.loss, torch.tensor([0.5, 0.4]).log().neg().mean())
    assert guidance.is_guided.tolist() == [[True, False], [False, True]]
    assert guidance.in_mask_mass.tolist() == [[0.5, 0], [0, 1]]
    guidance.loss.backward()
    assert mass.grad[0, 1] == mass.grad[1, 0] == 0 and torch.isfinite(mass.grad).all()
    nothing = guidance_loss_from_mass((mass,), masks, torch.zeros(2, 2))
    assert not nothing.is_guided.any() and nothing.loss == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region_masks": torch.zeros(4, 4, 5)}, "values of 5 visual tokens, but the text sees up to 27"),
        ({"region_masks": torch.zeros(4, 3, 27)}, "need `query_masks` of as many rows and regions"),
        ({"region_masks": torch.zeros(4, 4, 27), "query_masks": None}, "but they are None"),
    ],
)
def test_bad_region_masks_are_refused(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**{**guided_batch(), **change})


def test_bad_masses_are_refused():
    with pytest.raises(ValueError, match="needs at least one layer's masses"):
        guidance_loss_from_mass((), torch.zeros(1, 1, 4), torch.zeros(1, 1))
    with pytest.raises(ValueError, match=r"masses of shape \(1, 2\)"):
        guidance_loss_from_mass((torch.zeros(1, 1),), torch.zeros(1, 2, 4), torch.zeros(1, 2))
