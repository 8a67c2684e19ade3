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
"""Answers side by side: a sheet like the paper's Tables 3 and 5."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from matplotlib.font_manager import findfont
from matplotlib.patches import Rectangle
from PIL import ImageFont

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.drawing import plt
from recipes.evaluation.records import Record, is_marked
from recipes.evaluation.rules import HALLUSION_ANSWERS


# Of the sheet, in inches
PICTURE, TEXT, PAD, LINE = 1.7, 2.4, 0.1, 0.138
FONT_SIZE = 8  # points
LONGEST_TEXT = 320  # characters
SIDE = 320  # pixels of a picture
# Sign, color and ground of what is right, wrong, and neither
VERDICTS = {True: ("✓ ", "#1a7f37", "#e9f7ec"), False: ("✗ ", "#b42318", "#fdeceb"), None: ("", "black", "white")}


def truth(record: Record) -> str:
    """The right answer as people write it."""
    answer = record["answer"]
    if record["benchmark"] == "hallusionbench":
        return HALLUSION_ANSWERS[answer.strip()]
    return answer if isinstance(answer, str) else " / ".join(answer)


def verdict(record: Record) -> tuple[str, str, str]:
    return VERDICTS[record["correct"] if is_marked(record) else None]


def looks(record: Record) -> list[str]:
    """
    A line that says how much of the attention of what was asked about looks at nothing; none where it is not known.
    """
    return [f"looks at nothing: {record['on_nothing']:.0%}"] if "on_nothing" in record else []


def load_picture(record: Record) -> PIL.Image.Image | str:
    """A record's picture, or, where it cannot be read, the words that stand in its place."""
    if "image" not in record:
        return "no picture"
    try:
        picture = read_image(Path(record["image"]))
    except ValueError:
        return f"missing: {Path(record['image']).name}"
    picture.thumbnail((SIDE, SIDE))
    return picture


def wrap(text: str, width: float) -> list[str]:
    """Breaks a text into lines of at most `width` inches, at spaces where there are any."""
    font = ImageFont.truetype(findfont("DejaVu Sans"), 10 * FONT_SIZE)
    if len(text) > LONGEST_TEXT:
        text = f"{text[:LONGEST_TEXT].rstrip()} ..."
    lines = []
    for rest in text.splitlines():
        while rest := rest.strip():
            end = bisect.bisect_right(range(1, len(rest) + 1), 720 * width, key=lambda n: font.getlength(rest[:n]))
            space = rest.rfind(" ", 0, end + 1) if end < len(rest) else -1
            end = space if space > 0 else max(end, 1)
            lines.append(rest[:end].rstrip())
            rest = rest[end:]
    return lines


def save_sheet(path: Path, names: Sequence[str], questions: Sequence[tuple[Record, ...]]) -> None:
    """
    A sheet like the paper's Tables 3 and 5: picture, question with the truth, and every model's answer, right or
    wrong.

    Args:
        path (`Path`): PNG file.
        names (`Sequence[str]`): Names of the models.
        questions (`Sequence[tuple[dict]]`): For every line of the sheet the records of all models.
    """
    pictures = [load_picture(answers[0]) for answers in questions]
    cells = [[wrap(name, TEXT - 4 * PAD) for name in ("question", *names)]]
    for answers in questions:
        asked = wrap(answers[0]["question"], TEXT - 2 * PAD) + [
            "",
            *wrap(f"Truth: {truth(answers[0])}", TEXT - 2 * PAD),
        ]
        said = [
            wrap(f"{verdict(a)[0]}{a['prediction'].strip() or '(nothing)'}", TEXT - 2 * PAD) + looks(a)
            for a in answers
        ]
        cells.append([asked, *said])
    shapes = [
        (PICTURE, PICTURE / 2) if isinstance(p, str) else (PICTURE, PICTURE * p.height / p.width) for p in pictures
    ]
    shapes = [(width * min(1, PICTURE / height), min(height, PICTURE)) for width, height in shapes]
    heights = [max(LINE * len(lines) for lines in line) + 2 * PAD for line in cells]
    heights[1:] = [max(height, shape[1] + 2 * PAD) for height, shape in zip(heights[1:], shapes, strict=True)]
    total_width, total_height = PICTURE + 2 * PAD + TEXT * (1 + len(names)), sum(heights)
    figure = plt.figure(figsize=(total_width, total_height))
    canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, total_width), ylim=(total_height, 0))
    canvas.set_axis_off()
    top = 0.0
    for n, (line, height) in enumerate(zip(cells, heights, strict=True)):
        for k, lines in enumerate(line):
            left = PICTURE + 2 * PAD + k * TEXT
            color = "black"
            if n and k:
                _, color, ground = verdict(questions[n - 1][k - 1])
                canvas.add_patch(Rectangle((left, top), TEXT, height, facecolor=ground, edgecolor="white"))
            canvas.text(
                left + PAD,
                top + PAD,
                "\n".join(lines),
                color=color,
                fontsize=FONT_SIZE,
                fontfamily="DejaVu Sans",
                weight="normal" if n else "bold",
                linespacing=1.12,
                va="top",
                parse_math=False,
            )
        if n:
            picture, (width, picture_height) = pictures[n - 1], shapes[n - 1]
            box = (PAD, top + PAD, width, picture_height)
            if isinstance(picture, str):
                canvas.add_patch(Rectangle(box[:2], width, picture_height, facecolor="lightgray"))
                words = "\n".join(wrap(picture, width - 2 * PAD))
                canvas.text(2 * PAD, top + 2 * PAD, words, fontsize=FONT_SIZE, va="top", parse_math=False)
            else:
                canvas.imshow(picture, extent=(PAD, PAD + width, top + PAD + picture_height, top + PAD), aspect="auto")
        top += height
        canvas.plot((0, total_width), (top, top), color="lightgray", linewidth=0.6)
    canvas.set(xlim=(0, total_width), ylim=(total_height, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
