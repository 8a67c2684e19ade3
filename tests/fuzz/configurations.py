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
"""Configurations with other values, and the model that is built of them on the meta device, where it takes no memory."""

import copy
import json
import random
from functools import cache

import torch

from fuzz.mutation import json_bytes, mutated_json
from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration
from recipes.scenes import TRAINED_MODEL


@cache
def seeds() -> list[bytes]:
    config = json.loads((TRAINED_MODEL / "config.json").read_bytes())
    for fields in (config, config["text_config"], config["vision_config"]):
        del fields["dtype"]  # which transformers reads before us
    return [json.dumps(config).encode()]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    return json_bytes(mutated_json(json.loads(seeds[0]), rng), rng)


def run(data: bytes) -> str:
    try:
        fields = copy.deepcopy(json.loads(data))  # which transformers does: of thousands of brackets it cannot
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(fields, dict):
        return "no object"
    config = AgeVlmConfig.from_dict(fields)
    assert AgeVlmConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    with torch.device("meta"):
        AgeVlmForConditionalGeneration(config)
    return "model"
