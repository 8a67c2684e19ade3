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
"""Zooming in: the part of a picture that words look at, to be read at full resolution beside the whole."""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.answers import Window
from recipes.answering.attention import first_picture, map_size
from recipes.answering.phrases import guess_phrases


HELD = 0.5  # of each phrase's attention on the picture, what a window holds at least
FINENESS = 96  # rows or columns at most in which windows are sought


def smallest_window(maps: torch.Tensor, least: float) -> tuple[int, int, int] | None:
    """
    The smallest square that holds [`HELD`] of every map: its side is the shorter one of the maps, divided by the square root of
    2 as often as there is such a square. Of all that size the one that holds the most of the map of which it holds the least.

    Args:
        maps (`torch.Tensor` of shape `(K, rows, columns)`): Attention.
        least (`float`): The shortest side.

    Returns:
        `tuple[int, int, int]`: Left, top and side, or `None` if no square smaller than the maps does.
    """
    maps = maps.double() / maps.double().sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.double).tiny)
    sums = torch.nn.functional.pad(maps.cumsum(1).cumsum(2), (1, 0, 1, 0))
    found = None
    for halvings in count(1):
        side = round(min(maps.shape[1:]) * 2 ** (-halvings / 2))
        if side < max(least, 1):
            return found
        held = sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side] + sums[:, :-side, :-side]
        held = held.amin(dim=0)
        if held.max() < HELD:
            return found
        top, left = divmod(int(held.argmax()), held.shape[1])
        found = left, top, side


@torch.inference_mode()
def zoom_window(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    prompt_length: int,
    question: str,
    size: tuple[int, int],
) -> Window | None:
    """
    The part of a picture where the phrases of a question look, or of the answer where the question has none.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        inputs (`Mapping`): Of one row with one picture, with the answer's tokens behind the prompt, as [`ask`] returns them.
        prompt_length (`int`): Tokens of the prompt.
        question (`str`): As it stands in the prompt after the picture.
        size (`tuple[int, int]`): `(height, width)` of the picture.

    Returns:
        `Window`: The smallest square (see [`smallest_window`]) of at least as many pixels as the model reads, so that nothing of
        it is lost; `None` if there are no phrases, if they look at no place that is smaller than the picture, or if the model
        reads all of the picture's pixels.
    """
    height, width = size
    answer = processor.decode(inputs["input_ids"][0, prompt_length:])
    phrases = guess_phrases(question) or guess_phrases(answer)
    if not phrases:
        return None
    queries = processor.get_query_masks(inputs["input_ids"], [phrases]).to(model.device)
    cells, _ = first_picture(model, processor, model.model(**inputs, query_masks=queries).grounding_maps)
    rows, columns = map_size(height, width, FINENESS)
    of_phrases = cells[0].mean(dim=1)
    maps = processor.image_processor.cells_to_pixels(of_phrases, height, width, True, (rows, columns))
    pixels = max(height, width) / FINENESS
    read = processor.image_processor.size
    found = smallest_window(maps, max(read.height, read.width) / pixels)
    if found is None:
        return None
    left, top, side = found
    return (
        round(left * width / columns),
        round(top * height / rows),
        round((left + side) * width / columns),
        round((top + side) * height / rows),
    )


def in_one_picture(maps: Sequence[torch.Tensor], window: Window) -> torch.Tensor:
    """Attention `(K, height, width)` over a picture, and what lies on the window of it beside: all in the picture's pixels."""
    whole, part = maps
    left, top, right, bottom = window
    whole = whole.clone()
    whole[:, top:bottom, left:right] += part
    return whole


def boxes_in_one_picture(phrases: list[dict[str, Any]], window: Window) -> list[dict[str, Any]]:
    """What [`ground_answer`] says of a picture and the window of it beside: all in the picture's pixels."""
    left, top, _, _ = window
    return [
        phrase
        if phrase["image"] != 1
        else phrase
        | {
            "image": 0,
            "box": [side + (left, top)[n % 2] for n, side in enumerate(phrase["box"])],
            "point": [place + (left, top)[n] for n, place in enumerate(phrase["point"])],
        }
        for phrase in phrases
    ]
