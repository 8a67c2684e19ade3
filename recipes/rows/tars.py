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
"""Tar shards of samples (WebDataset's form) as rows: files of one name and several endings are a picture and what is said of it."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset

from recipes.rows.files import generated
from recipes.rows.json_files import stamp_of
from recipes.rows.records import (
    FEATURES,
    REGIONS,
    Fault,
    LeftOut,
    check_characters,
    image_names,
    media_of,
    other_media,
    parse,
    picture_suffixes,
    printable,
    read_chat,
)
from trainers.rows import CHATS, as_row


REQUEST = "Describe the image."  # of a caption
LARGEST = 1 << 28  # bytes of a sample
LONGEST_HEADER = 1 << 16  # bytes of a member's name, of where a sparse one has holes, and the like
MEMBER = 1 << 10  # bytes that each member of a sample counts beside its content


def load_tars(files: list[Path], streaming: bool) -> Dataset | IterableDataset:
    """
    The rows of tar files, a shard each. A sample has pictures (`jpg`, `png`, ...) and a `json` with a chat, and maybe `regions`,
    as rows have them; or a caption in `txt` or in the `caption` of its `json`. Those that cannot be trained on are left out.
    Ids are those of the `json`, or the names of the shard and the sample.

    Raises:
        ValueError: If none can be trained on, or a shard is damaged (of a stream: once it is read).
    """
    features, settings = Features(FEATURES | REGIONS), {"files": files}
    check_samples(files)
    if streaming:
        return IterableDataset.from_generator(tar_rows, features=features, gen_kwargs=settings)
    return generated(tar_rows, features, settings, [(str(file.resolve()), stamp_of(file)) for file in files])


def check_samples(files: list[Path]) -> None:
    """Raises `ValueError` if no sample of the shards can be trained on. Reads them up to the first that can."""
    number, first = 0, "they are empty"
    for file in files:
        for name, sample in samples(file):
            try:
                as_sample(file, name, sample)
                return
            except Fault as fault:
                number += 1
                if number == 1:
                    first = f"{file}, {printable(name)}: {fault}"
    names = files[0] if len(files) == 1 else f"{files[0]} and the {len(files) - 1} shards beside it"
    raise ValueError(f"{names}: none of the {number} samples can be trained on; the first, {first}.")


def tar_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    left_out = LeftOut(str(files[0].parent))
    for file in files:
        for name, sample in samples(file):
            try:
                yield as_sample(file, name, sample)
            except Fault as fault:
                left_out.add(f"{file.name}, {name}", fault)
    left_out.say()


class Headers(io.FileIO):
    """
    A shard of which headers are read, which `tarfile` takes into memory: `LONGEST_HEADER` bytes for each member, however many
    they claim to have.
    """

    left = LONGEST_HEADER
    last = b""  # what was read

    def read(self, size: int = -1) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise ValueError(f"a member has a header of more than {LONGEST_HEADER} bytes")
        self.last = super().read(size)
        return self.last


def samples(file: Path) -> Iterator[tuple[str, dict[str, bytes | None]]]:
    """
    The files that stand one after the other under one name, by their endings. A link, a sparse file and one with which a sample
    has more than `LARGEST` bytes is None, alone.

    Raises:
        ValueError: If the shard is damaged.
    """
    name, sample, size = "", {}, 0
    try:
        # Not compressed: a small file could hold any number of bytes.
        with file.open("rb") as contents, Headers(file) as headers, tarfile.open(fileobj=headers, mode="r:") as shard:
            for member in shard:
                headers.left, shard.members = LONGEST_HEADER, []  # which it would keep
                stem, _, ending = Path(member.name).name.partition(".")
                if member.isdir() or not stem or not ending:
                    continue
                key = str(Path(member.name).with_name(stem))
                if key != name and sample:
                    yield name, sample
                    sample, size = {}, 0
                name, ending, size = key, ending.lower(), size + member.size + MEMBER
                if not member.isfile() or member.issparse() or size > LARGEST:
                    sample, size = {ending: None}, LARGEST
                elif None not in sample.values():
                    contents.seek(member.offset_data)
                    sample[ending] = contents.read(member.size)
            if headers.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
                raise ValueError("it has no end")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{file} is no tar file, compressed, damaged or cut off ({error}): unpack it, or fetch it again."
        ) from error
    if sample:
        yield name, sample


def as_sample(file: Path, name: str, sample: dict[str, bytes | None]) -> dict[str, Any]:
    """
    A row of a sample of a shard.

    Raises:
        Fault: If it cannot be trained on.
    """
    if None in sample.values():
        raise Fault(
            "file that is not read", f"{', '.join(sample)}: a link, sparse, or past {LARGEST >> 20} MB of a sample"
        )
    kinds: dict[str, list[bytes]] = {}
    pictures = []
    for ending, content in sample.items():
        suffix = ending.rpartition(".")[2]
        if f".{suffix}" in picture_suffixes():
            pictures.append({"bytes": content, "path": None})
        elif suffix == "pdf" or (media := media_of(f"sample.{suffix}")) == "image":
            raise Fault("image unreadable", f"{ending} is no kind of picture that is read")
        elif media is not None:
            raise Fault("video or sound", ending)
        kinds.setdefault(suffix, []).append(content)
    if twice := [kind for kind in ("json", "txt") if len(kinds.get(kind, [])) > 1]:
        raise Fault("several texts", f"it has {', '.join(sample)}: which {twice[0]} is meant?")
    written = parse(kinds["json"][0]) if "json" in kinds else {}
    record, others = as_row(written), other_media(written)
    named = len(image_names(record["images"]))
    if named > len(pictures) or ("image" in others and not pictures):
        raise Fault("image missing", f"its json names {max(named, 1)}, but it has {len(pictures)}")
    if media := others.keys() & {"video", "audio"}:
        raise Fault("video or sound", f"{others[min(media)]!r}")
    if not any(record.get(column) is not None for columns in CHATS for column in columns):
        caption = kinds["txt"][0].decode(errors="replace") if "txt" in kinds else record.get("caption")
        if not isinstance(caption, str) or not pictures:
            raise Fault("no conversation", f"it has {', '.join(sample)}")
        turns = (("user", REQUEST), ("assistant", caption.strip()))
        record["messages"] = [{"role": role, "content": words} for role, words in turns]
    chat, _ = read_chat(record, pictures, has_none=False)
    identity = record.get("id")
    identity = f"{file.stem}/{name}" if identity is None else str(identity)
    check_characters(identity)
    return {"id": identity, "images": pictures, "regions": None} | chat
