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
"""The attention heads of a VLM that already localize what words mean, after https://huggingface.co/papers/2503.06287."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .any_vlm_collator import DataCollatorForAnyVisionLanguageModel, without_targets
from .data_collator import Example
from .region_attention import RegionAttention


logger = logging.get_logger(__name__)

GRID = (24, 24)  # cells of a picture that maps are drawn on
MOST_QUERIES = 200
MOST_READ, MOST_WALKED = 1_000, 100_000  # rows with regions, and rows
ROUNDING = 1e-3  # an even map is not above its mean by more


def localizing_heads(
    model: PreTrainedModel,
    collate: DataCollatorForAnyVisionLanguageModel,
    rows: Iterable[dict[str, Any]],
    num_heads: int = 3,
) -> dict[int, list[int]]:
    """
    The heads of a VLM whose attention says where things are, without a look at any mask. Each query of the rows' regions votes
    for as many heads as are to be chosen: those whose map has the least spatial entropy, of those that have much of their
    attention on the picture. Those with most votes are chosen.

    Args:
        model ([`PreTrainedModel`]): Any VLM whose visual tokens stand among its words.
        collate ([`DataCollatorForAnyVisionLanguageModel`]): That of the training, as `collator_for` makes it: which words guide.
        rows (`Iterable[dict]`): Rows as for training. Of those with regions the first ones with `MOST_QUERIES` queries are read.
            Broken ones are left out, which is said.
        num_heads (`int`, *optional*, defaults to 3): How many are chosen, of all layers.

    Returns:
        `dict[int, list[int]]`: By layer, its chosen heads, as [`RegionAttention`] takes them.

    Raises:
        ValueError: If none of the rows has a region that shows something.
    """
    attention = RegionAttention(model)
    layers = sorted(attention.heads)
    votes, num_queries, num_read, num_walked, broken = 0, 0, 0, 0, []
    training = model.training
    model.eval()
    for num_walked, row in enumerate(islice(rows, MOST_WALKED), start=1):
        if not row.get("regions"):
            continue
        num_read += 1
        try:
            example = collate.read_row(row)
            batch = collate.batch_of(example)
        except Exception as error:  # whatever a row raises, which training stops at or skips
            broken.append(f"row {num_walked - 1}: {error}")
        else:
            for of_query, drawn in zip(*maps_of_row(model, attention, collate, example, batch), strict=True):
                votes = votes + vote(of_query, drawn, num_heads)
                num_queries += 1
        if num_queries >= MOST_QUERIES or num_read >= MOST_READ:
            break
    model.train(training)
    left_out = f" {len(broken)} rows are broken, the first one being {broken[0]}." if broken else ""
    if num_queries == 0:
        raise ValueError(
            f"None of the first {num_walked} rows, {num_read} of which have regions, has one that shows something in its picture, by "
            f"whose words the heads that localize could be found.{left_out}"
        )
    if broken:
        logger.warning(f"The heads that localize are chosen without some rows.{left_out}")
    heads_per_layer = len(votes) // len(layers)
    chosen: dict[int, list[int]] = {}
    for number in votes.topk(num_heads).indices.sort().values.tolist():
        chosen.setdefault(layers[number // heads_per_layer], []).append(number % heads_per_layer)
    return chosen


@torch.inference_mode()
def maps_of_row(
    model: PreTrainedModel,
    attention: RegionAttention,
    collate: DataCollatorForAnyVisionLanguageModel,
    example: Example,
    batch: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Where the words of a row's K regions that are shown look, in all heads of all layers: the share of their attention on the
    pictures, `(K, L * H)`, and that on a grid over the region's picture, `(K, L * H, *GRID)`.
    """
    shown = [k for k, (_, cells) in enumerate(example.region_masks) if cells is not None]
    if not shown:
        return torch.zeros(0, 0), torch.zeros(0, 0, *GRID)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    visual_tokens = batch["input_ids"] == collate.config.image_token_id
    with attention.mapping(batch["query_masks"], visual_tokens) as reading:
        model.base_model(**without_targets(batch))
    maps = torch.cat([of_layer[0] for of_layer in reading.maps], dim=1)[shown]  # (K, L * H, V)
    pictures = [example.region_masks[k][0] for k in shown]
    places = {n: collate.visual_tokens.footprints(example.images, n, GRID).to(maps.device) for n in {*pictures}}
    drawn = [torch.einsum("hv,vyx->hyx", of_query, places[n]) for of_query, n in zip(maps, pictures, strict=True)]
    return maps.sum(dim=-1), torch.stack(drawn)


def vote(on_picture: torch.Tensor, maps: torch.Tensor, num_votes: int) -> torch.Tensor:
    """Of the heads `(N,)` with their maps `(N, height, width)`, 1 for those that a query votes for, 0 for others."""
    entropies = spatial_entropy(maps).masked_fill(on_picture < knee(on_picture), torch.inf)
    best = entropies.topk(num_votes, largest=False)
    return torch.zeros_like(entropies).index_fill(0, best.indices[best.values.isfinite()], 1)


def knee(values: torch.Tensor) -> torch.Tensor:
    """Where the sorted values bend most: the one that is farthest below the line from the least to the greatest."""
    ordered = values.sort().values
    line = torch.linspace(0, 1, len(ordered), device=values.device) * (ordered[-1] - ordered[0]) + ordered[0]
    return ordered[(line - ordered).argmax()]


def spatial_entropy(maps: torch.Tensor) -> torch.Tensor:
    """
    In how many places maps `(N, height, width)` are, `(N,)`: the entropy, in nats, of the shares that the connected components
    of what is above the map's mean have of it; 0 for a single one, infinite for an even map, which is in no place.
    """
    number, height, width = maps.shape
    above = maps > (1 + ROUNDING) * maps.mean(dim=(1, 2), keepdim=True)
    labels = torch.arange(1, height * width + 1, dtype=torch.float, device=maps.device).view(1, height, width) * above
    while True:  # each cell takes on the greatest number of its neighbors
        spread = nn.functional.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0] * above
        if torch.equal(spread, labels):
            break
        labels = spread
    sums = torch.zeros(number, height * width + 1, device=maps.device)
    sums.scatter_add_(1, labels.flatten(1).long(), (maps.float() * above).flatten(1))
    parts = sums / sums.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)
    return torch.where(above.flatten(1).any(dim=1), -torch.special.xlogy(parts, parts).sum(dim=1), torch.inf)
