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
"""Lines and mask pictures of one's own, and references of others: odd ones are counted, and stop nothing."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from small_files import BOX, TRIANGLE, coco_file, masks, picture, rectangle, run, words

from recipes.annotations.annotated import Faults
from recipes.annotations.own import things_of
from recipes.annotations.phrases import read_references


GOOD = {"image": "1.jpg", "text": "A cup.", "regions": [{"phrase": "A cup", "box": BOX}]}


def own_file(place: Path, *lines: Any) -> Path:
    place.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return place


# --- Lines ---


@pytest.mark.parametrize(
    ("odd", "fault"),
    [
        ({"text": 5}, "words that are none"),
        ({"text": ["a"]}, "words that are none"),
        ({"text": ""}, "no words"),
        ({"text": " \n"}, "no words"),
        ({"text": "A \ud83d cup."}, "half a character"),
        ({"text": "A <|image|> cup."}, "the model's placeholder among the words"),
        ({"image": 5}, "picture without a name"),
        ({"image": ["1.jpg"]}, "picture without a name"),
        ({"image": "\ud800.jpg"}, "half a character"),
        ({"image": "1" * 5000}, "image missing"),
        ({"id": [1]}, "id that is none"),
        ({"regions": 5}, "odd annotation"),
        ("[" * 200_000, "not JSON"),
        ('{"image": "1.jpg", "text": "x", "regions": ' + "[" * 200_000, "not JSON"),
        ("5", "not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_odd_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, odd: Any, fault: str
):
    picture(tmp_path / "images", "1.jpg")
    lines = (GOOD, odd if isinstance(odd, str) else {**GOOD, **odd}, GOOD)
    rows = run(monkeypatch, tmp_path, "jsonl", own_file(tmp_path / "own.jsonl", *lines))
    assert [row["id"] for row in rows] == ["1.jpg#caption0", "1.jpg#caption1"]
    assert f"1 {fault}   " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("region", "fault"),
    [
        ({"phrase": "A cup", "polygon": [10, 10, 20, 20]}, "no polygon"),
        ({"phrase": "A cup", "box": [10, 10, 20, 20, 10, 30]}, "no box"),
        ({"phrase": "A cup", "box": [10**400, 10, 20, 20]}, "no box"),
        ({"phrase": "A cup", "box": None}, "no box"),
        ({"phrase": "A cup", "mask": [10, 10, 20, 20]}, "no mask"),
        ({"phrase": "A cup", "polygon": {"size": [60, 80], "counts": [4800]}}, "no polygon"),
        ({"label": "cup", "box": BOX}, "region with other fields"),
        ({"phrase": "A cup", "box": BOX, "bbox": BOX}, "region with other fields"),
        ({"phrase": "A cup", "box": BOX, "polygon": TRIANGLE}, "region without a shape"),
        ({"phrase": 5, "box": BOX}, "odd annotation"),
        ({"phrase": " ", "box": BOX}, "phrase not in the text"),
        ({"span": [0.0, 5.0], "box": BOX}, "span that is none"),
        ({"span": [False, True], "box": BOX}, "span that is none"),
        ({"span": [0], "box": BOX}, "odd annotation"),
        (5, "odd annotation"),
    ],
    ids=str,
)
def test_an_odd_region(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, region: Any, fault: str
):
    picture(tmp_path / "images", "1.jpg")
    line = {**GOOD, "regions": [region, {"phrase": "cup", "box": BOX}]}
    (row,) = run(monkeypatch, tmp_path, "jsonl", own_file(tmp_path / "own.jsonl", line))
    assert masks(row).keys() == {"cup"} and f"1 {fault}   " in capsys.readouterr().out


def test_ids_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """A record's own, as `recipes/data.py` keeps it; else the picture's name and a number in the whole file."""
    picture(tmp_path / "images", "1.jpg")
    ids = ("x", None, 5, None, "x")
    lines = [{**GOOD, "source": "me"} | ({} if name is None else {"id": name}) for name in ids]
    rows = run(monkeypatch, tmp_path, "jsonl", own_file(tmp_path / "own.jsonl", *lines))
    assert [row["id"] for row in rows] == ["x", "1.jpg#caption0", "5", "1.jpg#caption1", "x#1"]
    assert "5 lines with 'source', which is not read" in capsys.readouterr().out


# --- Mask pictures ---


def mask_file(place: Path, values: np.ndarray, mode: str | None = None, **options: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(place, **options)


@pytest.mark.parametrize(
    "kind", ["1", "L", "L with 0 and 1", "RGB", "RGBA", "opaque", "LA", "P", "I;16", "clear index"]
)
def test_what_is_inside_of_a_mask_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    picture(tmp_path / "images", "7.jpg")
    inside = rectangle(*BOX)
    place = tmp_path / "masks/7/red_cup.PNG"
    place.parent.mkdir(parents=True)
    gray = inside * np.uint8(255)
    if kind in ("1", "L", "RGB"):
        image = PIL.Image.fromarray(gray).convert(kind)
    elif kind == "L with 0 and 1":
        image = PIL.Image.fromarray(inside.astype(np.uint8))
    elif kind in ("RGBA", "LA"):  # black, and seen inside only
        black = np.zeros((*inside.shape, len(kind) - 1), dtype=np.uint8)
        image = PIL.Image.fromarray(np.dstack([black, gray]), mode=None)
    elif kind == "opaque":
        image = PIL.Image.fromarray(gray).convert("RGBA")
    elif kind == "I;16":
        values = inside * np.uint16(1000)
        values[20, 10:20] = 7
        image = PIL.Image.fromarray(values)
    else:
        image = PIL.Image.fromarray(inside.astype(np.uint8))
        image.putpalette([255, 0, 0] + [0, 255, 0] * 255)
    image.save(place, **({"transparency": 0} if kind == "clear index" else {}))
    (row,) = run(monkeypatch, tmp_path, "masks", tmp_path / "masks")
    assert np.array_equal(masks(row)["red cup"], inside)


def test_where_mask_pictures_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for name in ("a[1].jpg", "b.jpg", "c.d.JPG", "e.jpg", "e.png", "f.jpg"):
        picture(tmp_path / "images", name)
    (tmp_path / "images/b.txt").write_text("A caption.")
    gray = rectangle(*BOX) * np.uint8(255)
    for folder in ("a[1]", "b", "c.d", "e", "f", "g", "no/h"):
        mask_file(tmp_path / f"masks/{folder}/cup.png", gray)
    mask_file(tmp_path / "masks/f/plate.png", np.full_like(gray, 255))
    mask_file(tmp_path / "masks/f/dog.jpg", gray)
    mask_file(tmp_path / "masks/f/<|image|>.png", gray)
    mask_file(tmp_path / "masks/f/cat.png", np.zeros_like(gray))
    (tmp_path / "masks/f/spoon.png").write_bytes(b"no picture")
    (tmp_path / "masks/f/notes.txt").write_text("Notes.")
    mask_file(tmp_path / "masks/lost.png", gray)
    rows = run(monkeypatch, tmp_path, "masks", tmp_path / "masks")
    names = ["a[1].jpg#existence0", "b.jpg#existence0", "c.d.JPG#existence0", "f.jpg#existence0"]
    assert [row["id"] for row in rows] == names
    assert all(masks(row).keys() == {"cup"} for row in rows)
    printed = capsys.readouterr().out
    for line in (
        "3 image missing   e.*: 2 pictures",
        "1 mask outside of a picture's folder   lost.png",
        "1 mask that is all of its picture   f/plate.png",
        "1 mask that is no PNG file   dog.jpg",
        "1 the model's placeholder",
        "1 empty shape",
        "1 odd annotation",
    ):
        assert line in printed


def test_names_of_mask_pictures():
    names = ("red_cup_2", "route 66", "cup 1", "cup 2", "dog", "dog3", "2", "mp3", "wine-glass-10", "_")
    found = {mask.stem: name for mask, name in things_of([Path(f"{name}.png") for name in names]).items()}
    assert found == {
        "red_cup_2": "red cup",
        "route 66": "route 66",
        "cup 1": "cup",
        "cup 2": "cup",
        "dog": "dog",
        "dog3": "dog",
        "2": "2",
        "mp3": "mp3",
        "wine-glass-10": "wine-glass",
        "_": "",
    }


# --- References ---

SENTENCES = [{"raw": "the left dog"}]
REFERENCE = {"ann_id": 1, "image_id": 7, "split": "train", "sentences": SENTENCES}


def references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, *options: str) -> list[dict]:
    file = tmp_path / "refs.p"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    instances = tmp_path / "instances.json"
    if not instances.exists():
        coco_file(instances)
    return run(monkeypatch, tmp_path, "refcoco", file, "--instances", str(instances), *options)


def python_2(raw: bytes) -> bytes:
    """A reference as Python 2 writes it, in protocol 0."""
    start = b"(lp0\n(dp1\nS'split'\np2\nS'train'\np3\nsS'ann_id'\nI1\nsS'image_id'\nL7L\nsS'sentences'\n(lp4\n(dp5\nS'raw'\n"
    return start + b"S'" + raw + b"'\nsasa."


def test_references_of_python_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    for raw, expected in ((b"caf\\xc3\\xa9 dog", "caf\u00e9 dog"), (b"caf\\xe9 dog", "caf\ufffd dog")):
        (row,) = references(tmp_path, monkeypatch, python_2(raw))
        assert words(row)[1] == expected


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "but holds None"),
        (5, "but holds 5"),
        ({"a": 1}, "but holds {'a': 1}"),
        (b"\x80\x02]r\x00\xe1\xf5\x05.", "its memo has a place 100000000"),
        (b"\x80\x02]X\xff\xff\xff\x7f.", "expected 2147483647 bytes"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.", "more than lists, .*: BYTEARRAY8"),
        (b"\x80\x02)\x86\x86.", "more than lists, .*: EMPTY_TUPLE"),
        (b"cos\nsystem\n(S'true'\ntR.", "more than lists, .*: GLOBAL"),
        (b"\x82\x01.", "more than lists, .*: EXT1"),
        (b"Psomething\n.", "more than lists, .*: PERSID"),
        (b"\x80\x02]", "it has no end"),
        (b"", "it has no end"),
        (b"no pickle", "more than lists"),
    ],
    ids=str,
)
def test_no_file_of_references(tmp_path: Path, content: Any, sentence: str):
    file = tmp_path / "refs.p"
    file.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(ValueError, match=f"refs.p is no file of references, .*{sentence}"):
        read_references(file)


def test_odd_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "7.jpg")
    odd = [{"raw": ""}, {"raw": None}, {}, 5, {"raw": "A <|image|> dog"}]
    content = [5, None, [], REFERENCE | {"sentences": [*odd, *SENTENCES]}, REFERENCE | {"image_id": "7", "ann_id": 99}]
    annotations = [{"id": 2, "image_id": 7}, "annotation", {"id": 1, "bbox": BOX}]
    images = [{"file_name": "8.jpg"}, {"id": 7, "file_name": "7.jpg", "height": 60, "width": 80}]
    coco_file(tmp_path / "instances.json", annotations=annotations, images=images)
    (row,) = references(tmp_path, monkeypatch, content)
    assert words(row)[1::2] == ["the left dog"] and np.array_equal(masks(row)[None], rectangle(*BOX))
    printed = capsys.readouterr().out
    for line in (
        "1 no words",
        "1 the model's placeholder",
        "1 reference to an unknown annotation   '99'",
        "8 odd annotation",
    ):
        assert line in printed


def test_references_that_repeat_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    deep: list[Any] = []
    for _ in range(40):
        deep = [deep, deep]
    with pytest.raises(SystemExit, match="There is nothing to train on.*\n.*\n.*1 odd annotation"):
        references(tmp_path, monkeypatch, [deep])
    with pytest.raises(SystemExit, match="There is nothing to train on.*\n.*\n.*1 odd annotation"):
        references(tmp_path, monkeypatch, b"\x80\x02]" + nested(100_000)[2:-1] + b"a.")
    reference = REFERENCE | {"sentences": SENTENCES * 1000}
    with pytest.raises(SystemExit, match="its sentences are longer than the file"):
        references(tmp_path, monkeypatch, [reference] * 1000)


def test_a_split_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    with pytest.raises(SystemExit, match="refs.p has no split 'training', but train, val"):
        references(tmp_path, monkeypatch, [REFERENCE, REFERENCE | {"split": "val"}], "--split", "training")


# --- Flickr30k Entities and Visual Genome ---


def test_sentences_with_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    for folder in ("Sentences", "Annotations"):
        (tmp_path / "entities" / folder).mkdir(parents=True)
    (tmp_path / "entities/Sentences/7.txt").write_bytes("\ufeff[/EN#1/people A man] sits .\n<|image|>\n".encode())
    size = "<size><width>80</width><height>60</height></size>"
    box = "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>35</ymax></bndbox>"
    (tmp_path / "entities/Annotations/7.xml").write_text(f"<a>{size}<object><name>1</name>{box}</object></a>")
    (row,) = run(monkeypatch, tmp_path, "flickr30k", tmp_path / "entities")
    assert words(row)[1] == "A man sits ." and np.array_equal(masks(row)["A man"], rectangle(*BOX))


def test_visual_genome_as_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for name in ("VG_100K/1.jpg", "VG_100K_2/2.jpg", "3.jpg"):
        picture(tmp_path / "images", name)
    region = {"phrase": "a dog", "x": 10, "y": 20, "width": 30, "height": 15}
    odd = [{"id": None, "regions": []}, {"id": 1, "regions": None}, 5]
    odd_regions = [region | {"phrase": ""}, region | {"phrase": None}, region | {"phrase": "\ud83d"}, 5, {}]
    content = [*odd, *({"id": n, "regions": [*odd_regions, region]} for n in (1, 2, 3, 4))]
    (tmp_path / "vg.json").write_text(json.dumps(content))
    rows = run(monkeypatch, tmp_path, "visual_genome", tmp_path / "vg.json")
    names = ["VG_100K/1.jpg", "VG_100K_2/2.jpg", "3.jpg"]
    assert [row["id"] for row in rows] == [f"{name}#description0" for name in names]
    assert all(np.array_equal(masks(row)[None], rectangle(*BOX)) for row in rows)
    printed = capsys.readouterr().out
    for line in ("4 no words", "4 half a character", "15 odd annotation", "1 image missing   4.jpg"):
        assert line in printed


def test_own_bugs_are_no_faults_of_an_annotation():
    with pytest.raises(KeyError), Faults().counting():
        raise KeyError("ours")
