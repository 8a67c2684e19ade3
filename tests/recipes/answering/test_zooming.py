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
"""The part of a picture that words look at, and what is read when it stands beside the whole."""

import numpy as np
import pytest
import torch
from testing_utils import assert_close, picture, tiny_model, tiny_processor

from recipes.answering import zooming
from recipes.answering.answers import ask
from recipes.answering.grounded import ground_answer


QUESTION = "Is there a red cup?"


def flat(rows: int = 48, columns: int = 96, **places: tuple[slice, slice]) -> torch.Tensor:
    """Maps that are even inside a place, and nothing outside of it."""
    maps = torch.zeros(len(places), rows, columns)
    for of_place, place in zip(maps, places.values(), strict=True):
        of_place[place] = 1
    return maps


@pytest.mark.parametrize(
    ("maps", "least", "side"),
    [
        (flat(a=(slice(8, 12), slice(70, 74))), 1, 3),  # a side of 3 holds 9 of 16, the next of 2 only 4
        (flat(a=(slice(8, 12), slice(70, 74))), 10, 12),  # 48, 34, 24, 17, 12, but not 8
        (flat(a=(slice(8, 12), slice(70, 74)), b=(slice(20, 24), slice(78, 82))), 1, 12),  # both
        (flat(a=(slice(0, 4), slice(0, 4)), b=(slice(0, 4), slice(90, 94))), 1, None),  # too far apart
        (flat(a=(slice(0, 48), slice(0, 96))), 1, None),  # everywhere
        (flat(a=(slice(8, 12), slice(70, 74))), 40, None),  # all pixels are read already
        (flat(a=(slice(0, 0), slice(0, 0))), 1, None),  # everything is on nothing
    ],
)
def test_windows_are_the_smallest_that_hold_half_of_each(maps: torch.Tensor, least: float, side: int | None):
    found = zooming.smallest_window(maps, least)
    if side is None:
        assert found is None
        return
    left, top, found_side = found
    assert found_side == side
    held = maps[:, top : top + side, left : left + side].sum(dim=(1, 2)) / maps.sum(dim=(1, 2))
    assert held.min() >= 0.5


class PointingModel(torch.nn.Module):
    """Looks at one cell of the grid of 3 x 3, and for the rest at the sink, if there is one."""

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.model, self.cell, self.config, self.device = self, cell, tiny_model().config, torch.device("cpu")

    def forward(self, query_masks: torch.Tensor, **inputs) -> object:
        maps = torch.full((*query_masks.shape[:2], 9), 1e-4)
        maps[..., self.cell] = 1 - 8e-4
        self.queries = query_masks
        return type("Output", (), {"grounding_maps": (maps, maps)})()


@pytest.mark.parametrize(
    ("question", "answer", "phrases"), [(QUESTION, " No.", 1), ("What is this?", " A dog, a cat.", 2)]
)
def test_windows_lie_where_phrases_look(question: str, answer: str, phrases: int):
    """Those of the question, or of the answer to one without; in the picture's pixels, as many as the model reads."""
    processor, model = tiny_processor(), PointingModel(cell=5)  # on the right, halfway down
    image = picture(300, 600)
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    length = inputs["input_ids"].shape[1]
    new = torch.tensor([processor.tokenizer(answer, add_special_tokens=False)["input_ids"]])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    left, top, right, bottom = zooming.zoom_window(model, processor, inputs, length, question, (300, 600))
    assert model.queries.shape[1] == phrases
    assert right - left == bottom - top >= processor.image_processor.size.height
    assert 400 <= left and right <= 600 and 50 <= top and bottom <= 250
    silent = {**inputs, "input_ids": inputs["input_ids"][:, :length]}
    found = zooming.zoom_window(model, processor, silent, length, question, (300, 600))
    assert (found is None) == (question != QUESTION)
    small = processor.image_processor.size.height
    assert zooming.zoom_window(model, processor, inputs, length, question, (small, small)) is None


def test_a_window_is_read_beside_the_whole():
    """As a second picture is; told to look somewhere, the model looks there in both; and all of it is in the picture's pixels."""
    model, processor, image = tiny_model(), tiny_processor(), picture(120, 160)
    processor.grounding_readout = {"intercept": 5.0}  # random weights look at nothing much
    window = (40, 20, 120, 100)
    _, inputs, length = ask(model, processor, image, QUESTION, 6, window=window)
    _, alone, _ = ask(model, processor, image.crop(window), QUESTION, 6)
    values = inputs["pixel_values"].flatten(0, -4)
    assert len(values) == 2 and torch.equal(values[1], alone["pixel_values"].flatten(0, -4)[0])
    mask = np.zeros((120, 160), dtype=bool)
    mask[30:60, 50:90] = True
    for place, in_window in ((mask, mask[20:100, 40:120]), (np.roll(mask, 70, axis=1), None)):
        _, told, _ = ask(model, processor, image, QUESTION, 2, place, window)
        assert torch.equal(told["visual_bias"], processor.get_visual_bias([[place, in_window]]))

    sizes = [(120, 160), (80, 80)]
    queries = processor.get_query_masks(inputs["input_ids"], ["red cup", "there"])
    with torch.no_grad():
        outputs = model(**inputs, query_masks=queries)
    parts = processor.post_process_grounding(outputs, [sizes])[0]
    joined = zooming.in_one_picture(parts, window)
    assert joined.shape == (2, 120, 160) and parts[1].sum() > 0.1
    assert_close(joined.sum(dim=(1, 2)), torch.ones(2))
    assert_close(joined[:, :20], parts[0][:, :20])
    assert_close(joined[:, 20:100, 40:120] - parts[0][:, 20:100, 40:120], parts[1])

    found = ground_answer(model, processor, {**inputs, "input_ids": inputs["input_ids"]}, length, sizes)
    found += [{"text": "cup", "image": image, "box": [1.0, 2.0, 3.0, 4.0], "point": [2.0, 3.0]} for image in (0, 1)]
    found.append({"text": "cup", "image": None, "box": None, "point": None})
    moved = zooming.boxes_in_one_picture(found, window)
    assert all(phrase["image"] != 1 for phrase in moved)
    assert moved[-3:] == [
        found[-3],
        {"text": "cup", "image": 0, "box": [41.0, 22.0, 43.0, 24.0], "point": [42.0, 23.0]},
        found[-1],
    ]
