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
Chat formats of LLaMA-architecture LLMs, as their makers publish them, on tokenizers of bytes or of letters, and what a chat
looks like in them.
"""

import string
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


# The system's words go into the first turn of the user; every turn of the user begins a text of its own.
LLAMA_2 = """\
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles have to alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (ns.system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
LLAMA_3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: ' + today }}
{{- '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# TinyLlama's, too. It leaves the beginning of the text to the tokenizer; headers are words, not tokens.
ZEPHYR = """\
{% for message in messages %}
{% if message['role'] in ['system', 'user', 'assistant'] %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant' }}
{% endif %}
"""
# There is no system.
MISTRAL_1 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles have to alternate: user, assistant, user, ...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
# The system's words go into the last turn of the user.
MISTRAL_3 = """\
{{- bos_token }}
{%- set ns = namespace(system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] + '\\n\\n' %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- set last = messages | map(attribute='role') | list | length - 1 %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + (ns.system if loop.index0 >= last - 1 else '') + message['content'] + '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
# There is always a system.
SMOLLM2 = (
    """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}
{%- endif %}
"""
    + CHATML
)
TOOL_USE = "{{ raise_exception('There are no tools.') }}"


class Format(NamedTuple):
    """
    A chat format, the tokenizer that it comes with, and what a chat becomes: `system` is what stands before the first
    question if there is a system, `alone` if there is none, then question, `between` it and the answer, the answer with what
    comes `after` it, and what of `alone` comes `again` before the next question.
    """

    template: str | dict[str, str]
    tokens: list[str]
    roles: dict[str, str]
    system: str | None
    alone: str
    between: str
    after: str
    again: str
    end: str
    puts_beginning: bool = True
    letters: bool = False


PLAIN = ["<unk>", "<s>", "</s>"]
PLAIN_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
HEADER, OVER = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
LLAMA_3_SYSTEM = "<|begin_of_text|>" + HEADER.format("system")
LLAMA_3_SYSTEM += "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{}" + OVER + HEADER.format("user")
IM_SYSTEM, IM_USER, IM_ANSWER = (f"<|im_start|>{role}\n" for role in ("system", "user", "assistant"))
FORMATS = {
    "llama-2": Format(
        LLAMA_2,
        PLAIN,
        PLAIN_ROLES,
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n",
        "<s>[INST] ",
        " [/INST]",
        " Yes. </s>",
        "<s>[INST] ",
        "</s>",
        letters=True,
    ),
    "llama-3": Format(
        LLAMA_3,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        LLAMA_3_SYSTEM.format("Be brief."),
        LLAMA_3_SYSTEM.format(""),
        OVER + HEADER.format("assistant"),
        "Yes." + OVER,
        HEADER.format("user"),
        OVER,
    ),
    "tinyllama": Format(
        ZEPHYR,
        PLAIN,
        PLAIN_ROLES | {"pad_token": "</s>"},
        "<s><|system|>\nBe brief.</s>\n<|user|>\n",
        "<s><|user|>\n",
        "</s>\n<|assistant|>\n",
        "Yes.</s>\n",
        "<|user|>\n",
        "</s>",
        letters=True,
    ),
    "zephyr in bytes": Format(
        ZEPHYR,
        PLAIN,
        PLAIN_ROLES,
        "<s><|system|>\nBe brief.</s>\n<|user|>\n",
        "<s><|user|>\n",
        "</s>\n<|assistant|>\n",
        "Yes.</s>\n",
        "<|user|>\n",
        "</s>",
    ),
    "chatml on llama-2": Format(
        CHATML,
        [*PLAIN, "<|im_start|>", "<|im_end|>"],
        PLAIN_ROLES,
        f"<s>{IM_SYSTEM}Be brief.<|im_end|>\n{IM_USER}",
        f"<s>{IM_USER}",
        f"<|im_end|>\n{IM_ANSWER}",
        "Yes.<|im_end|>\n",
        IM_USER,
        "<|im_end|>",
        letters=True,
    ),
    "mistral": Format(
        MISTRAL_1, PLAIN, PLAIN_ROLES, None, "<s>[INST] ", " [/INST]", "Yes.</s>", "[INST] ", "</s>", letters=True
    ),
    "mistral with a system": Format(
        MISTRAL_3,
        [*PLAIN, "[INST]", "[/INST]"],
        PLAIN_ROLES,
        "<s>[INST] Be brief.\n\n",
        "<s>[INST] ",
        "[/INST]",
        " Yes.</s>",
        "[INST] ",
        "</s>",
        letters=True,
    ),
    "smollm2": Format(
        SMOLLM2,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
        },
        f"{IM_SYSTEM}Be brief.<|im_end|>\n{IM_USER}",
        f"{IM_SYSTEM}You are a helpful AI assistant.<|im_end|>\n{IM_USER}",
        f"<|im_end|>\n{IM_ANSWER}",
        "Yes.<|im_end|>\n",
        IM_USER,
        "<|im_end|>",
        puts_beginning=False,
    ),
    "several templates": Format(
        {"tool_use": TOOL_USE, "default": CHATML, "rag": TOOL_USE},
        [*PLAIN, "<|im_start|>", "<|im_end|>"],
        PLAIN_ROLES | {"eos_token": "<|im_end|>"},
        f"<s>{IM_SYSTEM}Be brief.<|im_end|>\n{IM_USER}",
        f"<s>{IM_USER}",
        f"<|im_end|>\n{IM_ANSWER}",
        "Yes.<|im_end|>\n",
        IM_USER,
        "<|im_end|>",
    ),
}


def letters_tokenizer(tokens: list[str]) -> Tokenizer:
    """As LLaMA-2's: no text is split before it is put together, and a text that begins gets a space."""
    letters = ["\u2581", *string.digits, *string.ascii_letters, *string.punctuation, "\n"]
    merges = [
        ("\u2581", "["),
        ("\u2581", "<"),
        ("\u2581", "Y"),
        ("Y", "e"),
        ("\u2581Y", "e"),
        ("]", "("),
        ("\n", "\n"),
    ]
    vocabulary = [*tokens[:3], *letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


def bytes_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    given = FORMATS[name]
    tokenizer = letters_tokenizer(given.tokens) if given.letters else bytes_tokenizer()
    tokenizer.add_special_tokens(given.tokens)
    if given.puts_beginning:
        bos = given.roles["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=given.template, **given.roles)


def save_llm(folder: Path, name: str) -> Path:
    """A LLaMA of two layers with the tokenizer and the chat template of a format, in its folder."""
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
