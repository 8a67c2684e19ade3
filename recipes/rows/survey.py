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
"""A look at every record and image of a file, remembered beside it."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from recipes.rows.images import check_image, read_hashes
from recipes.rows.json_files import Lines, as_lines
from recipes.rows.records import Fault, content_hash, read_record


VERSION = 2  # of what is remembered of a file


@dataclass(frozen=True)
class Source:
    """A JSON or JSONL file, its folder of images, and what is asked of them."""

    json: Path
    images: Path
    max_pixels: int = 2 * PIL.Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses
    drop_hashes: Path | None = None
    tokenizer: str | None = None

    @cached_property
    def lines(self) -> Lines:
        return Lines(as_lines(self.json))

    @cached_property
    def dropped(self) -> np.ndarray | None:
        return None if self.drop_hashes is None else read_hashes(self.drop_hashes)

    @cached_property
    def encoder(self):
        if self.tokenizer is None:
            return None
        from modeling_agevlm.conversion import loading  # brings timm, which only this needs

        with loading(self.tokenizer, "`--tokenizer` is the folder or Hub id of a checkpoint."):
            return AutoTokenizer.from_pretrained(self.tokenizer)

    def length(self, row: dict[str, Any]) -> int:
        """Of the row's words: in tokens if there is a tokenizer, otherwise in characters."""
        words = [part["text"] for message in row["messages"] for part in message["content"] if part["text"]]
        if self.encoder is None:
            return sum(map(len, words))
        return sum(map(len, self.encoder(words, add_special_tokens=False)["input_ids"]))

    def look(self, number: int) -> "Seen":
        """What can be said of one line alone."""
        try:
            row, mended = read_record(self.lines[number], number, self.images)
            for image in row["images"]:
                mended += check_image(image["path"], self.max_pixels, self.dropped)
        except Fault as fault:
            return Seen(fault=fault.kind, detail=str(fault))
        return Seen(content_hash(row), len(row["images"]), self.length(row), mended)

    @property
    def memory(self) -> Path:
        """Where what was seen is kept: another folder as soon as anything that it depends on changes."""
        stamps = [file.stat().st_mtime_ns for file in (self.json, self.drop_hashes) if file is not None]
        asked = [str(self.images.resolve()), self.max_pixels, self.tokenizer, VERSION, stamps]
        key = blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()
        return self.json.with_name(f"{self.json.name}.seen") / key


class Seen(NamedTuple):
    """One line of the file."""

    content: int = 0  # hash of images and words
    num_images: int = 0
    length: int = 0
    mended: Sequence[str] = ()
    fault: str | None = None
    detail: str = ""


@dataclass
class Report:
    """What a file holds."""

    kept: np.ndarray  # numbers of the lines to train on
    num_lines: int
    images_per_row: Counter
    lengths: np.ndarray  # of the kept rows
    mended: Counter
    faults: Counter
    first: dict[str, tuple[int, str]]  # of each fault, its first line and what was wrong with it
    unit: str = "characters"

    def __str__(self) -> str:
        unit, lengths = self.unit, self.lengths
        lines = [f"{self.num_lines:>12,} records", f"{len(self.kept):>12,} rows to train on"]
        lines += [f"{self.images_per_row[0]:>12,} of them text only"]
        lines += [f"{n:>12,} with {k} image{'s' * (k > 1)}" for k, n in sorted(self.images_per_row.items()) if k]
        if len(lengths):
            quantiles = ", ".join(f"{int(q):,}" for q in np.quantile(lengths, (0.5, 0.9, 0.99, 1)))
            lines.append(f"length of a row in {unit}, median, 90 %, 99 %, longest: {quantiles}")
        for title, counts in (("mended or unusual", self.mended), ("left out", self.faults)):
            if counts:
                lines.append(f"{title}:")
            for kind, n in counts.most_common():
                example = f"   line {self.first[kind][0] + 1}: {self.first[kind][1]}" if kind in self.first else ""
                lines.append(f"{n:>12,} {kind}{example}")
        return "\n".join(lines)


_source: Source  # of a worker process


def start_worker(source: Source) -> None:
    global _source
    _source = source


def look_at(numbers: list[int]) -> list[Seen]:
    return [_source.look(number) for number in numbers]


def survey(source: Source, workers: int = 1, strict: bool = False, piece_size: int = 20_000) -> Report:
    """
    Looks at every record and every image. What was seen of each `piece_size` lines is kept, so that a survey that was
    stopped goes on there. What was at fault is looked at again.

    Args:
        source ([`Source`]): The data set.
        workers (`int`, *optional*, defaults to 1): Processes that look.
        strict (`bool`, *optional*, defaults to `False`): Whether the first fault ends it.
        piece_size (`int`, *optional*, defaults to 20000): Lines that a kept piece holds.

    Raises:
        ValueError: With `strict`, for the first record that cannot be trained on.
    """
    num_lines = len(source.lines)
    _ = source.dropped, source.encoder  # what is wrong with them is said here, not by a worker
    source.memory.mkdir(parents=True, exist_ok=True)
    pieces = [range(start, min(start + piece_size, num_lines)) for start in range(0, num_lines, piece_size)]
    contents, lengths, faulty = np.zeros(num_lines, np.uint64), np.zeros(num_lines, np.int64), np.ones(num_lines, bool)
    num_images = np.zeros(num_lines, np.int32)
    mended, faults, first = Counter(), Counter(), {}

    def fail(number: int, kind: str, detail: str) -> None:
        if strict:
            raise ValueError(
                f"{source.json}, line {number + 1}: {detail}. Mend or remove the record, or leave `--strict` out."
            )
        faults[kind] += 1
        first.setdefault(kind, (number, detail))

    with (
        ProcessPoolExecutor(workers, initializer=start_worker, initargs=(source,)) as pool,
        tqdm(total=num_lines, unit=" rows", desc="looking", mininterval=1) as bar,
    ):
        for piece in pieces:
            kept = source.memory / f"{piece.start}-{piece.stop}.json"
            seen = {}
            if kept.exists():
                seen = dict(zip(piece, (Seen(*values) for values in json.loads(kept.read_text())), strict=True))
                seen = {n: s for n, s in seen.items() if s.fault is None}  # an image may be there by now
                bar.update(len(seen))
            unseen = [number for number in piece if number not in seen]
            chunks = [unseen[start : start + 64] for start in range(0, len(unseen), 64)]
            for chunk, found in zip(chunks, pool.map(look_at, chunks), strict=True):
                seen |= zip(chunk, found, strict=True)
                bar.update(len(found))
            seen = [seen[number] for number in piece]
            if unseen:
                aside = kept.with_suffix(f".{os.getpid()}")
                aside.write_text(json.dumps(seen))
                aside.replace(kept)
            for number, (content, images, length, changes, fault, detail) in zip(piece, seen, strict=True):
                if fault is not None:
                    fail(number, fault, detail)
                    continue
                faulty[number], contents[number], num_images[number], lengths[number] = False, content, images, length
                mended.update(set(changes))
    numbers = np.flatnonzero(~faulty)
    _, firsts, groups = np.unique(contents[numbers], return_index=True, return_inverse=True)
    is_first = np.zeros(len(numbers), dtype=bool)
    is_first[firsts] = True
    for position in np.flatnonzero(~is_first):
        fail(int(numbers[position]), "repeats another record", f"repeats line {numbers[firsts[groups[position]]] + 1}")
    kept = numbers[is_first]
    return Report(
        kept=kept,
        num_lines=num_lines,
        images_per_row=Counter(num_images[kept].tolist()),
        lengths=lengths[kept],
        mended=mended,
        faults=faults,
        first=first,
        unit="characters" if source.tokenizer is None else "tokens",
    )
