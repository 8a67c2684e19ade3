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
"""The phrases of a question and its answer, and their tokens."""

import regex
import torch
from transformers import ProcessorMixin


# With those that speak of the picture itself, or of a place in it: there is no thing that they could look at.
FUNCTION_WORDS = frozenset(
    """
    image images picture pictures photo photos photograph describe show shows shown see left right top bottom middle
    a an the this that these those some any no every each all both either neither another other such own same
    i me my mine you your yours he him his she her hers it its we us our ours they them their theirs one ones
    myself yourself himself herself itself ourselves yourselves themselves someone anyone everyone nobody
    something anything everything nothing somewhere anywhere everywhere nowhere
    who whom whose which what where when why how whether here there then than
    not yes only just also too very so more most less least much many few several please
    and or but nor yet if because as while although though until unless since
    of in on at to from by for with without about into onto over under above below between among through across along
    around behind beside besides beyond before after during inside outside near off out up down upon within toward
    towards against
    am is are was were be been being do does did done doing have has had having
    can could will would shall should may might must
    isn't aren't wasn't weren't don't doesn't didn't can't cannot couldn't won't it's there's that's what's i'm
    """.split()
)


def phrase_spans(text: str) -> list[tuple[int, int]]:
    """Where the longest runs of words stand that may name something and have only spaces in between."""
    spans, is_open = [], False
    for word in regex.finditer(r"\w+(?:['\u2019-]\w+)*", text):
        if word[0].lower().replace("\u2019", "'") in FUNCTION_WORDS:
            is_open = False
            continue
        if is_open and text[spans[-1][1] : word.start()].isspace():
            spans[-1] = spans[-1][0], word.end()
        else:
            spans.append(word.span())
        is_open = True
    return spans


def guess_phrases(text: str) -> list[str]:
    """What stands at the [`phrase_spans`], each once, with single spaces."""
    phrases = (" ".join(text[start:end].split()) for start, end in phrase_spans(text))
    return list({phrase.lower(): phrase for phrase in phrases}.values())


def find_queries(
    processor: ProcessorMixin, input_ids: torch.LongTensor, prompt_length: int, question: str, phrases: list[str]
) -> dict[str, torch.BoolTensor]:
    """
    The tokens `(sequence_length,)` of the question, the answer (unless it is empty) and the phrases in either, by name.

    Raises:
        ValueError: If a phrase stands in neither.
    """
    question_mask, *phrase_masks = processor.get_query_masks(input_ids, [question, *phrases])[0]
    is_answer = torch.arange(input_ids.shape[1], device=input_ids.device) >= prompt_length
    parts = {"question": question_mask & ~is_answer, "answer": is_answer}
    found = dict(parts)
    for phrase, phrase_mask in zip(phrases, phrase_masks, strict=True):
        found |= {f"{part}: {phrase}": phrase_mask & part_mask for part, part_mask in parts.items()}
    return {name: mask for name, mask in found.items() if mask.any()}
