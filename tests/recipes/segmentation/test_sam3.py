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
"""SAM 3 in the place of Florence-2 and SAM, and the phrases that it is asked for."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, Image, List
from mask_networks import save_sam3
from testing_utils import picture

from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.maker import MaskMaker, make_masks, start_folder
from recipes.segmentation.nouns import noun_phrases
from recipes.segmentation.queries import Instance, prepare
from recipes.segmentation.sam3 import ConceptLocator
from trainers.run_lengths import decode_rle, encode_mask


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("A woman in a red coat is holding two dogs.", ["A woman", "a red coat", "two dogs"]),
        (
            "There is a smiling man, a hot dog and the tall building.",
            ["a smiling man", "a hot dog", "the tall building"],
        ),
        ("Cups and plates on a table", ["Cups", "plates", "a table"]),
        ("The image shows a kitchen with some cups.", ["a kitchen", "some cups"]),
        ("Is there a dog in the image?", ["a dog"]),
        ("a dog beside A DOG", ["a dog"]),
        ("A black and white cat beside a man in red and a dog", ["A black and white cat", "a man", "a dog"]),
        ("A lot of people in front of a building", ["a building"]),
        ("Yes.", []),
        ("", []),
    ],
)
def test_noun_phrases(text: str, phrases: list[str]):
    assert noun_phrases(text) == phrases


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sam3(tmp_path_factory.mktemp("sam3"))


def arguments(out: Path, network: Path, **over: object) -> MaskArguments:
    return MaskArguments(
        **{"out": str(out), "segmenter": "sam3", "sam3": str(network), "num_workers": 0, "batch_size": 2} | over
    )


def row(name: str, *answers: str, image: PIL.Image.Image) -> dict:
    messages = []
    for answer in answers:
        messages += [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    return {"id": name, "images": [image], "messages": messages}


@pytest.mark.parametrize("level", ["message", "phrase"])
def test_real_classes(network: Path, tmp_path: Path, level: str):
    """What random weights find makes no sense, but it is found without an error and fits the pictures."""
    settings = arguments(tmp_path / "out", network, level=level, min_score=0.0, min_area=0.0, max_area=1.0)
    locator = ConceptLocator(settings, torch.device("cpu"), torch.float32)
    rows = [
        row("a", "A cup beside two red dogs.", "A cat.", image=picture(40, 60)),
        row("b", "Nothing.", image=picture(30, 20)),
        row("c", "A tree.", image=picture(50, 30)),
    ]
    rows = Dataset.from_list(rows).cast_column("images", List(Image(decode=False)))
    start_folder(tmp_path / "out", settings.settings)
    make_masks(rows, MaskMaker(settings, locator), tmp_path / "out", PartialState())
    found = Dataset.from_parquet(str(tmp_path / "out/*.parquet"), cache_dir=str(tmp_path / "cache")).to_list()
    texts = [[region["text"] for region in entry["regions"]] for entry in found]
    assert texts == (
        [["A cup", "two red dogs", "A cat"], [], ["A tree"]] if level == "phrase" else [[None] * 2, [], [None]]
    )
    assert [entry["mask_problems"] for entry in found] == [[], ["empty"], []]
    for entry, size in zip(found, ((40, 60), (30, 20), (50, 30)), strict=True):
        for region in entry["regions"]:
            assert decode_rle(region["mask"]).shape == size and 0 <= region["score"] <= 1


def test_what_is_found_for_a_phrase_is_its_mask(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The union of a phrase's instances, in the picture and in the message that it belongs to; each picture encoded once."""
    size, encoded = (40, 60), []
    things = {"a cup": [(0, 0, 10, 10), (20, 20, 30, 30)], "two dogs": [(40, 0, 60, 40)], "a cat": []}

    def decode(self, features, places, asked, sizes) -> list[list[Instance]]:
        assert sizes == [size] * len(asked) and places.tolist() == [0] * len(asked)
        return [
            [Instance(box, code=encode_mask(inside(box)), score=0.5 + 0.1 * n) for n, box in enumerate(things[phrase])]
            for _, phrase in asked
        ]

    def inside(box: tuple[int, int, int, int]) -> np.ndarray:
        mask = np.zeros(size, dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        return mask

    monkeypatch.setattr(ConceptLocator, "encode", lambda self, pictures: encoded.append(len(pictures)))
    monkeypatch.setattr(ConceptLocator, "decode", decode)
    settings = arguments(tmp_path, network, level="phrase")
    maker = MaskMaker(settings, ConceptLocator(settings, torch.device("cpu"), torch.float32))
    (found,) = maker([prepare(row("a", "Here is a cup, and two dogs.", "And a cat.", image=picture(*size)), "answer")])
    assert encoded == [1]
    assert [(region["text"], region["message"]) for region in found["regions"]] == [("a cup", 1), ("two dogs", 1)]
    cup, dogs = (decode_rle(region["mask"]) for region in found["regions"])
    assert np.array_equal(cup, inside(things["a cup"][0]) | inside(things["a cup"][1]))
    assert np.array_equal(dogs, inside(things["two dogs"][0]))
    assert [region["score"] for region in found["regions"]] == [0.5, 0.5]
