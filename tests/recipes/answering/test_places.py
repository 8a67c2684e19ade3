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

import pytest

from recipes.answering.places import mask_of_place


@pytest.mark.parametrize(
    "place, rows, columns",
    [
        ((3, 2), (2, 3), (3, 4)),
        ((9.9, 4.9), (4, 5), (9, 10)),
        ((2, 1, 5, 4), (1, 4), (2, 5)),
        ((0, 0, 10, 5), (0, 5), (0, 10)),
        ((2.2, 1.1, 2.4, 1.2), (1, 2), (2, 3)),  # within a pixel
    ],
)
def test_places(place, rows, columns):
    mask = mask_of_place(place, 5, 10)
    assert mask.shape == (5, 10) and mask.sum() == (rows[1] - rows[0]) * (columns[1] - columns[0])
    assert mask[slice(*rows), slice(*columns)].all()


@pytest.mark.parametrize(
    "place, message",
    [
        ((10, 2), "10 2 is no point in the picture, which is 10 x 5 pixels"),
        ((2, 5), "no point"),
        ((-1, 2), "no point"),
        ((float("nan"), 2), "no point"),
        ((2, 1, 2, 4), "2 1 2 4 is no box in the picture"),
        ((5, 1, 2, 4), "no box"),
        ((0, 0, 10.5, 5), "no box"),
        ((float("inf"), 0, 10, 5), "no box"),
        ((1, 2, 3), "two or four numbers, but has 3"),
        ((), "two or four numbers, but has 0"),
    ],
)
def test_what_is_no_place(place, message):
    with pytest.raises(ValueError, match=message):
        mask_of_place(place, 5, 10)
