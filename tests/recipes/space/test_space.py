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
"""The app in a browser, and the Space that it goes up as."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from hub_server import HubServer
from testing_utils import picture, tiny_model, tiny_processor

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.answers import ask
from recipes.answering.checkpoint import load_checkpoint
from recipes.answering.places import mask_of_place
from recipes.answering.speech import Speech
from recipes.publishing.space import push_space, space_files
from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.space import PICTURES, examples


QUESTION = "Is there a cup in the image?"
BLOCK = """
import importlib.abc, runpy, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {"trainers", "trl", "datasets", "pycocotools", "lmms_eval"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, "")
runpy.run_path("app.py")
"""


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that never comes to an end by itself."""
    folder = tmp_path_factory.mktemp("talkative")
    model, processor = tiny_model(), tiny_processor()
    letters = processor.tokenizer.convert_tokens_to_ids([*"BCDEFGJKLMNOPQRSUVWXZ"])
    model.generation_config.suppress_tokens = sorted({*range(model.config.text_config.vocab_size)} - {*letters})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_an_answer_is_told_as_it_is_written(talkative: Path):
    """Its pieces make up what `ask` returns."""
    model, processor = load_checkpoint(str(talkative))
    speech = Speech(model, processor, picture(), QUESTION, 20)
    assert "".join(speech) == speech.result()[0] != ""
    found, expected = speech.result(), ask(model, processor, picture(), QUESTION, 20)
    assert (found[0], found[2]) == (expected[0], expected[2])
    assert (found[1]["input_ids"] == expected[1]["input_ids"]).all()


def test_an_answer_can_be_stopped(talkative: Path):
    model, processor = load_checkpoint(str(talkative))
    whole = ask(model, processor, picture(), QUESTION, 100)[0]
    speech = Speech(model, processor, picture(), QUESTION, 100)
    next(iter(speech))
    speech.stop()
    answer, inputs, prompt_length = speech.result()
    assert whole.startswith(answer) and 0 < len(answer) < len(whole)
    assert inputs["input_ids"].shape[1] - prompt_length < 100


def test_an_answer_looks_where_it_is_told(talkative: Path):
    model, processor = load_checkpoint(str(talkative))
    mask = mask_of_place((20, 30), 64, 80)
    speech = Speech(model, processor, picture(), QUESTION, 5, mask)
    found, expected = speech.result(), ask(model, processor, picture(), QUESTION, 5, mask)
    assert found[0] == expected[0] and (found[1]["visual_bias"] == expected[1]["visual_bias"]).all()


def test_what_goes_wrong_in_an_answer_is_raised(talkative: Path, monkeypatch: pytest.MonkeyPatch):
    """And does not leave whoever listens waiting."""
    model, processor = load_checkpoint(str(talkative))
    monkeypatch.setattr(model, "generate", lambda **inputs: 1 / 0)
    speech = Speech(model, processor, picture(), QUESTION, 5)
    assert "".join(speech) == ""
    with pytest.raises(ZeroDivisionError):
        speech.result()


@pytest.fixture(scope="module")
def served(talkative: Path) -> Iterator[str]:
    """The address of the app with the checkpoint that comes along, its twin, and one that does not stop."""
    pytest.importorskip("gradio", reason='the app needs pip install -e ".[app]"')
    from recipes.space.interface import build, launch

    app = build([str(TRAINED_MODEL), str(UNGUIDED_MODEL), str(talkative)], examples(), max_new_tokens=100)
    launch(app, prevent_thread_lock=True, quiet=True)
    yield app.local_url
    app.close()


@pytest.fixture
def page(served: str, browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 1000})
    page, complaints, elsewhere = context.new_page(), [], []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: elsewhere.append(request.url) if "//127.0.0.1" not in request.url else None)
    page.goto(served)
    page.get_by_role("button", name="Ask").wait_for()
    yield page
    assert complaints == [] and {url.split(":")[0] for url in elsewhere} <= {"data", "blob"}
    context.close()


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label).click()
    page.get_by_role("option", name=option, exact=True).click()


def upload(page: Any, file: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(file)
    page.locator("img[alt], .image-frame img").first.wait_for()


def test_asking_two_models(page: Any):
    """The answers are those of `ask`, and their words can be pointed at, in each of them."""
    upload(page, PICTURES / "kitchen.jpg")
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("Question").press("Enter")
    frame = page.frame_locator("iframe")
    frame.locator("article").nth(1).wait_for()
    image = read_image(PICTURES / "kitchen.jpg")
    expected = [
        f"{folder.name}: {ask(*load_checkpoint(str(folder)), image, QUESTION, 100)[0]}"
        for folder in (TRAINED_MODEL, UNGUIDED_MODEL)
    ]
    assert page.get_by_label("Answer").input_value() == "\n".join(expected)
    frame.locator("[data-word='3']").first.click()
    assert frame.locator("output").first.inner_text().startswith("\u201ccup\u201d: ")
    assert frame.locator("output").nth(1).inner_text().startswith("\u201ccup\u201d: ")
    serious = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert [f"{fault['id']}: {node['html']}" for fault in serious for node in fault["nodes"]] == []


def test_pointing_into_the_picture(page: Any):
    """The model looks there, until it may look anywhere or gets another picture."""
    choose(page, "Beside it", "none")
    upload(page, PICTURES / "kitchen.jpg")
    image = read_image(PICTURES / "kitchen.jpg")
    box = page.locator(".image-frame img, img[alt]").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    told = page.get_by_text("The model is told to look at")
    told.wait_for()
    across, down = (int(side) for side in re.findall(r"\d+", told.inner_text()))
    assert abs(across / image.width - 0.75) < 0.02 and abs(down / image.height - 0.25) < 0.02
    page.get_by_label("Question").fill("What is this?")
    page.get_by_role("button", name="Ask").click()
    frame = page.frame_locator("iframe")
    frame.locator("article").wait_for()
    checkpoint = load_checkpoint(str(TRAINED_MODEL))
    mask = mask_of_place((across, down), image.height, image.width)
    assert page.get_by_label("Answer").input_value() == ask(*checkpoint, image, "What is this?", 100, mask)[0]
    page.get_by_role("button", name="Look anywhere").click()
    page.get_by_text("The model looks anywhere.").wait_for()
    page.mouse.click(box["x"] + 20, box["y"] + 20)
    told.wait_for()
    page.get_by_label("Remove Image").click()
    page.get_by_text("The model looks anywhere.").wait_for()


def test_a_long_answer_can_be_stopped(page: Any, talkative: Path):
    """Where it is, the words that were said are shown, and the next question is answered."""
    choose(page, "Model", talkative.name)
    choose(page, "Beside it", "none")
    upload(page, PICTURES / "kitchen.jpg")
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(box => box.value.length > 3 && box.disabled)"
    )
    page.get_by_role("button", name="Stop").click()
    frame = page.frame_locator("iframe")
    frame.locator("article").wait_for()
    said = page.get_by_label("Answer").input_value()
    whole = ask(*load_checkpoint(str(talkative)), read_image(PICTURES / "kitchen.jpg"), QUESTION, 100)[0]
    assert whole.startswith(said) and 0 < len(said) < len(whole)
    assert frame.locator("[role=listbox]").nth(1).inner_text().strip() == said
    choose(page, "Model", "model")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(box => box.disabled && /^(Yes|No)/.test(box.value))"
    )


def test_errors_are_sentences(page: Any, tmp_path: Path):
    ask_button = page.get_by_role("button", name="Ask")
    page.get_by_label("Question").fill(QUESTION)
    ask_button.click()
    page.get_by_text("There is no picture: choose one, take one or paste one.").wait_for()
    upload(page, PICTURES / "kitchen.jpg")
    page.get_by_label("Question").fill(" ")
    ask_button.click()
    page.get_by_text("There is no question: write one.").wait_for()
    page.get_by_label("Question").fill("\u732b" * 600)
    ask_button.click()
    page.get_by_text("that is more than the 1024 that the model reads: ask in fewer words").wait_for()
    page.get_by_label("Question").fill(QUESTION)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((PICTURES / "kitchen.jpg").read_bytes()[:600])
    page.get_by_label("Remove Image").click()
    page.locator("input[type=file]").first.set_input_files(broken)
    page.wait_for_timeout(1000)  # nothing shows that a broken picture has arrived
    ask_button.click()
    page.get_by_text("The picture cannot be read: it is damaged, too large, or no picture.").wait_for()


def test_what_is_stopped_before_it_begins_does_not_begin(talkative: Path):
    """Whoever waits for their turn may stop; the next question is answered again."""
    pytest.importorskip("gradio", reason='the app needs pip install -e ".[app]"')
    from recipes.space.interface import NOBODY, Asking

    asking, visitor = Asking({"it": load_checkpoint(str(talkative))}, 20), SimpleNamespace(session_hash="somebody")
    given = (str(PICTURES / "kitchen.jpg"), QUESTION, "it", NOBODY, None, visitor)
    asking.begin(visitor)
    asking.stop(visitor)
    stopped = [said for said, _ in asking.ask(*given)]
    asking.begin(visitor)
    answered = [said for said, _ in asking.ask(*given)]
    assert len(stopped[-1]) < len(answered[-1]) and len(answered[-1]) == 20
    assert asking._speeches == {} and asking._stopped == set()


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a Space that asks a checkpoint on this machine."""
    folder = tmp_path_factory.mktemp("space")
    for path, content in space_files([str(TRAINED_MODEL)], "6.31.0").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_a_space_has_all_that_it_runs(space: Path, browser: Any):
    """Without the packages that only training needs, and with its own copies of the sources."""
    pytest.importorskip("gradio", reason='the app needs pip install -e ".[app]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCK],
        cwd=space,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        line = next((line for line in process.stdout if "Running on local URL" in line), None)
        assert line is not None, "it ended"
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_role("button", name="Ask").wait_for()
        upload(page, PICTURES / "kitchen.jpg")
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_role("button", name="Ask").click()
        page.frame_locator("iframe").locator("[data-word='3']").wait_for()
        assert page.get_by_label("Answer").input_value() == "Yes."
    finally:
        process.kill()
        process.wait()


def test_the_card_of_a_space(space: Path):
    card = (space / "README.md").read_text()
    header = yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL)[1])
    assert (header["sdk"], header["sdk_version"], header["app_file"]) == ("gradio", "6.31.0", "app.py")
    assert header["models"] == [str(TRAINED_MODEL)]
    lines = (space / "requirements.txt").read_text().splitlines()
    assert len(lines) == 10 and all(re.fullmatch(r"[a-z-]+[<>=,\d.]+", line) for line in lines)
    assert {file.name for file in (space / "examples").iterdir()} == {"kitchen.jpg", "safari.jpg", "street.jpg"}


def test_pushing_a_space(hub: HubServer, monkeypatch: pytest.MonkeyPatch):
    """In one commit; a second push replaces what changed."""
    monkeypatch.setattr("recipes.publishing.space.metadata.version", lambda name: "6.31.0")
    push_space("me/app", ["me/model", "me/other"])
    (commit,) = hub.repos["me/app"].pushed
    assert b'build(["me/model", "me/other"]' in commit.files["app.py"]
    assert commit.files.keys() - {".gitattributes"} == space_files(["me/model"], "6.31.0").keys()
    push_space("me/app", ["me/model"])
    assert b'build(["me/model"]' in hub.repos["me/app"].pushed[-1].files["app.py"]
