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
"""Makes the masks of a data set, file by file."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from recipes.rows.appearing import appearing
from recipes.rows.files import make_folder, write_parquet
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.florence import Locator
from recipes.segmentation.grounding_dino import BoxLocator
from recipes.segmentation.queries import Finding, Prepared, prepare
from recipes.segmentation.regions import MADE_REGION, make_region
from recipes.segmentation.sam import RawMasks, Segmenter
from recipes.segmentation.sam3 import ConceptLocator


SETTINGS_NAME = "masks.json"
STATE = "state"  # of the data set, in the note
KEYS = b"rows"  # in a file's metadata: what its rows are made of


Place = tuple[int, int]  # of a row in its batch, and of a picture in its row


class MaskMaker:
    """The networks, Florence-2 and SAM or SAM 3 alone, and what lies before, between and behind them."""

    def __init__(
        self,
        arguments: MaskArguments,
        locator: Locator | BoxLocator | ConceptLocator,
        segmenter: Segmenter | None = None,
    ) -> None:
        self.arguments, self.locator, self.segmenter = arguments, locator, segmenter

    def __call__(self, rows: list[Prepared]) -> list[dict[str, Any]]:
        """The rows with `regions`, and with `mask_problems`: why something has none."""
        return self.finish(rows, *self.run_networks(rows))

    def run_networks(self, rows: list[Prepared]) -> tuple[list[list[Finding]], dict[Place, RawMasks]]:
        """
        What Florence-2 finds in each row, and SAM's masks of all instances in a picture. A row that the networks fail on gets
        a `failure`, and the rows beside it get theirs without it.
        """
        try:
            return self.run_batch(rows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # texts and pictures are a stranger's, and the networks' code is others'
            if len(rows) == 1:
                rows[0].failure = short(error)
                return [[]], {}
        findings, raw = [], {}
        for n, row in enumerate(rows):
            (found,), masks = self.run_networks([row])
            findings.append(found)
            raw |= {(n, image): mask for (_, image), mask in masks.items()}
        return findings, raw

    def run_batch(self, rows: list[Prepared]) -> tuple[list[list[Finding]], dict[Place, RawMasks]]:
        """The same of rows that the networks do not fail on. Each picture is encoded once."""
        findings: list[list[Finding]] = [[] for _ in rows]
        queries = [(n, query) for n, row in enumerate(rows) for query in row.queries]
        for batch in batched(queries, self.arguments.batch_size):
            pictures = [rows[n].pictures[query.image] for n, query in batch]
            written = self.locator.generate([query.text for _, query in batch], pictures)
            for (n, query), text, picture in zip(batch, written, pictures, strict=True):
                findings[n] += self.locator.read(query, text, picture) or [Finding(query, [])]
        boxes: dict[Place, list[tuple]] = {}
        for n, row_findings in enumerate(findings):
            for finding in row_findings:
                drawn = [instance.box for instance in finding.instances if instance.code is None]
                if drawn:
                    boxes.setdefault((n, finding.query.image), []).extend(drawn)
        raw = {}
        for batch in batched(list(boxes), self.arguments.batch_size):
            pictures = [rows[n].pictures[image] for n, image in batch]
            for place, encoded in zip(batch, self.segmenter.encode(pictures), strict=True):
                raw[place] = self.segmenter.prompt(encoded, boxes[place])
        return findings, raw

    def finish(
        self, rows: list[Prepared], findings: list[list[Finding]], raw: dict[Place, RawMasks]
    ) -> list[dict[str, Any]]:
        """From the networks' output to the rows with their regions."""
        masks = {place: self.segmenter.masks(found) for place, found in raw.items()}
        results = []
        for n, (row, row_findings) in enumerate(zip(rows, findings, strict=True)):
            regions = [{**region, "score": None, "outlines_kept": 0} for region in row.nowhere]
            problems = [] if row.failure is None else [f"failed: {row.failure}"]
            try:
                for finding in row_findings:
                    if not finding.instances:
                        problems.append("empty")
                        continue
                    of_instances = [
                        next(masks[n, finding.query.image]) if instance.code is None else (None, instance.score)
                        for instance in finding.instances
                    ]
                    picture = row.pictures[finding.query.image]
                    size = picture.height, picture.width
                    region, problem = make_region(finding, of_instances, size, self.arguments)
                    if problem is None:
                        regions.append(region)
                    else:
                        problems.append(problem)
            except Exception as error:
                problems.append(f"failed: {short(error)}")
            results.append({**row.row, "regions": regions, "mask_problems": problems})
        return results


def short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def batched(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def file_names(num_rows: int, rows_per_file: int) -> dict[str, range]:
    """Which rows each file holds."""
    starts = range(0, num_rows, rows_per_file)
    return {
        f"train-{n:05d}.parquet": range(start, min(start + rows_per_file, num_rows)) for n, start in enumerate(starts)
    }


def start_folder(out: Path, settings: dict[str, Any]) -> None:
    """
    Makes the folder, or makes it ready to go on.

    Raises:
        ValueError: If other masks are in it.
    """
    make_folder(out)
    note = out / SETTINGS_NAME
    before = json.loads(note.read_text()) if note.exists() else settings
    different = sorted(name for name in (settings | before).keys() - {STATE} if settings.get(name) != before.get(name))
    if different:
        raise ValueError(
            f"{out} holds masks made with another {', '.join(different)}. Choose another `--out`, or remove the folder."
        )
    write_note(out, before)
    for file in out.glob("_*.*.*"):  # of a process that was killed
        file.unlink()


def write_note(out: Path, note: dict[str, Any]) -> None:
    """Writes what a folder's masks are made of and by."""
    with appearing(out / SETTINGS_NAME) as aside:
        aside.write_text(json.dumps(note, indent=2) + "\n")


def row_key(row: dict[str, Any]) -> int:
    """Names a row by all that its masks are made of, and by its id: of a picture by its path also the file's size."""
    digest = blake2b(digest_size=8)
    for image in row["images"] or []:
        path = str(image.get("path"))
        if image.get("bytes") is None and os.path.isfile(path):
            path += f"\0{os.path.getsize(path)}"
        digest.update((image.get("bytes") or path.encode(errors="surrogateescape")) + b"\0")
    nowhere = [region for region in row.get("regions") or [] if not isinstance(region, dict) or not region.get("mask")]
    digest.update(json.dumps([row.get("id"), row["messages"], nowhere]).encode())
    return int.from_bytes(digest.digest())


def has_failed(row: dict[str, Any]) -> bool:
    """Whether the networks failed on a row, which may be another time's luck."""
    return any(problem.startswith("failed: ") for problem in row["mask_problems"])


def keys_of(file: Path) -> list[int | None]:
    """Those of the rows that a file holds, None for rows that the networks failed on."""
    return json.loads((pq.read_metadata(file).metadata or {}).get(KEYS, b"[]"))


class Done:
    """In which files the rows stand, by their keys: 12 bytes a row, for there may be millions."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        parts = [np.array([key for key in keys_of(file) if key is not None], dtype=np.uint64) for file in self.files]
        keys = np.concatenate([np.zeros(0, np.uint64), *parts])
        order = np.argsort(keys)
        self.keys = keys[order]
        self.numbers = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])[order]

    def files_of(self, keys: Sequence[int]) -> list[Path]:
        """The files that hold rows of these keys."""
        sought = np.array(keys, dtype=np.uint64)
        first, end = (np.searchsorted(self.keys, sought, side) for side in ("left", "right"))
        return [self.files[number] for number in np.unique(self.numbers[first[first < end]])]


def make_masks(rows: Dataset, maker: MaskMaker, out: Path, state: PartialState) -> None:
    """
    Writes the files of the rows, in turns with the other processes. Rows that any file holds already keep the masks that they
    have: of a data set that has grown or changed, only what is new is made, and rows that the networks failed on. The files of
    another state of the data set stay until all of the new are there.

    Raises:
        ValueError: If the networks fail on all of the rows, or of the first files'.
    """
    arguments = maker.arguments
    features = Features({**rows.features, "regions": List(MADE_REGION), "mask_problems": List(Value("string"))})
    files = file_names(len(rows), arguments.rows_per_file)
    note = json.loads((out / SETTINGS_NAME).read_text())
    # Beside the files of another state under names that no loader reads, so that none is lost whose rows are still to be taken.
    before = note.get(STATE, rows._fingerprint)
    prefix = "" if before == rows._fingerprint else f".{rows._fingerprint}-"
    done = Done(sorted(out.glob("*train-*.parquet")))
    state.wait_for_everyone()  # all have to see the same ones
    if state.is_main_process:
        write_note(out, note | {STATE: before})
    own, good, failures = list(files.items())[state.process_index :: state.num_processes], 0, []
    with tqdm(
        total=sum(len(part) for _, part in own),
        desc=f"masks, process 1 of {state.num_processes}",
        unit=" rows",
        disable=not state.is_main_process,
    ) as bar:
        for name, part in own:
            keys = [row_key(rows[n]) for n in part]
            if any(file.exists() and keys_of(file) == keys for file in (out / name, out / f"{prefix}{name}")):
                bar.update(len(part))
                good += len(part)
                continue
            made = made_before(keys, done)
            bar.update(len(made))
            missing = [n for n, key in zip(part, keys, strict=True) if key not in made]
            loader = DataLoader(
                Preparing(rows, missing, arguments.query),
                batch_size=arguments.batch_size,
                num_workers=min(arguments.num_workers, len(missing)),
                collate_fn=list,
            )
            with ThreadPoolExecutor(1) as finisher:  # while the networks have the next batch
                jobs = []
                for batch in loader:
                    jobs.append(finisher.submit(maker.finish, batch, *maker.run_networks(batch)))
                    bar.update(len(batch))
            found = [row for job in jobs for row in job.result()]
            failures += [row["mask_problems"][0] for row in found if has_failed(row)]
            good += len(part) - sum(map(has_failed, found))
            if not good and len(failures) >= 100:
                break
            made |= {row_key(rows[n]): row for n, row in zip(missing, found, strict=True)}
            written = [None if has_failed(made[key]) else key for key in keys]
            write_parquet(out / f"{prefix}{name}", [made[key] for key in keys], features, {KEYS: json.dumps(written)})
    if failures and not good:
        raise ValueError(f"None of {len(failures)} rows can be given masks; the first, {failures[0]}.")
    state.wait_for_everyone()
    if state.is_main_process:
        for name in files:
            if (out / f"{prefix}{name}").exists():
                (out / f"{prefix}{name}").replace(out / name)
        for file in out.glob("*train-*.parquet"):
            if file.name not in files:
                file.unlink()
        write_note(out, note | {STATE: rows._fingerprint})


def made_before(keys: list[int], done: Done) -> dict[int, dict[str, Any]]:
    """The rows of these keys that files hold, with their masks."""
    made, sought = {}, set(keys)
    for file in done.files_of(keys):
        table = pq.read_table(file)  # which another process may put anew meanwhile, with its keys
        its_keys = json.loads(table.schema.metadata[KEYS])
        made |= {key: row for key, row in zip(its_keys, table.to_pylist(), strict=True) if key in sought}
    return made


@dataclass
class Preparing:
    """Rows that are prepared when they are asked for, by the workers of a data loader."""

    rows: Dataset
    part: Sequence[int]
    query: str

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, n: int) -> Prepared:
        return prepare(self.rows[self.part[n]], self.query)


def summary(out: Path) -> str:
    """A table of what the files in a folder hold."""
    num_rows, num_masked, num_masks, kept, nowhere, problems, first = 0, 0, 0, 0, 0, Counter(), {}
    for file in sorted(out.glob("train-*.parquet")):
        columns = [name for name in ("id", "regions", "mask_problems") if name in pq.read_schema(file).names]
        for row in pq.read_table(file, columns=columns).to_pylist():
            num_rows += 1
            masked = [region for region in row["regions"] if region["mask"] is not None]
            num_masked += bool(masked)
            num_masks += len(masked)
            nowhere += len(row["regions"]) - len(masked)
            kept += sum(region["outlines_kept"] > 0 for region in masked)
            for problem in row["mask_problems"]:
                kind, _, detail = problem.partition(": ")
                kind = f"{kind}: {detail.partition(':')[0]}" if detail else kind
                problems[kind] += 1
                first.setdefault(kind, f"   {row['id']}: {detail}" if detail and "id" in row else "")
    lines = [f"{num_rows:>12,} rows", f"{num_masked:>12,} with masks", f"{num_masks:>12,} masks"]
    lines += [f"{kept:>12,} of them with an outline of Florence-2 that SAM's mask disagreed with"]
    lines += [f"{nowhere:>12,} names of what is nowhere in its picture, without a mask"]
    lines += [f"{n:>12,} {problem}{first[problem]}" for problem, n in problems.most_common()]
    return "\n".join(lines)
