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
"""One answer after the other, in a thread of its own, while the server goes on listening."""

import asyncio
import copy
import queue
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, ProcessorMixin
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from recipes.answering.answers import with_answer
from recipes.answering.grounded import ground_answer
from recipes.serving.answer_text import AnswerText


@dataclass(frozen=True)
class Ending:
    """How an answer ended: `"stop"` by itself or a stop string, `"length"` because it may have no more tokens."""

    reason: str
    num_tokens: int


class Job(StoppingCriteria):
    """
    One answer: what `generate` is asked, what it has said so far, and whether anybody still wants to know.

    Args:
        inputs (`BatchFeature`): The model's inputs, of one row.
        config (`GenerationConfig`): How to generate.
        text (`AnswerText`): Takes the tokens.
        seed (`int`, *optional*): Of what is drawn at random.
        sizes (`list[tuple[int, int]]`, *optional*): `(height, width)` of the pictures, if `grounding` is asked for.

    `grounding` is where the answer's phrases look, as [`ground_answer`] says it, once the answer has ended.
    """

    def __init__(
        self,
        inputs: BatchFeature,
        config: GenerationConfig,
        text: AnswerText,
        seed: int | None,
        sizes: list[tuple[int, int]] | None,
    ) -> None:
        self.inputs, self.config, self.text, self.seed, self.sizes = inputs, config, text, seed, sizes
        self.grounding: list[dict[str, Any]] = []
        self.prompt_length = inputs["input_ids"].shape[1]
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | Ending | Exception] = asyncio.Queue()
        self._is_cancelled = threading.Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """After every token: tells the client and says whether to go on."""
        self.tell(self.text.add(int(input_ids[0, -1])))
        is_over = self.is_cancelled or self.text.is_stopped
        return torch.full((len(input_ids),), is_over, dtype=torch.bool, device=input_ids.device)

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        """Ends the answer after the token at work, or before it begins."""
        self._is_cancelled.set()

    def tell(self, news: str | Ending | Exception) -> None:
        """From the thread of the model to that of the client."""
        if news != "" and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, news)

    async def news(self) -> AsyncIterator[str | Ending]:
        """The words of the answer as they come, and how it ended. Raises what `generate` raised."""
        while True:
            piece = await self._pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if isinstance(piece, Ending):
                return


class Generator:
    """
    Answers jobs in their order.

    Args:
        model (`PreTrainedModel`): The model, where it shall run.
        processor (`ProcessorMixin`): Its processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model = model
        # Its own: tokenizers cannot decode in one thread while another sets them up to encode.
        self.processor = copy.deepcopy(processor)
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="generation", daemon=True).start()

    def submit(
        self,
        inputs: BatchFeature,
        options: dict[str, Any],
        stops: list[str],
        seed: int | None = None,
        sizes: list[tuple[int, int]] | None = None,
    ) -> Job:
        """
        Starts an answer as soon as those before it have ended.

        Args:
            inputs (`BatchFeature`): The model's inputs, of one row.
            options (`dict[str, Any]`): What of the checkpoint's generation configuration is different.
            stops (`list[str]`): Strings that end the answer.
            seed (`int`, *optional*): Of what is drawn at random.
            sizes (`list[tuple[int, int]]`, *optional*): `(height, width)` of the pictures, to say where phrases look.
        """
        config = copy.deepcopy(self.model.generation_config)
        # One answer is told word by word.
        config.update(**options, num_beams=1, num_return_sequences=1, stop_strings=None, max_length=None)
        job = Job(inputs, config, AnswerText(self.processor.tokenizer, stops), seed, sizes)
        self._jobs.put(job)
        return job

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if not job.is_cancelled:
                    job.tell(self._answer(job))
            except Exception as error:  # the client's side raises it again
                job.tell(error)
            del job  # while it waits for the next one

    def _answer(self, job: Job) -> Ending:
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=job.seed is not None):
            if job.seed is not None:
                torch.manual_seed(job.seed)
            output = self.model.generate(
                **job.inputs.to(self.model.device),
                generation_config=job.config,
                stopping_criteria=StoppingCriteriaList([job]),
            )
        job.tell(job.text.finish())
        if job.sizes and not job.is_cancelled:
            job.grounding = self._ground(job, output[:, job.prompt_length :])
        num_tokens = output.shape[1] - job.prompt_length
        ends = job.config.eos_token_id
        has_ended = int(output[0, -1]) in (ends if isinstance(ends, list) else [ends])
        is_complete = has_ended or job.text.is_stopped or num_tokens < job.config.max_new_tokens
        return Ending("stop" if is_complete else "length", num_tokens)

    def _ground(self, job: Job, new: torch.LongTensor) -> list[dict[str, Any]]:
        """Where the phrases look of what the client gets of the answer."""
        _, inputs, length = with_answer(self.processor, job.inputs.to(self.model.device), new)
        first = len(job.text.text) - len(job.text.text.lstrip())  # where the answer without space around it begins
        phrases = ground_answer(self.model, self.processor, inputs, length, job.sizes)
        for phrase in phrases:
            phrase["span"] = [first + place for place in phrase["span"]]
        # A stop string may have cut the answer.
        return [phrase for phrase in phrases if job.text.text[slice(*phrase["span"])] == phrase["text"]]
