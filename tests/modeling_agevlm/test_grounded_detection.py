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
"""Boxes, points, masks and scores from grounding maps, against pixels worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from testing_utils import tiny_processor

from modeling_agevlm import AgeVlmProcessor
from modeling_agevlm.grounding_agevlm import GroundingReadout, find_regions


def outputs_of(*maps: list[list[list[float]]], sink: float | None = None) -> SimpleNamespace:
    """One row whose single layer has these maps of 3 x 3 cells, one query each, and what lies on the sink."""
    cells = torch.tensor(maps).flatten(1)
    if sink is not None:
        cells = torch.cat([cells, torch.full((len(maps), 1), sink)], dim=1)
    return SimpleNamespace(grounding_maps=(cells[None],))


CORNER = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
TWO = [[0.6, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.4]]
EVEN = [[1 / 9] * 3] * 3


def test_a_region_by_hand():
    """Two plateaus, one with a lower place beside it, that touch at no corner."""
    attention = torch.zeros(6, 8)
    attention[1:3, 1:4] = 0.1
    attention[2, 2] = 0.15
    attention[3, 4] = 0.05  # at a corner of the first
    attention[5, 7] = 0.1
    first, second = find_regions(attention, threshold=0.3)
    assert first.box == (1, 1, 5, 4) and int(first.mask.sum()) == 7
    # what each column and each row has, at its middle
    assert first.point[0] == pytest.approx((0.2 * 1.5 + 0.25 * 2.5 + 0.2 * 3.5 + 0.05 * 4.5) / 0.7)
    assert first.point[1] == pytest.approx((0.3 * 1.5 + 0.35 * 2.5 + 0.05 * 3.5) / 0.7)
    assert first.excess == pytest.approx(0.7 - 7 * 0.8 / 48)
    assert second.box == (7, 5, 8, 6) and second.point == pytest.approx((7.5, 5.5))
    assert second.excess == pytest.approx(0.1 - 0.8 / 48)
    assert [region.box for region in find_regions(attention, threshold=0.5)] == [(1, 1, 4, 3), (7, 5, 8, 6)]


def test_words_that_look_everywhere_look_at_no_region():
    assert find_regions(torch.full((9, 7), 1 / 63), threshold=0.2) == []
    assert find_regions(torch.full((9, 7), 0.3 / 63), threshold=0.2) == []
    (result,) = tiny_processor().post_process_grounded_object_detection(outputs_of(EVEN), [(96, 96)], threshold=0.0)
    assert {name: tuple(value.shape) for name, value in result.items()} == {
        "scores": (0,),
        "labels": (0,),
        "boxes": (0, 4),
        "points": (0, 2),
        "masks": (0, 96, 96),
    }


def test_boxes_are_in_the_pixels_of_the_picture():
    """A cell of 3 x 3 and half of the way to its neighbors, at a fifth of its maximum: bilinear from 16 to 48 of 96 pixels."""
    outputs = outputs_of(CORNER)
    for height, width in ((96, 96), (192, 48), (480, 640)):
        (result,) = tiny_processor().post_process_grounded_object_detection(outputs, [(height, width)])
        left, top, right, bottom = result["boxes"][0].tolist()
        assert (left, top) == (0, 0)
        # The product of both axes' slopes falls to 0.2: on the axes at 16 + 0.8 x 32 of 96, up to an eighth of a cell
        assert right == pytest.approx(width * (16 + 0.8 * 32) / 96, abs=width * 4 / 96)
        assert bottom == pytest.approx(height * (16 + 0.8 * 32) / 96, abs=height * 4 / 96)
        across, down = result["points"][0].tolist()
        assert across < width / 5 and down < height / 5
        mask = result["masks"][0]
        assert mask.shape == (height, width) and mask[0, 0] and not mask[height // 2 :].any()
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert abs(rows.max() + 1 - bottom) <= 1 and abs(columns.max() + 1 - right) <= 1


def test_several_regions_and_queries():
    outputs, names = outputs_of(TWO, CORNER), [["cup", "dog"]]
    (result,) = tiny_processor().post_process_grounded_object_detection(outputs, [(96, 96)], names, 0.2)
    assert result["labels"].tolist() == [0, 0, 1] and result["text_labels"] == ["cup", "cup", "dog"]
    assert result["scores"][0] > result["scores"][1] and result["boxes"][1, 0] > 48
    (best,) = tiny_processor().post_process_grounded_object_detection(outputs, [(96, 96)], names, threshold=0.5)
    assert best["text_labels"] == ["dog"] and torch.equal(best["boxes"], result["boxes"][2:])
    (bare,) = tiny_processor().post_process_grounded_object_detection(
        outputs, [(96, 96)], threshold=0.2, return_masks=False
    )
    assert bare.keys() == {"scores", "labels", "boxes", "points"} and torch.equal(bare["boxes"], result["boxes"])


def test_what_lies_on_the_sink_lowers_the_score():
    cells = torch.tensor([CORNER]) * 0.3
    outputs = outputs_of(*cells.tolist(), sink=0.7)
    (result,) = tiny_processor().post_process_grounded_object_detection(outputs, [(96, 96)], threshold=0.0)
    (whole,) = tiny_processor().post_process_grounded_object_detection(outputs_of(CORNER), [(96, 96)], threshold=0.0)
    assert torch.equal(result["boxes"], whole["boxes"])
    assert result["scores"][0].item() == pytest.approx(0.3 * whole["scores"][0].item())


def test_scores_are_those_of_the_readout(tmp_path: Path):
    assert GroundingReadout().score(0.25) == pytest.approx(0.25)
    readout = GroundingReadout(slope=2.0, intercept=-1.0)
    assert readout.score(0.8) == pytest.approx(1 / (1 + math.exp(-(2 * math.log(4) - 1))))
    assert 0 < readout.score(0.0) < readout.score(1.0) < 1
    assert GroundingReadout(nothing=-0.5).score(0.5, 0.8) == pytest.approx(1 / (1 + math.exp(0.5 * math.log(4))))
    readout = {"nothing": -0.5}
    scores = []
    for sink in (0.1, 0.7):
        processor = tiny_processor()
        processor.grounding_readout = readout
        outputs = outputs_of(*(torch.tensor([CORNER]) * (1 - sink)).tolist(), sink=sink)
        (result,) = processor.post_process_grounded_object_detection(outputs, [(96, 96)], threshold=0.0)
        (plain,) = tiny_processor().post_process_grounded_object_detection(outputs, [(96, 96)], threshold=0.0)
        expected = GroundingReadout(**readout).score(plain["scores"][0].item(), sink)
        assert result["scores"][0].item() == pytest.approx(expected, rel=1e-3)
        scores.append(expected)
    assert scores[0] > scores[1]
    processor = tiny_processor()
    processor.grounding_readout = {"threshold": 0.5, "intercept": 1.0}
    processor.save_pretrained(tmp_path)
    again = AgeVlmProcessor.from_pretrained(tmp_path)
    assert again.grounding_readout == {"threshold": 0.5, "intercept": 1.0}
    (result,), (plain,) = (
        one.post_process_grounded_object_detection(outputs_of(CORNER), [(96, 96)]) for one in (again, tiny_processor())
    )
    assert result["boxes"][0, 2] < plain["boxes"][0, 2]
    tiny_processor().save_pretrained(tmp_path / "plain")
    assert AgeVlmProcessor.from_pretrained(tmp_path / "plain").grounding_readout is None


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 0.0}, "should be in"),
        ({"threshold": 1.5}, "should be in"),
        ({"slope": float("nan")}, "should be a number"),
        ({"slope": "1"}, "should be a number"),
        ({"intercept": True}, "should be a number"),
    ],
)
def test_a_readout_that_cannot_be_is_refused(values: dict, words: str):
    with pytest.raises(ValueError, match=words):
        GroundingReadout(**values)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"names \[1\] queries per row"):
        tiny_processor().post_process_grounded_object_detection(outputs_of(TWO, CORNER), [(96, 96)], [["cup"]])
    with pytest.raises(ValueError, match="no `grounding_maps`"):
        tiny_processor().post_process_grounded_object_detection(SimpleNamespace(grounding_maps=None), [(96, 96)])
