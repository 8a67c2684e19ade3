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
From pretrained parts to an AGE-VLM: timm's ConvNeXts, and LLaMAs in safetensors or GGUF files.

The rest of this package is copied into every checkpoint, to run without it; this file is not, so nothing imports it there.
"""

import json
import os
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import timm
import torch
from huggingface_hub.errors import GatedRepoError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, GgufConfig, LlamaConfig, LlamaForCausalLM
from transformers import initialization as init
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, cached_file

from .configuration_agevlm import AgeVlmConfig, AgeVlmTextConfig, AgeVlmVisionConfig, default_cross_attention_layers
from .modeling_agevlm import AgeVlmForConditionalGeneration, create_timm_tower


VISUAL_STRIDE = 32  # pixels from one cell of a ConvNeXt's last stage to the next
OWN_MODEL_ARGS = ("num_classes", "in_chans", "global_pool")  # of timm's, that the model sets itself
VISION_HINT = (
    "Pass a timm name with a pretrained tag, an `hf-hub:` id, or a folder with timm's config.json and a whole "
    "model.safetensors, as `timm.models.save_for_hf` writes them; pickles are never loaded."
)
TEXT_HINT = (
    "Pass a Hub id or a folder with whole safetensors and all of them, or a whole GGUF file; pickles are never loaded."
)


# What says in words of its own what is wrong. Others, such as a KeyError, have to be named.
SENTENCES = (ValueError, OSError, RuntimeError, ImportError, SafetensorError)


def in_words(error: Exception) -> str:
    """What an error says, on one line and without its full stop."""
    if isinstance(error, StrictDataclassError):  # of a configuration; the sentence is in its cause
        error = error.__cause__ or error
    text = str(error).encode(errors="backslashreplace").decode()  # JSON can hold half a character
    reason = textwrap.shorten(text, 500, placeholder=" ...").rstrip(".")
    return reason if isinstance(error, SENTENCES) and reason else f"{type(error).__name__}: {reason}".rstrip(": ")


@contextmanager
def loading(name: str, hint: str = "") -> Iterator[None]:
    """
    Makes one sentence of whatever the libraries raise for a checkpoint that is unknown, gated, out of reach or damaged.

    Args:
        name (`str`): The checkpoint as its user knows it.
        hint (`str`, *optional*): What such a checkpoint has to be.

    Raises:
        ValueError: Says which checkpoint it is and what is wrong with it.
    """
    try:
        yield
    except Exception as error:  # readers of files raise all kinds
        reason = in_words(error)
        if isinstance(error.__cause__, GatedRepoError):
            reason = "it is gated"
            hint = "Accept its license on its page on the Hub, then log in with `hf auth login` or set `HF_TOKEN`."
        raise ValueError(f"{name} cannot be loaded: {reason}. {hint}".rstrip()) from error


def check_tensors(name: str, **problems: Iterable[str]) -> None:
    """Raises `ValueError` if tensors of a checkpoint are `missing`, `left_over` or `of_another_shape`; counts them."""
    found = [f"{len(keys)} {problem.replace('_', ' ')} ({min(keys)})" for problem, keys in problems.items() if keys]
    if found:
        raise ValueError(
            f"The tensors of {name} do not fit its architecture: {', '.join(found)}. Pass the checkpoint as its makers saved it."
        )


def timm_file(vision: str, filename: str) -> str:
    """Path of a file of a pretrained timm model, in its folder or in the Hub's cache, downloaded where needed."""
    revision = None
    if os.path.isdir(vision):
        repository = vision
    elif os.path.isfile(vision):
        repository, weights = os.path.split(os.path.abspath(vision))
        if weights != SAFE_WEIGHTS_NAME:
            raise ValueError(f"the weight file has to be a {SAFE_WEIGHTS_NAME}")
    else:
        source, repository = timm.models.parse_model_name(vision)
        if source == "local-dir" and not os.path.isdir(repository):
            raise FileNotFoundError(f"there is no folder {repository}")
        if source == "hf-hub":
            repository, _, revision = repository.partition("@")
        elif source is None:
            pretrained_cfg = timm.get_pretrained_cfg(repository)
            if pretrained_cfg is None or pretrained_cfg.hf_hub_id is None:
                raise ValueError("timm has no weights of this name, see `timm.list_pretrained('convnext*')`")
            repository = pretrained_cfg.hf_hub_id
    # Its own sentence about a file that is not in a folder sends the reader to the Hub.
    flags = {"_raise_exceptions_for_missing_entries": not os.path.isdir(repository)}
    path = cached_file(repository, filename, revision=revision or None, **flags)
    if path is None:
        raise FileNotFoundError(f"there is no {filename} in {repository}")
    return path


def timm_config(vision: str) -> tuple[AgeVlmVisionConfig, dict]:
    """
    What a pretrained timm model says of itself: its architecture with the arguments that it is built with, and how its
    pictures are prepared (`mean`, `std`, ...).

    Args:
        vision (`str`): As in [`from_vision_text_pretrained`].
    """
    with loading(vision, VISION_HINT):
        with open(timm_file(vision, CONFIG_NAME), encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict) or "architecture" not in config:
            raise ValueError(f"its {CONFIG_NAME} names no timm `architecture`")
        data_config = timm.data.resolve_data_config(pretrained_cfg=config.get("pretrained_cfg", config))
        model_args = config.get("model_args") or {}
        if not isinstance(model_args, dict):
            raise ValueError(f"`model_args` in its {CONFIG_NAME} has to be an object, but is {str(model_args)[:80]!r}")
        model_args = {name: value for name, value in model_args.items() if name not in OWN_MODEL_ARGS}
        vision_config = AgeVlmVisionConfig(architecture=config["architecture"], model_args=model_args or None)
    return vision_config, data_config


def timm_tower(vision: str) -> tuple[dict, dict[str, torch.Size]]:
    """
    The `vision_config` of a pretrained timm ConvNeXt, without `image_size`, and the shapes of its tensors.

    Raises:
        ValueError: If it is not a ConvNeXt whose last stage has a stride of 32 pixels.
    """
    config, _ = timm_config(vision)
    with loading(vision, VISION_HINT), torch.device("meta"):
        tower = create_timm_tower(config)
    if tower.feature_info[-1]["reduction"] != VISUAL_STRIDE:
        raise ValueError(
            f"{vision} ({config.architecture}) is not a ConvNeXt of stride {VISUAL_STRIDE}: AGE-VLM reads the feature "
            "map of the last of four stages. Pass a timm ConvNeXt."
        )
    vision_config = {
        "architecture": config.architecture,
        "model_args": config.model_args,
        "hidden_size": tower.num_features,
        "patch_size": VISUAL_STRIDE,
    }
    return vision_config, {name: tensor.shape for name, tensor in tower.state_dict().items()}


def load_timm_tower(vision: str, shapes: dict[str, torch.Size], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a pretrained timm ConvNeXt without its head, from safetensors alone."""
    with loading(vision, VISION_HINT):
        state_dict = timm.models.load_state_dict(timm_file(vision, SAFE_WEIGHTS_NAME))
    state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith("head.")}
    check_tensors(
        vision,
        missing=shapes.keys() - state_dict.keys(),
        left_over=state_dict.keys() - shapes.keys(),
        of_another_shape=[
            name for name in shapes.keys() & state_dict.keys() if state_dict[name].shape != shapes[name]
        ],
    )
    # A copy, so that the parameters are no views of the mapped file.
    return {name: tensor.to(dtype, copy=True) for name, tensor in state_dict.items()}


def split_gguf(text: str) -> tuple[str, str | None]:
    """The folder or Hub id and the file's name of a GGUF checkpoint; `text` itself and None for any other one."""
    if not text.endswith(".gguf"):
        return text, None
    if os.path.isfile(text):
        return os.path.split(os.path.abspath(text))
    repository, _, file = text.rpartition(":")
    if not repository:
        raise ValueError(
            f"There is no file {text}. Pass the path of a GGUF file, or `repo:file.gguf` for one on the Hub."
        )
    return repository, file


def llama_source(text: str, revision: str) -> dict[str, str | None]:
    """What `from_pretrained` is to be called with for a LLaMA."""
    checkpoint, gguf_file = split_gguf(text)
    return {"pretrained_model_name_or_path": checkpoint, "gguf_file": gguf_file, "revision": revision}


def load_llama_config(text: str, revision: str) -> LlamaConfig:
    """
    The configuration of a pretrained LLaMA.

    Raises:
        ValueError: If it cannot be loaded, is of another architecture, or is quantized.
    """
    with loading(text, TEXT_HINT):
        config = AutoConfig.from_pretrained(**llama_source(text, revision))
    if config.model_type != "llama":
        raise ValueError(
            f"{text} is a {config.model_type!r} checkpoint, but AGE-VLM is built around LLaMA-architecture models "
            "('llama')."
        )
    if "quantization_config" in config.to_dict():
        raise ValueError(f"{text} is quantized. Pass the checkpoint that it was made from.")
    return config


def load_llama(text: str, revision: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """A pretrained LLaMA with all of its tensors, from safetensors or a GGUF file alone."""
    source = llama_source(text, revision)
    with loading(text, TEXT_HINT):
        llama, report = LlamaForCausalLM.from_pretrained(
            **source,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True) if source["gguf_file"] else None,
        )
    check_tensors(
        text,
        missing=report["missing_keys"],
        left_over=report["unexpected_keys"],
        of_another_shape=[key for key, *_ in report["mismatched_keys"]],
    )
    return llama


def join(
    config: AgeVlmConfig, tower: dict[str, torch.Tensor], llama: LlamaForCausalLM, attn_implementation: str | None
) -> AgeVlmForConditionalGeneration:
    """The model that the tensors of its parts become; only what is new is drawn, and nothing takes up memory twice."""
    # Some checkpoints have two tables, though their config.json says that one is both.
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = (
        llama.lm_head.weight is llama.get_input_embeddings().weight
    )
    state_dict = {f"model.vision_tower.timm_model.{key}": value for key, value in tower.items()}
    layers = config.text_config.self_attention_layers
    for key, value in llama.state_dict().items():
        if key.startswith("model.layers."):
            _, _, index, rest = key.split(".", 3)
            key = f"model.layers.{layers[int(index)]}.{rest}"
        state_dict[key.replace("model.", "model.language_model.", 1)] = value

    with init.no_init_weights():
        model = AgeVlmForConditionalGeneration._from_config(
            config, dtype=llama.dtype, attn_implementation=attn_implementation
        )
    keys = model.load_state_dict(state_dict, strict=False, assign=True)
    new = ("model.multi_modal_projector.",)
    new += tuple(f"model.language_model.layers.{i}." for i in config.text_config.cross_attention_layers)
    check_tensors(
        "the ConvNeXt and the LLaMA",
        missing=[key for key in keys.missing_keys if not key.startswith(new)],
        left_over=keys.unexpected_keys,
    )
    for name, parameter in model.named_parameters():
        parameter._is_hf_initialized = not name.startswith(new)
    model.initialize_weights()
    model.tie_weights()
    model.generation_config = llama.generation_config
    return model.eval()


def from_vision_text_pretrained(
    vision: str,
    text: str,
    image_token_id: int,
    image_size: int = 768,
    cross_attention_layers: list[int] | None = None,
    cross_attention_intermediate_size: int | None = None,
    use_visual_positions: bool = False,
    attention_sink: bool = False,
    text_revision: str = "main",
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
) -> AgeVlmForConditionalGeneration:
    r"""
    Builds an AGE-VLM from a pretrained ConvNeXt and a pretrained LLaMA. The projector and the cross-attention layers
    are new; the latter start as the identity, so that the model answers as its LLM does.

    Args:
        vision (`str`):
            A timm ConvNeXt: name with a pretrained tag, `hf-hub:` id (`@revision` may follow), or a folder that holds
            its config.json and model.safetensors, or that weight file.
        text (`str`):
            A checkpoint of LLaMA architecture: Hub id or folder of safetensors, or a GGUF file (its path, or
            `repo:file.gguf` on the Hub), which is dequantized.
        image_token_id (`int`):
            The tokenizer's id of the image placeholder. If it was added to the LLM's vocabulary, the table grows to the
            next multiple of 64 that holds it.
        image_size (`int`, *optional*, defaults to 768):
            Height and width of the images in pixels.
        cross_attention_layers (`list[int]`, *optional*):
            Indices in the combined stack. Defaults to every fifth layer from layer 2 on.
        cross_attention_intermediate_size (`int`, *optional*):
            Width of the MLP in the cross-attention layers; 0 leaves it out. Defaults to the LLM's.
        use_visual_positions (`bool`, *optional*, defaults to `False`):
            Whether the visual tokens get a 2-D position code, see [`AgeVlmConfig`].
        attention_sink (`bool`, *optional*, defaults to `False`):
            Whether the cross-attention layers have a place for nothing, see [`AgeVlmTextConfig`].
        text_revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit of `text` on the Hub.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`):
            Dtype of all parameters.
        attn_implementation (`str`, *optional*):
            What runs the attention, as for `from_pretrained`.

    Raises:
        ValueError: If `text` is not of LLaMA architecture, `vision` not a ConvNeXt of stride 32, or one of them cannot
            be loaded or has other tensors than its architecture.
    """
    vision_config, shapes = timm_tower(vision)
    llama_config = load_llama_config(text, text_revision)
    if cross_attention_layers is None:
        cross_attention_layers = default_cross_attention_layers(llama_config.num_hidden_layers)
    text_config = llama_config.to_dict() | {
        "model_type": AgeVlmTextConfig.model_type,
        "num_hidden_layers": llama_config.num_hidden_layers + len(cross_attention_layers),
        "cross_attention_layers": cross_attention_layers,
        "cross_attention_intermediate_size": cross_attention_intermediate_size,
        "attention_sink": attention_sink,
    }
    config = AgeVlmConfig(
        text_config={key: value for key, value in text_config.items() if not key.endswith("name_or_path")},
        vision_config=vision_config | {"image_size": image_size},
        image_token_id=0,  # until the vocabulary has the placeholder
        use_visual_positions=use_visual_positions,
    )
    # The parts are in no variable, so that the table grows without them.
    model = join(
        config,
        load_timm_tower(vision, shapes, dtype),
        load_llama(text, text_revision, dtype),
        attn_implementation,
    )
    if image_token_id >= model.config.text_config.vocab_size:
        model.resize_token_embeddings(image_token_id + 1, pad_to_multiple_of=64)
    model.config.image_token_id = image_token_id
    return model
