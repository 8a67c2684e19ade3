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
"""One picture, whatever it comes as: every kind of file by every way, against pixels that are worked out by hand."""

import base64
import http.server
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from testing_utils import tiny_processor

from modeling_agevlm import image_reading_agevlm
from modeling_agevlm.image_reading_agevlm import open_image, read_image


HEIGHT, WIDTH = 24, 36
RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
GRAY[0, :2] = 0, 255  # the whole range
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
RAMP = np.tile(np.arange(WIDTH, dtype=np.int64), (HEIGHT, 1))


def on_white(colors: np.ndarray) -> np.ndarray:
    """`ALPHA` of the colors, and white for the rest."""
    alpha = ALPHA[..., None] / 255
    return colors * alpha + 255 * (1 - alpha)


def three(gray: np.ndarray) -> np.ndarray:
    return np.repeat(gray[..., None], 3, axis=-1)


def saved(pixels: np.ndarray | PIL.Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(colors: np.ndarray) -> bytes:
    """Pillow reads PNG files of 16 bits a channel, but does not write them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int | str) -> bytes:
    """EXIF data of an orientation, as a number (type 3) or as text (type 2)."""
    is_text = isinstance(orientation, str)
    value = orientation.encode().ljust(4, b"\0") if is_text else struct.pack("<HH", orientation, 0)
    entry = struct.pack("<HHI", 0x0112, 2 if is_text else 3, 2 if is_text else 1) + value
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)


def turned_tiff(turn: int) -> bytes:
    data = PIL.Image.Exif()
    data[0x0112] = turn
    return saved(COLORS, "TIFF", exif=data)


def transparent(palette: bool = False) -> PIL.Image.Image:
    image = PIL.Image.fromarray(np.where(GRAY > 127, 200, 40).astype(np.uint8))
    return image.quantize(2) if palette else image


def frames() -> dict:
    return {"save_all": True, "append_images": [PIL.Image.new("RGB", (WIDTH, HEIGHT), "red")]}


TURNS = {
    2: COLORS[:, ::-1],
    3: COLORS[::-1, ::-1],
    4: COLORS[::-1],
    5: COLORS.transpose(1, 0, 2),
    6: np.rot90(COLORS, -1),
    7: COLORS[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(COLORS),
}
FILES = {
    "8 bits": (saved(COLORS, "PNG"), COLORS),
    "16 bits": (png_of_16_bits(COLORS.astype(int) * 257), COLORS),
    "gray": (saved(GRAY, "PNG"), three(GRAY)),
    "gray of 16 bits": (saved(GRAY.astype(np.uint16) * 257, "PNG"), three(GRAY)),
    "gray of 12 bits in 16": (saved(GRAY.astype(np.uint16) * 16, "PNG"), three(GRAY)),
    "gray of 16 bits in a PGM": (
        b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + (GRAY.astype(int) * 257).astype(">u2").tobytes(),
        three(GRAY),
    ),
    "gray of 32 bits, 16 of them used": (saved(GRAY.astype(np.int32) * 257, "TIFF"), three(GRAY)),
    "gray of 32 bits": (saved(GRAY.astype(np.int32) * 1000 - 7, "TIFF"), three(GRAY)),
    "floats in [0, 1]": (saved(GRAY.astype(np.float32) / 255, "TIFF"), three(GRAY)),
    "floats in [0, 255]": (saved(GRAY.astype(np.float32), "TIFF"), three(GRAY)),
    "floats in any range": (saved(GRAY.astype(np.float32) * 0.5 - 30, "TIFF"), three(GRAY)),
    "a black picture of floats": (saved(np.full((HEIGHT, WIDTH), -2.0, dtype=np.float32), "TIFF"), three(GRAY * 0)),
    "black and white": (saved(PIL.Image.fromarray(GRAY > 127), "PNG"), three(np.where(GRAY > 127, 255, 0))),
    "transparent": (saved(np.dstack([COLORS, ALPHA]), "PNG"), on_white(COLORS)),
    "gray and transparent": (saved(np.dstack([GRAY, ALPHA]), "PNG"), on_white(three(GRAY))),
    "one transparent color": (
        saved(transparent(), "PNG", transparency=40),
        three(np.where(GRAY > 127, 200, 255)),
    ),
    "CMYK": (saved(PIL.Image.merge("CMYK", [PIL.Image.fromarray(GRAY)] * 4), "TIFF"), None),
    "animated GIF": (saved(PIL.Image.fromarray(GRAY), "GIF", **frames()), three(GRAY)),
    "animated WebP": (saved(COLORS, "WEBP", lossless=True, **frames()), COLORS),
    "animated PNG": (saved(COLORS, "PNG", **frames()), COLORS),
    "pages of a TIFF": (saved(COLORS, "TIFF", **frames()), COLORS),
    "an orientation that does not exist": (saved(COLORS, "PNG", exif=exif(9)), COLORS),
    "an orientation of 0": (saved(COLORS, "PNG", exif=exif(0)), COLORS),
    "an orientation in words": (saved(COLORS, "PNG", exif=exif("6")), COLORS),
    "broken EXIF": (saved(COLORS, "PNG", exif=b"Exif\0\0garbage!"), COLORS),
    "broken EXIF in a WebP": (saved(COLORS, "WEBP", lossless=True, exif=b"Exif\0\0garbage!"), COLORS),
    "a row of pixels": (saved(COLORS[:1], "PNG"), COLORS[:1]),
    "a column of pixels": (saved(COLORS[:, :1], "PNG"), COLORS[:, :1]),
    "one pixel": (saved(COLORS[:1, :1], "PNG"), COLORS[:1, :1]),
    "three rows": (saved(COLORS[:3], "PNG"), COLORS[:3]),
}
for turn, turned in TURNS.items():
    FILES |= {
        f"PNG turned by {turn}": (saved(COLORS, "PNG", exif=exif(turn)), turned),
        f"WebP turned by {turn}": (saved(COLORS, "WEBP", lossless=True, exif=exif(turn)), turned),
        f"TIFF turned by {turn}": (turned_tiff(turn), turned),
    }


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where the files of `FILES` are served, by the number of their place."""
    contents = [content for content, _ in FILES.values()]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                while True:
                    self.wfile.write(bytes(2**16))
            number = int(self.path.strip("/"))
            self.send_response(200 if number < len(contents) else 404)
            self.end_headers()
            self.wfile.write(contents[number] if number < len(contents) else b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_one_picture_by_every_way(name: str, tmp_path: Path, address: str):
    content, expected = FILES[name]
    path, text = tmp_path / "picture", base64.b64encode(content).decode()
    path.write_bytes(content)
    if expected is None:  # Pillow's own conversion, without a profile
        expected = np.asarray(PIL.Image.open(path).convert("RGB"))
    pixels = np.asarray(read_image(path))
    assert pixels.dtype == np.uint8 and pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= (1 if "transparent" in name else 0)  # rounding of the mixture
    ways = [
        str(path),
        PIL.Image.open(path),
        content,
        bytearray(content),
        io.BytesIO(content),
        text,
        base64.encodebytes(content).decode(),  # in lines
        f"data:image/png;base64,{text}",
        f"data:image/png;base64,{text.replace('+', '%2B').replace('=', '%3D')}",
        f"DATA:image/png;charset=x;base64,{text}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in content),
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(path)},
        f"{address}/{list(FILES).index(name)}",
        read_image(path),  # and once more
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        pixels / 255,
        torch.from_numpy(pixels / 255).float().permute(2, 0, 1),
    ]
    for source in ways:
        assert np.array_equal(np.asarray(read_image(source)), pixels), source


def test_the_processor_sees_what_the_reader_reads(tmp_path: Path):
    processor = tiny_processor()
    for n, name in enumerate(
        ("transparent", "gray of 12 bits in 16", "WebP turned by 6", "animated GIF", "a column of pixels")
    ):
        (tmp_path / str(n)).write_bytes(FILES[name][0])
        pixels = np.asarray(read_image(tmp_path / str(n)))
        ways = [
            {"image": PIL.Image.open(tmp_path / str(n))},
            {"path": str(tmp_path / str(n))},
            {"base64": base64.b64encode(FILES[name][0]).decode()},
            {"image": pixels},
            {"image": torch.from_numpy(pixels.copy()).permute(2, 0, 1)},
            {"image": torch.from_numpy(pixels / 255).permute(2, 0, 1)},
        ]
        seen = []
        for part in ways:
            message = {
                "role": "user",
                "content": [{"type": "image", **part}, {"type": "text", "text": "is there a cup ?"}],
            }
            seen.append(processor.apply_chat_template([message], tokenize=True, return_dict=True, return_tensors="pt"))
        for inputs in seen[1:]:
            assert torch.equal(inputs["pixel_values"], seen[0]["pixel_values"])
        expected = processor.image_processor(PIL.Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        assert torch.equal(seen[0]["pixel_values"], expected)


def test_floats_without_rescaling_are_the_same_picture():
    processor = tiny_processor().image_processor
    colors = RNG.integers(
        0, 256, (processor.size.height, processor.size.width, 3), dtype=np.uint8
    )  # nothing to resize
    expected = processor(colors, return_tensors="pt")["pixel_values"]
    found = processor((colors / 255).astype(np.float32), do_rescale=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected)
    bright = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    found = processor(colors.astype(np.float32), **bright)["pixel_values"]
    assert torch.equal(found, processor(colors, **bright)["pixel_values"])


ARRAYS = {
    "gray": (GRAY, three(GRAY)),
    "one channel last": (GRAY[..., None], three(GRAY)),
    "one channel first": (GRAY[None], three(GRAY)),
    "colors first": (COLORS.transpose(2, 0, 1), COLORS),
    "gray and alpha": (np.dstack([GRAY, ALPHA]), on_white(three(GRAY))),
    "alpha, channels first": (np.dstack([COLORS, ALPHA]).transpose(2, 0, 1), on_white(COLORS)),
    "either layout: channels last": (COLORS[:3], COLORS[:3]),
    "a column: channels last": (COLORS[:, :1], COLORS[:, :1]),
    "a tensor of either layout: channels first": (torch.from_numpy(COLORS[:3]), COLORS[:3].transpose(1, 2, 0)),
    "booleans": (GRAY > 127, three(np.where(GRAY > 127, 255, 0))),
    "int64": (COLORS.astype(np.int64), COLORS),
    "uint16": (COLORS.astype(np.uint16) * 257, COLORS),
    "gray of 16 bits": (GRAY.astype(np.uint16) * 257, three(GRAY)),
    "float16": ((COLORS / 255).astype(np.float16), COLORS),
    "floats up to 255": (COLORS.astype(np.float32), COLORS),
    "bfloat16": (torch.from_numpy(GRAY // 2).bfloat16(), three(GRAY // 2)),
    "float8": (torch.from_numpy(GRAY // 32 * 32).to(torch.float8_e4m3fn), three(GRAY // 32 * 32)),
    "in a graph": (torch.from_numpy(COLORS / 255).requires_grad_(), COLORS),
    "not contiguous": (COLORS[::2, ::-1], COLORS[::2, ::-1]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_pictures(name: str):
    array, expected = ARRAYS[name]
    pixels = np.asarray(read_image(array)).astype(int)
    assert pixels.shape == expected.shape and np.abs(pixels - expected).max() <= (1 if "alpha" in name else 0)


def test_a_deep_gray_that_is_transparent_lies_on_white():
    """tRNS of a PNG file of 16 bits: one of its 65,536 values."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = b"\0" + np.array([[0, 256, 30000, 60000]], dtype=">u2").tobytes()
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 16, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", 0))
    content = b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert np.asarray(read_image(content))[0, :, 0].tolist() == [255, 1, 117, 234]


def test_the_layout_can_be_told():
    cube = RNG.integers(0, 256, (3, 5, 3), dtype=np.uint8)
    assert np.array_equal(read_image(cube, "channels_first"), cube.transpose(1, 2, 0))
    assert np.array_equal(read_image(torch.from_numpy(cube), "channels_last"), cube)


TRUNCATED = FILES["8 bits"][0][:-300]
REFUSED = {
    "a number": (3, "'3' cannot be read as a picture: it is of type int"),
    "nothing": (None, "it is of type NoneType"),
    "an empty entry": ({"bytes": None, "path": None}, "it is of type NoneType"),
    "a name": ("picture", "'picture' cannot be read as a picture: there is no such file"),
    "a name with a suffix": ("no/such/file.png", "there is no such file"),
    "a path": (Path("no/such/file.png"), "No such file or directory"),
    "an address in a data set": ({"bytes": None, "path": "http://localhost:1/x.png"}, "No such file or directory"),
    "a folder": (Path("/"), "Is a directory"),
    "words": (b"no picture", "A file of 10 bytes cannot be read as a picture: it is of no kind that Pillow knows"),
    "no bytes": (b"", "it is of no kind that Pillow knows"),
    "a cut-off file": (TRUNCATED, "truncated"),
    "base64 of words": ("data:image/png;base64,bm8gcGljdHVyZQ==", "it is of no kind that Pillow knows"),
    "an empty data URL": ("data:image/png;base64,", "it is of no kind that Pillow knows"),
    "an EPS file": (saved(COLORS, "EPS"), "it is an EPS file, which is a program"),
    "a file of NaN": (saved(np.full((4, 4), np.nan, dtype=np.float32), "TIFF"), "it has values that are no numbers"),
    "nothing at an address": ("http://127.0.0.1:1/x.png", "cannot be read as a picture"),
    "five channels": (np.zeros((9, 9, 5)), "is no picture. Pass"),
    "an empty crop": (PIL.Image.new("RGB", (0, 5)), "cannot be read as a picture: it has 0 x 5 pixels"),
    "an empty array": (np.zeros((0, 9, 3)), "is no picture. Pass"),
    "a row of numbers": (np.zeros(9), "is no picture. Pass"),
    "a normalized tensor": (torch.randn(3, 9, 9), "has it been normalized already"),
    "too bright": (np.full((9, 9, 3), 300), "its values go from 300 to 300"),
    "not a number": (np.full((9, 9, 3), np.nan), "it has values that are no numbers"),
    "complex numbers": (np.full((9, 9), 1j), "is no picture"),
    "a sparse tensor": (
        torch.zeros(9, 9).to_sparse(),
        "An array of shape (9, 9) and type torch.float32 is no picture: ",
    ),
    "a tensor without values": (torch.zeros(9, 9, device="meta"), "is no picture: "),
    "objects": (np.full((9, 9), None), "is no picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_in_one_sentence(name: str):
    source, message = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        read_image(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_more_pixels_than_the_limit_are_refused_before_they_are_decoded(monkeypatch):
    cut_off = saved(COLORS, "PNG")[:-400]  # to decode it would be another error
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    for read in (read_image, open_image):
        with pytest.raises(ValueError, match="more pixels than Pillow takes"):
            read(cut_off)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH)
    assert open_image(cut_off).size == (WIDTH, HEIGHT)


def test_an_address_without_a_picture_ends_in_a_sentence(address: str, monkeypatch):
    with pytest.raises(ValueError, match="404"):
        read_image(f"{address}/100000")
    monkeypatch.setattr(image_reading_agevlm, "FETCH_BYTES", 2**20)
    with pytest.raises(ValueError, match="it has more than 1048576 bytes"):
        read_image(f"{address}/endless")


def test_the_source_stays_as_it_is():
    image = PIL.Image.open(io.BytesIO(FILES["PNG turned by 6"][0]))
    read_image(image)
    assert image.size == (WIDTH, HEIGHT) and image.getexif()[0x0112] == 6 and np.array_equal(image, COLORS)
    plain = PIL.Image.fromarray(COLORS)
    assert read_image(plain) is plain
