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
"""AGE-VLM: a LLaMA whose interleaved cross-attention layers read the feature map of a ConvNeXt.

Paper: Attention Guided Alignment in Efficient Vision-Language Models, https://huggingface.co/papers/2511.17793
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin, StoppingCriteriaList
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MultimodalBaseModelOutputWithPast,
    MultimodalCausalLMOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    eager_attention_forward,
    repeat_kv,
)
from transformers.processing_utils import Unpack
from transformers.utils import (
    TransformersKwargs,
    auto_docstring,
    can_return_tuple,
    is_timm_available,
    is_torchdynamo_compiling,
    requires_backends,
)
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_agevlm import AgeVlmConfig, AgeVlmTextConfig, AgeVlmVisionConfig


if is_timm_available():
    import timm


# Whatever else runs the self-attention, cross-attention runs on SDPA. (mlinter's TRF051 wants no comparison of its name.)
CROSS_ATTENTION_BACKENDS = {"eager": "eager"}
NUM_STAGES = 4  # of every ConvNeXt
# timm's ConvNeXt draws its layer scale at this value; a checkpoint without vision weights has to get it as well.
LAYER_SCALE_INIT = 1e-6
NEVER = torch.iinfo(torch.long).max  # from which token on hidden visual tokens are visible


@auto_docstring(custom_intro="Output of the text stack and of the whole model without its language modeling head.")
@dataclass
class AgeVlmModelOutputWithPast(MultimodalBaseModelOutputWithPast):
    r"""
    image_outputs (`BaseModelOutputWithPooling`, *optional*):
        What [`~AgeVlmModel.get_image_features`] returns for the images that this call ran, row after row: the projected
        visual tokens are its `pooler_output` of shape `(num_images, num_image_tokens, hidden_size)`.
    grounding_maps (`tuple(torch.FloatTensor)`, *optional*, returned when `query_masks` is passed):
        One tensor of shape `(batch_size, num_regions, num_images * num_image_tokens)` per guided layer, in float32: the
        attention averaged over the layer's guided heads and over the tokens of each query. With `attention_sink` one
        column more, the last, is what lies on the sink. Each map sums to 1, or is 0 throughout for a query without a token
        that sees an image.
    region_attention (`tuple(torch.FloatTensor)`, *optional*, returned when `region_masks` is passed):
        One tensor of shape `(batch_size, num_regions)` per guided layer, in float32: how much of each query's attention
        lies in its region, which is the sum of mask times grounding map without the map. Where the masks hold other values
        than 0 and 1, it is the values' mean under the attention.
    uniform_region_attention (`torch.FloatTensor` of shape `(batch_size, num_regions)`, *optional*, returned when `region_masks` is passed):
        The same if the attention were even over all visual tokens that any word of the query sees, and the sink.
    head_region_attention (`tuple(torch.FloatTensor)`, *optional*, returned when `region_masks` and `output_head_region_attention=True` are passed):
        One tensor of shape `(batch_size, num_heads, num_regions)` per cross-attention layer, guided or not: the same of
        every head by itself.
    """

    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    grounding_maps: tuple[torch.FloatTensor, ...] | None = None
    region_attention: tuple[torch.FloatTensor, ...] | None = None
    uniform_region_attention: torch.FloatTensor | None = None
    head_region_attention: tuple[torch.FloatTensor, ...] | None = None


@auto_docstring(custom_intro="Output of the model with its language modeling head.")
@dataclass
class AgeVlmCausalLMOutputWithPast(MultimodalCausalLMOutputWithPast):
    r"""
    loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is provided):
        Language modeling loss (for next-token prediction), in nats per token.
    logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
        Prediction scores of the language modeling head (before the softmax).
    image_outputs (`BaseModelOutputWithPooling`, *optional*):
        What [`~AgeVlmModel.get_image_features`] returns for the images that this call ran, row after row: the projected
        visual tokens are its `pooler_output` of shape `(num_images, num_image_tokens, hidden_size)`.
    grounding_maps (`tuple(torch.FloatTensor)`, *optional*, returned when `query_masks` is passed):
        One map per guided layer, see [`AgeVlmModelOutputWithPast`].
    region_attention (`tuple(torch.FloatTensor)`, *optional*, returned when `region_masks` is passed):
        How much of each query's attention lies in its region, layer by layer, see [`AgeVlmModelOutputWithPast`].
    uniform_region_attention (`torch.FloatTensor` of shape `(batch_size, num_regions)`, *optional*, returned when `region_masks` is passed):
        The same for even attention, see [`AgeVlmModelOutputWithPast`].
    head_region_attention (`tuple(torch.FloatTensor)`, *optional*, returned when `region_masks` and `output_head_region_attention=True` are passed):
        The same for every head of every cross-attention layer, see [`AgeVlmModelOutputWithPast`].
    """

    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    grounding_maps: tuple[torch.FloatTensor, ...] | None = None
    region_attention: tuple[torch.FloatTensor, ...] | None = None
    uniform_region_attention: torch.FloatTensor | None = None
    head_region_attention: tuple[torch.FloatTensor, ...] | None = None


class AgeVlmCrossAttentionCacheLayer(DummyLayer, CacheLayerMixin):
    """
    Visual keys and values of one cross-attention layer, and from which token on each of them is visible.

    It grows with the images, never with the text. `visible_from` of shape `(batch_size, num_image_tokens)` counts the
    tokens of the text from the beginning of the cache; it is `NEVER` for what fills up rows with fewer images and for padded
    cells, and of shape `(batch_size, 1)` where a row sees all or nothing.

    A `DummyLayer`, for caches that offload their layers pass over those: a call without images does not come here, and
    would not fetch the next layer.
    """

    is_sliding = False

    def __init__(self) -> None:
        CacheLayerMixin.__init__(self)
        self.visible_from: torch.Tensor | None = None
        self.is_cropped = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys, self.values = key_states, value_states
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, visible_from: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`visible_from` is that of all images, the cached ones first."""
        if self.is_initialized:
            key_states = torch.cat([self.keys, key_states], dim=-2)
            value_states = torch.cat([self.values, value_states], dim=-2)
        self.lazy_initialization(key_states, value_states)
        self.visible_from = visible_from
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.keys.shape[-2] if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def crop(self, tokens_to_remove: int) -> None:
        self.is_cropped = True  # how long the text is now is seen with the next call

    def num_images(self) -> torch.Tensor:
        """How many images each row has seen, `(batch_size,)`: they begin with different tokens."""
        places = self.visible_from.sort(dim=1).values
        is_next = nn.functional.pad(places.diff(dim=1) > 0, (1, 0), value=True)
        return (is_next & (places != NEVER)).sum(dim=1)

    def reset(self) -> None:
        self.__init__()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)
            self.visible_from = self.visible_from.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            self.keys = self.keys[indices.to(self.keys.device)]
            self.values = self.values[indices.to(self.values.device)]
            self.visible_from = self.visible_from[indices.to(self.visible_from.device)]


def visual_cache(cache: Cache, config: AgeVlmTextConfig) -> AgeVlmCrossAttentionCacheLayer:
    """The first cross-attention layer of a cache. On first use all of them take their places in it."""
    if isinstance(cache, EncoderDecoderCache):
        raise ValueError(
            "AGE-VLM keeps its visual keys and values in the cache of its text. Pass a `DynamicCache` or `StaticCache` "
            "instead of an `EncoderDecoderCache`."
        )
    while len(cache.layers) < config.num_hidden_layers:  # a `DynamicCache()` that was made without a config
        cache.layers.append(cache.layer_class_to_replicate())
    for layer_idx in config.cross_attention_layers:
        layer = cache.layers[layer_idx]
        if not isinstance(layer, AgeVlmCrossAttentionCacheLayer):
            cache.layers[layer_idx] = AgeVlmCrossAttentionCacheLayer()
        elif layer.is_cropped and layer.is_initialized:  # the images of tokens that were taken back are gone
            layer.visible_from = layer.visible_from.masked_fill(layer.visible_from >= cache.get_seq_length(), NEVER)
            layer.is_cropped = False
    return cache.layers[config.cross_attention_layers[0]]


def holds_images(pixel_values: torch.Tensor, num_images: torch.Tensor) -> bool:
    """Whether each row has so many images, `(batch_size,)`, with nothing but zeros behind them. Neighbors may share theirs."""
    room = pixel_values.shape[1]
    is_unused = torch.arange(room, device=num_images.device) >= num_images.unsqueeze(1)
    rows, images = is_unused.nonzero(as_tuple=True)
    rows = rows // (len(num_images) // len(pixel_values))
    return bool((num_images <= room).all()) and not pixel_values[rows, images].any()


def sincos_position_code(height: int, width: int, dim: int, device: torch.device) -> torch.Tensor:
    """
    2-D sine-cosine code of the cells of a picture, `(height * width, dim)`: one half of the channels for rows, one for
    columns, with periods from four times the side down to two cells. Its mean square is 1.
    """
    angles = []  # 2 x (height * width, dim / 4)
    places = [(torch.arange(side, device=device) + 0.5) / side for side in (height, width)]
    for side, place in zip((height, width), torch.meshgrid(*places, indexing="ij"), strict=True):
        frequencies = torch.logspace(-2, math.log2(max(side, 2) / 2), dim // 4, base=2, device=device)
        angles.append(2 * math.pi * place.reshape(-1, 1) * frequencies)
    return 2**0.5 * torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=-1)


class AgeVlmMultiModalProjector(nn.Module):
    """The paper's adapter: two linear layers from the feature map's channels to the LLM's hidden size."""

    def __init__(self, config: AgeVlmConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))


class AgeVlmOutputProjection(nn.Linear):
    """
    Last linear layer of a residual branch; starts at zero, so that the branch adds nothing at first.

    A class of its own, for transformers (5.24, `_initialize_weights`) passes over the modules of remote code that only
    hold other modules: `_init_weights` could not find this layer by its parent.
    """


class AgeVlmCrossAttentionInputs(NamedTuple):
    """
    What all cross-attention layers get in one call, besides the text and the cache. `num_image_tokens` counts the visual
    tokens that the text may see, first the cached ones, then those of this call; `num_keys` is one more with the sink.

    `cross_attention_states` of shape `(batch_size, num_new_image_tokens, hidden_size)` are those of this call, `visible_from`
    of shape `(batch_size, num_image_tokens)` is what the cache keeps of all. The additive `cross_attention_mask` of shape
    `(batch_size, 1, sequence_length, num_keys)` is None if each text token sees all or none. `sees_image` is of shape
    `(batch_size, sequence_length, 1)`. The `query_weights` of shape `(batch_size, num_regions, sequence_length)` sum to 1
    for each query that sees an image, the `region_channels` of shape `(batch_size, 1, num_keys, num_channels)` are
    the region masks, filled up to a multiple of 8 channels as attention kernels like them.
    """

    cross_attention_states: torch.Tensor | None
    visible_from: torch.Tensor
    cross_attention_mask: torch.Tensor | None
    sees_image: torch.Tensor
    query_weights: torch.Tensor | None
    region_channels: torch.Tensor | None


class AgeVlmCrossAttention(nn.Module):
    """Attention of text tokens to visual tokens (Eq. 2), with grouped key/value heads and normalized queries and keys."""

    def __init__(self, config: AgeVlmTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False  # without it SDPA would mask the visual tokens causally

        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = AgeVlmOutputProjection(
            config.num_attention_heads * self.head_dim, config.hidden_size, bias=False
        )
        self.q_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = LlamaRMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.sink_key = None
        # CODEPATH: False for the paper's checkpoints, True for those whose words may look at nothing
        if config.attention_sink:
            self.sink_key = nn.Parameter(torch.zeros(config.num_key_value_heads, 1, self.head_dim))

    def forward(
        self,
        hidden_states: torch.Tensor,
        inputs: AgeVlmCrossAttentionInputs,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        query_weights, region_channels = inputs.query_weights, inputs.region_channels
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2))
        key_states, value_states = self.project_visual_tokens(
            inputs.cross_attention_states, inputs.visible_from, cache
        )
        if self.sink_key is not None:
            sink_key = self.sink_key.to(key_states.dtype).expand(key_states.shape[0], -1, -1, -1)
            key_states = torch.cat([key_states, sink_key], dim=2)
            value_states = nn.functional.pad(value_states, (0, 0, 0, 1))
        states = query_states, key_states, value_states
        if region_channels is not None:
            states = self.append_region_masks(*states, region_channels)

        # Flash attention takes a 2-D text mask and would cut the visual keys to the text's length.
        backend = CROSS_ATTENTION_BACKENDS.get(self.config._attn_implementation, "sdpa")
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)
        attn_output, attn_weights = attention_interface(
            self,
            *states,
            inputs.cross_attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        grounding = None
        if region_channels is not None:
            attn_output, inside = attn_output.split([self.head_dim, region_channels.shape[-1]], dim=-1)
            grounding = torch.einsum("bkt,bthk->bhk", query_weights, inside[..., : query_weights.shape[1]].float())
        # CODEPATH: all layers in the paper's checkpoints, some in those whose training chose them
        elif query_weights is not None and self.layer_idx in self.config.guided_layers:
            # The scores of all heads and tokens are worth computing twice, not keeping.
            grounding = checkpoint(
                self.grounding_map,
                query_states,
                key_states,
                inputs.cross_attention_mask,
                query_weights,
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return self.o_proj(attn_output.reshape(*hidden_states.shape[:-1], -1)), attn_weights, grounding

    @staticmethod
    def append_region_masks(
        query_states: torch.Tensor, key_states: torch.Tensor, value_states: torch.Tensor, region_channels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Region masks `(batch_size, 1, num_keys, num_channels)` as further channels of the values: what the attention
        makes of them is how much of it lies in each region. Queries and keys get zeros, for backends want all three alike.
        """
        num_channels = region_channels.shape[-1]
        query_states, key_states = (nn.functional.pad(x, (0, num_channels)) for x in (query_states, key_states))
        region_channels = region_channels.expand(*value_states.shape[:3], -1)
        return query_states, key_states, torch.cat([value_states, region_channels], dim=-1)

    def project_visual_tokens(
        self,
        cross_attention_states: torch.Tensor | None,
        visible_from: torch.Tensor,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each `(batch_size, num_key_value_heads, num_image_tokens, head_dim)`, cached ones first."""
        if cross_attention_states is None:
            return cache.layers[self.layer_idx].keys, cache.layers[self.layer_idx].values
        hidden_shape = (*cross_attention_states.shape[:-1], -1, self.head_dim)
        key_states = self.k_norm(self.k_proj(cross_attention_states).view(hidden_shape).transpose(1, 2))
        value_states = self.v_proj(cross_attention_states).view(hidden_shape).transpose(1, 2)
        if cache is None:
            return key_states, value_states
        return cache.update(key_states, value_states, self.layer_idx, visible_from)

    def grounding_map(
        self,
        query_states: torch.Tensor,
        key_states: torch.Tensor,
        cross_attention_mask: torch.Tensor | None,
        query_weights: torch.Tensor,
    ) -> torch.Tensor:
        """
        The softmax of `forward` averaged over the guided heads and over each query's tokens, in float32 and differentiable,
        whichever backend computes `forward`. Shape `(batch_size, num_regions, num_keys)`.
        """
        key_states = repeat_kv(key_states, self.num_key_value_groups)
        heads = self.config.guidance_heads
        if heads is not None:
            query_states, key_states = query_states[:, heads], key_states[:, heads]
        scores = torch.matmul(query_states, key_states.transpose(2, 3)).float() * self.scaling
        if cross_attention_mask is not None:
            scores = scores + cross_attention_mask
        weights = scores.softmax(dim=-1).mean(dim=1)  # (batch_size, sequence_length, num_keys)
        return torch.matmul(query_weights, weights)


class AgeVlmCrossAttentionMLP(nn.Module):
    """LLaMA's gated MLP at the width of the cross-attention layers."""

    def __init__(self, config: AgeVlmTextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.cross_attention_intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.cross_attention_intermediate_size, bias=False)
        self.down_proj = AgeVlmOutputProjection(
            config.cross_attention_intermediate_size, config.hidden_size, bias=False
        )
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class AgeVlmCrossAttentionDecoderLayer(GradientCheckpointingLayer):
    """
    Cross-attention and an MLP, each with a pre-norm and a residual (Eq. 2).

    Both output projections start at zero, so that at initialization the model is its LLM. A token that sees no image
    leaves the layer exactly as it entered it.
    """

    def __init__(self, config: AgeVlmTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn = AgeVlmCrossAttention(config, layer_idx)
        self.post_attention_layernorm = None
        self.mlp = None
        # CODEPATH: 0 for checkpoints whose cross-attention layers have no MLP (ablation), the LLM's width by default
        if config.cross_attention_intermediate_size > 0:
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = AgeVlmCrossAttentionMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        inputs: AgeVlmCrossAttentionInputs,
        cache: Cache | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attn_output, _, grounding = self.cross_attn(self.input_layernorm(hidden_states), inputs, cache)
        hidden_states = torch.where(inputs.sees_image, hidden_states + attn_output, hidden_states)
        if self.mlp is not None:
            mlp_output = self.mlp(self.post_attention_layernorm(hidden_states))
            hidden_states = torch.where(inputs.sees_image, hidden_states + mlp_output, hidden_states)
        return hidden_states, grounding


@auto_docstring
class AgeVlmPreTrainedModel(PreTrainedModel):
    config: AgeVlmConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "AgeVlmCrossAttentionDecoderLayer", "AgeVlmVisionModel"]
    _skip_keys_device_placement = ["cache"]
    _supports_sdpa = True
    _supports_flash_attn = True  # of the self-attention; cross-attention stays on SDPA then
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": GradientCheckpointingLayer,  # the layers of both kinds
        "attentions": LlamaAttention,
        "cross_attentions": OutputRecorder(AgeVlmCrossAttention, index=1),
        "head_region_attention": OutputRecorder(AgeVlmCrossAttention, index=2),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AgeVlmOutputProjection):
            init.zeros_(module.weight)
        elif isinstance(module, AgeVlmCrossAttention) and module.sink_key is not None:
            init.zeros_(module.sink_key)
        elif isinstance(getattr(module, "gamma", None), nn.Parameter):  # timm's ConvNeXtBlock
            init.constant_(module.gamma, LAYER_SCALE_INIT)

    def _set_gradient_checkpointing(self, enable: bool = True, *args, **kwargs) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        for module in self.modules():
            if isinstance(module, AgeVlmVisionModel):
                module.timm_model.set_grad_checkpointing(enable)  # timm's stages do it themselves


def create_timm_tower(config: AgeVlmVisionConfig) -> nn.Module:
    """
    timm's ConvNeXt that a configuration describes, without its head and without pretrained weights.

    Raises:
        ValueError: If it is none, or cannot be built.
    """
    config.validate()  # again, for its fields may have been set since: timm itself would open and fetch what they name
    if not timm.models.is_model_in_modules(config.architecture, ["convnext"]):
        raise ValueError(
            "`architecture` has to be the name of a ConvNeXt in timm's registry (`timm.list_models(module='convnext')`), "
            f"but is {config.architecture!r}."
        )
    try:
        tower = timm.create_model(
            config.architecture,
            pretrained=False,
            num_classes=0,
            in_chans=config.num_channels,
            **config.model_args or {},
        )
    except Exception as error:  # timm checks little of what it takes, and it or PyTorch fails on the rest in any way
        raise ValueError(
            f"timm cannot build `{config.architecture}` with `model_args` {config.model_args}: {error!r}."
        ) from error
    tower.head = nn.Identity()
    return tower


@auto_docstring(custom_intro="The vision tower: a timm ConvNeXt without its head.")
class AgeVlmVisionModel(AgeVlmPreTrainedModel):
    config: AgeVlmVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The stem's output and the feature map of each stage; timm's classes are named by their place.
    _can_record_outputs = {
        "hidden_states": [OutputRecorder(None, class_name=f"timm_model.stages.{stage}") for stage in range(NUM_STAGES)]
    }

    def __init__(self, config: AgeVlmVisionConfig) -> None:
        requires_backends(self, ["timm"])
        super().__init__(config)
        self.timm_model = create_timm_tower(config)
        stride = self.timm_model.feature_info[-1]["reduction"]
        if (self.timm_model.num_features, stride) != (config.hidden_size, config.patch_size):
            raise ValueError(
                f"The last stage of timm's `{config.architecture}` has {self.timm_model.num_features} channels at "
                f"stride {stride}, but `vision_config` says hidden_size={config.hidden_size} and "
                f"patch_size={config.patch_size}. Set both to what the architecture has."
            )
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.timm_model.stem

    @property
    def stages(self) -> nn.ModuleList:
        """The four stages of the ConvNeXt; the last one is what the paper calls its final block."""
        return self.timm_model.stages

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)`):
            Normalized images.

        Returns:
            `last_hidden_state` of shape `(num_images, num_image_tokens, hidden_size)`: the last stage's feature map,
            row by row. With `output_hidden_states`, the maps of the stem and of every stage as
            `(num_images, channels, height, width)`.
        """
        # ConvNeXt normalizes over channels: with channels last it never has to copy (4 times as fast on a CPU).
        pixel_values = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        feature_map = self.timm_model.forward_features(pixel_values)  # (num_images, hidden_size, h, w)
        return BaseModelOutputWithPooling(last_hidden_state=feature_map.flatten(2).transpose(1, 2))


@auto_docstring(custom_intro="The text stack: LLaMA's decoder layers with cross-attention layers in between.")
class AgeVlmTextModel(AgeVlmPreTrainedModel):
    config: AgeVlmTextConfig
    input_modalities = ("text",)

    def __init__(self, config: AgeVlmTextConfig) -> None:
        super().__init__(config)
        padding = config.pad_token_id  # may be -1, as LLaMA's own was
        if padding is not None and not -config.vocab_size <= padding < config.vocab_size:
            raise ValueError(
                f"`pad_token_id` ({padding}) is not in the vocabulary (`vocab_size` {config.vocab_size})."
            )
        self.padding_idx = padding
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layer_classes = dict.fromkeys(range(config.num_hidden_layers), LlamaDecoderLayer)
        layer_classes.update(dict.fromkeys(config.cross_attention_layers, AgeVlmCrossAttentionDecoderLayer))
        self.layers = nn.ModuleList([layer_class(config, idx) for idx, layer_class in layer_classes.items()])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        cross_attention_states: torch.FloatTensor | None = None,
        visible_from: torch.LongTensor | None = None,
        query_masks: torch.BoolTensor | None = None,
        region_masks: torch.FloatTensor | None = None,
        visual_bias: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AgeVlmModelOutputWithPast:
        r"""
        cross_attention_states (`torch.FloatTensor` of shape `(batch_size, num_image_tokens, hidden_size)`, *optional*):
            Projected visual tokens of the images that come with this call, all images of a row one after another.
        visible_from (`torch.LongTensor` of shape `(batch_size, num_image_tokens)`, *optional*):
            Which token of this call is the first that sees each visual token of this call; `NEVER` for those that no token
            sees. Of shape `(batch_size, 1)` where they all begin with one token, which spares the attention a mask. Defaults
            to 0. The cache keeps it.
        query_masks (`torch.BoolTensor` of shape `(batch_size, num_regions, sequence_length)`, *optional*):
            True for the tokens whose attention `grounding_maps` averages, one query per region.
        region_masks (`torch.FloatTensor` of shape `(batch_size, num_regions, num_images * num_image_tokens)`, *optional*):
            1 for the visual tokens of each query's region, 0 for the others (or any values to average); with
            `attention_sink` one column more, the last, for the sink. With them `region_attention` says how much of the
            query's attention lies there, at next to no cost, and there are no `grounding_maps`.
        visual_bias (`torch.FloatTensor` of shape `(batch_size, num_images * num_image_tokens)`, *optional*):
            What is added to the scores of each visual token in all cross-attention layers, cached ones included: tells all
            text of the call where to look, see [`~AgeVlmProcessor.get_visual_bias`].
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")

        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        past_seen_tokens = cache.get_seq_length() if cache is not None else 0
        places = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_seen_tokens
        if position_ids is None:
            position_ids = places.unsqueeze(0)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            cache=cache,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        cross_attention_inputs, uniform_region_attention = self.prepare_cross_attention(
            inputs_embeds,
            places,
            cache,
            cross_attention_states,
            visible_from,
            query_masks,
            region_masks,
            visual_bias,
        )

        hidden_states = inputs_embeds
        grounding = {}
        for layer_idx, decoder_layer in enumerate(self.layers):
            if isinstance(decoder_layer, LlamaDecoderLayer):
                hidden_states = decoder_layer(
                    hidden_states,
                    attention_mask=causal_mask,
                    position_embeddings=position_embeddings,
                    position_ids=position_ids,
                    cache=cache,
                    use_cache=use_cache,
                    **kwargs,
                )
            elif cross_attention_inputs is not None:
                hidden_states, grounding[layer_idx] = decoder_layer(
                    hidden_states, inputs=cross_attention_inputs, cache=cache
                )

        guided = tuple(grounding[layer] for layer in sorted(self.config.guided_layers) if layer in grounding)
        if region_masks is not None:
            heads = slice(None) if self.config.guidance_heads is None else self.config.guidance_heads
            guided = tuple(by_head[:, heads].mean(dim=1) for by_head in guided)
        return AgeVlmModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            cache=cache,
            grounding_maps=guided if query_masks is not None and region_masks is None else None,
            region_attention=guided if region_masks is not None else None,
            uniform_region_attention=uniform_region_attention,
        )

    def prepare_cross_attention(
        self,
        inputs_embeds: torch.Tensor,
        places: torch.Tensor,
        cache: Cache | None,
        cross_attention_states: torch.Tensor | None,
        visible_from: torch.Tensor | None,
        query_masks: torch.Tensor | None,
        region_masks: torch.Tensor | None,
        visual_bias: torch.Tensor | None,
    ) -> tuple[AgeVlmCrossAttentionInputs | None, torch.Tensor | None]:
        """
        What the cross-attention layers get, None when there is no image, neither in this call nor in the cache; and the
        `uniform_region_attention`, None without region masks. `places` of shape `(sequence_length,)` counts the tokens from
        the beginning of the cache.
        """
        sequence_length, dtype = inputs_embeds.shape[1], inputs_embeds.dtype
        if region_masks is not None and (query_masks is None or query_masks.shape[:2] != region_masks.shape[:2]):
            raise ValueError(
                f"`region_masks` of shape {tuple(region_masks.shape)} need `query_masks` of as many rows and regions, but "
                f"they are {'None' if query_masks is None else tuple(query_masks.shape)}."
            )
        num_sinks = int(self.config.attention_sink)
        num_image_tokens = 0
        if cross_attention_states is not None:
            num_image_tokens = cross_attention_states.shape[1]
            if visible_from is None:
                visible_from = places.new_zeros(inputs_embeds.shape[0], 1)
            visible_from = visible_from.to(places.device)
            visible_from = visible_from + (visible_from != NEVER) * places[0]
        # CODEPATH: an empty list is the plain LLM; all AGE-VLM checkpoints have cross-attention layers
        if cache is not None and self.config.cross_attention_layers:
            cache_layer = visual_cache(cache, self.config)
            if cache_layer.is_initialized:
                num_cached, cached = cache_layer.get_seq_length(), cache_layer.visible_from.to(places.device)
                if visible_from is not None:
                    both = cached.expand(-1, num_cached), visible_from.expand(-1, num_image_tokens)
                    cached = torch.cat(both, dim=-1)
                visible_from, num_image_tokens = cached, num_cached + num_image_tokens
        if visible_from is None:
            if query_masks is not None:
                raise ValueError(
                    "`query_masks` asks for grounding maps, but no row of the batch has an image. Leave `query_masks` "
                    "out of batches without images."
                )
            if visual_bias is not None:
                raise ValueError("`visual_bias` says where in an image to look, but no row of the batch has one.")
            return None, None
        # (batch_size, sequence_length, num_image_tokens or 1)
        mask = visible_from.unsqueeze(1) <= places.unsqueeze(-1)
        sees_image = mask.any(dim=-1, keepdim=True)
        query_weights = None
        if query_masks is not None:
            if query_masks.shape[-1] != sequence_length:
                raise ValueError(
                    f"`query_masks` marks {query_masks.shape[-1]} tokens per row, but the text has {sequence_length}."
                )
            query_weights = (query_masks & sees_image.transpose(1, 2)).float()
            query_weights = query_weights / query_weights.sum(dim=-1, keepdim=True).clamp(min=1)
        region_channels = uniform_region_attention = None
        if region_masks is not None:
            if region_masks.shape[-1] != num_image_tokens + num_sinks:
                raise ValueError(
                    f"`region_masks` holds values of {region_masks.shape[-1]} visual tokens, but the text sees up to "
                    f"{num_image_tokens}, cached ones included{' (and the sink, last)' * num_sinks}."
                )
            seen = (torch.matmul(query_weights, mask.float()) > 0).float()  # by any word of the query
            seen = seen.expand(-1, -1, num_image_tokens)
            seen = torch.cat([seen, seen.amax(dim=-1, keepdim=True).expand(-1, -1, num_sinks)], dim=-1)
            uniform_region_attention = (seen * region_masks).sum(dim=-1) / seen.sum(dim=-1).clamp(min=1)
            region_channels = nn.functional.pad(region_masks.transpose(1, 2), (0, -region_masks.shape[1] % 8))
            region_channels = region_channels.to(dtype).unsqueeze(1)
        # A token that sees nothing attends to everything, which keeps the softmax finite; its output is dropped.
        additive_mask = None
        if mask.shape[-1] > 1:
            hidden = nn.functional.pad(~(mask | ~sees_image), (0, num_sinks)).unsqueeze(1)
            additive_mask = torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)
        if visual_bias is not None:
            if visual_bias.shape != (inputs_embeds.shape[0], num_image_tokens):
                raise ValueError(
                    f"`visual_bias` is of shape {tuple(visual_bias.shape)}, but the {inputs_embeds.shape[0]} rows see up to "
                    f"{num_image_tokens} visual tokens, cached ones included."
                )
            bias = nn.functional.pad(visual_bias.to(dtype), (0, num_sinks))[:, None, None].expand(
                -1, -1, sequence_length, -1
            )
            # Nothing is less than what is hidden, where a row would have no finite score left.
            additive_mask = bias if additive_mask is None else (additive_mask + bias).clamp(min=torch.finfo(dtype).min)
        inputs = AgeVlmCrossAttentionInputs(
            cross_attention_states=cross_attention_states,
            visible_from=visible_from,
            cross_attention_mask=additive_mask,
            sees_image=sees_image,
            query_weights=query_weights,
            region_channels=region_channels,
        )
        return inputs, uniform_region_attention


@auto_docstring(custom_intro="AGE-VLM without its language modeling head.")
class AgeVlmModel(AgeVlmPreTrainedModel):
    def __init__(self, config: AgeVlmConfig) -> None:
        super().__init__(config)
        self.vision_tower = AgeVlmVisionModel._from_config(config.vision_config)
        self.multi_modal_projector = AgeVlmMultiModalProjector(config)
        self.language_model = AgeVlmTextModel._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    @auto_docstring
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(num_images, num_channels, height, width)` or `(batch_size, num_images, num_channels, height, width)`):
            Normalized images.

        Returns:
            The tower's output; `pooler_output` of shape `(num_images, num_image_tokens, hidden_size)` holds the
            projected visual tokens.
        """
        outputs = self.vision_tower(pixel_values.flatten(0, -4), **kwargs)
        outputs.pooler_output = self.multi_modal_projector(outputs.last_hidden_state)
        return outputs

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        query_masks: torch.BoolTensor | None = None,
        region_masks: torch.FloatTensor | None = None,
        visual_bias: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> AgeVlmModelOutputWithPast:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, num_channels, height, width)`, *optional*):
            Normalized images; rows with fewer images end in zeros. Image `n` of a row belongs to its placeholder `n` in this
            call's text, and the tokens at and after that placeholder see it. In `inputs_embeds`
            the placeholders are found by their embedding. A row with several sequences, as beams have them, comes as
            `(batch_size, num_sequences, num_images, num_channels, height, width)`, expanded from one.
        pixel_attention_mask (`torch.Tensor` of shape `(batch_size, num_images, height, width)`, *optional*):
            1 for pixels of the picture, 0 for padding. Cells without a pixel of the picture are not attended to.
        query_masks (`torch.BoolTensor` of shape `(batch_size, num_regions, sequence_length)`, *optional*):
            True for the tokens whose attention `grounding_maps` averages, one query per region.
        region_masks (`torch.FloatTensor` of shape `(batch_size, num_regions, num_images * num_image_tokens)`, *optional*):
            1 for the visual tokens of each query's region, 0 for the others (or any values to average); with
            `attention_sink` one column more, the last, for the sink. With them `region_attention` says how much of the
            query's attention lies there, at next to no cost, and there are no `grounding_maps`.
        visual_bias (`torch.FloatTensor` of shape `(batch_size, num_images * num_image_tokens)`, *optional*):
            What is added to the scores of each visual token in all cross-attention layers, cached ones included: tells all
            text of the call where to look, see [`~AgeVlmProcessor.get_visual_bias`].
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        image_outputs = cross_attention_states = visible_from = None
        is_placeholder = self._placeholders(input_ids, inputs_embeds)
        num_sequences = 1
        if pixel_values is not None and pixel_values.numel() == 0:  # room for no image
            pixel_values = pixel_attention_mask = None
        if pixel_values is not None and pixel_values.dim() == 6:
            num_sequences = pixel_values.shape[1]
            pixel_values = pixel_values[:, 0]
            pixel_attention_mask = None if pixel_attention_mask is None else pixel_attention_mask[:, 0]
        self._check_images(is_placeholder, pixel_values, num_sequences, is_decoding=cache is not None)
        if pixel_values is None and self._needs_dummy_image(use_cache):
            vision_config = self.config.vision_config
            pixel_values = torch.zeros(
                (
                    len(is_placeholder),
                    1,
                    vision_config.num_channels,
                    vision_config.image_size,
                    vision_config.image_size,
                ),
                dtype=self.dtype,
                device=is_placeholder.device,
            )
            pixel_attention_mask = pixel_values[:, :, 0]
        if pixel_values is not None:
            first_tokens = self._first_tokens(is_placeholder, pixel_values.shape[1])
            is_image = first_tokens[::num_sequences] != NEVER
            image_outputs, image_hidden_states = self._encode_images(pixel_values, is_image, **kwargs)
            visible_from = first_tokens  # (batch_size, 1): all of the picture or none of it
            if pixel_values.shape[1] > 1 or pixel_attention_mask is not None:
                cells = self._cell_mask(pixel_values, pixel_attention_mask).repeat_interleave(num_sequences, dim=0)
                # (batch_size, num_images, num_image_tokens) -> all images of a row in one axis
                visible_from = first_tokens.unsqueeze(-1).masked_fill(~cells, NEVER).flatten(1)
            # CODEPATH: False for the paper's checkpoints, True for those that are to tell where things are
            if self.config.use_visual_positions:
                image_hidden_states = self._with_positions(pixel_values, image_hidden_states)
            cross_attention_states = image_hidden_states.flatten(1, 2)
            if num_sequences > 1:
                cross_attention_states = cross_attention_states.repeat_interleave(num_sequences, dim=0)

        outputs = self.language_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            cross_attention_states=cross_attention_states,
            visible_from=visible_from,
            query_masks=query_masks,
            region_masks=region_masks,
            visual_bias=visual_bias,
            use_cache=use_cache,
            **kwargs,
        )
        outputs.image_outputs = image_outputs
        return outputs

    def _placeholders(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """True where an image placeholder stands: `(batch_size, sequence_length)`."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        placeholder = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(dim=-1)

    def _check_images(
        self, is_placeholder: torch.Tensor, pixel_values: torch.Tensor | None, num_sequences: int, is_decoding: bool
    ) -> None:
        """Raises `ValueError` if the images are not those of the text: one per placeholder."""
        if pixel_values is not None and pixel_values.dim() != 5:
            raise ValueError(
                "`pixel_values` has to be of shape (batch_size, num_images, num_channels, height, width), but has "
                f"shape {tuple(pixel_values.shape)}."
            )
        if pixel_values is not None and pixel_values.shape[0] * num_sequences != is_placeholder.shape[0]:
            raise ValueError(
                f"`pixel_values` has images of {pixel_values.shape[0] * num_sequences} rows, but the text has {is_placeholder.shape[0]}. "
                "Pass the images of every row, in rows that are filled up where they have fewer."
            )
        # A single token is one that the model wrote, and may be a placeholder that means no image.
        if is_torchdynamo_compiling() or (is_decoding and pixel_values is None and is_placeholder.shape[1] == 1):
            return
        num_placeholders = is_placeholder.sum(dim=1)
        if pixel_values is None and num_placeholders.any():
            row = int(num_placeholders.argmax())
            raise ValueError(
                f"Row {row} has {int(num_placeholders[row])} image placeholders (token id {self.config.image_token_id}), but "
                "there are no `pixel_values`. Pass one image per placeholder."
            )
        if pixel_values is not None and not holds_images(pixel_values, num_placeholders):
            raise ValueError(
                f"The rows have {num_placeholders.tolist()} image placeholders (token id {self.config.image_token_id}), but "
                f"`pixel_values`, with room for {pixel_values.shape[1]} images per row, holds others. Pass one image per "
                "placeholder, and zeros behind them in rows that have fewer."
            )

    def _needs_dummy_image(self, use_cache: bool | None) -> bool:
        """
        Whether a batch without images has to run through the tower all the same: on several processes a parameter
        that takes part on one and not on another makes ZeRO-3 and FSDP hang. That holds in training and in evaluation
        (`use_cache=False`), not in generation.
        """
        is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return is_distributed and (self.training or use_cache is False)

    @staticmethod
    def _first_tokens(is_placeholder: torch.Tensor, num_images: int) -> torch.Tensor:
        """Where the placeholder of each image stands, which is the first token that sees it: `(batch_size, num_images)`."""
        counts = is_placeholder.cumsum(dim=1).unsqueeze(-1)
        first = (counts <= torch.arange(num_images, device=counts.device)).sum(dim=1)
        return first.masked_fill(first == is_placeholder.shape[1], NEVER)

    def _encode_images(
        self, pixel_values: torch.Tensor, is_image: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[BaseModelOutputWithPooling, torch.Tensor]:
        """
        Runs the images and not what fills rows up. Returns the tower's output for them, and their projected visual tokens
        `(batch_size, num_images, num_image_tokens, hidden_size)`, which are 0 for the fillers.
        """
        # Compiled, fillers run too and are masked: how many there are is data.
        num_images = is_image.numel() if is_torchdynamo_compiling() else int(is_image.sum())
        if num_images == is_image.numel():
            outputs = self.get_image_features(pixel_values, return_dict=True, **kwargs)
            return outputs, outputs.pooler_output.unflatten(0, pixel_values.shape[:2])
        runs = is_image.clone()
        if num_images == 0:  # the dummy image
            runs[0, 0] = True
        outputs = self.get_image_features(pixel_values[runs], return_dict=True, **kwargs)
        hidden_states = outputs.pooler_output.new_zeros(*pixel_values.shape[:2], *outputs.pooler_output.shape[1:])
        hidden_states[runs] = outputs.pooler_output
        return outputs, hidden_states

    def _cell_mask(self, pixel_values: torch.Tensor, pixel_attention_mask: torch.Tensor | None) -> torch.Tensor:
        """True for cells that hold a pixel of the picture: `(batch_size, num_images, num_image_tokens)`."""
        patch_size = self.config.vision_config.patch_size
        batch_size, num_images, _, height, width = pixel_values.shape
        if pixel_attention_mask is None:
            num_image_tokens = (height // patch_size) * (width // patch_size)
            return torch.ones((batch_size, num_images, num_image_tokens), dtype=torch.bool, device=pixel_values.device)
        cells = nn.functional.max_pool2d(pixel_attention_mask.flatten(0, 1).float(), patch_size)
        return (cells > 0).flatten(1).unflatten(0, (batch_size, num_images))

    def _with_positions(self, pixel_values: torch.Tensor, image_hidden_states: torch.Tensor) -> torch.Tensor:
        """
        The visual tokens with the code of their places, as strong as they are: trained ones are far larger than 1, and
        what a weaker code says would be lost beside them.
        """
        height, width = (side // self.config.vision_config.patch_size for side in pixel_values.shape[-2:])
        hidden_size = image_hidden_states.shape[-1]
        code = sincos_position_code(height, width, hidden_size, image_hidden_states.device)
        strengths = torch.linalg.vector_norm(image_hidden_states, dim=-1, keepdim=True) / hidden_size**0.5
        return image_hidden_states + strengths * code.to(strengths.dtype)


@auto_docstring(custom_intro="AGE-VLM with its language modeling head.")
class AgeVlmForConditionalGeneration(AgeVlmPreTrainedModel, GenerationMixin):
    _auto_class = "AutoModelForImageTextToText"
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: AgeVlmConfig) -> None:
        super().__init__(config)
        self.model = AgeVlmModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, **kwargs
    ) -> tuple[torch.LongTensor, dict]:
        # Beams share their pictures, so that the tower runs once per picture.
        pictures = {name: kwargs.pop(name, None) for name in ("pixel_values", "pixel_attention_mask")}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, **kwargs)
        for name, tensor in pictures.items():
            if tensor is not None:
                copies = tensor.shape[0], expand_size, *tensor.shape[1:]
                model_kwargs[name] = tensor if expand_size == 1 else tensor.unsqueeze(1).expand(copies)
        return input_ids, model_kwargs

    def _get_stopping_criteria(self, *args, tokenizer=None, **kwargs) -> StoppingCriteriaList:
        # transformers' own server passes the processor where `stop_strings` need the tokenizer.
        return super()._get_stopping_criteria(*args, tokenizer=getattr(tokenizer, "tokenizer", tokenizer), **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,  # `generate` looks whether this function names it
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict:
        # In transformers (5.24, `_sample`) an assistant's prefill is no first iteration and would lose the pictures.
        if inputs_embeds is None and cache is not None:
            is_first_iteration |= cache.get_seq_length() == 0
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            cache=cache,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if next_sequence_length is not None and next_sequence_length < 1:
            raise ValueError(
                f"The cache holds {cache.get_seq_length()} tokens, and the text no more than {input_ids.shape[1]}. Pass the "
                "whole chat as it was generated, or a new cache."
            )
        attention_mask = kwargs.get("attention_mask")
        if (
            is_first_iteration
            and attention_mask is not None
            and attention_mask.dim() == 2
            and not attention_mask[:, -1].all()
        ):
            raise ValueError(
                "The batch is padded on the right, and a row would go on behind its padding. Pad on the left: "
                '`padding_side="left"` of the tokenizer.'
            )
        if model_inputs.get("pixel_values") is not None and next_sequence_length is not None:
            self._drop_cached_images(model_inputs)
        return model_inputs

    def _drop_cached_images(self, model_inputs: dict) -> None:
        """Leaves of a whole chat's images those of the placeholders that are not in the cache. Only these do as well."""
        cache_layer = visual_cache(model_inputs["cache"], self.config.text_config)
        if not cache_layer.is_initialized:
            return
        names = [name for name in ("pixel_values", "pixel_attention_mask") if model_inputs.get(name) is not None]
        images = {name: model_inputs.pop(name) for name in names}
        if images["pixel_values"].dim() == 6:  # rows of several sequences
            images = {name: tensor.flatten(0, 1) for name, tensor in images.items()}
        is_placeholder = self.model._placeholders(model_inputs.get("input_ids"), model_inputs.get("inputs_embeds"))
        num_new = is_placeholder.sum(dim=1)
        num_cached = cache_layer.num_images().to(num_new.device)
        are_new = holds_images(images["pixel_values"], num_new)
        are_all = holds_images(images["pixel_values"], num_cached + num_new)
        differ = bool(((num_cached > 0) & (num_new > 0)).any())
        if are_new == are_all and (differ or not are_new):
            raise ValueError(
                f"`pixel_values` holds other images than the chat, whose rows have {num_cached.tolist()} in the cache and "
                f"{num_new.tolist()} placeholders behind them. Pass the images of the whole chat, row by row (with nothing but "
                "zeros, an image cannot be told from room that is left)."
            )
        if not are_new:
            new = num_cached.unsqueeze(1) + torch.arange(int(num_new.max()), device=num_cached.device)
            is_new = torch.arange(new.shape[1], device=new.device) < num_new.unsqueeze(1)
            chosen = torch.arange(len(new), device=new.device).unsqueeze(1), new.where(is_new, 0)
            images = {name: tensor[chosen] for name, tensor in images.items()}
            images["pixel_values"] = images["pixel_values"] * is_new[..., None, None, None]
        if num_new.any():
            model_inputs.update(images)

    def init_continuous_batching(self, *args, **kwargs):
        raise ValueError(
            "AGE-VLM has no continuous batching: its paged caches hold no visual keys and values. Call `generate` with a "
            "batch that is padded on the left."
        )

    @auto_docstring
    def get_image_features(
        self, pixel_values: torch.FloatTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values, **kwargs)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        query_masks: torch.BoolTensor | None = None,
        region_masks: torch.FloatTensor | None = None,
        visual_bias: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | AgeVlmCausalLMOutputWithPast:
        r"""
        pixel_values (`torch.FloatTensor` of shape `(batch_size, num_images, num_channels, height, width)`, *optional*):
            Normalized images, see [`AgeVlmModel`].
        pixel_attention_mask (`torch.Tensor` of shape `(batch_size, num_images, height, width)`, *optional*):
            1 for pixels of the picture, 0 for padding.
        query_masks (`torch.BoolTensor` of shape `(batch_size, num_regions, sequence_length)`, *optional*):
            True for the tokens whose attention `grounding_maps` averages, one query per region.
        region_masks (`torch.FloatTensor` of shape `(batch_size, num_regions, num_images * num_image_tokens)`, *optional*):
            1 for the visual tokens of each query's region, 0 for the others (or any values to average); with
            `attention_sink` one column more, the last, for the sink. With them `region_attention` says how much of the
            query's attention lies there, at next to no cost, and there are no `grounding_maps`.
        visual_bias (`torch.FloatTensor` of shape `(batch_size, num_images * num_image_tokens)`, *optional*):
            What is added to the scores of each visual token in all cross-attention layers, cached ones included: tells all
            text of the call where to look, see [`~AgeVlmProcessor.get_visual_bias`].

        Example:

        ```python
        >>> from PIL import Image
        >>> from transformers import AutoModelForImageTextToText, AutoProcessor

        >>> model = AutoModelForImageTextToText.from_pretrained("runs/demo/age-vlm-lm", trust_remote_code=True)
        >>> processor = AutoProcessor.from_pretrained("runs/demo/age-vlm-lm", trust_remote_code=True)
        >>> question = {"type": "text", "text": "Is there a cup in the image?"}
        >>> messages = [{"role": "user", "content": [{"type": "image", "image": Image.open("cup.png")}, question]}]
        >>> inputs = processor.apply_chat_template(
        ...     messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ... )
        >>> output = model.generate(**inputs, max_new_tokens=32)
        >>> processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        'Yes, there is a cup in the image. It is on the left.'
        ```
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            query_masks=query_masks,
            region_masks=region_masks,
            visual_bias=visual_bias,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return AgeVlmCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            image_outputs=outputs.image_outputs,
            grounding_maps=outputs.grounding_maps,
            region_attention=outputs.region_attention,
            uniform_region_attention=outputs.uniform_region_attention,
            head_region_attention=outputs.head_region_attention,
        )


__all__ = [
    "AgeVlmForConditionalGeneration",
    "AgeVlmModel",
    "AgeVlmPreTrainedModel",
    "AgeVlmTextModel",
    "AgeVlmVisionModel",
]
