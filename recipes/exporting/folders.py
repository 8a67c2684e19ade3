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
"""A folder of graphs with what else it takes to answer with them."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.checkpoint import is_quantized
from recipes.exporting.checking import TOLERANCE, differences
from recipes.exporting.graphs import DESCRIPTION, describe, export_graphs, file_bytes, quantize_graphs


PLACE_OF_QUESTION = "QUESTION"


def listed(tokens: int | list[int] | None) -> list[int]:
    return [] if tokens is None else tokens if isinstance(tokens, list) else [tokens]


def chat_around_question(processor: ProcessorMixin) -> list[str]:
    """What the chat template puts before a question about one picture, and behind it."""
    content = [{"type": "image"}, {"type": "text", "text": PLACE_OF_QUESTION}]
    chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    around = chat.split(PLACE_OF_QUESTION)
    if len(around) != 2:
        raise ValueError("its chat template does not say a question once")
    return around


def export(model: PreTrainedModel, processor: ProcessorMixin, folder: Path, int8: bool = False) -> dict[str, Any]:
    """
    Writes a folder of a model's graphs, the files of its processor, and `export.json`, which says what they are. That comes last:
    where it is, the graphs gave what the model gives.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): In float32, with eager attention.
        processor ([`AgeVlmProcessor`]): Its processor.
        folder (`Path`): Where they go.
        int8 (`bool`, *optional*, defaults to `False`): Whether to write them in int8 as well.

    Returns:
        `dict`: What `export.json` holds.

    Raises:
        ValueError: If the model cannot be exported, or the graphs are not what the model is. The sentence is about "its" parts.
    """
    if is_quantized(model.config):
        raise ValueError("its weights are quantized. Export the checkpoint that they were made of")
    if not model.config.text_config.cross_attention_layers:
        raise ValueError("it has no cross-attention layers, which would read pictures")
    size, generation = processor.image_processor.size, model.generation_config
    image_size = (size.height, size.width)
    description = describe(model, image_size) | {
        "patch_size": processor.image_processor.patch_size,
        "end_token_ids": listed(generation.eos_token_id),
        "suppressed_token_ids": listed(generation.suppress_tokens),
        "special_token_ids": sorted({*processor.tokenizer.all_special_ids, processor.image_token_id}),
        "chat": chat_around_question(processor),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / DESCRIPTION
    for old in (file, *folder.glob("*.onnx"), *folder.glob("*.onnx.data")):  # of another model, perhaps
        old.unlink(missing_ok=True)
    export_graphs(model, description, folder)
    processor.save_pretrained(folder)
    if int8:
        quantize_graphs(folder)
    description["differences"] = differences(model, description, folder)
    worst = max(description["differences"].values())
    if worst > TOLERANCE:
        raise ValueError(
            f"its graphs give something else than the model: they differ by {worst:.1e}, and {TOLERANCE:.0e} is what rounding "
            "may do. Please report it"
        )
    if int8:
        description["differences_int8"] = differences(model, description, folder, int8=True)
    description["bytes"] = file_bytes(folder)
    file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return description
