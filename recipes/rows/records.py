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
import mimetypes
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import PIL.Image
from datasets import Features, Image, List, Value
from transformers.utils import logging

from modeling_agevlm.image_reading_agevlm import ORIENTATIONS, open_image, orientation
from modeling_agevlm.processing_agevlm import find_words
from trainers.data_collator import check_region, shortened, split_tags, with_placeholders
from trainers.rows import COLUMNS, PICTURES, PLACEHOLDERS, REGION, ROLES, as_row
from trainers.run_lengths import decode_rle, encode_mask, mask_size


logger = logging.get_logger(__name__)


PLACEHOLDER = "<image>"
BLANK = "blank line"  # which is no record, and no fault that counts
NO_IMAGE = ("", "none", "nan", "null")
MEDIA = re.compile(r"image|img|picture|photo|figure|video|movie|clip|audio|sound|voice|speech|media|file|path", re.I)
NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow knows these files, and reads no picture of them
SIDEWAYS = [ORIENTATIONS[value] for value in (5, 6, 7, 8)]
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


def printable(text: str) -> str:
    """A text of strangers for terminals and files: what moves a cursor, breaks a line or is half a character is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Fault(ValueError):
    """Why a record cannot be trained on: a few words to count it by (`kind`), and what exactly (the message)."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(printable(f"{kind}: {detail}" if detail else kind))
        self.kind = kind


class LeftOut(Counter):
    """
    Counts by kind what is left out of a stream, of which each process says the first of a kind once.

    Args:
        source (`str`): What the stream is of.
    """

    said: set[tuple[str, str]] = set()

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def add(self, place: str, fault: Fault) -> None:
        self[fault.kind] += 1
        if (self.source, fault.kind) not in self.said:
            self.said.add((self.source, fault.kind))
            logger.warning(f"{self.source}, {printable(place)}, is left out: {fault}. There may be more.")

    def say(self) -> None:
        if self:
            counts = ", ".join(f"{number:,} {kind}" for kind, number in self.most_common())
            logger.warning(f"{self.source}: {self.total():,} left out ({counts}).")


def plain(name: str) -> str:
    """A file's name without what differs from system to system: upper and lower case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=4096)
def names_in(folder: str) -> dict[str, list[str]]:
    """The names in a folder by what is left of them ([`plain`])."""
    found: dict[str, list[str]] = {}
    try:
        for name in sorted(os.listdir(folder)):
            found.setdefault(plain(name), []).append(name)
    except OSError:
        pass
    return found


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
    The path of an image from the root of the file system, and whether its name had to be corrected: for upper and lower
    case, the way accents are composed, percent escapes (`%20`), or backslashes.

    Raises:
        Fault: If there is no such file, or it is not in the folder.
    """
    if name.startswith("data:"):
        raise Fault("image is not a path", f"{name[:40]}...: write its bytes to a file")
    try:
        for n, path in enumerate(paths_of(folder, name)):
            check_inside(folder, path, name)
            if path.is_file():
                return os.path.abspath(path), n > 0
    except Fault:
        raise
    except (OSError, ValueError) as error:  # of names that no file can have, of folders that are locked
        raise Fault("image missing", f"{name[:200]} ({error})") from None
    others = names_in(str(path.parent)).values()
    other = next(
        (file for files in others for file in files if plain(Path(file).stem) == plain(Path(name).stem)), None
    )
    raise Fault("image missing", name if other is None else f"{name} (there is {other})")


def paths_of(folder: Path, name: str) -> Iterator[Path]:
    """
    Where the file of a name may lie: first where it says.

    Raises:
        Fault: If there are several files that it may mean.
    """
    yield folder / name
    for written in dict.fromkeys((name, name.replace("\\", "/"), unquote(name), unquote(name.replace("\\", "/")))):
        found = folder
        for part in Path(os.path.normpath(written)).parts:
            like = names_in(str(found)).get(plain(part), [])
            if len(like) > 1 and part not in like:
                raise Fault("image missing", f"{name} (there are {' and '.join(like)})")
            found = found / (part if part in like or not like else like[0])
        yield found


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
            held = [value for value in name.values() if value is not None]
            name = name.get("path") or name.get("url") or (held or None)
        if name is None or (isinstance(name, float) and math.isnan(name)):
            continue
        if not isinstance(name, str):
            raise Fault("image is not a path", repr(name)[:80])
        if name.strip().lower() not in NO_IMAGE:
            names.append(name.strip())
    return names


@cache
def picture_suffixes() -> frozenset[str]:
    """The endings, such as `.jpg`, of the files that pictures are read from."""
    kinds = PIL.Image.registered_extensions().items()  # which loads the plugins
    return frozenset(suffix for suffix, kind in kinds if kind in PIL.Image.OPEN and kind not in NOT_READ)


def media_of(name: str) -> str | None:
    """What a file's name says that it holds: "image", "video" or "audio", or none of them."""
    if Path(name).suffix.lower() in picture_suffixes():
        return "image"
    kind = (mimetypes.guess_type(name)[0] or "").partition("/")[0]
    return kind if kind in ("image", "video", "audio") else None


def other_media(record: dict[str, Any]) -> dict[str, str]:
    """The kinds of media of the files that other columns name, with the first such column."""
    found: dict[str, str] = {}
    for column, value in record.items():
        if column in COLUMNS or not MEDIA.search(column):
            continue
        value = list(value.values()) if isinstance(value, dict) else value
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name and len(name.split()) == 1 and (kind := media_of(name)):
                found.setdefault(kind, column)
    return found


def read_messages(conversation: Any, num_images: int, has_none: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """
    A conversation, as [`as_row`] gives it, as messages whose contents are lists of parts, and what had to be mended. Where
    there are no images, `has_none` tells whether the record says so.

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
        parts = turn["content"] if isinstance(turn["content"], list) else []
        if role != "user" and any(part.get("type") == "image" for part in parts):
            raise Fault("image outside of questions", repr(turn)[:80])
        check_words(words)
        if not words.strip():
            mended.append("empty turn removed")
        elif turns and turns[-1]["role"] == role:
            turns[-1]["text"] += f"\n{words}"
            mended.append("turns of one speaker joined")
        else:
            turns.append({"role": role, "text": words})
    start = 1 if turns and turns[0]["role"] == "system" else 0
    while len(turns) > start and turns[start]["role"] != "user":
        del turns[start]
        mended.append("turn before the first question removed")
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
        mended.append("turn after the last answer removed")
    if len(turns) - start < 2:
        raise Fault("no question with an answer")
    if any(turn["role"] == "system" for turn in turns[start:]):
        raise Fault("system turn in the middle")
    questions = [turn for turn in turns if turn["role"] == "user"]  # elsewhere, <image> is a word
    num_placeholders = sum(turn["text"].count(PLACEHOLDER) for turn in questions)
    if num_placeholders > num_images:
        if num_images == 0 and not has_none:
            raise Fault("image missing", f"{num_placeholders} <image> without an image")
        if num_images > 0 or any(not turn["text"].replace(PLACEHOLDER, "").strip() for turn in questions):
            raise Fault("more <image> than images", f"{num_placeholders} for {num_images}")
        for turn in questions:  # a text-only row that kept the habit
            turn["text"] = turn["text"].replace(PLACEHOLDER, "").strip()
        mended.append("<image> without an image removed")
    if num_placeholders < num_images:
        turns[start]["text"] = PLACEHOLDER * (num_images - num_placeholders) + turns[start]["text"]
        mended.append("<image> added")
    return [{"role": turn["role"], "content": read_parts(**turn)} for turn in turns], mended


def words_of(content: Any) -> str | None:
    """A message's content in one, with a placeholder where a picture stands; None if it is neither words nor parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts = [part if isinstance(part, dict) else {} for part in content]
    words = [PLACEHOLDER if part.get("type") == "image" else part.get("text") for part in parts]
    return "".join(words) if all(isinstance(word, str) for word in words) else None


def check_words(words: str) -> None:
    if any(token in words for token in PLACEHOLDERS):
        raise Fault("the model's placeholder among the words", repr(words)[:80])


def read_regions(regions: Any, messages: list[dict[str, Any]], pictures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    A record's regions, their run lengths compressed, whichever way they are written, once they are such as can be trained on.

    Args:
        regions (`Any`): What the record has as such.
        messages (`list[dict]`): Its messages, as [`read_as_written`] gives them, which regions count.
        pictures (`list[dict]`): Its pictures, each with `path` or `bytes`.

    Raises:
        Fault: If training would stop at one of them, or at the messages.
    """
    if not isinstance(regions, list):
        raise Fault("regions are no list", shortened(regions))
    for region in regions:
        if not isinstance(region, dict) or not {"mask"} <= region.keys() <= REGION.keys():
            hint = "`recipes/regions.py --format jsonl` makes rows of boxes, polygons and masks"
            raise Fault("regions of another form", f"{shortened(region)}: {hint}")
    for message in messages:
        if message["role"] not in ROLES.values():
            raise Fault("turn without speaker or words", shortened(message))
        check_words(words_of(message["content"]))
    if not any(message["role"] == "assistant" and words_of(message["content"]).strip() for message in messages):
        raise Fault("no question with an answer")
    try:
        messages = with_placeholders(messages, len(pictures))
    except ValueError as error:
        raise Fault("messages and images do not fit", str(error)) from error
    size_of = cache(lambda n: shown_size(pictures[n]))
    return [read_region(n, region, messages, len(pictures), size_of) for n, region in enumerate(regions)]


def read_region(
    n: int,
    region: dict[str, Any],
    messages: list[dict[str, Any]],
    num_images: int,
    size_of: Callable[[int], tuple[int, int]],
) -> dict[str, Any]:
    try:
        check_region(n, region)
    except ValueError as error:
        raise Fault("regions of another form", str(error)) from error
    image, message, mask = region["image"], region["message"], region["mask"]
    if not 0 <= image < num_images or not (message is None or 0 <= message < len(messages)):
        places = f"image {image}, message {message} of {num_images} images, {len(messages)} messages"
        raise Fault("region of no image or message", f"region {n}: {places}")
    candidates = [m for m in messages if m["role"] != "system"] if message is None else [messages[message]]
    if region["text"] is not None and not any(stands_in(region, candidate) for candidate in candidates):
        raise Fault("phrase that is not in its message", f"region {n}: {shortened(region['text'])}")
    if mask is not None:
        try:
            size = mask_size(mask)  # before there is anything of that size
            if size != size_of(image):
                raise Fault("mask of another size", f"region {n}: {size}, but image {image} has {size_of(image)}")
            mask = encode_mask(decode_rle(mask))
        except Fault:
            raise
        except ValueError as error:
            raise Fault("damaged mask", str(error)) from error
    span = region.get("span") if region["text"] is not None else None  # of a phrase
    return {name: region.get(name) for name in REGION} | {"mask": mask, "span": span or None}


def stands_in(region: dict[str, Any], message: dict[str, Any]) -> bool:
    """Whether a region's phrase stands in one of the parts of a message, at its span if it has one."""
    place = 0
    for part in message["content"]:
        written = part.get("text") or ""
        words = written.strip() if part["type"] == "text" else ""
        if words and region.get("span"):
            start, end = region["span"]
            first = place + written.index(words)
            if first <= start < end <= first + len(words) and words[start - first : end - first] == region["text"]:
                return True
        elif words and find_words(words, region["text"]):
            return True
        place += len(written)
    return False


def shown_size(picture: dict[str, Any]) -> tuple[int, int]:
    """
    Height and width of a picture as it is shown, by its header.

    Raises:
        Fault: If it has none.
    """
    try:
        with open_image(picture) as image:
            return image.size if orientation(image) in SIDEWAYS else (image.height, image.width)
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise Fault("image unreadable", str(error)) from error


def read_parts(role: str, text: str) -> list[dict[str, Any]]:
    """The words of a message, and the placeholders in a question, as parts of its content."""
    parts = split_tags(text.strip()) if role == "user" else [{"type": "text", "text": text.strip()}]
    parts = [part | ({"text": None} if part["type"] == "image" else {}) for part in parts]
    return [part for part in parts if part["text"] is None or part["text"].strip()]


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


def parse(line: bytes) -> dict[str, Any]:
    """
    The record of a line.

    Raises:
        Fault: If it is none.
    """
    if not line.strip():
        raise Fault(BLANK)
    try:
        record = json.loads(line)
    except RecursionError:
        raise Fault("not JSON", "it is nested too deeply") from None
    except ValueError as error:
        raise Fault("not JSON", str(error)) from error
    if not isinstance(record, dict):
        raise Fault("not JSON", "it is no object")
    return record


def read_chat(
    record: dict[str, Any], pictures: list[dict[str, Any]], has_none: bool
) -> tuple[dict[str, Any], list[str]]:
    """
    The `messages` of a record, with `regions` if it has some, and what had to be mended. Where it has no `pictures`, `has_none`
    tells whether it says so.

    Raises:
        Fault: If it cannot be trained on.
    """
    if record.get("regions") not in (None, []):  # which count messages and their characters
        messages, mended = read_as_written(record["messages"]), []
        chat = {"messages": messages, "regions": read_regions(record["regions"], messages, pictures)}
    else:
        messages, mended = read_messages(record["messages"], len(pictures), has_none)
        chat = {"messages": messages}
    check_characters([record.get("id"), chat])
    return chat, mended


def check_characters(content: Any) -> None:
    """Raises [`Fault`] if there is half a character in words, which JSON can hold and no file takes."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Fault("half a character", str(error)) from None


def read_record(line: bytes, number: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """
    One line of the file as a row, and what had to be mended.

    Raises:
        Fault: If it cannot be trained on.
    """
    written = parse(line)
    record = as_row(written)
    if record["messages"] is None:
        lists = [
            name for name, value in written.items() if isinstance(value, list) and value and isinstance(value[0], dict)
        ]
        hint = f"; if the records are in {lists[0]!r}, write that list to a file" if lists else ""
        raise Fault("no conversation", f"it has {', '.join(map(repr, written))[:200]}{hint}")
    names, others = image_names(record["images"]), other_media(record)
    if "image" in others and not names:
        raise Fault("image under another name", f"{others['image']!r}: write it as `image`")
    if media := others.keys() & {"video", "audio"}:
        raise Fault("video or sound", f"{others[min(media)]!r}")
    found = [find_image(folder, name) for name in names]
    check_characters(found)
    images = [{"path": path, "bytes": None} for path, _ in found]
    chat, mended = read_chat(record, images, has_none=any(name in written for name in PICTURES))
    mended += ["path written in another way"] if any(corrected for _, corrected in found) else []
    name = record.get("id")
    return {"id": str(number) if name is None else str(name), "images": images, **chat}, mended


def content_hash(row: dict[str, Any]) -> int:
    """The same for rows of the same images, words and regions, whatever their ids."""
    paths = [image["path"] for image in row["images"]]
    return hashed(json.dumps([paths, row["messages"], row.get("regions")], ensure_ascii=False))


def hashed(text: str) -> int:
    """64 bits that are the same for the same text."""
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
