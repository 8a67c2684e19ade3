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
"""Regions on the visual tokens of other models, against what each of their visual tokens depends on, and by hand."""

from collections.abc import Callable
from functools import cache

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    BatchFeature,
    Idefics3Config,
    LlavaConfig,
    LlavaNextConfig,
    PixtralVisionConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from vlm_families import FAMILIES, VISION, Made

from trainers import visual_tokens
from trainers.visual_tokens import COLORS, MOST_KEPT, VisualTokens


Size = tuple[int, int]  # height and width
# A wide picture, a tall one, one that has to be enlarged, and several in a row.
ROWS: dict[str, list[Size]] = {
    "wide": [(50, 110)],
    "tall": [(120, 40)],
    "square": [(96, 96)],
    "small": [(13, 19)],
    "three": [(64, 50), (50, 110), (64, 50)],
}


@cache
def made(family: str) -> Made:
    """
    The model looks at each patch on its own: what its attention gives is nothing. A constant picture makes all patches
    equal, and the pixels of a patch count alike, so that how a token depends on pixels is how much each patch counts in
    it.
    """
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=weight[0].numel() ** -0.5)
            if any(part in name for part in ("out_proj.", "o_proj.", "attn.proj.", "attention.projection_layer.")):
                weight.zero_()
            if "position" in name or "pos_embed" in name:
                weight.zero_()
            if name.endswith(".gamma"):  # of the blocks that look around
                weight.zero_()
            if name.endswith(".stem.0.bias"):  # else the norm behind would take the picture's brightness away
                weight.normal_()
            if ".downsample." in name and weight.dim() > 1:  # channels differ: behind a norm they add up to nothing
                weight.copy_(weight[..., :1, :1].expand_as(weight))
            if any(part in name for part in ("patch_embed", ".stem.")) and weight.dim() > 1:
                weight.copy_(weight.flatten(1)[:, :1].expand(-1, weight[0].numel()).view_as(weight))
    return model.eval(), processor


def inputs(processor: ProcessorMixin, images: list[PIL.Image.Image]) -> BatchFeature:
    text = "and".join([processor.image_token] * len(images))
    return processor(text=[text], images=[images], return_tensors="pt")


def visual_features(model: PreTrainedModel, batch: BatchFeature) -> torch.Tensor:
    """What the language model is given for each visual token, `(num_visual_tokens, hidden_size)`."""
    given = {}
    hook = model.get_decoder().register_forward_pre_hook(lambda *args: given.update(args[-1]), with_kwargs=True)
    model(**batch)
    hook.remove()
    if "cross_attention_states" in given:
        return given["cross_attention_states"].flatten(0, 1)
    return given["inputs_embeds"][batch["input_ids"] == model.config.image_token_id]


def dependence(model: PreTrainedModel, processor: ProcessorMixin, sizes: list[Size]) -> torch.Tensor:
    """How much each visual token depends on each pixel value, `(num_visual_tokens, *pixel_values.shape)`."""
    batch = inputs(processor, [PIL.Image.new("RGB", size[::-1], (90, 90, 90)) for size in sizes])
    batch["pixel_values"] = torch.full_like(batch["pixel_values"], 0.7).requires_grad_()
    features = visual_features(model, batch)
    scores = features @ torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
    each = torch.eye(len(scores))
    (depends,) = torch.autograd.grad(scores, batch["pixel_values"], each, is_grads_batched=True)
    return depends


def masks_of(size: Size) -> list[np.ndarray]:
    """The whole picture, a box at a corner, one pixel, and what has no shape."""
    height, width = size
    box, pixel = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    box[: height // 2, width - width // 3 :] = True
    pixel[height - 2, 1] = True
    return [np.ones(size, dtype=bool), box, pixel, np.random.default_rng(0).random(size) < 0.3]


def pixel_values(processor: ProcessorMixin, masks: list[np.ndarray]) -> torch.Tensor:
    images = [PIL.Image.fromarray(np.repeat(255 * mask[..., None].astype(np.uint8), 3, axis=2)) for mask in masks]
    return inputs(processor, images)["pixel_values"]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_coverage_is_what_tokens_depend_on(family: str, row: str):
    """Token by token: the pixels that it depends on, as far as they show the picture, and what lies there of a mask."""
    model, processor = made(family)
    sizes = ROWS[row]
    images = [PIL.Image.new("RGB", size[::-1]) for size in sizes]
    regions = [(index, mask) for index, size in enumerate(sizes) for mask in masks_of(size)]
    found = VisualTokens(processor, model.config).coverage(images, regions)

    depends = dependence(model, processor, sizes)
    assert found.shape == (len(regions), len(depends))
    assert found.dtype == torch.float32
    # All patches in a token count alike, if they are not interpolated; of those of a merged token the weights differ.
    weights = depends.abs() if family == "LLaVA-OneVision" else (depends != 0).float()

    def seen(index: int, mask: np.ndarray, color: int) -> torch.Tensor:
        """What each token sees of a mask in a picture, in a color: where padding is no gray, they are rounded apart."""
        parts = weights * (pixel_values(processor, [*black[:index], mask, *black[index + 1 :]]) - lowest)
        return (parts if lowest.dim() < 4 else parts.select(-3, color)).flatten(1).sum(dim=1)

    black = [np.zeros(size, dtype=bool) for size in sizes]
    lowest = pixel_values(processor, black)
    for k, ((index, mask), coverage) in enumerate(zip(regions, found, strict=True)):
        if mask.all():
            assert coverage.max() == 1
        whole = seen(index, np.ones_like(mask), k % COLORS)
        expected = torch.where(whole > 0, seen(index, mask, k % COLORS) / whole, 0).clamp(0, 1)
        torch.testing.assert_close(coverage, expected, rtol=0, atol=2e-5)


def cells(mask: np.ndarray, side: int) -> np.ndarray:
    """The shares of squares, row by row."""
    height, width = mask.shape
    return mask.reshape(height // side, side, width // side, side).mean(axis=(1, 3))


def tiles(mask: np.ndarray, side: int) -> list[np.ndarray]:
    """The cells of tiles of 32 x 32 pixels, each row by row."""
    height, width = mask.shape
    return [
        cells(mask[top : top + 32, left : left + 32], side).ravel()
        for top in range(0, height, 32)
        for left in range(0, width, 32)
    ]


UNKNOWN = [np.nan]
# What tokens show of pictures that are not resized.
BY_HAND: dict[str, list[tuple[Size, Callable[[np.ndarray], list]]]] = {
    "LLaVA": [((32, 32), lambda mask: [*cells(mask, 8)])],
    "LLaVA, padded": [((16, 32), lambda mask: [np.zeros(4), *cells(mask, 8), np.zeros(4)])],
    "LLaVA, with class token": [((32, 32), lambda mask: [[0], *cells(mask, 8)])],
    "LLaVA, SigLIP": [((32, 32), lambda mask: [*cells(mask, 8)])],
    "LLaVA-OneVision": [
        ((32, 64), lambda mask: [16 * UNKNOWN, *np.pad(cells(mask, 8), [(0, 0), (0, 1)])]),
        ((32, 32), lambda mask: [*cells(mask, 8), *np.pad(cells(mask, 8), [(0, 0), (0, 1)])]),
    ],
    "LLaVA-NeXT": [((32, 64), lambda mask: [16 * UNKNOWN, *np.pad(cells(mask, 8), [(0, 0), (0, 1)])])],
    "LLaVA-NeXT, SigLIP": [((64, 32), lambda mask: [16 * UNKNOWN, *np.pad(cells(mask, 8), [(0, 0), (0, 1)])])],
    "Gemma 3": [((32, 32), lambda mask: [*cells(mask, 16)])],
    "Gemma 4": [((144, 240), lambda mask: [*cells(mask, 24)])],
    "InternVL": [
        ((32, 32), lambda mask: [*cells(mask, 16)]),
        ((64, 96), lambda mask: [*tiles(mask, 16), 4 * UNKNOWN]),
    ],
    "Idefics3": [((64, 96), lambda mask: [*tiles(mask, 16), 4 * UNKNOWN])],
    "SmolVLM": [((96, 64), lambda mask: [*tiles(mask, 16), 4 * UNKNOWN])],
    "Qwen2-VL": [((48, 64), lambda mask: [*cells(mask, 16)])],
    "Qwen2.5-VL": [((48, 80), lambda mask: [*cells(mask, 16)])],
    "Qwen3-VL": [((48, 64), lambda mask: [*cells(mask, 16)])],
    "Qwen3.5": [((48, 64), lambda mask: [*cells(mask, 16)])],
    "PaliGemma": [((32, 32), lambda mask: [*cells(mask, 8)])],
    "LFM2-VL": [
        ((32, 48), lambda mask: [*cells(mask, 16)]),
        ((64, 96), lambda mask: [*tiles(mask, 16), 6 * UNKNOWN]),
    ],
    "Mllama": [
        ((40, 64), lambda mask: [[0, *tile] for tile in tiles(np.pad(mask, [(0, 24), (0, 0)]), 8)]),
        ((96, 32), lambda mask: [*([0, *tile] for tile in tiles(mask, 8)), np.zeros(17)]),
    ],
}


@pytest.mark.parametrize("family", BY_HAND)
def test_coverage_by_hand(family: str):
    model, processor = made(family)
    visual_tokens = VisualTokens(processor, model.config)
    for size, tokens in BY_HAND[family]:
        masks = masks_of(size)
        coverage = visual_tokens.coverage([PIL.Image.new("RGB", size[::-1])], [(0, mask) for mask in masks])
        for mask, found in zip(masks, coverage, strict=True):
            expected = torch.tensor(np.concatenate(tokens(mask)), dtype=torch.float32)
            torch.testing.assert_close(torch.where(expected.isnan(), torch.nan, found), expected, equal_nan=True)


def test_padding_shows_nothing():
    """Not even what resizing spills over the edge of a picture, which is of the other sign."""
    model, processor = made("LLaVA, padded")
    mask = np.ones((4, 12), dtype=bool)
    (found,) = VisualTokens(processor, model.config).coverage([PIL.Image.new("RGB", (12, 4))], [(0, mask)])
    assert found.view(4, 4).tolist() == [[0] * 4, [1] * 4, [1] * 4, [0] * 4]


def test_pictures_of_any_mode_and_no_regions():
    model, processor = made("Idefics3")
    visual_tokens = VisualTokens(processor, model.config)
    mask = masks_of((64, 96))[3]
    found = [
        visual_tokens.coverage([PIL.Image.new(mode, (96, 64))], [(0, mask)]) for mode in ("RGB", "L", "RGBA", "P")
    ]
    assert all(torch.equal(one, found[0]) for one in found)
    assert visual_tokens.coverage([PIL.Image.new("RGB", (96, 64))], []).shape == (0, found[0].shape[1])
    assert visual_tokens.coverage([], []).shape == (0, 0)


def test_what_cannot_be_followed_is_refused():
    model, processor = made("LLaVA")
    with pytest.raises(ValueError, match="LlavaProcessor and a model of type 'llava_next', but .* llava_onevision"):
        VisualTokens(processor, LlavaNextConfig())
    with pytest.raises(ValueError, match="Idefics3Processor and a model of type 'llava'"):
        VisualTokens(made("Idefics3")[1], model.config)
    with pytest.raises(ValueError, match="'llava' with a vision tower of type 'pixtral'"):
        VisualTokens(processor, LlavaConfig(vision_config=PixtralVisionConfig(**VISION)))


@pytest.mark.parametrize("family", ["SmolVLM", "Gemma 4", "LLaVA-NeXT"])
def test_some_masks_at_a_time_are_what_all_are(family: str, monkeypatch: pytest.MonkeyPatch):
    model, processor = made(family)
    images = [PIL.Image.new("RGB", size[::-1]) for size in ROWS["three"]]
    regions = [(n, mask) for n, size in enumerate(ROWS["three"]) for mask in masks_of(size)]
    expected = VisualTokens(processor, model.config).coverage(images, regions)
    monkeypatch.setattr(visual_tokens, "MOST_PIXELS", 1)
    found = VisualTokens(processor, model.config)
    assert torch.equal(found.coverage(images, regions), expected)
    # What is kept by size holds no pixels.
    ((*ends, shapes, _),) = found._ends.values()
    kept = sum(tensor.untyped_storage().nbytes() for tensor in [*ends, *shapes.values()])
    assert kept < 0.2 * inputs(processor, images)["pixel_values"].nbytes


def test_colors_that_are_mixed_are_refused_and_those_in_another_order_are_followed(monkeypatch: pytest.MonkeyPatch):
    model, processor = FAMILIES["LLaVA"]()
    image, masks = PIL.Image.new("RGB", (48, 32)), masks_of((32, 48))[1:]
    regions = [(0, mask) for mask in masks]
    expected = VisualTokens(processor, model.config).coverage([image], regions)
    normalize = processor.image_processor.rescale_and_normalize
    change = {"flipped": lambda values: values.flip(1), "gray": lambda values: values.mean(1, True).expand_as(values)}

    def set_to(name: str) -> None:
        changed = lambda values, *more: change[name](normalize(values, *more))  # noqa: E731
        monkeypatch.setattr(processor.image_processor, "rescale_and_normalize", changed)

    set_to("flipped")
    found = VisualTokens(processor, model.config).coverage([image], regions)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # colors are rounded apart
    set_to("gray")
    with pytest.raises(ValueError, match="mixes the colors of pictures or drops some"):
        VisualTokens(processor, model.config).coverage([image], regions)


@pytest.mark.parametrize("family", ["LLaVA", "Gemma 4", "Qwen2.5-VL"])
def test_pictures_that_stay_as_they_are(family: str):
    """Bytes, and in sizes that the processor does not change."""
    model, processor = FAMILIES[family]()
    expected = VisualTokens(processor, model.config)
    image, mask = PIL.Image.new("RGB", (48, 48)), np.zeros((48, 48), dtype=bool)
    mask[:16, :32] = True
    processor = FAMILIES[family]()[1]
    processor.image_processor.do_rescale = processor.image_processor.do_normalize = False
    if family == "Qwen2.5-VL":
        processor.image_processor.do_resize = False
    found = VisualTokens(processor, model.config).coverage([image], [(0, mask)])
    torch.testing.assert_close(found, expected.coverage([image], [(0, mask)]), rtol=0, atol=5e-3)


def test_what_does_not_fit_is_refused():
    model, processor = made("Idefics3")
    images = [PIL.Image.new("RGB", (96, 64))]
    mask = np.ones((64, 96), dtype=bool)
    visual_tokens = VisualTokens(processor, model.config)
    for index in (1, -1):
        with pytest.raises(ValueError, match=f"picture {index}, but the row has 1"):
            visual_tokens.coverage(images, [(index, mask)])
    with pytest.raises(ValueError, match=r"\(96, 64\), but picture 0 is 64 pixels high and 96 wide"):
        visual_tokens.coverage(images, [(0, mask.T)])
    config = Idefics3Config(**model.config.to_dict() | {"scale_factor": 4})
    with pytest.raises(ValueError, match="Idefics3Processor writes 28 visual tokens where the model has 7"):
        VisualTokens(processor, config).coverage(images, [(0, mask)])


@pytest.mark.parametrize("family", ["LLaVA, SigLIP", "SmolVLM", "Qwen2.5-VL", "LFM2-VL"])
def test_footprints_are_where_tokens_look(family: str):
    """On a grid as fine as the pixels, what each token shows of a mask is what of its footprint is in the mask."""
    model, processor = made(family)
    images = [PIL.Image.new("RGB", (24, 30)), PIL.Image.new("RGB", (36, 16))]
    visual_tokens = VisualTokens(processor, model.config)
    placed = visual_tokens.footprints(images, 1, (16, 36))
    mask = np.zeros((16, 36), dtype=bool)
    mask[3:9, 20:] = True
    (expected,) = visual_tokens.coverage(images, [(1, mask)])
    torch.testing.assert_close(placed[:, 3:9, 20:].sum(dim=(1, 2)), expected, atol=0.02, rtol=0)
    (shows,) = visual_tokens.coverage(images, [(1, np.ones_like(mask))])
    torch.testing.assert_close(placed.sum(dim=(1, 2)), (shows > 0).float())


def test_footprints_are_drawn_once_for_pictures_of_the_same_sizes(monkeypatch: pytest.MonkeyPatch):
    model, processor = made("SmolVLM")
    visual_tokens = VisualTokens(processor, model.config)
    pictures = {side: PIL.Image.new("RGB", (side, 30)) for side in range(20, 20 + MOST_KEPT + 1)}
    first = visual_tokens.footprints([pictures[20], pictures[21]], 1, (4, 4))
    monkeypatch.setattr(visual_tokens, "coverage", lambda *arguments: pytest.fail("they are drawn again"))
    assert visual_tokens.footprints([PIL.Image.new("L", (20, 30)), pictures[21]], 1, (4, 4)) is first
    monkeypatch.undo()
    others = [
        ([pictures[20], pictures[21]], 0, (4, 4)),
        ([pictures[21], pictures[20]], 1, (4, 4)),
        ([pictures[20]], 0, (4, 4)),
    ]
    for other in [*others, ([pictures[20], pictures[21]], 1, (4, 5))]:
        fresh = VisualTokens(processor, model.config).footprints(*other)
        assert torch.equal(visual_tokens.footprints(*other), fresh) and not torch.equal(fresh, first)
    for picture in pictures.values():
        visual_tokens.footprints([picture], 0, (2, 2))
    assert len(visual_tokens._footprints) == MOST_KEPT == len(visual_tokens._ends)
