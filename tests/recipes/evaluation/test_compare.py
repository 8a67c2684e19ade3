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
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from recipes import compare
from recipes.drawing import plt
from recipes.evaluation import sheet
from recipes.evaluation.comparison import align, bootstrap, choose, counts_table, differences_table, mcnemar
from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import mark, write_records
from recipes.evaluation.sheet import load_picture, save_answers_page, save_sheet, wrap
from recipes.terminal.tables import markdown


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
def test_mcnemar(only_first: int, only_second: int, p: float):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=0.05 if p < 1e-3 else 1e-12)
    assert mcnemar(only_second, only_first) == mcnemar(only_first, only_second)


def test_mcnemar_by_counting_all_splits():
    for number in range(1, 9):
        heads = [sum(flips) for flips in itertools.product((0, 1), repeat=number)]
        for seen in range(number + 1):
            uneven = abs(2 * seen - number)
            as_uneven = sum(abs(2 * count - number) >= uneven for count in heads)
            assert mcnemar(seen, number - seen) == pytest.approx(as_uneven / 2**number)


def test_counts_table():
    first, second = run(1, 1, 0, 0, 1, 0), run(1, 0, 1, 1, 1, 0)
    lines = counts_table(("A", "B"), list(zip(first, second, strict=True))).splitlines()
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
    lines = differences_table(("A", "B"), pairs, resamples=50, seed=0).splitlines()
    assert lines[0] == "| metric | A | B | difference | 95% interval |"
    assert lines[2].startswith("| accuracy | 0.5 | 1 | +0.5 | +0") and len(lines) == 2 + len(summarize(run(1)))


def test_only_metrics_of_both_runs_are_compared():
    """A model without a sink has no `absence_auc`."""
    plain, sink = run(1, 0, 1, 0), [{**r, "on_nothing": 0.5} for r in run(1, 1, 1, 1)]
    assert "absence_auc" in summarize(sink)
    for first, second in ((plain, sink), (sink, plain)):
        table = differences_table(("A", "B"), list(zip(first, second, strict=True)), resamples=20, seed=0)
        assert "accuracy" in table and "absence_auc" not in table
    both = differences_table(("A", "B"), list(zip(sink, sink, strict=True)), resamples=20, seed=0)
    assert "| absence_auc | 0.5 | 0.5 | +0 | +0 to +0 |" in both


def test_sheet_and_page_say_what_looks_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    questions = [(record(1, True, on_nothing=0.786), record(1, False))]
    save_sheet(tmp_path / "sheet.png", ["A", "B"], questions)
    said = [text.get_text() for text in figures[0].axes[0].texts]
    assert "✓ no\nlooks at nothing: 79%" in said and "✗ yes" in said
    save_answers_page(tmp_path / "page.html", ["A", "B"], questions, "")
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
    with pytest.raises(ValueError, match="the answer to pope 1 is 'no' in A and 'yes' in B"):
        align({"A": run(1, 1), "B": other})


def test_choose():
    lines = list(zip(run(*[1] * 10), run(*[1, 0] * 5), strict=True))
    assert [line[0]["id"] for line in choose(lines, 5, only_different=False)] == ["0", "2", "4", "6", "8"]
    assert [line[0]["id"] for line in choose(lines, 9, only_different=True)] == ["1", "3", "5", "7", "9"]
    assert choose(lines[:1], 3, only_different=True) == []


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
    with pytest.raises(SystemExit, match="2"):
        command_line(monkeypatch, files[0])


SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


def test_nothing_of_a_record_becomes_markup(tmp_path: Path):
    """Whatever its fields and the runs' names hold, the page has the tags that it has for plain words."""
    fields = {"question": SCRIPT, "prediction": SCRIPT, "image": f"javascript:alert(1)//{SCRIPT}"}
    pages = []
    for words, name in ((SCRIPT, SCRIPT), ("words", "name")):
        answers = [
            {**record, **{key: value.replace(SCRIPT, words) for key, value in fields.items()}} for record in run(1)
        ]
        save_answers_page(tmp_path / "page.html", [name], [tuple(answers)], words)
        pages.append((tmp_path / "page.html").read_text())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in pages[0]
    assert re.findall("<[^>]*>", pages[0]) == re.findall("<[^>]*>", pages[1])
    assert "default-src 'none'; img-src data:" in pages[0]


def test_half_a_character_is_shown_as_a_question_mark(tmp_path: Path):
    save_answers_page(tmp_path / "page.html", ["A"], [({**run(1)[0], "question": "a\ud800b"},)], "")
    assert "a?b" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_cells_of_tables_stay_cells():
    assert markdown(["a | b", "c"], [["d\ne", "1"]]) == "| a \\| b | c |\n| --- | ---: |\n| d e | 1 |"


def test_records_of_ocrbench_and_hallusionbench_say_the_truth_in_words():
    assert sheet.truth({"benchmark": "ocrbench", "answer": ["a", "b"]}) == "a / b"
    assert sheet.truth({"benchmark": "hallusionbench", "answer": "0"}) == "no"
