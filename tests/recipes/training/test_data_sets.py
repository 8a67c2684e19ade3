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
"""The rows that a stage trains on and is evaluated on, from what people have."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from testing_utils import box_mask, picture, rle

from modeling_agevlm import read_image
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import EVALUATION_SCENES, load_evaluation_rows, load_rows, shuffled
from trainers import GuidedSFTConfig, get_stage


QUESTION, ANSWER = "Is there a cup?", "Yes."
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]
SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"images": ["pictures/0.png"], "messages": CHAT},
    "parts": {"images": ["pictures/0.png"], "messages": PARTS},
    "LLaVA": {
        "id": "7",
        "image": "pictures/0.png",
        "conversations": [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": ANSWER}],
    },
    "prompt and completion": {"image": "pictures/0.png", "prompt": QUESTION, "completion": ANSWER},
    "pictures in parts": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image", "image": "pictures/0.png"}, {"type": "text", "text": QUESTION}],
            },
            PARTS[1],
        ]
    },
}


def write(file: Path, records: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    file.write_text("\n".join(lines) + "\n\n")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data file and its pictures, elsewhere than the working directory."""
    (tmp_path / "mine/pictures").mkdir(parents=True)
    for n in range(3):
        picture(seed=n).save(tmp_path / f"mine/pictures/{n}.png")
    return tmp_path / "mine"


def rows_of(name: Path | str, **arguments: Any) -> list[dict[str, Any]]:
    skip_broken = arguments.pop("skip_broken", False)
    return list(load_rows(DataArguments(dataset_name=str(name), **arguments), get_stage(4), 64, skip_broken))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_json_lines_beside_their_pictures(folder: Path, shape: str, streaming: bool):
    file = write(folder / "train.jsonl", [SHAPES[shape]])
    for name in (file, folder):
        (row,) = rows_of(name, streaming=streaming)
        assert row["images"] == [{"bytes": None, "path": str(folder / "pictures/0.png")}]
        assert [[part["text"] or part["type"] for part in m["content"]] for m in row["messages"]] == [
            ["image", QUESTION],
            [ANSWER],
        ]
        assert row["id"] == SHAPES[shape].get("id", "0")


@pytest.mark.parametrize("streaming", [False, True])
def test_regions_come_along_as_they_count(folder: Path, streaming: bool):
    mask = box_mask()
    runs = np.diff(np.flatnonzero(np.diff(mask.T.flatten().astype(int), prepend=-1, append=-1))).tolist()
    listed = {"size": list(mask.shape), "counts": runs if not mask.T.flatten()[0] else [0, *runs]}
    messages = [{"role": "user", "content": f" {QUESTION}"}, *CHAT[1:]]
    regions = [
        {"mask": listed, "image": 0, "text": "cup", "span": [12, 15], "message": 0},
        {"mask": rle(mask), "image": 0, "text": "cup", "message": 0},
        {"mask": None, "image": 0, "text": None, "message": 1},
    ]
    record = {"images": ["pictures/0.png"], "messages": messages, "regions": regions}
    without = {"images": ["pictures/1.png"], "messages": CHAT}
    file = write(folder / "train.jsonl", [record, without])
    first, second = rows_of(file, streaming=streaming)
    assert list(rows_of(write(folder / "later.jsonl", [without, record]), streaming=streaming)) == [
        second | {"id": "0"},
        first | {"id": "1"},
    ]
    assert first["messages"][0]["content"] == [{"type": "text", "text": f" {QUESTION}"}]
    assert [region["mask"] for region in first["regions"]] == [rle(mask), rle(mask), None]
    assert [region["span"] for region in first["regions"]] == [[12, 15], None, None]
    assert not second["regions"]


def test_another_folder_of_pictures(folder: Path, tmp_path: Path):
    file = write(tmp_path / "elsewhere/rows.jsonl", [SHAPES["messages"]])
    with pytest.raises(ValueError, match=f"looked for in {tmp_path}/elsewhere.*line 1: image missing: pictures/0.png"):
        rows_of(file)
    (row,) = rows_of(file, image_folder=str(folder))
    assert row["images"][0]["path"] == str(folder / "pictures/0.png")


def test_broken_records_are_named_or_left_out(folder: Path, capsys: pytest.CaptureFixture):
    missing = {"images": ["pictures/9.png"], "messages": CHAT}
    file = write(folder / "train.jsonl", [SHAPES["messages"], missing, "{", {"images": [], "messages": CHAT}])
    with pytest.raises(
        ValueError, match="^2 of the 4 records of .*train.jsonl cannot .* line 2: image missing: pictures/9"
    ):
        rows_of(file)
    assert [row["id"] for row in rows_of(file, skip_broken=True)] == ["0", "3"]
    write(file, [missing])
    with pytest.raises(ValueError, match="^1 of the 1 records .* cannot be trained on"):
        rows_of(file, skip_broken=True)
    write(file, [""])
    with pytest.raises(ValueError, match="train.jsonl has no records"):
        rows_of(file)


def test_a_changed_file_is_read_again(folder: Path):
    file = write(folder / "train.jsonl", [SHAPES["messages"]])
    assert len(rows_of(file)) == 1
    write(file, [SHAPES["messages"], SHAPES["prompt and completion"]])
    assert len(rows_of(file)) == 2


@pytest.mark.parametrize("column", ["images", "image"])
@pytest.mark.parametrize("streaming", [False, True])
def test_paths_in_parquet_files_start_from_their_folder(folder: Path, column: str, streaming: bool):
    value = ["pictures/1.png"] if column == "images" else "pictures/1.png"
    Dataset.from_list([{column: value, "messages": CHAT}]).to_parquet(folder / "train-0.parquet")
    (row,) = rows_of(folder, streaming=streaming)
    path = row[column][0] if column == "images" else row[column]
    assert read_image(path).size == picture().size and Path(path).parent == folder / "pictures"


# Splits


def test_splits_that_are_not_there(folder: Path, tmp_path: Path):
    rows = Dataset.from_list([{"images": [], "messages": CHAT}])
    rows.save_to_disk(tmp_path / "one")
    DatasetDict(train=rows, other=rows).save_to_disk(tmp_path / "two")
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(tmp_path / "parquet/train-0.parquet")
    file = write(folder / "train.jsonl", [SHAPES["messages"]])
    assert len(rows_of(tmp_path / "one")) == len(rows_of(tmp_path / "two", dataset_split="other")) == 1
    for name in (tmp_path / "one", file):
        with pytest.raises(ValueError, match=f"^{name} has no splits, and so no 'validation'"):
            rows_of(name, dataset_split="validation")
    with pytest.raises(ValueError, match="two has no split 'validation', but train, other"):
        rows_of(tmp_path / "two", dataset_split="validation")
    with pytest.raises(ValueError, match="parquet cannot be loaded: .*validation"):
        rows_of(tmp_path / "parquet", dataset_split="validation")
    write(folder / "test.jsonl", [SHAPES["prompt and completion"]] * 2)
    assert len(rows_of(folder)) == 1 and len(rows_of(folder, dataset_split="test")) == 2
    with pytest.raises(ValueError, match="mine has no file of the split 'validation', but test.jsonl, train.jsonl"):
        rows_of(folder, dataset_split="validation")


def test_what_is_not_there_is_a_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match="^There is no file .*rows.jsonl"):
        rows_of(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="nothing cannot be loaded: "):
        rows_of(tmp_path / "nothing")


def test_a_folder_that_is_not_complete(folder: Path, caplog: pytest.LogCaptureFixture):
    """What `recipes/data.py` has not finished is not trained on; a part of what others wrote is, and that is said."""
    Dataset.from_list([{"images": [], "messages": CHAT}]).to_parquet(folder / "train-00000-of-00002.parquet")
    with caplog.at_level("WARNING"):
        assert len(rows_of(folder)) == 1
    assert re.search(r"There are 1 of the 2 files .*train-\*-of-00002.parquet; the rows are", caplog.text)
    (folder / "_rows.json").write_text("{}")
    with pytest.raises(ValueError, match=r"There are 1 of the 2 files .*: run `recipes/data.py` again"):
        rows_of(folder)


# Evaluation sets


def evaluation_of(*names: str, **arguments: Any) -> Any:
    data = DataArguments(eval_dataset_name=list(names) or None, **arguments)
    return load_evaluation_rows(data, get_stage(4), 64)


def test_evaluation_sets_have_names(folder: Path, tmp_path: Path):
    for name, number in (("train", 1), ("test", 2), ("hard", 3)):
        write(folder / f"{name}.jsonl", [SHAPES["messages"] | {"id": str(n)} for n in range(number)])
    assert evaluation_of() is None
    assert len(evaluation_of(str(folder / "hard.jsonl"))) == 3
    assert len(evaluation_of(str(folder))) == 2  # its split `test`
    assert len(evaluation_of(dataset_name=str(folder), eval_split="hard")) == 3
    several = evaluation_of(str(folder / "hard.jsonl"), f"own={folder}", eval_split=None)
    assert {name: len(rows) for name, rows in several.items()} == {"hard": 3, "own": 2}
    assert list(evaluation_of(f"own={folder}")) == ["own"]
    as_words = DataArguments(eval_dataset_name=f"own={folder}")  # as YAML may have it
    assert list(load_evaluation_rows(as_words, get_stage(4), 64)) == ["own"]
    write(folder / "a=b/test.jsonl", [SHAPES["messages"]])
    assert len(evaluation_of(str(folder / "a=b"), image_folder=str(folder))) == 1  # whose name is no name of a set
    with pytest.raises(ValueError, match="Two evaluation sets are called 'hard'"):
        evaluation_of(str(folder / "hard.jsonl"), f"hard={folder}")
    with pytest.raises(ValueError, match="no file of the split 'validation'"):
        evaluation_of(str(folder), eval_split="validation")


def test_scenes_to_evaluate_on_are_others_and_few():
    found = evaluation_of("scenes", num_scenes=3)
    assert len(found) == 3 and EVALUATION_SCENES == 200
    trained_on = load_rows(DataArguments(num_scenes=3), get_stage(4), 64)
    assert found[0]["messages"] != trained_on[0]["messages"]


# Streams


def test_streams_are_shuffled_by_their_seed(folder: Path):
    file = write(folder / "train.jsonl", [SHAPES["messages"] | {"id": str(n)} for n in range(32)])
    data = DataArguments(dataset_name=str(file), streaming=True)

    def order(seed: int, buffer: int = 1000, epoch: int = 0, data_seed: int | None = None) -> list[str]:
        data.shuffle_buffer_size = buffer
        training = GuidedSFTConfig(output_dir=str(folder), use_cpu=True, seed=seed, data_seed=data_seed)
        rows = shuffled(load_rows(data, get_stage(4), 64), data, training)
        assert isinstance(rows, IterableDataset)
        rows.set_epoch(epoch)
        return [row["id"] for row in rows]

    plain = [str(n) for n in range(32)]
    assert order(0, buffer=0) == plain
    assert order(0) == order(0) != plain and sorted(order(0), key=int) == plain
    assert order(1) != order(0) != order(0, epoch=1)
    assert order(1, data_seed=0) == order(0)
    assert order(0, buffer=2) not in (plain, order(0))
