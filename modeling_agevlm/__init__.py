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
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_agevlm import AgeVlmConfig, AgeVlmTextConfig, AgeVlmVisionConfig
from .conversion import from_vision_text_pretrained
from .image_processing_agevlm import AgeVlmImageProcessor
from .image_reading_agevlm import read_image
from .modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmModel, AgeVlmTextModel, AgeVlmVisionModel
from .processing_agevlm import AgeVlmProcessor


# Importing the package makes the AutoClasses know it, without `trust_remote_code`.
for config_class, model_class in (
    (AgeVlmConfig, AgeVlmForConditionalGeneration),
    (AgeVlmTextConfig, AgeVlmTextModel),
    (AgeVlmVisionConfig, AgeVlmVisionModel),
):
    AutoConfig.register(config_class.model_type, config_class)
    AutoModel.register(config_class, model_class)
AutoModelForImageTextToText.register(AgeVlmConfig, AgeVlmForConditionalGeneration)
AutoImageProcessor.register(AgeVlmConfig, image_processor_classes={"torchvision": AgeVlmImageProcessor})
AutoProcessor.register(AgeVlmConfig, AgeVlmProcessor)

__all__ = [
    "AgeVlmConfig",
    "AgeVlmForConditionalGeneration",
    "AgeVlmImageProcessor",
    "AgeVlmModel",
    "AgeVlmProcessor",
    "AgeVlmTextConfig",
    "AgeVlmTextModel",
    "AgeVlmVisionConfig",
    "AgeVlmVisionModel",
    "from_vision_text_pretrained",
    "read_image",
]
