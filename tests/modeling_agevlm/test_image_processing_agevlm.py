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
import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from PIL.Image import Transpose
from testing_utils import picture, tiny_processor

from modeling_agevlm import AgeVlmImageProcessor


GEOMETRIES = pytest.mark.parametrize(
    "flags", [{}, {"do_pad": True}, {"do_center_crop": True}], ids=["stretch", "pad", "crop"]
)
SIZES = pytest.mark.parametrize("size", [(51, 121), (333, 200), (96, 96), (7, 500), (500, 7)])
# What has to be done to a picture so that its EXIF orientation undoes it
ORIENTATIONS = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}


def processor(height: int = 96, width: int = 128, **flags) -> AgeVlmImageProcessor:
    return AgeVlmImageProcessor(size={"height": height, "width": width}, **flags)


def white_on_black(mask: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(mask.astype(np.uint8) * 255).convert("RGB")


def random_boxes(height: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(2):
        top, bottom = np.sort(generator.integers(0, height + 1, 2))
        left, right = np.sort(generator.integers(0, width + 1, 2))
        mask[top:bottom, left:right] = True
    mask[height // 3 : height // 3 + max(1, height // 4), : width // 2] = True
    return mask


def drawn_coverage(image_processor: AgeVlmImageProcessor, image: PIL.Image.Image) -> torch.Tensor:
    """The share of white in every cell of a processed picture."""
    pixels = image_processor(image, do_normalize=False, return_tensors="pt")["pixel_values"][0, 0]
    return torch.nn.functional.avg_pool2d(pixels, 32).mean(dim=0)


def cells_of_pixel(y: int, x: int, height: int, width: int, flags: dict) -> np.ndarray:
    """The cells of the 96 x 128 canvas that a pixel of the picture touches, in exact arithmetic."""
    cells = np.zeros((3, 4), dtype=bool)
    scales = Fraction(96, height), Fraction(128, width)
    if flags:
        scale = min(scales) if "do_pad" in flags else max(scales)
        sides = [max(1, round(height * scale)), max(1, round(width * scale))]
    else:
        sides = [96, 128]
    spans = []
    for position, side, length, canvas in ((y, sides[0], height, 96), (x, sides[1], width, 128)):
        offset = (canvas - side) // 2
        first = Fraction(position * side, length) + offset
        last = Fraction((position + 1) * side, length) + offset
        first, last = max(first, 0), min(last, canvas)
        spans.append(slice(math.floor(first / 32), math.ceil(last / 32)) if first < last else slice(0, 0))
    cells[spans[0], spans[1]] = True
    return cells


@GEOMETRIES
@SIZES
@pytest.mark.parametrize("seed", range(3))
def test_masks_go_where_the_picture_goes(flags: dict, size: tuple[int, int], seed: int):
    mask = random_boxes(*size, seed)
    image_processor = processor(**flags)
    coverage = image_processor.mask_coverage(mask)
    assert coverage.shape == (3, 4) and coverage.max() > 0.01
    # Where few pixels are drawn large, the bicubic filter blurs their edges into the next cell. (Rounding to 8 bits, which
    # is the CPU's part in it, moves the pixels at an edge by a level or two: 1e-4 of a cell.)
    atol = 0.02 if min(size) > 10 else 0.03
    torch.testing.assert_close(drawn_coverage(image_processor, white_on_black(mask)), coverage, atol=atol, rtol=0)


@GEOMETRIES
@SIZES
def test_one_pixel_is_in_exactly_the_cells_that_it_touches(flags: dict, size: tuple[int, int]):
    height, width = size
    generator = np.random.default_rng(0)
    found = 0
    for y, x in zip(generator.integers(0, height, 60), generator.integers(0, width, 60), strict=True):
        mask = np.zeros(size, dtype=bool)
        mask[y, x] = True
        covered = processor(**flags).mask_coverage(mask).numpy() > 0
        expected = cells_of_pixel(int(y), int(x), height, width, flags)
        assert np.array_equal(covered, expected), (y, x)
        found += covered.any()
    assert found > 0


@GEOMETRIES
def test_full_and_empty_masks(flags: dict):
    image_processor = processor(**flags)
    assert (image_processor.mask_coverage(np.zeros((51, 121), dtype=bool)) == 0).all()
    coverage = image_processor.mask_coverage(np.ones((51, 121), dtype=bool))
    if "do_pad" in flags:  # 54 of 96 rows are the picture, the 21 above and below are not
        torch.testing.assert_close(coverage, torch.tensor([11 / 32, 1.0, 11 / 32]).unsqueeze(1).expand(3, 4))
    else:
        torch.testing.assert_close(coverage, torch.ones(3, 4))


@GEOMETRIES
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_masks_lie_on_the_picture_as_it_is_shown(flags: dict, orientation: int):
    mask = random_boxes(60, 90)
    shown, how = white_on_black(mask), ORIENTATIONS[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    (shown if how is None else shown.transpose(how)).save(file, "PNG", exif=exif)
    stored = PIL.Image.open(file)
    assert stored.size == ((60, 90) if orientation >= 5 else (90, 60))
    image_processor = processor(**flags)
    coverage = image_processor.mask_coverage(mask)
    torch.testing.assert_close(drawn_coverage(image_processor, stored), coverage, atol=0.02, rtol=0)


def test_padding_is_zero_after_normalization_and_marked():
    outputs = processor(do_pad=True)(PIL.Image.new("RGB", (80, 40), "white"), return_tensors="pt")
    pixels, mask = outputs["pixel_values"][0, 0], outputs["pixel_attention_mask"][0, 0]
    assert mask[16:80].all() and not mask[:16].any() and not mask[80:].any()
    assert (pixels[:, mask == 0] == 0).all() and (pixels[:, mask == 1] > 1).all()


def test_pixel_attention_mask_only_where_there_is_padding():
    assert list(processor()(picture(), return_tensors="pt")) == ["pixel_values"]
    assert list(processor(do_center_crop=True)(picture(), return_tensors="pt")) == ["pixel_values"]


def test_pictures_are_normalized_per_channel():
    image_processor = processor()
    pixels = image_processor(PIL.Image.new("RGB", (30, 50), (255, 0, 51)), return_tensors="pt")["pixel_values"]
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    expected = ((torch.tensor([1.0, 0.0, 0.2]) - mean) / std)[:, None, None].expand(3, 96, 128)
    torch.testing.assert_close(pixels[0, 0], expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_color_modes_become_rgb(mode: str):
    assert processor()(picture().convert(mode), return_tensors="pt")["pixel_values"].shape == (1, 1, 3, 96, 128)


@GEOMETRIES
def test_rows_of_images_of_different_sizes(flags: dict):
    images = [picture(50, 70, 1), picture(50, 70, 2), picture(90, 31, 3)]
    image_processor = processor(**flags)
    outputs = image_processor([[images[0]], [], [images[1], images[2]]], return_tensors="pt")
    assert outputs["pixel_values"].shape == (3, 2, 3, 96, 128)
    alone = [image_processor(image, return_tensors="pt")["pixel_values"][0, 0] for image in images]
    assert torch.equal(outputs["pixel_values"][0, 0], alone[0])
    assert torch.equal(outputs["pixel_values"][2], torch.stack(alone[1:]))
    for name in outputs:
        assert (outputs[name][0, 1] == 0).all() and (outputs[name][1] == 0).all()


def test_padding_and_cropping_exclude_each_other():
    with pytest.raises(ValueError, match="`do_pad` and `do_center_crop` exclude each other"):
        processor(do_pad=True, do_center_crop=True)(picture())


@pytest.mark.parametrize("size", [(96, 100), (31, 32)])
def test_sizes_of_broken_cells_are_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match=r"multiples of `patch_size` \(32\)"):
        processor(*size)(picture())


def test_without_resizing_the_picture_has_to_fit():
    image_processor = processor(do_resize=False)
    assert image_processor(picture(96, 128), return_tensors="pt")["pixel_values"].shape[-2:] == (96, 128)
    with pytest.raises(ValueError, match="`do_resize=False` needs pictures that already fit .* 64 x 80 pixels"):
        image_processor(picture(64, 80))


def test_save_and_load(tmp_path: Path):
    image_processor = processor(do_pad=True, image_mean=[0.1, 0.2, 0.3])
    image_processor.save_pretrained(tmp_path)
    again = AgeVlmImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == image_processor.to_dict()
    mask = random_boxes(51, 121)
    assert torch.equal(again.mask_coverage(mask), image_processor.mask_coverage(mask))
    outputs, expected = again(picture(), return_tensors="pt"), image_processor(picture(), return_tensors="pt")
    assert all(torch.equal(outputs[name], expected[name]) for name in ("pixel_values", "pixel_attention_mask"))


def test_sixteen_bits_are_scaled(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    PIL.Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    deep = PIL.Image.open(tmp_path / "deep.png")
    assert deep.mode == "I;16"
    processor = tiny_processor().image_processor
    found, expected = (processor([[image]], return_tensors="pt") for image in (deep, PIL.Image.fromarray(gray)))
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


@GEOMETRIES
@pytest.mark.parametrize("size", [(1, 60), (60, 1), (1, 1)])
def test_thin_pictures(flags: dict, size: tuple[int, int]):
    image_processor = processor(**flags)
    height, width = size
    coverage = image_processor.mask_coverage(np.ones(size, dtype=bool))
    drawn = drawn_coverage(image_processor, PIL.Image.new("RGB", (width, height), "white"))
    torch.testing.assert_close(drawn, coverage, atol=0.02, rtol=0)
    assert coverage.sum() > 0


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_a_crop_that_would_enlarge_a_picture_beyond_all_measure_is_refused(size: tuple[int, int]):
    for flags in ({}, {"do_pad": True}):
        processor(**flags)(PIL.Image.new("RGB", size), return_tensors="pt")
    image_processor = processor(do_center_crop=True)
    with pytest.raises(ValueError, match="would cut all but a 100th of a picture of .* Pad or stretch it"):
        image_processor(PIL.Image.new("RGB", size))
    with pytest.raises(ValueError, match="would cut all but a 100th"):
        image_processor.mask_coverage(np.ones(size, dtype=bool))
