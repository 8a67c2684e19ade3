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
The same suites run against Mllama, the library's model with interleaved cross-attention, for comparison: what it skips
or fails shows what the suites ask of such a model. Its processors are left out: they need files from the Hub.
"""

import unittest

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers import MllamaConfig, MllamaForCausalLM, MllamaForConditionalGeneration, MllamaModel
from transformers.models.mllama.configuration_mllama import MllamaTextConfig


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
    "image_size": 30,
    "patch_size": 2,
    "hidden_size": 16,
    "intermediate_size": 37,
    "intermediate_layers_indices": [0],
    "vision_output_dim": 32,
    "num_hidden_layers": 2,
    "num_global_layers": 1,
    "attention_heads": 4,
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    "max_num_tiles": 4,
}
IMAGE = 5


class MllamaTextModelTester:
    batch_size = 3
    seq_length = 7
    is_training = True
    text_config = TEXT
    num_hidden_layers = TEXT["num_hidden_layers"]
    num_attention_heads = TEXT["num_attention_heads"]
    hidden_size = TEXT["hidden_size"]
    vocab_size = TEXT["vocab_size"]

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> MllamaTextConfig:
        return MllamaTextConfig(**TEXT | {"cross_attention_layers": []})  # it is given no image

    def prepare_config_and_inputs_for_common(self) -> tuple[MllamaTextConfig, dict[str, torch.Tensor]]:
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - IMAGE - 1) + IMAGE + 1
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class MllamaModelTester(MllamaTextModelTester):
    vision_config = VISION

    def get_config(self) -> MllamaConfig:
        return MllamaConfig(text_config=TEXT, vision_config=VISION, image_token_index=IMAGE)

    def prepare_config_and_inputs_for_common(self) -> tuple[MllamaConfig, dict[str, torch.Tensor]]:
        config, inputs = super().prepare_config_and_inputs_for_common()
        inputs["input_ids"][:, 0] = IMAGE
        tiles, size = VISION["max_num_tiles"], VISION["image_size"]
        return config, inputs | {
            "pixel_values": floats_tensor([self.batch_size, 1, tiles, 3, size, size]),
            "aspect_ratio_ids": torch.full((self.batch_size, 1), 6),
            "aspect_ratio_mask": torch.ones(self.batch_size, 1, tiles),
            "cross_attention_mask": torch.ones(self.batch_size, self.seq_length, 1, tiles),
        }


class MllamaModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MllamaModel, MllamaForConditionalGeneration)
    additional_model_inputs = ["pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"]
    _is_composite = True

    def setUp(self) -> None:
        self.model_tester = MllamaModelTester(self)
        self.config_tester = ConfigTester(self, config_class=MllamaConfig, has_text_modality=False)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class MllamaTextModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MllamaForCausalLM,)

    def setUp(self) -> None:
        self.model_tester = MllamaTextModelTester(self)
        self.config_tester = ConfigTester(self, config_class=MllamaTextConfig)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()
