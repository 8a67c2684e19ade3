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
"""Tables for people."""

from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Words in the first column, numbers in the others; as a string in Markdown."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return markdown(self.header, self.rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: words in the first column, numbers in the others. Each row stays a line, each cell a cell."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [[" ".join(cell.split()).replace("|", "\\|") for cell in cells] for cells in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plain_table(metrics: dict[str, dict[str, float]]) -> str:
    """A plain of metrics, one row per metric and one column per model."""
    models = list(metrics)
    names = list(next(iter(metrics.values())))
    width = max(map(len, models)) + 2
    lines = [" " * 28 + "".join(f"{model:>{width}}" for model in models)]
    lines += [f"{name:<28}" + "".join(f"{metrics[model][name]:>{width}.3f}" for model in models) for name in names]
    return "\n".join(lines)
