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
"""Records: names of pictures, other media, and regions, which are looked at as training looks at them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from testing_utils import box_mask, picture, rle, tiny_processor

from recipes.rows.files import load_records, read_records
from recipes.rows.records import Fault, LeftOut, content_hash, find_image, other_media, read_record
from trainers import DataCollatorForGuidedVisionLanguageModeling
from trainers.data_collator import BrokenRowError


TURNS = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cup, a cup."}]
REGION = {"mask": rle(box_mask()), "image": 0, "text": "a cup", "span": [7, 12], "message": 1}
RECORD = {"id": "a", "image": "a.png", "conversations": TURNS}
HEIGHT, WIDTH = box_mask().shape


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(HEIGHT, WIDTH).save(tmp_path / "a.png")
    return tmp_path


def row_of(folder: Path, **over: Any) -> dict[str, Any]:
    return read_record(json.dumps(RECORD | over).encode(), 0, folder)[0]


# Regions


def trained(row: dict[str, Any]) -> int:
    """How many of a row's regions training takes."""
    batch = DataCollatorForGuidedVisionLanguageModeling(tiny_processor(), attention_sink=True)([row])
    return len(batch["query_masks"][0]) if "query_masks" in batch else 0


def region(**over: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in (REGION | over).items() if value != "gone"}]


GOOD = {
    "span": region(),
    "phrase": region(span=None),
    "phrase of any message": region(span=None, message=None, text="A  Cup"),
    "message": region(text=None, span="gone"),
    "nowhere": region(mask=None),
    "question": region(text="What", span=[8, 12], message=0),
}


@pytest.mark.parametrize("regions", GOOD.values(), ids=GOOD)
def test_regions_that_are_kept_can_be_trained_on(folder: Path, regions: list):
    row = row_of(folder, regions=regions)
    assert row["regions"] == [REGION | {"span": None} | regions[0]]
    assert trained(row) == 1


OTHER_FORM = "regions of another form: .*`recipes/regions.py --format jsonl` makes rows of"
BROKEN = {  # and whether training says so, too
    "polygon": (region(mask="gone", polygon=[1, 1, 9, 9, 1, 9]), OTHER_FORM, True),
    "box": ([{"bbox": [1, 1, 9, 9]}], OTHER_FORM, True),
    "box beside a mask": (region(box=[1, 1, 9, 9]), OTHER_FORM, False),
    "words": (["cup"], OTHER_FORM, True),
    "no list": ({"mask": None}, "regions are no list", True),
    "nothing": (0, "regions are no list", False),
    "no message": (region(message="gone"), "regions of another form: region 0: it has no `message`", True),
    "text": (region(text=5), "regions of another form: region 0: its `text` is 5", True),
    "image of words": (region(image="x"), "regions of another form: region 0: its `image` is 'x'", True),
    "span of words": (region(span="ab"), "regions of another form: region 0: its `span` is 'ab'", True),
    "image 5": (region(image=5), "region of no image or message: region 0: image 5, message 1 of 1 images", True),
    "image 10**30": (region(image=10**30), "region of no image or message", True),
    "image -1": (region(image=-1), "region of no image or message", True),
    "message 9": (region(message=9), "region of no image or message", True),
    "zebra": (region(text="zebra", span=None), "phrase that is not in its message: region 0: 'zebra'", True),
    "part of a word": (region(text="cu", span=None), "phrase that is not in its message", True),
    "another span": (region(span=[8, 13]), "phrase that is not in its message", True),
    "endless span": (region(span=[7, 10**30], text="a cup."), "phrase that is not in its message", False),
    "span before": (region(span=[-6, -1]), "phrase that is not in its message", True),
    "half a character": (region(text="\ud83d", span=None), "phrase that is not in its message", True),
    "small mask": (region(mask=rle(box_mask()[:5, :5])), "mask of another size: region 0: \\(5, 5\\), but", True),
    "turned mask": (region(mask=rle(box_mask().T[1:])), "mask of another size", True),
    "huge mask": (region(mask={"size": [10**6, 10**6], "counts": [10**12]}), "damaged mask", True),
    "damaged mask": (region(mask={"size": [HEIGHT, WIDTH], "counts": "1"}), "damaged mask", True),
    "half a mask": (region(mask={"size": [HEIGHT, WIDTH], "counts": "\ud800"}), "damaged mask", True),
    "no mask": (region(mask={"a": 1}), "damaged mask", True),
}


@pytest.mark.parametrize(("regions", "sentence", "is_broken"), BROKEN.values(), ids=BROKEN)
def test_regions_that_training_stops_at_are_faults(folder: Path, regions: Any, sentence: str, is_broken: bool):
    with pytest.raises(Fault, match=sentence):
        row_of(folder, regions=regions)
    if is_broken:
        row = row_of(folder, regions=region()) | {"regions": regions}
        with pytest.raises(BrokenRowError):
            trained(row)


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("<image><image><image>?", "A cup, a cup.", "messages and images do not fit: it has 1 images, but 3"),
        ("What is <|image|>?", "A cup, a cup.", "the model's placeholder among the words"),
        ("What?", "", "no question with an answer"),
        ("What is \ud83d?", "A cup, a cup.", "half a character"),
    ],
)
def test_chats_with_regions_are_looked_at(folder: Path, question: str, answer: str, sentence: str):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    with pytest.raises(Fault, match=sentence):
        row_of(folder, conversations=turns, regions=region(text=None, span=None))
    with pytest.raises(Fault, match="no question with an answer"):
        row_of(
            folder, conversations=turns[:1] if "<" not in question else TURNS[:1], regions=region(text=None, message=0)
        )


def test_masks_are_of_the_picture_as_it_is_shown(folder: Path):
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    picture(WIDTH, HEIGHT).save(folder / "a.png", exif=turned)
    row = row_of(folder, regions=region())
    assert trained(row) == 1
    (folder / "a.png").write_bytes(b"no picture")
    with pytest.raises(Fault, match="image unreadable"):
        row_of(folder, regions=region())
    assert row_of(folder)["id"] == "a"


def test_other_regions_are_no_repeat(folder: Path):
    hashes = {content_hash(row_of(folder, regions=regions)) for regions in (*GOOD.values(), [])}
    assert len(hashes) == len(GOOD) + 1
    assert content_hash(row_of(folder, id="b")) == content_hash(row_of(folder)) in hashes


# Names


@pytest.mark.parametrize("name", ["a%00.png", "a\0.png", "%00", "a\\%00.png", "x" * 5000, "\ud800%.png"])
@pytest.mark.parametrize("read", [load_records, read_records])
def test_names_that_no_file_can_have(folder: Path, name: str, read: Callable):
    (folder / "a.jsonl").write_text("\n".join(json.dumps(RECORD | {"image": image}) for image in (name, "a.png")))
    with pytest.raises(Fault, match="image missing"):
        row_of(folder, image=name)
    rows = read(folder / "a.jsonl", folder, **({"skip_broken": True} if read is read_records else {}))
    assert [row["images"][0]["path"] for row in rows] == [str(folder / "a.png")]


def test_a_name_that_means_several_files_is_none_of_them(folder: Path):
    for name in ("A.jpg", "a.jpg", "b.jpg"):
        picture().save(folder / name)
    assert find_image(folder, "A.jpg") == (str(folder / "A.jpg"), False)
    assert find_image(folder, "B.JPG") == (str(folder / "b.jpg"), True)
    with pytest.raises(Fault, match="^image missing: a.JPG \\(there are A.jpg and a.jpg\\)$"):
        find_image(folder, "a.JPG")


def test_what_strangers_wrote_moves_no_cursor(folder: Path):
    with pytest.raises(Fault) as caught:
        row_of(folder, image="\x1b[2J\x1b]0;x\x07\r\n\u202e\x9b.png")
    assert (
        str(caught.value) == r"image missing: \x1b[2J\x1b]0;x\x07\r\n\u202e\x9b.png"
        and str(caught.value).isprintable()
    )
    with pytest.raises(Fault, match=r"caf\u00e9 \U0001f600 \\ud83d.png "):
        row_of(folder, image="caf\u00e9 \U0001f600 \ud83d.png")


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("image_path", "a.jpg", "image"),
        ("Picture", {"url": "x/a.webp"}, "image"),
        ("clips", ["a.wav"], "audio"),
        ("video", "v.mp4", "video"),
        ("file_name", "a.AVIF", "image"),
        ("rationale", "as seen in photo.jpg", None),
        ("image_caption", "as seen in photo.jpg", None),
        ("link", "https://a/b.mp4", None),
        ("image_id", "a", None),
        ("path", "a.json", None),
        ("video", "", None),
        ("video", None, None),
    ],
)
def test_other_media_are_files_in_columns_of_media(column: str, value: Any, kind: str | None):
    assert other_media({"id": "a.jpg", column: value}) == ({} if kind is None else {kind: column})


def test_a_picture_in_the_record_is_not_lost(folder: Path):
    with pytest.raises(Fault, match="image is not a path"):
        row_of(folder, image={"bytes": "iVBORw0KGgo=", "path": None})
    assert (
        row_of(
            folder, image={"bytes": None, "path": None}, conversations=[{"role": "user", "content": "?"}, TURNS[1]]
        )["images"]
        == []
    )
    assert row_of(folder, image={"bytes": None, "path": "a.png"})["images"][0]["path"] == str(folder / "a.png")


def test_faults_of_a_stream_are_said_once_a_kind_and_counted(folder: Path, caplog: pytest.LogCaptureFixture):
    images = [*(f"{n}.png" for n in range(40)), "a.png", 5]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(RECORD | {"image": image}) for image in images))
    LeftOut.said.clear()
    assert [len(list(load_records(folder / "a.jsonl", folder))) for _ in range(2)] == [1, 1]
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said == [
        f"{folder / 'a.jsonl'}, line 1, is left out: image missing: 0.png. There may be more.",
        f"{folder / 'a.jsonl'}, line 42, is left out: image is not a path: 5. There may be more.",
        *[f"{folder / 'a.jsonl'}: 41 left out (40 image missing, 1 image is not a path)."] * 2,
    ]
