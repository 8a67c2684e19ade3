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
"""JSON in any of the forms that people have, as records by number, read when they are asked for."""

import glob
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from tqdm.auto import tqdm

from recipes.rows.appearing import appearing


LONGEST = 1 << 26  # characters of a record
MADE = re.compile(r"\.[0-9a-f]+-[0-9a-f]+\.(?:lines|jsonl)$")  # how names end of what is made of a file


# --- What is made of a file, and kept ---


def stamp_of(path: Path) -> str:
    """A file's size and time stamp (in nanoseconds): another content has another one."""
    stamp = path.stat()
    return f"{stamp.st_size:x}-{stamp.st_mtime_ns:x}"


def keeping_folder(path: Path) -> Path:
    """Where what is made of a file is kept: beside it, or in the cache of `datasets` where its folder cannot be written."""
    if os.access(path.parent, os.W_OK):
        return path.parent
    key = blake2b(os.fsencode(path.resolve()), digest_size=8).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE, "age_vlm", key)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kept_of(path: Path, kind: str) -> Path:
    """
    The file in which something of a `kind` that is made of another is kept. Its name holds the other's stamp, so that it is
    never taken for what another content makes. What was made of earlier contents goes.
    """
    folder = keeping_folder(path)
    kept = folder / f"{path.name}.{stamp_of(path)}.{kind}"
    for other in folder.glob(f"{glob.escape(path.name)}.*.{kind}"):
        if MADE.sub("", other.name) == path.name and other != kept:
            other.unlink(missing_ok=True)
    return kept


# --- Records by number ---


class Lines:
    """
    The lines of a file by number, read when they are asked for. Where they begin is found once and kept: 8 bytes per line,
    mapped rather than read (in memory if they cannot be written).

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each line begins, and the end of the file: `(num_lines + 1,)`, uint64."""
        try:
            kept = kept_of(self.path, "lines")
            if not kept.exists():
                with appearing(kept) as aside:
                    line_offsets(self.path).tofile(aside)
            return np.memmap(kept, dtype=np.uint64, mode="r")
        except OSError:
            return line_offsets(self.path)

    @cached_property
    def file(self):
        return self.path.open("rb")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        # Positioned reads: forked workers share the file, but not a position in it.
        return os.pread(self.file.fileno(), end - start, start)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}


def line_offsets(path: Path, chunk_size: int = 1 << 24) -> np.ndarray:
    """Where the lines of a file begin, and the file's end."""
    found, position = [np.zeros(1, dtype=np.uint64)], 0
    with path.open("rb") as file:
        while chunk := file.read(chunk_size):
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
            found.append((ends + position + 1).astype(np.uint64))
            position += len(chunk)
    offsets = np.concatenate(found)
    if offsets[-1] != position:  # no line break at the end
        offsets = np.append(offsets, np.uint64(position))
    return offsets


# --- Other forms of JSON ---


def as_lines(path: Path) -> Path:
    """
    The file itself if it is JSONL in UTF-8. Anything else that is JSON is written out as such, once, one record at a time:
    lists, several of them or one per line, records over several lines or with commas between them, a byte order mark,
    UTF-16 and UTF-32.

    Raises:
        ValueError: If it is cut off or damaged.
    """
    with path.open("rb") as file:
        start = file.read(1 << 20)
    encoding = json.detect_encoding(start[:4])
    if encoding == "utf-8" and has_lines(start.decode(errors="surrogateescape")):
        return path
    lines = kept_of(path, "jsonl")
    if not lines.exists():
        with appearing(lines) as aside, aside.open("wb") as out:
            for record in records_of(path, encoding):
                # Outside of words, which cannot hold them, line breaks are blanks.
                line = record.replace("\r", " ").replace("\n", " ") + "\n"
                out.write(line.encode(errors="surrogateescape"))
    return lines


def has_lines(start: str) -> bool:
    """
    Whether a text begins with a record on a line of its own. One that is at fault counts as such: what is wrong with it is
    told of the record.
    """
    start = start.lstrip()
    if start.startswith("["):
        return False
    try:
        _, end = json.JSONDecoder().raw_decode(start)
    except (ValueError, RecursionError):
        return True
    return "\n" not in start[:end] and re.match(r"[^\S\n]*(?:\n|$)", start[end:]) is not None


def records_of(path: Path, encoding: str = "utf-8", chunk_size: int = 1 << 22) -> Iterator[str]:
    """
    The JSON of a file's records, one by one: of its values, and of the items of those that are lists. Bytes that are none of
    the encoding stay what they are, and the fault of their record.

    Raises:
        ValueError: If it is cut off or damaged, or a record is longer than `LONGEST`.
    """
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,]*")
    number, in_list, text, place, ended = 0, False, "", 0, False
    try:
        with (
            path.open(encoding=encoding, errors="surrogateescape", newline="") as file,
            tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"reading {path.name}", delay=2) as bar,
        ):
            while True:
                place = gap.match(text, place).end()
                if place < len(text) and text[place] == "[" and not in_list:
                    in_list, place = True, place + 1
                    continue
                if place < len(text) and text[place] == "]" and in_list:
                    in_list, place = False, place + 1
                    continue
                if place == len(text) and ended:
                    if in_list:
                        raise ValueError("its list has no end")
                    return
                try:
                    _, end = decoder.raw_decode(text, place)
                    # A number at the end of what was read may go on.
                    complete = ended or end < len(text)
                except json.JSONDecodeError:
                    if ended:
                        raise
                    complete = False
                if complete:
                    yield text[place:end]
                    number, place = number + 1, end
                elif len(text) - place > LONGEST:
                    raise ValueError(f"it has more than {LONGEST >> 20} million characters")
                else:
                    more = file.read(max(chunk_size, len(text) - place))
                    text, place, ended = text[place:] + more, 0, not more
                    bar.update(file.buffer.tell() - bar.n)
    except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, for example
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(
            f"{path} is cut off or damaged at its record {number + 1} ({reason}): mend it, or fetch it again."
        ) from error
