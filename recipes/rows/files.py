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
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset
from tqdm.auto import tqdm
from transformers.utils import logging

from recipes.rows.records import FEATURES, REGIONS, Fault, read_record
from recipes.rows.survey import VERSION, Source


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
    features = features_of(source, kept.tolist())
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
        write_parquet(place, rows, features)
    return num_rows


def write_parquet(place: Path, rows: list[dict[str, Any]], features: Features) -> None:
    """Writes a file that appears when it is complete."""
    aside = place.with_name(f"_{place.name}.{os.getpid()}")
    table = pa.Table.from_pylist([features.encode_example(row) for row in rows], schema=features.arrow_schema)
    pq.write_table(table, aside)
    aside.replace(place)


def load_records(json_file: Path, images: Path, records_per_shard: int = 10_000) -> IterableDataset:
    """
    A JSON or JSONL file as a stream of rows that is never read whole. Records that cannot be trained on are left out, but
    images are not looked at: that is up to whoever reads them.

    Raises:
        ValueError: If none can be trained on.
    """
    source = Source(json_file, images)
    check_records(source)
    num_lines = len(source.lines)
    ranges = [(n, min(n + records_per_shard, num_lines)) for n in range(0, num_lines, records_per_shard)]
    features = features_of(source, range(num_lines))
    return IterableDataset.from_generator(_rows, features=features, gen_kwargs={"ranges": ranges, "source": source})


def features_of(source: Source, numbers: Iterable[int]) -> Features:
    """The columns of a file's lines: with regions as soon as one line has some, wherever it stands."""
    has_regions = any(b'"regions"' in source.lines[number] for number in numbers)
    return Features(FEATURES | REGIONS) if has_regions else FEATURES


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


def read_records(json_file: Path, images: Path, skip_broken: bool = False) -> Dataset:
    """
    The rows of a JSON or JSONL file, written once to the cache of `datasets`.

    Args:
        json_file (`Path`): The file.
        images (`Path`): The folder that its image paths start from.
        skip_broken (`bool`, *optional*, defaults to `False`): Whether records that cannot be trained on are left out.

    Raises:
        ValueError: If there are such records, or none that can be trained on.
    """
    source, faults = Source(json_file, images), []
    numbers = [number for number in range(len(source.lines)) if source.lines[number].strip()]
    kept = []
    for number in tqdm(numbers, unit=" rows", desc=f"reading {json_file.name}", mininterval=1, delay=2):
        try:
            read_record(source.lines[number], number, images)
        except Fault as fault:
            faults.append(f"line {number + 1}: {fault}")
        else:
            kept.append(number)
    said = f"{len(faults)} of the {len(numbers)} records of {json_file} cannot be trained on (pictures are looked for in {images})"
    if faults and (not kept or not skip_broken):
        raise ValueError(
            f"{said}; the first, {faults[0].rstrip('.')}. Mend or remove them, or set `--broken_rows skip`."
        )
    if not kept:
        raise ValueError(f"{json_file} has no records.")
    if faults:
        logger.warning(f"{said} and are left out; the first, {faults[0]}")
    stamp = source.lines.path.stat()
    asked = [str(json_file.resolve()), str(images.resolve()), stamp.st_mtime_ns, stamp.st_size, kept, VERSION]
    return Dataset.from_generator(
        _kept_rows,
        features=features_of(source, kept),
        gen_kwargs={"json_file": json_file, "images": images, "kept": kept},
        fingerprint=blake2b(repr(asked).encode(), digest_size=8).hexdigest(),
    )


def _kept_rows(json_file: Path, images: Path, kept: list[int]) -> Iterator[dict[str, Any]]:
    lines = Source(json_file, images).lines
    for number in kept:
        yield read_record(lines[number], number, images)[0]
