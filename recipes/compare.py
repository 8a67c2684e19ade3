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
Compares runs of a benchmark question by question: who is right where, whether that can be chance, and what was said.

    python recipes/compare.py runs/ca-baseline/pope.jsonl runs/age-vlm/pope.jsonl --names baseline AGE-VLM \
        --out sheet.png --html page.html --rows 12 --only different

The files hold records as `recipes/scorers.py` describes them. Every run is compared with the first: how many questions only
one of the two gets right, the exact McNemar test of that, and the differences of the benchmark's metrics with the 95%
interval of a paired bootstrap. The sheet and the page are as the paper's Tables 3 and 5: picture, question, truth and every
model's answer.
"""

import argparse
import base64
import bisect
import html
import io
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.font_manager import findfont
from matplotlib.patches import Rectangle
from PIL import ImageFont

from modeling_agevlm.image_processing_agevlm import as_shown
from recipes.errors import one_sentence
from recipes.pictures import plt
from recipes.scorers import HALLUSION_ANSWERS, Record, read_records, summarize
from recipes.tables import markdown


# Columns by whose values the questions are also counted.
CATEGORIES = {
    "hallusionbench": ("category", "visual_input"),
    "pope": ("category",),
    "ocrbench": ("question_type",),
    "cvbench": ("task", "source"),
    "realworldqa": (),
    "scenes": ("kind",),
}
QUESTION_SET = ("category", "subcategory", "set_id")

# Of the sheet, in inches
PICTURE, TEXT, PAD, LINE = 1.7, 2.4, 0.1, 0.138
FONT_SIZE = 8  # points
LONGEST_TEXT = 320  # characters
SIDE = 320  # pixels of a picture
COLORS = {True: ("#1a7f37", "#e9f7ec"), False: ("#b42318", "#fdeceb")}


# --- Statistics ---


def align(runs: dict[str, list[Record]]) -> list[tuple[Record, ...]]:
    """
    The records of every question, in the order of the first run.

    Args:
        runs (`dict`): Records of one benchmark by the run's name.

    Raises:
        ValueError: If the runs are of other questions, or their answers differ.
    """
    first, *others = runs
    by_id = {name: {(record["benchmark"], record["id"]): record for record in runs[name]} for name in runs}
    for name in others:
        if by_id[name].keys() != by_id[first].keys():
            lacking, more = by_id[first].keys() - by_id[name].keys(), by_id[name].keys() - by_id[first].keys()
            raise ValueError(
                f"Runs of the same questions can be compared: {name} lacks {len(lacking)} of {first}'s and has {len(more)} "
                f"others (for example {' '.join(min(lacking or more))})."
            )
        for key, record in by_id[first].items():
            if by_id[name][key]["answer"] != record["answer"]:
                raise ValueError(
                    f"Runs of the same questions can be compared: the answer to {' '.join(key)} is {record['answer']!r} in "
                    f"{first} and {by_id[name][key]['answer']!r} in {name}."
                )
    return list(zip(*([by_id[name][key] for key in by_id[first]] for name in runs), strict=True))


def mcnemar(only_first: int, only_second: int) -> float:
    """
    The two-sided p-value of McNemar's exact test: how likely a split at least as uneven is, if each of the questions that
    only one model gets right falls to either with probability 1/2. It takes the questions as independent of each other.
    """
    number = only_first + only_second
    # binomial coefficients, each from the one before: thousands of `math.comb` take seconds
    steps = range(min(only_first, only_second))
    coefficients = itertools.accumulate(steps, lambda before, k: before * (number - k) // (k + 1), initial=1)
    return min(1.0, 2 * sum(coefficients) / 2**number)


def bootstrap(
    first: Sequence[Record], second: Sequence[Record], resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """
    What the second run has more than the first, for every metric of [`summarize`]: the difference and the 2.5 and 97.5
    percentiles of it over resamples, which draw the same questions for both runs.

    Drawn are questions; of HallusionBench whole sets, whose questions and pictures its metrics group.

    Args:
        first, second (`Sequence[dict]`): Records of the same questions in the same order.
        resamples (`int`, *optional*, defaults to 1000): How often to draw.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
    """
    units = defaultdict(list)
    for n, record in enumerate(first):
        in_sets = record["benchmark"] == "hallusionbench"
        units[tuple(str(record[column]) for column in QUESTION_SET) if in_sets else n].append(n)
    units, rng = list(units.values()), np.random.default_rng(seed)

    def metrics(records: Sequence[Record], drawn: np.ndarray) -> dict[str, float]:
        if len(units) == len(records):
            return summarize([records[units[unit][0]] for unit in drawn])
        # a set that is drawn twice is two sets
        return summarize([{**records[n], "set_id": copy} for copy, unit in enumerate(drawn) for n in units[unit]])

    def difference(drawn: np.ndarray) -> dict[str, float]:
        before, after = metrics(first, drawn), metrics(second, drawn)
        return {name: after[name] - before[name] for name in after}

    measured = difference(np.arange(len(units)))
    draws = [difference(rng.integers(len(units), size=len(units))) for _ in range(resamples)]
    # a metric of few questions may have none in a draw
    values = {name: [draw[name] for draw in draws if name in draw] for name in measured}
    return {name: (value, *np.percentile(values[name], (2.5, 97.5)).tolist()) for name, value in measured.items()}


def counts_table(names: tuple[str, str], pairs: Sequence[tuple[Record, Record]]) -> str:
    """A Markdown table of who is right where: for all questions, and for each category of theirs."""
    groups = {"all": list(pairs)}
    for column in CATEGORIES[pairs[0][0]["benchmark"]]:
        for value in sorted({str(first[column]) for first, _ in pairs if column in first}):
            groups[f"{column} {value}"] = [pair for pair in pairs if str(pair[0].get(column)) == value]
    header = [
        "questions",
        "number",
        "both right",
        *(f"only {name}" for name in names),
        "both wrong",
        *names,
        "McNemar p",
    ]
    rows = []
    for title, group in groups.items():
        right = [(first["correct"], second["correct"]) for first, second in group]
        both, one, other, none = (right.count(x) for x in ((True, True), (True, False), (False, True), (False, False)))
        shares = [f"{(both + right) / len(group):.2%}" for right in (one, other)]
        numbers = [str(number) for number in (len(group), both, one, other, none)]
        rows.append([title, *numbers, *shares, f"{mcnemar(one, other):.3g}"])
    return markdown(header, rows)


def differences_table(
    names: tuple[str, str], pairs: Sequence[tuple[Record, Record]], resamples: int, seed: int
) -> str:
    """A Markdown table of the benchmark's metrics: of both runs, their difference and its interval."""
    first, second = zip(*pairs, strict=True)
    before, after = summarize(first), summarize(second)
    rows = [
        [name, f"{before[name]:.4g}", f"{after[name]:.4g}", f"{value:+.4g}", f"{low:+.4g} to {high:+.4g}"]
        for name, (value, low, high) in bootstrap(first, second, resamples, seed).items()
    ]
    return markdown(["metric", *names, "difference", "95% interval"], rows)


# --- The answer sheet ---


def choose(questions: list[tuple[Record, ...]], number: int, only_different: bool) -> list[tuple[Record, ...]]:
    """Up to `number` questions, spread evenly over all of them or over those that not all models get right or wrong."""
    if only_different:
        questions = [answers for answers in questions if len({answer["correct"] for answer in answers}) > 1]
    number = min(number, len(questions))
    return [questions[n * len(questions) // number] for n in range(number)]


def truth(record: Record) -> str:
    """The right answer as people write it."""
    answer = record["answer"]
    if record["benchmark"] == "hallusionbench":
        return HALLUSION_ANSWERS[answer]
    return answer if isinstance(answer, str) else " / ".join(answer)


def load_picture(record: Record) -> PIL.Image.Image | str:
    """A record's picture, or, where it cannot be read, the words that stand in its place."""
    if "image" not in record:
        return "no picture"
    try:
        with PIL.Image.open(record["image"]) as picture:
            picture = as_shown(picture).convert("RGB")
    except OSError:
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
    A sheet like the paper's Tables 3 and 5: picture, question with the truth, and every model's answer, right or wrong.

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
            wrap(f"{'✓' if a['correct'] else '✗'} {a['prediction'].strip() or '(nothing)'}", TEXT - 2 * PAD)
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
                color, ground = COLORS[questions[n - 1][k - 1]["correct"]]
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


def save_page(path: Path, names: Sequence[str], questions: Sequence[tuple[Record, ...]], tables: str) -> None:
    """The same as a page, one file that holds its pictures, with the statistics above."""
    style = (
        "body{font:14px sans-serif;margin:2em}td,th{padding:.5em;vertical-align:top;text-align:left;max-width:24em}"
    )
    style += "img{max-width:320px}.missing{background:lightgray}"
    style += "".join(
        f".{str(right).lower()}{{color:{color};background:{ground}}}" for right, (color, ground) in COLORS.items()
    )
    parts = [f"<!doctype html><meta charset=utf-8><title>answers</title><style>{style}</style>"]
    parts.append(f"<pre>{html.escape(tables)}</pre><table><tr><th>picture<th>question")
    parts += [f"<th>{html.escape(name)}" for name in names]
    for answers in questions:
        picture = load_picture(answers[0])
        if isinstance(picture, str):
            parts.append(f"<tr><td class=missing>{html.escape(picture)}")
        else:
            data = io.BytesIO()
            picture.save(data, "JPEG", quality=85)
            parts.append(f'<tr><td><img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">')
        asked = html.escape(answers[0]["question"]).replace("\n", "<br>")
        parts.append(f"<td>{asked}<p>Truth: <b>{html.escape(truth(answers[0]))}</b>")
        parts += [
            f"<td class={str(a['correct']).lower()}>{html.escape(a['prediction']) or '(nothing)'}" for a in answers
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</table>"]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="two or more JSONL files of records")
    parser.add_argument("--names", nargs="+", help="names of the runs; without it, their files' names")
    parser.add_argument("--out", type=Path, help="PNG file for the answer sheet")
    parser.add_argument("--html", type=Path, help="file for the page")
    parser.add_argument("--rows", type=int, default=8, help="questions on sheet and page")
    parser.add_argument("--only", choices=["different"], help="show questions that some models get right, some wrong")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args()
    stems = [file.stem for file in args.files]
    names = args.names or (stems if len(set(stems)) == len(stems) else [str(file) for file in args.files])
    if len(args.files) < 2 or len(set(names)) != len(args.files):
        parser.error("pass two or more files, and to --names a different name for each")
    with one_sentence():
        runs = {name: read_records(file) for name, file in zip(names, args.files, strict=True)}
        for file, records in zip(args.files, runs.values(), strict=True):
            for record in records:
                if "image" in record:
                    record["image"] = str(file.parent / record["image"])
        questions = align(runs)
        tables = []
        for n, name in enumerate(names[1:], start=1):
            pair, both = (names[0], name), [(answers[0], answers[n]) for answers in questions]
            differences = differences_table(pair, both, args.resamples, args.seed)  # says what is not one benchmark
            tables += [counts_table(pair, both), differences]
        print("\n\n".join(tables))
        shown = choose(questions, args.rows, args.only == "different")
        if args.out:
            save_sheet(args.out, names, shown)
        if args.html:
            save_page(args.html, names, shown, "\n\n".join(tables))


if __name__ == "__main__":
    main()
