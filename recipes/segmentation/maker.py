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
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from recipes.rows.files import write_parquet
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.florence import Locator
from recipes.segmentation.queries import Finding, Prepared, prepare
from recipes.segmentation.regions import MADE_REGION, make_region
from recipes.segmentation.sam import RawMasks, Segmenter


SETTINGS_NAME = "masks.json"


Place = tuple[int, int]  # of a row in its batch, and of a picture in its row


class MaskMaker:
    """Both networks, and what lies before, between and behind them."""

    def __init__(self, arguments: MaskArguments, locator: Locator, segmenter: Segmenter) -> None:
        self.arguments, self.locator, self.segmenter = arguments, locator, segmenter

    def __call__(self, rows: list[Prepared]) -> list[dict[str, Any]]:
        """The rows with `regions`, and with `mask_problems`: why something has none."""
        return self.finish(rows, *self.run_networks(rows))

    def run_networks(self, rows: list[Prepared]) -> tuple[list[list[Finding]], dict[Place, RawMasks]]:
        """What Florence-2 finds in each row, and SAM's masks of all instances in a picture. Each is encoded once."""
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
                if finding.instances:
                    boxes.setdefault((n, finding.query.image), []).extend(i.box for i in finding.instances)
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
        results, masks = [], {place: self.segmenter.masks(found) for place, found in raw.items()}
        for n, (row, row_findings) in enumerate(zip(rows, findings, strict=True)):
            regions = [{**region, "score": None, "outlines_kept": 0} for region in row.nowhere]
            problems = [] if row.failure is None else [f"failed: {row.failure}"]
            for finding in row_findings:
                if not finding.instances:
                    problems.append("empty")
                    continue
                of_instances = [next(masks[n, finding.query.image]) for _ in finding.instances]
                picture = row.pictures[finding.query.image]
                region, problem = make_region(finding, of_instances, (picture.height, picture.width), self.arguments)
                if problem is None:
                    regions.append(region)
                else:
                    problems.append(problem)
            results.append({**row.row, "regions": regions, "mask_problems": problems})
        return results


def batched(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def file_names(num_rows: int, rows_per_file: int) -> dict[str, range]:
    """Which rows each file holds."""
    starts = range(0, num_rows, rows_per_file)
    return {
        f"train-{n:05d}-of-{len(starts):05d}.parquet": range(start, min(start + rows_per_file, num_rows))
        for n, start in enumerate(starts)
    }


def start_folder(out: Path, settings: dict[str, Any]) -> None:
    """
    Makes the folder, or makes it ready to go on.

    Raises:
        ValueError: If other masks are in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    note = out / SETTINGS_NAME
    before = json.loads(note.read_text()) if note.exists() else settings
    different = sorted(name for name in settings | before if settings.get(name) != before.get(name))
    if different:
        raise ValueError(
            f"{out} holds masks made with another {', '.join(different)}. Choose another `--out`, or remove the folder."
        )
    note.write_text(json.dumps(settings, indent=2) + "\n")
    for file in out.glob("_*.parquet.*"):  # of a process that was killed
        file.unlink()


def make_masks(rows: Dataset, maker: MaskMaker, out: Path, state: PartialState) -> None:
    """Writes those files that are not there yet, in turns with the other processes."""
    arguments = maker.arguments
    features = Features({**rows.features, "regions": List(MADE_REGION), "mask_problems": List(Value("string"))})
    missing = [(name, part) for name, part in file_names(len(rows), arguments.rows_per_file).items()]
    missing = [(name, part) for name, part in missing if not (out / name).exists()]
    state.wait_for_everyone()  # all have to see the same ones missing
    own = missing[state.process_index :: state.num_processes]
    with tqdm(
        total=sum(len(part) for _, part in own),
        desc=f"masks, process 1 of {state.num_processes}",
        unit=" rows",
        disable=not state.is_main_process,
    ) as bar:
        for name, part in own:
            loader = DataLoader(
                Preparing(rows, part, arguments.query),
                batch_size=arguments.batch_size,
                num_workers=min(arguments.num_workers, len(part)),
                collate_fn=list,
            )
            with ThreadPoolExecutor(1) as finisher:  # while the networks have the next batch
                jobs = []
                for batch in loader:
                    jobs.append(finisher.submit(maker.finish, batch, *maker.run_networks(batch)))
                    bar.update(len(batch))
            write_parquet(out / name, [row for job in jobs for row in job.result()], features)


@dataclass
class Preparing:
    """Rows that are prepared when they are asked for, by the workers of a data loader."""

    rows: Dataset
    part: range
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
