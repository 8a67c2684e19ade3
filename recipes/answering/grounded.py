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
"""A question and its answer phrase by phrase: which words, where in the picture, how sure; and what nothing speaks for."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm.processing_agevlm import find_words
from recipes.answering.attention import first_picture
from recipes.answering.phrases import phrase_spans


CANNOT_TELL = "I cannot tell."


@torch.inference_mode()
def ground_phrases(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    start: int,
    end: int,
    sizes: list[tuple[int, int]],
) -> list[dict[str, Any]]:
    """
    What each phrase of a part of a text looks at, as [`ground_answer`] says it.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        inputs (`Mapping`): Of one row.
        start (`int`), end (`int`): Where the part stands in the words that `processor.locate_tokens` gives.
        sizes (`list[tuple[int, int]]`): `(height, width)` of each of the row's pictures.
    """
    text, places = processor.locate_tokens(inputs["input_ids"][0].tolist())
    spans = phrase_spans(text[start:end])
    if not spans or not sizes:
        return []
    queries = [[s < start + last and e > start + first for s, e in places] for first, last in spans]
    outputs = model(**inputs, query_masks=torch.tensor([queries], device=model.device))
    _, sink = first_picture(model, processor, outputs.grounding_maps)
    on_nothing = sink[0].mean(dim=-1).tolist()
    found: list[dict[str, Any]] = [
        {
            "text": text[start + first : start + last],
            "span": [first, last],
            "image": None,
            "box": None,
            "point": None,
            "score": None,
            "on_nothing": round(min(1.0, share), 6),  # rounding can take a mean of ones above 1
        }
        for (first, last), share in zip(spans, on_nothing, strict=True)
    ]
    results = processor.post_process_grounded_object_detection(outputs, [sizes], return_masks=False)
    for image, result in enumerate(results):
        for score, label, box, point in zip(
            *(result[name].tolist() for name in ("scores", "labels", "boxes", "points")), strict=True
        ):
            entry = found[label]
            if entry["score"] is None or score > entry["score"]:
                box, point = ([round(side, 1) for side in sides] for sides in (box, point))
                entry |= {"image": image, "box": box, "point": point, "score": round(score, 4)}
    return found


def ground_answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    prompt_length: int,
    sizes: list[tuple[int, int]],
) -> list[dict[str, Any]]:
    """
    What each phrase of an answer looks at.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        inputs (`Mapping`): Of one row, with the answer's tokens behind the prompt, as [`ask`] returns them.
        prompt_length (`int`): Tokens of the prompt.
        sizes (`list[tuple[int, int]]`): `(height, width)` of each of the row's pictures.

    Returns:
        `list[dict]`: For each phrase its `text`; its `span` in the answer; the `image` that it looks at by its number, the
        `box` there (left, top, right and bottom in pixels), the `point` (across and down) and the `score`, the four of
        them `None` where its words look at nothing in particular; and what of their attention is `on_nothing`, 0 for a model
        without a sink. What they are is said at [`~AgeVlmProcessor.post_process_grounded_object_detection`].
    """
    text, places = processor.locate_tokens(inputs["input_ids"][0].tolist())
    first = min((start for start, end in places[prompt_length:] if end > start), default=len(text))
    first += len(text[first:]) - len(text[first:].lstrip())
    return ground_phrases(model, processor, inputs, first, len(text), sizes)


def ground_question(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    question: str,
    sizes: list[tuple[int, int]],
) -> list[dict[str, Any]]:
    """
    What each phrase of a question looks at, as [`ground_answer`] says it, with its `span` in the question.

    Raises:
        ValueError: If the question does not stand after the picture.
    """
    text, _ = processor.locate_tokens(inputs["input_ids"][0].tolist())
    found = find_words(text, question)
    if not found:
        raise ValueError(f"{question!r} is not among the words of the prompt after the picture.")
    return ground_phrases(model, processor, inputs, *found[0], sizes)


def abstain(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    prompt_length: int,
    sizes: list[tuple[int, int]],
    question: str,
    answer: str,
    most: float,
) -> str:
    """
    An answer without what nothing in the picture speaks for, by how much of the words' attention is on nothing. A yes to words
    that look at nothing, or a no to words that look at the picture all the same, is [`CANNOT_TELL`]; phrases of other answers
    that look at nothing are struck out (~~so~~).

    Args:
        model, processor, inputs, prompt_length, sizes: As [`ground_answer`] takes them.
        question (`str`): As it stands in the prompt after the picture.
        answer (`str`): As [`ask`] returns it.
        most (`float`): The largest share of their attention on nothing with which words look at the picture; for a no, the
            largest share on the picture with which they look at nothing.

    Raises:
        ValueError: If the model has no attention sink.
    """
    if not model.config.text_config.attention_sink:
        raise ValueError("The model has no attention sink: its words cannot look at nothing.")
    said = re.match(r"(yes|no)\b", answer, flags=re.IGNORECASE)
    if said is None:
        for phrase in reversed(ground_answer(model, processor, inputs, prompt_length, sizes)):
            if phrase["on_nothing"] > most:
                start, end = phrase["span"]
                answer = f"{answer[:start]}~~{answer[start:end]}~~{answer[end:]}"
        return answer
    shares = [phrase["on_nothing"] for phrase in ground_question(model, processor, inputs, question, sizes)]
    if not shares:
        return answer
    doubt = max(shares) if said[0].lower() == "yes" else 1 - max(shares)
    return CANNOT_TELL if doubt > most else answer
