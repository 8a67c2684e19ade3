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
"""An answer phrase by phrase: which words, where in the picture, how sure."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.phrases import phrase_spans


@torch.inference_mode()
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
        them `None` where its words look at nothing in particular. What they are is said at
        [`~AgeVlmProcessor.post_process_grounded_object_detection`].
    """
    text, places = processor.locate_tokens(inputs["input_ids"][0].tolist())
    first = min((start for start, end in places[prompt_length:] if end > start), default=len(text))
    first += len(text[first:]) - len(text[first:].lstrip())
    spans = phrase_spans(text[first:])
    if not spans or not sizes:
        return []
    queries = [[s < first + end and e > first + start for s, e in places] for start, end in spans]
    outputs = model(**inputs, query_masks=torch.tensor([queries], device=model.device))
    found: list[dict[str, Any]] = [
        {
            "text": text[first + start : first + end],
            "span": [start, end],
            "image": None,
            "box": None,
            "point": None,
            "score": None,
        }
        for start, end in spans
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
