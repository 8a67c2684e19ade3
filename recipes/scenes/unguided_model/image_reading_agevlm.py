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
"""The one reader of pictures: whatever a picture comes as, training, masks, answers and pages see the same pixels of it."""

import base64
import binascii
import io
import os
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image
import torch
from huggingface_hub.utils import httpx


# What a viewer does with each value of the EXIF orientation; any other value, 1 included, leaves the picture as it is.
ORIENTATIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
FETCH_SECONDS = 30  # without a byte from an address
FETCH_BYTES = 2**26  # of a picture from an address
CHANNELS = (1, 2, 3, 4)  # gray, gray and alpha, RGB, RGBA


def read_image(source: Any, input_data_format: str | None = None) -> PIL.Image.Image:
    """
    A picture as a viewer shows it, in RGB of 8 bits a channel.

    It is turned as its EXIF orientation asks, lies on white where it is transparent, and is the first frame of several (of
    an opened `PIL.Image` the frame that it stands at). Gray of more than 8 bits is scaled by the range that its values need:
    integers by 8, 12 or 16 bits, floats by [0, 1] or [0, 255], anything else from its smallest to its largest value. Colors
    of 16 bits lose their low byte. Color profiles are not applied.

    Args:
        source: A `PIL.Image`, a path, an http(s) or data URL, base64, the bytes of a file, an entry
            `{"bytes": ..., "path": ...}` of a data set, or an array or tensor of shape `(height, width)`,
            `(height, width, num_channels)` or `(num_channels, height, width)` with 1 to 4 channels. Floats in [0, 1] are
            as good as integers up to 255. Where both layouts fit a shape, arrays have their channels last and tensors first.
        input_data_format (`str`, *optional*):
            `"channels_last"` or `"channels_first"` for arrays and tensors whose shape does not tell.

    Raises:
        ValueError: If it cannot be read, or has more pixels than Pillow takes (twice `PIL.Image.MAX_IMAGE_PIXELS`), which is
            seen before they are decoded.
    """
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return image_of_array(source, input_data_format)
    image = open_image(source)
    try:
        if 0 in image.size:
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        image.load()
        return shown(image)
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise unreadable(source, error) from error


def open_image(source: Any) -> PIL.Image.Image:
    """
    A picture whose header is read and whose pixels are not, from any `source` of [`read_image`] but arrays and tensors.

    Raises:
        ValueError: If it is no picture, or has more pixels than Pillow takes.
    """
    try:
        image = source if isinstance(source, PIL.Image.Image) else PIL.Image.open(file_of(source))
        if image.format == "EPS":  # Pillow would run Ghostscript on it
            raise ValueError("it is an EPS file, which is a program")
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(
            f"{named(source)} has more pixels than Pillow takes, which are twice `PIL.Image.MAX_IMAGE_PIXELS`. Make it "
            "smaller, or raise that limit if you trust it."
        ) from error
    except Exception as error:
        raise unreadable(source, error) from error
    return image


def file_of(source: Any) -> Any:
    """What Pillow opens: a path, a file, or the bytes of one."""
    if isinstance(source, dict):
        path = source.get("path")  # from a data set, whose author may name a file, not an address
        source = source["bytes"] if source.get("bytes") is not None else path and Path(path)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, os.PathLike) or hasattr(source, "read"):
        return source
    if not isinstance(source, str):
        raise ValueError(f"it is of type {type(source).__name__}")
    if source.startswith(("http://", "https://")):
        return io.BytesIO(fetch(source))
    if os.path.isfile(source):
        return source
    return io.BytesIO(inline_bytes(source))


def inline_bytes(text: str) -> bytes:
    """The bytes that a data URL or base64 alone holds. Raises `ValueError` where it is neither."""
    header, comma, data = text.partition(",")
    if header[:5].lower() != "data:" or not comma:
        header, data = ";base64", text
    if header.endswith(";base64"):
        return base64.b64decode("".join(urllib.parse.unquote(data).split()), validate=True)
    return urllib.parse.unquote_to_bytes(data)


def fetch(url: str) -> bytes:
    """The bytes at an address, `FETCH_BYTES` of them at the most."""
    content = bytearray()
    with httpx.stream("GET", url, timeout=FETCH_SECONDS, follow_redirects=True) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > FETCH_BYTES:
                raise ValueError(f"it has more than {FETCH_BYTES} bytes")
    return bytes(content)


def shown(image: PIL.Image.Image) -> PIL.Image.Image:
    """The part of [`read_image`] that follows the decoding: orientation, transparency and depth. Keeps `image` as it is."""
    turn = orientation(image)
    if image.mode == "RGB" and turn is None and not image.has_transparency_data:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values, clear = np.asarray(image), image.info.get("transparency")
        gray = eight_bits(values)
        # A single value of gray that is transparent has lost its name among 8 bits.
        image = PIL.Image.fromarray(np.where(values == clear, np.uint8(255), gray) if isinstance(clear, int) else gray)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    image.info = {}  # so that nobody turns it again
    return image


def orientation(image: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """How a loaded picture has to be turned to be as it is shown."""
    try:
        value = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data is no reason to lose a picture
        return None
    return ORIENTATIONS.get(value) if isinstance(value, int) else None


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Gray values of any type as uint8, scaled by the range that they need."""
    if not np.isfinite(values).all():
        raise ValueError("it has values that are no numbers")
    low, high = values.min(), values.max()
    if np.issubdtype(values.dtype, np.integer):
        for bits in (8, 12, 16):
            if low >= 0 and high < 2**bits:
                return (values >> (bits - 8)).astype(np.uint8)
    elif low >= 0 and high <= 255:
        return (values * (255.0 if high <= 1 else 1.0)).round().astype(np.uint8)
    half, low, high = values / 2, float(low) / 2, float(high) / 2  # differences of halves cannot overflow
    return ((half - low) * (255 / (high - low) if high > low else 0.0)).round().astype(np.uint8)


def image_of_array(array: np.ndarray | torch.Tensor, input_data_format: str | None = None) -> PIL.Image.Image:
    """An array or tensor as [`read_image`] gives it."""
    name = f"An array of shape {tuple(array.shape)} and type {array.dtype}"
    values = array
    if isinstance(values, torch.Tensor):
        try:
            values = values.detach().cpu()
            is_small = values.is_floating_point() and values.dtype not in (torch.float16, torch.float64)
            values = (values.float() if is_small else values).numpy()
        except (TypeError, RuntimeError) as error:  # sparse ones, for example, and those that have no values
            raise ValueError(f"{name} is no picture: {' '.join(str(error).split())[:200].rstrip('.')}.") from error
    if values.ndim == 3:
        layouts = {"channels_last": -1, "channels_first": 0}
        fitting = [layout for layout, axis in layouts.items() if values.shape[axis] in CHANNELS]
        preferred = "channels_first" if isinstance(array, torch.Tensor) else "channels_last"
        layout = input_data_format or (preferred if preferred in fitting else "".join(fitting))
        values = np.moveaxis(values, layouts.get(layout, -1), -1)
        if values.shape[-1] == 1:
            values = values[..., 0]
    is_image = values.size > 0 and (values.ndim == 2 or (values.ndim == 3 and values.shape[-1] in CHANNELS))
    if not is_image or values.dtype.kind not in "buif":
        raise ValueError(
            f"{name} is no picture. Pass (height, width), (height, width, num_channels) or (num_channels, height, width) "
            "with 1 to 4 channels of real numbers."
        )
    if values.dtype == bool:
        values = values * np.uint8(255)
    if values.dtype != np.uint8:
        try:
            values = eight_bits(values) if values.ndim == 2 else eight_bit_colors(values)
        except ValueError as error:
            raise ValueError(f"{name} is no picture: {error}.") from error
    return shown(PIL.Image.fromarray(np.ascontiguousarray(values)))


def eight_bit_colors(values: np.ndarray) -> np.ndarray:
    """Color values as uint8. Unlike gray ones they have to be in a range that colors have, for normalized ones are not."""
    if not np.isfinite(values).all():
        raise ValueError("it has values that are no numbers")
    low, high = values.min(), values.max()
    if values.dtype == np.uint16 and high > 255:
        return (values >> 8).astype(np.uint8)
    if low < 0 or high > 255:
        raise ValueError(
            f"its values go from {low} to {high}, and those of colors from 0 to 1 or from 0 to 255 (has it been normalized "
            "already?)"
        )
    is_unit = high <= 1 and not np.issubdtype(values.dtype, np.integer)
    return (values * (255.0 if is_unit else 1)).round().astype(np.uint8)


def named(source: Any) -> str:
    """What a message calls a picture."""
    if isinstance(source, dict):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, PIL.Image.Image):
        return f"The {getattr(source, 'format', None) or 'PIL'} image {getattr(source, 'filename', '')}".rstrip()
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"A file of {len(source)} bytes"
    text = str(source)
    return repr(text if len(text) <= 200 else f"{text[:60]}...")  # base64


def unreadable(source: Any, error: Exception) -> ValueError:
    """The sentence for whatever went wrong."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (PIL.UnidentifiedImageError, binascii.Error)):
        is_name = (
            isinstance(source, str) and not source.lower().startswith(("http", "data:")) and not os.path.isfile(source)
        )
        reason = "there is no such file" if is_name else "it is of no kind that Pillow knows"
    return ValueError(
        f"{named(source)} cannot be read as a picture: {reason[:200].rstrip('.')}. Pass the path or URL of a JPEG, PNG, WebP "
        "or GIF file, its bytes or base64, a `PIL.Image`, or an array."
    )
