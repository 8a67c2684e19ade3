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
"""Rasterize the drawings of the split `transfer` out of the unpacked npm package `@discordapp/twemoji`.

    npm pack @discordapp/twemoji@16.0.1 && tar xzf discordapp-twemoji-16.0.1.tgz
    pip install resvg-py==0.5.0 pillow
    python recipes/scenes/sprites/twemoji/pick.py package

The drawings of a class become `cup.webp`, `cup_2.webp`, ...
"""

import argparse
import io
from pathlib import Path

from PIL import Image


DRAWINGS = {
    "cup": "2615 1f375",
    "bowl": "1f35a 1f35c 1f957",
    "knife": "1f52a",
    "spoon": "1f944",
    "bottle": "1f37e 1f37c 1f9f4",
    "wine glass": "1f377",
    "apple": "1f34e 1f34f",
    "banana": "1f34c",
    "orange": "1f34a",
    "carrot": "1f955",
    "pizza": "1f355",
    "sandwich": "1f96a",
    "hot dog": "1f32d",
    "donut": "1f369",
    "cake": "1f370 1f382",
    "laptop": "1f4bb",
    "keyboard": "2328",
    "mouse": "1f5b1",
    "cell phone": "1f4f1",
    "book": "1f4d5 1f4d7 1f4d8 1f4d6",
    "printer": "1f5a8",
    "pencil": "270f",
    "briefcase": "1f4bc",
    "backpack": "1f392",
    "camera": "1f4f7",
    "clock": "1f570 23f0 1f552",
    "chair": "1fa91",
    "person": "1f9cd-1f3fb-200d-2642-fe0f 1f6b6-1f3ff 1f3c3-200d-2640-fe0f 1f9cd-1f3fe-200d-2640-fe0f",
    "bicycle": "1f6b2",
    "car": "1f697 1f695 1f699 1f698",
    "bus": "1f68e 1f68d 1f68c",
    "truck": "1f69a 1f69b",
    "train": "1f682 1f68a 1f686",
    "motorcycle": "1f3cd",
    "traffic light": "1f6a6 1f6a5",
    "stop sign": "1f6d1",
    "umbrella": "2602 1f302",
    "dog": "1f415 1f436 1f429 1f9ae",
    "handbag": "1f45c",
    "suitcase": "1f9f3",
    "skateboard": "1f6f9",
    "airplane": "2708 1f6e9",
    "kite": "1fa81",
    "sports ball": "26bd 1f3c0 1f3d0 1f3be",
    "elephant": "1f418",
    "giraffe": "1f992",
    "zebra": "1f993",
    "lion": "1f981",
    "tiger": "1f405 1f42f",
    "monkey": "1f412 1f435",
    "camel": "1f42a 1f42b",
    "deer": "1f98c",
    "bear": "1f43b 1f43b-200d-2744-fe0f",
    "bird": "1f426 1f99c 1f9a9 1f986",
    "horse": "1f40e 1f434",
    "cow": "1f404 1f42e",
    "sheep": "1f411 1f40f",
    "tree": "1f333 1f332 1f334",
    "couch": "1f6cb",
    "bed": "1f6cf",
    "tv": "1f4fa",
    "potted plant": "1fab4",
    "vase": "1f3fa",
    "candle": "1f56f",
    "guitar": "1f3b8",
    "teddy bear": "1f9f8",
    "cat": "1f408 1f431 1f408-200d-2b1b",
}
SIDE = 256  # pixels


def rasterize(file: Path) -> Image.Image:
    """Returns the drawing of an SVG file, RGBA, 256 x 256 pixels."""
    import resvg_py  # no dependency of the project: the drawings are committed

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=str(file), width=SIDE, height=SIDE))))


def pick(package: Path, out: Path) -> int:
    """Writes every drawing of the unpacked npm `package` to the folder `out` and returns how many there are.

    Lossless, because lossy colors would bleed over the drawings' edges. Raises `FileNotFoundError` when `package` lacks one.
    """
    count = 0
    for name, points in DRAWINGS.items():
        for number, point in enumerate(points.split(), start=1):
            file = package / "dist" / "svg" / f"{point}.svg"
            if not file.exists():
                raise FileNotFoundError(f"There is no {file}: pass the unpacked package @discordapp/twemoji.")
            target = out / f"{name.replace(' ', '_')}{f'_{number}' if number > 1 else ''}.webp"
            rasterize(file).save(target, lossless=True, quality=100, method=6)
            count += 1
    return count


def main() -> None:
    """Command line: `python recipes/scenes/sprites/twemoji/pick.py PACKAGE`."""
    parser = argparse.ArgumentParser(description="Rasterize the drawings of Twemoji that the scenes take.")
    parser.add_argument("package", type=Path, help="folder that holds the unpacked package (with dist/svg/ in it)")
    package = parser.parse_args().package
    print(f"{pick(package, Path(__file__).parent)} drawings rasterized")


if __name__ == "__main__":
    main()
