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
"""Loading a checkpoint to ask it."""

from pathlib import Path

from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmProcessor


def load_checkpoint(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The model and the processor of a checkpoint folder or Hub id.

    Raises:
        ValueError: If it is no whole checkpoint of an AGE-VLM.
        OSError: If it cannot be found or read.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise ValueError("it has no config.json")
    config, _ = AgeVlmConfig.get_config_dict(name)
    if config.get("model_type") != AgeVlmConfig.model_type:
        raise ValueError(f"its config.json is of model type {config.get('model_type')!r}")
    model, report = AgeVlmForConditionalGeneration.from_pretrained(name, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{len(report['missing_keys'])} of its tensors are missing ({min(report['missing_keys'])})")
    return model.eval(), AgeVlmProcessor.from_pretrained(name)
