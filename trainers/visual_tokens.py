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
"""
Which visual tokens of any VLM of transformers show which part of a picture.

What a processor does to a picture (resizing, padding, cropping, cutting into tiles, normalization) is linear in its
pixels, up to rounding them. So a mask is drawn as a picture and handed to it: what arrives in a token's pixels, between
what arrives of a black and of a white picture, is how much of the token is in the mask, whatever the processor's
settings are. It does the same to each color, so that a picture carries three masks.
"""

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import nn
from transformers import BatchFeature, LlavaNextModel, LlavaOnevisionModel, PreTrainedConfig, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


# Of the vision towers that LLaVA models are built with.
NUM_CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
COLORS = 3  # each carries a mask of its own
MOST_PIXELS = 2**21  # of masks that the processor is given at once, or one row of pictures
# What is read of what a processor makes, besides its values
SHAPES = ("image_sizes", "image_position_ids", "spatial_shapes")
MOST_KEPT = 16  # sizes of pictures: those of a data set often have one of a few


Made = Mapping[str, torch.Tensor]  # what of a processor's batch says how its values lie


def _kept(kept: dict[tuple, Any], key: tuple, make: Callable[[], Any]) -> Any:
    """What is made for a key, or was for one of the last ones."""
    if key not in kept:
        if len(kept) == MOST_KEPT:
            del kept[next(iter(kept))]
        kept[key] = make()
    return kept[key]


def _sequences(patches: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """What a LLaVA takes from its tower: `(num_frames, num_tokens)`. Class tokens show nothing."""
    tokens = nn.functional.pad(patches.flatten(1), (NUM_CLASS_TOKENS[config.vision_config.model_type], 0))
    return tokens[:, 1:] if config.vision_feature_select_strategy == "default" else tokens


def _llava(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    return _sequences(patches, config).flatten()


def _llava_onevision(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    features = _sequences(patches, config).unsqueeze(-1).split(batch["pixel_values"].shape[1])  # of each picture
    # The model's own code puts tiles together, cuts padding off and shrinks what is too long; a newline shows nothing.
    packed, _ = LlavaOnevisionModel.pack_image_features(
        SimpleNamespace(config=config),
        features,
        batch["image_sizes"],
        image_newline=torch.zeros(1),
        vision_aspect_ratio=config.vision_aspect_ratio,
    )
    return torch.cat(packed)[:, 0]


def _llava_next(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    features = _sequences(patches, config).unsqueeze(-1).split(batch["pixel_values"].shape[1])  # of each picture
    size, pinpoints = config.vision_config.image_size, config.image_grid_pinpoints
    counts = [image_size_to_num_patches(of, pinpoints, size) for of in batch["image_sizes"]]  # behind them is padding
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [of_picture[:count] for of_picture, count in zip(features, counts, strict=True)],
        batch["image_sizes"],
        config.vision_feature_select_strategy,
        image_newline=torch.zeros(1),
    )
    return torch.cat(packed)[:, 0]


def _gemma3(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    tokens_per_side = math.isqrt(config.mm_tokens_per_image)
    return nn.functional.avg_pool2d(patches, patches.shape[-1] // tokens_per_side).flatten()


def _without_padding(patches: torch.Tensor, shapes: list[list[int]], side: int) -> torch.Tensor:
    """Tokens of `side` x `side` patches, of frames `(num_frames, max_patches)` whose grids `(height, width)` have padding behind."""
    grids = [
        frame[: height * width].view(1, height, width) for frame, (height, width) in zip(patches, shapes, strict=True)
    ]
    return torch.cat([nn.functional.avg_pool2d(grid, side).flatten() for grid in grids])


def _gemma4(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    shapes = batch["image_position_ids"].amax(dim=1).flip(-1) + 1  # of the last column and row
    return _without_padding(patches, shapes.tolist(), config.vision_config.pooling_kernel_size)


def _internvl(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    return nn.functional.avg_pool2d(patches, round(1 / config.downsample_ratio)).flatten()


def _idefics3(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    return nn.functional.avg_pool2d(patches, config.scale_factor).flatten()


def _qwen2_vl(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    # The image processor puts patches that are merged one after another.
    return patches.view(-1, config.vision_config.spatial_merge_size**2).mean(dim=-1)


def _all_patches(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    return patches.flatten()


def _lfm2_vl(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    return _without_padding(patches, batch["spatial_shapes"].tolist(), config.downsample_factor)


def _mllama(patches: torch.Tensor, batch: Made, config: PreTrainedConfig) -> torch.Tensor:
    return nn.functional.pad(patches.flatten(1), (1, 0)).flatten()  # each tile has a class token


Merge = Callable[[torch.Tensor, Made, PreTrainedConfig], torch.Tensor]
# From values of patches to those of the row's visual tokens, `(num_visual_tokens,)`, by model type.
FAMILIES: dict[str, Merge] = {
    "fast_vlm": _all_patches,  # of a convolutional tower: the cells of its last feature map
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "lfm2_vl": _lfm2_vl,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "mllama": _mllama,
    "paligemma": _all_patches,
    "qwen2_5_vl": _qwen2_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_5": _qwen2_vl,
    "qwen3_vl": _qwen2_vl,
    "smolvlm": _idefics3,
}


class VisualTokens:
    """
    Which visual tokens of a VLM's input show which part of a picture.

    ```python
    visual_tokens = VisualTokens(processor, model.config)
    coverage = visual_tokens.coverage(images, [(0, cup), (1, table)])  # masks of the first and of the second picture
    ```

    Args:
        processor ([`ProcessorMixin`]): The model's.
        config ([`PreTrainedConfig`]): The model's, with its `vision_config`.

    Raises:
        ValueError: If it is not known how this model puts its visual tokens together.
    """

    def __init__(self, processor: ProcessorMixin, config: PreTrainedConfig) -> None:
        model_type = config.model_type
        classes = {base.__name__ for base in type(processor).__mro__}
        # Checkpoints of FastVLM name their processor, the library does not.
        of_family = PROCESSOR_MAPPING_NAMES.get(model_type, "LlavaProcessor")
        if model_type not in FAMILIES or of_family not in classes:
            raise ValueError(
                f"It is not known which visual tokens show what with a {type(processor).__name__} and a model of type "
                f"{model_type!r}, but for the processors of {', '.join(FAMILIES)}."
            )
        tower = config.vision_config.model_type
        if FAMILIES[model_type] in (_llava, _llava_next, _llava_onevision) and tower not in NUM_CLASS_TOKENS:
            raise ValueError(
                f"It is not known which visual tokens show what in a model of type {model_type!r} with a vision tower of "
                f"type {tower!r}, but for {', '.join(NUM_CLASS_TOKENS)}."
            )
        self.processor, self.config = processor, config
        self._merge = FAMILIES[model_type]
        self._colors: torch.Tensor | None = None  # in which values they arrive
        # By the sizes of a row's pictures, of the last ones
        self._ends: dict[tuple, tuple[torch.Tensor, torch.Tensor, Made, int]] = {}
        self._footprints: dict[tuple, torch.Tensor] = {}

    def coverage(self, images: list[PIL.Image.Image], regions: list[tuple[int, np.ndarray]]) -> torch.Tensor:
        """
        How much of each visual token lies in regions of the pictures.

        Args:
            images (`list[PIL.Image.Image]`): All pictures of one row: how one is cut may depend on their number.
            regions (`list[tuple[int, np.ndarray]]`):
                The index of a picture, and a boolean mask (height, width) of its pixels.

        Returns:
            `torch.FloatTensor` of shape `(num_regions, num_visual_tokens)`: The share of what a token shows of the
            region's picture that is in the region, 0 where it shows nothing of it. Tokens are in the order in which
            they stand in the row. Of a model that reads pictures by cross-attention, they are its keys.

        Raises:
            ValueError: If a region's picture is not among `images`, or its mask is not of the picture's size; if the
                processor writes another number of visual tokens than the model has.
        """
        for index, mask in regions:
            if not 0 <= index < len(images):
                raise ValueError(f"A region is in picture {index}, but the row has {len(images)}.")
            width, height = images[index].size
            if mask.shape != (height, width):
                raise ValueError(
                    f"The mask of a region is of shape {mask.shape}, but picture {index} is {height} pixels high and "
                    f"{width} wide."
                )
        if not images:
            return torch.zeros(0, 0)
        sizes = [image.size for image in images]
        black, white, batch, written = _kept(self._ends, tuple(sizes), lambda: self._blank(sizes))
        nothing = self._merge(torch.zeros_like(black[0]), batch, self.config)
        if self._merge is not _mllama and written != len(nothing):
            raise ValueError(
                f"{type(self.processor).__name__} writes {written} visual tokens where the model has {len(nothing)}: "
                "its settings are not those of the model's configuration."
            )
        coverages = [nothing.new_zeros(0, len(nothing))]
        step = COLORS * max(1, MOST_PIXELS // sum(width * height for width, height in sizes))
        for first in range(0, len(regions), step):
            chunk = regions[first : first + step]
            rows = [self._row(sizes) for _ in range(-(-len(chunk) // COLORS))]
            for k, (index, mask) in enumerate(chunk):
                rows[k // COLORS][index][..., k % COLORS] = 255 * mask
            # Where the picture is not, both are the same; next to it, resizing may overshoot and turn them around.
            arrived, _ = self._seen(rows)
            patches = torch.where(white > black, (arrived - black) / (white - black), 0).clamp(0, 1)
            coverages += [self._merge(of, batch, self.config)[None] for of in patches.flatten(0, 1)[: len(chunk)]]
        return torch.cat(coverages)

    def footprints(self, images: list[PIL.Image.Image], index: int, grid: tuple[int, int]) -> torch.Tensor:
        """
        Which part of a picture each visual token shows: `(num_visual_tokens, rows, columns)`, its share in each cell of a grid
        over picture `index` of the row's `images`. It sums to 1, or is 0 for a token that shows nothing of that picture. Tokens
        are taken for rectangles, so that a row and a column of cells say where they are.
        """
        place = (*(image.size for image in images), index, grid)
        return _kept(self._footprints, place, lambda: self._drawn(images, index, grid))

    def _drawn(self, images: list[PIL.Image.Image], index: int, grid: tuple[int, int]) -> torch.Tensor:
        """As `footprints`, from what arrives of rows and columns of cells."""
        size, (rows, columns) = images[index].size[::-1], grid
        row_of, column_of = (np.arange(length) * cells // length for length, cells in zip(size, grid, strict=True))
        stripes = [np.broadcast_to((row_of == n)[:, None], size) for n in range(rows)]
        stripes += [np.broadcast_to(column_of == n, size) for n in range(columns)]
        shares = self.coverage(images, [(index, stripe) for stripe in stripes]).split(grid)
        placed = torch.einsum("rs,cs->src", *shares)
        return placed / placed.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(placed.dtype).tiny)

    @staticmethod
    def _row(sizes: list[tuple[int, int]], color: int | slice = slice(0), value: int = 0) -> list[np.ndarray]:
        """Pictures that are black, but for some colors."""
        pictures = [np.zeros((height, width, COLORS), dtype=np.uint8) for width, height in sizes]
        for picture in pictures:
            picture[..., color] = value
        return pictures

    def _blank(self, sizes: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, Made, int]:
        """What arrives of black and of white pictures, what `_merge` reads besides, and the number of visual tokens."""
        if self._colors is None:
            self._colors = self._color_shares(sizes)
        (black,), batch = self._seen([self._row(sizes)])
        (white,), _ = self._seen([self._row(sizes, slice(None), 255)])
        shapes = {name: batch[name] for name in SHAPES if name in batch}
        shapes["pixel_values"] = batch["pixel_values"].new_empty(()).expand(batch["pixel_values"].shape)
        return black, white, shapes, int((batch["input_ids"] == self.config.image_token_id).sum())

    def _processed(self, rows: list[list[np.ndarray]]) -> BatchFeature:
        texts = [self.processor.image_token * len(of_row) for of_row in rows]
        images = [[PIL.Image.fromarray(picture) for picture in of_row] for of_row in rows]
        return self.processor(text=texts, images=images, return_tensors="pt")

    def _seen(self, rows: list[list[np.ndarray]]) -> tuple[torch.Tensor, BatchFeature]:
        """
        What arrives of rows of pictures of the same sizes in each patch on average, by color, `(num_rows, COLORS, num_frames, height,
        width)`, or without a grid `(num_rows, COLORS, ...)` as patches come, and all that the processor makes of them.
        """
        batch = self._processed(rows)
        values = batch["pixel_values"].float()
        if values.dim() < 4:  # (..., num_patches, values of a patch)
            patches = torch.einsum("...v,cv->c...", values, self._colors)
        else:
            # A timm tower's configuration does not say it.
            patch_size = getattr(self.config.vision_config, "patch_size", None) or self.processor.patch_size
            frames = values.flatten(0, -4)  # of rows, pictures and tiles, as far as a model has them
            patches = torch.einsum("nvhw,cv->cnhw", nn.functional.avg_pool2d(frames, patch_size), self._colors)
        return patches.reshape(COLORS, len(rows), -1, *patches.shape[2:]).transpose(0, 1), batch

    def _color_shares(self, sizes: list[tuple[int, int]]) -> torch.Tensor:
        """
        In which values of a patch, or channels of a frame, each color arrives: `(COLORS, num_values)`, each row summing to 1. Raises
        `ValueError` unless each has its own.
        """
        rows = [self._row(sizes), *(self._row(sizes, color, 255) for color in range(COLORS))]
        values = self._processed(rows)["pixel_values"]
        values = values.flatten(0, -2) if values.dim() < 4 else values.movedim(-3, -1).flatten(0, -2)
        black, *colors = values.unflatten(0, (len(rows), -1))
        differ = torch.stack([(color != black).any(dim=0) for color in colors]).float()
        if not (differ.any(dim=1).all() and (differ.sum(dim=0) <= 1).all()):
            raise ValueError(
                f"{type(self.processor.image_processor).__name__} mixes the colors of pictures or drops some, so that masks cannot be "
                "followed through it: have it make three channels of three."
            )
        return differ / differ.sum(dim=1, keepdim=True)
