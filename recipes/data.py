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
"""
LLaVA-style data (Cambrian-Alignment, Cambrian-7M/10M, LLaVA: a JSON or JSONL file and a folder of images) as rows to
train on.

    python recipes/data.py --json alignment_2.5m.jsonl --images cambrian --check
    python recipes/data.py --json alignment_2.5m.jsonl --images cambrian --out data/captions
    python recipes/data.py --images coco/val2014 --write_hashes coco_val2014.hashes

`--check` reads every record and decodes every image, says what is there and what is wrong with it, and writes nothing.
`--out` writes what can be trained on as parquet files; images stay where they are, and rows hold their paths. Either way
the first look is remembered beside the JSON file: the second command looks again only at what was at fault.

What is wrong is mended where that is safe, left out where not, and counted in any case (`--strict` stops at the first):

| mended | left out |
|---|---|
| turns of one speaker in a row are joined | no question with an answer |
| what comes before the first question or after the last answer goes | image missing, unreadable or truncated |
| a path in the wrong case is corrected | image of more pixels than `--max_pixels` |
| `<image>` is added or moved where there is none for an image | more `<image>` than images |
| | a line that is not JSON, a record that repeats another one |
| | an image of `--drop_hashes` (evaluation pictures) |
"""

import argparse
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, IterableDataset, List, Value
from tqdm.auto import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging

from modeling_agevlm.image_processing_agevlm import as_shown
from recipes.errors import one_sentence
from trainers.data_collator import load_image


logger = logging.get_logger(__name__)

VERSION = 1  # of what is remembered of a file
PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
NO_IMAGE = ("", "none", "nan", "null")
FEATURES = Features(
    {
        "id": Value("string"),
        "images": List(Image(decode=False)),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
    }
)
HASH_SIDE = 16  # of the difference hash: 16 x 16 bits
HASH_DISTANCE = 8  # bits in which two pictures that count as the same one may differ


class Fault(ValueError):
    """Why a record cannot be trained on: a few words to count it by (`kind`), and what exactly (the message)."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


# Reading the file


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
        with aside.open("w", encoding="utf-8") as out:
            for record in list_items(path):
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
        aside.replace(lines)
    finally:
        aside.unlink(missing_ok=True)
    return lines


def list_items(path: Path, chunk_size: int = 1 << 22) -> Iterator[Any]:
    """The items of a JSON list, decoded one by one."""
    decoder, separator = json.JSONDecoder(), re.compile(r"[\s,]*")
    with path.open(encoding="utf-8") as file:
        text, ended = file.read(chunk_size).lstrip()[1:], False
        while True:
            text = text[separator.match(text).end() :]
            if text.startswith("]"):
                return
            try:
                item, end = decoder.raw_decode(text)
                # A number at the end of what was read may go on.
                complete = ended or end < len(text)
            except json.JSONDecodeError as error:
                if ended:
                    raise ValueError(
                        f"{path} is a JSON list that is cut off or damaged ({error.msg}): fetch it again."
                    ) from error
                complete = False
            if complete:
                yield item
                text = text[end:]
            else:
                more = file.read(max(chunk_size, len(text)))
                text, ended = text + more, not more


# One record


@lru_cache(maxsize=4096)
def names_by_lower_case(folder: str) -> dict[str, str]:
    try:
        return {name.lower(): name for name in os.listdir(folder)}
    except OSError:
        return {}


def find_image(folder: Path, name: str) -> tuple[str, bool]:
    """
    The path of an image, and whether its name had to be corrected for upper and lower case.

    Raises:
        Fault: If there is no such file.
    """
    path = folder / name
    if path.is_file():
        return str(path), False
    found = folder
    for part in Path(os.path.normpath(name)).parts:
        correct = names_by_lower_case(str(found)).get(part.lower())
        if correct is None:
            raise Fault("image missing", name)
        found = found / correct
    if not found.is_file():
        raise Fault("image missing", name)
    return str(found), True


def image_names(record: dict[str, Any]) -> list[str]:
    """
    The record's image names; none if it is text only, which data sets write in many ways.

    Raises:
        Fault: If they are not names.
    """
    value = record.get("image", record.get("images"))
    values = value if isinstance(value, list) else [value]
    names = []
    for name in values:
        if name is None or (isinstance(name, float) and math.isnan(name)):
            continue
        if not isinstance(name, str):
            raise Fault("image is not a path", repr(name)[:80])
        if name.strip().lower() not in NO_IMAGE:
            names.append(name.strip())
    return names


def read_messages(record: dict[str, Any], num_images: int) -> tuple[list[dict[str, Any]], list[str]]:
    """
    The record's conversation as messages whose contents are lists of parts, and what had to be mended.

    Raises:
        Fault: If no question with an answer is left, or the images do not fit the placeholders.
    """
    turns, mended = [], []
    conversation = record.get("conversations", record.get("messages"))
    if not isinstance(conversation, list):
        raise Fault("no conversation", f"`conversations` is {type(conversation).__name__}")
    for turn in conversation:
        speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        words = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
        if speaker not in ROLES or not isinstance(words, str):
            raise Fault("turn without speaker or words", repr(turn)[:80])
        role = ROLES[speaker]
        if not words.replace(PLACEHOLDER, "").strip() and PLACEHOLDER not in words:
            mended.append("empty turn removed")
        elif turns and turns[-1]["role"] == role:
            turns[-1]["text"] += f"\n{words}"
            mended.append("turns of one speaker joined")
        else:
            turns.append({"role": role, "text": words})
    start = 1 if turns and turns[0]["role"] == "system" else 0
    lost = ""  # placeholders must not go with the words around them
    while len(turns) > start and turns[start]["role"] != "user":
        lost += PLACEHOLDER * turns.pop(start)["text"].count(PLACEHOLDER)
        mended.append("turn before the first question removed")
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
        mended.append("turn after the last answer removed")
    if len(turns) - start < 2:
        raise Fault("no question with an answer")
    if any(turn["role"] == "system" for turn in turns[start:]):
        raise Fault("system turn in the middle")
    turns[start]["text"] = lost + turns[start]["text"]
    for turn in turns:
        if turn["role"] != "user" and PLACEHOLDER in turn["text"]:
            turn["text"] = turn["text"].replace(PLACEHOLDER, "").strip()
            mended.append("<image> outside of questions removed")
    num_placeholders = sum(turn["text"].count(PLACEHOLDER) for turn in turns)
    if num_placeholders > num_images:
        if num_images > 0 or any(not turn["text"].replace(PLACEHOLDER, "").strip() for turn in turns):
            raise Fault("more <image> than images", f"{num_placeholders} for {num_images}")
        for turn in turns:  # a text-only row that kept the habit
            turn["text"] = turn["text"].replace(PLACEHOLDER, "").strip()
        mended.append("<image> without an image removed")
    if num_placeholders < num_images:
        turns[start]["text"] = PLACEHOLDER * (num_images - num_placeholders) + turns[start]["text"]
        mended.append("<image> added")
    return [{"role": turn["role"], "content": read_parts(turn["text"])} for turn in turns], mended


def read_parts(text: str) -> list[dict[str, Any]]:
    """Words and placeholders as parts of a message's content."""
    parts = []
    for piece in re.split(f"({PLACEHOLDER})", text):
        if piece == PLACEHOLDER:
            parts.append({"type": "image", "text": None})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def read_record(line: bytes, number: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """
    One line of the file as a row, and what had to be mended.

    Raises:
        Fault: If it cannot be trained on.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise Fault("not JSON", str(error)) from error
    if not isinstance(record, dict):
        raise Fault("not JSON", "it is no object")
    found = [find_image(folder, name) for name in image_names(record)]
    messages, mended = read_messages(record, len(found))
    mended += ["path in the wrong case"] if any(corrected for _, corrected in found) else []
    name = record.get("id")
    row = {
        "id": str(number) if name is None else str(name),
        "images": [{"path": path, "bytes": None} for path, _ in found],
        "messages": messages,
    }
    return row, mended


def content_hash(row: dict[str, Any]) -> int:
    """The same for rows of the same images and words, whatever their ids."""
    content = json.dumps([[image["path"] for image in row["images"]], row["messages"]], ensure_ascii=False)
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "little")


# One picture


def picture_hash(picture: PIL.Image.Image) -> np.ndarray:
    """The 256 bits of a difference hash, as four uint64: which of two neighbors is brighter, on a small gray copy."""
    gray = np.asarray(picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), PIL.Image.Resampling.BOX), dtype=int)
    return np.packbits(gray[:, 1:] > gray[:, :-1]).view(np.uint64)


def check_image(path: str, max_pixels: int, dropped: np.ndarray | None) -> list[str]:
    """
    Decodes a picture, and says what is unusual about it.

    Raises:
        Fault: If it cannot be read, is too large, or is one of those to drop, `(num_dropped, 4)`.
    """
    unusual = []
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
    try:
        with PIL.Image.open(path) as picture:
            if picture.width * picture.height > max_pixels:
                raise Fault("image too large", f"{path} has {picture.width} x {picture.height} pixels")
            if getattr(picture, "n_frames", 1) > 1:
                unusual.append("animated image (first frame)")
            if picture.mode in ("CMYK", "YCCK"):
                unusual.append("CMYK image")
            if picture.mode.startswith(("I", "F")):
                unusual.append("16-bit image")
            if picture.getexif().get(0x0112, 1) != 1:
                unusual.append("image rotated by EXIF")
            picture = load_image(picture)
            if dropped is not None and len(dropped):
                shown = as_shown(picture)
                distance = np.bitwise_count(dropped ^ picture_hash(shown)).sum(axis=1).min()
                if distance <= HASH_DISTANCE:
                    raise Fault("image of an evaluation set", path)
    except Fault:
        raise
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise Fault("image unreadable", f"{path} ({error})") from error
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit
    return unusual


# The whole file


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
        return None if self.tokenizer is None else AutoTokenizer.from_pretrained(self.tokenizer)

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


def in_subset(identity: str, share: float, seed: int) -> bool:
    """Whether a row is among the `share` of rows that `seed` picks: by its id alone, wherever the row stands."""
    digest = blake2b(f"{seed} {identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def write(source: Source, kept: np.ndarray, out: Path, share: float, seed: int, rows_per_file: int = 100_000) -> int:
    """Writes rows as parquet files that `datasets` reads. Returns how many."""
    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(kept), rows_per_file)
    num_rows, identities = 0, set()
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
        write_parquet(place, rows, FEATURES)
    return num_rows


def write_parquet(place: Path, rows: list[dict[str, Any]], features: Features) -> None:
    """Writes a file that appears when it is complete."""
    aside = place.with_name(f"_{place.name}.{os.getpid()}")
    table = pa.Table.from_pylist([features.encode_example(row) for row in rows], schema=features.arrow_schema)
    pq.write_table(table, aside)
    aside.replace(place)


def load_records(json_file: Path, images: Path, records_per_shard: int = 10_000) -> IterableDataset:
    """
    A LLaVA-style file as a stream of rows that is never read whole. Records that cannot be trained on are left out, but
    images are not looked at: that is up to whoever reads them.
    """
    source = Source(json_file, images)
    num_lines = len(source.lines)
    ranges = [(n, min(n + records_per_shard, num_lines)) for n in range(0, num_lines, records_per_shard)]
    return IterableDataset.from_generator(_rows, features=FEATURES, gen_kwargs={"ranges": ranges, "source": source})


def _rows(ranges: list[tuple[int, int]], source: Source) -> Iterator[dict[str, Any]]:
    for start, end in ranges:
        for number in range(start, end):
            try:
                yield read_record(source.lines[number], number, source.images)[0]
            except Fault as fault:
                logger.warning_once(f"{source.json}, line {number + 1}, is left out: {fault}. There may be more.")


# Evaluation pictures


def read_hashes(file: Path) -> np.ndarray:
    """
    The hashes of a file as `--write_hashes` writes it, `(num_hashes, 4)`.

    Raises:
        ValueError: If it is another kind of file.
    """
    try:
        words = [bytes.fromhex(line.split()[0]) for line in file.read_text().splitlines() if line.strip()]
        return np.frombuffer(b"".join(words), dtype=np.uint64).reshape(len(words), 4)
    except ValueError as error:
        raise ValueError(f"{file} is not a file of picture hashes: make it with `--write_hashes`.") from error


def write_hashes(images: Path, out: Path) -> int:
    """Writes the hash and the name of every picture in a folder. Returns how many."""
    suffixes = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in suffixes)
    if not files:
        raise ValueError(f"There are no pictures in {images}.")
    with out.open("w") as lines:
        for file in tqdm(files, unit=" images"):
            picture = as_shown(load_image(file))
            lines.write(f"{picture_hash(picture).tobytes().hex()} {file.relative_to(images)}\n")
    return len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="JSON or JSONL file of conversations")
    parser.add_argument("--images", type=Path, required=True, help="folder that the images' paths start from")
    parser.add_argument("--check", action="store_true", help="say what there is, write nothing")
    parser.add_argument("--out", type=Path, help="folder to write parquet files to")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that has to be left out")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the rows to write, picked by their ids")
    parser.add_argument("--seed", type=int, default=0, help="picks another subset")
    parser.add_argument("--tokenizer", help="measure lengths in tokens of this checkpoint (folder or Hub id)")
    parser.add_argument("--drop_hashes", "--drop-hashes", type=Path, help="leave out the pictures in this file")
    parser.add_argument("--write_hashes", type=Path, help="write such a file of all pictures in `--images`, and stop")
    parser.add_argument("--max_pixels", type=int, default=Source.max_pixels, help="larger images are left out")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read images")
    args = parser.parse_args()
    with one_sentence():
        if not args.images.is_dir():
            raise ValueError(f"There is no folder {args.images}: `--images` is the folder that the images lie in.")
        if args.write_hashes is not None:
            print(f"{write_hashes(args.images, args.write_hashes):,} hashes in {args.write_hashes}")
            return
        if args.json is None or not args.json.is_file():
            raise ValueError(f"There is no file {args.json}: `--json` is a JSON or JSONL file of conversations.")
        if not args.check and args.out is None:
            raise ValueError("Pass `--check` to see what there is, or `--out` to write the rows to a folder.")
        if not 0 < args.subset <= 1:
            raise ValueError(f"`--subset` is a share of the rows between 0 and 1, but is {args.subset}.")
        source = Source(args.json, args.images, args.max_pixels, args.drop_hashes, args.tokenizer)
        report = survey(source, args.workers, args.strict)
        print(report)
        if not args.check:
            num_rows = write(source, report.kept, args.out, args.subset, args.seed)
            print(f"{num_rows:,} rows in {args.out}")


if __name__ == "__main__":
    main()
