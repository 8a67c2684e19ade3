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
"""Tar shards of samples as rows: no sample loses its picture, no shard ends a training with a traceback, or the memory."""

import io
import json
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from testing_utils import box_mask, picture, rle

from recipes.rows import tars
from recipes.rows.records import LeftOut
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import load_rows
from trainers import get_stage


ROOT = Path(__file__).parents[3]
QUESTION, ANSWER = "Is there a cup?", "Yes."
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
TAGGED = [{"role": "user", "content": f"<image>\n{QUESTION}"}, {"role": "assistant", "content": ANSWER}]
REGIONS = [{"mask": rle(box_mask()), "image": 0, "text": "cup", "span": None, "message": 0}]


def jpeg(seed: int = 0) -> bytes:
    content = io.BytesIO()
    picture(seed=seed).save(content, format="JPEG")
    return content.getvalue()


PICTURE = jpeg()


class Link(str):
    """The name of another file of a shard, which tar stores in the place of the same file."""


def save_shard(file: Path, *members: tuple[str, Any]) -> Path:
    """A tar file of members: their names, and their bytes, words, or what is written as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as shard:
        for name, content in members:
            is_link = isinstance(content, Link)
            content = content if isinstance(content, (bytes, str)) else json.dumps(content)
            content = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(name)
            header.size = len(content)
            if is_link:
                header.type, header.linkname, header.size = tarfile.LNKTYPE, content.decode(), 0
            shard.addfile(header, io.BytesIO(content))
    return file


def rows_of(place: Path, streaming: bool = False) -> list[dict[str, Any]]:
    return list(load_rows(DataArguments(dataset_name=str(place), streaming=streaming), get_stage(4), 64))


def words_of(row: dict[str, Any]) -> list[str]:
    return ["".join(part["text"] or "" for part in message["content"]) for message in row["messages"]]


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeftOut, "said", set())


@pytest.mark.parametrize("streaming", [False, True])
def test_shards(tmp_path: Path, streaming: bool):
    """Captions, chats, chats with regions, and a sample that lacks its words, which is left out; ids of keys name the shard."""
    chat = {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}], "id": "mine"}
    pictures = [jpeg(seed) for seed in range(6)]
    save_shard(tmp_path / "0.tar", ("0.jpg", pictures[0]), ("0.txt", "A cup.\n"))
    second = [("0.jpg", pictures[1]), ("0.json", chat), ("1.jpg", pictures[2])]
    save_shard(tmp_path / "1.tar", *second, ("1.json", {"messages": CHAT, "regions": REGIONS}))
    third = [("0.jpg", pictures[3]), ("0.json", {"caption": "A dog.", "id": 0}), ("1.jpg", pictures[4])]
    save_shard(tmp_path / "2.tar", *third, ("1.json", {"url": "here"}), ("a/0.jpg", pictures[5]), ("a/0.txt", "A."))
    rows = rows_of(tmp_path, streaming)
    assert [row["id"] for row in rows] == ["0/0", "mine", "1/1", "0", "2/a/0"]
    assert [words_of(row) for row in rows] == [
        ["Describe the image.", "A cup."],
        [QUESTION, ANSWER],
        [QUESTION, ANSWER],
        ["Describe the image.", "A dog."],
        ["Describe the image.", "A."],
    ]
    kept = [pictures[n] for n in (0, 1, 2, 3, 5)]
    assert [[image["bytes"] for image in row["images"]] for row in rows] == [[content] for content in kept]
    assert [bool(row["regions"]) for row in rows] == [False, False, True, False, False]
    assert rows[2]["regions"] == REGIONS
    assert rows_of(tmp_path / "0.tar", streaming) == rows[:1]


GOOD = [("9.jpg", PICTURE), ("9.txt", "A cup.")]
FAULTS: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "picture named": ([("0.json", {"messages": CHAT, "image": "x.jpg"})], "image missing"),
    "<image>": ([("0.json", {"messages": TAGGED})], "image missing"),
    "two named": ([("0.jpg", PICTURE), ("0.json", {"messages": CHAT, "images": ["a", "b"]})], "image missing"),
    "two <image>": (
        [("0.jpg", PICTURE), ("0.json", {"messages": [{"role": "user", "content": "<image><image>?"}, CHAT[1]]})],
        "more <image> than images",
    ),
    "another name": ([("0.json", {"messages": CHAT, "image_path": "x.webp"})], "image missing"),
    "video": ([("0.mp4", PICTURE), ("0.json", {"messages": CHAT})], "video or sound"),
    "video and picture": ([("0.jpg", PICTURE), ("0.mp4", b""), ("0.txt", "A.")], "video or sound"),
    "video named": ([("0.jpg", PICTURE), ("0.json", {"messages": CHAT, "video": "a.mp4"})], "video or sound"),
    "document": ([("0.pdf", b"%PDF"), ("0.txt", "A document.")], "image unreadable"),
    "drawing": ([("0.svg", b"<svg/>"), ("0.json", {"messages": CHAT})], "image unreadable"),
    "not a picture": ([("0.h5", b"HDF"), ("0.txt", "A.")], "no conversation"),
    "two texts": ([("0.jpg", PICTURE), ("0.a.txt", "A."), ("0.b.txt", "B.")], "several texts"),
    "regions": (
        [("0.jpg", PICTURE), ("0.json", {"messages": CHAT, "regions": [{"box": [1, 2, 3, 4]}]})],
        "regions of another form",
    ),
    "mask": (
        [
            ("0.jpg", PICTURE),
            ("0.json", {"messages": CHAT, "regions": [REGIONS[0] | {"mask": rle(box_mask().T[3:])}]}),
        ],
        "mask of another size",
    ),
    "half a character": ([("0.jpg", PICTURE), ("0.json", {"messages": CHAT, "id": "\ud800"})], "half a character"),
    "no JSON": ([("0.jpg", PICTURE), ("0.json", "{")], "not JSON"),
    "link": ([("0.jpg", Link("8.jpg")), ("0.json", {"messages": CHAT})], "file that is not read"),
    "large": ([("0.jpg", PICTURE), ("0.txt", "A."), ("0.x", b"0" * 99_000)], "file that is not read"),
    "many": ([("0.jpg", PICTURE), ("0.txt", "A."), *((f"0.{n}", "") for n in range(100))], "file that is not read"),
}


@pytest.mark.parametrize(("members", "kind"), FAULTS.values(), ids=FAULTS)
def test_a_sample_at_fault_costs_itself(
    tmp_path: Path, members: list, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(tars, "LARGEST", 100_000)
    file = save_shard(tmp_path / "a.tar", *members, *GOOD)
    with caplog.at_level(logging.WARNING):
        assert [row["id"] for row in rows_of(file)] == ["a/9"]
    assert f"{tmp_path}, a.tar, 0, is left out: {kind}" in caplog.text and f"1 left out (1 {kind})" in caplog.text
    save_shard(file, *members)
    for streaming in (False, True):
        with pytest.raises(ValueError, match=f"^{file}: none of the 1 samples .*; the first, {file}, 0: {kind}"):
            rows_of(file, streaming)


def test_pictures_by_their_last_suffix(tmp_path: Path):
    """`0.left.jpg` is a picture, and so is what is not in lower case; what macOS adds and folders are no samples."""
    left, right = jpeg(1), jpeg(2)
    chat = {"messages": [{"role": "user", "content": "<image>or<image>?"}, CHAT[1]], "image": ["l.jpg", "r.jpg"]}
    members = [("._0.jpg", b"mac"), ("0.left.jpg", left), ("0.right.JPG", right), ("0.json", chat), ("0.cls", b"7")]
    (row,) = rows_of(save_shard(tmp_path / "a.tar", *members))
    assert [image["bytes"] for image in row["images"]] == [left, right]
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text", "image", "text"]


def test_faults_are_said_once_a_kind_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    bad = [(f"{n}\x1b[2J.cls", "1") for n in range(40)] + [(f"v{n}.mp4", "1") for n in range(3)]
    file = save_shard(tmp_path / "a.tar", *bad, *GOOD)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert len(rows_of(file, streaming=True)) == 1
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    count = f"{tmp_path}: 43 left out (40 no conversation, 3 video or sound)."
    assert [line[: len(count)] for line in said[2:]] == [count] * 2 and len(said) == 4
    assert "\x1b" not in caplog.text and r"0\x1b[2J, is left out: no conversation: it has cls. There may" in said[0]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("length", [1500, 2048, 3072, 3000])
def test_a_cut_shard_is_a_sentence(tmp_path: Path, streaming: bool, length: int):
    """Within a content, before a header and within one, which Python takes for the end."""
    file = save_shard(
        tmp_path / "cut.tar", ("0.png", b"\1" * 512), ("0.txt", "A"), ("1.png", b"\1" * 512), ("1.txt", "A")
    )
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(
        ValueError,
        match=r"^\S+cut.tar is no tar file, compressed, damaged or cut off \(.+\): unpack it, or fetch it again\.$",
    ):
        rows_of(file, streaming)


@pytest.mark.parametrize("content", [b"", b"words" * 1000, PICTURE])
def test_what_is_no_shard_is_a_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match="a.tar is no tar file, compressed, damaged or cut off"):
        rows_of(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="a.tar: none of the 0 samples can be trained on; the first, they are empty"):
        rows_of(save_shard(tmp_path / "a.tar"))


def block(name: str, kind: bytes, size: int) -> bytearray:
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, size
    return bytearray(header.tobuf(tarfile.GNU_FORMAT))


def sparse() -> bytes:
    """Members of 250 MB each of which nothing is stored."""
    content = bytearray()
    for n in range(4):
        header, size = block(f"0.x{n}", tarfile.GNUTYPE_SPARSE, 0), 250_000_000
        header[386:410] = b"%011o\0%011o\0" % (size, 0)
        header[483:495] = b"%011o\0" % size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content += header
    return bytes(content)


def sparse_by_header() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as shard:
        for n in range(4):
            header = tarfile.TarInfo(f"0.x{n}")
            header.pax_headers = {"GNU.sparse.size": "250000000", "GNU.sparse.map": "0,0"}
            shard.addfile(header)
    return content.getvalue()


def sparse_with_holes() -> bytes:
    """A header that is followed by 20 MB of where its holes are, 21 in each 512 bytes."""
    header = block("0.x", tarfile.GNUTYPE_SPARSE, 0)
    holes = bytearray(b"%011o\0%011o\0" % (512, 0)) * 21 + b"\1" + bytes(7)
    header[386:482], header[482:495] = holes[:96], b"\1%011o\0" % 512
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(holes) * 40_000


BOMBS = {
    "sparse": sparse,
    "sparse by header": sparse_by_header,
    "sparse with holes": sparse_with_holes,
    "long name": lambda: bytes(block("././@LongLink", tarfile.GNUTYPE_LONGNAME, 300_000_000)),
    "long header": lambda: bytes(block("x", tarfile.XHDTYPE, 300_000_000)),
}


def test_a_shard_takes_no_more_memory_than_its_samples(tmp_path: Path):
    for name, content in BOMBS.items():
        (tmp_path / f"{name}.tar").write_bytes(content())
        os.truncate(tmp_path / f"{name}.tar", 300_100_000)  # zeros, which take no place
    code = (
        "import resource, sys; from pathlib import Path; from recipes.rows.tars import check_samples\n"
        "for file in sys.argv[1:]:\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    try: check_samples([Path(file)])\n"
        "    except ValueError as error: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)"
    )
    files = [str(tmp_path / f"{name}.tar") for name in BOMBS]
    run = subprocess.run([sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True, check=True)
    said = run.stdout.strip().splitlines()
    assert [int(line.split()[0]) < 50_000 for line in said] == [True] * len(BOMBS), said  # kilobytes
    assert all("a member has a header of more than" in line or "file that is not read" in line for line in said), said


def test_rows_of_another_version_of_the_code_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from recipes.rows import files

    file = save_shard(tmp_path / "a.tar", *GOOD)
    (row,) = rows_of(file)
    monkeypatch.setattr(tars, "REQUEST", "What is it?")
    assert rows_of(file) == [row]
    monkeypatch.setattr(files, "VERSION", -1)
    assert words_of(rows_of(file)[0]) == ["What is it?", "A cup."]
