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

"""Answers as they come, so that a run that was stopped goes on in the middle of a benchmark; and whose they are."""

import json
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatch
from hashlib import blake2b, file_digest, sha256
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from modeling_agevlm.conversion import loading


# Of a checkpoint's folder, what no answer depends on
IGNORED = (
    ".*",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
    "training.json",
    "trainer_state.json",
    "metrics.json",
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "zero_to_fp32.py",
    "latest",
    "events.out.tfevents.*",
)
Key = tuple[str, int]  # of a question: its task and its number there


def identity_of(model: str) -> str:
    """
    What tells a checkpoint from others: of a folder, the names and contents of its files but those of the training's
    state, so that a copy is the same (1.5 s for 2.6 GB, once they are in memory); of a Hub id, the commit.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    folder = Path(model)
    if not folder.is_dir():
        with loading(model):
            return Path(cached_file(model, "config.json")).parent.name
    whole = sha256()
    for file in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        if file.is_file() and not any(fnmatch(file.name, pattern) for pattern in IGNORED):
            with file.open("rb") as content:
                whole.update(f"{file.relative_to(folder)}\0".encode() + file_digest(content, "sha256").digest())
    return whole.hexdigest()[:16]


def content_of(value: Any) -> Any:
    """A row's value with a hash for every picture (`bytes`, or `path` of a file) in it, wherever it lies."""
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return sha256(Path(value["path"]).read_bytes() if value["bytes"] is None else value["bytes"]).hexdigest()
        return {name: content_of(part) for name, part in value.items()}
    return [content_of(part) for part in value] if isinstance(value, (list, tuple)) else value


def digest_of(rows: Iterable[Any]) -> str:
    """What tells questions, rows with their pictures, from others."""
    whole = sha256()
    for row in rows:
        whole.update(f"{json.dumps(content_of(row), default=str)}\n".encode())
    return whole.hexdigest()[:16]


class Journal:
    """
    The answers to a benchmark's questions, a line each, written after every batch: each process has its own file, and
    reads those of all.

    Args:
        folder (`Path`): Where the files lie.
        name (`str`): Of the benchmark and the picture.
        settings (`dict`): All that the answers depend on. Those of other settings are not read.
        rank (`int`): This process.
    """

    def __init__(self, folder: Path, name: str, settings: dict[str, Any], rank: int) -> None:
        key = blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()
        self.pattern, self.folder = f"{name}-{key}.*.jsonl", folder
        self.file = folder / f"{name}-{key}.{rank}.jsonl"
        self.answers: dict[Key, dict[str, Any]] = {}
        for file in folder.glob(self.pattern):
            content = file.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]  # the last line may have been cut off
            if file == self.file and whole != content:
                file.write_bytes(whole)
            for entry in map(json.loads, whole.splitlines()):
                self.answers[entry["task"], entry["number"]] = entry

    def has(self, keys: Iterable[Key]) -> bool:
        return all(key in self.answers for key in keys)

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        entries = list(entries)
        self.folder.mkdir(parents=True, exist_ok=True)  # another benchmark's may have been the last in it
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(f"{json.dumps(entry)}\n" for entry in entries))
        self.answers |= {(entry["task"], entry["number"]): entry for entry in entries}

    def remove(self) -> None:
        """Once the records are written, nobody needs it."""
        for file in self.folder.glob(self.pattern):
            file.unlink()
        with suppress(OSError):  # others are there
            self.folder.rmdir()
