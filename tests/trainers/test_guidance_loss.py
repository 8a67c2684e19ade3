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
import math

import numpy as np
import pytest
import torch
from testing_utils import assert_close, guidance_by_hand, tolerance, up_to_rounding
from torch._subclasses import FakeTensorMode

from trainers import GuidanceLoss, guidance_loss, guidance_loss_from_mass


NORMALIZATIONS = pytest.mark.parametrize("normalization", ["sum", "max"])


def random_maps(layers: int, batch_size: int, regions: int, cells: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(layers, batch_size, regions, cells, generator=generator).mul(2).softmax(dim=-1))


def random_masks(batch_size: int, regions: int, cells: int, seed: int = 0) -> torch.Tensor:
    masks = (torch.rand(batch_size, regions, cells, generator=torch.Generator().manual_seed(seed)) < 0.3).float()
    masks[..., seed % cells] = 1
    return masks


def assert_equal_to_hand(found: GuidanceLoss, expected: tuple[float, float, float, int], num_cells: int) -> None:
    guided = found.is_guided
    values = [found.loss.item(), *(mass[guided].mean().item() for mass in (found.in_mask_mass, found.uniform_mass))]
    assert values == up_to_rounding(expected[:3], num_cells)
    assert guided.sum() == expected[3]
    assert not found.in_mask_mass[~guided].any() and not found.uniform_mass[~guided].any()


def one_map(values: list[float]) -> tuple[torch.Tensor]:
    return (torch.tensor(values).view(1, 1, -1),)


@NORMALIZATIONS
@pytest.mark.parametrize("shape", [(1, 1, 1, 9), (4, 2, 3, 36), (2, 5, 1, 18), (3, 1, 7, 576)])
def test_equals_the_formula(normalization: str, shape: tuple[int, int, int, int]):
    maps, masks = random_maps(*shape), random_masks(*shape[1:])
    expected = guidance_by_hand(maps, masks, normalization)
    assert_equal_to_hand(guidance_loss(maps, masks, normalization), expected, maps[0].numel())


def test_values_at_the_papers_size():
    """576 cells of which the mask has 6."""
    mask = torch.zeros(1, 1, 576)
    mask[..., :6] = 1
    inside = (mask / 6,)
    everywhere = (torch.full((1, 1, 576), 1 / 576),)
    # sum: dice = 2 m / (k + 1) for a mass of m in the mask
    assert guidance_loss(inside, mask, "sum").loss.item() == up_to_rounding(math.log(7 / 2), 576)  # 1.25
    assert guidance_loss(everywhere, mask, "sum").loss.item() == up_to_rounding(math.log(7 / 2 * 96), 576)  # 5.82
    # max: the map is 1 on its cells
    assert guidance_loss(inside, mask, "max").loss.item() == pytest.approx(0, abs=tolerance(torch.float32, 576))
    assert guidance_loss(everywhere, mask, "max").loss.item() == up_to_rounding(math.log(582 / 12), 576)  # 3.88
    assert math.log(7 / 2) == pytest.approx(1.25, abs=0.01) and math.log(582 / 12) == pytest.approx(3.88, abs=0.01)
    assert math.log(7 / 2 * 96) == pytest.approx(5.82, abs=0.01)


@pytest.mark.parametrize(("normalization", "expected"), [("sum", math.log(7 / 2)), ("max", math.log(7 / 2))])
def test_all_attention_on_one_cell_of_the_mask(normalization: str, expected: float):
    one_hot, mask = torch.zeros(1, 1, 576), torch.zeros(1, 1, 576)
    one_hot[..., 0] = 1
    mask[..., :6] = 1
    assert guidance_loss((one_hot,), mask, normalization).loss.item() == up_to_rounding(expected, 576)


def test_only_max_presses_to_cover_the_mask():
    mask = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    narrow, wide = one_map([1.0, 0.0, 0.0, 0.0]), one_map([0.5, 0.5, 0.0, 0.0])
    assert guidance_loss(narrow, mask, "sum").loss == guidance_loss(wide, mask, "sum").loss
    assert guidance_loss(narrow, mask, "max").loss > guidance_loss(wide, mask, "max").loss + 0.3


def test_masses():
    mask = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    found = guidance_loss((*one_map([0.4, 0.3, 0.2, 0.1]), *one_map([0.1, 0.2, 0.3, 0.4])), mask)
    assert found.in_mask_mass.item() == up_to_rounding((0.7 + 0.3) / 2, 4)
    assert found.uniform_mass.item() == up_to_rounding(0.5, 4)


def test_uniform_mass_counts_only_cells_that_may_be_attended_to():
    mask = torch.tensor([[[1.0, 0.0, 0.0, 0.0, 0.0]]])
    found = guidance_loss(one_map([0.5, 0.25, 0.25, 0.0, 0.0]), mask)
    assert found.uniform_mass.item() == up_to_rounding(1 / 3, 5)


@NORMALIZATIONS
def test_empty_masks_and_maps_without_a_query_are_left_out(normalization: str):
    maps, masks = random_maps(3, 2, 4, 9), random_masks(2, 4, 9)
    masks[0, 1] = 0
    for layer in maps:
        layer[1, 2:] = 0
    found = guidance_loss(maps, masks, normalization)
    assert found.is_guided.tolist() == [[True, False, True, True], [True, True, False, False]]
    assert_equal_to_hand(found, guidance_by_hand(maps, masks, normalization), maps[0].numel())
    kept = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1)]
    alone = [
        guidance_loss([layer[b : b + 1, k : k + 1] for layer in maps], masks[b : b + 1, k : k + 1], normalization)
        for b, k in kept
    ]
    assert found.loss.item() == up_to_rounding(sum(part.loss.item() for part in alone) / 5, maps[0].numel())


@NORMALIZATIONS
def test_left_out_regions_have_no_gradient(normalization: str):
    maps, masks = torch.stack(random_maps(2, 2, 2, 9)), random_masks(2, 2, 9)
    masks[0, 0] = 0
    maps[:, 1, 1] = 0
    maps.requires_grad_()
    guidance_loss(tuple(maps), masks, normalization).loss.backward()
    assert maps.grad.isfinite().all()
    assert (maps.grad[:, 0, 0] == 0).all() and (maps.grad[:, 1, 1] == 0).all()
    assert (maps.grad[:, 0, 1] != 0).any() and (maps.grad[:, 1, 0] != 0).any()


@NORMALIZATIONS
@pytest.mark.parametrize("empty", ["masks", "maps"])
def test_nothing_guided_is_zero_with_a_gradient_of_zero(normalization: str, empty: str):
    scores = torch.randn(2, 2, 2, 9, requires_grad=True)
    maps, masks = scores.softmax(dim=-1), random_masks(2, 2, 9)
    maps, masks = (maps, masks * 0) if empty == "masks" else (maps * 0, masks)
    found = guidance_loss(tuple(maps), masks, normalization)
    assert not any(values.any() for values in found)
    found.loss.backward()
    assert torch.equal(scores.grad, torch.zeros_like(scores))


@NORMALIZATIONS
@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, 0.0, 0.0],
        [1e-38, 0.0, 1.0, 0.0],
        [0.25, 0.25, 0.25, 0.25],
        [0.0, 1e-45, 0.5, 0.5],
    ],
)
def test_extreme_maps_stay_finite(normalization: str, values: list[float]):
    (layer,) = one_map(values)
    layer.requires_grad_()
    found = guidance_loss((layer,), torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]), normalization)
    assert all(value.isfinite() for value in found)
    assert found.loss >= -tolerance(torch.float32, 4) and 0 <= found.in_mask_mass <= 1 and 0 <= found.uniform_mass <= 1
    found.loss.backward()
    assert layer.grad.isfinite().all()


@NORMALIZATIONS
def test_bfloat16_maps_are_computed_in_float32(normalization: str):
    maps = tuple(layer.bfloat16() for layer in random_maps(2, 2, 3, 36))
    masks = random_masks(2, 3, 36)
    found = guidance_loss(maps, masks.bfloat16(), normalization)
    assert found.loss.dtype == torch.float32
    assert_equal_to_hand(found, guidance_by_hand(maps, masks, normalization), maps[0].numel())


@NORMALIZATIONS
def test_boolean_masks(normalization: str):
    maps, masks = random_maps(2, 2, 3, 9), random_masks(2, 3, 9)
    assert guidance_loss(maps, masks.bool(), normalization).loss == guidance_loss(maps, masks, normalization).loss


@NORMALIZATIONS
def test_gradient_is_that_of_the_formula(normalization: str):
    """Finite differences of the float64 formula by hand, in the interior."""
    maps, masks = torch.stack(random_maps(2, 1, 2, 5)), random_masks(1, 2, 5)
    leaf = maps.clone().requires_grad_()
    guidance_loss(tuple(leaf), masks, normalization).loss.backward()
    step, expected = 1e-6, torch.zeros(maps.shape, dtype=torch.float64)
    for index in np.ndindex(*maps.shape):
        values = []
        for sign in (1, -1):
            moved = maps.double().clone()
            moved[index] += sign * step
            values.append(guidance_by_hand(tuple(moved), masks, normalization)[0])
        expected[index] = (values[0] - values[1]) / (2 * step)
    assert_close(leaf.grad, expected, 2 * maps.numel())


@NORMALIZATIONS
def test_a_descent_moves_the_attention_into_the_mask(normalization: str):
    scores, mask = torch.randn(1, 1, 1, 16, requires_grad=True), torch.zeros(1, 1, 16)
    mask[..., 3:6] = 1
    optimizer = torch.optim.Adam([scores], lr=0.1)
    masses = []
    for _ in range(200):
        found = guidance_loss(tuple(scores.softmax(dim=-1)), mask, normalization)
        masses.append(found.in_mask_mass.item())
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
    assert masses[0] < 0.6 and masses[-1] > 0.95


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"`region_masks` of shape \(2, 3, 8\) .* shapes \[\(2, 3, 9\)\]"):
        guidance_loss(random_maps(1, 2, 3, 9), torch.ones(2, 3, 8))


def test_no_maps_are_refused():
    with pytest.raises(ValueError, match="needs at least one grounding map"):
        guidance_loss((), torch.ones(2, 3, 8))


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match="`normalization` has to be .* but is 'mean'"):
        guidance_loss(random_maps(1, 1, 1, 9), torch.ones(1, 1, 9), "mean")


def test_nothing_waits_for_the_device():
    """Neither loss asks for a value of its tensors, so that on a GPU the next step is under way meanwhile."""
    with FakeTensorMode():
        maps, masks = torch.rand(2, 3, 4, 9).unbind(), torch.rand(3, 4, 9)
        for normalization in ("sum", "max"):
            assert guidance_loss(maps, masks, normalization).loss.shape == ()
        assert guidance_loss_from_mass((masks.mean(-1),), masks, masks.mean(-1)).loss.shape == ()
