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
"""
RePOPE's labels (arXiv 2504.15707): those of POPE's questions as people who looked again see them, without what is
ambiguous.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from recipes.evaluation.records import Record, mark


Labels = dict[tuple[str, str], str]  # by picture and question


def read_labels(folder: Path) -> Labels:
    """
    The labels in a folder's `coco_repope_*.json`, as their authors publish them.

    Raises:
        ValueError: If there are none, or a file has another form.
    """
    files = sorted(folder.glob("coco_repope_*.json"))
    if not files:
        raise ValueError(f"There are no coco_repope_*.json in {folder}, which RePOPE's labels are in.")
    labels: Labels = {}
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            try:
                entry = json.loads(line)
                labels[Path(entry["image"]).stem, entry["text"].strip()] = {"yes": "yes", "no": "no"}[entry["label"]]
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{file}, line {number}: this is no label of RePOPE's ({error!r})") from error
    return labels


def relabel(records: Sequence[Record], labels: Labels) -> list[Record]:
    """
    POPE's records that have a label, with it.

    Raises:
        ValueError: If the records do not name POPE's pictures (`image_source`), or none has a label.
    """
    if any("image_source" not in record for record in records):
        raise ValueError("RePOPE's labels go by POPE's pictures, which these records do not name (`image_source`).")
    changed = []
    for record in records:
        label = labels.get((Path(str(record["image_source"])).stem, record["question"].strip()))
        if label is not None:
            changed.append({**record, "answer": label})
            changed[-1]["correct"] = mark(changed[-1])
    if not changed:
        raise ValueError("None of the questions has one of RePOPE's labels: these are not POPE's on COCO.")
    return changed
