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
"""Image processor of AGE-VLM: pictures to pixel values, and masks to the visual tokens' grid through the same geometry."""

from typing import Any

import numpy as np
import torch
from transformers.utils.versions import require_version


require_version("transformers>=5.24", "AGE-VLM needs it: pip install --upgrade transformers")

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
    is_valid_image,
    make_nested_list_of_images,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, auto_docstring

from .image_reading_agevlm import read_image


MAX_CROP = 100  # times the side that is seen, to which a side is enlarged before it is cut


class AgeVlmImageProcessorKwargs(ImagesKwargs, total=False):
    r"""
    patch_size (`int`, *optional*, defaults to `self.patch_size`):
        Side in pixels of the square that one visual token stands for.
    """

    patch_size: int


@auto_docstring
class AgeVlmImageProcessor(TorchvisionBackend):
    r"""
    Brings every picture to `size`. By default a picture is stretched to it, so that there is no padding for the
    attention to fall on (appendix D of the paper); `do_pad` keeps the aspect ratio and pads evenly on both sides,
    `do_center_crop` keeps it and cuts the longer side.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = AgeVlmImageProcessorKwargs

    do_convert_rgb = True
    do_resize = True
    size = {"height": 768, "width": 768}
    default_to_square = True
    resample = PILImageResampling.BICUBIC
    do_pad = False
    do_center_crop = False
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    patch_size = 32

    def __init__(self, **kwargs: Unpack[AgeVlmImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "pixel_attention_mask"] if self.do_pad else ["pixel_values"]

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        size, patch_size = kwargs["size"], kwargs["patch_size"]
        if not size.height or not size.width or size.height % patch_size or size.width % patch_size:
            raise ValueError(
                f"`size` needs a height and a width that are multiples of `patch_size` ({patch_size}), but is {size}."
            )
        if kwargs["do_pad"] and kwargs["do_center_crop"]:
            raise ValueError(
                "`do_pad` and `do_center_crop` exclude each other: a picture is padded or cropped, not both."
            )

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[list[ImageInput]]:
        return make_nested_list_of_images(self.fetch_images(images), expected_ndims=expected_ndims)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        return image_url_or_urls if is_valid_image(image_url_or_urls) else read_image(image_url_or_urls)

    def process_image(
        self, image: ImageInput, do_convert_rgb: bool | None = None, do_rescale: bool | None = None, **kwargs
    ) -> torch.Tensor:
        if not do_convert_rgb:  # arrays of other channels, for a tower of as many
            return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
        pixels = torch.from_numpy(np.array(read_image(image, kwargs.get("input_data_format")))).permute(2, 0, 1)
        # Who asks for no rescaling of floats has them in [0, 1], and `read_image` brings everything to 0 to 255.
        is_unit = not do_rescale and "float" in str(getattr(image, "dtype", None)) and image.max() <= 1
        return (pixels / 255 if is_unit else pixels).to(kwargs.get("device"))

    @staticmethod
    def placement(
        height: int, width: int, size: SizeDict, do_pad: bool, do_center_crop: bool
    ) -> tuple[int, int, int, int]:
        """
        Where a picture of `height` x `width` pixels lies on the canvas of `size`, in canvas pixels:
        `(resized_height, resized_width, top, left)`. The offsets are positive under padding, negative under cropping.
        """
        if not (do_pad or do_center_crop):
            return size.height, size.width, 0, 0
        scales = (size.height / height, size.width / width)
        if do_center_crop and max(scales) > MAX_CROP * min(scales):
            raise ValueError(
                f"`do_center_crop` would cut all but a {MAX_CROP}th of a picture of {height} x {width} pixels. Pad or stretch "
                "it instead."
            )
        scale = min(scales) if do_pad else max(scales)
        resized_height, resized_width = max(1, round(height * scale)), max(1, round(width * scale))
        return (
            resized_height,
            resized_width,
            (size.height - resized_height) // 2,
            (size.width - resized_width) // 2,
        )

    def _preprocess(
        self,
        images: list[list[torch.Tensor]],
        do_resize: bool,
        size: SizeDict,
        resample: "PILImageResampling | int | None",
        do_pad: bool,
        do_center_crop: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        disable_grouping: bool | None,
        return_tensors: str | TensorType | None,
        **kwargs,
    ) -> BatchFeature:
        flat_images = [image for row in images for image in row]
        grouped_images, index = group_images_by_shape(flat_images, disable_grouping=disable_grouping)
        canvases, masks = {}, {}
        for shape, stack in grouped_images.items():
            height, width, top, left = self.placement(*stack.shape[-2:], size, do_pad, do_center_crop)
            if do_resize:
                stack = self.resize(stack, SizeDict(height=height, width=width), resample=resample)
            elif stack.shape[-2:] != (height, width):
                raise ValueError(
                    f"`do_resize=False` needs pictures that already fit `size` ({size.height} x {size.width}), but one "
                    f"has {stack.shape[-2]} x {stack.shape[-1]} pixels."
                )
            source = (slice(max(0, -top), size.height - top), slice(max(0, -left), size.width - left))
            stack = stack[..., source[0], source[1]]
            stack = self.rescale_and_normalize(stack, do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            # Padding comes after the normalization: a padded pixel has the mean color.
            target = (slice(max(0, top), top + height), slice(max(0, left), left + width))
            canvases[shape] = stack.new_zeros((*stack.shape[:2], size.height, size.width))
            canvases[shape][..., target[0], target[1]] = stack
            masks[shape] = torch.zeros((stack.shape[0], size.height, size.width), dtype=torch.long)
            masks[shape][..., target[0], target[1]] = 1

        data = {"pixel_values": self._fill_rows(reorder_images(canvases, index), images)}
        if do_pad:
            data["pixel_attention_mask"] = self._fill_rows(reorder_images(masks, index), images)
        return BatchFeature(data=data, tensor_type=return_tensors)

    @staticmethod
    def _fill_rows(flat: list[torch.Tensor], images: list[list[torch.Tensor]]) -> torch.Tensor:
        """Per-image tensors into one `(batch_size, num_images, ...)`; rows with fewer images end in zeros."""
        rows = flat[0].new_zeros((len(images), max(len(row) for row in images), *flat[0].shape))
        position = 0
        for row, row_images in zip(rows, images, strict=True):
            for n in range(len(row_images)):
                row[n] = flat[position]
                position += 1
        return rows

    def mask_coverage(self, mask: np.ndarray) -> torch.Tensor:
        """
        The share of every visual token's cell that a mask covers, after the geometry that the picture goes through.

        Args:
            mask (`np.ndarray` of shape `(height, width)`):
                Boolean mask in the pixels of the picture as it is shown (after its EXIF rotation).

        Returns:
            `torch.FloatTensor` of shape `(h, w)` in [0, 1], computed exactly from the areas: greater than 0 as soon as
            any part of a pixel of the mask lies in the cell.
        """
        edges = self._cell_edges(*mask.shape)
        rows, columns = (self._overlaps(*axis) for axis in zip(edges, mask.shape, strict=True))
        area = rows @ mask @ columns.T
        cell_height, cell_width = (axis[1] - axis[0] for axis in edges)
        coverage = area / (cell_height * cell_width)
        coverage[area < 1e-6] = 0  # an edge that meets a pixel's may miss it by a rounding error
        return torch.from_numpy(coverage.clip(0, 1)).float()

    def cells_to_pixels(
        self,
        cells: torch.Tensor,
        height: int,
        width: int,
        smooth: bool = False,
        resolution: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """
        Spreads what the visual tokens' cells hold over the pixels of the picture: each cell's value evenly over that
        part of the picture that lies in it.

        Args:
            cells (`torch.FloatTensor` of shape `(..., h, w)`):
                One value per cell.
            height (`int`), width (`int`):
                Size in pixels of the picture as it is shown (after its EXIF rotation).
            smooth (`bool`, *optional*, defaults to `False`):
                For drawing, not for measuring: bilinear between the middles of the cells that hold any of the picture,
                and as there beyond the outermost ones.
            resolution (`tuple[int, int]`, *optional*):
                In how many rows and columns the picture is told instead of its pixels.

        Returns:
            `torch.FloatTensor` of shape `(..., height, width)`, or of that resolution, which has the same sum as the
            cells that hold any of the picture. What `do_center_crop` cut off is 0.
        """
        sides = resolution or (height, width)
        shares, shown = [], []
        for edges, length, side in zip(self._cell_edges(height, width), (height, width), sides, strict=True):
            edges = edges * side / length
            overlap = self._overlaps(edges, side)
            totals = overlap.sum(axis=1, keepdims=True)  # 0 for cells of padding
            share = overlap / np.where(totals > 0, totals, 1)
            shown.append(totals[:, 0] > 0)
            if smooth:
                middles = (edges[:-1] + edges[1:])[shown[-1]] / 2
                near = [np.interp(np.arange(side) + 0.5, middles, row) for row in np.eye(len(middles))]
                share[shown[-1]] = near * overlap.sum(axis=0)
            shares.append(torch.from_numpy(share).to(cells))
        rows, columns = shares
        pixels = rows.T @ cells @ columns
        if smooth:  # near its edges, the picture has less of a cell than the others
            total = (cells * torch.from_numpy(np.outer(*shown)).to(cells)).sum(dim=(-2, -1), keepdim=True)
            pixels = pixels * (total / pixels.sum(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(cells.dtype).tiny))
        return pixels

    def _cell_edges(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The edges of the cells' rows and columns in the pixels of a picture of that size, which they may lie outside of."""
        resized_height, resized_width, top, left = self.placement(
            height, width, self.size, self.do_pad, self.do_center_crop
        )
        rows = np.arange(0, self.size.height + 1, self.patch_size) - top
        columns = np.arange(0, self.size.width + 1, self.patch_size) - left
        # Multiplied first: an edge that meets the picture's edge is exactly there.
        return rows * height / resized_height, columns * width / resized_width

    @staticmethod
    def _overlaps(edges: np.ndarray, length: int) -> np.ndarray:
        """How much of each of `length` pixels lies between consecutive `edges`: `(len(edges) - 1, length)`."""
        pixels = np.arange(length)
        return (np.minimum.outer(edges[1:], pixels + 1) - np.maximum.outer(edges[:-1], pixels)).clip(0)


__all__ = ["AgeVlmImageProcessor"]
