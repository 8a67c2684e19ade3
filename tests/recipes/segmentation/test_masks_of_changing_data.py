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
"""Masks of data sets that grow, change their order or fail for a while."""

import io
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, Image, List
from mask_networks import save_florence, save_sam
from testing_utils import picture

from recipes.segmentation import maker as maker_module
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.florence import Locator
from recipes.segmentation.maker import MaskMaker, make_masks, row_key, start_folder
from recipes.segmentation.sam import Segmenter


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    save_florence(folder / "florence")
    save_sam(folder / "sam")
    return folder


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Counting:
    """Networks that write a region for every text, but for those in `broken`, and say which texts they were given."""

    def __init__(self):
        self.texts, self.broken = [], set()

    def generate(self, texts, pictures):
        if self.broken & set(texts):
            raise RuntimeError("disk gone")
        self.texts += texts
        return ["<poly><loc_10><loc_20><loc_700><loc_20><loc_400><loc_900></poly>"] * len(texts)


@pytest.fixture
def counted(tmp_path: Path, networks: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the masks of rows with texts, and returns those that the networks were asked for."""
    arguments = MaskArguments(
        out=str(tmp_path / "masks"), florence=str(networks / "florence"), sam=str(networks / "sam"), query="answer",
        rows_per_file=2, min_area=0, max_area=1, num_workers=0, batch_size=2,
    )  # fmt: skip
    device, asked = torch.device("cpu"), Counting()
    maker = MaskMaker(
        arguments, Locator(arguments, device, torch.float32), Segmenter(arguments, device, torch.float32)
    )
    monkeypatch.setattr(maker.locator, "generate", asked.generate)

    def make(*texts: str, broken: Sequence[str] = ()) -> list[str]:
        asked.texts, asked.broken = [], set(broken)
        start_folder(Path(arguments.out), arguments.settings)
        make_masks(rows_with(texts), maker, Path(arguments.out), PartialState())
        files = sorted(Path(arguments.out).iterdir())
        names = [f"train-{n:05d}.parquet" for n in range(-(-len(texts) // 2))]
        assert [file.name for file in files] == ["masks.json", *names]
        found = [row for file in files[1:] for row in pq.read_table(file).to_pylist()]
        assert [row["messages"][1]["content"][0]["text"] for row in found] == list(texts)
        assert [len(row["regions"]) for row in found] == [text not in broken for text in texts]
        return asked.texts

    return make


def rows_with(texts: Sequence[str]) -> Dataset:
    def message(role: str, *parts: tuple[str, str | None]) -> dict:
        return {"role": role, "content": [{"type": kind, "text": text} for kind, text in parts]}

    rows = [
        {
            "id": text,
            "images": [{"bytes": png(picture(60, 80)), "path": None}],
            "messages": [message("user", ("image", None), ("text", "What?")), message("assistant", ("text", text))],
        }
        for text in texts
    ]
    return Dataset.from_list(rows).cast_column("images", List(Image(decode=False)))


def test_only_what_is_new_is_made(counted):
    """Wherever new rows stand, and in whatever order the old ones: also if the run before was stopped among them."""
    assert counted("a", "b", "c", "d", "e") == ["a", "b", "c", "d", "e"]
    assert counted("new", "a", "b", "c", "d", "e") == ["new"]
    assert counted("e", "d", "c", "new", "b", "a") == []
    assert counted("d", "x", "b", "a", "e", "new", "c", "y") == ["x", "y"]
    assert counted("y", "c") == []


def test_a_stopped_change_loses_nothing(counted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    counted("a", "b", "c", "d", "e")
    before = {file.name: file.read_bytes() for file in (tmp_path / "masks").glob("train-*")}
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
        names = []
        write = maker_module.write_parquet
        patch.setattr(
            maker_module, "write_parquet", lambda *given: 1 / 0 if len(names) == 2 else names.append(write(*given))
        )
        counted("x", "a", "b", "c", "y", "d", "e")
    assert {file.name: file.read_bytes() for file in (tmp_path / "masks").glob("train-*")} == before
    assert counted("x", "a", "b", "c", "y", "d", "e") == ["y"]


def test_rows_that_failed_are_tried_again(counted):
    assert counted("a", "b", "c", broken=["b"]) == ["a", "c"]
    assert counted("a", "b", "c") == ["b"]
    assert counted("a", "b", "c") == []


def test_where_all_rows_fail_that_is_said(counted):
    with pytest.raises(
        ValueError, match="None of 3 rows can be given masks; the first, failed: RuntimeError: disk gone"
    ):
        counted("a", "b", "c", broken=["a", "b", "c"])


def test_a_picture_that_was_replaced_is_looked_at_again(tmp_path: Path):
    row = {"id": "0", "images": [{"bytes": None, "path": str(tmp_path / "a.png")}], "messages": []}
    keys = []
    for picture_of_it in (picture(60, 80), picture(60, 80), picture(30, 40)):
        (tmp_path / "a.png").write_bytes(png(picture_of_it))
        keys.append(row_key(row))
    assert keys[0] == keys[1] != keys[2]
