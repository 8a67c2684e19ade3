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
"""Configuration of AGE-VLM (https://huggingface.co/papers/2511.17793). The defaults are the paper's model."""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers.utils.versions import require_version


require_version("transformers>=5.24", "AGE-VLM needs it: pip install --upgrade transformers")

from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.utils import auto_docstring


if TYPE_CHECKING:
    # For a configuration class that it knows, transformers (5.24) takes the model class that it loaded for it before, be
    # that another checkpoint's. It knows classes by the text of their file and of those that stand in its imports: with
    # the model's code among them, checkpoints of other code have other configuration classes.
    from .modeling_agevlm import AgeVlmForConditionalGeneration


# Every fifth layer of the combined stack, as in the paper: 2, 7, 12 and 17 of LLaMA-3.2-1B's 16 + 4 layers.
FIRST_CROSS_ATTENTION_LAYER = 2
CROSS_ATTENTION_PERIOD = 5

# Far above every model that there is: what counts more would keep whoever reads it busy for hours.
MAX_LAYERS = 1024
MAX_SIZE = 2**24  # of channels, tokens and pixels: the product of two, in bytes, is a number that PyTorch counts with
# A name in timm's registry, with or without the tag of its pretrained weights: neither a path nor a repository.
TIMM_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
# Of timm's ConvNeXt. `timm.create_model` itself takes others, which open files, ask repositories or write into folders.
TIMM_ARGUMENTS = frozenset(
    "act_layer conv_bias conv_mlp depths dims drop_path_rate drop_rate head_hidden_size head_init_scale head_norm_first "
    "kernel_sizes ls_init_value norm_eps norm_layer output_stride patch_size stem_type use_grn".split()
)


def check_sizes(config: PreTrainedConfig, *names: str, most: int = MAX_SIZE) -> None:
    """Raises `ValueError` unless the fields of these names are from 1 to `most`."""
    for name in names:
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"`{name}` has to be at least 1, but is {value}.")
        if value > most:
            raise ValueError(f"`{name}` can be {most} at the most, but is {value}.")


def check_activation(name: str, activation: str) -> None:
    """Raises `ValueError` unless transformers has an activation of this name."""
    if activation not in ACT2FN:
        raise ValueError(f"`{name}` has to be one of {', '.join(sorted(ACT2FN))}, but is {activation!r}.")


def check_choice(name: str, chosen: list[int] | None, options: Sequence[int], what: str) -> None:
    """Raises `ValueError` unless a field of this name is None or holds some of the options, each once."""
    if chosen is not None and not (0 < len(chosen) == len(set(chosen) & set(options))):
        raise ValueError(f"`{name}` has to hold distinct indices {what} ({list(options)}), but is {chosen}.")


def is_plain(value: Any) -> bool:
    """Whether a value of `model_args` is a string, a finite number, a truth value, None, or a list of such values."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def every_fifth_layer(num_layers: int) -> list[int]:
    """Where the cross-attention layers of a combined stack stand. The shortest one has its own behind the first layer."""
    return list(range(FIRST_CROSS_ATTENTION_LAYER, num_layers, CROSS_ATTENTION_PERIOD)) or [1]


def default_cross_attention_layers(num_self_attention_layers: int) -> list[int]:
    """Every fifth layer of the combined stack around an LLM of so many layers: 16 layers get 2, 7, 12 and 17."""
    total = num_self_attention_layers + 1
    while total - len(every_fifth_layer(total)) < num_self_attention_layers:
        total += 1
    return every_fifth_layer(total)


@auto_docstring(checkpoint="meta-llama/Llama-3.2-1B-Instruct")
@strict
class AgeVlmTextConfig(LlamaConfig):
    r"""
    cross_attention_layers (`list[int]`, *optional*):
        Indices of the cross-attention layers in the combined stack. `num_hidden_layers` counts both kinds of layers,
        so that LLaMA-3.2-1B's 16 layers and 4 cross-attention layers are 20. Defaults to every fifth layer from
        layer 2 on (2, 7, 12, 17). Layer 0 has to be a self-attention layer.
    cross_attention_intermediate_size (`int`, *optional*):
        Width of the MLP in the cross-attention layers; 0 leaves the MLP out. Defaults to `intermediate_size`.
    attention_sink (`bool`, *optional*, defaults to `False`):
        Whether the cross-attention layers have a place for nothing beside the visual tokens: a learned key per
        key/value head whose value is zero. A softmax over the picture alone has to look somewhere, also for a word that
        names what is not there. The paper's layers have none.
    guidance_layers (`list[int]`, *optional*):
        Which of the `cross_attention_layers` are guided, and therefore tell by their attention what the words look at.
        Defaults to all of them, as in the paper.
    guidance_heads (`list[int]`, *optional*):
        Which attention heads of these layers are guided. Their attention is averaged; the others are free for what else
        the picture shows. Defaults to all of them, as in the paper.
    pretraining_tp (`int`, *optional*, defaults to 1):
        Unused; kept because LLaMA checkpoints carry it.

    Example:

    ```python
    >>> from modeling_agevlm import AgeVlmTextConfig

    >>> AgeVlmTextConfig().cross_attention_layers
    [2, 7, 12, 17]
    ```"""

    model_type = "agevlm_text"
    base_config_key = "text_config"

    vocab_size: int = 128256
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 20
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128009
    pad_token_id: int | None = 128004
    tie_word_embeddings: bool = True
    cross_attention_layers: list[int] | None = None
    cross_attention_intermediate_size: int | None = None
    attention_sink: bool = False
    guidance_layers: list[int] | None = None
    guidance_heads: list[int] | None = None

    def __post_init__(self, **kwargs):
        # Before they are divided by and counted to.
        check_sizes(self, "hidden_size", "num_attention_heads")
        check_sizes(self, "num_hidden_layers", most=MAX_LAYERS)
        if self.cross_attention_layers is None:
            self.cross_attention_layers = every_fifth_layer(self.num_hidden_layers)
        if self.cross_attention_intermediate_size is None:
            self.cross_attention_intermediate_size = self.intermediate_size
        if self.rope_parameters is None:
            self.rope_parameters = {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """
        Part of `@strict`-powered validation: sizes that a model can have, and cross-attention layers that lie inside the
        stack, each once.
        """
        super().validate_architecture()
        check_sizes(self, "vocab_size", "intermediate_size", "num_key_value_heads", "head_dim")
        if self.cross_attention_intermediate_size < 0:
            raise ValueError(
                "`cross_attention_intermediate_size` cannot be negative (0 leaves the MLP out), but is "
                f"{self.cross_attention_intermediate_size}."
            )
        if self.num_attention_heads % self.num_key_value_heads != 0:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) has to be a multiple of `num_key_value_heads` "
                f"({self.num_key_value_heads})."
            )
        if self.num_attention_heads * self.head_dim > MAX_SIZE:
            raise ValueError(
                f"`num_attention_heads` ({self.num_attention_heads}) heads of `head_dim` ({self.head_dim}) channels are more "
                f"than {MAX_SIZE}."
            )
        check_activation("hidden_act", self.hidden_act)
        theta = self.rope_parameters.get("rope_theta")
        if type(theta) not in (int, float) or not 0 < theta < 2**63:
            raise ValueError(
                f"`rope_theta` in `rope_parameters` has to be a number above 0 and below 2^63, but is {str(theta)[:80]!r}."
            )
        rope_type = self.rope_parameters.get("rope_type", "default")
        if rope_type not in ("default", *ROPE_INIT_FUNCTIONS):
            raise ValueError(
                f"`rope_type` has to be one of default, {', '.join(sorted(ROPE_INIT_FUNCTIONS))}, but is {rope_type!r}."
            )
        if self.head_dim % 2 != 0:
            raise ValueError(
                f"`head_dim` has to be even, for positions turn pairs of channels, but is {self.head_dim}."
            )
        layers = self.cross_attention_layers
        if len(set(layers)) != len(layers) or any(not 0 < layer < self.num_hidden_layers for layer in layers):
            raise ValueError(
                f"`cross_attention_layers` has to hold distinct indices between 1 and num_hidden_layers - 1 = "
                f"{self.num_hidden_layers - 1}, which count self-attention and cross-attention layers together "
                f"(layer 0 is a self-attention layer), but is {layers}."
            )
        heads = range(self.num_attention_heads)
        check_choice("guidance_layers", self.guidance_layers, layers, "of `cross_attention_layers`")
        check_choice("guidance_heads", self.guidance_heads, heads, "below `num_attention_heads`")

    @property
    def guided_layers(self) -> list[int]:
        """`guidance_layers`, or all cross-attention layers without them."""
        return self.cross_attention_layers if self.guidance_layers is None else self.guidance_layers

    @property
    def self_attention_layers(self) -> list[int]:
        """Indices of the LLM's own layers in the combined stack: LLaMA's layer `i` is `self_attention_layers[i]`."""
        return [layer for layer in range(self.num_hidden_layers) if layer not in self.cross_attention_layers]


@auto_docstring(checkpoint="timm/convnext_large_mlp.clip_laion2b_ft_soup_320")
@strict
class AgeVlmVisionConfig(PreTrainedConfig):
    r"""
    architecture (`str`, *optional*, defaults to `"convnext_large"`):
        Name of a ConvNeXt in timm's registry. Its last stage's feature map is read; its head is left out.
    model_args (`dict`, *optional*):
        Arguments of timm's `ConvNeXt`, for example `{"depths": [1, 1, 2, 1], "dims": [32, 64, 128, 192]}`; only
        those that say how it is built.
    hidden_size (`int`, *optional*, defaults to 1536):
        Channels of the last stage's feature map.
    image_size (`int`, *optional*, defaults to 768):
        Height and width of the images in pixels. The tower is convolutional and takes other multiples of
        `patch_size` as well.
    patch_size (`int`, *optional*, defaults to 32):
        Side in pixels of the square that one visual token stands for: the stride of the feature map.
    """

    model_type = "agevlm_vision"
    base_config_key = "vision_config"

    architecture: str = "convnext_large"
    model_args: dict | None = None
    hidden_size: int = 1536
    num_channels: int = 3
    image_size: int = 768
    patch_size: int = 32
    initializer_range: float = 0.02

    def validate_architecture(self):
        """
        Part of `@strict`-powered validation: a name and arguments of timm's that open, fetch and write nothing, and whole
        visual tokens only.
        """
        check_sizes(self, "hidden_size", "num_channels", "image_size", "patch_size")
        if not TIMM_NAME.fullmatch(self.architecture):
            raise ValueError(
                "`architecture` has to be the name of a ConvNeXt in timm's registry, such as 'convnext_large', but is "
                f"{self.architecture!r}."
            )
        for name, value in (self.model_args or {}).items():
            if name not in TIMM_ARGUMENTS:
                raise ValueError(
                    f"`model_args` has to hold arguments of timm's ConvNeXt ({', '.join(sorted(TIMM_ARGUMENTS))}), but "
                    f"has {name!r}."
                )
            if not is_plain(value):
                raise ValueError(f"`model_args` has to hold plain values, but {name!r} is {str(value)[:80]!r}.")
        for name, what, most in (("depths", "blocks", MAX_LAYERS), ("dims", "channels", MAX_SIZE)):
            counts = (self.model_args or {}).get(name, (1,))
            if not isinstance(counts, (list, tuple)) or not all(type(n) is int and 0 < n <= most for n in counts):
                raise ValueError(
                    f"`{name}` in `model_args` has to hold a number of {what} for each stage, from 1 to {most}, but is "
                    f"{str(counts)[:80]}."
                )
        if self.image_size % self.patch_size != 0:
            raise ValueError(
                f"`image_size` ({self.image_size}) has to be a multiple of `patch_size` ({self.patch_size})."
            )

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens of one image of `image_size`: 576 at 768 pixels."""
        return (self.image_size // self.patch_size) ** 2


@auto_docstring(checkpoint="meta-llama/Llama-3.2-1B-Instruct")
@strict
class AgeVlmConfig(PreTrainedConfig):
    r"""
    image_token_id (`int`, *optional*, defaults to 128002):
        Id of the image placeholder: one token per image, at which the text begins to see the image. By default the
        first of LLaMA-3's reserved tokens, which no text has ever trained.
    projector_hidden_act (`str`, *optional*, defaults to `"gelu"`):
        Activation between the projector's two linear layers.
    use_visual_positions (`bool`, *optional*, defaults to `False`):
        Whether a fixed 2-D sine-cosine code of their places, as strong as they are, is added to the visual tokens that the
        cross-attention reads, in keys and values. The paper says nothing of positions, so the default leaves them
        to the convolutions, which tell hardly more than what is there.
    training_stage (`int`, *optional*, defaults to 0):
        The last training stage that the weights have been through, or are in; 0 if none. A stage starts only from a
        checkpoint of the one before it.

    Example:

    ```python
    >>> from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration

    >>> # Initializing the paper's configuration: ConvNeXt-L at 768 pixels, LLaMA-3.2-1B
    >>> configuration = AgeVlmConfig()

    >>> # Initializing a model (with random weights) from the configuration
    >>> model = AgeVlmForConditionalGeneration(configuration)

    >>> # Accessing the model configuration
    >>> configuration = model.config
    ```"""

    model_type = "agevlm"
    _auto_class = "AutoConfig"
    sub_configs_defaults = {"text_config": AgeVlmTextConfig, "vision_config": AgeVlmVisionConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 128002
    projector_hidden_act: str = "gelu"
    use_visual_positions: bool = False
    training_stage: int = 0
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings is None:  # the head and the embeddings are the LLM's
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        # `save_pretrained` records only the auto class of the class that is saved, and the last one registered wins.
        # A checkpoint is to load through AutoModel as well, and to be able to generate then.
        self.auto_map = {
            "AutoConfig": "configuration_agevlm.AgeVlmConfig",
            "AutoModel": "modeling_agevlm.AgeVlmForConditionalGeneration",
            "AutoModelForImageTextToText": "modeling_agevlm.AgeVlmForConditionalGeneration",
        }

    def validate_architecture(self):
        """Part of `@strict`-powered validation: the placeholder is a token of the LLM's vocabulary, the activation is one."""
        for name, kind in self.sub_configs_defaults.items():
            model_type = getattr(self, name).model_type
            if model_type != kind.model_type:
                raise ValueError(
                    f"`{name}` is of model type {model_type!r} instead of {kind.model_type!r}. From an LLM and a tower a model is built by "
                    "`from_vision_text_pretrained`."
                )
        check_activation("projector_hidden_act", self.projector_hidden_act)
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`image_token_id` ({self.image_token_id}) is not in the vocabulary of `text_config` "
                f"(`vocab_size` {self.text_config.vocab_size})."
            )


__all__ = ["AgeVlmConfig", "AgeVlmTextConfig", "AgeVlmVisionConfig"]
