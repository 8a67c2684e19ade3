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

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from test_grounding_maps import CROSS_ATTENTION_LAYERS, guided_batch, region_masks
from testing_utils import TEXT, assert_close, tiny_model

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmTextConfig
from trainers.guidance import guidance_loss, guidance_loss_from_mass


CHOICES = [
    {},
    {"guidance_heads": [2]},
    {"guidance_layers": [3]},
    {"guidance_heads": [3, 1], "guidance_layers": [1]},
    {"guidance_heads": [0], "attention_sink": True},
]
HEADS = range(TEXT["num_attention_heads"])


def by_hand(model: AgeVlmForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every head's map, from the attention weights: `(num_layers, batch_size, num_heads, num_regions, num_keys)`."""
    queries = batch["query_masks"]
    weights = torch.stack(model(**batch, output_attentions=True).cross_attentions)
    sees = model.model._placeholders(batch["input_ids"], None).cumsum(dim=1) > 0
    words = (queries & sees.unsqueeze(1)).float()
    words = words / words.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.einsum("bkt,lbhts->lbhks", words, weights)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_maps_and_masses_are_the_mean_of_the_guided_heads(choice: dict):
    model, batch = tiny_model(attn_implementation="eager", text_config=choice), guided_batch()
    maps = by_hand(model, batch)
    masks = torch.rand(*maps.shape[1:2], *maps.shape[3:], generator=torch.Generator().manual_seed(1))
    layers, heads = (choice.get(name) for name in ("guidance_layers", "guidance_heads"))
    chosen = maps[[CROSS_ATTENTION_LAYERS.index(layer) for layer in layers or CROSS_ATTENTION_LAYERS]]
    chosen = chosen[:, :, heads or list(HEADS)].mean(dim=2)
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        by_maps = model(**batch)
        by_mass = model(**batch, region_masks=masks, output_head_region_attention=True)
        assert len(by_maps.grounding_maps) == len(by_mass.region_attention) == len(chosen)
        for n, expected in enumerate(chosen):
            assert_close(by_maps.grounding_maps[n], expected)
            assert_close(by_mass.region_attention[n], (expected * masks).sum(dim=-1))
        # every head of every layer, guided or not
        assert_close(torch.stack(by_mass.head_region_attention), (maps * masks.unsqueeze(1)).sum(dim=-1))
        assert model(**batch, region_masks=masks).head_region_attention is None


@pytest.mark.parametrize("by_mass", [False, True])
def test_only_guided_heads_are_drawn(by_mass: bool):
    """The queries of the others get no gradient from the guidance loss, nor do layers behind the guided one."""
    model, batch = tiny_model(text_config={"guidance_heads": [2], "guidance_layers": [1]}), guided_batch()
    masks = region_masks(batch)
    outputs = model(**batch, use_cache=False, **({"region_masks": masks} if by_mass else {}))
    if by_mass:
        loss = guidance_loss_from_mass(outputs.region_attention, masks, outputs.uniform_region_attention).loss
    else:
        loss = guidance_loss(outputs.grounding_maps, masks).loss
    loss.backward()
    first, second = (model.model.language_model.layers[n].cross_attn for n in CROSS_ATTENTION_LAYERS)
    drawn = first.q_proj.weight.grad.unflatten(0, (len(HEADS), -1)).flatten(1).any(dim=1)
    assert drawn.tolist() == [head == 2 for head in HEADS]
    # the key head that the guided head shares with its neighbor
    keys = first.k_proj.weight.grad.unflatten(0, (TEXT["num_key_value_heads"], -1)).flatten(1).any(dim=1)
    assert keys.tolist() == [False, True]
    assert not any(p.grad is not None and p.grad.any() for p in second.parameters())


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"guidance_heads": [4]}, r"`guidance_heads` .* below `num_attention_heads` \(\[0, 1, 2, 3\]\), but is \[4\]"),
        ({"guidance_heads": []}, r"`guidance_heads` has to hold distinct indices .* but is \[\]"),
        ({"guidance_heads": [1, 1]}, r"but is \[1, 1\]"),
        ({"guidance_heads": [-1]}, r"but is \[-1\]"),
        ({"guidance_layers": [0]}, r"`guidance_layers` .* of `cross_attention_layers` \(\[1, 3\]\), but is \[0\]"),
        ({"guidance_layers": [1, 5]}, r"but is \[1, 5\]"),
    ],
)
def test_heads_that_there_are_not_are_refused(choice: dict, message: str):
    with pytest.raises(StrictDataclassError, match=message):
        AgeVlmTextConfig(**TEXT | choice)


def test_the_paper_guides_all():
    config = AgeVlmTextConfig()
    assert config.guidance_heads is config.guidance_layers is None and not config.attention_sink
    assert config.guided_layers == config.cross_attention_layers == [2, 7, 12, 17]
