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

"""Benchmarks as their authors publish them as tasks of lmms-eval."""

from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset, DatasetDict, Image
from lmms_eval.api.task import ConfigurableMessagesTask

from recipes.evaluation.published import read_rows


class PublishedTask(ConfigurableMessagesTask):
    """The task, with the arguments of `read_rows` as its `dataset_kwargs`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict[str, Any]) -> None:
        rows = read_rows(dataset_kwargs["name"], Path(dataset_kwargs["data"]))
        docs = Dataset.from_list(rows).cast_column("image", Image())
        self.dataset = DatasetDict({self.config.test_split: docs})
        self.dataset_no_image = DatasetDict({self.config.test_split: docs.remove_columns("image")})


def doc_to_visual(doc: dict[str, Any]) -> list[PIL.Image.Image]:
    return [doc["image"].convert("RGB")]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """Nothing: the records are scored by `recipes/scorers.py`."""
    return {}
