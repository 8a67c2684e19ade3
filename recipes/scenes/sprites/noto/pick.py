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
Rasterizes the drawings that only the split `varied` shows besides those of training: Noto Emoji's, of the same code points.

    npm pack @iconify-json/noto@1.2.9 && tar xzf iconify-json-noto-1.2.9.tgz
    pip install resvg-py==0.5.0 pillow
    python recipes/scenes/sprites/noto/pick.py package
"""

import argparse
import io
import json
import runpy
from pathlib import Path

from PIL import Image


# class: code points of the drawings in training, and after the bar those that only the test split shows, which are not taken
DRAWINGS = runpy.run_path(str(Path(__file__).parents[1] / "pick.py"))["DRAWINGS"]
SIDE = 256  # pixels


def rasterize(body: str) -> Image.Image:
    """Returns the drawing of an icon's SVG elements, RGBA, 256 x 256 pixels."""
    import resvg_py  # no dependency of the project: the drawings are committed

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 128 128">'
        f"{body}</svg>"
    )
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))))


def pick(package: Path, out: Path) -> int:
    """Writes every drawing of the unpacked npm `package` to the folder `out` and returns how many there are.

    Lossless, because lossy colors would bleed over the drawings' edges. Raises `KeyError` when `package` lacks one.
    """
    names = json.loads((package / "chars.json").read_text(encoding="utf-8"))
    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))["icons"]
    count = 0
    for name, points in DRAWINGS.items():
        for number, point in enumerate(points.split("|")[0].split(), start=1):
            icon = names[point if point in names else point.removesuffix("-fe0f")]
            target = out / f"{name.replace(' ', '_')}{f'_{number}' if number > 1 else ''}.webp"
            rasterize(icons[icon]["body"]).save(target, lossless=True, quality=100, method=6)
            count += 1
    return count


def main() -> None:
    """Command line: `python recipes/scenes/sprites/noto/pick.py PACKAGE`."""
    parser = argparse.ArgumentParser(description="Rasterize the drawings of Noto Emoji that the scenes take.")
    parser.add_argument("package", type=Path, help="folder that holds the unpacked package (with icons.json in it)")
    package = parser.parse_args().package
    print(f"{pick(package, Path(__file__).parent)} drawings rasterized")


if __name__ == "__main__":
    main()
