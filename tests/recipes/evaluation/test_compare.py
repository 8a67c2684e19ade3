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
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from recipes import compare
from recipes.drawing import plt
from recipes.evaluation import sheet
from recipes.evaluation.comparison import (
    align,
    bootstrap,
    choose,
    counts_table,
    differences_table,
    differing,
    sign_flip,
)
from recipes.evaluation.metrics import summarize
from recipes.evaluation.page import chart, save_evaluation_page
from recipes.evaluation.records import mark, read_with_pictures, write_records
from recipes.evaluation.sheet import load_picture, save_sheet, wrap
from recipes.terminal.tables import Table, markdown


def record(number: int, right: bool, benchmark: str = "pope", **columns: Any) -> dict[str, Any]:
    answer = ("yes", "no")[number % 2]
    prediction = answer if right else ("no", "yes")[number % 2]
    made = {"benchmark": benchmark, "id": str(number), "question": f"Is it {number}?", "answer": answer}
    made |= {"prediction": prediction, "category": ("random", "popular")[number // 2 % 2], **columns}
    return {**made, "correct": mark(made)}


def run(*right: int, **columns: Any) -> list[dict[str, Any]]:
    return [record(n, bool(flag), **columns) for n, flag in enumerate(right)]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1),
        (0, 1, 1),
        (3, 3, 1),
        (0, 6, 2 / 64),
        (1, 9, 2 * (1 + 10) / 1024),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (59, 121, 0.0000045128),  # the textbook's example of the approximate test (chi-squared 21.36, p 3.8e-6)
        (4000, 5000, 5.8e-26),
    ],
)
def test_sign_flips_of_ones_are_mcnemars_test(only_first: int, only_second: int, p: float):
    differences = [-1] * only_first + [1] * only_second + [0] * 5
    assert sign_flip(differences) == pytest.approx(p, rel=0.05 if p < 1e-3 else 1e-9, abs=0)
    assert sign_flip([-n for n in differences]) == sign_flip(differences)


@pytest.mark.parametrize("seed", range(8))
def test_sign_flips_by_trying_all(seed: int):
    differences = np.random.default_rng(seed).integers(-3, 4, size=seed + 1)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    expected = np.mean([total >= abs(differences.sum()) for total in sums])
    assert sign_flip(differences.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("differences", [[7] * 200, [3] * 100 + [1] * 50 + [-2] * 9, [5, 4, 3, 2, 1] * 20 + [-1] * 30])
def test_sign_flips_of_small_probability(differences: list[int]):
    """By counting all signs, in whole numbers: far below what a Fourier transform rounds to."""
    ways = {0: 1}
    for size in differences:
        ways = {total: ways.get(total - size, 0) + ways.get(total + size, 0) for total in range(-2000, 2001)}
    far = sum(number for total, number in ways.items() if abs(total) >= sum(differences))
    expected = far / 2 ** len(differences)
    assert 0 < expected < 1e-18 and sign_flip(differences) == pytest.approx(expected, rel=1e-9, abs=0)


def test_sign_flips_of_pictures_with_many_questions():
    """By the normal distribution that so many of them have."""
    differences = np.arange(6_000) % 61 * np.where(np.arange(6_000) % 2, 1, -1)
    differences[:60] = 60
    distance = (abs(differences.sum()) - 1) / np.sqrt((differences**2).sum())
    assert sign_flip(differences.tolist()) == pytest.approx(math.erfc(distance / np.sqrt(2)), rel=1e-3, abs=0)


def test_mmes_questions_count_by_pictures():
    """Six pictures with two questions each, all turned: p is that of six, not of twelve."""
    rows = [
        {"benchmark": "mme", "id": str(n), "category": "count", "question_id": n // 2, "correct": False}
        for n in range(12)
    ]
    pairs = [(row, {**row, "correct": True}) for row in rows]
    assert float(counts_table(("A", "B"), pairs).rows[0][-1]) == pytest.approx(2 / 2**6, abs=1e-4)


def test_questions_about_a_picture_count_as_one():
    """
    Of POPE's three sets, which ask the same yes-questions about the same pictures: two equally good models are called
    different in one of twenty comparisons, where the questions taken as independent are in every fifth.
    """
    rng, found = np.random.default_rng(0), {"pictures": 0, "questions": 0}
    for _ in range(200):
        repeated = rng.random((2, 100, 3)) < 0.78  # by model, picture and question, which all three sets have
        own = rng.random((2, 3, 100, 3)) < 0.94  # and those that each set has for itself
        right = np.concatenate([np.stack([repeated] * 3, axis=1), own], axis=3).astype(int)
        added = right[1] - right[0]  # (sets, pictures, questions)
        found["pictures"] += sign_flip(added.sum(axis=(0, 2)).tolist()) < 0.05
        found["questions"] += sign_flip(added.reshape(-1).tolist()) < 0.05
    assert 0.02 <= found["pictures"] / 200 <= 0.08 and found["questions"] / 200 > 0.15


def test_the_interval_goes_by_pictures():
    """
    Questions that are right or wrong together tell as much as one: the interval is as wide as that of the pictures
    alone.
    """
    rng = np.random.default_rng(0)
    right = rng.random((2, 60)) < 0.5
    once = [run(*flags) for flags in right]
    nine = [
        [{**row, "id": f"{row['id']}-{n}", "picture": row["id"]} for row in rows for n in range(9)] for rows in once
    ]
    scores, of_nine = bootstrap(*once, 400)["accuracy"], bootstrap(*nine, 400)["accuracy"]
    assert scores[0] == pytest.approx(of_nine[0])
    assert of_nine[2] - of_nine[1] == pytest.approx(scores[2] - scores[1], rel=0.1)
    (of_once, *_), (of_all, *_) = (
        counts_table(("A", "B"), list(zip(*runs, strict=True))).rows for runs in (once, nine)
    )
    assert of_once[:2] == ["all", "60"] and of_all[:2] == ["all", "540"] and of_once[-1] == of_all[-1]  # the p-value


def test_counts_table():
    first, second = run(1, 1, 0, 0, 1, 0), run(1, 0, 1, 1, 1, 0)
    lines = str(counts_table(("A", "B"), list(zip(first, second, strict=True)))).splitlines()
    assert lines[2] == "| all | 6 | 2 | 1 | 2 | 1 | 50.00% | 66.67% | 1 |"
    assert lines[3:] == [
        "| category popular | 2 | 0 | 0 | 2 | 0 | 0.00% | 100.00% | 0.5 |",
        "| category random | 4 | 2 | 1 | 0 | 1 | 75.00% | 50.00% | 1 |",
    ]


def test_bootstrap_is_paired_and_symmetric():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    first = run(*~hard)
    second = run(*(~hard | (rng.random(200) < 0.2)))  # the same, and a tenth of all questions more
    forth, back = bootstrap(first, second, 300), bootstrap(second, first, 300)
    assert forth == bootstrap(first, second, 300) != bootstrap(first, second, 300, seed=1)
    value, low, high = forth["accuracy"]
    assert value == pytest.approx(summarize(second)["accuracy"] - summarize(first)["accuracy"])
    # each question adds 0 or 1 to the difference: its standard error is that of a share
    error = (value * (1 - value) / 200) ** 0.5
    assert low == pytest.approx(value - 1.96 * error, abs=0.01) and high == pytest.approx(
        value + 1.96 * error, abs=0.01
    )
    for name, (value, low, high) in forth.items():
        assert back[name] == pytest.approx((-value, -high, -low)) and low <= value <= high
    assert all(scores == (0, 0, 0) for scores in bootstrap(first, first, 50).values())


def test_bootstrap_interval_covers_the_true_difference():
    covered = 0
    for n in range(40):
        rng = np.random.default_rng(n)
        first, second = run(*(rng.random(150) < 0.5)), run(*(rng.random(150) < 0.6))
        _, low, high = bootstrap(first, second, 100)["accuracy"]
        covered += low <= 0.1 <= high
    assert covered >= 34  # of 40, at 95%; fewer have a probability of 1%


def test_bootstrap_draws_the_sets_of_hallusionbench():
    def rows(*right: int) -> list[dict]:
        # of each set two pictures, two questions
        made = []
        for n, flag in enumerate(right):
            columns = {
                "subcategory": "map",
                "set_id": str(n // 4),
                "figure_id": str(n % 4 // 2),
                "question_id": str(n % 2),
            }
            made.append(
                {"benchmark": "hallusionbench", "id": str(n), "question": "?", "answer": "1", "category": "VD"}
                | {"prediction": "yes", "correct": bool(flag), "visual_input": "1", **columns}
            )
        return made

    # the difference lies in the first of three sets: a draw holds it 0 to 3 times
    first, second = rows(*[0, 1, 1, 1] * 3), rows(1, 1, 1, 1, *[0, 1, 1, 1] * 2)
    scores = bootstrap(first, second, 400)
    assert scores["aAcc"][0] == pytest.approx(100 / 12) and scores["fAcc"][0] == pytest.approx(100 / 6)
    # all three draws are that set with probability 1/27, none with 8/27; a set drawn twice stays two sets
    assert scores["fAcc"][1:] == pytest.approx((0, 50)) and scores["qAcc"][1:] == pytest.approx((0, 50))
    assert scores["aAcc"][1:] == pytest.approx((0, 25))


def test_differences_table():
    pairs = list(zip(run(1, 0, 1, 0), run(1, 1, 1, 1), strict=True))
    lines = str(differences_table(("A", "B"), pairs, resamples=50, seed=0)).splitlines()
    assert lines[0] == "| metric | A | B | difference | 95% interval | always yes | always no |"
    assert lines[2].startswith("| accuracy | 0.5 | 1 | +0.5 | +0") and len(lines) == 2 + len(
        summarize(run(1, 0, 1, 0))
    )


def test_only_metrics_of_both_runs_are_compared():
    """A model without a sink has no `absence_auc`."""
    plain, sink = run(1, 0, 1, 0), [{**r, "on_nothing": 0.5} for r in run(1, 1, 1, 1)]
    assert "absence_auc" in summarize(sink)
    for first, second in ((plain, sink), (sink, plain)):
        table = str(differences_table(("A", "B"), list(zip(first, second, strict=True)), resamples=20, seed=0))
        assert "accuracy" in table and "absence_auc" not in table
    both = str(differences_table(("A", "B"), list(zip(sink, sink, strict=True)), resamples=20, seed=0))
    assert "| absence_auc | 0.5 | 0.5 | +0 | +0 to +0 |" in both


def test_sheet_and_page_say_what_looks_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    questions = [(record(1, True, on_nothing=0.786), record(1, False))]
    save_sheet(tmp_path / "sheet.png", ["A", "B"], questions)
    said = [text.get_text() for text in figures[0].axes[0].texts]
    assert "✓ no\nlooks at nothing: 79%" in said and "✗ yes" in said
    save_evaluation_page(tmp_path / "page.html", "Answers", ["A", "B"], {"pope": ([], questions, questions)}, 20)
    page = (tmp_path / "page.html").read_text()
    assert "no\nlooks at nothing: 79%" in page and page.count("looks at nothing") == 1


def test_align_goes_by_id():
    first = run(1, 0, 1)
    lines = align({"A": first, "B": first[::-1]})
    assert [[r["id"] for r in line] for line in lines] == [["0", "0"], ["1", "1"], ["2", "2"]]


def test_align_refuses_other_questions():
    with pytest.raises(ValueError) as error:
        align({"A": run(1, 1, 1), "B": run(1, 1), "C": run(1, 1, 1)})
    assert "B lacks 1 of A's and has 0 others (for example pope 2)." in str(error.value)
    other = run(1, 1)
    other[1]["answer"] = "yes"
    with pytest.raises(ValueError, match="answer of pope 1 is 'no' in A and 'yes' in B"):
        align({"A": run(1, 1), "B": other})
    with pytest.raises(ValueError, match="category of pope 0 is 'random' in A and 'other' in B"):
        align({"A": run(1), "B": run(1, category="other")})
    looks = {"kind": "any", "size": "small", "place": "middle", "touches": True, "even": 0.2}
    first = [{**record(0, True), "benchmark": "refcoco_pointing", **looks}]
    assert len(align({"A": first, "B": [{**first[0], "touches": False, "even": 0.3}]})) == 1  # of the model
    options = [{**record(0, True), "benchmark": "cvbench", "choices": choices} for choices in (["1", "2"], ["2", "1"])]
    with pytest.raises(ValueError, match="choices of cvbench 0 is .'1', '2'. in A and .'2', '1'. in B"):
        align({"A": options[:1], "B": options[1:]})
    with pytest.raises(ValueError, match="kind of refcoco_pointing 0 is 'any' in A and 'cup' in B"):
        align({"A": first, "B": [{**first[0], "kind": "cup"}]})


def test_choose():
    lines = list(zip(run(*[1] * 10), run(*[1, 0] * 5), strict=True))
    assert [line[0]["id"] for line in choose(lines, 5)] == ["0", "2", "4", "6", "8"]
    assert [line[0]["id"] for line in choose(differing(lines), 9)] == ["1", "3", "5", "7", "9"]
    assert choose(differing(lines[:1]), 3) == []


def test_wrap():
    assert wrap("", 1) == [] and wrap("a b", 1) == ["a b"] and wrap("a\n\nb ", 1) == ["a", "b"]
    text = "There is a cup in the image. It is on the left of the apple, below the clock. " + "W" * 60
    lines = wrap(text, 2)
    assert " ".join(lines).replace(" ", "") == text.replace(" ", "") and len(lines) == 7
    assert lines[0].endswith("on") and lines[-1] == "W" * (60 - 18 * 3)
    assert wrap("word " * 200, 2)[-1].endswith(" ...") and len(" ".join(wrap("word " * 200, 2))) < 330
    assert wrap("WWW", 0.01) == ["W", "W", "W"]


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert load_picture(record(0, True)) == "no picture"
    assert load_picture(record(0, True, image=str(tmp_path / "gone.png"))) == "missing: gone.png"
    assert load_picture(record(0, True, image=str(tmp_path / "broken.png"))) == "missing: broken.png"
    PIL.Image.new("L", (640, 320)).save(tmp_path / "a.png")
    assert load_picture(record(0, True, image=str(tmp_path / "a.png"))).size == (320, 160)


def test_sheet_has_a_line_for_every_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    PIL.Image.new("RGB", (40, 40), "blue").save(tmp_path / "a.png")
    images = [str(tmp_path / name) for name in ("a.png", "gone.png", "a.png")]
    runs = [[record(n, right, image=image) for n, image in enumerate(images)] for right in (True, False, True)]
    runs[1][2]["prediction"] = "costs $5 or $6, " + "very " * 200
    save_sheet(tmp_path / "sheet.png", ["A", "B", "C"], list(zip(*runs, strict=True)))
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0).tolist().count([0, 0, 255]) == 1
    canvas = figures[0].axes[0]
    said = [text.get_text() for text in canvas.texts]
    assert said[:4] == ["question", "A", "B", "C"] and sum(text.startswith("Is it") for text in said) == 3
    assert sum(text.startswith("✓") for text in said) == 6 and sum(text.startswith("✗") for text in said) == 3
    assert "missing: gone.png" in said and len(canvas.images) == 2
    # nothing overlaps: no two texts do, and all are on the sheet
    figures[0].draw_without_rendering()
    boxes = [text.get_window_extent() for text in canvas.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    whole = figures[0].bbox
    assert all(whole.x0 <= b.x0 and b.x1 <= whole.x1 and whole.y0 <= b.y0 and b.y1 <= whole.y1 for b in boxes)


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", ["compare.py", *map(str, arguments)])
    compare.main()


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    for name, right in (("x/pope", (1, 1, 0)), ("y/pope", (1, 0, 0))):
        write_records(tmp_path / f"{name}.jsonl", run(*right, image="pictures/a.png"))
    (tmp_path / "x" / "pictures").mkdir()
    PIL.Image.new("RGB", (40, 40), "blue").save(tmp_path / "x" / "pictures" / "a.png")
    files = tmp_path / "x" / "pope.jsonl", tmp_path / "y" / "pope.jsonl"
    options = "--out", tmp_path / "out" / "sheet.png", "--html", tmp_path / "out" / "page.html", "--resamples", 20
    command_line(monkeypatch, *files, "--names", "base", "<b>", *options, "--only", "different")
    printed = capsys.readouterr().out
    assert "| all | 3 | 1 | 1 | 0 | 1 |" in printed and "| accuracy | 0.6667 | 0.3333 | -0.3333 |" in printed
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count("<figure") == page.count("data:image/jpeg") == 1
    assert re.findall(r'class="(right|wrong)"><small>(.*?)</small>\s*(\w+)', page) == [
        ("right", "base", "no"),
        ("wrong", "&lt;b&gt;", "yes"),
    ]
    assert (tmp_path / "out" / "sheet.png").exists()

    command_line(monkeypatch, *files, "--resamples", 20)  # same name: by path
    assert f"only {files[0]}" in capsys.readouterr().out
    write_records(files[1], run(1, 0))
    with pytest.raises(SystemExit, match="error: Runs of the same questions can be compared"):
        command_line(monkeypatch, *files)
    several = [*run(1), {**run(1)[0], "benchmark": "realworldqa"}]
    for file in files:
        write_records(file, several)
    with pytest.raises(SystemExit, match="error: summarize needs the records of one benchmark"):
        command_line(monkeypatch, *files)
    for wrong in ([files[0]], [*files, "--resamples", 0]):
        with pytest.raises(SystemExit, match="2"):
            command_line(monkeypatch, *wrong)


def test_folders_of_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Every benchmark that all have, with the right picture alone; where each looked stands beside its answer."""
    for name, right, corner in (("x", (1, 1, 0), 0), ("y", (1, 0, 0), 1)):
        folder = tmp_path / name
        (folder / "pictures").mkdir(parents=True)
        PIL.Image.new("RGB", (40, 40), "blue").save(folder / "pictures" / "a.png")
        attention = [[0.0, 0.0], [0.0, 0.0]]
        attention[corner][corner] = 1.0
        looks = {"image": "pictures/a.png", "map": attention, "phrase": "a cup"}
        write_records(folder / "pope-real.jsonl", run(*right, **looks))
        write_records(folder / "pope-none.jsonl", run(0, 0, 0))
        write_records(folder / "realworldqa-real.jsonl", run(*right, benchmark="realworldqa"))
    write_records(tmp_path / "x" / "mmvp-real.jsonl", run(1, 1, 1))
    drawn = []
    monkeypatch.setattr(
        "recipes.drawing.page.data_url", lambda picture: drawn.append(picture.convert("L")) or "data:,"
    )
    page = tmp_path / "page.html"
    command_line(monkeypatch, tmp_path / "x", tmp_path / "y", "--html", page, "--resamples", 20, "--only", "different")
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("##")] == ["## pope", "## realworldqa"]
    assert printed.count("| all | 3 | 1 | 1 | 0 | 1 |") == 2
    assert page.read_text().count("where &#39;a cup&#39; looks: half of it in 25% of the picture") == 2
    legend, _, at_first, at_last = drawn  # and the picture itself, then each model's
    assert legend.width > 4 * legend.height > 0
    for looked, bright, dark in ((at_first, (5, 5), (35, 35)), (at_last, (35, 35), (5, 5))):
        assert looked.size == (40, 40) and looked.getpixel(bright) > looked.getpixel(dark) + 20
    with pytest.raises(SystemExit, match="Folders of evaluations can be compared, or files of records, not one with"):
        command_line(monkeypatch, tmp_path / "x", tmp_path / "y" / "pope-real.jsonl")
    (tmp_path / "z").mkdir()
    with pytest.raises(SystemExit, match="error: There is no benchmark that all of these were evaluated on"):
        command_line(monkeypatch, tmp_path / "x", tmp_path / "z")


def test_bars_are_of_every_category_above_what_needs_no_eyes():
    """
    Of eight questions, four of a category: half of all answers are yes, and the intervals those of a paired draw.
    """
    first, second = run(1, 1, 1, 0, 1, 1, 0, 0), run(*[1] * 8)
    lines = chart(["A", "B"], list(zip(first, second, strict=True)), resamples=200, seed=0)
    assert [line.heading for line in lines] == ["all (8)", "category popular (4)", "category random (4)"]
    assert [[bar.name for bar in line.bars] for line in lines] == [["A", "B"]] * 3
    assert [[bar.share for bar in line.bars] for line in lines] == [[5 / 8, 1], [1 / 4, 1], [1, 1]]
    assert all((line.floor, line.floor_name) == (0.5, "always yes") for line in lines)
    for line in lines:
        assert all(bar.low <= bar.share <= bar.high for bar in line.bars) and line.bars[1].low == 1
    assert lines[0].bars[0].low < 0.5 and lines[0].bars[0].high > 0.7 and lines[2].bars[0].low == 1


def test_what_nobody_has_rated_is_neither_right_nor_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An answer in sentences has a verdict once a judge has rated it; until then no bar, no count, no color."""
    plain = {
        "benchmark": "mmhal",
        "question": "What?",
        "answer": "A cup.",
        "prediction": "A cup.",
        "question_type": "x",
    }
    rows = [{**plain, "id": str(n), "correct": False} for n in range(3)]
    rated = [{**row, "rating": rating, "correct": rating >= 3} for row, rating in zip(rows, (6, 3, 0), strict=True)]
    both, one, none = (
        list(zip(first, second, strict=True)) for first, second in ((rated,) * 2, (rows, rated), (rows,) * 2)
    )
    assert chart(["A", "B"], none, 20, 0) == [] and counts_table(("A", "B"), none).rows == []
    assert [[bar.name for bar in line.bars] for line in chart(["A", "B"], one, 20, 0)] == [["B"]] * 2
    assert [row[1] for row in counts_table(("A", "B"), [none[0], *both[1:]]).rows] == ["2", "2"]
    assert differing(one) == []
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    save_sheet(tmp_path / "sheet.png", ["A", "B"], one[:1])
    assert {"A cup.", "✓ A cup."} <= {text.get_text() for text in figures[0].axes[0].texts}
    save_evaluation_page(tmp_path / "page.html", "Answers", ["A", "B"], {"mmhal": ([], one, one)}, 20)
    page = (tmp_path / "page.html").read_text()
    assert page.count('<div class="right">') == 2 and page.count('<div class="wrong">') == 1


@pytest.mark.parametrize("image", ["../secret.png", "{}/secret.png", "link.png", "a\0b.png", "\ud800.png"])
def test_records_show_no_pictures_from_elsewhere(tmp_path: Path, image: str):
    """Whoever wrote the records does not choose which files get on a page of whoever reads them."""
    PIL.Image.new("RGB", (40, 20), "red").save(tmp_path / "secret.png")
    folder = tmp_path / "records"
    (folder / "pictures").mkdir(parents=True)
    PIL.Image.new("RGB", (40, 20), "blue").save(folder / "pictures/a.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    file = folder / "run.jsonl"
    for inside in ("pictures/a.png", str(folder / "pictures/a.png"), "pictures/../pictures/a.png"):
        file.write_text(json.dumps(record(0, True, image=inside)))
        assert load_picture(read_with_pictures(file)[0]).size == (40, 20)
    file.write_text(json.dumps(record(0, True, image=image.format(tmp_path))))
    with pytest.raises(
        ValueError, match="run.jsonl, (id '0': image outside of the folder|id '0': |line 1: 'utf-8' codec)"
    ):
        read_with_pictures(file)


SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def test_nothing_of_a_record_becomes_markup(tmp_path: Path):
    """Whatever its fields and the runs' names hold, the page has the tags that it has for plain words."""
    fields = {"question": SCRIPT, "prediction": SCRIPT, "image": f"javascript:alert(1)//{SCRIPT}", "category": SCRIPT}
    pages = []
    for words, name in ((SCRIPT, SCRIPT), ("words", "name")):
        answers = [
            {**record, **{key: value.replace(SCRIPT, words) for key, value in fields.items()}} for record in run(1)
        ]
        table, questions = Table([words], [[words]]), [tuple(answers)]
        save_evaluation_page(tmp_path / "page.html", words, [name], {words: ([table], questions, questions)}, 20)
        pages.append((tmp_path / "page.html").read_text())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[0]
    assert re.findall("<[^>]*>", pages[0]) == re.findall("<[^>]*>", pages[1])
    assert "default-src 'none'; img-src data:" in pages[0]


def test_half_a_character_is_shown_as_a_question_mark(tmp_path: Path):
    questions = [({**run(1)[0], "question": "a\ud800b"},)]
    save_evaluation_page(tmp_path / "page.html", "Answers", ["A"], {"pope": ([], questions, questions)}, 20)
    assert "a?b" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_cells_of_tables_stay_cells():
    assert markdown(["a | b", "c"], [["d\ne", "1"]]) == "| a \\| b | c |\n| --- | ---: |\n| d e | 1 |"


def test_records_of_ocrbench_and_hallusionbench_say_the_truth_in_words():
    assert sheet.truth({"benchmark": "ocrbench", "answer": ["a", "b"]}) == "a / b"
    assert sheet.truth({"benchmark": "hallusionbench", "answer": "0 "}) == "no"
