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

import itertools
import json
import mmap
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm
from transformers.utils import logging

from recipes.rows.appearing import appearing
from recipes.rows.json_files import stamp_of
from recipes.rows.records import BLANK, FEATURES, REGIONS, Fault, LeftOut, read_record
from recipes.rows.survey import VERSION, WHOLE, Report, Shard, Source


logger = logging.get_logger(__name__)

ROWS_PER_GROUP = 1000  # of a parquet file, which are in memory at the same time
NOTE_NAME = "_rows.json"  # tells what the files of a folder are made of; `datasets` leaves it alone
PROGRAM = "recipes/data.py"  # as the note names it
MADE_OF = b"age_vlm_made_of"  # of a parquet file's metadata: the hash of the note that it belongs to


def in_subset(identity: str, share: float, seed: int) -> bool:
    """Whether a row is among the `share` of rows that `seed` picks: by its id alone, wherever the row stands."""
    digest = blake2b(f"{seed} {identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def write(
    report: Report,
    out: Path,
    share: float,
    seed: int,
    rows_per_file: int = 100_000,
    workers: int = 1,
    shard: Shard = WHOLE,
) -> int:
    """
    Writes the rows of a survey as parquet files that `datasets` reads, several at a time. Those that a run which was stopped
    has completed stay, those of other rows go. Of several machines each writes the files of its shard. Returns how many rows
    there are in these.

    Raises:
        ValueError: If the folder holds parquet files that this has not written, or a row is not what it was when it was looked at.
    """
    source, kept, out = report.source, report.kept, Path(out)
    starts = range(0, len(kept), rows_per_file)
    names = [f"train-{n:05d}-of-{len(starts):05d}.parquet" for n in range(len(starts))]
    rows = blake2b(kept.tobytes() + report.repeats_id.tobytes(), digest_size=8).hexdigest()
    asked = {**source.asked, "rows": rows, "subset": share, "seed": seed, "rows_per_file": rows_per_file}
    made_of = start_folder(out, {"program": PROGRAM, **asked})
    features = features_of(source)
    parts = [(names[n], slice(start, start + rows_per_file)) for n, start in enumerate(starts) if n in shard]
    for name, _ in parts:
        for aside in out.glob(f"_{name}.*"):  # of a process that was killed
            aside.unlink(missing_ok=True)
    jobs = [
        (source, kept[part], report.repeats_id[part], out / name, share, seed, features, {MADE_OF: made_of})
        for name, part in parts
        if not (out / name).exists() or made_of_what(out / name) != made_of
    ]
    with (
        ProcessPoolExecutor(workers) as pool,
        tqdm(total=len(parts), initial=len(parts) - len(jobs), unit=" files", desc="writing") as bar,
    ):
        for job in as_completed([pool.submit(write_part, *job) for job in jobs]):
            try:
                job.result()
            except (ValueError, OSError) as error:  # of another process
                pool.shutdown(cancel_futures=True)
                if not isinstance(error, Fault):
                    raise ValueError(f"{out} cannot be written: {error}") from error
                raise ValueError(
                    f"{source.json}, {error}. It was there when the records were looked at: put it back, or remove "
                    f"{source.memory} to look at all of them again."
                ) from error
            bar.update()
    return sum(pq.read_metadata(out / name).num_rows for name, _ in parts)


def check_folder(out: Path, program: str | None = PROGRAM) -> None:
    """
    Raises:
        ValueError: If a folder is none, or holds files of rows that a program has not written.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: `--out` is a folder.")
    files = sorted(out.glob("*.parquet"))
    if files and (not (out / NOTE_NAME).exists() or read_note(out).get("program") != program):
        raise ValueError(f"{out} holds other rows ({files[0].name}): choose another `--out`, or remove the folder.")


def make_folder(out: Path) -> None:
    """Raises `ValueError` if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be a folder ({error.strerror}): choose another `--out`.") from error


def read_note(folder: Path) -> dict[str, Any]:
    """What the files of a folder are made of. Raises `ValueError` if its note is damaged."""
    try:
        return dict(json.loads((folder / NOTE_NAME).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / NOTE_NAME} is damaged ({error}): remove the folder.") from error


def start_folder(out: Path, made_of: dict[str, Any]) -> str:
    """
    Makes the folder, or makes it ready to go on: without the files that are made of something else. Returns a hash of what they
    are made of (which names the `program`).

    Raises:
        ValueError: As [`check_folder`].
    """
    check_folder(out, made_of.get("program"))
    make_folder(out)
    if not (out / NOTE_NAME).exists() or read_note(out) != made_of:
        for file in out.glob("*.parquet"):
            file.unlink(missing_ok=True)
        with appearing(out / NOTE_NAME) as aside:
            aside.write_text(json.dumps(made_of, indent=2) + "\n")
    return digest_of(made_of)


def digest_of(made_of: dict[str, Any]) -> str:
    return blake2b(json.dumps(made_of).encode(), digest_size=8).hexdigest()


def made_of_what(file: Path) -> str | None:
    """The hash of what the rows of a parquet file are made of, if it says so. Raises `ValueError` if it is damaged."""
    try:
        made_of = (pq.read_metadata(file).metadata or {}).get(MADE_OF)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} is no parquet file, or damaged: remove it ({error}).") from error
    return None if made_of is None else made_of.decode()


def check_complete(folder: Path) -> None:
    """
    Raises `ValueError` if the names of the files say that there are more of them, as where the program of their note was stopped,
    or some are made of something else than others. Of files of others, which somebody may want a part of, it warns.
    """
    note = read_note(folder) if (folder / NOTE_NAME).exists() else None
    again = f"run `{(note or {}).get('program', PROGRAM)}` again"
    found: dict[tuple[str, int], set[str]] = {}
    files = list(folder.rglob("*.parquet"))
    for file in files:
        if name := re.fullmatch(r"(.+)-(\d+)-of-(\d+)", file.stem):
            found.setdefault((str(file.with_name(name[1])), int(name[3])), set()).add(name[2])
    for (name, total), numbers in found.items():
        if len(numbers) < total:
            said = f"There are {len(numbers)} of the {total} files {name}-*-of-{total:05d}.parquet"
            if note is not None:
                raise ValueError(f"{said}: {again}, which goes on where it stopped.")
            logger.warning(f"{said}; the rows are those of these.")
    if note is not None and {made_of_what(file) for file in files} - {None} not in (set(), {digest_of(note)}):
        raise ValueError(f"The files of {folder} are of several looks at the records: {again}, on every machine.")


def write_part(
    source: Source,
    numbers: np.ndarray,
    repeats_id: np.ndarray,
    place: Path,
    share: float,
    seed: int,
    features: Features,
    metadata: dict[bytes, str],
) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number, repeats in zip(numbers.tolist(), repeats_id.tolist(), strict=True):
            try:
                row, _ = read_record(source.lines[number], number, source.images)
            except Fault as fault:
                raise Fault(source.place(number), str(fault)) from fault
            if in_subset(row["id"], share, seed):
                yield {**row, "id": f"{row['id']}#{number}" if repeats else row["id"]}

    write_parquet(place, rows(), features, metadata)


def write_parquet(
    place: Path, rows: Iterable[dict[str, Any]], features: Features, metadata: dict[bytes, str] | None = None
) -> None:
    """Writes a file that appears when it is complete, a group of rows at a time, with `metadata` beside `datasets`' own."""
    rows, schema = iter(rows), features.arrow_schema
    schema = schema.with_metadata({**schema.metadata, **(metadata or {})})
    with appearing(place) as aside, pq.ParquetWriter(aside, schema) as writer:
        while group := [features.encode_example(row) for row in itertools.islice(rows, ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


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
    features = features_of(source)
    return IterableDataset.from_generator(_rows, features=features, gen_kwargs={"ranges": ranges, "source": source})


def features_of(source: Source) -> Features:
    """The columns of a file's rows: with regions as soon as one line has some, wherever it stands."""
    with source.lines.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return Features(FEATURES | REGIONS) if content.find(b'"regions"') >= 0 else FEATURES


def check_records(source: Source) -> None:
    """Raises `ValueError` if no record of a file can be trained on. Reads it up to the first that can."""
    first = None
    for number in range(len(source.lines)):
        try:
            read_record(source.lines[number], number, source.images)
            return
        except Fault as fault:
            if fault.kind != BLANK:
                first = first or f"none of its {len(source.lines)} records can be; {source.place(number)}: {fault}"
    raise ValueError(f"{source.json} has nothing to train on: {first or 'it is empty'}.")


def _rows(ranges: list[tuple[int, int]], source: Source) -> Iterator[dict[str, Any]]:
    left_out = LeftOut(str(source.json))
    for start, end in ranges:
        for number in range(start, end):
            try:
                yield read_record(source.lines[number], number, source.images)[0]
            except Fault as fault:
                if fault.kind != BLANK:
                    left_out.add(source.place(number), fault)
    left_out.say()


def generated(
    rows: Callable[..., Iterator[dict[str, Any]]], features: Features, settings: dict[str, Any], made_of: Any
) -> Dataset:
    """
    The rows of a generator, written once to the cache of `datasets` for what they are made of.

    Raises:
        ValueError: With what it raises as such; `datasets` would wrap it up.
    """
    try:
        return Dataset.from_generator(
            rows,
            features=features,
            gen_kwargs=settings,
            fingerprint=blake2b(repr([VERSION, made_of]).encode(), digest_size=8).hexdigest(),
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise ValueError(str(error.__cause__)) from error
        raise


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
    source, num_faults, first = Source(json_file, images), 0, ""
    numbers = [number for number in range(len(source.lines)) if source.lines[number].strip()]
    kept = []
    for number in tqdm(numbers, unit=" rows", desc=f"reading {json_file.name}", mininterval=1, delay=2):
        try:
            read_record(source.lines[number], number, images)
        except Fault as fault:
            num_faults, first = num_faults + 1, first or f"{source.place(number)}: {fault}"
        else:
            kept.append(number)
    said = f"{num_faults} of the {len(numbers)} records of {json_file} cannot be trained on (pictures are looked for in {images})"
    if num_faults and (not kept or not skip_broken):
        raise ValueError(f"{said}; the first, {first.rstrip('.')}. Mend or remove them, or set `--broken_rows skip`.")
    if not kept:
        raise ValueError(f"{json_file} has no records.")
    if num_faults:
        logger.warning(f"{said} and are left out; the first, {first}")
    settings = {"json_file": json_file, "images": images, "kept": kept}
    stamp = stamp_of(source.lines.path)
    return generated(_kept_rows, features_of(source), settings, [json_file.resolve(), images.resolve(), stamp, kept])


def _kept_rows(json_file: Path, images: Path, kept: list[int]) -> Iterator[dict[str, Any]]:
    source = Source(json_file, images)
    for number in kept:
        try:
            yield read_record(source.lines[number], number, images)[0]
        except Fault as fault:  # since it was looked at
            raise ValueError(f"{json_file}, {source.place(number)}: {fault}") from fault
