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
"""README and docs: commands are ones that there are, links lead somewhere, numbers are those of the committed data.

Their Python blocks run in `test_use.py` and, those that need a server, in `test_serve.py`.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import pytest
import yaml
from pages import FENCED, PAGES, ROOT, blocks, prose

from modeling_agevlm.configuration_agevlm import default_cross_attention_layers
from recipes.benchmarks import scale
from recipes.benchmarks.scale import make_config, parameters
from recipes.study import report, settings
from recipes.study.plans import llm_checkpoint
from trainers import get_stage


PROGRAMS = "accelerate cp curl hf lmms-eval make npm pip pre-commit python tar tensorboard transformers".split()
LANGUAGES = {"bash", "bibtex", "python"}
# Notes what it was called with, each word and the call as a whole ended by a character that no word has.
STUB = """#!/bin/sh
{ printf '%s\\037' "${0##*/}" "$@"; printf '\\036'; } >> "$RECORD"
"""
# A part of a line of prose that is a command
COMMAND = re.compile(rf"`((?:{'|'.join(PROGRAMS)}) [^`]+)`")
# Gets commands as JSON, each with whether it has to be complete; lets the program of each parse it, stops it there, and
# prints for each what is wrong with it or null.
PARSE = """
import argparse, contextlib, io, json, runpy, sys
import typer.core
from accelerate.commands.launch import launch_command_parser

class Parsed(BaseException):
    pass

depth, whole = 0, True
parse_known_args, error = argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.error

def parse(self, args=None, namespace=None):
    global depth
    depth += 1  # subcommands have parsers of their own
    try:
        found, rest = parse_known_args(self, args, namespace)
    finally:
        depth -= 1
    if not depth:
        if rest:
            self.error(f"unknown: {rest}")
        raise Parsed
    return found, rest

def fail(self, message):
    if not whole and message.startswith("the following arguments are required"):
        raise Parsed
    error(self, message)

def stop(*args, **kwargs):
    raise Parsed

def problem(words):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            if words[0] == "accelerate":
                launch, rest = parse_known_args(launch_command_parser(), words[2:])
                if rest or launch.training_script.startswith("-"):
                    return f"no option of accelerate: {rest or launch.training_script}"
                words = [launch.training_script, *launch.training_script_args]
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except Parsed:
        return None
    except (Exception, SystemExit) as error:
        return f"{type(error).__name__}: {error} {said.getvalue()[-500:]}"
    return "it did not parse its arguments"

commands = json.load(sys.stdin)
argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.error = parse, fail
typer.core.TyperCommand.invoke = stop
found = []
for words, whole in commands:
    depth = 0
    found.append(problem(words))
json.dump(found, sys.stdout)
"""
LINK = re.compile(r"\]\(([^)\s]+)\)")
MARKER = "<!-- made by: python docs/write_tables.py"


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of programs that only note how they were called."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in PROGRAMS:
        (folder / name).write_text(STUB)
        (folder / name).chmod(0o755)
    return folder


def calls(script: str, stubs: Path, place: Path) -> list[list[str]]:
    """What bash calls with which words when it runs a script in which no program does anything."""
    record = place / "record"
    record.write_text("")
    (place / ".venv/bin").mkdir(parents=True, exist_ok=True)
    (place / ".venv/bin/activate").write_text("")
    result = subprocess.run(
        [shutil.which("bash"), "-euc", f"cd() {{ :; }}\n{script}"],
        cwd=place,
        env={"PATH": str(stubs), "RECORD": str(record)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{script}\n{result.stderr}"
    return [call.split("\x1f")[:-1] for call in record.read_text().split("\x1e")[:-1]]


def made_by_make(words: list[str]) -> list[list[str]]:
    """The Python commands that a call of make would run."""
    command = [shutil.which("make"), "-n", "-o", ".venv/.installed", *words[1:]]
    # Without what a make that runs these tests was told: it hands that on.
    result = subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stderr}"
    found = [shlex.split(line, comments=True) for line in result.stdout.replace("\\\n", " ").splitlines()]
    return [["python", *call[1:]] for call in found if call[:1] == [".venv/bin/python"]]


def runnable(calls: list[list[str]]) -> list[list[str]]:
    """Of the calls, those whose words a program of this project parses; the others are looked at here."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = []
    for words in calls:
        for word in words[1:]:
            name = word.rpartition("=")[2]
            if re.match(r"(docs|modeling_agevlm|recipes|tests|trainers)/", name):
                assert (ROOT / name).exists(), f"{shlex.join(words)}: there is no {name}"
        if words[0] == "make":
            found += runnable(made_by_make(words))
        elif words[0] == "pip":
            for named in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
                assert set(named.split(",")) <= set(extras), words
        elif words[0] == "accelerate":
            assert words[1] == "launch", words
            found.append(words)
        elif words[0] == "python" and words[1].endswith(".py"):
            found.append(words[1:])
    return found


def test_commands(stubs: Path, tmp_path: Path):
    commands, places = [], []
    for page, text in PAGES.items():
        scripts = [(block, True) for block in blocks(text, "bash")]
        scripts += [(" ".join(command.split()), False) for command in COMMAND.findall(prose(text))]
        for script, whole in scripts:
            for words in runnable(calls(script, stubs, tmp_path)):
                if words[:1] != ["tests/upstream/fetch.py"] and not words[0].startswith("tests/"):
                    commands.append((words, whole))
                    places.append(page)
    assert len(commands) > 60
    result = subprocess.run(
        [sys.executable, "-c", PARSE],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input=json.dumps(commands),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = zip(places, commands, json.loads(result.stdout), strict=True)
    wrong = [f"{page}: {shlex.join(words)}: {problem}" for page, (words, _), problem in found if problem]
    assert not wrong, "\n".join(wrong)


def test_blocks_are_of_languages_that_are_checked():
    assert {kind for text in PAGES.values() for kind, _ in FENCED.findall(text)} <= LANGUAGES
    assert not [page for page, text in PAGES.items() if re.search(r"\n\n    \w", prose(text))]  # indented blocks


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links(page: str):
    for link in LINK.findall(prose(PAGES[page])):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page}: {link}"


def test_the_map_is_whole():
    text = PAGES["CONTRIBUTING.md"].partition("## The map")[2].partition("\n## ")[0]
    first_cells = " ".join(re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE))
    rooms = {f"recipes/{path.name}/" for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert set(re.findall(r"`(recipes/\w+/)`", first_cells)) == rooms
    commands = {path.name for path in (ROOT / "recipes").glob("*.py") if path.name[0] != "_"}
    assert set(re.findall(r"`(\w+\.py)`", first_cells)) == commands


@pytest.mark.parametrize("page", PAGES)
def test_paths(page: str):
    for path in re.findall(r"`((?:docs|modeling_agevlm|recipes|tests|trainers)/[\w./*-]*)`", prose(PAGES[page])):
        assert any(ROOT.glob(path.rstrip("/"))), f"{page}: there is no {path}"


@pytest.fixture(scope="module")
def write_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "docs/write_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_are_those_of_the_data(write_tables: ModuleType):
    names = []
    for page in write_tables.PAGES:
        for name, _, table in write_tables.MARKED.findall(page.read_text()):
            assert table == write_tables.TABLES[name]() + "\n", f"{page.name}: python docs/write_tables.py {name}"
            names.append(name)
        assert len(write_tables.MARKED.findall(page.read_text())) == page.read_text().count(MARKER)
    assert sorted(names) == sorted(write_tables.TABLES)


def test_tables_of_numbers_are_made(write_tables: ModuleType):
    for page in write_tables.PAGES:
        for table in re.findall(r"(?:^\|.*\n)+", write_tables.MARKED.sub("", page.read_text()), re.MULTILINE):
            assert not re.search(r"\d\.\d{3}", table), f"{page.name} has numbers that no command makes:\n{table}"


def test_findings_are_those_of_the_study():
    readme = " ".join(PAGES["README.md"].split())
    results = report.load_results(ROOT / "docs/claim")
    models = {name: report.of_seeds(results, setting) for name, setting in settings.HEADS.items()}
    names = (settings.BASELINE, "all heads", "one head, denied words to the sink")
    none, everything, sunk = (models[name] for name in names)

    def added(key: str) -> list[float]:
        """By what guidance raises a metric, for every way to guide and every seed."""
        guided = (found for name, found in models.items() if settings.HEADS[name].guided)
        return [found[seed]["metrics"][key] - none[seed]["metrics"][key] for found in guided for seed in found]

    def span(values: Iterable[float]) -> str:
        return f"{min(values := list(values)):.2f} to {max(values):.2f}"

    def of(found: dict[int, dict[str, Any]], key: str) -> str:
        return span(result["metrics"][key] for result in found.values())

    of_pairs = {name: report.of_seeds(results, settings.MODELS[name]) for pair in settings.PAIRS for name in pair}

    def at_the_same_loss(pairs: Iterable[tuple[dict[int, Any], dict[int, Any]]]) -> Iterator[float]:
        for pair in pairs:
            for seed in pair[0]:
                curves = [found[seed]["curve"] for found in pair]
                loss = max(min(point["lm_loss"] for point in curve) for curve in curves)
                yield report.at_loss(curves[0], loss) - report.at_loss(curves[1], loss)

    def of_one(table: dict[str, settings.Setting], name: str, key: str) -> str:
        return f"{results[table[name].folder(4)]['metrics'][key]:.3f}"

    def chair(pair: int) -> str:
        a, b = (of_pairs[name] for name in settings.PAIRS[pair])
        values = [a[seed]["metrics"]["chair_i"] - b[seed]["metrics"]["chair_i"] for seed in a]
        return f"{mean(values):.2f} ± {report.STUDENT[2] * stdev(values) / len(values) ** 0.5:.2f}"

    assert all(len(found) == 3 for found in models.values()) and "three seeds of each" in readme
    pairs = [tuple(of_pairs[name] for name in pair) for pair in settings.PAIRS]
    assert f"it is {span(at_the_same_loss(pairs))} higher with all heads guided" in readme
    few = [(found, none) for name, found in models.items() if settings.HEADS[name].guidance_heads]
    assert f"and {span(at_the_same_loss(few))} with one or two" in readme
    assert sum(bool(setting.guided) for setting in settings.HEADS.values()) == 7 and "page's seven ways" in readme
    assert f"It is {chair(1)} higher where the LLM is trained, {chair(2)} with a weight of 0.1" in readme
    assert f"where the LLM is frozen ({chair(0)})" in readme
    assert f"POPE is {span(added('pope_accuracy'))} higher, seed by seed" in readme
    assert f"both right: {span(added('pairs_qAcc'))} higher" in readme
    other = report.of_seeds(results, settings.MODELS["age-vlm-lm, other masks"])
    assert {result["metrics"]["pope_accuracy"] for result in other.values()} == {0.5} and "stays at 0.500" in readme
    assert f"CHAIR i rises to {mean(result['metrics']['chair_i'] for result in other.values()):.2f}" in readme
    assert {model["metrics"].get("pope_accuracy_blind", 0.5) for model in results.values()} == {0.5}
    assert f"CHAIR i is {of(everything, 'chair_i')} against {of(none, 'chair_i')} without guidance" in readme
    assert f"and the sink it is {of(sunk, 'chair_i')}, and {of(sunk, 'chair_recall')} of the objects" in readme
    assert f"are named against {of(none, 'chair_recall')}" in readme
    added_chair = report.differences(sunk, none, "chair_i").split(" ± ")
    assert "no worse than without guidance ({:.2f} ± {:.2f})".format(*map(float, added_chair)) in readme
    same = [models[name] for name in ("the same, weight 0.3", "the same, another head")]
    assert f"({span(result['metrics']['chair_i'] for found in same for result in found.values())})" in readme
    assert f"two heads give {of(models['the same, weight 0.3, two heads of one key head'], 'chair_i')}" in readme
    one_head, all_heads = settings.HEAD_ABLATIONS, settings.ABLATIONS
    assert f"with position codes it is {float(of_one(one_head, 'with positions', 'chair_i')):.2f}" in readme
    for key, title in (("pope_accuracy", "POPE"), ("chair_i", "CHAIR i")):
        by_rows = []
        for table in (one_head, all_heads):
            names = [next(iter(table))] * (title == "POPE") + [f"{n} % of the rows have masks" for n in (30, 10, 3, 1)]
            *most, last = (of_one(table, name, key) for name in names)
            by_rows.append(f"{', '.join(most)} and {last}")
        assert "{} is {} with one head, {} with all".format(title, *by_rows) in readme
    pope, chair_i = (
        of_one(all_heads, "query: whole messages (the paper's)", key) for key in ("pope_accuracy", "chair_i")
    )
    assert f"POPE is {pope} and CHAIR i {chair_i}, with all heads and for all rows" in readme
    assert f"its attention on nothing is {of(sunk, 'absence_auc')}" in readme

    long, base = (results[setting.folder(4)] for setting in list(settings.LONG_MODELS.values())[:2])
    assert f"it first reaches 0.75 after {report.reached(base['curve']):,} steps" in readme
    low = [point["step"] for point in base["curve"] if point["pope_accuracy"] < 0.75]
    assert f"stays there from {next(p['step'] for p in base['curve'] if p['step'] > max(low)):,} on" in readme
    first = report.reached(long["curve"])
    assert f"guided in all heads it reaches it after {first:,} and stays" in readme
    even = [f"{base['metrics'][key]:.2f}" for key in ("in_mask_mass", "uniform_mass")]
    assert "in the end {} of it, averaged over heads, where even attention has {}".format(*even) in readme
    assert all(point["pope_accuracy"] >= 0.75 for point in long["curve"] if point["step"] >= first)
    scores = [model["metrics"]["pope_accuracy"] for model in (base, long)]
    assert "In the end they have {:.3f} and {:.3f}".format(*scores) in readme
    one = results[settings.LONG_MODELS["one head, denied words to the sink, weight 0.3, long"].folder(4)]["metrics"]
    other = base["metrics"]
    assert f"a weight of 0.3 it is {one['pope_accuracy']:.3f}, and captions name more" in readme
    assert f"{one['chair_recall']:.2f} of the objects against {other['chair_recall']:.2f} without guidance" in readme
    assert f"with CHAIR i {one['chair_i']:.2f} against {other['chair_i']:.2f}" in readme
    scores = [model["metrics"]["chair_i"] for model in (long, base)]
    assert "leave it so ({:.2f} against {:.2f})".format(*scores) in readme
    around = settings.SMOLLM2_MODELS
    bare, every, single = around
    pope, chair_i = ([of_one(around, name, key) for name in (every, bare)] for key in ("pope_accuracy", "chair_i"))
    words = "existence is {} with all heads guided and {} without, CHAIR i {} and {}"
    assert words.format(*pope, *chair_i) in readme
    scores = (of_one(around, single, key) for key in ("pointing_accuracy", "absence_auc", "pope_accuracy"))
    words = "({} of its words) and tells what is absent (AUC {}), but existence stays at {}"
    assert words.format(*scores) in readme
    for table, key, words in (
        (all_heads, "pope_accuracy", "POPE is {} with both and {} with stage 3 alone"),
        (all_heads, "in_mask_mass", "({} and {} of the attention inside the masks)"),
        (one_head, "absence_auc", "(AUC {} and {}, one head)"),
    ):
        scores = (of_one(table, name, key) for name in (next(iter(table)), "guidance in stage 3 only"))
        assert words.format(*scores) in readme
    among = [report.of_seeds(results, setting) for setting in settings.CONCATENATION_MODELS.values()]
    bare, every, single, auto, *short = among
    words = "with one guided head existence is {}, without guidance {} (three seeds of each; {} higher)"
    gained = [
        "{:.2f} ± {:.2f}".format(*map(float, report.differences(found, bare, "pope_accuracy").split(" ± ")))
        for found in (single, every, auto)
    ]
    assert words.format(of(single, "pope_accuracy"), of(bare, "pope_accuracy"), gained[0]) in readme
    pointing = (of(found, "pointing_accuracy") for found in (single, bare))
    assert "point at what they mean in {} and {} of the cases".format(*pointing) in readme
    words = "All heads add less to existence ({}), and so do the three that localize already (`auto`: {})"
    assert words.format(*gained[1:]) in readme
    unlearned = span(found[seed]["metrics"]["chair_i"] for found in (bare, single, every, auto) for seed in found)
    assert f"captions are not learned in any way (CHAIR i {unlearned})" in readme
    chance = span(result["metrics"]["pope_accuracy"] for found in short for result in found.values())
    assert f"it is at chance either way ({chance})" in readme
    before = report.text_perplexity(llm_checkpoint("llama"), settings.TEST_IMAGES)
    assert f"is {before:.2f} before an LLM learns to see" in readme
    heavier = models["the same, weight 0.3"]
    values = (result["metrics"]["text_perplexity"] for found in (sunk, heavier) for result in found.values())
    words = "{} after training without guidance, {} with one head (the sink, weight 0.1 or 0.3), {} with all heads"
    assert words.format(of(none, "text_perplexity"), span(values), of(everything, "text_perplexity")) in readme
    words = "with visual tokens among the words it is {}, {} and {}"
    assert words.format(*(of(found, "text_perplexity") for found in (bare, single, every))) in readme
    ordered = [(none, everything), (bare, single), (single, every)]  # by what is said of each seed
    assert all(
        less[seed]["metrics"]["text_perplexity"] < more[seed]["metrics"]["text_perplexity"]
        for less, more in ordered
        for seed in less
    )
    stays = {guided: [] for guided in (False, True)}
    for name, found in models.items():
        of_model = [result["metrics"].get("recolored_consistency") for result in found.values()]
        stays[bool(settings.HEADS[name].guided)] += filter(None, of_model)
    assert f"of unguided models {span(stays[False])} of the answers stay, of guided ones {span(stays[True])}" in readme
    assert (
        f"({settings.LM.steps(4):,} steps of stage 4, the LLM trained) and asks about {settings.TEST_IMAGES} test"
        in readme
    )


def test_what_is_said_of_numbers_and_sides_is_what_probes_read():
    page = " ".join(PAGES["docs/use.md"].split())
    read = json.loads((ROOT / "docs/probe.json").read_text())
    guided, twin = (
        {kind: {entry["read"]: f"{entry['value']:.3f}" for entry in found} for kind, found in read[name].items()}
        for name in ("recipes/scenes/model", "recipes/scenes/unguided_model")
    )
    mean, total = "visual tokens of the masks, mean", "visual tokens of the masks, sum"
    most = {
        (name, kind): max(value for place, value in found[kind].items() if place.startswith("behind"))
        for name, found in (("guided", guided), ("twin", twin))
        for kind in found
    }
    number = {name: (guided["count"][name], twin["count"][name]) for name in (mean, total)}
    assert "in their sum ({}; the twin's {})".format(*number[total]) in page
    assert "not in their mean ({}; {})".format(*number[mean]) in page
    assert f"has the number ({most['guided', 'count']} at most; {most['twin', 'count']})" in page
    side = guided["relation"]
    assert f"the first cross-attention layer ({side['behind layer 2']})" in page
    assert f"as well as it is answered ({most['guided', 'relation']})" in page
    assert side["behind layer 4"] == side["the model's answer"] == most["guided", "relation"]
    assert f"just as well ({twin['relation'][mean]})" in page
    assert f"no layer has it ({most['twin', 'relation']} at most)" in page


def test_the_layer_to_guide_is_the_papers_first_cross_attention_layer():
    first = default_cross_attention_layers(16)[0]
    page = " ".join(PAGES["docs/train.md"].split())
    assert f"whose first cross-attention layer is number {first}:" in page and f"--guidance_layers {first} " in page


def test_speed_in_short_is_what_was_measured(write_tables: ModuleType):
    page = " ".join(PAGES["docs/speed.md"].split())

    def values(*names: str) -> list[float]:
        """Of a row by its end, in stage 3 and 4, in the files whose names are given after it."""
        what, *files = names
        return [
            row["value"] for file in files for row in write_tables.measured(file)["rows"] if row["what"].endswith(what)
        ]

    def span(values: list[float], digits: int = 2) -> str:
        return f"{min(values):.{digits}f} to {max(values):.{digits}f}"

    def guided(kind: str, of: str, file: str) -> list[float]:
        return [value for n in (1, 16) for value in values(f"{kind}, K={n} / unguided, {of}", file)]

    assert f"medians of {span(guided('sum', 'time', 'train'))} of an unguided" in page
    assert f"at most {max(guided('sum', 'memory', 'train')):.3f} of the memory" in page
    of_sum = guided("sum", "time", "train_gpu") + guided("sum, one head", "time", "train_gpu")
    of_max = guided("max", "time", "train_gpu")
    assert f'guidance takes {span(of_sum)} of the time with "sum" and {span(of_max)} with "max"' in page
    assert f'and medians of {span(of_max, 3)} with "max"' in page
    times = values("step / Mllama, time", "architectures", "architectures768")
    assert f"A step takes {min(times):.2f} to {max(times):.2f} of the time with Mllama's" in page
    times = values("step / LLaVA, time", "architectures768")
    assert f"with 576 visual tokens, {min(times):.2f} to {max(times):.2f} of a LLaVA-style one" in page
    many, few = ("architectures768", "architectures")
    prefill, token = (
        [values(f"{what} / LLaVA", file)[0] for file in (many, few)]
        for what in ("prefill, batch 16, LLM part", "decode, s per token")
    )
    assert "at batch 16 takes {:.2f} of its with 576 visual tokens, {:.2f} with 144".format(*prefill) in page
    assert "a token of the answer {:.2f} and {:.2f} of its time".format(*token) in page
    assert f"decoding reaches {values('compiled: AGE-VLM / LLaMA', 'decode')[0]:.2f} of" in page
    by_row = {row["what"]: row for row in write_tables.measured("stages_gpu")["rows"]}
    short, long = (by_row[f"{n} tokens: utilization, stage {k}"] for n, k in ((64, "3"), (512, "4, LLM trained")))
    seconds = [row["sides"].split(" in ")[1].split(" s")[0] for row in (short, long)]
    stage4 = "512 tokens: stage 4, tower checkpointed"
    whole, again = by_row[f"{stage4} / not, memory"]["sides"].split()[2::-2]
    assert f"takes {1000 * float(seconds[0]):.0f} ms a step with captions" in page
    assert f"trained {1000 * float(seconds[1]):.0f} ms with 512" in page
    assert f"{float(whole):.1f} GB, or {float(again):.1f} GB" in page
    assert f"for {by_row[f'{stage4} / not, time']['value']:.2f} of the time" in page
    assert [round(row["value"], 2) for row in (short, long)] == list(scale.UTILIZATION.values())
    rows = [row for row in write_tables.measured("train_gpu")["rows"] if ": sum" in row["what"]]
    times, memory = ([row for row in rows if row["what"].endswith(f"unguided, {of}")] for of in ("time", "memory"))
    assert f"at most {max(row['value'] for row in memory):.3f} of the unguided step's" in page
    eager = values("eager weights, K=1 / unguided, memory", "train_gpu")
    assert f"that return their attention take {max(eager):.3f}" in page
    low, high = min(row["low"] for row in times), max(row["high"] for row in times)
    assert f"{low:.2f} to {high:.2f} of an unguided step's from round to round" in page
    assert "with medians of {:.3f} to {:.3f}".format(*(f(row["value"] for row in times) for f in (min, max))) in page
    for words, rows in {
        "with them it takes {:.2f} of its time": ["prefill, batch 1, LLM part, CUDA graph / LLaVA"],
        "with 16 rows {:.2f}.": ["prefill, batch 16, LLM part, CUDA graph / LLaVA"],
        "takes {:.2f} (stage 3) and {:.2f} (stage 4) of its time": ["step / LLaVA, time"],
        "and {:.2f} and {:.2f} of its memory": ["step / LLaVA, memory"],
    }.items():
        assert words.format(*(value for row in rows for value in values(row, "architectures_gpu"))) in page, words
    weight = 128256 * 576 * 4  # bytes, of `small`'s head
    logits = 2 * 512 * 128256 * 4
    assert f"are {2 * weight / 1e9:.2f} GB together, two rows of logits {logits / 1e9:.2f} GB" in page


def test_sizes():
    total, _ = parameters(make_config("1B"), get_stage(1))
    for page in ("README.md", "docs/train.md", "docs/paper.md", "docs/scale_plan.md"):
        assert f"{total / 1e9:.2f}B" in PAGES[page] and "1.2B" in PAGES[page]


def test_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 230


def test_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    assert f"\n## {version}\n" in PAGES["CHANGELOG.md"]
