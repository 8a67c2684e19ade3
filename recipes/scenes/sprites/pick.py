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
"""Copy the drawings that the scenes are made of out of the unpacked npm package `@lobehub/fluent-emoji-3d`.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python recipes/scenes/sprites/pick.py package

The first drawings of a class become `cup.webp`, `cup_2.webp`, ... and are shown in training and test; those after the bar
become `book_test.webp`, `book_test_2.webp`, ... and are shown in the test split alone.
"""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path


# class: Unicode code points of its drawings | code points of the drawings that only the test split shows
DRAWINGS = {
    "cup": "2615 1f964 | 1f375",
    "bowl": "1f963 1f35a | 1f35c",
    "knife": "1f52a",
    "spoon": "1f944",
    "bottle": "1f37e 1f37c | 1f9f4",
    "wine glass": "1f377",
    "apple": "1f34e | 1f34f",
    "banana": "1f34c",
    "orange": "1f34a",
    "carrot": "1f955",
    "pizza": "1f355",
    "sandwich": "1f96a",
    "hot dog": "1f32d",
    "donut": "1f369",
    "cake": "1f370 | 1f382",
    "laptop": "1f4bb",
    "keyboard": "2328-fe0f",
    "mouse": "1f5b1-fe0f",
    "cell phone": "1f4f1",
    "book": "1f4d5 1f4d7 1f4d9 | 1f4d8 1f4d6",
    "printer": "1f5a8-fe0f",
    "pencil": "270f-fe0f",
    "briefcase": "1f4bc",
    "backpack": "1f392",
    "camera": "1f4f7",
    "clock": "1f570-fe0f | 23f0",
    "chair": "1fa91",
    "person": "1f9cd 1f9cd-1f3ff 1f6b6-1f3fd 1f6b6-200d-2640-fe0f | 1f3c3-1f3fe 1f9cd-200d-2642-fe0f 1f9cd-1f3fd",
    "bicycle": "1f6b2",
    "car": "1f697 1f695 | 1f699 1f698",
    "bus": "1f68c 1f68e | 1f68d",
    "truck": "1f69a 1f6fb | 1f69b",
    "train": "1f682 1f68a | 1f686",
    "motorcycle": "1f3cd-fe0f | 1f6f5",
    "traffic light": "1f6a6 | 1f6a5",
    "stop sign": "1f6d1",
    "umbrella": "2602-fe0f | 1f302",
    "dog": "1f415 1f436 | 1f429",
    "handbag": "1f45c",
    "suitcase": "1f9f3",
    "skateboard": "1f6f9",
    "airplane": "2708-fe0f | 1f6e9-fe0f",
    "kite": "1fa81",
    "sports ball": "26bd 1f3c0 26be | 1f3d0",
    "elephant": "1f418",
    "giraffe": "1f992",
    "zebra": "1f993",
    "lion": "1f981",
    "tiger": "1f405 | 1f42f",
    "monkey": "1f412 | 1f435",
    "camel": "1f42a | 1f42b",
    "deer": "1f98c",
    "bear": "1f43b",
    "bird": "1f426 1f54a-fe0f 1f9a9 | 1f986",
    "horse": "1f40e | 1f434",
    "cow": "1f404 | 1f42e",
    "sheep": "1f411 | 1f40f",
    "tree": "1f333 | 1f332",
    "couch": "1f6cb-fe0f",
    "bed": "1f6cf-fe0f",
    "tv": "1f4fa",
    "potted plant": "1fab4",
    "vase": "1f3fa",
    "candle": "1f56f-fe0f",
    "guitar": "1f3b8",
    "teddy bear": "1f9f8",
    "cat": "1f408 1f431 | 1f408-200d-2b1b",
}


def file_names(name: str) -> Iterator[tuple[str, str]]:
    """Yields a pair (code points, file name) for every drawing of the class `name`."""
    shared, _, held_out = DRAWINGS[name].partition("|")
    for points, tail in ((shared, ""), (held_out, "_test")):
        for number, point in enumerate(points.split(), start=1):
            yield point, name.replace(" ", "_") + tail + (f"_{number}" if number > 1 else "") + ".webp"


def pick(package: Path, out: Path) -> int:
    """Copies every drawing from the unpacked npm `package` to the folder `out` and returns how many there are.

    Raises `FileNotFoundError` when `package` lacks a drawing.
    """
    pairs = [pair for name in DRAWINGS for pair in file_names(name)]
    for point, file_name in pairs:
        shutil.copyfile(package / "assets" / f"{point}.webp", out / file_name)
    return len(pairs)


def main() -> None:
    """Command line: `python recipes/scenes/sprites/pick.py PACKAGE`."""
    parser = argparse.ArgumentParser(description="Copy the drawings of the scenes out of the unpacked npm package.")
    parser.add_argument("package", type=Path, help="folder that holds the unpacked package (with assets/ in it)")
    package = parser.parse_args().package
    print(f"{pick(package, Path(__file__).parent)} drawings copied")


if __name__ == "__main__":
    main()
