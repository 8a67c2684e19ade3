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
"""What is wrong with an image file, and which pictures are the same."""

import re
from pathlib import Path

import numpy as np
import PIL.Image
import simplejpeg
from tqdm.auto import tqdm
from transformers.utils import logging

from modeling_agevlm.image_reading_agevlm import open_image, orientation, read_image
from recipes.rows.records import Fault, picture_suffixes, printable


logger = logging.get_logger(__name__)

HASH_SIDE = 16  # of the difference hash: 16 x 16 bits
HASH_DISTANCE = 8  # bits in which two pictures that count as the same one may differ
DAMAGE = re.compile("premature end|bad (huffman|arithmetic) code|instead of rst|inconsistent progression", re.I)


# One picture


def picture_hash(picture: PIL.Image.Image) -> np.ndarray:
    """The 256 bits of a difference hash, as four uint64: which of two neighbors is brighter, on a small gray copy."""
    gray = np.asarray(picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), PIL.Image.Resampling.BOX), dtype=int)
    return np.packbits(gray[:, 1:] > gray[:, :-1]).view(np.uint64)


def check_image(path: str, max_pixels: int, dropped: np.ndarray | None) -> list[str]:
    """
    Decodes a picture, and says what is unusual about it.

    Raises:
        Fault: If it cannot be read, is too large, or is one of those to drop, `(num_dropped, 4)`.
    """
    unusual = []
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
    try:
        with open_image(Path(path)) as picture:
            if picture.width * picture.height > max_pixels:
                raise Fault("image too large", f"{path} has {picture.width} x {picture.height} pixels")
            if getattr(picture, "n_frames", 1) > 1:
                unusual.append("animated image (first frame)")
            if picture.mode in ("CMYK", "YCCK"):
                unusual.append("CMYK image")
            if picture.mode.startswith(("I", "F")):
                unusual.append("16-bit image")
            if orientation(picture) is not None:
                unusual.append("image rotated by EXIF")
            if picture.format in ("JPEG", "MPO"):
                unusual += check_jpeg(path, picture.mode)
            picture = read_image(picture)
            if dropped is not None and len(dropped):
                distance = np.bitwise_count(dropped ^ picture_hash(picture)).sum(axis=1).min()
                if distance <= HASH_DISTANCE:
                    raise Fault("image of an evaluation set", path)
    except Fault:
        raise
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        raise Fault("image unreadable", f"{path} ({error})") from error
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit
    return unusual


def check_jpeg(path: str, mode: str) -> list[str]:
    """
    Says whether a decoder has something to tell of a JPEG file, such as stray bytes, as many cameras leave them. `mode` is
    Pillow's.

    Raises:
        ValueError: If its picture is damaged inside: libjpeg makes the rest up and only warns, which Pillow does not pass on.
    """
    try:
        colors = "CMYK" if mode == "CMYK" else "GRAY"
        simplejpeg.decode_jpeg(Path(path).read_bytes(), colors, min_factor=8, strict=True)
    except ValueError as error:
        if DAMAGE.search(str(error)):
            raise
        return ["JPEG with a warning of its decoder"]
    return []


# Evaluation pictures


def read_hashes(file: Path) -> np.ndarray:
    """
    The hashes of a file as `--write_hashes` writes it, `(num_hashes, 4)`, without those of blank pictures and plain ramps: all
    such pictures are alike.

    Raises:
        ValueError: If it is another kind of file.
    """
    try:
        words = [bytes.fromhex(line.split()[0]) for line in file.read_text().splitlines() if line.strip()]
        hashes = np.frombuffer(b"".join(words), dtype=np.uint64).reshape(len(words), 4)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not a file of picture hashes: make it with `--write_hashes`.") from error
    brighter = np.bitwise_count(hashes).sum(axis=1, dtype=int)
    tells = np.minimum(brighter, HASH_SIDE**2 - brighter) > HASH_DISTANCE
    if not tells.all():
        logger.warning(
            f"{len(hashes) - tells.sum()} of the hashes in {file} are of blank pictures, which are not kept out."
        )
    return hashes[tells]


def write_hashes(images: Path, out: Path) -> int:
    """Writes the hash and the name of every picture in a folder that can be read. Returns how many."""
    files = sorted(file for file in images.rglob("*") if file.suffix.lower() in picture_suffixes())
    if not files:
        raise ValueError(f"There are no pictures in {images}.")
    with out.open("w", encoding="utf-8") as lines:
        unreadable = []
        for file in tqdm(files, unit=" images"):
            try:
                digest = picture_hash(read_image(file)).tobytes().hex()
            except Exception as error:  # Pillow's plugins raise anything on damaged files
                unreadable.append(printable(f"{file}: {error}"))
            else:
                lines.write(f"{digest} {printable(str(file.relative_to(images)))}\n")
    if unreadable:
        logger.warning(f"{len(unreadable)} pictures cannot be read and have no hash; the first, {unreadable[0]}")
    return len(files) - len(unreadable)
