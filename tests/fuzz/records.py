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
"""Files of LLaVA-style records: the survey, the rows that are written, and the batches that are made of them."""

import json
import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import PIL.Image
import pyarrow.parquet as pq

from fuzz.mutation import json_bytes, mutated_bytes, mutated_json
from fuzz.rows import collators
from recipes.rows.files import write
from recipes.rows.survey import Source, survey
from trainers.data_collator import BrokenRowError


def seeds() -> list[bytes]:
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup."}]
    more = [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "On the table <image> there."}]
    mask = {"size": [16, 20], "counts": [40, 30, 250]}
    regions = [
        {"mask": mask, "image": 0, "text": "cup", "span": [2, 5], "message": 1},
        {"mask": None, "image": 0, "text": "a cup", "message": None},
    ]
    records = [
        {"id": "a", "image": "a.png", "conversations": turns},
        {"id": "b", "image": "a.png", "conversations": turns, "regions": regions},
        {"id": 7, "image": ["a.png", "B.PNG"], "conversations": turns + more},
        {"id": None, "images": ["sub/c.png"], "messages": [{"role": "system", "content": "Be brief."}, *turns]},
        {"conversations": more, "image": "none", "unknown": {"deep": [1, {"x": None}]}},
        {"id": "caf\u00e9 \U0001f600", "conversations": more},
    ]
    return [json.dumps(records).encode(), "\n".join(map(json.dumps, records)).encode()]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    if rng.random() < 0.2:
        return mutated_bytes(rng.choice(seeds), rng, seeds)
    records = json.loads(seeds[0])
    if rng.random() < 0.5:
        return json_bytes(mutated_json(records, rng), rng)
    return b"\n".join(json_bytes(mutated_json(record, rng), rng) for record in records)


def run(data: bytes) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images/sub").mkdir(parents=True)
        for n, file in enumerate(("a.png", "b.png", "sub/c.png")):
            PIL.Image.new("RGB", (20 + n, 16), (90 * n, 9, 9)).save(folder / "images" / file)
        (folder / "records.json").write_bytes(data)
        source = Source(folder / "records.json", folder / "images")
        with patch("recipes.rows.survey.ProcessPoolExecutor", ThreadPoolExecutor):  # in this process, which is watched
            report = survey(source)
            again = survey(Source(source.json, source.images))
        assert str(report) == str(again) and str(report).encode()
        assert len(report.kept) + sum(report.faults.values()) == report.num_records
        num_rows = write(report, folder / "out", 1.0, 0)
        rows = [row for file in sorted((folder / "out").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
        assert num_rows == len(rows) == len(report.kept)
        for row in rows:
            try:
                batch = collators()[0]([row])
            except BrokenRowError:
                continue
            assert len(batch["input_ids"]) == 1
    return f"{len(rows)} rows of {report.num_records} records"
