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
"""The pictures of a request: their bytes from wherever they may come, their pixels within limits."""

import asyncio
import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

import PIL.Image

from modeling_agevlm.image_reading_agevlm import inline_bytes, open_image, read_image
from recipes.serving.addresses import Fetcher
from recipes.serving.errors import RequestError
from recipes.serving.limits import Limits


# What browsers show. Pillow reads more, with readers that few have tried.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "AVIF", "BMP")
# A progressive JPEG file has about ten, each of which is a pass over all pixels, however few bytes it has.
MAX_SCANS = 50
START_OF_SCAN = b"\xff\xda"


class PictureSources:
    """
    Reads what an `image_url` names: the bytes in it or, where `limits` allow it, a file or an address.

    What cannot be read raises a [`RequestError`]. Of a file it does not say whether it is there.
    """

    def __init__(self, limits: Limits) -> None:
        self.media_path = limits.media_path and limits.media_path.resolve(strict=True)
        self.max_bytes = limits.image_bytes
        self.fetcher = Fetcher(limits.media_domains, limits.image_bytes, limits.image_seconds)

    async def read(self, url: str) -> bytes:
        scheme = url[:8].partition(":")[0].lower()
        if scheme in ("http", "https"):
            return await self.fetcher.fetch(url)
        return await asyncio.to_thread(self._read_file if scheme == "file" else self._read_inline, url)

    def _read_inline(self, url: str) -> bytes:
        try:
            return inline_bytes(url)
        except ValueError as error:
            raise RequestError(
                "The picture is not a data URL or its base64 is damaged. Send data:image/png;base64,... of a PNG, JPEG or "
                "WebP file."
            ) from error

    def _read_file(self, url: str) -> bytes:
        if self.media_path is None:
            raise RequestError(
                "Pictures are not read from files of this server. Send the picture itself, as a data URL."
            )
        try:
            path = Path(unquote(urlsplit(url).path)).resolve(strict=True)
            if not path.is_relative_to(self.media_path):
                raise OSError("it is outside")
            # What is no file, such as a pipe, would be waited for.
            with open(path, "rb", opener=open_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise OSError("it is no file")
                content = file.read(self.max_bytes + 1)
        except (OSError, RuntimeError, ValueError) as error:
            raise RequestError("The picture is not a file in the folder that this server allows.") from error
        if len(content) > self.max_bytes:
            raise RequestError(f"The picture has more than {self.max_bytes:,} bytes.", status=413)
        return content


def open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def decode(files: list[bytes], fields: list[str], max_pixels: int) -> list[PIL.Image.Image]:
    """
    The pictures in the bytes of files, after a look at their headers.

    Args:
        files (`list[bytes]`): Image files.
        fields (`list[str]`): Which field of the request each came from.
        max_pixels (`int`): Pixels of all pictures together.

    Raises:
        RequestError: If one is no picture, or they are too large.
    """
    max_pixels = min(max_pixels, 2 * PIL.Image.MAX_IMAGE_PIXELS)  # what Pillow takes
    too_large = RequestError(
        f"The pictures have more than {max_pixels:,} pixels together. Send smaller ones.", status=413
    )
    images, pixels = [], 0
    for file, field in zip(files, fields, strict=True):
        try:
            image = open_image(file)
        except ValueError as error:
            if isinstance(error.__cause__, PIL.Image.DecompressionBombError):
                raise too_large from error
            raise no_picture(field) from error
        if image.format not in FORMATS:
            raise no_picture(field)
        if image.format in ("JPEG", "MPO") and file.count(START_OF_SCAN) > MAX_SCANS:
            raise no_picture(field)
        pixels += image.width * image.height
        if pixels > max_pixels:
            raise too_large
        images.append(image)
    for n, field in enumerate(fields):
        try:
            images[n] = read_image(images[n])
        except ValueError as error:
            raise no_picture(field) from error
    return images


def no_picture(field: str) -> RequestError:
    return RequestError(
        f"The picture cannot be decoded. Send a whole file of one of the formats {', '.join(FORMATS)}.", field
    )
