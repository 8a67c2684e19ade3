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
"""COCO's and LVIS's files: what is denied, what is named, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
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

from modeling_agevlm.processing_agevlm import find_words
from recipes.annotations.annotated import Annotated, Faults, Shape, Text
from recipes.annotations.coco import name_things, read_instances
from recipes.annotations.names import plural, read_name, with_article


GOOD = {"id": 1, "image_id": 7, "category_id": 18, "segmentation": [TRIANGLE], "bbox": BOX, "iscrowd": 0}


def denied(rows: list[dict[str, Any]]) -> set[str]:
    """What is said to be nowhere."""
    return {name for row in rows for name, mask in masks(row).items() if mask is None}


@pytest.mark.parametrize(
    "faulty",
    [
        {"segmentation": [], "bbox": None},
        {"segmentation": None, "bbox": [1, 2, 3]},
        {"segmentation": [[1, 1, 1, 1, 1, 1]]},
        {"segmentation": [10, 10, 20, 20]},
        {"segmentation": {"size": [60, 80], "counts": "o"}},
        {"segmentation": {"size": [6, 8], "counts": [0, 48]}},
    ],
    ids=str,
)
def test_what_a_faulty_annotation_shows_is_not_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faulty: dict):
    picture(tmp_path / "images", "7.jpg")
    captions = captions_file(tmp_path / "captions.json", "Two dogs.")
    options = ("--exhaustive", "--captions", str(captions))
    for annotations in ([GOOD | faulty], [GOOD, GOOD | faulty]):
        rows = run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "a.json", annotations=annotations), *options)
        assert denied(rows) <= {"person", "wine glass"} and denied(rows)
        assert all("dog" not in text for row in rows for text in words(row)[::2])
        assert rows[0]["regions"] == []  # one of the two dogs is not all of them


def test_an_annotation_without_a_box_is_faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    annotations = [{"id": 1, "image_id": 7, "category_id": 1}, GOOD | {"category_id": 46}]
    file = coco_file(tmp_path / "a.json", annotations=annotations)
    rows = run(monkeypatch, tmp_path, "coco", file, "--exhaustive")
    assert denied(rows) == {"dog"}


def test_of_an_unknown_category_anything_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    for other in (99, None, "dog", True):
        file = coco_file(tmp_path / "a.json", annotations=[GOOD, GOOD | {"category_id": other}])
        rows = run(monkeypatch, tmp_path, "coco", file, "--exhaustive")
        assert denied(rows) == set() and masks(rows[0]).keys() == {"dog"}
    categories = [*CATEGORIES, {"id": 5, "name": "  "}]
    file = coco_file(tmp_path / "a.json", annotations=[GOOD, GOOD | {"category_id": 5}], categories=categories)
    assert denied(run(monkeypatch, tmp_path, "coco", file, "--exhaustive")) == set()


def test_a_category_without_a_name_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    names = ("", " (animal)", "<|image|>", "\ud83d", None)
    categories = [*CATEGORIES, *({"id": 100 + n, "name": name} for n, name in enumerate(names))]
    file = coco_file(tmp_path / "a.json", annotations=[GOOD], categories=categories)
    for seed in range(5):
        (row,) = run(monkeypatch, tmp_path, "coco", file, "--exhaustive", "--seed", str(seed))
        assert denied([row]) <= {"person", "wine glass"}


@pytest.mark.parametrize(("image", "given"), [(7, "7"), ("7", 7), (7, 7.0), (" a", " a")])
def test_ids_are_compared_in_one_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Any, given: Any):
    picture(tmp_path / "images", "7.jpg")
    images = [{"id": image, "file_name": "7.jpg", "height": 60, "width": 80}]
    annotations = [GOOD | {"image_id": given, "category_id": "18"}]
    file = coco_file(tmp_path / "a.json", images=images, annotations=annotations)
    rows = run(monkeypatch, tmp_path, "coco", file, "--exhaustive")
    assert denied(rows) <= {"person", "wine glass"} and "dog" in masks(rows[0])


@pytest.mark.parametrize(
    "stray", [GOOD | {"image_id": 8}, GOOD | {"image_id": None}, {"category_id": 18}, "dog"], ids=str
)
def test_exhaustive_with_an_annotation_of_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: Any):
    picture(tmp_path / "images", "7.jpg")
    file = coco_file(tmp_path / "a.json", annotations=[GOOD, stray])
    assert len(run(monkeypatch, tmp_path, "coco", file)) == 1
    with pytest.raises(SystemExit, match="a.json has an annotation of none of its pictures, .* would be denied"):
        run(monkeypatch, tmp_path, "coco", file, "--exhaustive")


def test_a_file_with_two_ids_is_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    images = [{"id": n, "file_name": "7.jpg", "height": 60, "width": 80} for n in (7, 8)]
    annotations = [GOOD, GOOD | {"image_id": 8, "category_id": 1}]
    file = coco_file(tmp_path / "a.json", images=images, annotations=annotations)
    (row,) = run(monkeypatch, tmp_path, "coco", file, "--exhaustive")
    assert denied([row]) == {"wine glass"} and masks(row).keys() == {"dog", "person", "wine glass"}


def test_ids_of_several_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "images").mkdir()
    images = [{"id": id, "file_name": name, "height": 60, "width": 80} for id, name in ((7, "7.jpg"), ("7", "8.jpg"))]
    with pytest.raises(SystemExit, match="The pictures 7.jpg and 8.jpg have the same id \\(7\\)"):
        run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "a.json", images=images))
    categories = [{"id": 18, "name": "dog"}, {"id": 18, "name": "cat"}]
    with pytest.raises(SystemExit, match="Several categories have the same id \\(18\\)"):
        run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "a.json", categories=categories))


def test_each_shape_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "7.jpg")
    captions = captions_file(tmp_path / "captions.json", "A dog.", "A dog and a person.", "One person.")
    annotations = [GOOD | {"segmentation": [[1, 1, 1, 1, 1, 1]]}]
    annotations += [GOOD | {"category_id": 1, "segmentation": []}]
    run(
        monkeypatch,
        tmp_path,
        "coco",
        coco_file(tmp_path / "a.json", annotations=annotations),
        "--captions",
        str(captions),
    )
    printed = capsys.readouterr().out
    assert "1 empty shape   polygon [[1, 1, 1, 1, 1, 1]]" in printed and "1 box, as a mask" in printed


def test_odd_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "7.jpg")
    odd = ("", "  ", 5, None, ["A dog."], "A <|image|> dog.", "A \ud83d dog.")
    captions = captions_file(tmp_path / "captions.json", *odd, "A dog.")
    rows = run(monkeypatch, tmp_path, "coco", coco_file(tmp_path / "a.json"), "--captions", str(captions))
    assert [row["id"] for row in rows] == ["7.jpg#caption0", "7.jpg#existence1"]
    printed = capsys.readouterr().out
    for line in ("2 no words", "3 odd annotation", "1 the model's placeholder", "1 half a character"):
        assert line in printed


def test_lvis_of_several_senses_and_not_exhaustive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    categories = [
        {"id": 1, "name": "mouse_(computer_equipment)"},
        {"id": 2, "name": "mouse_(animal)"},
        {"id": 3, "name": "cup"},
        {"id": 4, "name": "tree"},
    ]
    image = {"id": 7, "file_name": "7.jpg", "height": 60, "width": 80}
    image |= {"neg_category_ids": [2, 3, 4], "not_exhaustive_category_ids": [4, 3]}
    annotations = [GOOD | {"category_id": 4}]
    captions = captions_file(tmp_path / "captions.json", "A tree before trees.")
    file = tmp_path / "lvis.json"
    options = ("--captions", str(captions))
    for negative, expected in (([2, 3, 4], set()), ([1, 2], {"mouse"})):
        coco_file(
            file, categories=categories, annotations=annotations, images=[image | {"neg_category_ids": negative}]
        )
        rows = run(monkeypatch, tmp_path, "lvis", file, *options)
        # A tree may be the one that is annotated, trees are more.
        assert denied(rows) == expected and masks(rows[0]).keys() == {"tree"}


# --- What captions name ---


def slow_phrases(text: str, forms: dict[str, str]) -> list[tuple[int, int]]:
    """Every form, the longest first, looked for in all of the text."""
    taken: list[tuple[int, int]] = []
    for form in sorted(forms, key=len, reverse=True):
        for start, end in find_words(text, form):
            if all(end <= first or last <= start for first, last in taken):
                taken.append((start, end))
    return taken


def test_captions_name_what_every_form_finds():
    letters = [
        "dog",
        "hot",
        "hot dog",
        "dogs",
        "hotdog",
        "\u00c9clair",
        "e\u0301clair",
        "ECLAIR",
        "\u732b",
        "\u732b\u732b",
        "stra\u00dfe",
    ]
    letters += ["STRASSE", "I\u0307ce", "a", "of", ".", "-", "\n", "glasses", "\ufb01sh", "Fish"]
    names = ["dog", "hot dog", "hot", "\u00e9clair", "\u732b", "stra\u00dfe", "glass", "\u0130ce", "fish", "a  b"]
    forms = {plural(name): name for name in names} | {name: name for name in names}
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        text = rng.choice(["", " ", "  "]).join(rng.choice(letters, 8)) + "."
        made = Annotated("1.jpg", captions=[Text(text)], things={name: [Shape("box", BOX)] for name in names})
        list(name_things([made], names))
        places = [(phrase.start, phrase.end) for phrase in made.captions[0].phrases]
        assert places == slow_phrases(text, forms)
        found += len(places)
    assert found > 300


def test_captions_are_not_looked_through_for_all_categories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looked: list[str] = []
    monkeypatch.setattr("recipes.annotations.coco.find_words", lambda text, form: looked.append(form) or [])
    categories = [{"id": n, "name": f"thing{n} x"} for n in range(1203)]
    captions = captions_file(tmp_path / "captions.json", "A thing7 x and a man.")
    file = coco_file(tmp_path / "a.json", categories=categories, annotations=[])
    list(read_instances(file, captions, False, Faults()))
    assert looked == ["thing7 xes", "thing7 x"]


def test_a_name_is_rather_its_category_than_another_plural(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    categories = [{"id": 1, "name": "glasses"}, {"id": 2, "name": "glass"}]
    annotations = [GOOD | {"category_id": 1}, GOOD | {"category_id": 2, "segmentation": []}]
    file = coco_file(tmp_path / "a.json", categories=categories, annotations=annotations)
    captions = captions_file(tmp_path / "captions.json", "A man with glasses.")
    row, _ = run(monkeypatch, tmp_path, "coco", file, "--captions", str(captions))
    assert masks(row)["glasses"].sum() < BOX[2] * BOX[3]  # the triangle


def test_what_a_caption_names_is_not_denied(tmp_path: Path):
    captions = captions_file(tmp_path / "captions.json", "People with a dog.")
    file = coco_file(tmp_path / "a.json", annotations=[GOOD])
    for given, absent in ((captions, ["wine glass"]), (None, ["wine glass", "person"])):
        (read,) = read_instances(file, given, True, Faults())
        assert [name for name in read.absent if read.is_absent(name)] == absent


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("wine_glass", "wine glass"),
        ("bow_(weapon)", "bow"),
        ("cup_(for_tea) blue", "cup blue"),
        ("sky-other-merged", "sky"),
        ("tree-merged", "tree"),
        ("door-stuff", "door"),
        ("floor-wood", "floor"),
        ("wall-tile", "wall"),
        ("window-blind", "window-blind"),
        ("cobblestone", "cobblestone"),
        ("other", "other"),
    ],
)
def test_names_of_stuff(written: str, name: str):
    assert read_name({"name": written}, stuff=True) == name
    assert read_name({"name": "floor-wood"}) == "floor-wood"


@pytest.mark.parametrize(
    ("name", "one", "several"),
    [
        ("dog", "a dog", "dogs"),
        ("Orange", "an Orange", "Oranges"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("unicycle", "a unicycle", "unicycles"),
        ("scissors", "scissors", "scissors"),
        ("skis", "skis", "skis"),
        ("bus", "a bus", "buses"),
        ("tennis racket", "a tennis racket", "tennis rackets"),
        ("wine glass", "a wine glass", "wine glasses"),
        ("person", "a person", "people"),
        ("teddy bear", "a teddy bear", "teddy bears"),
        ("cherry", "a cherry", "cherries"),
        ("toy", "a toy", "toys"),
        ("toothbrush", "a toothbrush", "toothbrushes"),
        ("knife", "a knife", "knives"),
        ("mouse", "a mouse", "mice"),
        ("snow", "snow", "snow"),
    ],
)
def test_english(name: str, one: str, several: str):
    assert with_article(name) == one and plural(name) == several


# --- Panoptic segmentations ---


def test_panoptic_segments_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    picture(tmp_path / "images", "7.jpg")
    picture(tmp_path / "images", "8.jpg")
    numbers = np.zeros((*SIZE, 3), dtype=np.uint8)
    numbers[:10, :] = [4, 0, 0]
    numbers[20:35, 10:40] = [3, 2, 1]
    (tmp_path / "png").mkdir()
    PIL.Image.fromarray(numbers).save(tmp_path / "png/7.png")
    categories = [{"id": 18, "name": "dog"}, {"id": 187, "name": "sky-other-merged", "isthing": 0}]
    segments = [
        {"id": 9, "category_id": 99},
        "segment",
        {"id": 4, "category_id": 187},
        {"id": 3 + 2 * 256 + 256**2, "category_id": 18},
    ]
    annotations = [{"image_id": 7, "file_name": "7.png", "segments_info": segments}]
    annotations += [{"image_id": 8, "file_name": "8.png", "segments_info": segments}]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 60, "width": 80} for n in (7, 8)]
    file = coco_file(tmp_path / "panoptic.json", annotations=annotations, categories=categories, images=images)
    captions = captions_file(tmp_path / "captions.json", "A dog below the blue sky.")
    options = ("--masks", str(tmp_path / "png"), "--captions", str(captions))
    rows = run(monkeypatch, tmp_path, "panoptic", file, *options)
    assert [row["id"] for row in rows] == ["7.jpg#caption0", "7.jpg#existence1"]
    for row in rows:
        assert np.array_equal(masks(row)["sky"], rectangle(0, 0, 80, 10))
        assert np.array_equal(masks(row)["dog"], rectangle(*BOX))
    assert any("sky in the image?" in text and "a sky" not in text for text in words(rows[1])) or any(
        "show sky?" in text for text in words(rows[1])
    )
    printed = capsys.readouterr().out
    assert "1 image missing   8.png" in printed and "1 annotation of an unknown category   '99'" in printed


def test_panoptic_pictures_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from recipes.annotations import coco

    read: list[str] = []
    monkeypatch.setattr(
        coco, "read_image", lambda file: read.append(file.name) or np.zeros((*SIZE, 3), dtype=np.uint8)
    )
    (tmp_path / "png").mkdir()
    for n in (7, 8):
        (tmp_path / f"png/{n}.png").touch()
    annotations = [
        {"image_id": n, "file_name": f"{n}.png", "segments_info": [{"id": 0, "category_id": 18}]} for n in (7, 8)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 60, "width": 80} for n in (7, 8)]
    file = coco_file(tmp_path / "panoptic.json", annotations=annotations, images=images)
    pictures = coco.read_panoptic(file, tmp_path / "png", None, Faults())
    first = next(pictures)
    assert first.things.keys() == {"dog"} and read == ["7.png"]
    assert next(pictures).things.keys() == {"dog"} and read == ["7.png", "8.png"]
    assert not first.things  # masks that have become rows are not kept


def test_json_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "images", "7.jpg")
    for content in ("[" * 200_000, '{"images": [', "", "[]", json.dumps({"images": 1})):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(SystemExit, match="error: .*a.json (is not JSON|has no 'images')"):
            run(monkeypatch, tmp_path, "coco", tmp_path / "a.json")
