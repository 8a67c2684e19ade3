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
"""The maps that the guidance loss reads: where they may lie, what moves them, which words they belong to."""

import copy
from typing import Any

import pytest
import torch
from testing_utils import (
    EOT,
    GRADIENT_LENGTH,
    IMAGE,
    IMAGE_SIZE,
    MAP_LENGTH,
    NUM_CELLS,
    assert_close,
    box_mask,
    picture,
    region,
    rle,
    row,
    tiny_batch,
    tiny_model,
    tiny_processor,
)

from modeling_agevlm import AgeVlmForConditionalGeneration
from trainers.data_collator import DataCollatorForGuidedVisionLanguageModeling
from trainers.guidance import guidance_loss


BACKENDS = pytest.mark.parametrize("backend", ["sdpa", "eager"])
CROSS_ATTENTION_LAYERS = (1, 3)


@pytest.fixture(scope="module")
def model() -> AgeVlmForConditionalGeneration:
    return tiny_model().requires_grad_(False)


def guided_batch(num_regions: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows with three, one, two and no images, partly padded pictures and random queries."""
    batch = tiny_batch(placeholders=((0, 3, 7), (4,), (2, 9), ()), length=12, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    batch["query_masks"] = torch.rand(4, num_regions, 12, generator=generator) < 0.3
    batch["pixel_attention_mask"] = torch.ones(4, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.long)
    batch["pixel_attention_mask"][0, 1, 33:] = 0  # a row of pixels in the second row of cells
    batch["pixel_attention_mask"][1, 0, :, 32:] = 0
    return batch


def region_masks(batch: dict[str, torch.Tensor], seed: int = 0) -> torch.Tensor:
    shape = (*batch["query_masks"].shape[:2], batch["pixel_values"].shape[1] * NUM_CELLS)
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


# Where they lie


@BACKENDS
@pytest.mark.parametrize("seed", range(3))
def test_maps_cover_the_cells_that_the_query_sees_and_no_others(backend: str, seed: int):
    batch = guided_batch(seed=seed)
    maps = tiny_model(attn_implementation=backend)(**batch).grounding_maps
    holds_picture = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    holds_picture[0, 1, 2] = False
    holds_picture[1, 0, :, 1:] = False
    for b, ids in enumerate(batch["input_ids"]):
        places = (ids == IMAGE).nonzero()[:, 0].tolist()
        for k, query in enumerate(batch["query_masks"][b]):
            last = max(query.nonzero()[:, 0].tolist(), default=-1)
            seen = torch.zeros(3, NUM_CELLS, dtype=torch.bool)
            for image, place in enumerate(places):
                if place <= last:
                    seen[image] = holds_picture[b, image].flatten()
            for layer_map in maps:
                assert torch.equal(layer_map[b, k] > 0, seen.flatten())
                assert_close(layer_map[b, k].sum(), seen.any().float(), MAP_LENGTH)


@pytest.mark.parametrize("num_regions", range(1, 17))
def test_map_does_not_depend_on_the_other_regions(model: AgeVlmForConditionalGeneration, num_regions: int):
    batch = guided_batch(num_regions)
    together = model(**batch).grounding_maps
    for k in range(num_regions):
        alone = model(**batch | {"query_masks": batch["query_masks"][:, k : k + 1]}).grounding_maps
        for found, expected in zip(together, alone, strict=True):
            assert_close(found[:, k], expected[:, 0])
    assert together[0].shape == (4, num_regions, 3 * NUM_CELLS)


def test_maps_leave_the_logits_alone(model: AgeVlmForConditionalGeneration):
    batch = guided_batch()
    logits = model(**batch).logits
    del batch["query_masks"]
    assert torch.equal(model(**batch).logits, logits)


# Their gradient


@BACKENDS
def test_gradient_reaches_the_queries_and_keys_of_every_layer(backend: str):
    model = tiny_model(attn_implementation=backend)
    batch = guided_batch()
    maps = model(**batch).grounding_maps
    layers = [model.model.language_model.layers[index] for index in CROSS_ATTENTION_LAYERS]
    for n, layer_map in enumerate(maps):
        model.zero_grad()
        guidance_loss((layer_map,), region_masks(batch)).loss.backward(retain_graph=True)
        attention = layers[n].cross_attn
        for module in (attention.q_proj, attention.k_proj, attention.q_norm, attention.k_norm):
            assert module.weight.grad.abs().max() > 1e-4
        # A map is made before its layer writes: what is behind it has no part in it.
        behind = [attention.v_proj, attention.o_proj, layers[n].mlp.down_proj]
        behind += [layer.cross_attn.k_proj for layer in layers[n + 1 :]]
        assert all(module.weight.grad is None for module in behind)
        before = [model.model.multi_modal_projector.linear_1, model.model.vision_tower.timm_model.stem[0]]
        before += [layer.cross_attn.v_proj for layer in layers[:n]]
        assert all(module.weight.grad.abs().max() > 1e-6 for module in before)


def guidance_and_gradients(model: AgeVlmForConditionalGeneration) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batch = guided_batch()
    maps = model(**batch, use_cache=False).grounding_maps
    loss = guidance_loss(maps, region_masks(batch)).loss
    loss.backward()
    gradients = {n: parameter.grad for n, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), "maps": torch.stack(maps).detach()} | gradients


@BACKENDS
def test_gradient_checkpointing_leaves_maps_and_their_gradient_alone(backend: str):
    plain = tiny_model(attn_implementation=backend).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable({"use_reentrant": False})
    runs = []
    for index in CROSS_ATTENTION_LAYERS:
        attention = checkpointed.model.language_model.layers[index].cross_attn
        attention.q_proj.register_forward_pre_hook(lambda *_, index=index: runs.append(index))
    expected, found = guidance_and_gradients(plain), guidance_and_gradients(checkpointed)
    assert sorted(runs) == [1, 1, 3, 3]  # forward, and again for the backward pass
    assert found.keys() == expected.keys() and len(found) > 20
    for name in expected:
        assert_close(found[name], expected[name], GRADIENT_LENGTH, name)


def test_eager_and_sdpa_agree_in_maps_and_gradients():
    batch = guided_batch()
    results = []
    for backend in ("eager", "sdpa"):
        model = tiny_model(attn_implementation=backend)
        outputs = model(**batch, labels=batch["input_ids"])
        (outputs.loss + guidance_loss(outputs.grounding_maps, region_masks(batch)).loss).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        results.append(gradients | {"maps": torch.stack(outputs.grounding_maps), "logits": outputs.logits})
    for name in results[0]:
        assert_close(*(result[name] for result in results), GRADIENT_LENGTH, name)


def test_descent_on_the_queries_and_keys_moves_the_maps_into_the_masks():
    model = tiny_model()
    batch = tiny_batch(placeholders=((0, 5), (2,)))
    batch["query_masks"] = torch.zeros(2, 1, 10, dtype=torch.bool)
    batch["query_masks"][:, 0, 6:8] = True
    masks = torch.zeros(2, 1, 2 * NUM_CELLS)
    masks[:, :, 2:5] = 1
    weights = []
    for index in CROSS_ATTENTION_LAYERS:
        attention = model.model.language_model.layers[index].cross_attn
        weights += [attention.q_proj.weight, attention.k_proj.weight, attention.q_norm.weight, attention.k_norm.weight]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    masses = []
    for _ in range(15):
        loss = guidance_loss(model(**batch).grounding_maps, masks)
        optimizer.zero_grad()
        loss.loss.backward()
        optimizer.step()
        masses.append(loss.in_mask_mass.mean().item())
    assert masses[0] < 0.4 and masses[-1] > 0.9


# Which words they belong to


def collate(rows: list[dict[str, Any]], **over: Any) -> dict[str, torch.Tensor]:
    return DataCollatorForGuidedVisionLanguageModeling(tiny_processor(), **over)(rows)


@pytest.mark.parametrize(
    ("answer", "phrase", "words"),
    [
        ("Yes, a red cup there.", "red cup", " red cup"),
        ("Yes, the table.", "the ta", " the table"),  # it ends in a token's middle
        ("Yes, the table.", "es, th", "Yes, the"),  # and begins in one
        ("A café there.", "café", "café"),  # whose last letter is two tokens
        ("A 中 there.", "中", "中"),
    ],
)
def test_map_of_a_phrase_is_the_attention_of_its_tokens(answer: str, phrase: str, words: str):
    start = answer.index(phrase)
    span = {"message": 1, "span": [start, start + len(phrase)]}
    batch = collate([row(answer=answer, regions=[region(text=phrase, **span)])])
    query = batch["query_masks"][0, 0]
    assert tiny_processor().tokenizer.decode(batch["input_ids"][0][query]) == words
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    outputs = tiny_model(attn_implementation="eager")(
        **inputs, query_masks=batch["query_masks"], output_attentions=True
    )
    for layer_map, attention in zip(outputs.grounding_maps, outputs.cross_attentions, strict=True):
        assert_close(layer_map[0, 0], attention[0, :, query].mean(dim=(0, 1)))


def test_phrase_that_is_cut_is_dropped_and_the_maps_of_the_others_stay(model: AgeVlmForConditionalGeneration):
    left, right = rle(box_mask(columns=(0, 30))), rle(box_mask(columns=(50, 80)))
    the_row = row(images=[picture(seed=1)], answer="Yes, a red cup on the table.")
    the_row["regions"] = [region(right, text="the table"), region(left, text="red cup")]
    whole = collate([the_row])
    assert whole["dropped_regions"].tolist() == [0]
    last = whole["query_masks"][0, 0].nonzero().max().item()
    cut = collate([the_row], max_length=last)  # one token too few
    assert cut["dropped_regions"].tolist() == [1]
    assert not (cut["input_ids"] == EOT)[0, -1]
    assert torch.equal(cut["region_masks"][0], whole["region_masks"][0, 1:])
    names = ("input_ids", "attention_mask", "pixel_values", "query_masks")
    for found, expected in zip(
        model(**{name: cut[name] for name in names}).grounding_maps,
        model(**{name: whole[name] for name in names}).grounding_maps,
        strict=True,
    ):
        assert_close(found[0, 0], expected[0, 1])
