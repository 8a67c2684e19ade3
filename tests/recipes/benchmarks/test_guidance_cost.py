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
"""What the guidance of another VLM costs beside none and beside maps."""

from recipes.benchmarks.guidance import guidance
from recipes.benchmarks.timing import rows_table


def test_it_costs_less_than_maps():
    """Both ways guide by one loss, and a map is what costs memory."""
    result = guidance(rounds=1, num_layers=2, image_tokens=192, words=64, vocab_size=64)
    table, by_what = rows_table(result), {row["what"]: row["value"] for row in result["rows"]}
    assert by_what["peak memory, guided by kept maps by channels"] > 1.2
    assert by_what["peak memory, guided in all layers by unguided"] < 1.2
    assert "2 layers, 192 visual tokens and 64 words" in table and "Both ways of guidance give one loss" in table
