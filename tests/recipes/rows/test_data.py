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
"""LLaVA-style data: what is there is found, what is wrong is mended or left out, and counted either way."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from testing_utils import picture, tiny_processor

from recipes import data
from recipes.rows import files, images, json_files
from recipes.rows import survey as survey_module
from recipes.rows.files import (
    check_complete,
    in_subset,
    load_records,
    read_records,
    start_folder,
    write,
    write_parquet,
)
from recipes.rows.json_files import Lines, as_lines
from recipes.rows.records import FEATURES, Fault, read_messages
from recipes.rows.survey import Report, Shard, Source, survey
from trainers import DataCollatorForGuidedVisionLanguageModeling
from trainers.rows import as_row


RECIPES = Path(__file__).parents[3] / "recipes"
NUM_RECORDS = 1000


def turns(*words: str, first: str = "human") -> list[dict[str, str]]:
    speakers = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    return [{"from": speakers[n % 2], "value": value} for n, value in enumerate(words)]


def record(number: int, image: Any = "absent", conversation: list | None = None, **over: Any) -> dict[str, Any]:
    words = turns(f"<image>\nWhat is {number}?", f"It is {number}.") if conversation is None else conversation
    return {"id": f"r{number}", **({} if image == "absent" else {"image": image}), "conversations": words, **over}


def save_images(folder: Path) -> None:
    """Pictures of every kind that is unusual, and broken ones."""
    (folder / "Sam").mkdir(parents=True)
    for n in range(20):
        picture(40, 60, seed=n).save(folder / f"{n}.jpg")
    picture(seed=30).save(folder / "Sam/Some.JPG", format="JPEG")
    picture(seed=36).save(folder / "a cup\u00e9.jpg")
    picture(seed=31).convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    PIL.Image.fromarray(deep).save(folder / "deep.png")
    frames = [picture(seed=n) for n in (32, 33, 34)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    rotated = PIL.Image.Exif()
    rotated[0x0112] = 6
    picture(40, 80, seed=35).save(folder / "rotated.jpg", exif=rotated)
    PIL.Image.new("L", (3000, 2000)).save(folder / "huge.png")
    whole = (folder / "0.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "damaged.jpg").write_bytes(whole[:-40] + whole[-20:])  # nothing that Pillow notices
    (folder / "stray.jpg").write_bytes(whole.replace(b"\xff\xda", b"\1\2\xff\xda", 1))
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "empty.jpg").write_bytes(b"")
    picture(seed=40).save(folder / "evaluated.png")
    picture(seed=41).save(folder.parent / "private.png")
    (folder / "link.png").symlink_to(folder.parent / "private.png")
    (folder / "up").symlink_to("..")
    (folder / "inside.jpg").symlink_to("7.jpg")
    (folder / "dangling.png").symlink_to("/nowhere/at/all.png")


TEXT_ONLY = {"": "", "None": "None", "nan": "nan", "null": None, "NaN": float("nan"), "list": []}
# Line by line what is wrong, and what is to be made of it: what is counted as mended, or as left out.
DIRTY: list[tuple[Any, str | None, str | None]] = [
    *(
        (record(n, value, turns(f"How much is {n}?", "Much.")), None, None)
        for n, value in enumerate(TEXT_ONLY.values())
    ),
    (record(6, "absent", turns("Why 6?", "So.")), None, None),
    (record(7, "None", turns("<image>\nWhy 7?", "So.")), "<image> without an image removed", None),
    (record(8, "sam/some.jpg"), "path written in another way", None),
    (record(9, "./1.jpg"), None, None),
    (record(10, ["1.jpg", "2.jpg"], turns("<image><image>\nTwo?", "Yes.")), None, None),
    (record(11, ["1.jpg", "2.jpg"], turns("<image>\nOne?", "Yes.")), "<image> added", None),
    (record(12, "3.jpg", turns("None?", "Yes.")), "<image> added", None),
    (record(13, "3.jpg", turns("Which tag?", "The <image> tag.")), "<image> added", None),
    (record(14, "cmyk.jpg"), "CMYK image", None),
    (record(15, "deep.png"), "16-bit image", None),
    (record(16, "animated.gif"), "animated image (first frame)", None),
    (record(17, "rotated.jpg"), "image rotated by EXIF", None),
    (
        record(18, "4.jpg", turns("Hello.", "What?", "This.", first="gpt")),
        "turn before the first question removed",
        None,
    ),
    (record(19, "4.jpg", turns("What is 19?", "This.", "And?")), "turn after the last answer removed", None),
    (
        record(20, "4.jpg", [*turns("What?", "This."), {"from": "gpt", "value": "And that."}]),
        "turns of one speaker joined",
        None,
    ),
    (record(21, "4.jpg", turns("What?", "This.", "", "More.")), "empty turn removed", None),
    (record(22, "5.jpg", [{"from": "system", "value": "Be brief."}, *turns("What?", "This.")]), "<image> added", None),
    (record(23, "5.jpg", id=None), None, None),
    (record(24, "nowhere.jpg"), None, "image missing"),
    (record(25, "sam/nowhere.jpg"), None, "image missing"),
    (record(26, "truncated.jpg"), None, "image unreadable"),
    (record(27, "text.jpg"), None, "image unreadable"),
    (record(28, "empty.jpg"), None, "image unreadable"),
    (record(29, "huge.png"), None, "image too large"),
    (record(30, 5), None, "image is not a path"),
    (record(31, "5.jpg", turns("<image><image> Two?", "Yes.")), None, "more <image> than images"),
    (record(32, "5.jpg", turns("What?")), None, "no question with an answer"),
    (record(33, "5.jpg", []), None, "no question with an answer"),
    (record(34, "5.jpg", "words"), None, "no conversation"),
    (record(35, "5.jpg", [{"from": "human"}, {"from": "gpt", "value": "a"}]), None, "turn without speaker or words"),
    (record(36, "5.jpg", [{"from": "cat", "value": "?"}]), None, "turn without speaker or words"),
    (record(37, "evaluated.png"), None, "image of an evaluation set"),
    (b'{"id": "r38", "image": "1.jpg", "conver', None, "not JSON"),
    (b"[1, 2]", None, "not JSON"),
    (b"\xff\xfe", None, "not JSON"),
    (record(23, "5.jpg", id="again"), None, "repeats another record"),
    (record(1000, "6.jpg", id="r9"), None, None),  # another row of the same id
    *(
        (record(1001 + n, name), None, "image outside of the folder")
        for n, name in enumerate(
            ["../private.png", "Sam/../../private.png", "/etc/hostname", "link.png", "LINK.PNG", "up/private.png"]
            + ["UP/private.png", "../nowhere.png", "..", "/", "dangling.png"]
        )
    ),
    (record(1020, "Sam/../7.jpg"), None, None),
    (record(1021, "inside.jpg"), None, None),
    (record(1022, "x" * 300), None, "image missing"),
    (record(1023, "a\0b.jpg"), None, "image missing"),
    (record(1024, "\ud800.jpg"), None, "image missing"),
    (record(1025, "8.jpg", turns("What is \ud800?", "This.")), None, "half a character"),
    (record(1026, "8.jpg", turns("What is \U0001f600?", "This.")), None, None),
    (record(1027, "8.jpg", turns("What?", "This."), id="\udfff"), None, "half a character"),
    (b"[" * 100_000, None, "not JSON"),
    (b'{"n": ' + b"9" * 5000 + b"}", None, "not JSON"),
    (record(1030, "8.jpg", [{"from": ["human"], "value": "What?"}]), None, "turn without speaker or words"),
    (
        json.dumps(record(1031, "8.jpg", turns("\ud800?", "This.")), ensure_ascii=False).encode(
            errors="surrogatepass"
        ),
        None,
        "half a character",
    ),
    (record(1032, "\udc80.png"), None, "half a character"),
    (b" \r", None, None),  # a blank line, which is no record
    (record(1040, None, image_path="8.jpg"), None, "image under another name"),
    (record(1041, None, images=["8.jpg"]), None, None),
    (record(1042, None, turns("<video>\nWhat happens?", "Much."), video="v.mp4"), None, "video or sound"),
    (record(1043, "8.jpg", clips=["a.wav"]), None, "video or sound"),
    (
        record(1044, "8.jpg", turns("<image>\nWhat is <|image|>?", "Much.")),
        None,
        "the model's placeholder among the words",
    ),
    ({"id": "r1045", "conversations": turns("<image>\nWhat is it?", "Much.")}, None, "image missing"),
    ({"id": "r1046", "conversations": turns("What is 1046?", "Much.")}, None, None),
    (record(1047, "A%20cup%C3%A9.jpg", turns("What is 1047?", "A.")), "path written in another way", None),
    (record(1048, "sam\\some.jpg", turns("What is 1048?", "A.")), "path written in another way", None),
    (record(1049, "A cupe\u0301.jpg", turns("What is 1049?", "A.")), "path written in another way", None),
    (record(1050, "%2e%2e/private.png"), None, "image outside of the folder"),
    (record(1051, "..\\private.png"), None, "image outside of the folder"),
    (record(1052, "data:image/png;base64,iVBORw0KGgo="), None, "image is not a path"),
    (record(1053, "8.png"), None, "image missing"),  # there is 8.jpg
    ({"id": "r1054", "image": "8.jpg", "dialog": []}, None, "no conversation"),
    (
        record(1055, "8.jpg", [{"from": "human", "value": "What?"}, {"from": "gpt", "value": [{"type": "image"}]}]),
        None,
        "image outside of questions",
    ),
    (record(1056, "damaged.jpg"), None, "image unreadable"),
    (record(1057, "stray.jpg"), "JPEG with a warning of its decoder", None),
]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A thousand records with every fault among them, and the hash of an evaluation picture."""
    folder = tmp_path_factory.mktemp("dirty")
    save_images(folder / "images")
    shutil.copy(folder / "images/8.jpg", folder / "images" / os.fsdecode(b"\x80.png"))
    records = [given for given, _, _ in DIRTY]
    records += [record(n, f"{n % 20}.jpg") for n in range(len(records), NUM_RECORDS)]
    lines = [given if isinstance(given, bytes) else json.dumps(given).encode() for given in records]
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    (folder / "evaluation").mkdir()
    picture(seed=40).resize((160, 128)).save(folder / "evaluation/other size.jpg", quality=80)
    assert images.write_hashes(folder / "evaluation", folder / "hashes") == 1
    return Source(folder / "data.jsonl", folder / "images", max_pixels=5_000_000, drop_hashes=folder / "hashes")


@pytest.fixture(scope="module")
def report(dirty: Source) -> Report:
    return survey(dirty, workers=2, piece_size=300)


def test_every_fault_is_counted_and_stops_nothing(report: Report):
    assert report.num_records == NUM_RECORDS - 1  # without the blank line
    assert report.faults == Counter(fault for _, _, fault in DIRTY if fault)
    assert report.mended == Counter(mended for _, mended, _ in DIRTY if mended) + Counter(
        {"<image> added": 8, "turns of one speaker joined": 1}
    )
    expected = [n for n in range(NUM_RECORDS) if n >= len(DIRTY) or (DIRTY[n][2] is None and DIRTY[n][0] != b" \r")]
    assert report.kept.tolist() == expected
    assert report.images_per_row == {0: 9, 1: len(expected) - 11, 2: 2}
    for kind, (line, _) in report.first.items():
        assert DIRTY[line][2] == kind
    table = str(report)
    for kind, n in (report.faults | report.mended).items():
        assert f"{n:>12,} {kind}" in table


def test_strict_stops_at_the_first(dirty: Source):
    with pytest.raises(ValueError, match=r"data.jsonl, line 25: image missing: nowhere.jpg. Mend or remove") as caught:
        survey(dirty, strict=True)
    assert "\n" not in str(caught.value)


def test_stopped_survey_goes_on_where_it_was(dirty: Source, report: Report, monkeypatch: pytest.MonkeyPatch):
    """All pieces are remembered but one; only its lines are looked at again, and those that were at fault."""
    pieces = {f"{start}-{min(start + 300, 1000)}.json" for start in range(0, 1000, 300)}
    assert pieces <= {file.name for file in dirty.memory.iterdir()}
    (dirty.memory / "300-600.json").unlink()
    looked = []
    monkeypatch.setattr(survey_module, "ProcessPoolExecutor", InProcess)
    monkeypatch.setattr(
        Source, "look", lambda self, number, look=Source.look: looked.append(number) or look(self, number)
    )
    again = survey(dirty, piece_size=300)
    faulty = [n for n, (_, _, fault) in enumerate(DIRTY) if fault and not fault.startswith("repeats")]
    assert looked == [*faulty, *range(300, 600)]
    assert str(again) == str(report) and np.array_equal(again.kept, report.kept)


def test_missing_image_may_come_later(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(record(n, f"{n}.jpg")) for n in range(3)))
    picture().save(tmp_path / "images/0.jpg")
    source = Source(tmp_path / "data.jsonl", tmp_path / "images")
    assert survey(source).kept.tolist() == [0]
    picture().save(tmp_path / "images/2.jpg")
    assert survey(source).kept.tolist() == [0, 2]


class InProcess:
    def __init__(self, workers: int, initializer: Any, initargs: tuple) -> None:
        initializer(*initargs)

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *error: object) -> None: ...

    map = staticmethod(map)


def test_rows_are_written_and_can_be_trained_on(dirty: Source, report: Report, tmp_path: Path):
    assert write(report, tmp_path, 1.0, 0, rows_per_file=300) == len(report.kept)
    rows = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == len(report.kept) and len(set(rows["id"])) == len(rows)
    assert sum("#" in name for name in rows["id"]) == 1
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())
    batch = collate([rows[n] for n in range(24)])
    assert batch["skipped_rows"].sum() == 0 and len(batch["input_ids"]) == 24
    two = next(row for row in rows if len(row["images"]) == 2)
    assert [part["type"] for part in two["messages"][0]["content"]] == ["image", "image", "text"]
    streamed = load_records(dirty.json, dirty.images, records_per_shard=100)
    assert streamed.num_shards == 10
    loaded = {row["id"]: row for row in streamed}
    for row in rows:
        if "#" not in row["id"] and row["id"] != "r9":
            assert loaded[row["id"]] == row


def test_a_file_with_nothing_to_train_on_is_refused(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(record(n, "nowhere.jpg")) for n in range(3)))
    with pytest.raises(
        ValueError, match="data.jsonl has nothing to train on: none of its 3 records can be; line 1: image missing"
    ):
        load_records(file, tmp_path)
    file.write_text("")
    with pytest.raises(ValueError, match="data.jsonl has nothing to train on: it is empty"):
        load_records(file, tmp_path)
    file.write_text("\n".join(map(json.dumps, [record(0, "nowhere.jpg"), record(1, None)])))
    assert [row["id"] for row in load_records(file, tmp_path)] == ["r1"]


def test_files_of_other_rows_go_and_those_of_a_stopped_run_stay(dirty: Source, report: Report, tmp_path: Path):
    assert write(report, tmp_path / "rows", 1.0, 0, rows_per_file=100) == len(report.kept)
    files = sorted((tmp_path / "rows").glob("*.parquet"))
    before = {file.name: file.read_bytes() for file in files}
    files[1].unlink()
    (tmp_path / "rows" / f"_{files[1].name}.123").write_bytes(b"half")
    stamp = files[0].stat().st_mtime_ns
    assert write(report, tmp_path / "rows", 1.0, 0, rows_per_file=100) == len(report.kept)
    assert files[0].stat().st_mtime_ns == stamp
    assert {file.name: file.read_bytes() for file in (tmp_path / "rows").glob("*.parquet*")} == before
    some = replace(report, kept=report.kept[:120], repeats_id=report.repeats_id[:120])
    assert write(some, tmp_path / "rows", 1.0, 0, rows_per_file=100) == 120
    assert len(load_dataset(str(tmp_path / "rows"), split="train", cache_dir=str(tmp_path / "cache"))) == 120
    (tmp_path / "others").mkdir()
    shutil.copy(next((tmp_path / "rows").glob("*.parquet")), tmp_path / "others/train.parquet")
    with pytest.raises(ValueError, match="others holds other rows \\(train.parquet\\): choose another `--out`"):
        write(some, tmp_path / "others", 1.0, 0)


def test_machines_share_the_work(dirty: Source, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each looks at its pieces and writes its files; together they are those of one machine."""
    monkeypatch.setattr(Source, "memory", tmp_path / "seen")
    shards = [Shard.of(f"{n}/3") for n in (1, 2, 3)]
    assert [survey(dirty, shard=shard, piece_size=100) for shard in shards[:2]] == [None, None]
    assert [file.name for file in (tmp_path / "seen").glob("[258]00-*")] == []
    for shard in shards[::-1]:
        found = survey(dirty, shard=shard, piece_size=100)
        assert str(found) == str(report) and np.array_equal(found.kept, report.kept)
    counts = [write(found, tmp_path / "shared", 1.0, 0, rows_per_file=100, shard=shard) for shard in shards]
    write(report, tmp_path / "alone", 1.0, 0, rows_per_file=100)
    assert sum(counts) == len(report.kept) and min(counts) > 0
    shared, alone = (
        {file.name: file.read_bytes() for file in (tmp_path / name).glob("*.parquet")} for name in ("shared", "alone")
    )
    assert shared == alone
    for text in ("0/3", "4/3", "1", "a/b", "-1/3"):
        with pytest.raises(ValueError, match="A shard is written as 1/8 to 8/8, not"):
            Shard.of(text)


@pytest.fixture
def nine(tmp_path: Path) -> Source:
    """Nine records and their pictures."""
    (tmp_path / "images").mkdir()
    for n in range(9):
        picture(seed=n).save(tmp_path / f"images/{n}.jpg")
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(record(n, f"{n}.jpg")) for n in range(9)))
    return Source(tmp_path / "data.jsonl", tmp_path / "images")


def test_files_of_several_surveys_are_no_whole(nine: Source, tmp_path: Path):
    """Two machines, of which one has seen a picture come back: the files would lack row 5, and have as many names as they say."""
    (nine.images / "0.jpg").rename(tmp_path / "away")
    without = survey(nine)
    (tmp_path / "away").rename(nine.images / "0.jpg")
    whole = survey(nine)
    assert (len(whole.kept), len(without.kept)) == (9, 8)
    out, halves = tmp_path / "rows", [Shard.of("1/2"), Shard.of("2/2")]
    write(whole, out, 1.0, 0, rows_per_file=5, shard=halves[0])
    late = {file.name: file.read_bytes() for file in out.glob("*.parquet")}
    write(without, out, 1.0, 0, rows_per_file=5, shard=halves[1])
    for name, content in late.items():  # which was not there yet when the other began
        (out / name).write_bytes(content)
    assert sorted(file.name[6:11] for file in out.glob("*.parquet")) == ["00000", "00001"]
    with pytest.raises(ValueError, match="files of .*rows are of several looks at the records: run `recipes/data.py`"):
        check_complete(out)
    assert sum(write(without, out, 1.0, 0, rows_per_file=5, shard=shard) for shard in halves) == 8
    check_complete(out)
    ids = [row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file)["id"].to_pylist()]
    assert ids == [f"r{n}" for n in range(1, 9)]
    next(out.glob("*.parquet")).write_bytes(b"half")
    with pytest.raises(ValueError, match="parquet is no parquet file, or damaged: remove it"):
        check_complete(out)


def test_machines_see_the_same_whatever_changes_between_them(nine: Source, tmp_path: Path):
    (nine.images / "0.jpg").rename(tmp_path / "away")
    shards = [Shard.of("1/2"), Shard.of("2/2")]
    assert survey(nine, shard=shards[0], piece_size=3) is None
    first = survey(nine, shard=shards[1], piece_size=3)
    (tmp_path / "away").rename(nine.images / "0.jpg")
    later = survey(nine, shard=shards[0], piece_size=3)
    assert first.kept.tolist() == later.kept.tolist() == list(range(1, 9))
    assert survey(nine, piece_size=3).kept.tolist() == list(range(9))


def test_a_picture_that_goes_after_the_look_is_a_sentence(nine: Source, tmp_path: Path):
    report = survey(nine)
    (nine.images / "3.jpg").unlink()
    sentence = "data.jsonl, line 4: image missing: 3.jpg. It was there when .* or remove .*data.jsonl.seen/"
    with pytest.raises(ValueError, match=sentence) as caught:
        write(report, tmp_path / "rows", 1.0, 0)
    assert Path(str(caught.value).split("remove ")[1].split(" to look")[0]) == nine.memory
    assert [file.name for file in (tmp_path / "rows").iterdir()] == ["_rows.json"]
    shutil.rmtree(nine.memory)
    assert survey(nine).faults == {"image missing": 1}


def test_a_picture_that_goes_while_it_is_read_is_a_sentence(nine: Source, monkeypatch: pytest.MonkeyPatch):
    made = files.generated
    monkeypatch.setattr(files, "generated", lambda *a: (nine.images / "3.jpg").unlink() or made(*a))
    with pytest.raises(ValueError, match="^.*data.jsonl, line 4: image missing: 3.jpg$"):
        read_records(nine.json, nine.images)


def test_what_was_seen_of_earlier_contents_goes(nine: Source):
    survey(nine)
    survey(replace(nine, max_pixels=10**6))
    assert len(list(nine.memories.iterdir())) == 2
    nine.json.write_text(json.dumps(record(0, "0.jpg")))
    again = Source(nine.json, nine.images)
    assert survey(again).num_records == 1
    assert list(again.memories.iterdir()) == [again.memory]


def test_a_folder_of_another_program_is_left_alone(nine: Source, tmp_path: Path):
    """Its note says whose it is, and who goes on with it."""
    out = tmp_path / "rows"
    start_folder(out, {"program": "recipes/regions.py"})
    write_parquet(out / "train-00000-of-00002.parquet", [], FEATURES)
    with pytest.raises(ValueError, match="There are 1 of the 2 files .*: run `recipes/regions.py` again"):
        check_complete(out)
    with pytest.raises(ValueError, match="rows holds other rows \\(train-00000-of-00002.parquet\\): choose another"):
        write(survey(nine), out, 1.0, 0)
    write_parquet(out / "train-00001-of-00002.parquet", [], FEATURES)
    check_complete(out)
    assert json.loads((out / "_rows.json").read_text())["program"] == "recipes/regions.py"
    (out / "_rows.json").write_text("{")
    with pytest.raises(ValueError, match="_rows.json is damaged .*: remove the folder"):
        check_complete(out)


def test_several_that_make_the_same_file_do_not_meet(tmp_path: Path):
    """Processes of one number on two machines, or threads of one."""
    place, started = tmp_path / "a.json", threading.Barrier(8)

    def make(n: int) -> None:
        with json_files.appearing(place) as aside:
            aside.write_text(str(n))
            started.wait()
            assert aside.read_text() == str(n)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(8)))
    assert list(tmp_path.iterdir()) == [place] and place.read_text() in "01234567"
    with pytest.raises(OSError, match="full"), json_files.appearing(tmp_path / "b") as aside:
        aside.write_text("half")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == [place]


def test_blank_evaluation_pictures_keep_nothing_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """All blank pictures have the same hash, and a page with a few words nearly the same."""
    save_images(tmp_path / "images")
    (tmp_path / "evaluation").mkdir()
    PIL.Image.new("RGB", (50, 50), "white").save(tmp_path / "evaluation/blank.png")
    PIL.Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (60, 1))).save(tmp_path / "evaluation/ramp.png")
    picture(seed=40).save(tmp_path / "evaluation/picture.png")
    (tmp_path / "evaluation/broken.jpg").write_bytes(b"")
    assert images.write_hashes(tmp_path / "evaluation", tmp_path / "hashes") == 3
    page = PIL.Image.new("RGB", (170, 160), "white")
    page.paste("black", (20, 20, 60, 30))
    page.save(tmp_path / "images/page.png")
    PIL.Image.new("L", (30, 40), 7).save(tmp_path / "images/dark.png")
    names = ["page.png", "dark.png", "evaluated.png"]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(record(n, name)) for n, name in enumerate(names)))
    source = Source(tmp_path / "data.jsonl", tmp_path / "images", drop_hashes=tmp_path / "hashes")
    assert survey(source).kept.tolist() == [0, 1]
    assert (
        "2 of the hashes in" in caplog.text
        and "1 pictures cannot be read and have no hash; the first, " in caplog.text
    )


def test_lengths_in_tokens(tmp_path: Path):
    (tmp_path / "images").mkdir()
    records = [record(n, None, turns("word " * n, "word " * n)) for n in range(1, 5)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    found = survey(
        Source(tmp_path / "data.jsonl", tmp_path / "images", tokenizer=str(RECIPES / "scenes/backbones/llama"))
    )
    one = found.lengths[0]
    assert found.unit == "tokens" and found.lengths.tolist() == [one * n for n in range(1, 5)]
    assert "length of a row in tokens" in str(found)


def test_subset_is_picked_by_id(dirty: Source, report: Report, tmp_path: Path):
    small, large = tmp_path / "small", tmp_path / "large"
    write(report, small, 0.1, 0)
    write(report, large, 0.3, 0)
    few, many = (set(load_dataset(str(f), split="train", cache_dir=str(f / "c"))["id"]) for f in (small, large))
    assert few < many and 60 < len(few) < 140 and 230 < len(many) < 370
    other = {f"r{n}" for n in range(1000) if in_subset(f"r{n}", 0.1, 1)}
    assert 60 < len(other) < 140 and len(other & few) < 40


def test_json_list_is_read_record_by_record(tmp_path: Path):
    records = [record(n, None, turns("é" * n, '"[{,\\')) for n in range(200)] + [{"n": 12345}]
    (tmp_path / "list.json").write_text(f"  [{', '.join(json.dumps(r, indent=1) for r in records)}\n]")
    assert [json.loads(r) for r in json_files.records_of(tmp_path / "list.json", chunk_size=7)] == records
    lines = Lines(as_lines(tmp_path / "list.json"))
    assert [json.loads(lines[n]) for n in range(len(lines))] == records
    (tmp_path / "cut.json").write_text((tmp_path / "list.json").read_text()[:-40])
    with pytest.raises(ValueError, match="cut.json is cut off or damaged at its record 200"):
        as_lines(tmp_path / "cut.json")
    assert not list(tmp_path.glob("cut.json.*"))


RECORDS = [record(n, "", turns("\u00e9, \U0001f600?\u2028", "Yes.")) for n in range(3)]
PLAIN = "\n".join(json.dumps(r, ensure_ascii=False) for r in RECORDS)
LIST = json.dumps(RECORDS, ensure_ascii=False)
FORMS = {
    "lines": PLAIN.encode(),
    "lines of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "lines, byte order mark": PLAIN.encode("utf-8-sig"),
    "lines, UTF-16": PLAIN.encode("utf-16"),
    "lines, UTF-16 without a mark": PLAIN.encode("utf-16-be"),
    "blank lines": f"\n\n{PLAIN.replace(chr(10), chr(10) * 3)}\n\n".encode(),
    "commas behind lines": (PLAIN.replace("\n", ",\n") + ",").encode(),
    "records over lines": "\n".join(json.dumps(r, indent=2) for r in RECORDS).encode(),
    "no line breaks": "".join(map(json.dumps, RECORDS)).encode(),
    "list": LIST.encode(),
    "list over lines, byte order mark": json.dumps(RECORDS, indent=1, ensure_ascii=False).encode("utf-8-sig"),
    "list, UTF-16": LIST.encode("utf-16"),
    "list behind blanks": b" " * 100 + LIST.encode(),
    "several lists": (json.dumps(RECORDS[:1]) + "\n[]\n" + json.dumps(RECORDS[1:])).encode(),
    "a list per line": "\n".join(json.dumps([r]) for r in RECORDS).encode(),
    "a list and lines": (json.dumps(RECORDS[:2]) + "\n" + json.dumps(RECORDS[2])).encode(),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=FORMS)
def test_forms_of_json(tmp_path: Path, content: bytes):
    (tmp_path / "a.json").write_bytes(content)
    lines = Lines(as_lines(tmp_path / "a.json"))
    assert [json.loads(lines[n]) for n in range(len(lines)) if lines[n].strip()] == RECORDS
    assert (lines.path == tmp_path / "a.json") == (
        content in [FORMS[n] for n in ("lines", "lines of Windows", "blank lines")]
    )
    rows = read_records(tmp_path / "a.json", tmp_path)
    assert rows["id"] == ["r0", "r1", "r2"] and rows[2]["messages"][0]["content"][0]["text"] == "\u00e9, \U0001f600?"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (LIST[:-1], "a.json is cut off or damaged at its record 4 \\(its list has no end\\)"),
        (LIST[:-9], "a.json is cut off or damaged at its record 3 \\(.*\\)"),
        (LIST + "}", "a.json is cut off or damaged at its record 4 \\(.*\\)"),
        (
            json.dumps({"version": 1, "data": RECORDS}),
            "no conversation: it has 'version', 'data'; if the records are in 'data', write",
        ),
        ("", "a.json has no records"),
        ("\n \n", "a.json has no records"),
        ("[]", "a.json has no records"),
    ],
)
def test_what_is_no_list_of_records(tmp_path: Path, content: str, sentence: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_records(tmp_path / "a.json", tmp_path)


def test_a_record_without_an_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(json_files, "LONGEST", 1000)
    (tmp_path / "a.json").write_text('[{"id": "' + "a" * 10_000 + '"}]')
    with pytest.raises(ValueError, match="damaged at its record 1 \\(it has more than"):
        list(json_files.records_of(tmp_path / "a.json", chunk_size=100))


def test_what_another_content_made_is_never_read(tmp_path: Path):
    """Also where the new file is older than what the old one made, and of the same size."""
    first, second = (json.dumps([record(0, "", turns(question, "Yes."))]) for question in ("Old?", "New?"))
    (tmp_path / "a.json").write_text(first)
    Lines(as_lines(tmp_path / "a.json")).offsets  # noqa: B018
    (tmp_path / "b.json").write_text(second)
    os.utime(tmp_path / "b.json", ns=(0, 10**9 + 1))
    os.replace(tmp_path / "b.json", tmp_path / "a.json")
    lines = Lines(as_lines(tmp_path / "a.json"))
    assert b"New?" in lines[0]
    assert len(list(tmp_path.glob("a.json.*.jsonl"))) == 1  # what the old one made is gone


def test_a_folder_that_cannot_be_written_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.json").write_text(LIST)
    monkeypatch.setattr(json_files.os, "access", lambda path, mode: False)
    monkeypatch.setattr(json_files.datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = Source(tmp_path / "data/a.json", tmp_path)
    assert survey(source).num_records == 3
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["a.json"]
    assert source.lines.path.is_relative_to(tmp_path / "cache") and source.memory.is_relative_to(tmp_path / "cache")


def test_half_a_character_in_a_list_is_the_fault_of_its_record(tmp_path: Path):
    records = [
        record(0, "", turns("Why?", "So.")),
        record(1, "", turns("\ud800", "So.")),
        record(2, "", turns("\ud55c", "So.")),
    ]
    (tmp_path / "list.json").write_text(json.dumps(records))
    assert survey(Source(tmp_path / "list.json", tmp_path)).faults == {"half a character": 1}
    (tmp_path / "bytes.json").write_bytes(json.dumps(records).encode().replace(b"So.", b"S\xff"))
    assert survey(Source(tmp_path / "bytes.json", tmp_path)).faults == {"not JSON": 3}
    raw = b"\n".join(json.dumps(r, ensure_ascii=False).encode(errors="surrogatepass") for r in records)
    (tmp_path / "raw.jsonl").write_bytes(raw)
    assert survey(Source(tmp_path / "raw.jsonl", tmp_path)).faults == {"half a character": 1}


@pytest.mark.parametrize("damage", [b"\xff", b"[" * 100_000, b"9" * 5000, b'"\x01"'])
def test_damaged_json_list_ends_in_a_sentence(tmp_path: Path, damage: bytes):
    (tmp_path / "list.json").write_bytes(b'[{"id": 1}, ' + damage + b"]")
    with pytest.raises(
        ValueError, match="list.json is cut off or damaged at its record 2 \\(.*\\): mend it, or fetch it again"
    ):
        as_lines(tmp_path / "list.json")


@pytest.mark.parametrize("end", [b"\n", b""])
def test_lines_are_indexed_once(tmp_path: Path, end: bytes, monkeypatch: pytest.MonkeyPatch):
    content = [f"line {n} ".encode() + b"x" * (n % 50) for n in range(5000)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(content) + end)
    assert np.array_equal(
        json_files.line_offsets(tmp_path / "a.jsonl", 64), json_files.line_offsets(tmp_path / "a.jsonl")
    )
    lines = Lines(tmp_path / "a.jsonl")
    assert len(lines) == 5000 and lines[4321].rstrip(b"\n") == content[4321]
    assert isinstance(lines.offsets, np.memmap)
    monkeypatch.setattr(json_files, "line_offsets", None)
    again = Lines(tmp_path / "a.jsonl")
    assert [again[n].rstrip(b"\n") for n in (0, 17, 4999)] == [content[n] for n in (0, 17, 4999)]


def test_index_of_a_file_that_has_grown_is_made_anew(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text("1\n2\n")
    assert len(Lines(file)) == 2
    with file.open("a") as more:
        more.write("3\n")
    assert len(Lines(file)) == 3


def test_placeholders_keep_their_places():
    conversation = as_row({"conversations": turns("First <image> then <image>?", "Both.", "And <image>?", "That.")})[
        "messages"
    ]
    messages, mended = read_messages(conversation, 3, has_none=False)
    assert mended == []
    assert [[part["text"] or "<image>" for part in m["content"]] for m in messages] == [
        ["First ", "<image>", " then ", "<image>", "?"],
        ["Both."],
        ["And ", "<image>", "?"],
        ["That."],
    ]
    with pytest.raises(Fault, match="more <image> than images: 3 for 2"):
        read_messages(conversation, 2, has_none=False)


def test_command_line(dirty: Source, tmp_path: Path):
    shutil.copytree(dirty.images, tmp_path / "images", symlinks=True)
    shutil.copy(dirty.json, tmp_path / "data.jsonl")
    command = [
        sys.executable,
        str(RECIPES / "data.py"),
        "--json",
        "data.jsonl",
        "--images",
        "images",
        "--workers",
        "2",
    ]
    command += ["--max_pixels", "5000000", "--out", "rows", "--subset", "0.2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "999 records" in result.stdout and "1 image too large   line 30: " in result.stdout
    assert "length of a row in characters" in result.stdout and "rows in rows" in result.stdout
    assert len(load_dataset(str(tmp_path / "rows"), split="train", cache_dir=str(tmp_path / "cache"))) > 100


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--check", "--strict"],
            r"error: \S+data.jsonl, line 25: image missing: nowhere.jpg. Mend or remove the record",
        ),
        (["--out", "rows", "--images", "nowhere"], "error: There is no folder nowhere"),
        (["--check", "--json", "nowhere"], "error: There is no file nowhere"),
        ([], "error: Pass `--check` to see what there is"),
        (["--out", __file__], "error: .*test_data.py is a file: `--out` is a folder"),
        (
            ["--out", str(RECIPES.parent / "tests"), "--workers", "0"],
            "error: `--workers` is a number of processes, but is",
        ),
        (["--check", "--workers", "-1"], "error: `--workers` is a number of processes, but is -1"),
        (["--check", "--max_pixels", "0"], "error: `--max_pixels` is a number of pixels, but is 0"),
        (["--check", "--shard", "3/2"], "error: A shard is written as 1/8 to 8/8, not '3/2'"),
        (
            ["--out", "rows", "--shard", "1/2", "--push_to_hub", "me/rows"],
            "error: With `--shard` no machine has all rows: `--push_to_hub` goes with a run without it",
        ),
        (
            ["--check", "--json", "rows.parquet"],
            "error: rows.parquet is no JSON or JSONL file. .* the stages and `recipes",
        ),
        (["--check", "--json", "00000.tar"], "error: 00000.tar is no JSON or JSONL file"),
        (["--check", "--json", str(RECIPES)], "error: .*recipes is no JSON or JSONL file"),
        (["--out", "rows", "--subset", "2"], "error: `--subset` is a share of the rows between 0 and 1, but is 2.0"),
        (["--check", "--drop_hashes", __file__], "error: .*test_data.py is not a file of picture hashes"),
        (["--check", "--drop_hashes", "nowhere"], "error: nowhere is not a file of picture hashes"),
        (
            ["--write_hashes", str(RECIPES)],
            "error: `--write_hashes` is a file in a folder that is there, not .*recipes",
        ),
        (["--write_hashes", "no/where"], "error: `--write_hashes` is a file in a folder that is there, not no/where"),
        (
            ["--check", "--tokenizer", "nowhere/at-all"],
            "error: nowhere/at-all cannot be loaded: .* `--tokenizer` is the folder or",
        ),
    ],
)
def test_one_sentence_on_the_command_line(
    dirty: Source, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
):
    given = ["data.py", "--json", str(dirty.json), "--images", str(dirty.images), "--workers", "1", *arguments]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit, match=sentence) as caught:
        data.main()
    assert "\n" not in str(caught.value)
