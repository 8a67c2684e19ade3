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

from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset, Image, List
from mask_networks import save_grounding_dino, save_sam
from testing_utils import picture

from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.grounding_dino import BoxLocator
from recipes.segmentation.maker import MaskMaker, make_masks, start_folder
from recipes.segmentation.sam import Segmenter
from trainers.run_lengths import decode_rle


CPU = (torch.device("cpu"), torch.float32)
TEXTS = ["A cup beside two red dogs.", "Yes.", "A cat."]
SIZES = [(40, 60), (30, 20), (50, 30)]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    save_grounding_dino(folder / "grounding_dino")
    save_sam(folder / "sam")
    return folder


def arguments(networks: Path, **over: object) -> MaskArguments:
    paths = {"grounding_dino": str(networks / "grounding_dino"), "sam": str(networks / "sam")}
    return MaskArguments(**{"out": "", "locator": "grounding_dino", "num_workers": 0, "min_score": 0.0} | paths | over)


def test_boxes_are_those_of_transformers(networks: Path):
    """In the pixels of pictures of several sizes, with the scores that its own post-processing gives."""
    locator, pictures = BoxLocator(arguments(networks), *CPU), [picture(*size) for size in SIZES]
    found = locator.generate(TEXTS, pictures)
    assert [list(phrases) for phrases in found] == [["A cup", "two red dogs"], [], ["A cat"]]
    words = ["a cup. two red dogs. ", "a cat. "]
    inputs = locator.processor(images=[pictures[0], pictures[2]], text=words, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = locator.model(**inputs)
    expected = locator.processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=0.0, target_sizes=[SIZES[0], SIZES[2]]
    )
    for of_text, result in zip((found[0], found[2]), expected, strict=True):
        boxes = sorted(instance.box for instances in of_text.values() for instance in instances)
        assert len(boxes) == 6
        torch.testing.assert_close(torch.tensor(boxes), torch.tensor(sorted(map(tuple, result["boxes"].tolist()))))


def test_a_box_is_of_the_phrase_with_the_highest_score(networks: Path):
    locator = BoxLocator(arguments(networks, min_score=0.3), *CPU)
    places = [(0, 0), (0, 1), (2, 5), (5, 6), (7, 10), (11, 15), (15, 16), (0, 0)]  # "a cup. two dogs. "
    scores = torch.zeros(4, 256)
    scores[0, 2], scores[0, 4] = 0.4, 0.35
    scores[1, 5] = 0.9
    scores[2, 3] = scores[2, 6] = 0.9  # the dots between them
    scores[3, 2] = 0.2  # too little
    boxes = torch.arange(16.0).view(4, 4)
    found = locator.choose(["a cup", "two dogs"], places, scores, boxes)
    assert {phrase: [instance.box for instance in instances] for phrase, instances in found.items()} == {
        "a cup": [(0.0, 1.0, 2.0, 3.0)],
        "two dogs": [(4.0, 5.0, 6.0, 7.0)],
    }
    assert found["two dogs"][0].score == pytest.approx(0.9)


@pytest.mark.parametrize("level", ["message", "phrase"])
def test_masks_of_its_boxes(networks: Path, tmp_path: Path, level: str):
    settings = arguments(networks, out=str(tmp_path / "out"), level=level, min_area=0.0, max_area=1.0)
    rows = [
        {
            "id": text,
            "images": [picture(*size)],
            "messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": text}],
        }
        for text, size in zip(TEXTS, SIZES, strict=True)
    ]
    rows = Dataset.from_list(rows).cast_column("images", List(Image(decode=False)))
    start_folder(tmp_path / "out", settings.settings)
    maker = MaskMaker(settings, BoxLocator(settings, *CPU), Segmenter(settings, *CPU))
    make_masks(rows, maker, tmp_path / "out", PartialState())
    found = Dataset.from_parquet(str(tmp_path / "out/*.parquet"), cache_dir=str(tmp_path / "cache")).to_list()
    assert [row["mask_problems"] for row in found] == [[], ["empty"], []]
    texts = [[region["text"] for region in row["regions"]] for row in found]
    assert texts == ([["A cup", "two red dogs"], [], ["A cat"]] if level == "phrase" else [[None], [], [None]])
    for row, size in zip(found, SIZES, strict=True):
        assert all(decode_rle(region["mask"]).shape == size for region in row["regions"])
