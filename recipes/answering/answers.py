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
"""Asking: from questions about pictures to prompts, and from prompts to greedy answers."""

from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin


Chat = list[dict[str, Any]]
Window = tuple[int, int, int, int]
"""A part of a picture: left, top, right and bottom in its pixels."""


def one_question(question: str, *images: PIL.Image.Image) -> Chat:
    """A chat of one question about one picture, or about several."""
    pictures = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]


def prompts(processor: ProcessorMixin, chats: list[Chat], **arguments: Any) -> BatchFeature:
    """
    What a vision-language model takes to answer chats, or to go on with the answers that end them, padded on the left;
    `arguments` are more of `apply_chat_template`.
    """
    is_begun = chats[0][-1]["role"] == "assistant"
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=not is_begun,
        continue_final_message=is_begun,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
        **arguments,
    )


@torch.inference_mode()
def generate(model: PreTrainedModel, inputs: BatchFeature, **arguments: Any) -> torch.LongTensor:
    """
    The tokens that a model writes after its prompts, `(batch_size, num_new_tokens)`.

    Args:
        model ([`PreTrainedModel`]): Any generating model.
        inputs ([`BatchFeature`]): Prompts, padded on the left.
        arguments: Of `generate`, such as `max_new_tokens`. Greedy unless `do_sample` says otherwise.
    """
    output = model.generate(**inputs.to(model.device), **{"do_sample": False, **arguments})
    return output[:, inputs["input_ids"].shape[1] :]


def answer(
    model: PreTrainedModel, processor: ProcessorMixin, images: list, questions: list[str], max_new_tokens: int = 24
) -> list[str]:
    """Greedy answers to one question about each picture."""
    inputs = prompts(processor, [one_question(*pair) for pair in zip(questions, images, strict=True)])
    return processor.batch_decode(generate(model, inputs, max_new_tokens=max_new_tokens), skip_special_tokens=True)


def prompt(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: PIL.Image.Image,
    question: str,
    max_new_tokens: int,
    look_at: np.ndarray | None = None,
    window: Window | None = None,
) -> BatchFeature:
    """
    What an AGE-VLM takes to answer a question, where it runs. Whatever the question says is words, and no control token.
    With the boolean mask `look_at` of the picture, `(height, width)`, it is told to look there. With a window it reads that part
    of the picture beside the whole, as a second picture.

    Raises:
        ValueError: If it is longer, with its answer, than what the model was built for.
    """
    images = [image] if window is None else [image, image.crop(window)]
    inputs = prompts(processor, [one_question(question, *images)], sanitize_control_tokens=True)
    most, length = model.config.get_text_config().max_position_embeddings, inputs["input_ids"].shape[1]
    if length + max_new_tokens > most:
        raise ValueError(
            f"The question has {length} tokens with all that stands around it. With an answer of up to {max_new_tokens} that is "
            f"more than the {most} that the model reads: ask in fewer words, or for a shorter answer."
        )
    if look_at is not None:
        places = [look_at]
        if window is not None:
            left, top, right, bottom = window
            part = look_at[top:bottom, left:right]
            places.append(part if part.any() else None)
        inputs["visual_bias"] = processor.get_visual_bias([places])
    return inputs.to(model.device, dtype=model.dtype)


def ask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: PIL.Image.Image,
    question: str,
    max_new_tokens: int,
    look_at: np.ndarray | None = None,
    window: Window | None = None,
) -> tuple[str, dict[str, torch.Tensor], int]:
    """The greedy answer; the model's inputs with the answer's words after the prompt; and the prompt's length in tokens."""
    inputs = prompt(model, processor, image, question, max_new_tokens, look_at, window)
    return with_answer(processor, inputs, generate(model, inputs, max_new_tokens=max_new_tokens))


def with_answer(
    processor: ProcessorMixin, inputs: BatchFeature, new: torch.LongTensor
) -> tuple[str, dict[str, torch.Tensor], int]:
    """As [`ask`], for the tokens `(1, num_new_tokens)` that were written after a prompt."""
    prompted = inputs["input_ids"]
    words = new[~torch.isin(new, new.new_tensor(processor.tokenizer.all_special_ids))]  # without the end of turn
    input_ids = torch.cat([prompted, words[None]], dim=1)
    inputs = {**inputs, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return processor.decode(words).strip(), inputs, prompted.shape[1]
