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
"""The questions about scenes as a task of lmms-eval, scored by `recipes/scorers.py`."""

import io
from collections.abc import Callable
from typing import Any

import PIL.Image
from datasets import Dataset, DatasetDict, Features, Image, Value
from lmms_eval.api.task import ConfigurableMessagesTask
from lmms_eval.tasks.pope.utils import pope_process_results

from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import Record, mark
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.questions import load_questions


FEATURES = Features({"image": Image(), **{name: Value("string") for name in ("question", "answer", "kind")}})


class ScenesTask(ConfigurableMessagesTask):
    """The task, with the arguments of `load_questions` as its `dataset_kwargs`."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict[str, Any]) -> None:
        files: dict[int, bytes] = {}  # questions share their picture

        def png(image: PIL.Image.Image) -> bytes:
            if id(image) not in files:
                file = io.BytesIO()
                image.save(file, "PNG", compress_level=1)
                files[id(image)] = file.getvalue()
            return files[id(image)]

        rows = [
            {
                "image": {"bytes": png(row["image"]), "path": None},
                **{name: row[name] for name in FEATURES if name != "image"},
            }
            for row in load_questions(**dataset_kwargs)
        ]
        self.dataset = DatasetDict({self.config.test_split: Dataset.from_list(rows, features=FEATURES)})
        self.dataset_no_image = DatasetDict(
            {split: docs.remove_columns("image") for split, docs in self.dataset.items()}
        )


def doc_to_visual(doc: dict[str, Any]) -> list[PIL.Image.Image]:
    return [doc["image"].convert("RGB")]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    """What each metric needs of one answer: the record, for our own ones."""
    record = {"benchmark": "scenes", "prediction": results[0], **{name: doc[name] for name in ("answer", "kind")}}
    record["correct"] = mark(record)
    metrics = {"accuracy": record, f"{doc['kind']}_accuracy": record}
    if doc["kind"] in POPE_KINDS:
        metrics |= dict.fromkeys(("pope_accuracy", "pope_f1", "pope_yes_ratio"), record)
        exact = pope_process_results(doc | {"question_id": None}, results)["pope_accuracy"]
        metrics["pope_accuracy_exact"] = exact
    return metrics


def metric(name: str) -> Callable[[list[Record]], float]:
    """A metric of `recipes.evaluation.metrics.summarize` as lmms-eval's aggregation."""
    return lambda records: summarize(records)[name]


accuracy = metric("accuracy")
pope_accuracy = metric("pope_accuracy")
pope_f1 = metric("pope_f1")
pope_yes_ratio = metric("pope_yes_ratio")
random_accuracy = metric("random_accuracy")
popular_accuracy = metric("popular_accuracy")
adversarial_accuracy = metric("adversarial_accuracy")
count_accuracy = metric("count_accuracy")
relation_accuracy = metric("relation_accuracy")
