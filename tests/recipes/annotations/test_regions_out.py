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
"""Where rows of annotations are written, options that go with them, and regions as a file for labelling tools."""

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_files import BOX, SIZE, captions_file, coco_file, picture, rectangle, run

from recipes import data, regions
from recipes.annotations import files
from recipes.annotations.export import to_coco
from recipes.rows.files import write_parquet
from recipes.rows.records import FEATURES, REGIONS
from trainers.run_lengths import decode_rle, encode_mask


# --- The folder of the rows ---


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_rows_stay_until_others_are_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    file = coco_file(tmp_path / "a.json")
    monkeypatch.setattr(files, "ROWS_PER_FILE", 1)
    captions = captions_file(tmp_path / "captions.json", "A dog.", "A dog.")
    run(monkeypatch, tmp_path, "coco", file, "--captions", str(captions))
    before = content(tmp_path / "rows")
    assert len(before) == 4

    def cut_off(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for change in ("cut off", "nothing", "interrupted"):
        with monkeypatch.context() as patched, pytest.raises((SystemExit, KeyboardInterrupt)):
            if change == "cut off":
                (tmp_path / "b.json").write_text(file.read_text()[:-1])
            elif change == "nothing":
                coco_file(tmp_path / "b.json", annotations=[])
            else:
                coco_file(tmp_path / "b.json")
                patched.setattr(files, "write_parquet", lambda place, *rows: (place.touch(), cut_off()))
            run(patched, tmp_path, "coco", tmp_path / "b.json")
        assert content(tmp_path / "rows") == before
    (tmp_path / "rows/_00007.parquet.99").touch()  # of a process that was killed
    run(monkeypatch, tmp_path, "coco", file)
    assert content(tmp_path / "rows").keys() == {"_rows.json", "train-00000-of-00001.parquet"}


def test_rows_of_another_command_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A dog."}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "7.jpg", "conversations": turns}))
    options = ["--json", str(tmp_path / "a.jsonl"), "--images", str(tmp_path / "images"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["data.py", *options, "--out", str(tmp_path / "rows")])
    data.main()
    others = [tmp_path / "rows", tmp_path / "rows_of_nobody", tmp_path / "odd"]
    for folder, names in ((others[1], ("a.parquet",)), (others[2], ("a.parquet", "_rows.json"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("{")
    for folder in others:
        before = content(folder)
        with pytest.raises(SystemExit, match="_rows.json is damaged" if folder.name == "odd" else "holds other rows"):
            run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "a.json"), "--out", str(folder))
        assert content(folder) == before


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "folder").mkdir()
    file = coco_file(tmp_path / "a.json")
    for kind, options, sentence in (
        ("lvis", ("--exhaustive",), "`--exhaustive` does nothing with `--format lvis`: it is for coco"),
        ("coco", ("--split", "train"), "`--split` does nothing with `--format coco`: it is for refcoco"),
        ("coco", ("--instances", "a"), "`--instances` does nothing"),
        ("coco", ("--masks", "a"), "`--masks` does nothing with `--format coco`: it is for panoptic"),
        ("jsonl", ("--captions", "a"), "`--captions` does nothing"),
        ("coco", ("--to_coco", "a"), "`--annotations` does nothing with `--to_coco`"),
        ("refcoco", (), "`--format refcoco` needs `--instances`"),
        ("panoptic", (), "`--format panoptic` needs `--masks`"),
        ("panoptic", ("--masks", "nowhere"), "There is no folder nowhere: pass one as `--masks`"),
        ("coco", ("--images", "nowhere"), "There is no folder nowhere: pass one as `--images`"),
        ("coco", ("--annotations", "nowhere"), "There is no file nowhere: `--annotations` of `coco` is a file"),
        ("coco", ("--annotations", str(tmp_path / "folder")), "There is no file .*folder: `--annotations`"),
        ("jsonl", ("--annotations", str(tmp_path / "folder")), "There is no file .*folder: `--annotations`"),
        ("flickr30k", (), "There is no folder .*a.json: `--annotations` of `flickr30k` is a folder"),
        ("flickr30k", ("--annotations", str(tmp_path / "folder")), "folder has no Sentences/\\*.txt and Annotations"),
        ("masks", ("--annotations", str(tmp_path / "folder")), "folder has no folders of masks"),
        ("coco", ("--captions", "nowhere.json"), "nowhere.json cannot be read \\(No such file"),
        ("coco", ("--captions", str(tmp_path / "folder")), "folder cannot be read \\(Is a directory"),
        ("coco", ("--captions", str(file)), "There is nothing to train on"),
        ("refcoco", ("--instances", "nowhere.json"), "a.json is no file of references, or cut off"),
        ("visual_genome", (), "a.json is no list of pictures"),
        ("coco", ("--out", str(file)), "a.json is a file: `--out` is a folder"),
        ("coco", ("--out", str(file / "rows")), "rows cannot be a folder"),
        ("coco", ("--push_to_hub", "me"), "`--push_to_hub` is an id"),
        ("coco", ("--seed", "-1"), "`--seed` is 0 or more, not -1"),
        ("coco", (), "There is nothing to train on.*\n.*\n.*1 image missing"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{sentence}"):
            run(monkeypatch, tmp_path, kind, file, *options)
    (tmp_path / "b.json").write_text('{"images": []}')
    with pytest.raises(SystemExit, match="b.json has no 'annotations' and no 'categories': it is not of the format"):
        run(monkeypatch, tmp_path, "coco", tmp_path / "b.json")
    monkeypatch.setattr(sys, "argv", ["regions.py", "--out", "a"])
    with pytest.raises(SystemExit, match="Pass `--format`, `--annotations`, `--images`, or `--to_coco`"):
        regions.main()
    for name, value in (("--seed", "0"), ("--push_to_hub", "me/a"), ("--format", "coco")):
        monkeypatch.setattr(sys, "argv", ["regions.py", "--to_coco", "a", "--out", "b", name, value])
        with pytest.raises(SystemExit, match=f"`{name}` does nothing with `--to_coco`"):
            regions.main()


# --- Regions as a file ---


def export(monkeypatch: pytest.MonkeyPatch, folder: Path, out: Path, *options: str) -> COCO:
    monkeypatch.setattr(sys, "argv", ["regions.py", "--to_coco", str(folder), "--out", str(out), *options])
    regions.main()
    return COCO(str(out))


def test_a_labelling_tool_reads_what_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    captions = captions_file(tmp_path / "captions.json", "A dog.")
    run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "instances.json"), "--captions", str(captions))
    back = export(monkeypatch, tmp_path / "rows", tmp_path / "back.json")
    first = COCO(str(tmp_path / "instances.json"))
    assert {category["name"] for category in back.loadCats(back.getCatIds())} == {"dog", "wine glass"}
    (image,) = back.loadImgs(back.getImgIds())
    assert image["file_name"] == "7.jpg" and (image["height"], image["width"]) == SIZE
    dog = first.annToMask(first.loadAnns(1)[0])
    (found,) = back.loadAnns(back.getAnnIds(catIds=back.getCatIds(catNms=["dog"])))  # of the caption and the question
    assert np.array_equal(back.annToMask(found), dog)
    assert found["area"] == dog.sum() and found["bbox"] == coco_mask.toBbox(found["segmentation"]).tolist()


GOOD = encode_mask(rectangle(*BOX))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def row(name: str | None, picture: dict[str, Any], mask: dict | None = GOOD, **region: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cup"}]},
    ]
    made = {"mask": mask, "image": 0, "text": "A cup", "span": None, "message": 1} | region
    return {"id": name, "images": [picture], "messages": messages, "regions": [made]}


def rows_file(place: Path, *rows: dict[str, Any]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(place, rows, Features(FEATURES | REGIONS))
    return place.parent


def in_bytes(content: bytes) -> dict[str, Any]:
    return {"path": None, "bytes": content}


def test_pictures_go_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not by their rows' ids, which several may have, none, or ones that are alike as file names."""
    contents = [png(n) for n in range(3)]
    ids = ("a/b", "a_b", None, None, "x" * 300)
    made = [row(name, in_bytes(contents[n % 3])) for n, name in enumerate(ids)]
    folder = rows_file(tmp_path / "rows/data/train-0.parquet", *made).parent
    rows_file(folder / "_aside.parquet", row("7", in_bytes(png(7))))
    back = export(monkeypatch, folder, tmp_path / "out/back.json")
    images = back.loadImgs(back.getImgIds())
    assert [image["file_name"] for image in images] == [
        f"{hashlib.blake2b(one, digest_size=16).hexdigest()}.png" for one in contents
    ]
    for image, one in zip(images, contents, strict=True):
        shown = np.asarray(PIL.Image.open(tmp_path / "out/back_pictures" / image["file_name"]))
        assert np.array_equal(shown, np.asarray(PIL.Image.open(io.BytesIO(one))))
    assert [entry["image_id"] for entry in back.loadAnns(back.getAnnIds())] == [1, 2, 3]


def test_names_start_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a/1.jpg", "b/1.jpg"):
        picture(tmp_path / "images", name)
    paths = [{"path": str(tmp_path / "images" / name), "bytes": None} for name in ("a/1.jpg", "b/1.jpg")]
    folder = rows_file(tmp_path / "rows/train-0.parquet", *(row(str(n), path) for n, path in enumerate(paths)))

    def names(*options: str) -> list[str]:
        back = export(monkeypatch, folder, tmp_path / "back.json", *options)
        return [image["file_name"] for image in back.loadImgs(back.getImgIds())]

    assert names() == ["a/1.jpg", "b/1.jpg"]
    assert names("--images", str(tmp_path)) == ["images/a/1.jpg", "images/b/1.jpg"]
    assert names("--images", str(tmp_path / "images/b")) == ["1.jpg"]


def test_shapes_of_a_picture_are_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "1.jpg")
    image = {"path": str(tmp_path / "images/1.jpg"), "bytes": None}
    other = encode_mask(rectangle(0, 0, 5, 5))
    made = [row("a", image), row("b", image), row("c", image, text="a  CUP"), row("d", image, other)]
    made += [row("e", image, text="plate"), row("f", image, text=None)]  # all of "A cup"
    back = export(monkeypatch, rows_file(tmp_path / "rows/train-0.parquet", *made), tmp_path / "back.json")
    found = [(entry["category_id"], entry["area"]) for entry in back.loadAnns(back.getAnnIds())]
    assert found == [(1, 450), (1, 25), (2, 450)]
    assert [category["name"] for category in back.loadCats([1, 2])] == ["A cup", "plate"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"mask": {"size": [60, 80], "counts": "P" * 15}}, "damaged mask"),
        ({"mask": {"size": [60, 80], "counts": "o" * 50}}, "damaged mask"),
        ({"mask": {"size": [60, 80], "counts": "oooooo0oooooo0"}}, "damaged mask"),
        ({"mask": encode_mask(np.ones((5, 5), dtype=bool))}, "mask of another size"),
        ({"image": 1}, "region of no picture"),
        ({"image": -1}, "region of no picture"),
        ({"image": None}, "odd annotation"),
        ({"text": None, "message": 9}, "region without words"),
        ({"text": " "}, "region without words"),
    ],
    ids=str,
)
def test_odd_regions_are_left_out(tmp_path: Path, change: dict[str, Any], fault: str):
    made = [row("a", in_bytes(png(0)), **change), row("b", in_bytes(png(1)))]
    said = to_coco(rows_file(tmp_path / "rows/train-0.parquet", *made), tmp_path / "back.json")
    assert said.startswith("1 regions of 1 pictures in ") and f"1 {fault}   " in said
    (entry,) = json.loads((tmp_path / "back.json").read_text())["annotations"]
    assert np.array_equal(decode_rle(entry["segmentation"]), rectangle(*BOX))


def test_odd_pictures_are_left_out(tmp_path: Path):
    made = [row("a", in_bytes(b"no picture")), row("b", {"path": "nowhere.jpg", "bytes": None})]
    made += [row("c", {"path": None, "bytes": None}), row("d", in_bytes(png(1)))]
    said = to_coco(rows_file(tmp_path / "rows/train-0.parquet", *made), tmp_path / "back.json")
    assert "1 regions of 1 pictures" in said and "2 odd annotation" in said and "1 image unreadable" in said


def test_no_rows_to_write(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    rows_file(tmp_path / "without/train-0.parquet", row("a", in_bytes(png(0)), None))
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"images": [1]}), tmp_path / "other/a.parquet")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/a.parquet").write_bytes(b"PAR1")
    for name, sentence in (
        ("nowhere", "nowhere is no folder with parquet files"),
        ("empty", "empty is no folder with parquet files"),
        ("without", "There are no regions with a mask in .*without"),
        ("other", "a.parquet holds no rows with regions \\(it has no messages, regions"),
        ("damaged", "a.parquet holds no rows with regions"),
    ):
        with pytest.raises(ValueError, match=sentence):
            to_coco(tmp_path / name, tmp_path / "back.json")
    folder = rows_file(tmp_path / "rows/train-0.parquet", row("a", in_bytes(png(0))))
    with pytest.raises(ValueError, match="empty is a folder: with `--to_coco`, `--out` is the file to write"):
        to_coco(folder, tmp_path / "empty")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="back.json cannot be written"):
        to_coco(folder, tmp_path / "file/back.json")
