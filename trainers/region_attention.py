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
"""
How much of the attention of any transformers VLM lies in regions, read in its own forward pass without a map.

Region masks ride along as further channels of the values: what a softmax makes of them is how much of its attention lies in each
region, whichever kernel computes it. That is done in the attention function, which transformers lets one register, so that no
model's code has to change.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


PREFIX = "guided_"  # of the names of the attention functions
NUM_OVERALL = 2  # channels before those of the regions: on the picture, and off it
WIDEST = 256  # values that all kernels take


def shares(query_masks: torch.BoolTensor) -> torch.Tensor:
    """The share of each token in its query, `(B, K, T)`."""
    weights = query_masks.float()
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)


def exactly_on(device: torch.device) -> torch.autocast:
    """In which float32 stays so, whatever the model is trained in."""
    return torch.autocast(device.type, enabled=False)


def as_channels(regions: torch.Tensor) -> torch.Tensor:
    """Regions `(B, C, S)` as channels of the values, `(B, 1, S, C)` with zeros up to a multiple of 8, which kernels want."""
    return nn.functional.pad(regions.transpose(1, 2), (0, -regions.shape[1] % 8)).unsqueeze(1)


class RegionReading:
    """
    What one forward pass is asked for, and what it found. It travels through the model as a keyword argument, so that layers which
    are computed a second time (checkpointing of activations) find it again.

    B rows of T tokens with K queries each, H heads, S keys: the tokens of the row, or the visual tokens of a model that reads them
    by cross-attention.
    """

    def __init__(
        self,
        query_masks: torch.BoolTensor,
        region_masks: torch.FloatTensor,
        visual_tokens: torch.BoolTensor,
        heads: Mapping[int, Sequence[int] | None],
    ) -> None:
        self.heads = heads
        """By layer that is read, its heads; None for all."""
        self.weights = shares(query_masks)  # (B, K, T)
        self.is_absent = region_masks[..., -1] > 0  # (B, K)
        visual = visual_tokens[:, None].float()
        regions = region_masks[..., :-1] * visual
        self.channels = as_channels(torch.cat([visual, 1 - visual, regions], dim=1))
        self.found: dict[int, torch.Tensor] = {}
        """By layer: the attention of each query `(B, H, K)` on the picture, off it, and in its region, stacked first."""

        is_causal = query_masks.shape[-1] == visual_tokens.shape[-1]  # else the keys are not the row's own tokens
        seen = visual.expand(-1, query_masks.shape[1], -1)
        if is_causal:
            places = torch.arange(query_masks.shape[-1], device=query_masks.device)
            last = torch.where(query_masks, places, -1).amax(dim=-1, keepdim=True)
            seen = seen * (places <= last)
        uniform = (seen * regions).sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)
        can_look = query_masks.any(dim=-1) & (seen.sum(dim=-1) > 0)
        self.uniform_mass = torch.where(self.is_absent, 1.0, uniform) * can_look
        """
        Share of even attention on the picture that lies in each region, `(B, K)`, windows of layers aside; 1 for what is absent, 0 if
        it is not read.
        """

    def keep(self, layer: int, parts: Iterable[torch.Tensor]) -> None:
        """Takes what the attention of a layer made of the channels, some of them at a time, `(B, T, H, C)` in all."""
        num_regions = self.weights.shape[1]
        inside = torch.cat(list(parts), dim=-1)
        with exactly_on(inside.device):
            weights = self.weights.to(inside.device)
            overall = torch.einsum("bkt,bthc->cbhk", weights, inside[..., :NUM_OVERALL].float())
            in_regions = inside[..., NUM_OVERALL : NUM_OVERALL + num_regions].float()
            own = torch.einsum("bkt,bthk->bhk", weights, in_regions)
        # A layer that is computed a second time does all of this again, as its checkpoint wants, and in vain.
        self.found.setdefault(layer, torch.cat([overall, own[None]]).to(self.weights.device))

    @property
    def masses(self) -> tuple[torch.Tensor, ...]:
        """
        For each layer, in their order, `(B, K)`: of the attention on the picture (averaged over heads and a query's tokens) the share
        in the query's region; for words that mean nothing in a picture, of all attention what is off all pictures or in the others.
        It is what [`guidance_loss_from_mass`] takes. Raises `ValueError` if the model ran past a layer.
        """
        masses = []
        for on_picture, off_picture, in_region in self._means():
            least = torch.finfo(on_picture.dtype).tiny
            present = in_region / on_picture.clamp(min=least)
            absent = (off_picture + in_region) / (on_picture + off_picture).clamp(min=least)
            masses.append(torch.where(self.is_absent, absent, present))
        return tuple(masses)

    @property
    def sees(self) -> tuple[torch.BoolTensor, ...]:
        """
        For each layer, `(B, K)`: whether its window reaches from the words of each query to their region, or to a picture if they mean
        nothing in it.
        """
        return tuple(torch.where(self.is_absent, means[0] > 0, means[2] > 0) for means in self._means())

    def _means(self) -> Iterator[torch.Tensor]:
        """What was found in each layer, a mean over the heads that are read."""
        for layer, found in in_order(self.found, self.heads):
            heads = self.heads[layer]
            yield (found if heads is None else found[:, :, list(heads)]).mean(dim=2)


def in_order(found: Mapping[int, torch.Tensor], heads: Mapping[int, Any]) -> list[tuple[int, torch.Tensor]]:
    """What was found in each layer that is read. Raises `ValueError` if the model ran past one, or past the attention function."""
    if missing := heads.keys() - found.keys():
        raise ValueError(
            f"Nothing was read in layers {', '.join(map(str, sorted(missing)))}: their attention does not go through the "
            "attention interface of transformers, or the language model was not run."
        )
    return sorted(found.items())


class MapReading:
    """As [`RegionReading`], for maps: what is asked for is how much of the attention each visual token gets, V of a row at most."""

    def __init__(
        self, query_masks: torch.BoolTensor, visual_tokens: torch.BoolTensor, heads: Mapping[int, Sequence[int] | None]
    ) -> None:
        self.heads = heads
        self.weights = shares(query_masks)
        places = torch.where(visual_tokens, visual_tokens.cumsum(dim=-1), 0)  # counted from 1
        numbers = torch.arange(1, int(places.max()) + 1, device=places.device)
        each = (places[:, None] == numbers[:, None]).float()  # (B, V, S)
        self.num_visual_tokens = len(numbers)
        self.channels = as_channels(each)
        self.found: dict[int, torch.Tensor] = {}

    def keep(self, layer: int, parts: Iterable[torch.Tensor]) -> None:
        """As [`RegionReading.keep`]. The row's tokens go before the next part comes: all of them by V would be large."""
        heads = slice(None) if self.heads[layer] is None else list(self.heads[layer])
        of_queries = []
        for part in parts:
            with exactly_on(part.device):
                weights = self.weights.to(part.device)
                of_queries.append(torch.einsum("bkt,bthv->bkhv", weights, part[:, :, heads].float()))
        self.found[layer] = torch.cat(of_queries, dim=-1)[..., : self.num_visual_tokens].to(self.weights.device)

    @property
    def maps(self) -> tuple[torch.Tensor, ...]:
        """
        For each layer, in their order: the attention of each query in every head that is read, `(B, K, H, V)`. Raises `ValueError` if
        the model ran past a layer.
        """
        return tuple(of_layer for _, of_layer in in_order(self.found, self.heads))


def with_region_channels(attention: Callable) -> Callable:
    """An attention function of transformers that also takes what is to be read, and is unchanged without."""

    def forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        region_reading: RegionReading | MapReading | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if region_reading is None or module.layer_idx not in region_reading.heads:
            return attention(module, query, key, value, attention_mask, **kwargs)
        channels = region_reading.channels
        if channels.shape[2] != key.shape[2]:
            raise ValueError(
                f"Layer {module.layer_idx} attends to {key.shape[2]} tokens, but the region masks tell of {channels.shape[2]}: "
                "regions are read in a whole row at once, without what a cache holds."
            )
        if kwargs.get("scaling") is None:
            kwargs["scaling"] = query.shape[-1] ** -0.5
        channels = channels.to(value)
        width, num_channels = value.shape[-1], channels.shape[-1]
        if width + num_channels <= WIDEST:
            # All three are widened alike, for the kernels; the zeros of queries and keys change no score.
            query, key = (nn.functional.pad(states, (0, num_channels)) for states in (query, key))
            widened = torch.cat([value, channels.expand(*value.shape[:3], -1)], dim=-1)
            output, weights = attention(module, query, key, widened, attention_mask, **kwargs)
            output, inside = output.split([width, num_channels], dim=-1)
            parts = [inside]
        else:  # in the place of the values, as many at a time as these are wide
            output, weights = attention(module, query, key, value, attention_mask, **kwargs)
            parts = (
                attention(module, query, key, part.expand_as(value), attention_mask, **kwargs)[0]
                for part in nn.functional.pad(channels, (0, -num_channels % width)).split(width, dim=-1)
            )
        region_reading.keep(module.layer_idx, parts)
        return output, weights

    return forward


def register(name: str) -> str:
    """Registers one of transformers' attention functions with region channels, and returns what it is called."""
    if name not in ALL_ATTENTION_FUNCTIONS:
        known = ", ".join(
            sorted(key for key in ALL_ATTENTION_FUNCTIONS if not key.startswith(PREFIX) and "flash" not in key)
        )
        raise ValueError(
            f"The model's attention is computed by {name!r}, which is no function of transformers' attention interface: load it with "
            f"`attn_implementation` set to one of {known}."
        )
    if "flash" in name:
        raise ValueError(
            f"Regions cannot be read in {name!r}, which transformers looks up by its own name: load the model with "
            "`attn_implementation` set to sdpa, which has flash kernels of its own."
        )
    guided = PREFIX + name
    if guided not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(guided, with_region_channels(ALL_ATTENTION_FUNCTIONS[name]))
        ALL_MASK_ATTENTION_FUNCTIONS.register(guided, ALL_MASK_ATTENTION_FUNCTIONS[name])
    return guided


class RegionAttention:
    """
    Reads how much of the attention of a VLM's words lies in regions of its pictures.

    ```python
    attention = RegionAttention(model, layers=[8, 9])
    with attention.reading(query_masks, region_masks, input_ids == model.config.image_token_id) as reading:
        outputs = model(input_ids=input_ids, **pictures)
    guidance = guidance_loss_from_mass(reading.masses, region_masks, reading.uniform_mass, reading.sees)
    ```

    The model computes what it did, its attention included; it only gets values that are wider in the layers that are read. Works
    with activation checkpointing that is not reentrant.

    Args:
        model ([`PreTrainedModel`]): Any model of transformers whose language model's attention goes through the attention interface,
            or one with adapters of PEFT. Its attention function is exchanged for the same one with region channels.
        layers (`Sequence[int]`, *optional*): Layers of the language model that are read. All that have attention by default; of a
            model that reads pictures by cross-attention, all layers that do.
        heads (`Sequence[int]` or `Mapping[int, Sequence[int]]`, *optional*):
            Heads in each of them, all by default; or by layer, as [`localizing_heads`] finds them, in place of `layers`.

    Raises:
        ValueError: For an attention that is not of that interface, and for layers or heads that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        if hasattr(model, "get_base_model"):  # peft
            model = model.get_base_model()
        self.text_model: PreTrainedModel = model.get_decoder()
        config = self.text_model.config
        crossing = getattr(config, "cross_attention_layers", None)
        attending = {
            module.layer_idx
            for module in self.text_model.modules()
            if hasattr(module, "layer_idx") and hasattr(module, "scaling")
        }
        known = attending if crossing is None else set(crossing)
        if isinstance(heads, Mapping):
            self.heads = dict(heads)
        else:
            self.heads = dict.fromkeys(known if layers is None else layers, heads)
        """By layer that is read, its heads; None for all."""
        unknown = self.heads.keys() - known
        if unknown or not self.heads:
            named, readable = (", ".join(map(str, sorted(of))) or "none" for of in (unknown, known))
            raise ValueError(
                f"Layers {named} cannot be read: of this model's language model those with attention to pictures are {readable}."
            )
        num_heads = config.num_attention_heads
        for of_layer in self.heads.values():
            if of_layer is not None and not (of_layer and all(0 <= head < num_heads for head in of_layer)):
                raise ValueError(f"Heads {list(of_layer)} cannot be read: each layer has heads 0 to {num_heads - 1}.")
        if not config._attn_implementation.startswith(PREFIX):
            self.text_model.set_attn_implementation(register(config._attn_implementation))

    @contextmanager
    def reading(
        self, query_masks: torch.BoolTensor, region_masks: torch.FloatTensor, visual_tokens: torch.BoolTensor
    ) -> Iterator[RegionReading]:
        """
        What the model's forward passes inside of this are asked for.

        Args:
            query_masks (`torch.BoolTensor` of shape `(batch_size, num_regions, sequence_length)`):
                True for the words of each query.
            region_masks (`torch.FloatTensor` of shape `(batch_size, num_regions, num_keys + 1)`):
                1 for the tokens of each query's region, 0 for others, in the place where they stand in the row, or among the visual
                tokens if the model reads these by cross-attention. The last column is 1 for words that mean nothing in their picture, whose
                region is the row's other pictures.
            visual_tokens (`torch.BoolTensor` of shape `(batch_size, num_keys)`):
                True for all that show a picture.

        Raises:
            ValueError: If the shapes do not fit each other.
        """
        expected = (*query_masks.shape[:2], visual_tokens.shape[-1] + 1)
        if region_masks.shape != expected or len(visual_tokens) != len(query_masks):
            raise ValueError(
                f"`region_masks` are of shape {tuple(region_masks.shape)}, but queries of shape {tuple(query_masks.shape)} and visual "
                f"tokens of shape {tuple(visual_tokens.shape)} need {expected}."
            )
        with self._asked(RegionReading(query_masks, region_masks, visual_tokens, self.heads)) as reading:
            yield reading

    @contextmanager
    def mapping(self, query_masks: torch.BoolTensor, visual_tokens: torch.BoolTensor) -> Iterator[MapReading]:
        """
        The model's forward passes inside of this are asked for maps; arguments as in [`reading`].

        Yields:
            [`MapReading`]: Its `maps`.
        """
        with self._asked(MapReading(query_masks, visual_tokens, self.heads)) as reading:
            yield reading

    @contextmanager
    def _asked(self, reading: Any) -> Iterator[Any]:
        def hand_on(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return args, kwargs | {"region_reading": reading}  # to the attention, as all that a model does not know

        hook = self.text_model.register_forward_pre_hook(hand_on, with_kwargs=True)
        try:
            yield reading
        finally:
            hook.remove()
