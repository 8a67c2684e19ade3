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
A model for lmms-eval: any vision-language checkpoint that transformers loads, this project's included.

    pip install -e ".[eval]"
    lmms-eval --model age_vlm --model_args pretrained=runs/demo/age-vlm-lm --batch_size 16 --tasks pope
    accelerate launch -m lmms_eval --model age_vlm --model_args pretrained=...,dtype=bfloat16,picture=none --tasks pope

`picture` says what the model gets to see, which tells how much of an accuracy comes from the picture at all:

| `picture` | in the chat                                                                                       |
|-----------|---------------------------------------------------------------------------------------------------|
| real      | the pictures of the question                                                                      |
| none      | the text alone                                                                                    |
| swapped   | the pictures of another question of the same task, always the same ones and never the right ones  |
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, PreTrainedConfig

from modeling_agevlm import AgeVlmConfig
from modeling_agevlm.conversion import check_tensors, loading
from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.answers import generate, prompts
from recipes.answering.attention import shares_on_nothing
from recipes.answering.phrases import guess_phrases


PICTURES = ("real", "none", "swapped")


def has_sink(config: PreTrainedConfig) -> bool:
    """Whether a configuration is of an AGE-VLM with an attention sink. The classes of a checkpoint's own code are its own."""
    return config.model_type == AgeVlmConfig.model_type and config.text_config.attention_sink


def fingerprint(image: Any) -> bytes:
    """A hash of what a picture (PIL, path or URL) shows, whatever file it comes from."""
    image = read_image(image)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def generation_arguments(gen_kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """
    What a task's `generation_kwargs` mean to `generate`, and the texts at which an answer ends.

    Greedy unless the task asks for samples; a temperature of 0 is greedy too. Keys that `generate` does not know are meant
    for other models of lmms-eval. A blank line ends no answer: lmms-eval says so for every task that names no end, and a
    chat model's answer may have paragraphs.
    """
    known = GenerationConfig()
    arguments = {"max_new_tokens": 1024}
    arguments |= {name: value for name, value in gen_kwargs.items() if hasattr(known, name)}
    temperature = gen_kwargs.get("temperature")
    arguments["do_sample"] = temperature != 0 and bool(gen_kwargs.get("do_sample", temperature))
    if not arguments["do_sample"]:
        arguments |= dict.fromkeys(("temperature", "top_p", "top_k"))
    until = gen_kwargs.get("until") or []
    return arguments, [text for text in ([until] if isinstance(until, str) else until) if text.strip()]


class ImageTextToTextModel(lmms):
    """
    Answers the chats of lmms-eval's tasks in batches.

    Args:
        pretrained (`str`): Checkpoint folder or Hub id that `AutoModelForImageTextToText` and `AutoProcessor` load.
        picture (`str`, *optional*, defaults to `"real"`): What the model gets to see, one of `PICTURES`.
        dtype (`str`, *optional*, defaults to `"auto"`): Of the weights; `"auto"` is the checkpoint's own.
        device (`str`, *optional*): Where the model runs; by default on a GPU if there is one. Each process of `accelerate
            launch` has its own.
        batch_size (`int`, *optional*, defaults to 1): Questions at a time, on each process.

    Raises:
        ValueError: If the checkpoint cannot be loaded whole or has no chat template, or an argument makes no sense.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        picture: str = "real",
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
    ) -> None:
        super().__init__()
        if picture not in PICTURES:
            raise ValueError(f"`picture` is one of {', '.join(PICTURES)}, got {picture!r}.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"`batch_size` is a number of questions, got {batch_size!r}.")
        self.picture = picture
        self.batch_size = int(batch_size)
        # Several processes on a CPU find each other only if accelerate is told that it is one.
        PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        own_device = device is None or self.world_size > 1
        self.device = self.accelerator.device if own_device else torch.device(device)
        with loading(pretrained):
            self.processor = AutoProcessor.from_pretrained(pretrained)
            model, report = AutoModelForImageTextToText.from_pretrained(
                pretrained, dtype=dtype, output_loading_info=True
            )
        check_tensors(pretrained, missing=report["missing_keys"])
        if self.processor.chat_template is None:
            raise ValueError(f"{pretrained} has no chat template, so there is no telling how to ask it.")
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        self.model = model.to(self.device).eval()
        # Of an AGE-VLM with an attention sink, by task and question: how much of the question's first phrase looks at nothing.
        self.on_nothing: dict[tuple[str, int], float] = {}
        self.asks_what_is_there = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        # Long questions first: there is less padding, and a batch that does not fit into memory fails at once.
        batches = Collator(
            [request.args for request in requests],
            sort_fn=lambda arguments: -len(arguments[0]),
            group_fn=lambda arguments: arguments[2],
            grouping=True,
        )
        answers = []
        with tqdm(total=len(requests), desc=f"answers, picture: {self.picture}", disable=self.rank != 0) as progress:
            for batch in batches.get_batched(n=self.batch_size):
                chats = [self.chat(messages, *place) for _, messages, _, *place in batch]
                answers += self.answer(chats, batch[0][2])
                if self.asks_what_is_there and self.picture != "none" and has_sink(self.model.config):
                    shares = self.look(chats)
                    self.on_nothing |= {
                        (task, n): share for (*_, n, task, _), share in zip(batch, shares, strict=True)
                    }
                progress.update(len(batch))
        return batches.get_original(answers)

    def chat(self, doc_to_messages: Callable, doc_id: int, task: str, split: str) -> list[dict[str, Any]]:
        """The chat that asks a task's question, with the pictures that `picture` wants in it."""
        docs = self.task_dict[task][split]
        messages = ChatMessages(messages=doc_to_messages(docs[doc_id]))
        images, videos, audios = messages.extract_media()
        if videos or audios:
            raise ValueError(f"{task} has videos or sounds, but this model takes pictures and text.")
        chat = messages.to_hf_messages()
        if self.picture == "swapped" and images:
            others = iter(self.swap(images, doc_to_messages, docs, doc_id, task))
            for part in (part for message in chat for part in message["content"] if part["type"] == "image"):
                part["image"] = next(others)
        if self.picture == "none":
            for message in chat:
                message["content"] = [part for part in message["content"] if part["type"] != "image"]
        return chat

    def swap(
        self, images: Sequence[Any], doc_to_messages: Callable, docs: Dataset, doc_id: int, task: str
    ) -> list[Any]:
        """As many pictures of another question, none of which shows what one of `images` shows."""
        shown = {fingerprint(image) for image in images}
        # Half a data set away: the questions next to each other are about the same picture, or an edited one.
        for step in range(len(docs)):
            other = docs[(doc_id + len(docs) // 2 + step) % len(docs)]
            candidates = ChatMessages(messages=doc_to_messages(other)).extract_media()[0]
            candidates = [image for image in candidates if fingerprint(image) not in shown]
            if candidates:
                return [candidates[n % len(candidates)] for n in range(len(images))]
        raise ValueError(f"All pictures of {task} are the same, so there is none to swap in.")

    def answer(self, chats: list[list[dict[str, Any]]], gen_kwargs: dict[str, Any]) -> list[str]:
        """The answers to a batch of chats."""
        arguments, until = generation_arguments(gen_kwargs)
        inputs = prompts(self.processor, chats).to(self.device, dtype=self.model.dtype)
        answers = self.processor.batch_decode(generate(self.model, inputs, **arguments), skip_special_tokens=True)
        for text in until:
            answers = [answer.split(text)[0] for answer in answers]
        return answers

    def look(self, chats: list[list[dict[str, Any]]]) -> list[float]:
        """How much of the attention of each question's first phrase looks at nothing."""
        questions = [
            " ".join(part["text"] for part in chat[-1]["content"] if part["type"] == "text") for chat in chats
        ]
        inputs = prompts(self.processor, chats).to(self.device, dtype=self.model.dtype)
        phrases = [next(iter(guess_phrases(question)), question) for question in questions]
        return shares_on_nothing(self.model, self.processor, inputs, phrases)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("age_vlm only writes answers: choose tasks of the output type `generate_until`.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        return self.loglikelihood(requests)
