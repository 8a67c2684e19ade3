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
"""People's annotations in the exact forms of their data sets, as rows with regions: from small files to what is trained on."""

import json
import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_files import (
    BOX,
    CATEGORIES,
    SIZE,
    TRIANGLE,
    captions_file,
    coco_file,
    masks,
    picture,
    rectangle,
    run,
    words,
)
from testing_utils import tiny_processor

from recipes.annotations.annotated import Faults, Shape
from recipes.rows.records import Fault
from trainers import DataCollatorForGuidedVisionLanguageModeling
from trainers.run_lengths import decode_rle


# --- Shapes ---


def test_polygons_are_pycocotools_pixel_by_pixel():
    rng = np.random.default_rng(0)
    for _ in range(100):
        size = tuple(int(side) for side in rng.integers(5, 200, 2))
        parts = [
            (rng.random((int(rng.integers(3, 12)), 2)) * size[::-1] * 1.2 - 5).ravel().tolist()
            for _ in range(rng.integers(1, 4))
        ]
        try:
            code = Shape("polygon", parts).code(size)
        except Fault as fault:
            assert fault.kind == "empty shape"
            continue
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *size)))
        assert np.array_equal(decode_rle(code), expected.astype(bool))


def test_boxes_are_their_pixels():
    assert np.array_equal(decode_rle(Shape("box", BOX).code(SIZE)), rectangle(*BOX))
    over_the_edge = Shape("box", [70, 50, 100, 100])
    assert np.array_equal(decode_rle(over_the_edge.code(SIZE)), rectangle(70, 50, 10, 10))


@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        (Shape("box", [90, 10, 5, 5]), "empty shape"),
        (Shape("box", [10, 10, 0, 5]), "empty shape"),
        (Shape("box", [10, 10, 20, 20, 30, 30]), "no box"),
        (Shape("box", [10**400, 10, 20, 20]), "no box"),
        (Shape("box", [1e300, 0, 1e308, 10]), "no box"),
        (Shape("box", [True, 0, 10, 10]), "no box"),
        (Shape("box", None), "no box"),
        (Shape("polygon", [10, 10, 20, 20]), "no polygon"),
        (Shape("polygon", [[1, 2, 3, 4]]), "no polygon"),
        (Shape("polygon", [[1, 2, 3, 4, 5]]), "no polygon"),
        (Shape("polygon", [[1, 2, 3, 4, 5, float("nan")]]), "no polygon"),
        (Shape("polygon", [[0, 0, 1e12, 0, 5, 5]]), "shape far outside of the picture"),
        (Shape("polygon", [-80.0, 0.0, 160.0, 60.0] * 100), "outline that is too long"),
        (Shape("polygon", []), "no polygon"),
        (Shape("polygon", "box"), "no polygon"),
        (Shape("polygon", [[1, 1, 1, 1, 1, 1]]), "empty shape"),
        (Shape("mask", {"size": [60, 80], "counts": [0, 1]}), "damaged mask"),
        (Shape("mask", {"size": [60, 80], "counts": "o" * 50}), "damaged mask"),
        (Shape("mask", [10, 10, 20, 20]), "damaged mask"),
        (Shape("mask", {"size": [2, 2], "counts": [0, 4]}), "mask of another size"),
        (Shape("mask", {"size": [60, 80], "counts": [4800]}), "empty shape"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_no_shape(shape: Shape, fault: str):
    with pytest.raises(Fault) as caught:
        shape.code(SIZE)
    assert caught.value.kind == fault


# --- Formats ---


def test_coco_instances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "7.jpg")
    captions = captions_file(tmp_path / "captions.json", "Two dogs beside a wine glass.", "A man.")
    annotations = coco_file(tmp_path / "instances.json")
    rows = run(monkeypatch, tmp_path, "coco", annotations, "--captions", str(captions), "--exhaustive")
    assert [row["id"] for row in rows] == ["7.jpg#caption0", "7.jpg#caption1", "7.jpg#existence2"]
    api = COCO(str(annotations))
    dog, glass = (api.annToMask(api.loadAnns(n)[0]).astype(bool) for n in (1, 2))
    found = masks(rows[0])
    assert np.array_equal(found["dogs"], dog) and np.array_equal(found["wine glass"], glass)
    assert words(rows[0])[1] == "Two dogs beside a wine glass." and rows[1]["regions"] == []
    found, said = masks(rows[2]), dict(zip(words(rows[2])[::2], words(rows[2])[1::2], strict=True))
    assert found["person"] is None and np.array_equal(found["dog"], dog) and np.array_equal(found["wine glass"], glass)
    for question, answer in said.items():
        assert answer == ("No." if "person" in question else "Yes.")
    printed = capsys.readouterr().out
    assert "3 rows" in printed and "4 regions with a mask" in printed and "1 regions of what is nowhere" in printed


def test_a_hot_dog_is_no_dog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    captions = captions_file(tmp_path / "captions.json", "A hot dog.", "A dog and hot dogs.")
    annotations = coco_file(tmp_path / "instances.json", categories=[*CATEGORIES, {"id": 58, "name": "hot dog"}])
    rows = run(monkeypatch, tmp_path, "coco", annotations, "--captions", str(captions))
    assert [masks(row).keys() for row in rows[:2]] == [set(), {"dog"}]
    assert rows[1]["regions"][0]["span"] is None  # the only place where "dog" is a word


def test_coco_without_exhaustive_denies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    rows = run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "instances.json"))
    assert len(rows) == 1 and set(words(rows[0])[1::2]) == {"Yes."}


def test_lvis_knows_what_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "val2017/7.jpg")
    url = "http://images.cocodataset.org/val2017/7.jpg"
    images = [
        {
            "id": 7,
            "coco_url": url,
            "height": 60,
            "width": 80,
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [],
        }
    ]
    categories = [
        {"id": 18, "name": "bow_(weapon)", "synonyms": ["bow"]},
        {"id": 3, "name": "wine_glass"},
        {"id": 4, "name": "a"},
    ]
    annotations = [{"id": 1, "image_id": 7, "category_id": 18, "segmentation": [TRIANGLE], "bbox": BOX, "area": 1.0}]
    file = coco_file(tmp_path / "lvis.json", images=images, categories=categories, annotations=annotations)
    (row,) = run(monkeypatch, tmp_path, "lvis", file)
    found = masks(row)
    assert found.keys() == {"bow", "wine glass"} and found["wine glass"] is None and found["bow"].any()


def test_coco_panoptic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    numbers = np.zeros((*SIZE, 3), dtype=np.uint8)
    numbers[20:35, 10:40] = [3, 2, 1]  # 3 + 2 * 256 + 1 * 256 ** 2
    (tmp_path / "png").mkdir()
    PIL.Image.fromarray(numbers).save(tmp_path / "png/7.png")
    segments = [{"id": 3 + 2 * 256 + 256**2, "category_id": 18, "area": 450, "bbox": BOX, "iscrowd": 0}]
    annotations = [{"image_id": 7, "file_name": "7.png", "segments_info": segments}]
    file = coco_file(tmp_path / "panoptic.json", annotations=annotations)
    (row,) = run(monkeypatch, tmp_path, "panoptic", file, "--masks", str(tmp_path / "png"))
    assert np.array_equal(masks(row)["dog"], rectangle(*BOX))


def test_refcoco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "7.jpg")
    sentences = [
        {"tokens": [], "raw": text, "sent_id": n, "sent": text} for n, text in enumerate(["the left dog", "Dog!"])
    ]
    reference = {"ref_id": 1, "ann_id": 1, "image_id": 7, "category_id": 18, "file_name": "7_1.jpg", "split": "train"}
    references = [
        reference | {"sentences": sentences, "sent_ids": [0, 1]},
        reference | {"split": "testA", "sentences": sentences},
        reference | {"ann_id": 99, "sentences": sentences},
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references))
    file = coco_file(tmp_path / "instances.json")
    options = ("--instances", str(file), "--split", "train")
    (row,) = run(monkeypatch, tmp_path, "refcoco", tmp_path / "refs(unc).p", *options)
    assert words(row)[1::2] == ["the left dog", "Dog!"]
    api = COCO(str(file))
    dog = api.annToMask(api.loadAnns(1)[0]).astype(bool)
    assert [region["message"] for region in row["regions"]] == [1, 3]
    assert all(region["text"] is None and np.array_equal(decode_rle(region["mask"]), dog) for region in row["regions"])
    assert "1 reference to an unknown annotation   '99'" in capsys.readouterr().out


def test_a_file_of_references_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "images").mkdir()
    (tmp_path / "refs.p").write_bytes(pickle.dumps([Hostile()]))
    options = ("--instances", str(coco_file(tmp_path / "instances.json")))
    with pytest.raises(
        SystemExit, match="refs.p is no file of references, or cut off \\(it holds more than lists, .*: STACK_GLOBAL"
    ):
        run(monkeypatch, tmp_path, "refcoco", tmp_path / "refs.p", *options)
    assert not (tmp_path / "ran").exists()


FLICKR = """<annotation>
    <filename>36979.jpg</filename>
    <size><width>80</width><height>60</height><depth>3</depth></size>
    <object><name>1</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>35</ymax></bndbox></object>
    <object><name>1</name><name>2</name><bndbox><xmin>50</xmin><ymin>0</ymin><xmax>60</xmax><ymax>10</ymax></bndbox></object>
    <object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object>
</annotation>"""


def test_flickr30k_entities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "36979.jpg")
    for folder in ("Sentences", "Annotations"):
        (tmp_path / "entities" / folder).mkdir(parents=True)
    sentence = "[/EN#1/people Two people] and [/EN#2/clothing/other a hat] in [/EN#3/scene a room] .\n"
    (tmp_path / "entities/Sentences/36979.txt").write_text(sentence + "\n[/EN#9/other A cat] sits .\n")
    (tmp_path / "entities/Annotations/36979.xml").write_text(FLICKR)
    (tmp_path / "entities/Sentences/1.txt").write_text(sentence)
    rows = run(monkeypatch, tmp_path, "flickr30k", tmp_path / "entities")
    assert [words(row)[1] for row in rows] == ["Two people and a hat in a room .", "A cat sits ."]
    found = masks(rows[0])
    hat = rectangle(50, 0, 10, 10)
    assert found.keys() == {"Two people", "a hat"} and rows[1]["regions"] == []
    assert np.array_equal(found["Two people"], rectangle(*BOX) | hat) and np.array_equal(found["a hat"], hat)
    printed = capsys.readouterr().out
    assert "2 box, as a mask of its pixels" in printed and "1 annotations that cannot be read   " in printed


def test_visual_genome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    region = {"region_id": 1, "image_id": 7, "phrase": "a dog ", "x": 10, "y": 20, "width": 30, "height": 15}
    (tmp_path / "vg.json").write_text(json.dumps([{"id": 7, "regions": [region, region | {"x": None}]}]))
    (row,) = run(monkeypatch, tmp_path, "visual_genome", tmp_path / "vg.json")
    assert words(row)[1] == "a dog" and np.array_equal(masks(row)[None], rectangle(*BOX))


def test_mask_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "kitchen/1.jpg")
    for name, box in (("red cup", BOX), ("red cup 2", [0, 0, 5, 5]), ("dog", [50, 0, 10, 10])):
        place = tmp_path / "masks/kitchen/1" / f"{name}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rectangle(*box)).save(place)
    (row,) = run(monkeypatch, tmp_path, "masks", tmp_path / "masks")
    assert np.array_equal(masks(row)["red cup"], rectangle(*BOX) | rectangle(0, 0, 5, 5))
    assert np.array_equal(masks(row)["dog"], rectangle(50, 0, 10, 10))


def test_own_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "1.jpg")
    text = "A cup and a cup, no dog."
    good = [
        {"phrase": "a cup", "span": [10, 15], "box": BOX},
        {"phrase": "dog", "mask": None},
        {"polygon": TRIANGLE},
    ]
    bad = [
        {"phrase": "cat", "box": BOX},
        {"phrase": "cup"},
        {"phrase": "cup", "span": [0, 3], "box": BOX},
        {"mask": None},
    ]
    (tmp_path / "own.jsonl").write_text(
        "\n".join(
            json.dumps(line) for line in ({"image": "1.jpg", "text": text, "regions": good + bad}, {"image": "2.jpg"})
        )
    )
    (row,) = run(monkeypatch, tmp_path, "jsonl", tmp_path / "own.jsonl")
    assert [(region["text"], region["span"]) for region in row["regions"]] == [
        ("a cup", [10, 15]),
        ("dog", None),
        (None, None),
    ]
    printed = capsys.readouterr().out
    assert (
        "2 phrase not in the text" in printed
        and "2 region without a shape" in printed
        and "1 odd annotation" in printed
    )
    batch = DataCollatorForGuidedVisionLanguageModeling(tiny_processor(), attention_sink=True)([row])
    assert batch["skipped_rows"].sum() == 0 and batch["query_masks"].shape[1] == 3


@pytest.mark.parametrize(("drawn_on", "left"), [("shown", 10), ("stored", 60 - 20 - 15)])
def test_pictures_that_are_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn_on: str, left: int):
    """A mask is one of the picture as it is shown, whichever way the annotations' size says that it was drawn."""
    picture(tmp_path / "images", "7.jpg", orientation=6)  # shown with 80 rows and 60 columns
    size = {"height": 80, "width": 60} if drawn_on == "shown" else {"height": 60, "width": 80}
    annotations = [{"id": 1, "image_id": 7, "category_id": 18, "segmentation": [], "bbox": BOX, "iscrowd": 0}]
    images = [{"id": 7, "file_name": "7.jpg", **size}]
    (row,) = run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "a.json", images=images, annotations=annotations))
    mask = masks(row)["dog"]
    assert mask.shape == (80, 60) and np.flatnonzero(mask.any(axis=0))[0] == left
    assert mask.sum() == BOX[2] * BOX[3]


def test_what_is_wrong_is_counted_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    picture(tmp_path / "images", "7.jpg")
    picture(tmp_path / "images", "8.jpg")
    good = {"id": 1, "image_id": 7, "category_id": 18, "segmentation": [TRIANGLE], "bbox": BOX, "iscrowd": 0}
    annotations = [
        good,
        good | {"image_id": 99},
        good | {"category_id": 99},
        good | {"segmentation": [[1, 2]]},
        "annotation",
        good | {"image_id": 8},
        good | {"image_id": 9},
    ]
    images = [
        {"id": 7, "file_name": "7.jpg", "height": 60, "width": 80},
        {"id": 8, "file_name": "8.jpg", "height": 5, "width": 8},
    ]
    images += [{"id": 9, "file_name": "../7.jpg", "height": 60, "width": 80}]
    file = coco_file(tmp_path / "a.json", annotations=annotations, images=images)
    captions = captions_file(tmp_path / "captions.json", "A dog.")
    (row,) = run(monkeypatch, tmp_path, "coco", file, "--captions", str(captions))
    assert row["regions"] == []  # for one of the dogs has no shape
    printed = capsys.readouterr().out
    for line in (
        "annotation of an unknown picture",
        "picture of another size",
        "image outside of the folder",
        "no polygon",
        "annotation of an unknown category",
        "odd annotation",
    ):
        assert f"1 {line}" in printed


def test_faults_keep_the_first_of_a_kind():
    faults = Faults()
    for detail in ("a", "b"):
        with faults.counting():
            raise Fault("kind", detail)
    assert faults == {"kind": 2} and faults.first == {"kind": "a"}
