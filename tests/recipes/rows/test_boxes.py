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

import numpy as np
import pytest

from recipes.rows.boxes import bounding_box, overlap_of_boxes


def test_bounding_box():
    mask = np.zeros((20, 30), dtype=bool)
    mask[3, 10] = mask[6, 5] = True
    assert bounding_box(mask) == (5, 3, 11, 7)


def test_overlap_of_boxes():
    assert overlap_of_boxes((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(1 / 3)
    assert overlap_of_boxes((0, 0, 4, 2), (4, 0, 6, 2)) == 0
    assert overlap_of_boxes((1, 1, 3, 3), (1, 1, 3, 3)) == 1
