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
"""Picture files of every format that Pillow writes and of some that it only reads, damaged, through the one reader."""

import io
import random
import struct
import warnings
import zlib
from functools import cache

import numpy as np
import PIL.Image

from fuzz.mutation import mutated_bytes
from modeling_agevlm.image_reading_agevlm import open_image, read_image


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F")
NOT_READ = ("PDF", "PALM")
SLOW = ("ICNS", "AVIF")  # to write
TIFF = (
    "tiff_lzw",
    "tiff_deflate",
    "tiff_adobe_deflate",
    "packbits",
    "group3",
    "group4",
    "tiff_ccitt",
    "jpeg",
    "zstd",
    "lzma",
    "webp",
)
DETAILS = [
    *({"format": "TIFF", "compression": name} for name in TIFF),
    {"format": "JPEG", "progressive": True, "optimize": True},
    {"format": "JPEG", "subsampling": 2, "restart_marker_blocks": 1},
    {"format": "PNG", "bits": 2, "transparency": 1},
    {"format": "WEBP", "lossless": True},
    {"format": "TGA", "compression": "tga_rle"},
    {"format": "ICO", "bitmap_format": "bmp"},
    *({"format": "DDS", "pixel_format": name} for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC3", "BC5")),
    {"format": "BLP", "blp_version": "BLP1"},
    {"format": "JPEG2000", "irreversible": True, "num_resolutions": 2},
    {"format": "JPEG2000", "no_jp2": True, "tile_size": (16, 16)},
    {"format": "AVIF", "subsampling": "4:4:4"},
]  # fmt: skip


def sample(mode: str) -> PIL.Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (20, 24, 4), dtype=np.uint8)
    image = PIL.Image.fromarray(values)
    image = image if mode == "RGBA" else image.convert("RGB")
    if mode.startswith("I;16"):
        return image.convert("L").convert("I").convert(mode)
    return image.convert("L").convert(mode) if mode in ("LA", "I", "F") else image.convert(mode)


def written(image: PIL.Image.Image, **details: object) -> bytes | None:
    """A file, or None where the format does not take such a picture."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of formats that Pillow gives up
            image.save(file, **({"exif": exif} | details))
    except Exception:  # formats refuse modes and details each in its way
        return None
    return file.getvalue()


def interlaced_png() -> bytes:
    values = np.asarray(sample("RGB"))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(b"\0" + row.tobytes() for y, x, dy, dx in passes for row in values[y::dy, x::dx])
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        png_chunk(name, data) for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that damage gets past them."""
    made, at = data[:8], 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        made += data[at:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return made + data[at:]


def read_only() -> list[bytes]:
    """Of formats that Pillow reads and does not write."""
    gray, rgb = sample("L").tobytes(), sample("RGB").tobytes()
    ico, pcx = written(sample("RGB"), format="ICO", bitmap_format="bmp"), written(sample("RGB"), format="PCX")
    palette = bytes(range(256)) * 3
    text = (
        '/* XPM */\nstatic char *x[] = {\n"24 20 2 1",\n"a c #ff0000",\n"b c None",\n'
        + '"abababababababababababab",\n' * 20
    )
    fits = [
        f"{name:8}= {value:>20}"
        for name, value in (("SIMPLE", "T"), ("BITPIX", "8"), ("NAXIS", "2"), ("NAXIS1", "24"), ("NAXIS2", "20"))
    ]
    fits = "".join(f"{line:80}" for line in [*fits, "END"])
    frame = struct.pack("<IHH8x", 16 + 6 + 481, 0xF1FA, 1) + struct.pack("<IH", 6 + 481, 16) + gray + b"\0"
    fli = struct.pack("<IHHHHHHI", 0, 0xAF11, 1, 24, 20, 8, 3, 5).ljust(128, b"\0") + frame
    psd = struct.pack(">4sH6xHIIHHIIIH", b"8BPS", 1, 3, 20, 24, 8, 3, 0, 0, 0, 0) + rgb
    packed = b"".join(b"\x17" + rgb[n * 24 : n * 24 + 24] for n in range(60))
    return [
        b"\0\0\2\0" + ico[4:],  # CUR
        struct.pack("<III", 0x3ADE68B1, 12, 0) + pcx,  # DCX
        struct.pack(">IIIIIIII", 0x59A66A95, 24, 20, 24, 1440, 1, 0, 0) + rgb,  # SUN
        struct.pack(">IIIIIIII", 0x59A66A95, 24, 20, 8, 480, 1, 1, 768) + palette + gray,
        struct.pack(">4sH6xHIIHHIIIH", b"8BPS", 1, 3, 20, 24, 8, 3, 0, 0, 0, 1) + struct.pack(">H", 25) * 60 + packed,  # PSD
        psd,
        (text + "};\n").encode(),  # XPM
        fits.ljust(2880).encode() + gray,
        fli,
        b"P7 332\n#END_OF_COMMENTS\n24 20 255\n" + gray,  # XVTHUMB
        struct.pack(">IIIIII4sI", 32, 2, 24, 20, 1, 0x47494D50, b"GIMP", 10) + b"abcd" + gray,  # GBR
        b"\x80\xe8\0\0".ljust(416, b"\0") + struct.pack("<HHHHHH", 20, 24, 0, 0, 14, 2).ljust(608, b"\0") + rgb,  # PIXAR
        b"P3\n24 20 255\n" + " ".join(map(str, rgb)).encode(),
        b"P1\n24 20\n" + b"0 1 " * 240,
        b"Pf\n24 20\n-1.0\n" + sample("F").tobytes(),
        interlaced_png(),
    ]  # fmt: skip


@cache
def seeds() -> list[bytes]:
    PIL.Image.init()
    kinds = sorted(set(PIL.Image.SAVE) - set(NOT_READ))
    files = [written(sample(mode), format=kind) for kind in kinds for mode in (("RGBA",) if kind in SLOW else MODES)]
    files += [written(sample(mode), **details) for details in DETAILS for mode in ("1", "L", "P", "RGB", "RGBA")]
    for kind in sorted(set(PIL.Image.SAVE_ALL) - set(NOT_READ)):
        for mode in ("RGB", "RGBA", "P"):
            first, *more = [sample("RGBA").rotate(90 * n).convert(mode) for n in range(3)]
            # Without orientation: with it Pillow (13.0) dies of AVIF sequences.
            files += [written(first, format=kind, save_all=True, append_images=more, duration=40, exif=b"")]
    files += [written(sample("P"), format="GIF", transparency=3, interlace=1), *read_only()]
    return [file for file in dict.fromkeys(files) if file is not None]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = mutated_bytes(rng.choice(seeds), rng, seeds, head=100)
    return with_checksums(data) if data.startswith(b"\x89PNG") and rng.random() < 0.8 else data


def run(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = read_image(data)
        limit = 2 * PIL.Image.MAX_IMAGE_PIXELS
        assert image.mode == "RGB" and 0 < image.width * image.height <= limit
        return open_image(data).format
