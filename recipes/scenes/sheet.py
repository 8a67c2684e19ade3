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
"""A contact sheet of scenes."""

import math
import textwrap

from PIL import Image as PILImage
from PIL import ImageDraw

from recipes.scenes.pictures import sample_scene
from recipes.scenes.plans import make_plan
from recipes.scenes.texts import make_dialog


def draw_sheet(split: str, task: str, num_rows: int, image_size: int, seed: int) -> PILImage.Image:
    """Returns a contact sheet, five scenes in a row, with what is written about each below it."""
    height = image_size + (64 if task == "caption" else 192)
    sheet = PILImage.new("RGB", (5 * image_size, math.ceil(num_rows / 5) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(num_rows):
        x, y = index % 5 * image_size, index // 5 * height
        sheet.paste(sample_scene(split, index, seed, image_size).image, (x, y))
        dialog = make_dialog(make_plan(split, index, seed), task, split, index, seed)
        text = "\n".join(message.content for message in dialog)
        lines = [textwrap.fill(line, image_size // 6) for line in text.split("\n")]
        pen.multiline_text((x + 2, y + image_size + 2), "\n".join(lines), fill="black", font_size=11, spacing=1)
    return sheet
