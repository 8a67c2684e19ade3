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
"""The bytes and the pixels of a request's pictures."""

import asyncio
import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from testing_utils import picture

from modeling_agevlm import read_image
from recipes.serving.errors import RequestError
from recipes.serving.limits import Limits
from recipes.serving.pictures import MAX_SCANS, START_OF_SCAN, PictureSources, decode


def encoded(image: PIL.Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A small PNG file with a header of many pixels, and none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def read(url: str, **limits: object) -> bytes:
    return asyncio.run(PictureSources(Limits(**limits)).read(url))


PNG = encoded(picture(), "PNG")
BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;charset=x;base64,{BASE64.replace('+', '%2B')}",
        f"data:;base64,{BASE64[:100]}\n{BASE64[100:]}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
        BASE64,
    ],
    ids=["data", "quoted", "lines", "bytes", "base64"],
)
def test_pictures_in_the_request(url: str):
    assert read(url) == PNG


@pytest.mark.parametrize(
    "url", ["", "data:", "/etc/hostname", "kitchen.png", "data:image/png;base64,a", "s3://a/b", "\0"]
)
def test_what_is_no_picture_in_the_request(url: str):
    try:
        content = read(url)
    except RequestError as error:
        assert "not a data URL" in error.message
    else:
        with pytest.raises(RequestError, match="cannot be decoded"):
            decode([content], ["field"], 10**6)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a b.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "inside.png").symlink_to(folder / "inner" / "a b.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.mark.parametrize("name", ["inner/a%20b.png", "inner/../inside.png"])
def test_files_of_the_folder(media: Path, name: str):
    assert read(f"file://{media}/{name}", media_path=media) == PNG


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "%2e%2e/secret.png", "../media2/secret.png", "link.png", "outside/secret.png", "pipe.png", "inner", "no.png"]
    + ["%00", "a" * 5000],
)  # fmt: skip
def test_files_outside_of_the_folder_are_as_if_they_were_not_there(media: Path, name: str):
    with pytest.raises(RequestError) as caught:
        read(f"file://{media}/{name}", media_path=media)
    assert caught.value.message == "The picture is not a file in the folder that this server allows."


def test_files_are_not_read_by_default(media: Path):
    for name in ("inner/a%20b.png", "no.png"):
        with pytest.raises(RequestError, match="not read from files"):
            read(f"file://{media}/{name}")


def test_file_with_too_many_bytes(media: Path):
    assert read(f"file://{media}/inside.png", media_path=media, image_bytes=len(PNG)) == PNG
    with pytest.raises(RequestError, match="has more than") as caught:
        read(f"file://{media}/inside.png", media_path=media, image_bytes=len(PNG) - 1)
    assert caught.value.status == 413


def test_folder_has_to_be_there(tmp_path: Path):
    with pytest.raises(OSError):
        PictureSources(Limits(media_path=tmp_path / "no"))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP"])
def test_pictures_are_as_the_reader_has_them(format: str):
    file = encoded(picture(), format)
    (image,) = decode([file], ["field"], 10**6)
    assert np.array_equal(np.asarray(image), np.asarray(read_image(file)))


@pytest.mark.parametrize(
    "file", [b"", b"no picture", PNG[:60], PNG[:-30], encoded(picture(), "EPS"), encoded(picture(), "TIFF")]
)
def test_file_that_is_no_picture(file: bytes):
    with pytest.raises(RequestError, match="cannot be decoded") as caught:
        decode([PNG, file], ["first", "second"], 10**6)
    assert (caught.value.status, caught.value.param) == (400, "second")


def test_pixels_of_all_pictures_together(monkeypatch: pytest.MonkeyPatch):
    pixels = 64 * 80
    assert len(decode([PNG, PNG], ["a", "b"], 2 * pixels)) == 2
    with pytest.raises(RequestError, match="more than 10,239 pixels together") as caught:
        decode([PNG, PNG], ["a", "b"], 2 * pixels - 1)
    assert caught.value.status == 413


@pytest.mark.parametrize("side", [1000, 9000, 20_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pixels_are_counted_before_they_are_decoded(side: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipes.serving.pictures.read_image", None)
    with pytest.raises(RequestError, match="more than 999,999 pixels together") as caught:
        decode([bomb(side)], ["field"], 10**6 - 1)
    assert caught.value.status == 413


def test_scans_are_counted_before_they_are_decoded():
    """A thousand scans of 50 bytes each are a thousand passes over all pixels."""
    file = io.BytesIO()
    picture().save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    assert 1 < whole.count(START_OF_SCAN) < MAX_SCANS / 3
    last = whole[whole.rindex(b"\xff\xc4") : -2]  # with its table
    assert decode([whole[:-2] + last * 5 + whole[-2:]], ["field"], 10**6)
    with pytest.raises(RequestError, match="cannot be decoded"):
        decode([whole[:-2] + last * MAX_SCANS + whole[-2:]], ["field"], 10**6)


def test_a_folder_takes_no_descriptor_along(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(RequestError, match="not a file in the folder"):
            read(f"file://{tmp_path}", media_path=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
