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
"""The guidance loss of AGE-VLM (Eq. 3 of https://huggingface.co/papers/2511.17793): attention against masks."""

from typing import Literal, NamedTuple

import torch


class GuidanceLoss(NamedTuple):
    """What `guidance_loss` returns: the loss, and of each region what it is made of, 0 for one that is not guided."""

    loss: torch.Tensor
    """The guidance loss in nats, a mean over the guided regions and the layers; differentiable."""
    is_guided: torch.Tensor
    """Which regions were guided, `(batch_size, num_regions)`: those with a mask and with a query that sees an image."""
    in_mask_mass: torch.Tensor
    """Share of the attention that falls inside the mask, in [0, 1], a mean over the layers: `(batch_size, num_regions)`."""
    uniform_mass: torch.Tensor
    """The same share if the attention were even over all that it may fall on."""


def guidance_loss(
    grounding_maps: tuple[torch.Tensor, ...],
    region_masks: torch.Tensor,
    normalization: Literal["sum", "max"] = "sum",
) -> GuidanceLoss:
    """
    Negative logarithm of the dice overlap between attention and masks, `-log(2 <M, P> / (sum M + sum P))`.

    `P` is the layer's map divided by its sum or by its maximum. With `"sum"`, the reading that the paper's
    "normalized to a distribution" asks for, the loss is `-log(mass inside the mask) + log((k + 1) / 2)` for a mask of
    `k` cells: its floor depends on `k`, and nothing presses the attention to cover the mask. With `"max"` it is a real
    overlap that is 0 when the attention is even inside the mask and zero outside.

    Args:
        grounding_maps (`tuple[torch.Tensor]`):
            One tensor of shape `(batch_size, num_regions, num_image_tokens)` per guided layer: the attention averaged over
            guided heads and query tokens, float32; with an attention sink, which is one column more here and in the masks,
            "nowhere in the picture" is one more place to look at. A map that is 0 throughout has no query and is not guided.
        region_masks (`torch.Tensor` of shape `(batch_size, num_regions, num_image_tokens)`):
            1 inside the region, 0 outside. A mask that is 0 throughout is not guided.
        normalization (`"sum"` or `"max"`, *optional*, defaults to `"sum"`):
            What the maps are divided by.

    Returns:
        [`GuidanceLoss`]; all zero if no region is guided.

    Raises:
        ValueError: If the shapes differ, there is no map or `normalization` is unknown.
    """
    if normalization not in ("sum", "max"):
        raise ValueError(f'`normalization` has to be "sum" or "max", but is {normalization!r}.')
    if len(grounding_maps) == 0 or grounding_maps[0].shape != region_masks.shape:
        raise ValueError(
            f"`region_masks` of shape {tuple(region_masks.shape)} needs at least one grounding map of the same shape, "
            f"but the maps have shapes {[tuple(m.shape) for m in grounding_maps]}."
        )
    maps = torch.stack(grounding_maps).float()  # (num_layers, batch_size, num_regions, num_image_tokens)
    masks = region_masks.float()
    guided = (masks > 0).any(dim=-1) & (maps > 0).any(dim=-1).all(dim=0)
    reachable = (maps > 0).any(dim=0)
    # Where a region is not guided, numbers that lead to no gradient and no division by 0 take the place of its own.
    maps = torch.where(guided.unsqueeze(-1), maps, 1.0)

    attention_mass = maps.sum(dim=-1)
    scale = attention_mass if normalization == "sum" else maps.amax(dim=-1)
    overlap = (maps * masks).sum(dim=-1)
    dice = 2 * (overlap / scale) / (masks.sum(dim=-1) + attention_mass / scale)
    return GuidanceLoss(
        loss=_mean(_negative_log(dice), guided),
        is_guided=guided,
        in_mask_mass=torch.where(guided, (overlap / attention_mass).detach().mean(dim=0), 0.0),
        uniform_mass=torch.where(guided, (masks * reachable).sum(dim=-1) / reachable.sum(dim=-1).clamp(min=1), 0.0),
    )


def guidance_loss_from_mass(
    masses: tuple[torch.Tensor, ...],
    region_masks: torch.Tensor,
    uniform_mass: torch.Tensor,
    sees: tuple[torch.Tensor, ...] | None = None,
) -> GuidanceLoss:
    """
    [`guidance_loss`] normalized by `"sum"`, which needs no map: only how much of the attention falls inside each region.

    Args:
        masses (`tuple[torch.Tensor]`):
            One tensor of shape `(batch_size, num_regions)` per guided layer: the share of the query's attention inside its
            region, float32. It is what the model returns as `region_attention` for `region_masks`.
        region_masks (`torch.Tensor` of shape `(batch_size, num_regions, num_image_tokens)`):
            1 inside the region, 0 outside. A mask that is 0 throughout is not guided.
        uniform_mass (`torch.Tensor` of shape `(batch_size, num_regions)`):
            That share for even attention. A region that no word of its query sees has 0 and is not guided.
        sees (`tuple[torch.Tensor]`, *optional*):
            Of the same shape per guided layer: False where the layer's window does not reach from the query to its region, which is
            left out of the region's mean over the layers. All see by default.

    Returns:
        [`GuidanceLoss`]; all zero if no region is guided.

    Raises:
        ValueError: If the shapes differ or there is no layer.
    """
    if len(masses) == 0 or masses[0].shape != region_masks.shape[:2]:
        raise ValueError(
            f"`region_masks` of shape {tuple(region_masks.shape)} needs at least one layer's masses of shape "
            f"{tuple(region_masks.shape[:2])}, but they have shapes {[tuple(m.shape) for m in masses]}."
        )
    mass = torch.stack(masses).float()  # (num_layers, batch_size, num_regions)
    dice = 2 * mass / (region_masks.float().sum(dim=-1) + 1)
    seeing = (uniform_mass > 0).expand_as(mass)
    if sees is not None:
        seeing = seeing & torch.stack(sees)
    guided, num_layers = seeing.any(dim=0), seeing.sum(dim=0).clamp(min=1)
    losses = torch.where(seeing, _negative_log(dice), 0.0).sum(dim=0) / num_layers
    return GuidanceLoss(
        loss=losses.sum() / guided.sum().clamp(min=1),
        is_guided=guided,
        in_mask_mass=torch.where(seeing, mass.detach(), 0.0).sum(dim=0) / num_layers,
        uniform_mass=torch.where(guided, uniform_mass, 0.0),
    )


def _mean(values: torch.Tensor, guided: torch.Tensor) -> torch.Tensor:
    """Mean over the guided regions and all layers, 0 without a region; nothing of it waits for the device."""
    return torch.where(guided, values, 0.0).sum() / guided.expand_as(values).sum().clamp(min=1)


def _negative_log(dice: torch.Tensor) -> torch.Tensor:
    """Only an overlap that float32 cannot hold is clamped; it keeps -log finite."""
    return -dice.clamp(min=torch.finfo(dice.dtype).tiny).log()
