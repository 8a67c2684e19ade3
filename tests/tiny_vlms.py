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
"""Tiny concatenation VLMs of transformers with random weights, saved as checkpoint folders."""

from pathlib import Path

import torch
from testing_utils import IMAGE, PAD, VOCAB_SIZE, tiny_tokenizer
from tokenizers import AddedToken
from transformers import (
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
)


# Large enough weights that attention is far from even.
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- message['role'] | upper + ': ' }}
    {%- for part in message['content'] %}
        {{- 'IMAGE\\n' if part['type'] == 'image' else part['text'] }}
    {%- endfor %}
    {{- ' ' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'ASSISTANT:' }}
{%- endif %}
"""


def tiny_llava(folder: Path, side: int = 6, **flags: bool) -> str:
    """LLaVA with a CLIP tower whose pictures have `side` x `side` tokens; `flags` as of `LlavaImageProcessor`."""
    torch.manual_seed(0)
    pixels = 8 * side
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=pixels, patch_size=8),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor = LlavaProcessor(
        LlavaImageProcessor(size={"shortest_edge": pixels}, crop_size={"height": pixels, "width": pixels}, **flags),
        tiny_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", "<|image|>"),
        image_token="<|image|>",
    )
    processor.save_pretrained(folder)
    return str(folder)


def tiny_idefics3(folder: Path) -> str:
    """Idefics3, of which SmolVLM is a copy: 4 x 4 tokens of a frame, into several of which a large picture is split."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tiles = ["<global-img>"] + [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special + tiles], special_tokens=True)
    config = Idefics3Config(
        vision_config=VISION | {"image_size": 64, "patch_size": 8},
        text_config=LlamaConfig(**TEXT | {"vocab_size": len(tokenizer)}),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=PAD,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    image_processor = Idefics3ImageProcessor(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    template = CHAT_TEMPLATE.replace("IMAGE\\n", "<image>")
    Idefics3Processor(image_processor, tokenizer, image_seq_len=16, chat_template=template).save_pretrained(folder)
    return str(folder)
