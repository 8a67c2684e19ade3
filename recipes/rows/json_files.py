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
"""Reading JSON lists and JSONL files record by record, by number and without reading them whole."""

import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np


class Lines:
    """
    The lines of a file by number, read when they are asked for. Where they begin is found once and kept beside the file
    as `NAME.lines` (in memory if that cannot be written): 8 bytes per line, mapped rather than read.

    Args:
        path (`Path`): The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each line begins, and the end of the file: `(num_lines + 1,)`, uint64."""
        stamp = self.path.stat()
        kept = self.path.with_name(f"{self.path.name}.lines")
        if kept.exists() and kept.stat().st_mtime_ns >= stamp.st_mtime_ns:
            offsets = np.memmap(kept, dtype=np.uint64, mode="r")
            if offsets[-1] == stamp.st_size:
                return offsets
        offsets = line_offsets(self.path)
        try:
            aside = kept.with_name(f"{kept.name}.{os.getpid()}")
            offsets.tofile(aside)
            aside.replace(kept)
            return np.memmap(kept, dtype=np.uint64, mode="r")
        except OSError:
            return offsets

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
    """Where the lines of a file begin, and the file's end; empty lines are no lines."""
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


def as_lines(path: Path) -> Path:
    """
    The file itself if it is JSONL. A JSON list is written out as JSONL beside it (`NAME.jsonl`), once, one record at a
    time.

    Raises:
        ValueError: If it is neither, or cut off.
    """
    with path.open("rb") as file:
        first = file.read(64).lstrip()[:1]
    if first != b"[":
        return path
    lines = path.with_name(f"{path.name}.jsonl")
    if lines.exists() and lines.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return lines
    aside = lines.with_name(f"{lines.name}.{os.getpid()}")
    try:
        # Half a character, which no file takes, stays the escape that it was, and the fault of its record.
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as out:
            for record in list_items(path):
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
        aside.replace(lines)
    finally:
        aside.unlink(missing_ok=True)
    return lines


def list_items(path: Path, chunk_size: int = 1 << 22) -> Iterator[Any]:
    """
    The items of a JSON list, decoded one by one.

    Raises:
        ValueError: If it is cut off or damaged.
    """
    decoder, separator = json.JSONDecoder(), re.compile(r"[\s,]*")
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            text, ended = file.read(chunk_size).lstrip()[1:], False
            while True:
                text = text[separator.match(text).end() :]
                if text.startswith("]"):
                    return
                try:
                    item, end = decoder.raw_decode(text)
                    # A number at the end of what was read may go on.
                    complete = ended or end < len(text)
                except json.JSONDecodeError:
                    if ended:
                        raise
                    complete = False
                if complete:
                    yield item
                    text = text[end:]
                else:
                    more = file.read(max(chunk_size, len(text)))
                    text, ended = text + more, not more
    except (ValueError, RecursionError) as error:  # of numbers of thousands of digits, for example
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise ValueError(f"{path} is a JSON list that is cut off or damaged ({reason}): fetch it again.") from error
