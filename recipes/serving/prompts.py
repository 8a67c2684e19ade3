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
"""From a chat request to the inputs of the model."""

from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from recipes.answering.places import mask_of_place
from recipes.serving.chat_request import ChatRequest, Image
from recipes.serving.errors import RequestError
from recipes.serving.limits import Limits
from recipes.serving.pictures import decode


DEFAULT_TOKENS = 1024  # of an answer, where the request and the context leave it open
# Words have four or five. A text with more than this many for each token that there is room for is not tokenized at all.
MOST_CHARACTERS_PER_TOKEN = 16


def place_of(field: str, part: Image, size: tuple[int, int]) -> np.ndarray | None:
    """The mask `(height, width)` of where a picture shall be looked at, or `None` for anywhere in it."""
    if part.look_at is None:
        return None
    try:
        return mask_of_place(part.look_at, *size)
    except ValueError as error:
        raise RequestError(str(error), f"{field}.look_at") from error


class PromptMaker:
    """
    Makes the model's inputs. Not for several threads at once.

    Args:
        model (`PreTrainedModel`): The model, for its context.
        processor (`ProcessorMixin`): Its processor.
        limits (`Limits`): What a request may ask.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, limits: Limits) -> None:
        self.processor, self.limits = processor, limits
        self.context = min(limits.context or 2**31, model.config.get_text_config().max_position_embeddings)

    def make(
        self, request: ChatRequest, files: list[bytes]
    ) -> tuple[BatchFeature, dict[str, Any], list[tuple[int, int]]]:
        """
        The inputs, the options of `generate` with how many tokens the answer may have, and `(height, width)` of the pictures.

        What is written in a message is words, also where it reads like the image placeholder or the end of a turn.

        Args:
            request (`ChatRequest`): What is asked.
            files (`list[bytes]`): The pictures of its `urls`.

        Raises:
            RequestError: If a picture cannot be read, a place to look at is not in it, the messages are not as the chat
                template wants them, or all is too long.
        """
        images = decode(files, list(request.urls), self.limits.image_pixels)
        conversation = request.conversation(images)
        num_characters = sum(len(part.get("text", "")) for message in conversation for part in message["content"])
        if num_characters > MOST_CHARACTERS_PER_TOKEN * self.context:
            raise self._too_long(f"{num_characters:,} characters")
        try:
            inputs = self.processor.apply_chat_template(
                conversation,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,
            )
        except (TemplateError, ValueError) as error:  # turns in another order, words that cannot be told from a token
            reason = str(error).splitlines()[0].rstrip(".") if str(error) else "it does not say why"
            raise RequestError(f"The model cannot take these messages: {reason[:300]}.", "messages") from error
        num_tokens = inputs["input_ids"].shape[1]
        left = self.context - num_tokens
        if left < 1:
            raise self._too_long(f"{num_tokens:,} tokens")
        asked = request.max_new_tokens
        if asked is not None and asked > min(left, self.limits.tokens):
            raise RequestError(
                f"`max_tokens` is {asked:,}, but this server gives {self.limits.tokens:,} at the most, and after the "
                f"{num_tokens:,} tokens of the messages the model has room for {left:,}.",
                "max_tokens",
                "context_length_exceeded",
            )
        tokens = asked or min(left, self.limits.tokens, DEFAULT_TOKENS)
        sizes = [(image.height, image.width) for image in images]
        places = [
            place_of(field, part, size) for (field, part), size in zip(request.images.items(), sizes, strict=True)
        ]
        if any(place is not None for place in places):
            inputs["visual_bias"] = self.processor.get_visual_bias([places])
        return inputs, request.generation_options() | {"max_new_tokens": tokens}, sizes

    def _too_long(self, length: str) -> RequestError:
        return RequestError(
            f"The messages have {length}, and the model has room for {self.context:,} tokens, the answer included. Send "
            "fewer.",
            "messages",
            "context_length_exceeded",
        )
