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
"""Loading a checkpoint: whatever is wrong with one ends in a sentence that says which part it is."""

import copy
import inspect
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import timm
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers import initialization as init
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmImageProcessor, AgeVlmProcessor
from modeling_agevlm.conversion import check_tensors, loading
from recipes.answering.answers import one_question, prompts


MOST_LABELS = 1000  # which any configuration may have
FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors names what weights are stored as
# Fields of JSON files that name other checkpoints, or other files
ELSEWHERE = ("backbone", "class_info_file", "repo_path", "transformers_weights")
# What timm asks for besides a model's arguments
LOADING = {*inspect.signature(timm.create_model).parameters} - {"kwargs"}
# Of a generation_config.json
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens")
FLAGS = (
    "do_sample", "use_cache", "output_attentions", "output_hidden_states", "output_scores", "output_logits",
    "return_dict_in_generate", "renormalize_logits", "remove_invalid_values",
)  # fmt: skip
COUNTS = {"num_beams": 1, "num_return_sequences": 1, "max_length": 1, "max_new_tokens": 1}  # with the smallest
COUNTS |= dict.fromkeys(("min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"), 0)
NUMBERS = {"temperature": (0, math.inf), "top_p": (0, 1), "min_p": (0, 1), "typical_p": (0.001, 1)}
NUMBERS |= {"repetition_penalty": (0.001, math.inf), "length_penalty": (-math.inf, math.inf)}


def find_file(name: str, file: str, revision: str | None) -> str | None:
    """The path of a checkpoint's file, in its folder or in the Hub's cache, downloaded where needed; None if it has none."""
    flags = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    return cached_file(name, file, revision=revision, **flags)


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All names with their values in a JSON object, however deep."""
    if isinstance(value, dict):
        yield from value.items()
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from entries(inner)


def check_entry(key: str, value: Any) -> None:
    """Raises `ValueError` if a field of a checkpoint's JSON file would have code, another checkpoint or other files read."""
    if key.endswith("_implementation") and "/" in str(value):
        raise ValueError(f"`{key}` names a repository of kernels ({value!r}), whose code would run")
    if key == "num_labels" and not (type(value) is int and 0 <= value <= MOST_LABELS):  # makes as many names
        raise ValueError(f"`num_labels` of {str(value)[:60]} is of a classifier, which this model is not")
    if key in ELSEWHERE and value is not None:
        raise ValueError(f"`{key}` ({value!r}) would read what is not of this checkpoint")


def read_entries(name: str, revision: str = "main") -> dict[str, Any]:
    """A checkpoint's configuration as it is written. Raises `ValueError` if it has none, or one that names code to fetch."""
    if Path(name).is_dir() and not (Path(name) / CONFIG_NAME).exists():
        raise ValueError("it has no config.json")
    with loading(f"its {CONFIG_NAME}"):
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        for key, value in entries(config):
            check_entry(key, value)
    return config


def is_age_vlm(name: str, revision: str = "main") -> bool:
    """Whether a checkpoint is an AGE-VLM, by its configuration. Raises `ValueError` as `read_entries`."""
    return read_entries(name, revision).get("model_type") == AgeVlmConfig.model_type


def read_config(name: str, revision: str) -> AgeVlmConfig:
    """The configuration. Raises `ValueError` if it is none of an AGE-VLM, or names code to fetch."""
    model_type = read_entries(name, revision).get("model_type")
    if model_type != AgeVlmConfig.model_type:
        raise ValueError(f"its {CONFIG_NAME} is of model type {model_type!r}")
    with loading(f"its {CONFIG_NAME}"):
        return AgeVlmConfig.from_pretrained(name, revision=revision)


def weight_files(name: str, revision: str) -> list[str]:
    """
    The files of the weights, as transformers finds them; none where it is to say that there are none.

    Raises:
        ValueError: If it would take an adapter and the model that it names, or files that do not lie beside the index.
    """
    if find_file(name, ADAPTER_CONFIG_NAME, revision) is not None:
        raise ValueError(
            f"it holds an adapter ({ADAPTER_CONFIG_NAME}), which has to be merged and saved as a whole model"
        )
    if Path(name).is_dir() and any(Path(name).glob("shard-*-model-*.safetensors")):  # which would go first
        raise ValueError("it is a distributed checkpoint, which has to be saved as a whole model")
    file = find_file(name, SAFE_WEIGHTS_NAME, revision)
    if file is not None:
        return [file]
    index = find_file(name, SAFE_WEIGHTS_INDEX_NAME, revision)
    if index is None:
        return []
    with loading(f"its {SAFE_WEIGHTS_INDEX_NAME}"):
        content = json.loads(Path(index).read_text(encoding="utf-8"))
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict) or not shards or not isinstance(content.get("metadata"), dict):
            raise ValueError("it has no `weight_map` of files with `metadata`")
        shards = sorted(set(map(str, shards.values())))
        wrong = [shard for shard in shards if Path(shard).name != shard or not shard.endswith(".safetensors")]
        if wrong:
            raise ValueError(f"it names {wrong[0]}, which is no safetensors file beside it")
        found = [find_file(name, shard, revision) for shard in shards]
        if None in found:
            raise ValueError(f"there is no {shards[found.index(None)]}")
    return found


def is_quantized(config: PreTrainedConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def headers(files: list[str]) -> dict[str, tuple[list[int], str]]:
    """Shape and type of all tensors in safetensors files. Raises `ValueError` if one cannot be read."""
    found = {}
    with loading("its weights"):
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    tensor = tensors.get_slice(key)
                    found[key] = (tensor.get_shape(), tensor.get_dtype())
    return found


def check_weights(files: list[str], config: AgeVlmConfig) -> None:
    """
    Raises `ValueError` unless the weights' headers fit the configuration: before anything of the size that either says is
    made. Quantized weights have shapes of their own.
    """
    if not files or is_quantized(config):
        return
    with loading(f"its {CONFIG_NAME}"), torch.device("meta"), init.no_init_weights():
        model = AgeVlmForConditionalGeneration(config)
    expected = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    kinds = headers(files)
    check_tensors(
        "the checkpoint",
        missing=expected.keys() - kinds.keys() - model.all_tied_weights_keys.keys(),
        of_another_shape=[key for key in expected.keys() & kinds.keys() if kinds[key][0] != expected[key]],
        of_another_type_than_floats=[key for key, (_, dtype) in kinds.items() if dtype not in FLOATS],
    )


def check_sizes(files: list[str], config: PreTrainedConfig) -> None:
    """
    Raises `ValueError` if a configuration asks for far more than the weights' files hold, before it is made: some families have
    other names in a file. Quantized weights have sizes of their own.
    """
    if not files or is_quantized(config):
        return
    with torch.device("meta"), init.meta_device_safe_creation_ops(), init.no_init_weights():
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    stored = sum(math.prod(shape) for shape, _ in headers(files).values())
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > 2 * stored:
        raise ValueError(f"its {CONFIG_NAME} is of {asked:,} weights, but its files hold {stored:,}")


def check_generation_config(file: str | None, generation_config: GenerationConfig, vocab_size: int) -> None:
    """
    Raises `ValueError` unless its tokens are in the vocabulary and its values are of their types. Whole numbers become the
    floats that transformers asks for. It goes on without a file that it cannot read: an answer would have no end.
    """
    if file is not None and not isinstance(json.loads(Path(file).read_text(encoding="utf-8")), dict):
        raise ValueError("it is no JSON object")
    for key in TOKENS:
        value = getattr(generation_config, key, None)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (type(token) is int and 0 <= token < vocab_size):
                raise ValueError(f"`{key}` holds {str(token)[:60]!r}, which is no token of the vocabulary")
    for key, value in generation_config.to_dict().items():
        shown = f"but is {str(value)[:60]!r}"
        if value is None:
            continue
        if key in FLAGS and type(value) is not bool:
            raise ValueError(f"`{key}` has to be true or false, {shown}")
        if key in COUNTS and not (type(value) is int and value >= COUNTS[key]):
            raise ValueError(f"`{key}` has to be a number from {COUNTS[key]} on, {shown}")
        if key in NUMBERS:
            low, high = NUMBERS[key]
            if type(value) not in (int, float) or not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f"`{key}` has to be a number from {low} to {high}, {shown}")
            setattr(generation_config, key, float(value))
    if generation_config.do_sample and generation_config.temperature == 0:
        raise ValueError("`temperature` is 0, but `do_sample` asks for a draw")


def check_image_processor(image_processor: Any, config: AgeVlmConfig) -> None:
    """Raises `ValueError` unless it makes what the model's tower takes, of a size that fits into memory."""
    if not isinstance(image_processor, AgeVlmImageProcessor):
        raise ValueError(f"its pictures are for a {type(image_processor).__name__}")
    patch_size = config.vision_config.patch_size
    if image_processor.patch_size != patch_size:
        raise ValueError(f"its `patch_size` is {image_processor.patch_size}, but the model's is {patch_size}")
    sides = [image_processor.size.get("height"), image_processor.size.get("width")]
    if not all(type(side) is int and side > 0 and side % patch_size == 0 for side in sides):
        raise ValueError(f"its `size` has to be of multiples of {patch_size} pixels, but is {image_processor.size}")
    if math.prod(sides) > PIL.Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"its `size` is {image_processor.size}, more pixels than a picture has")
    for key in ("image_mean", "image_std"):
        values = getattr(image_processor, key)
        if not (isinstance(values, (list, tuple)) and len(values) == config.vision_config.num_channels):
            raise ValueError(f"its `{key}` has to hold a number for each channel, but is {values!r}")
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ValueError(f"its `{key}` has to hold numbers, but is {values!r}")
    if not all(value > 0 for value in image_processor.image_std):
        raise ValueError(f"its `image_std` has to be above 0, but is {image_processor.image_std!r}")


def check_processor(processor: AgeVlmProcessor, config: AgeVlmConfig) -> None:
    """Raises whatever is raised when one asks, and `ValueError` if what comes out is not for the model."""
    check_image_processor(processor.image_processor, config)
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"its placeholder {processor.image_token!r} is token {processor.image_token_id}, but the model's is "
            f"{config.image_token_id}"
        )
    inputs = prompts(processor, [one_question("What is it?", PIL.Image.new("RGB", (32, 32)))])
    token = inputs["input_ids"].max().item()
    if token >= config.text_config.vocab_size:
        raise ValueError(f"its token {token} is not in the model's vocabulary of {config.text_config.vocab_size}")
    if not inputs["pixel_values"].isfinite().all():
        raise ValueError("its pictures hold NaN or infinity")


def short_names(names: Sequence[str]) -> list[str]:
    """What checkpoints are called where people compare them: their folders, or all of their names if those are not enough."""
    short = [Path(name).name for name in names]
    return short if len(set(short)) == len(short) else list(names)


def load_model(kind: Any, name: str, revision: str, **arguments: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model of a class by its `from_pretrained`, which runs no code and opens no pickle, with what that tells of its tensors."""
    return kind.from_pretrained(
        name, revision=revision, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **arguments
    )


def load_checkpoint(
    name: str, revision: str = "main", **arguments: Any
) -> tuple[AgeVlmForConditionalGeneration, AgeVlmProcessor]:
    """
    The model, in evaluation mode, and the processor of a checkpoint folder or Hub id. No code of the checkpoint runs.

    Args:
        name (`str`): The checkpoint.
        revision (`str`, *optional*, defaults to `"main"`): Branch, tag or commit on the Hub.
        arguments: More of `from_pretrained`, such as `dtype` and `attn_implementation`.

    Raises:
        ValueError: If it is no whole checkpoint of an AGE-VLM, cannot be found or cannot be read. The sentence is about
            "its" parts; whose they are is the caller's to say.
    """
    config = read_config(name, revision)
    check_weights(weight_files(name, revision), config)
    with loading("its processor"):
        processor = AgeVlmProcessor.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_processor(processor, config)
    with loading("its model"):
        model, report = load_model(AgeVlmForConditionalGeneration, name, revision, **arguments)
    if is_quantized(config):
        check_tensors("the checkpoint", missing=report["missing_keys"])
    with loading(f"its {GENERATION_CONFIG_NAME}"):
        file = find_file(name, GENERATION_CONFIG_NAME, revision)
        check_generation_config(file, model.generation_config, config.text_config.vocab_size)
    return model.eval(), processor


def read_other(name: str, revision: str = "main") -> tuple[PreTrainedConfig, ProcessorMixin]:
    """
    The configuration and the processor of a VLM of transformers that is none of this project's. No code of the checkpoint
    runs.

    Raises:
        ValueError: If they cannot be read, or would have other files read.
    """
    for key, value in entries(read_entries(name, revision)):
        # Of a vision tower; an AGE-VLM checks its own
        if key == "architecture" and not timm.is_model(str(value)):
            raise ValueError(f"`architecture` is {value!r}, which is no name in timm's registry")
        if key == "model_args" and isinstance(value, dict) and (others := sorted(LOADING & value.keys())):
            raise ValueError(f"`model_args` has `{others[0]}`, which would read other files")
    no_code = {"revision": revision, "trust_remote_code": False}  # left out, transformers asks
    config = AutoConfig.from_pretrained(name, **no_code)
    for file in (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME):
        if (path := find_file(name, file, revision)) is not None:
            with loading(f"its {file}"):
                for key, value in entries(json.loads(Path(path).read_text(encoding="utf-8"))):
                    check_entry(key, value)
    return config, AutoProcessor.from_pretrained(name, **no_code)


def load_other(name: str, config: PreTrainedConfig, revision: str = "main", **arguments: Any) -> PreTrainedModel:
    """
    The model, in evaluation mode, of the configuration that `read_other` read. Reads neither pickles nor adapters.

    Args:
        name (`str`): The checkpoint.
        config (`PreTrainedConfig`): Its configuration.
        revision (`str`, *optional*, defaults to `"main"`): Branch, tag or commit on the Hub.
        arguments: More of `from_pretrained`, such as `dtype` and `attn_implementation`.

    Raises:
        ValueError: If the weights are not whole, or would be read from elsewhere.
    """
    check_sizes(weight_files(name, revision), config)
    model, report = load_model(AutoModelForImageTextToText, name, revision, config=config, **arguments)
    check_tensors("the checkpoint", missing=report["missing_keys"])
    return model


def load_any(name: str, revision: str = "main", **arguments: Any) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, in evaluation mode, and the processor of any VLM: of this project's as [`load_checkpoint`], else as [`load_other`]."""
    if is_age_vlm(name, revision):
        return load_checkpoint(name, revision, **arguments)
    config, processor = read_other(name, revision)
    return load_other(name, config, revision, **arguments), processor
