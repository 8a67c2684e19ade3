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
import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from testing_utils import VISION, tiny_config
from torch import nn
from transformers import LlamaConfig

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmTextConfig, AgeVlmVisionConfig
from modeling_agevlm.configuration_agevlm import TIMM_ARGUMENTS, default_cross_attention_layers
from modeling_agevlm.modeling_agevlm import create_timm_tower


@pytest.fixture(scope="module")
def paper_model() -> AgeVlmForConditionalGeneration:
    """The paper's model without storage."""
    with torch.device("meta"):
        return AgeVlmForConditionalGeneration(AgeVlmConfig())


def size_of(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_the_defaults_are_the_paper():
    config = AgeVlmConfig()
    assert config.text_config.num_hidden_layers == 20
    assert config.text_config.cross_attention_layers == [2, 7, 12, 17]
    assert config.text_config.self_attention_layers == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 16, 18, 19]
    assert (config.vision_config.architecture, config.vision_config.image_size) == ("convnext_large", 768)
    assert (config.vision_config.num_image_tokens, config.vision_config.hidden_size) == (576, 1536)
    assert not config.use_visual_positions and config.tie_word_embeddings and config.image_token_id == 128002


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [(1, [1]), (2, [2]), (3, [2]), (6, [2]), (7, [2, 7]), (12, [2, 7, 12]), (16, [2, 7, 12, 17])],
)
def test_default_layers_go_around_the_llm(num_layers: int, expected: list[int]):
    layers = default_cross_attention_layers(num_layers)
    assert layers == expected
    text_config = AgeVlmTextConfig(num_hidden_layers=num_layers + len(layers), cross_attention_layers=layers)
    assert len(text_config.self_attention_layers) == num_layers
    assert AgeVlmTextConfig(num_hidden_layers=num_layers + len(layers)).cross_attention_layers == layers


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_head_is_tied_as_the_llm_says(is_tied: bool):
    config = tiny_config(text_config={"tie_word_embeddings": is_tied}, tie_word_embeddings=None)
    model = AgeVlmForConditionalGeneration(config)
    assert config.tie_word_embeddings == (model.lm_head.weight is model.get_input_embeddings().weight) == is_tied


def test_an_llms_own_configuration_is_refused():
    with pytest.raises(Exception, match="`text_config` is of model type 'llama' instead of 'agevlm_text'"):
        AgeVlmConfig(text_config=LlamaConfig(vocab_size=300), image_token_id=2)


def test_language_model_has_llama_3_2_1b_parameters(paper_model: AgeVlmForConditionalGeneration):
    language_model, config = paper_model.model.language_model, paper_model.config.text_config
    own = [language_model.layers[i] for i in config.self_attention_layers]
    assert size_of(language_model.embed_tokens, *own, language_model.norm) == 1_235_814_400
    assert paper_model.lm_head.weight is language_model.embed_tokens.weight


def test_cross_attention_parameters(paper_model: AgeVlmForConditionalGeneration):
    language_model = paper_model.model.language_model
    layers = [language_model.layers[i] for i in (2, 7, 12, 17)]
    hidden, key_value, intermediate, head = 2048, 512, 8192, 64
    attention = 2 * hidden * hidden + 2 * hidden * key_value + 2 * head
    expected = 4 * (attention + 3 * hidden * intermediate + 2 * hidden)
    assert size_of(*layers) == expected == 243_286_528


def test_projector_parameters(paper_model: AgeVlmForConditionalGeneration):
    expected = (1536 + 1) * 2048 + (2048 + 1) * 2048
    assert size_of(paper_model.model.multi_modal_projector) == expected == 7_344_128


def test_tower_has_convnext_large_parameters_without_a_head(paper_model: AgeVlmForConditionalGeneration):
    depths, dims = (3, 3, 27, 3), (192, 384, 768, 1536)
    expected = 4 * 4 * 3 * dims[0] + 3 * dims[0]  # stem: patches, then a norm
    for depth, dim in zip(depths, dims, strict=True):
        # depthwise 7 x 7, norm, two linear layers, layer scale; biases everywhere
        expected += depth * ((49 + 1) * dim + 2 * dim + (dim + 1) * 4 * dim + (4 * dim + 1) * dim + dim)
    for dim, next_dim in zip(dims, dims[1:], strict=False):
        expected += 2 * dim + (4 * dim + 1) * next_dim
    assert size_of(paper_model.model.vision_tower) == expected == 196_227_264


def test_parts_are_the_whole(paper_model: AgeVlmForConditionalGeneration):
    assert size_of(paper_model) == 1_235_814_400 + 243_286_528 + 7_344_128 + 196_227_264


def test_round_trip_keeps_everything(tmp_path: Path):
    config = tiny_config(
        {"cross_attention_intermediate_size": 16},
        use_visual_positions=True,
        training_stage=3,
        projector_hidden_act="relu",
    )
    config.save_pretrained(tmp_path)
    again = AgeVlmConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.text_config.cross_attention_layers == [1, 3]
    assert again.text_config.cross_attention_intermediate_size == 16
    assert isinstance(again.text_config, AgeVlmTextConfig) and isinstance(again.vision_config, AgeVlmVisionConfig)
    assert again.vision_config.model_args == config.vision_config.model_args
    assert (again.use_visual_positions, again.training_stage, again.projector_hidden_act) == (True, 3, "relu")
    assert again.auto_map == {
        "AutoConfig": "configuration_agevlm.AgeVlmConfig",
        "AutoModel": "modeling_agevlm.AgeVlmForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_agevlm.AgeVlmForConditionalGeneration",
    }


@pytest.mark.parametrize("layers", [[5], [0], [-1], [1, 1], [1, 3, 7]])
def test_impossible_cross_attention_layers_are_refused(layers: list[int]):
    with pytest.raises(Exception, match=r"`cross_attention_layers` has to hold distinct indices between 1 and .* 4"):
        tiny_config({"cross_attention_layers": layers})


def test_image_size_that_is_no_multiple_is_refused():
    with pytest.raises(Exception, match=r"`image_size` \(100\) has to be a multiple of `patch_size` \(32\)"):
        tiny_config(vision_config={"image_size": 100})


@pytest.mark.parametrize("token", [320, -1])
def test_placeholder_outside_the_vocabulary_is_refused(token: int):
    with pytest.raises(Exception, match=rf"`image_token_id` \({token}\) is not in the vocabulary"):
        tiny_config(image_token_id=token)


def test_padding_outside_the_vocabulary_is_refused_by_the_model():
    """The configuration takes it: the default is LLaMA-3's, and those of other LLMs are set one after the other."""
    with pytest.raises(ValueError, match=r"`pad_token_id` \(128004\) is not in the vocabulary \(`vocab_size` 320\)"):
        AgeVlmForConditionalGeneration(tiny_config(text_config={"pad_token_id": 128004}))
    AgeVlmForConditionalGeneration(tiny_config(text_config={"pad_token_id": -1}))


def test_channels_that_the_architecture_does_not_have_are_refused():
    with pytest.raises(ValueError, match="24 channels at stride 32, but `vision_config` says hidden_size=48"):
        AgeVlmForConditionalGeneration(tiny_config(vision_config={"hidden_size": 48}))


@pytest.mark.parametrize(
    "architecture",
    ["hf-hub:somebody/else", "local-dir:tower", "somebody/else", "../tower", "tower\\atto", "", "a.b.c"],
)
def test_architecture_is_a_name_and_no_place(architecture: str):
    with pytest.raises(Exception, match="`architecture` has to be the name of a ConvNeXt in timm's registry"):
        tiny_config(vision_config={"architecture": architecture})


@pytest.mark.parametrize(
    "architecture", ["resnet18", "vit_tiny_patch16_224", "convnext_nano_2", "edgenext_small.usi_in1k"]
)
def test_architecture_is_a_convnext(architecture: str):
    with pytest.raises(ValueError, match=rf"`architecture` has to be the name of a ConvNeXt .* '{architecture}'\."):
        AgeVlmForConditionalGeneration(tiny_config(vision_config={"architecture": architecture, "model_args": None}))


# Whatever `timm.create_model` and what it hands its arguments to take besides what a ConvNeXt is built of.
@pytest.mark.parametrize(
    "name",
    sorted(
        {
            *inspect.signature(timm.create_model).parameters,
            *inspect.signature(timm.models.build_model_with_cfg).parameters,
        }
        | {
            "in_chans",
            "num_classes",
            "global_pool",
            "device",
            "dtype",
            "features_only",
            "out_indices",
            "pruned",
            "file",
        }
    ),
)
def test_arguments_that_build_no_convnext_are_refused(name: str):
    with pytest.raises(Exception, match=rf"arguments of timm's ConvNeXt \(act_layer, .*\), but has '{name}'\."):
        tiny_config(vision_config={"model_args": {**VISION["model_args"], name: "x"}})


def test_every_argument_that_builds_a_convnext_is_taken():
    own = {"in_chans", "num_classes", "global_pool", "device", "dtype"}
    built_of = {name: value.default for name, value in inspect.signature(timm.models.ConvNeXt).parameters.items()}
    model_args = {name: value for name, value in built_of.items() if name not in own}
    config = AgeVlmVisionConfig(model_args=model_args | VISION["model_args"], hidden_size=24)
    assert config.model_args.keys() == TIMM_ARGUMENTS
    assert create_timm_tower(config).num_features == 24


@pytest.mark.parametrize("value", [{"a": 1}, [1, {"a": 1}], float("nan"), [float("inf")], print])
def test_arguments_are_plain_values(value: Any):
    with pytest.raises(Exception, match="`model_args` has to hold plain values, but 'dims' is "):
        tiny_config(vision_config={"model_args": {"dims": value}})


def test_what_is_set_later_is_looked_at_as_well(tmp_path: Path):
    """timm would open the file, and refuse it with words of its own."""
    config = tiny_config().vision_config
    config.model_args = {**config.model_args, "checkpoint_path": str(tmp_path)}
    with pytest.raises(Exception, match="arguments of timm's ConvNeXt .*, but has 'checkpoint_path'"):
        create_timm_tower(config)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"depths": [10**9] * 4}, r"a number of blocks for each stage, from 1 to 1024, but is \[1000000000, "),
        ({"depths": [1, 1, 1, 0]}, r"a number of blocks for each stage, from 1 to 1024, but is \[1, 1, 1, 0\]"),
        ({"depths": 3}, "a number of blocks for each stage, from 1 to 1024, but is 3"),
        ({"dims": [8, 12, 16]}, "timm cannot build `convnext_atto` with `model_args` .*'dims'"),
        ({"dims": ["8", "12", "16", "24"]}, "a number of channels for each stage, from 1 to 16777216, but is "),
        (
            {"dims": [8, 12, 16, 0]},
            r"a number of channels for each stage, from 1 to 16777216, but is \[8, 12, 16, 0\]",
        ),
        ({"dims": [-1, 12, 16, 24]}, "a number of channels for each stage, from 1 to 16777216, but is "),
        ({"dims": [8, 12, 16, 2**70]}, "a number of channels for each stage, from 1 to 16777216, but is "),
        ({"kernel_sizes": -3}, "timm cannot build `convnext_atto` with `model_args` .*'kernel_sizes': -3"),
        ({"patch_size": -4}, "timm cannot build `convnext_atto` with `model_args` .*'patch_size': -4"),
        ({"stem_type": "none"}, "timm cannot build `convnext_atto` with `model_args` .*'stem_type': 'none'"),
        ({"act_layer": "none"}, "timm cannot build `convnext_atto` with `model_args` .*'act_layer': 'none'"),
    ],
)
def test_towers_that_cannot_be_built_get_a_sentence(change: dict[str, Any], sentence: str):
    with pytest.raises(Exception, match=sentence):
        AgeVlmForConditionalGeneration(tiny_config(vision_config={"model_args": VISION["model_args"] | change}))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        *((name, 0, f"`{name}` has to be at least 1, but is 0") for name in ("num_attention_heads", "hidden_size")),
        *((name, 0, f"`{name}` has to be at least 1, but is 0") for name in ("num_key_value_heads", "head_dim")),
        *((name, 0, f"`{name}` has to be at least 1, but is 0") for name in ("vocab_size", "intermediate_size")),
        ("num_hidden_layers", -1, "`num_hidden_layers` has to be at least 1, but is -1"),
        ("num_hidden_layers", 10**12, "`num_hidden_layers` can be 1024 at the most, but is 1000000000000"),
        (
            "cross_attention_intermediate_size",
            -1,
            "`cross_attention_intermediate_size` cannot be negative .* but is -1",
        ),
        ("num_key_value_heads", 3, r"`num_attention_heads` \(4\) has to be a multiple of `num_key_value_heads` \(3\)"),
        ("head_dim", 7, "`head_dim` has to be even, .* but is 7"),
        *(
            (name, 2**63, f"`{name}` can be 16777216 at the most, but is {2**63}")
            for name in ("hidden_size", "vocab_size")
        ),
        ("head_dim", 2**23, r"`num_attention_heads` \(4\) heads of `head_dim` \(8388608\) channels are more than"),
        *(
            (
                "rope_parameters",
                {"rope_theta": theta},
                f"`rope_theta` in `rope_parameters` .* below .*, but is '{theta}'",
            )
            for theta in (2**64, float("nan"), "10000")
        ),
        (
            "rope_parameters",
            {"rope_theta": [1]},
            r"`rope_theta` in `rope_parameters` has to be a number above 0 and below .*, but is '\[1\]'",
        ),
        (
            "rope_parameters",
            {"rope_theta": -1.0},
            "`rope_theta` in `rope_parameters` has to be a number above 0 and below .*, but is '-1.0'",
        ),
    ],
)
def test_what_no_llm_has_is_refused(field: str, value: Any, sentence: str):
    with pytest.raises(Exception, match=sentence):
        tiny_config({field: value})


@pytest.mark.parametrize("field", ["patch_size", "image_size", "hidden_size", "num_channels"])
def test_sizes_that_no_tower_has_are_refused(field: str):
    with pytest.raises(Exception, match=f"`{field}` has to be at least 1, but is 0"):
        tiny_config(vision_config={field: 0})
