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
import shutil
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

from recipes.rows.appearing import appearing
from recipes.rows.images import check_image, read_hashes
from recipes.rows.json_files import Lines, as_lines, keeping_folder, stamp_of
from recipes.rows.records import BLANK, Fault, content_hash, hashed, read_record


VERSION = 4  # of what is remembered of a file


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
        return Seen(content_hash(row), hashed(row["id"]), len(row["images"]), self.length(row), mended)

    def place(self, number: int) -> str:
        """What people know a record by: its line, or its place in a list."""
        return f"{'line' if self.lines.path == self.json else 'record'} {number + 1}"

    @property
    def asked(self) -> dict[str, Any]:
        """All that what is seen depends on, but for the pictures themselves."""
        files = {"json": self.json, "drop_hashes": self.drop_hashes}
        stamps = {name: file and f"{file.resolve()} {stamp_of(file)}" for name, file in files.items()}
        others = {"images": str(self.images.resolve()), "max_pixels": self.max_pixels, "tokenizer": self.tokenizer}
        return {"version": VERSION, **stamps, **others}

    @property
    def memory(self) -> Path:
        """Where what was seen is kept: another folder as soon as anything that it depends on changes."""
        key = blake2b(json.dumps(self.asked).encode(), digest_size=8).hexdigest()
        return self.memories / f"{self.content}-{key}"

    @property
    def memories(self) -> Path:
        return keeping_folder(self.json) / f"{self.json.name}.seen"

    @property
    def content(self) -> str:
        return f"{VERSION}-{stamp_of(self.json)}"

    def forget_others(self) -> None:
        """Removes what was seen of earlier contents of the file."""
        for other in self.memories.glob("*"):
            if not other.name.startswith(f"{self.content}-"):
                shutil.rmtree(other, ignore_errors=True)


class Seen(NamedTuple):
    """One line of the file."""

    content: int = 0  # hash of images and words
    identity: int = 0  # hash of the id
    num_images: int = 0
    length: int = 0
    mended: Sequence[str] = ()
    fault: str | None = None
    detail: str = ""


@dataclass
class Report:
    """What a file holds."""

    source: Source
    kept: np.ndarray  # numbers of the lines to train on
    repeats_id: np.ndarray  # whether one of them has the id of an earlier one, which masks find their rows by
    num_records: int
    images_per_row: Counter
    lengths: np.ndarray  # of the kept rows
    mended: Counter
    faults: Counter
    first: dict[str, tuple[int, str]]  # of each fault, its first line and what was wrong with it
    unit: str = "characters"

    def __str__(self) -> str:
        unit, lengths = self.unit, self.lengths
        lines = [f"{self.num_records:>12,} records", f"{len(self.kept):>12,} rows to train on"]
        lines += [f"{self.images_per_row[0]:>12,} of them text only"]
        lines += [f"{n:>12,} with {k} image{'s' * (k > 1)}" for k, n in sorted(self.images_per_row.items()) if k]
        if len(lengths):
            quantiles = ", ".join(f"{int(q):,}" for q in np.quantile(lengths, (0.5, 0.9, 0.99, 1)))
            lines.append(f"length of a row in {unit}, median, 90 %, 99 %, longest: {quantiles}")
        for title, counts in (("mended or unusual", self.mended), ("left out", self.faults)):
            if counts:
                lines.append(f"{title}:")
            for kind, n in counts.most_common():
                number, detail = self.first.get(kind, (None, ""))
                example = "" if number is None else f"   {self.source.place(number)}: {detail}"
                lines.append(f"{n:>12,} {kind}{example}")
        return "\n".join(lines)


class Shard(NamedTuple):
    """One of several shares of numbered things, which machines take in turns."""

    index: int
    total: int

    @classmethod
    def of(cls, text: str) -> "Shard":
        """Raises `ValueError` unless the text is "3/8", as people count."""
        index, _, total = text.partition("/")
        if not (index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total)):
            raise ValueError(f"A shard is written as 1/8 to 8/8, not {text!r}.")
        return cls(int(index) - 1, int(total))

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and number % self.total == self.index


WHOLE = Shard(0, 1)


def firsts(values: np.ndarray) -> np.ndarray:
    """Where each value stands first."""
    _, places, groups = np.unique(values, return_index=True, return_inverse=True)
    return places[groups]


_source: Source  # of a worker process


def start_worker(source: Source) -> None:
    global _source
    _source = source


def look_at(numbers: list[int]) -> list[Seen]:
    return [_source.look(number) for number in numbers]


def survey(
    source: Source, workers: int = 1, strict: bool = False, shard: Shard = WHOLE, piece_size: int = 20_000
) -> Report | None:
    """
    Looks at every record and every image. What was seen of each `piece_size` lines is kept, so that a survey that was
    stopped goes on there. What was at fault is looked at again.

    Of several machines each looks at the pieces of its shard, once: all have to see the same. The report is of all of them, and
    none while some are missing.

    Args:
        source ([`Source`]): The data set.
        workers (`int`, *optional*, defaults to 1): Processes that look.
        strict (`bool`, *optional*, defaults to `False`): Whether the first fault ends it.
        shard ([`Shard`], *optional*): Which pieces to look at.
        piece_size (`int`, *optional*, defaults to 20000): Lines that a kept piece holds.

    Raises:
        ValueError: With `strict`, for the first record that cannot be trained on.
    """
    num_lines = len(source.lines)
    _ = source.dropped, source.encoder  # what is wrong with them is said here, not by a worker
    source.forget_others()
    source.memory.mkdir(parents=True, exist_ok=True)
    pieces = [range(start, min(start + piece_size, num_lines)) for start in range(0, num_lines, piece_size)]
    contents, identities = np.zeros(num_lines, np.uint64), np.zeros(num_lines, np.uint64)
    lengths, num_images = np.zeros(num_lines, np.int64), np.zeros(num_lines, np.int32)
    faulty, num_blank, num_missing = np.ones(num_lines, bool), 0, 0
    mended, faults, first = Counter(), Counter(), {}

    def fail(number: int, kind: str, detail: str) -> None:
        if strict:
            raise ValueError(
                f"{source.json}, {source.place(number)}: {detail}. Mend or remove the record, or leave `--strict` out."
            )
        faults[kind] += 1
        first.setdefault(kind, (number, detail))

    with (
        ProcessPoolExecutor(workers, initializer=start_worker, initargs=(source,)) as pool,
        tqdm(total=num_lines, unit=" rows", desc="looking", mininterval=1) as bar,
    ):
        for n, piece in enumerate(pieces):
            kept = source.memory / f"{piece.start}-{piece.stop}.json"
            seen = {}
            if kept.exists():
                seen = dict(zip(piece, (Seen(*values) for values in json.loads(kept.read_text())), strict=True))
                if shard == WHOLE:  # an image may be there by now
                    seen = {number: one for number, one in seen.items() if one.fault in (None, BLANK)}
                bar.update(len(seen))
            elif n not in shard:
                num_missing += 1
                continue
            unseen = [number for number in piece if number not in seen]
            chunks = [unseen[start : start + 64] for start in range(0, len(unseen), 64)]
            for chunk, found in zip(chunks, pool.map(look_at, chunks), strict=True):
                seen |= zip(chunk, found, strict=True)
                bar.update(len(found))
            seen = [seen[number] for number in piece]
            if unseen:
                with appearing(kept) as aside:
                    aside.write_text(json.dumps(seen))
            for number, one in zip(piece, seen, strict=True):
                if one.fault == BLANK:
                    num_blank += 1
                elif one.fault is not None:
                    fail(number, one.fault, one.detail)
                else:
                    faulty[number], contents[number], identities[number] = False, one.content, one.identity
                    num_images[number], lengths[number] = one.num_images, one.length
                    mended.update(set(one.mended))
    if num_missing:
        return None
    numbers = np.flatnonzero(~faulty)
    first_of = firsts(contents[numbers])
    repeats = first_of != np.arange(len(numbers))
    for position in np.flatnonzero(repeats):
        other = source.place(int(numbers[first_of[position]]))
        fail(int(numbers[position]), "repeats another record", f"repeats {other}")
    kept = numbers[~repeats]
    return Report(
        source=source,
        kept=kept,
        repeats_id=firsts(identities[kept]) != np.arange(len(kept)),
        num_records=num_lines - num_blank,
        images_per_row=Counter(num_images[kept].tolist()),
        lengths=lengths[kept],
        mended=mended,
        faults=faults,
        first=first,
        unit="characters" if source.tokenizer is None else "tokens",
    )
