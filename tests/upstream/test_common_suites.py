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
"""transformers' common test suites, run against AGE-VLM. `fetch.py` brings the mixins that this imports as `tests`."""

import copy
import unittest
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from testing_utils import tiny_processor
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from tests.test_processing_common import ProcessorTesterMixin
from transformers import Cache, LlamaConfig
from transformers import initialization as init
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.testing_utils import torch_device

from modeling_agevlm import (
    AgeVlmConfig,
    AgeVlmForConditionalGeneration,
    AgeVlmImageProcessor,
    AgeVlmModel,
    AgeVlmProcessor,
    AgeVlmTextConfig,
    AgeVlmTextModel,
    AgeVlmVisionConfig,
)
from modeling_agevlm.modeling_agevlm import AgeVlmOutputProjection, AgeVlmPreTrainedModel
from tests import test_modeling_common


# The suites give labels to the classes of transformers' own lists only, and train no base models.
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["agevlm"] = AgeVlmForConditionalGeneration.__name__
MODEL_MAPPING_NAMES |= {"agevlm": AgeVlmModel.__name__, "agevlm_text": AgeVlmTextModel.__name__}

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "cross_attention_layers": [1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
VISION = {
    "architecture": "convnext_atto",
    "model_args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "hidden_size": 16,
    "image_size": 64,
}
IMAGE = 5  # the suites fill rows up with smaller ones


@pytest.fixture(autouse=True)
def redrawn() -> Iterator[None]:
    """Draws what starts at (nearly) zero, so that the picture matters in every test."""
    init_weights = AgeVlmPreTrainedModel._init_weights

    def init_at_full_size(self: AgeVlmPreTrainedModel, module: torch.nn.Module) -> None:
        init_weights(self, module)
        if isinstance(module, AgeVlmOutputProjection):
            init.normal_(module.weight, std=0.02)
        elif hasattr(module, "gamma"):
            init.ones_(module.gamma)

    with patch.object(AgeVlmPreTrainedModel, "_init_weights", init_at_full_size):
        yield


@pytest.fixture(autouse=True)
def no_placeholders_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model refuses a placeholder without an image, which rows of random tokens may hold."""
    monkeypatch.setattr(
        test_modeling_common, "ids_tensor", lambda *args, **kwargs: ids_tensor(*args, **kwargs).clamp(min=IMAGE + 1)
    )


@pytest.fixture(autouse=True)
def pictures_without_placeholders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """This suite fills the batch up with rows of random tokens, and with pictures for them."""
    if "eager_matches_sdpa" in request.node.name:
        monkeypatch.setattr(AgeVlmModel, "_check_images", lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def without_code() -> Iterator[None]:
    """As part of the library the classes would be saved without their code and its entry in the configuration."""
    with patch.object(AgeVlmProcessor, "_auto_class", None):
        yield


class AgeVlmVisionModelTester:
    num_hidden_layers = 4  # the ConvNeXt's stages

    def prepare_config_and_inputs_for_common(self) -> tuple[None, dict[str, torch.Tensor]]:
        return None, {"pixel_values": floats_tensor([3, 3, VISION["image_size"], VISION["image_size"]])}


class AgeVlmModelTester:
    batch_size = 3
    seq_length = 7
    is_training = True
    text_config = TEXT
    num_hidden_layers = 1  # with self-attention, which is what `attentions` holds
    expected_num_hidden_layers = 3  # with the embeddings
    num_attention_heads = TEXT["num_attention_heads"]
    hidden_size = TEXT["hidden_size"]
    vocab_size = TEXT["vocab_size"]

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        self.vision_model_tester = AgeVlmVisionModelTester()

    def get_config(self) -> AgeVlmConfig:
        return AgeVlmConfig(text_config=self.text_config, vision_config=VISION, image_token_id=IMAGE)

    def prepare_config_and_inputs_for_common(self) -> tuple[AgeVlmConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        size = config.vision_config.image_size
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - IMAGE - 1) + IMAGE + 1
        input_ids[:, 0] = IMAGE  # `inputs_embeds` have no placeholders: there every token sees the image
        return config, {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids, device=torch_device),
            "pixel_values": floats_tensor([self.batch_size, 1, 3, size, size]),
        }


class AgeVlmModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (AgeVlmModel, AgeVlmForConditionalGeneration)
    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    # The suite takes `vision_config.model_args` for a configuration; our own tests compare the map with timm's.
    skip_test_image_features_output_shape = True

    def setUp(self) -> None:
        self.model_tester = AgeVlmModelTester(self)
        self.config_tester = ConfigTester(self, config_class=AgeVlmConfig, has_text_modality=False)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _check_cache_for_generate(
        self, batch_size: int, cache: Cache, seq_length: int | None, config: AgeVlmConfig
    ) -> None:
        """The visual keys grow with the images, not with the text as the suite expects of every layer."""
        text_config = config.get_text_config(decoder=True)
        for index in text_config.cross_attention_layers:
            keys = cache.layers[index].keys
            num_cells = AgeVlmVisionConfig(**VISION).num_image_tokens
            self.assertEqual(
                keys.shape, (batch_size, text_config.num_key_value_heads, num_cells, text_config.head_dim)
            )
        of_the_text = copy.copy(cache)
        of_the_text.layers = [cache.layers[index] for index in text_config.self_attention_layers]
        llama_config = LlamaConfig(**{name: TEXT[name] for name in TEXT if name != "cross_attention_layers"})
        llama_config.num_hidden_layers = len(of_the_text.layers)
        super()._check_cache_for_generate(batch_size, of_the_text, seq_length, llama_config)

    @unittest.skip("The tower is a ConvNeXt: there is no attention in it.")
    def test_get_image_features_attentions(self) -> None:
        pass

    @unittest.skip("Features computed beforehand are scattered over placeholders; here an image is one placeholder.")
    def test_generate_from_multimodal_encoder_outputs(self) -> None:
        pass

    @unittest.skip("Features computed beforehand are scattered over placeholders; here an image is one placeholder.")
    def test_generate_from_multimodal_encoder_outputs_and_raw_data(self) -> None:
        pass


class AgeVlmTextModelTester(AgeVlmModelTester):
    def get_config(self) -> AgeVlmTextConfig:
        return AgeVlmTextConfig(**self.text_config)

    def prepare_config_and_inputs_for_common(self) -> tuple[AgeVlmTextConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        tokens, cells = (self.batch_size, self.seq_length), 6
        return config, {
            "input_ids": ids_tensor(tokens, self.vocab_size),
            "attention_mask": torch.ones(tokens, dtype=torch.long, device=torch_device),
            "cross_attention_states": floats_tensor([self.batch_size, cells, self.hidden_size]),
            "visible_from": torch.zeros((self.batch_size, cells), dtype=torch.long, device=torch_device),
        }


class AgeVlmTextModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AgeVlmTextModel,)

    def setUp(self) -> None:
        self.model_tester = AgeVlmTextModelTester(self)
        self.config_tester = ConfigTester(self, config_class=AgeVlmTextConfig)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class AgeVlmProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = AgeVlmProcessor

    @classmethod
    def _setup_from_components(cls) -> AgeVlmProcessor:
        return tiny_processor()


class AgeVlmImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase) -> None:
        super().__init__(parent, size={"height": 64, "width": 64})

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": AgeVlmImageProcessor}


class AgeVlmImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    """A row may have several images: a flat list is one row, and what the suite calls a batch is a list of lists."""

    image_processor_tester_class = AgeVlmImageProcessingTester

    def check_call(self, num_channels: int = 3, **inputs: bool) -> None:
        tester = self.image_processor_tester
        images = tester.prepare_image_inputs(equal_resolution=False, num_channels=num_channels, **inputs)
        statistics = {"image_mean": [0.5] * num_channels, "image_std": [0.5] * num_channels}
        if num_channels != 3:
            statistics |= {"do_convert_rgb": False, "input_data_format": "channels_last"}
        processor = AgeVlmImageProcessor(**self.image_processor_dict)
        for batch, shape in (
            (images[0], (1, 1)),
            (images, (1, tester.batch_size)),
            ([[image] for image in images], (tester.batch_size, 1)),
        ):
            pixel_values = processor(batch, return_tensors="pt", **statistics).pixel_values
            self.assertEqual(tuple(pixel_values.shape), (*shape, num_channels, 64, 64))

    def test_call_pil(self) -> None:
        self.check_call()

    def test_call_numpy(self) -> None:
        self.check_call(numpify=True)

    def test_call_pytorch(self) -> None:
        self.check_call(torchify=True)

    def test_call_numpy_4_channels(self) -> None:
        self.check_call(num_channels=4, numpify=True)
