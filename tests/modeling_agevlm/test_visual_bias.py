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
"""Told where to look: a bias on the scores of visual tokens, in a call and in generation."""

import numpy as np
import pytest
import torch
from test_grounding_maps import guided_batch
from testing_utils import (
    IMAGE,
    MAP_LENGTH,
    NUM_CELLS,
    PAD,
    assert_close,
    box_mask,
    tiny_batch,
    tiny_model,
    tiny_processor,
)


GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "suppress_tokens": [IMAGE]}


def some_bias(rows: int, tokens: int) -> torch.Tensor:
    return -4 * torch.rand(rows, tokens, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("attention_sink", [False, True])
def test_attention_is_weighed_by_the_exponential_of_the_bias(attention_sink: bool, backend: str):
    """By one head of the first cross-attention layer, whose queries do not depend on it; the sink is weighed with 1."""
    text_config = {"attention_sink": attention_sink, "guidance_heads": [2]}
    model = tiny_model(attn_implementation=backend, text_config=text_config)
    batch = tiny_batch(placeholders=((0,), (2,)), length=8)
    batch["query_masks"] = torch.nn.functional.one_hot(torch.tensor([[3, 7], [4, 5]]), 8).bool()
    bias = some_bias(2, NUM_CELLS)
    free, told = (model(**batch, **more).grounding_maps[0] for more in ({}, {"visual_bias": bias}))
    weights = torch.nn.functional.pad(bias, (0, free.shape[-1] - NUM_CELLS)).exp().unsqueeze(1)
    assert_close(told, free * weights / (free * weights).sum(-1, keepdim=True), MAP_LENGTH)


def test_hidden_cells_stay_hidden():
    """Padding, other pictures, and rows without a picture."""
    model, batch = tiny_model(), guided_batch()
    bias = 1e4 * torch.randn(4, 3 * NUM_CELLS, generator=torch.Generator().manual_seed(0))
    free, told = (model(**batch, **more) for more in ({}, {"visual_bias": bias}))
    assert told.logits.isfinite().all()
    for before, after in zip(free.grounding_maps, told.grounding_maps, strict=True):
        assert not after[before == 0].any()
    assert_close(told.logits[3], free.logits[3])


def test_no_bias_is_as_before():
    model, batch = tiny_model(), tiny_batch()
    assert torch.equal(model(**batch, visual_bias=None).logits, model(**batch).logits)
    assert_close(model(**batch, visual_bias=torch.zeros(2, NUM_CELLS)).logits, model(**batch).logits)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_generation_keeps_to_it(num_beams: int):
    """With a cache as without one, and for every beam."""
    model, batch = tiny_model(), tiny_batch(placeholders=((0,), (2,)), length=8)
    bias = some_bias(2, NUM_CELLS) * 3
    settings = GREEDY | {"num_beams": num_beams}
    told = model.generate(**batch, visual_bias=bias, **settings)
    assert torch.equal(told, model.generate(**batch, visual_bias=bias, **settings, use_cache=False))
    assert not torch.equal(told, model.generate(**batch, **settings))


def test_masks_become_a_bias():
    processor = tiny_processor()
    whole = np.ones((64, 80), dtype=bool)
    bias = processor.get_visual_bias([[box_mask(rows=(0, 20), columns=(0, 40)), None], [whole, None]], strength=2.0)
    # rows of 21.3 pixels, columns of 26.7
    assert bias[0].tolist() == [0, 0, -2, *[-2] * 6, *[0] * NUM_CELLS] and bias[1].tolist() == [0] * 2 * NUM_CELLS
    assert not processor.get_visual_bias([[box_mask()]], strength=0.0).any()


@pytest.mark.parametrize(
    ("masks", "strength", "words"),
    [
        ([[np.zeros((8, 8), dtype=bool)]], 1.0, "row 0, picture 0 is empty"),
        ([[None], [np.ones((8, 8))]], 1.0, "row 1, picture 0 is of shape"),
        ([[np.ones(8, dtype=bool)]], 1.0, "should be boolean"),
        ([[None]], -1.0, "`strength` is -1.0"),
        ([[None]], float("inf"), "`strength` is inf"),
    ],
)
def test_masks_that_say_nowhere_are_refused(masks: list, strength: float, words: str):
    with pytest.raises(ValueError, match=words):
        tiny_processor().get_visual_bias(masks, strength)


def test_a_bias_that_does_not_fit_is_refused():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(ValueError, match=r"of shape \(2, 8\), but the 2 rows see up to 9 visual tokens"):
        model(**batch, visual_bias=torch.zeros(2, 8))
    with pytest.raises(ValueError, match="no row of the batch has one"):
        model(input_ids=torch.tensor([[7, 8]]), visual_bias=torch.zeros(1, 9))
