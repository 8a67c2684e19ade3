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
"""An answer that is told while it is written."""

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedModel, ProcessorMixin, TextIteratorStreamer
from transformers.generation import StoppingCriteria

from recipes.answering.answers import generate, prompt, with_answer


class Speech(StoppingCriteria):
    """
    An answer that is told piece by piece while a thread of its own generates it, and can be stopped.

    Args:
        model ([`PreTrainedModel`]): Any generating model.
        processor ([`ProcessorMixin`]): Its processor.
        image (`PIL.Image.Image`): The picture.
        question (`str`): What to ask about it.
        max_new_tokens (`int`): Longest answer in tokens.
        look_at (`np.ndarray`, *optional*): As in [`ask`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        image: PIL.Image.Image,
        question: str,
        max_new_tokens: int,
        look_at: np.ndarray | None = None,
    ) -> None:
        self.processor = processor
        self.inputs = prompt(model, processor, image, question, max_new_tokens, look_at)
        self._is_stopped = threading.Event()
        # Its own: tokenizers cannot decode in one thread while another sets them up to encode.
        tokenizer = copy.deepcopy(processor.tokenizer)
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        options = {"max_new_tokens": max_new_tokens, "streamer": self._streamer, "stopping_criteria": [self]}
        self._future = ThreadPoolExecutor(1).submit(self._generate, model, options)

    def _generate(self, model: PreTrainedModel, options: dict[str, Any]) -> torch.LongTensor:
        try:
            return generate(model, self.inputs, **options)
        finally:
            self._streamer.on_finalized_text("", stream_end=True)  # whoever listens goes on when it fails, too

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Of `generate`, after every token: whether it was stopped."""
        return torch.full((len(input_ids),), self._is_stopped.is_set(), dtype=torch.bool, device=input_ids.device)

    def stop(self) -> None:
        """Ends the answer after the token at work."""
        self._is_stopped.set()

    def __iter__(self) -> Iterator[str]:
        """Its pieces, in order."""
        return iter(self._streamer)

    def result(self) -> tuple[str, dict[str, torch.Tensor], int]:
        """What [`ask`] returns. Waits for the end, and raises what went wrong."""
        return with_answer(self.processor, self.inputs, self._future.result())
