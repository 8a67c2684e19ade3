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
"""Regions read in the forward pass of other models of transformers, against their own eager attention in float64."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from testing_utils import assert_close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import Gemma3ForConditionalGeneration, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from vlm_families import FAMILIES

from trainers import guidance_loss, guidance_loss_from_mass, region_attention
from trainers.region_attention import PREFIX, RegionAttention, RegionReading


LENGTH, NUM_REGIONS = 20, 4


def regions() -> tuple[torch.Tensor, ...]:
    """Two rows of words with nine visual tokens, three regions, words for what is not there, and a query that is empty."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1, 60, (2, LENGTH), generator=generator)
    visual = torch.zeros(2, LENGTH, dtype=torch.bool)
    visual[0, 2:11], visual[1, 4:13] = True, True
    query_masks = torch.zeros(2, NUM_REGIONS, LENGTH, dtype=torch.bool)
    region_masks = torch.zeros(2, NUM_REGIONS, LENGTH + 1)
    query_masks[0, 0, 12:14], query_masks[0, 1, 15:16], query_masks[0, 2, 17:20] = True, True, True
    query_masks[1, 0, 14:19], query_masks[1, 1, 8:9] = True, True  # which sees a part of the visual tokens
    region_masks[0, 0, 2:5], region_masks[0, 1, 6:11] = 1, torch.tensor([0.25, 0.5, 1, 1, 1])
    region_masks[0, 2, -1], region_masks[1, 0, 10:12], region_masks[1, 1, 5:8] = 1, 1, 1
    region_masks[1, 2, 5:8] = 1  # of no words
    return input_ids, query_masks, region_masks, visual


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model.double().train()


def eager_masses(attentions: list[torch.Tensor], heads: list[int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The guidance loss of maps, by its definition, and the masses."""
    _, query_masks, region_masks, visual = regions()
    weights = query_masks.double() / query_masks.sum(dim=-1, keepdim=True).clamp(min=1)
    losses, masses = [], []
    for attention in attentions:
        chosen = attention if heads is None else attention[:, heads]
        maps = weights @ chosen.mean(dim=1)  # (2, K, LENGTH)
        on = maps * visual[:, None]
        found = guidance_loss((on,), region_masks[..., :-1].double() * visual[:, None])
        off = (1 - on.sum(dim=-1))[0, 2]
        assert found.is_guided.sum() == 4
        losses.append((4 * found.loss.double() - off.log()) / 5)
        mass = (on / on.sum(dim=-1, keepdim=True).clamp(min=1e-30) * region_masks[..., :-1]).sum(dim=-1)
        mass[0, 2] = off
        masses.append(mass)
    return torch.stack(losses).mean(), torch.stack(masses)


@pytest.fixture(autouse=True)
def eager_attention_in_float64(monkeypatch: pytest.MonkeyPatch):
    """transformers takes its eager softmax in float32, whatever the model is in."""
    monkeypatch.setattr(nn.functional, "softmax", lambda scores, dim, dtype=None: torch.softmax(scores, dim))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("heads", [None, [1, 3]])
# Mllama reads its pictures by cross-attention; of LLaVA one tower is enough.
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "Mllama" and "," not in name])
def test_losses_and_gradients_are_those_of_eager_attention(family: str, heads: list[int] | None):
    input_ids, query_masks, region_masks, visual = regions()
    model = randomized(FAMILIES[family]()[0])
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or 3 * [""]
    attending = [n for n, kind in enumerate(kinds) if kind not in ("conv", "linear_attention")]
    layers = [attending[0], attending[-1]]
    inputs = {"input_ids": input_ids, "use_cache": False}
    if family == "PaliGemma":
        inputs["token_type_ids"] = torch.ones_like(input_ids)  # causal, as what it is trained to write

    model.set_attn_implementation("eager")
    outputs = model(**inputs, output_attentions=True)
    attentions = [a for a in outputs.attentions if a is not None]
    expected, expected_masses = eager_masses([attentions[attending.index(n)] for n in layers], heads)
    (expected + outputs.logits.square().mean()).backward()
    expected_gradients, expected_logits = gradients(model), outputs.logits.detach()

    model.set_attn_implementation("sdpa")
    attention = RegionAttention(model, layers, heads)
    with attention.reading(query_masks, region_masks, visual) as reading:
        outputs = model(**inputs)
    assert_close(outputs.logits.detach(), expected_logits)
    read = (query_masks.any(dim=-1) & (reading.uniform_mass > 0)).nonzero().tolist()
    assert read == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    for mass, of_eager in zip(reading.masses, expected_masses, strict=True):
        for row, k in read:
            assert mass[row, k].item() == pytest.approx(of_eager[row, k].item(), rel=1e-5)
    assert reading.uniform_mass[0].tolist() == pytest.approx([1 / 3, 3.75 / 9, 1, 0])
    assert reading.uniform_mass[1].tolist() == pytest.approx([2 / 9, 3 / 5, 0, 0])
    assert torch.stack(reading.sees)[:, *zip(*read, strict=True)].all()
    found = guidance_loss_from_mass(reading.masses, region_masks, reading.uniform_mass, reading.sees)
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (found.loss + outputs.logits.square().mean()).backward()
    found_gradients = gradients(model)
    assert found_gradients.keys() == expected_gradients.keys() and len(found_gradients) > 20
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max()
        assert (found_gradients[name] - gradient).abs().max() <= 1e-5 * scale + 1e-12, name

    with torch.no_grad():  # and without being asked it is what it was
        model.set_attn_implementation("sdpa")
        plain = model(**inputs).logits
        model.set_attn_implementation(PREFIX + "sdpa")
        assert torch.equal(model(**inputs).logits, plain)


def llava() -> PreTrainedModel:
    return randomized(FAMILIES["LLaVA"]()[0])


def test_layers_that_are_computed_twice_read_the_same():
    """Also if the model runs once more in between, as for other losses of a batch."""
    input_ids, query_masks, region_masks, visual = regions()
    found = []
    for checkpointing in (False, True):
        model = llava()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with RegionAttention(model).reading(query_masks, region_masks, visual) as reading:
            model(input_ids=input_ids, use_cache=False)
        with torch.no_grad():
            model(input_ids=input_ids, use_cache=False)
        guidance_loss_from_mass(reading.masses, region_masks, reading.uniform_mass).loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


def test_adapters_are_guided():
    input_ids, query_masks, region_masks, visual = regions()
    model = get_peft_model(llava(), LoraConfig(target_modules=["q_proj", "k_proj"])).double()
    with RegionAttention(model, [1]).reading(query_masks, region_masks, visual) as reading:
        model(input_ids=input_ids, use_cache=False)
    guidance_loss_from_mass(reading.masses, region_masks, reading.uniform_mass).loss.backward()
    moved = {name for name, gradient in gradients(model).items() if gradient.any()}
    assert moved and all("lora_B" in name and "language_model" in name for name in moved)


def test_cross_attention_to_pictures_is_read():
    """Of Mllama, whose keys there are the visual tokens alone: all of its attention is on them."""
    model = randomized(FAMILIES["Mllama"]()[0])
    input_ids, query_masks, _, _ = regions()
    states = torch.randn(2, 7, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    visual = torch.ones(2, 7, dtype=torch.bool)
    visual[:, 0] = False  # a class token
    region_masks = torch.zeros(2, NUM_REGIONS, 8)
    region_masks[0, 0, 1:3], region_masks[1, 0, 4:7], region_masks[0, 2, -1] = 1, 1, 1
    model.set_attn_implementation("eager")
    inputs = {"input_ids": input_ids, "cross_attention_states": states, "use_cache": False}
    maps = model(**inputs, output_attentions=True).attentions[1].mean(dim=1)
    assert maps.shape == (2, LENGTH, 7)
    model.set_attn_implementation("sdpa")
    with RegionAttention(model).reading(query_masks, region_masks, visual) as reading:
        model(**inputs)
    (masses,) = reading.masses
    first, second, absent = maps[0, 12:14].mean(dim=0), maps[1, 14:19].mean(dim=0), maps[0, 17:20].mean(dim=0)
    assert masses[0, 0].item() == pytest.approx((first[1:3].sum() / first[1:].sum()).item(), rel=1e-5)
    assert masses[1, 0].item() == pytest.approx((second[4:].sum() / second[1:].sum()).item(), rel=1e-5)
    assert masses[0, 2].item() == pytest.approx(absent[0].item(), rel=1e-5)
    assert reading.uniform_mass[0].tolist() == pytest.approx([1 / 3, 0, 1, 0])


def test_channels_that_are_too_many_for_a_kernel_take_turns(monkeypatch: pytest.MonkeyPatch):
    """Flash attention takes 256 values: what does not fit beside those of the words is read in their place, gradients and all."""
    widths = []

    def narrow(module, query, key, value, attention_mask, **kwargs):
        widths.append(value.shape[-1])
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "narrow", narrow)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "narrow", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    input_ids, query_masks, region_masks, visual = regions()
    found = []
    for widest in (256, 16):
        monkeypatch.setattr(region_attention, "WIDEST", widest)
        model = llava()
        model.set_attn_implementation({"text_config": "narrow"})
        attention, read = RegionAttention(model), []
        widths.clear()
        with attention.mapping(query_masks, visual) as maps, torch.no_grad():
            read.append(model(input_ids=input_ids).logits)
        assert max(widths) == (8 + 16 if widest == 256 else 8)  # of a head; and nine visual tokens, in steps of 8
        read += maps.maps
        with attention.reading(query_masks, region_masks, visual) as reading:
            outputs = model(input_ids=input_ids, use_cache=False)
        (torch.stack(reading.masses).sum() + outputs.logits.square().mean()).backward()
        found.append([*read, *reading.masses, outputs.logits, *gradients(model).values()])
    assert len(found[0]) == len(found[1]) > 20
    for one, other in zip(*found, strict=True):
        assert_close(one.detach(), other.detach(), length=256)


def test_layers_whose_window_does_not_reach_the_picture_do_not_count():
    """Of Gemma 3 two layers of three see the last words only: the loss and what is measured are those of the third."""
    config = FAMILIES["Gemma 3"]()[0].config
    config.text_config.sliding_window = 4
    model = randomized(Gemma3ForConditionalGeneration(config)).eval()
    input_ids, query_masks, region_masks, visual = regions()
    found = {}
    for layers in (None, [2]):
        model.set_attn_implementation("sdpa")
        attention = RegionAttention(model, layers)
        with attention.reading(query_masks, region_masks, visual) as reading, torch.no_grad():
            model(input_ids=input_ids)
        found[layers is None] = reading
    whole, alone = (
        guidance_loss_from_mass(of.masses, region_masks, of.uniform_mass, of.sees)
        for of in (found[True], found[False])
    )
    sees = torch.stack(found[True].sees)
    near, far = (1, 1), (0, 2)  # words behind the first visual tokens, and the last words of a row
    assert sees[:, *near].tolist() == [True] * 3 and sees[:, *far].tolist() == [False, False, True]
    assert torch.equal(whole.is_guided, alone.is_guided) and whole.is_guided.sum() == 5
    losses = []
    for row, k in whole.is_guided.nonzero().tolist():
        layers = [n for n in range(3) if sees[n, row, k]]
        expected = torch.stack(found[True].masses)[layers, row, k].mean()
        assert whole.in_mask_mass[row, k].item() == pytest.approx(expected.item(), rel=1e-6)
        dice = 2 * torch.stack(found[True].masses)[layers, row, k] / (region_masks[row, k].sum() + 1)
        losses.append(-dice.log().mean().item())
    assert whole.in_mask_mass[far] == alone.in_mask_mass[far]
    assert whole.loss.item() == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_layers_may_stand_on_several_devices():
    with FakeTensorMode():
        input_ids, *given, visual = (part.to("cuda:0") for part in regions())
        reading = RegionReading(*given, visual, {0: None, 1: [2]})
        for layer in (0, 1):
            module = SimpleNamespace(layer_idx=layer, is_causal=True, training=False)
            states = [torch.zeros(2, 4, LENGTH, 8, device=f"cuda:{layer}") for _ in range(3)]
            attention = region_attention.with_region_channels(sdpa_attention_forward)
            output, _ = attention(module, *states, None, region_reading=reading)
            assert output.device == states[0].device
        loss = guidance_loss_from_mass(reading.masses, given[1], reading.uniform_mass, reading.sees).loss
        assert loss.device == input_ids.device


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [1, 3]}, "Layers 3 cannot be read: .* are 0, 1, 2"),
        ({"heads": [4]}, "Heads \\[4\\] cannot be read: each layer has heads 0 to 3"),
        ({"heads": []}, "Heads \\[\\] cannot be read"),
    ],
)
def test_what_the_model_does_not_have_is_said(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RegionAttention(llava(), **arguments)


def test_what_cannot_be_read_is_said():
    model = llava()
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="computed by 'eager', which is no function .* one of .*sdpa"):
        RegionAttention(model)
    model.get_decoder().config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="cannot be read in 'flash_attention_2'.* set to sdpa"):
        RegionAttention(model)
    model = llava()
    input_ids, query_masks, region_masks, visual = regions()
    attention = RegionAttention(model)
    with pytest.raises(ValueError, match=r"of shape \(2, 4, 20\), but .* need \(2, 4, 21\)"):
        with attention.reading(query_masks, region_masks[..., 1:], visual):
            pass
    with attention.reading(query_masks, region_masks, visual) as reading:
        pass
    with attention.mapping(query_masks, visual) as maps:
        pass
    for read in (lambda: reading.masses, lambda: maps.maps):
        with pytest.raises(ValueError, match="Nothing was read in layers 0, 1, 2"):
            read()
    with attention.reading(query_masks, region_masks, visual), pytest.raises(ValueError, match="tell of 20: regions"):
        model(input_ids=input_ids[:, 1:])
    assert isinstance(reading, RegionReading) and not reading.found
