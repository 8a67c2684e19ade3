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
"""From one LLaVA-style record to a row, or to what is wrong with it."""

import json
import math
import os
import re
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, Image, List, Value
from pycocotools import mask as coco_mask

from trainers.rows import REGION, ROLES, as_row
from trainers.run_lengths import decode_rle


PLACEHOLDER = "<image>"
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
REGIONS = {"regions": List(REGION)}


class Fault(ValueError):
    """Why a record cannot be trained on: a few words to count it by (`kind`), and what exactly (the message)."""

    def __init__(self, kind: str, detail: str = "") -> None:
        # JSON can hold half a character, which no terminal and no file takes.
        super().__init__((f"{kind}: {detail}" if detail else kind).encode(errors="replace").decode())
        self.kind = kind


@lru_cache(maxsize=4096)
def names_by_lower_case(folder: str) -> dict[str, str]:
    try:
        return {name.lower(): name for name in os.listdir(folder)}
    except OSError:
        return {}


@lru_cache(maxsize=64)
def real_path(folder: Path) -> str:
    return os.path.realpath(folder)


def check_inside(folder: Path, path: str | Path, name: str) -> None:
    """
    Raises [`Fault`] if a path leads out of the folder, as it is written or by a link: whoever wrote the records does not
    choose among all files of whoever reads them.
    """
    inside = real_path(folder)
    if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise Fault("image outside of the folder", name)


def find_image(folder: Path, name: str) -> tuple[str, bool]:
    """
    The path of an image, and whether its name had to be corrected for upper and lower case.

    Raises:
        Fault: If there is no such file, or it is not in the folder.
    """
    try:
        path = folder / name
        check_inside(folder, path, name)
        if path.is_file():
            return str(path), False
    except (OSError, ValueError) as error:  # of names that no file can have
        if isinstance(error, Fault):
            raise
        raise Fault("image missing", name) from None
    found = folder
    for part in Path(os.path.normpath(name)).parts:
        correct = names_by_lower_case(str(found)).get(part.lower())
        if correct is None:
            raise Fault("image missing", name)
        found = found / correct
    check_inside(folder, found, name)
    if not found.is_file():
        raise Fault("image missing", name)
    return str(found), True


def image_names(value: Any) -> list[str]:
    """
    The record's image names; none if it is text only, which data sets write in many ways.

    Raises:
        Fault: If they are not names.
    """
    values = value if isinstance(value, list) else [value]
    names = []
    for name in values:
        if isinstance(name, dict):
            name = name.get("path", name.get("url"))
        if name is None or (isinstance(name, float) and math.isnan(name)):
            continue
        if not isinstance(name, str):
            raise Fault("image is not a path", repr(name)[:80])
        if name.strip().lower() not in NO_IMAGE:
            names.append(name.strip())
    return names


def read_messages(conversation: Any, num_images: int) -> tuple[list[dict[str, Any]], list[str]]:
    """
    A conversation, as [`as_row`] gives it, as messages whose contents are lists of parts, and what had to be mended.

    Raises:
        Fault: If no question with an answer is left, or the images do not fit the placeholders.
    """
    turns, mended = [], []
    if not isinstance(conversation, list):
        raise Fault("no conversation", f"it is of type {type(conversation).__name__}")
    for turn in conversation:
        speaker = turn.get("role") if isinstance(turn, dict) else None
        words = words_of(turn.get("content")) if isinstance(turn, dict) else None
        if not isinstance(speaker, str) or speaker not in ROLES or not isinstance(words, str):
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


def words_of(content: Any) -> str | None:
    """A message's content in one, with a placeholder where a picture stands; None if it is neither words nor parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts = [part if isinstance(part, dict) else {} for part in content]
    words = [PLACEHOLDER if part.get("type") == "image" else part.get("text") for part in parts]
    return "".join(words) if all(isinstance(word, str) for word in words) else None


def read_regions(regions: Any) -> list[dict[str, Any]]:
    """
    A record's regions, their run lengths compressed, whichever way they are written.

    Raises:
        Fault: If they are none.
    """
    if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
        raise Fault("regions are no list", repr(regions)[:80])
    made = []
    for region in regions:
        mask = region.get("mask")
        if mask is not None:
            try:
                code = coco_mask.encode(np.asfortranarray(decode_rle(mask), dtype=np.uint8))
            except (ValueError, TypeError, AttributeError) as error:
                raise Fault("damaged mask", str(error)) from error
            mask = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
        made.append({name: region.get(name) for name in REGION} | {"mask": mask})
    return made


def read_parts(text: str) -> list[dict[str, Any]]:
    """Words and placeholders as parts of a message's content."""
    parts = []
    for piece in re.split(f"({PLACEHOLDER})", text):
        if piece == PLACEHOLDER:
            parts.append({"type": "image", "text": None})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def read_as_written(messages: Any) -> list[dict[str, Any]]:
    """
    Messages whose contents are lists of parts, with nothing mended.

    Raises:
        Fault: If they are none.
    """
    found = []
    for message in messages if isinstance(messages, list) else [messages]:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(words_of(content), str) or not isinstance(message.get("role"), str):
            raise Fault("turn without speaker or words", repr(message)[:80])
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found.append(
            {
                "role": message["role"],
                "content": [{"type": part.get("type"), "text": part.get("text")} for part in parts],
            }
        )
    return found


def read_record(line: bytes, number: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """
    One line of the file as a row, and what had to be mended.

    Raises:
        Fault: If it cannot be trained on.
    """
    try:
        record = json.loads(line)
    except RecursionError:
        raise Fault("not JSON", "it is nested too deeply") from None
    except ValueError as error:
        raise Fault("not JSON", str(error)) from error
    if not isinstance(record, dict):
        raise Fault("not JSON", "it is no object")
    record = as_row(record)
    found = [find_image(folder, name) for name in image_names(record["images"])]
    regions = read_regions(record["regions"]) if record.get("regions") else []
    if regions:  # which count messages and their characters
        messages, mended = read_as_written(record["messages"]), []
    else:
        messages, mended = read_messages(record["messages"], len(found))
    if b"\\u" in line or b"\xed" in line:  # as JSON writes it, or as it is
        try:
            json.dumps([record.get("id"), found, messages], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Fault("half a character", str(error)) from None
    mended += ["path in the wrong case"] if any(corrected for _, corrected in found) else []
    name = record.get("id")
    row = {
        "id": str(number) if name is None else str(name),
        "images": [{"path": path, "bytes": None} for path, _ in found],
        "messages": messages,
    }
    return row | ({"regions": regions} if regions else {}), mended


def content_hash(row: dict[str, Any]) -> int:
    """The same for rows of the same images and words, whatever their ids."""
    content = json.dumps([[image["path"] for image in row["images"]], row["messages"]], ensure_ascii=False)
    return int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "little")
