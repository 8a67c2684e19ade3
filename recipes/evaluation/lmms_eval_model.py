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

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import Collator
from tqdm import tqdm
from transformers import GenerationConfig

from modeling_agevlm import AgeVlmConfig
from modeling_agevlm.conversion import loading
from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.answers import generate, prompts
from recipes.answering.attention import look_of_phrases
from recipes.answering.checkpoint import load_any
from recipes.answering.phrases import guess_phrases
from recipes.evaluation.journal import Journal
from recipes.evaluation.pictures import fingerprint, save


PICTURES = ("real", "none", "swapped")


def pictures_of(chat: Sequence[dict[str, Any]]) -> list[Any]:
    """The pictures of a chat."""
    return [part["image"] for message in chat for part in message["content"] if part["type"] == "image"]


def generation_arguments(gen_kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """
    What a task's `generation_kwargs` mean to `generate`, and the texts at which an answer ends.

    Greedy unless the task asks for samples; a temperature of 0 is greedy too. Keys that `generate` does not know are
    meant for other models of lmms-eval. A blank line ends no answer: lmms-eval says so for every task that names no
    end, and a chat model's answer may have paragraphs.
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
        device (`str`, *optional*): Where the model runs; by default on a GPU if there is one. Each process of
            `accelerate launch` has its own.
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
            model, self.processor = load_any(pretrained, dtype=dtype)
        if self.processor.chat_template is None:
            raise ValueError(f"{pretrained} has no chat template, so there is no telling how to ask it.")
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        try:
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"`--device {self.device}` cannot be used here: {str(error).splitlines()[0]}.") from error
        self.journal: Journal | None = None  # where answers are kept as they come, and taken from
        self.pictures: Path | None = None  # a folder to save small copies of what is shown to
        self.asks_what_is_there = False
        self.question_of: Callable[[dict[str, Any]], str] | None = (
            None  # what a row asks, without its task's instructions
        )

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
                keys = [(task, n) for *_, n, task, _ in batch]
                if self.journal is None or not self.journal.has(keys):
                    entries = self.ask(batch)
                    if self.journal is not None:
                        self.journal.add(entries)
                else:
                    entries = [self.journal.answers[key] for key in keys]
                answers += [entry["answer"] for entry in entries]
                progress.update(len(batch))
        return batches.get_original(answers)

    def ask(self, batch: Sequence[tuple]) -> list[dict[str, Any]]:
        """
        The answers to a batch of questions, each with its `task`, `number` and `picture` (a hash of the question's
        own). Where these are asked for, also the file of what was shown (`image`), and of an AGE-VLM how much of the
        question's first phrase looks at nothing (`on_nothing`) and, beside pictures, where the `phrase` looks (`map`).
        """
        chats, entries = [], []
        for _, messages, _, number, task, split in batch:
            chat, own = self.chat(messages, number, task, split)
            chats.append(chat)
            entries.append({"task": task, "number": number})
            if own:
                entries[-1]["picture"] = fingerprint(own[0]).hex()[:16]
            if self.pictures is not None and (shown := pictures_of(chat)):
                entries[-1]["image"] = save(shown[0], self.pictures)
        for entry, answer in zip(entries, self.answer(chats, batch[0][2]), strict=True):
            entry["answer"] = answer
        if self.model.config.model_type == AgeVlmConfig.model_type:
            has_sink = self.model.config.text_config.attention_sink
            if self.pictures is not None or (self.asks_what_is_there and has_sink):
                seeing = [n for n, chat in enumerate(chats) if pictures_of(chat)]
                looks = self.look([chats[n] for n in seeing], [self.question(*batch[n][1:]) for n in seeing])
                for n, look in zip(seeing, looks, strict=True):
                    entries[n] |= look if self.pictures is not None else {"on_nothing": look["on_nothing"]}
        return entries

    def chat(
        self, doc_to_messages: Callable, doc_id: int, task: str, split: str
    ) -> tuple[list[dict[str, Any]], Sequence[Any]]:
        """The chat that asks a task's question, with the pictures that `picture` wants, and the question's own."""
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
        return chat, images

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

    def question(self, doc_to_messages: Callable, _: dict[str, Any], number: int, task: str, split: str) -> str:
        """What a task asks, without its instructions where these are known."""
        doc = self.task_dict[task][split][number]
        if self.question_of is not None:
            return self.question_of(doc)
        content = ChatMessages(messages=doc_to_messages(doc)).to_hf_messages()[-1]["content"]
        return " ".join(part["text"] for part in content if part["type"] == "text")

    def look(self, chats: list[list[dict[str, Any]]], questions: list[str]) -> list[dict[str, Any]]:
        """
        Where each question's first phrase looks: the `phrase`, a `map` of its attention on the first picture, at most
        24 cells wide and high, and, of a model with a sink, how much looks at nothing (`on_nothing`).
        """
        if not chats:
            return []
        inputs = prompts(self.processor, chats).to(self.device, dtype=self.model.dtype)
        phrases = [next(iter(guess_phrases(question)), question) for question in questions]
        sizes = []
        for chat in chats:
            width, height = read_image(pictures_of(chat)[0]).size
            sizes.append((height, width))
        looks = []
        for phrase, look in zip(
            phrases, look_of_phrases(self.model, self.processor, inputs, phrases, sizes), strict=True
        ):
            rounded = [[round(share, 5) for share in row] for row in look.map.tolist()]
            looks.append({"phrase": phrase, "map": rounded})
            if self.model.config.text_config.attention_sink:
                looks[-1]["on_nothing"] = look.on_nothing
        return looks

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("age_vlm only writes answers: choose tasks of the output type `generate_until`.")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        return self.loglikelihood(requests)
