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
"""Rows in the ways that people write them."""

import functools
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, IterableDataset, List, Value, load_from_disk
from test_guided_sft_trainer import logged, make_trainer
from testing_utils import picture, row

from trainers.rows import as_row, num_characters, undecoded, with_lengths


unguided_trainer = functools.partial(make_trainer, guidance_weight=0.0)  # no row here has a region
QUESTION, ANSWER = "Is there a cup?", "Yes, a red cup."
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
PARTS = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
SHAREGPT = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
WITH_PICTURE = [
    {"role": "user", "content": [{"type": "image", "image": "0.png"}, {"type": "text", "text": QUESTION}]},
    {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
]
SHAPES: dict[str, dict[str, Any]] = {
    "messages": {"images": ["0.png"], "messages": CHAT},
    "parts": {"images": ["0.png"], "messages": PARTS},
    "one image": {"image": "0.png", "messages": CHAT},
    "pictures in parts": {"messages": WITH_PICTURE},
    "ShareGPT": {"images": ["0.png"], "conversations": SHAREGPT},
    "prompt and completion": {"images": ["0.png"], "prompt": CHAT[:1], "completion": CHAT[1:]},
    "plain prompt and completion": {"image": "0.png", "prompt": QUESTION, "completion": ANSWER},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    picture().save(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def expected_loss(folder: Path) -> float:
    trainer = unguided_trainer(folder / "plain", train_dataset=Dataset.from_list([row(QUESTION, ANSWER)]))
    trainer.train()
    return logged(trainer, "lm_loss")[0]


@pytest.mark.parametrize("kind", ["map-style", "stream"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_trains_alike(folder: Path, shape: str, kind: str):
    rows = Dataset.from_list([SHAPES[shape]])
    rows = rows.to_iterable_dataset() if kind == "stream" else rows
    trainer = unguided_trainer(folder / "out", train_dataset=rows)
    trainer.train()
    assert logged(trainer, "lm_loss") == [expected_loss(folder)]


def test_what_is_broken_stays_for_its_reader():
    for broken in ({}, {"messages": 3}, {"conversations": [3, {"from": "human"}]}, {"prompt": None, "completion": 3}):
        assert as_row(broken)["images"] == []
    assert as_row({"messages": CHAT, "images": [], "id": 3}) == {"messages": CHAT, "images": [], "id": 3}


def test_rows_without_pictures_train(folder: Path):
    trainer = unguided_trainer(folder / "out", train_dataset=Dataset.from_list([{"messages": CHAT}]))
    trainer.train()
    assert logged(trainer, "lm_loss")[0] > 0


def test_a_transform_makes_rows_of_any_columns(folder: Path):
    def transform(batch: dict[str, list]) -> dict[str, list]:
        return {"images": [[name] for name in batch["file"]], "messages": [CHAT for _ in batch["file"]]}

    rows = Dataset.from_dict({"file": ["0.png"]}).with_transform(transform)
    trainer = unguided_trainer(folder / "out", train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert logged(trainer, "lm_loss") == [expected_loss(folder)]
    assert trainer.evaluate()["eval_lm_loss"] > 0


def test_a_transform_gets_what_it_was_written_for(folder: Path):
    def transform(batch: dict[str, list]) -> dict[str, list]:
        return {**batch, "images": [[f"{name}.png" for name in names] for names in batch["images"]]}

    rows = Dataset.from_list([{"images": ["0"], "messages": CHAT}]).with_transform(transform)
    trainer = unguided_trainer(folder / "out", train_dataset=rows)
    trainer.train()
    assert logged(trainer, "lm_loss") == [expected_loss(folder)]


def test_pictures_are_left_without_writing_them_anew(tmp_path: Path):
    parts = [{"role": "user", "content": [{"type": "image", "image": picture()}]}]
    row_of = {"images": [picture()], "image": picture(), "messages": CHAT, "conversations": parts}
    content = List({"type": Value("string"), "image": Image()})
    types = {
        "images": List(Image()),
        "image": Image(),
        "conversations": List({"role": Value("string"), "content": content}),
    }
    types["messages"] = List({"role": Value("string"), "content": Value("string")})
    rows = Dataset.from_list([row_of] * 3, features=Features(types))
    rows.save_to_disk(tmp_path / "saved")
    rows = load_from_disk(tmp_path / "saved")
    files = sorted(tmp_path.rglob("*"))
    found = undecoded(rows)
    assert found.cache_files == rows.cache_files and sorted(tmp_path.rglob("*")) == files
    for changed in (found, found.select([2, 1]), found.shuffle(seed=1).remove_columns("messages")):
        assert set(changed[0]["images"][0]) == set(changed[0]["image"]) == {"bytes", "path"}
        assert set(changed[0]["conversations"][0]["content"][0]["image"]) == {"bytes", "path"}
    assert next(iter(undecoded(rows.to_iterable_dataset())))["images"][0].keys() == {"bytes", "path"}
    assert rows[0]["images"][0].size == picture().size  # the data set that was given is as it was


@pytest.mark.parametrize(
    "shape", ["messages", "parts", "ShareGPT", "prompt and completion", "plain prompt and completion"]
)
def test_lengths_are_those_of_the_words(shape: str):
    assert num_characters(SHAPES[shape]) == len(QUESTION) + len(ANSWER)
    rows = Dataset.from_list([SHAPES[shape]])
    assert with_lengths(rows, "length")["length"][:] == [len(QUESTION) + len(ANSWER)]
    assert with_lengths(rows.add_column("length", [3]), "length")["length"][:] == [3]


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_rows_are_grouped_by_length_without_a_column(folder: Path, strategy: str):
    rows = Dataset.from_list([row(QUESTION, "Yes. " * n) for n in [5, 1] * 32])
    arguments = {"train_sampling_strategy": strategy, "per_device_train_batch_size": 2, "max_steps": 4}
    trainer = unguided_trainer(folder / "out", train_dataset=rows, **arguments)
    trainer.train()
    assert trainer.state.global_step == 4
    if strategy == "group_by_length":
        sampled = list(trainer._get_train_sampler(rows))
        assert sorted(sampled) == list(range(64))
        batches = [{n % 2 for n in sampled[start : start + 2]} for start in range(2, 64, 2)]
        assert sum(len(batch) == 1 for batch in batches) > 25  # of 31: at random, half


@pytest.mark.parametrize("kind", ["stream", "transform"])
def test_lengths_that_are_not_known_are_refused(folder: Path, kind: str):
    rows = Dataset.from_list([SHAPES["messages"]])
    rows = rows.to_iterable_dataset() if kind == "stream" else rows.with_transform(lambda batch: batch)
    with pytest.raises(
        ValueError, match="`train_sampling_strategy='group_by_length'` needs rows whose lengths are known"
    ):
        unguided_trainer(folder / "out", train_dataset=rows, train_sampling_strategy="group_by_length")


@pytest.mark.parametrize("kind", ["map-style", "stream"])
def test_a_data_set_without_rows_is_a_sentence(folder: Path, kind: str):
    rows = Dataset.from_list([SHAPES["messages"]]).select([])
    rows = IterableDataset.from_generator(lambda: iter(())) if kind == "stream" else rows
    with pytest.raises(ValueError, match="^The data set to train on has no rows.$"):
        unguided_trainer(folder / "out", train_dataset=rows)
