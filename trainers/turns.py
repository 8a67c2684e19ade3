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
"""Where answers end: with the token that the chat template ends the assistant's turn with."""

from pathlib import Path

from jinja2 import TemplateError
from transformers import GenerationConfig, ProcessorMixin


ANSWER = "Yes."


def set_template(processor: ProcessorMixin, path: str | None, eos_token: str | None) -> None:
    """
    Gives a processor the chat template of a file and the end of text that TRL's arguments name, before anything reads them.

    Raises:
        ValueError: If the template is in no Jinja file.
    """
    if path is not None:
        if not (path.endswith((".jinja", ".j2")) and Path(path).is_file()):
            raise ValueError(f"`chat_template_path` has to be a file that ends in .jinja, but is {path!r}.")
        processor.chat_template = Path(path).read_text(encoding="utf-8")
    if eos_token is not None:
        processor.tokenizer.eos_token = eos_token


def words_after_answer(processor: ProcessorMixin) -> str:
    """What the chat template ends the assistant's turn with. Raises `ValueError` if it cannot be rendered."""
    said = {"user": "A cup?", "assistant": ANSWER}
    chat = [{"role": role, "content": [{"type": "text", "text": words}]} for role, words in said.items()]
    try:
        text = processor.apply_chat_template(chat)
    except TemplateError as error:
        raise ValueError(f"The chat template cannot be used: {error or repr(error)}.") from error
    return text.rpartition(ANSWER)[2].strip()


def end_of_turn(processor: ProcessorMixin) -> int:
    """
    The token that the chat template ends the assistant's turn with, and that training ends answers with.

    Raises:
        ValueError: If the template cannot be rendered, or an answer would never end: it ends turns with nothing, or with
            words.
    """
    end = words_after_answer(processor)
    tokens = processor.tokenizer(end, add_special_tokens=False)["input_ids"]
    if not tokens or not set(tokens) <= set(processor.tokenizer.added_tokens_decoder):
        raise ValueError(
            f"The chat template ends the assistant's turn with {end!r}, which is no special token of the tokenizer, so that "
            "no answer would ever end. Add it as one, or take a chat template that ends turns with one."
        )
    return tokens[-1]


def end_generation_with_turns(generation_config: GenerationConfig, processor: ProcessorMixin) -> None:
    """
    Makes generation end where training ends, besides where it ended before, with a token that is no part of the answer.

    Raises:
        ValueError: As [`end_of_turn`].
    """
    end, tokenizer = end_of_turn(processor), processor.tokenizer
    ends = generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if end not in ends:
        generation_config.eos_token_id = [*ends, end]
    if end not in tokenizer.all_special_ids:  # some tokenizers only added it
        special = {"extra_special_tokens": [tokenizer.convert_ids_to_tokens(end)]}
        tokenizer.add_special_tokens(special, replace_extra_special_tokens=False)
