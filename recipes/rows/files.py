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
"""Rows to parquet files, and a JSON file as a stream of rows."""

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, IterableDataset
from tqdm.auto import tqdm
from transformers.utils import logging

from recipes.rows.records import FEATURES, Fault, read_record
from recipes.rows.survey import Source


logger = logging.get_logger(__name__)


def in_subset(identity: str, share: float, seed: int) -> bool:
    """Whether a row is among the `share` of rows that `seed` picks: by its id alone, wherever the row stands."""
    digest = blake2b(f"{seed} {identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def write(source: Source, kept: np.ndarray, out: Path, share: float, seed: int, rows_per_file: int = 100_000) -> int:
    """Writes rows as parquet files that `datasets` reads. Returns how many."""
    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(kept), rows_per_file)
    num_rows, identities = 0, set()
    for n, start in enumerate(tqdm(starts, unit=" files", desc="writing")):
        rows = []
        for number in kept[start : start + rows_per_file].tolist():
            row, _ = read_record(source.lines[number], number, source.images)
            if in_subset(row["id"], share, seed):
                if row["id"] in identities:  # masks find their rows by their ids
                    row["id"] = f"{row['id']}#{number}"
                identities.add(row["id"])
                rows.append(row)
        num_rows += len(rows)
        place = out / f"train-{n:05d}-of-{len(starts):05d}.parquet"
        write_parquet(place, rows, FEATURES)
    return num_rows


def write_parquet(place: Path, rows: list[dict[str, Any]], features: Features) -> None:
    """Writes a file that appears when it is complete."""
    aside = place.with_name(f"_{place.name}.{os.getpid()}")
    table = pa.Table.from_pylist([features.encode_example(row) for row in rows], schema=features.arrow_schema)
    pq.write_table(table, aside)
    aside.replace(place)


def load_records(json_file: Path, images: Path, records_per_shard: int = 10_000) -> IterableDataset:
    """
    A LLaVA-style file as a stream of rows that is never read whole. Records that cannot be trained on are left out, but
    images are not looked at: that is up to whoever reads them.

    Raises:
        ValueError: If none can be trained on.
    """
    source = Source(json_file, images)
    check_records(source)
    num_lines = len(source.lines)
    ranges = [(n, min(n + records_per_shard, num_lines)) for n in range(0, num_lines, records_per_shard)]
    return IterableDataset.from_generator(_rows, features=FEATURES, gen_kwargs={"ranges": ranges, "source": source})


def check_records(source: Source) -> None:
    """Raises `ValueError` if no record of a file can be trained on. Reads it up to the first that can."""
    first = None
    for number in range(len(source.lines)):
        try:
            read_record(source.lines[number], number, source.images)
            return
        except Fault as fault:
            first = first or f"none of its {len(source.lines)} records can be; line {number + 1}: {fault}"
    raise ValueError(f"{source.json} has nothing to train on: {first or 'it is empty'}.")


def _rows(ranges: list[tuple[int, int]], source: Source) -> Iterator[dict[str, Any]]:
    for start, end in ranges:
        for number in range(start, end):
            try:
                yield read_record(source.lines[number], number, source.images)[0]
            except Fault as fault:
                logger.warning_once(f"{source.json}, line {number + 1}, is left out: {fault}. There may be more.")
