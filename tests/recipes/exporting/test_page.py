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
"""The page that runs a model in a browser, beside the model in PyTorch."""

import base64
import http.server
import io
import json
import os
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect
from testing_utils import picture, tiny_model, tiny_processor

from modeling_agevlm.image_reading_agevlm import read_image
from recipes import export_onnx
from recipes.answering.answers import ask, one_question, prompts
from recipes.answering.checkpoint import load_checkpoint
from recipes.answering.words import LookingAnswer, look_of_words
from recipes.drawing.answer_page import answer_data
from recipes.exporting.folders import export
from recipes.exporting.page import RUNTIME, check_page, write_page
from recipes.scenes import TRAINED_MODEL


ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
PLACES = [Path(os.environ["ONNXRUNTIME_WEB"])] if "ONNXRUNTIME_WEB" in os.environ else []
PLACES += [ROOT / folder / "node_modules/onnxruntime-web/dist" for folder in (".", ".cache/onnxruntime-web")]
# How many steps of 256 a pixel may be off. Pillow and torchvision have weights of 16 bits, the page has floats: where a sum is
# nearly a tie, it is rounded the other way, once across and once down.
STEPS = 2


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, as `python -m http.server` does, and keeps what was not found."""

    def __init__(self, folder: Path) -> None:
        self.missing: list[str] = []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                pass

            def send_error(self, code: int, *arguments: Any) -> None:
                server.missing.append(f"{code} {self.path}")
                super().send_error(code, *arguments)

        super().__init__(("127.0.0.1", 0), partial(Handler, directory=folder))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/"


@pytest.fixture(scope="module")
def checkpoint() -> tuple[Any, Any]:
    return load_checkpoint(str(TRAINED_MODEL), dtype="float32", attn_implementation="eager")


@pytest.fixture(scope="module")
def servers(checkpoint: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """The pages of the shipped model in both types."""
    runtime = next((folder for folder in PLACES if folder.is_dir()), None)
    if runtime is None:
        pytest.skip("onnxruntime-web is not there: npm install --prefix .cache/onnxruntime-web onnxruntime-web")
    graphs = tmp_path_factory.mktemp("onnx")
    description = export(*checkpoint, graphs, int8=True)
    found = {}
    for name, int8 in {"float32": False, "int8": True}.items():
        folder = tmp_path_factory.mktemp(name)
        write_page(*checkpoint, graphs, description, runtime, folder, int8)
        found[name] = Server(folder)
    yield found
    for server in found.values():
        server.shutdown()
        server.server_close()
        assert server.missing == []


class Page:
    """The page in a browser, ready, which has complained of nothing and asked nobody else by the end."""

    def __init__(self, browser: Any, server: Server, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
        self.page, self.complaints, self.requests = self.context.new_page(), [], []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(server.url)
        self.server, self.status = server, self.page.locator("#status")
        expect(self.status).to_have_text(re.compile("^Ready"), timeout=120_000)

    def module(self, file: str, body: str, argument: Any = None) -> Any:
        """What JavaScript returns that has a module of the page as `module`."""
        script = f"async (argument) => {{ const module = await import('{self.server.url}{file}'); {body} }}"
        return self.page.evaluate(script, argument)

    def ask(self, question: str, file: Any = None) -> str:
        """Asks, and returns what the page says then."""
        if file is not None:
            self.page.set_input_files("#file", file)
            expect(self.page.locator("#preview")).to_be_visible()
        self.page.fill("#question", question)
        self.page.click("#ask")
        expect(self.status).not_to_have_text(re.compile(r"^(Looking|Ready)"), timeout=120_000)
        return self.status.inner_text()

    def answer(self) -> str:
        return self.page.locator("article .words").nth(1).inner_text()

    def faults(self) -> list[str]:
        """Serious ones of accessibility."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{fault['id']}: {fault['nodes'][0]['html']}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def opened(browser: Any, servers: dict[str, Server]) -> Iterator[Any]:
    pages = []

    def open_page(kind: str = "float32", **context: Any) -> Page:
        pages.append(Page(browser, servers[kind], **context))
        return pages[-1]

    yield open_page
    for page in pages:
        assert page.complaints == []
        assert {url for url in page.requests if not url.startswith((page.server.url, "data:"))} == set()
        page.context.close()


def png(image: PIL.Image.Image, **arguments: Any) -> dict[str, Any]:
    """A file to choose."""
    buffer = io.BytesIO()
    image.save(buffer, "png", **arguments)
    return {"name": "picture.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def strings() -> list[str]:
    """Questions, and what tokenizers stumble over: spaces, contractions, digits, scripts, emoji, half characters, controls."""
    rng = np.random.default_rng(0)
    found = [
        "Is there a cup in the image?",
        "",
        " ",
        "  two  spaces ",
        "it's they'll I'D don't'",
        "1234567 12 3",
        "\n\n a\tb\r\n",
    ]
    found += [
        "caf\u00e9 cafe\u0301 na\u00efve",
        "\u732b\u304c\u3044\u307e\u3059\u304b\uff1f",
        "\ud55c\uad6d\uc5b4",
        "\u0e41\u0e21\u0e27",
    ]
    found += [
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 ok",
        "a\u0085b\u00a0c\u2003d\ufeffe\u180ef",
        "<|image|> <|eot_id|>",
        "\x00\x1b",
    ]
    alphabet = [*"abcdeth '.?\n\t19", "\u00e9", "\u0301", "\u4e00", "\U0001f600", "\u00a0", "\u0661", "\u00b2"]
    found += ["".join(rng.choice(alphabet, size=rng.integers(1, 40))) for _ in range(300)]
    return found


def test_the_tokenizer_is_the_processors(opened, checkpoint: tuple[Any, Any]):
    _, processor = checkpoint
    tokenizer, page, texts = processor.tokenizer, opened(), strings()
    found = page.module(
        "tokenizer.js",
        "const tokenizer = new module.Tokenizer(await (await fetch('tokenizer.json')).json());"
        "return argument.map((text) => { const ids = tokenizer.encode(text);"
        " return [ids, tokenizer.decode(ids), tokenizer.decode(ids.slice(0, -1))]; });",
        texts,
    )
    for text, (ids, whole, cut) in zip(texts, found, strict=True):
        words = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == words, text
        assert [whole, cut] == tokenizer.batch_decode([words, words[:-1]], clean_up_tokenization_spaces=False), text


def test_a_prompt_is_the_processors(opened, checkpoint: tuple[Any, Any]):
    _, processor = checkpoint
    questions = ["Is there a cup in the image?", "\u732b\u304c\u3044\u307e\u3059\u304b", "a" * 100]
    found = opened().module(
        "tokenizer.js",
        "const about = await (await fetch('page.json')).json();"
        "const tokenizer = new module.Tokenizer(await (await fetch('tokenizer.json')).json());"
        "return argument.map((text) => tokenizer.encodeBetween(about.chat[0], text, about.chat[1]));",
        questions,
    )
    for question, ids in zip(questions, found, strict=True):
        assert ids == prompts(processor, [one_question(question, picture())])["input_ids"][0].tolist()


def noise(height: int, width: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(64, 80), (320, 320), (700, 333), (1, 5), (321, 1000)])
def test_pixels_are_the_processors(opened, checkpoint: tuple[Any, Any], size: tuple[int, int]):
    """Enlarged, made smaller, as it is, and extremely narrow: up to a step of a byte."""
    _, processor = checkpoint
    image = noise(*size)
    expected = processor.image_processor(image, return_tensors="pt")["pixel_values"][0, 0].numpy()
    found = pixels_of(opened(), png(image)["buffer"])
    step = 1 / 255 / np.array(processor.image_processor.image_std)[:, None, None]
    off = np.abs(found.reshape(expected.shape) - expected) / step
    assert off.max() < STEPS + 1e-3 and off.mean() < 0.02


def pixels_of(page: Page, content: bytes) -> np.ndarray:
    return np.array(
        page.module(
            "pictures.js",
            "const { image } = await (await fetch('page.json')).json();"
            "const bytes = Uint8Array.from(atob(argument), (character) => character.charCodeAt(0));"
            "return Array.from(module.pixelsOf((await module.readPicture(new Blob([bytes]))).data, image));",
            base64.b64encode(content).decode(),
        )
    )


def test_pictures_are_read_as_python_reads_them(opened, checkpoint: tuple[Any, Any]):
    """Turned as the EXIF data ask, on white where they are transparent, gray, and with few colors."""
    _, processor = checkpoint
    image, page = noise(40, 60), opened()
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = 6
    clear = image.convert("RGBA")
    clear.putalpha(PIL.Image.fromarray(np.tile(np.repeat([0, 255], 30).astype(np.uint8), (40, 1))))
    for given in (png(image, exif=exif), png(clear), png(image.convert("L")), png(image.quantize(16))):
        shown = read_image(given["buffer"])
        expected = processor.image_processor(shown, return_tensors="pt")["pixel_values"].numpy()
        off = np.abs(pixels_of(page, given["buffer"]) - expected.ravel())
        assert off.max() < 1.01 * STEPS / 255 / min(processor.image_processor.image_std)


def kept_data(page: Page) -> None:
    """Keeps what is shown, to be read from Python."""
    page.page.evaluate(
        "() => { const show = window.showAnswers;"
        " window.showAnswers = (element, data) => { window.shown = JSON.parse(JSON.stringify(data)); return show(element, data); }; }"
    )


def maps_of(data: dict[str, Any]) -> np.ndarray:
    """In multiples of even attention: `(words, layers, height, width)`."""
    (model,) = data["models"]
    steps = np.frombuffer(zlib.decompress(base64.b64decode(model["maps"])), np.uint8).astype(float)
    values = np.where(steps > 0, 2 ** ((steps - 1) / 16 - 6), 0)
    return values.reshape(len(model["words"]), len(model["layers"]), *model["cells"])


def expected_look(checkpoint: tuple[Any, Any], image: PIL.Image.Image, question: str) -> tuple[str, LookingAnswer]:
    text, inputs, length = ask(*checkpoint, image, question, max_new_tokens=64)
    return text, look_of_words(*checkpoint, inputs, length, image, question)


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("kitchen.jpg", "Is there a cup in the image?"),
        ("safari.jpg", "Describe the image."),
        ("wide", "Where is the d\u00e9j\u00e0-vu \u732b, left or right?"),
    ],
)
def test_answers_and_maps_are_the_models(opened, checkpoint: tuple[Any, Any], name: str, question: str):
    image = picture(100, 163) if name == "wide" else PIL.Image.open(DATA / name)
    expected, look = expected_look(checkpoint, image, question)
    page = opened()
    kept_data(page)
    told = page.ask(question, png(image) if name == "wide" else DATA / name)
    assert re.match(r"Answered in \d+\.\d s: \d+\.\d s for the picture", told)
    assert page.answer() == expected
    found, wanted = page.page.evaluate("() => window.shown"), answer_data(image, [look])
    (model,), (other,) = found["models"], wanted["models"]
    assert [{**word, "onNothing": None} for word in model["words"]] == [
        {**word, "onNothing": None, "regions": []} for word in other["words"]
    ]
    assert model["phrases"] == [{**phrase, "regions": []} for phrase in other["phrases"]]
    assert model["layers"] == other["layers"]
    assert (found["colors"], found["most"], model["cells"]) == (wanted["colors"], wanted["most"], list(other["cells"]))
    for ours, theirs in zip(model["words"], other["words"], strict=True):
        np.testing.assert_allclose(ours["onNothing"], theirs["onNothing"], atol=0.01)
    ours, theirs = maps_of(found), maps_of(wanted)
    assert (np.abs(ours - theirs) < 0.1 + 0.06 * theirs).all()  # a byte more or less is 4%


def test_maps_are_smoothed_as_python_smooths_them(opened, checkpoint: tuple[Any, Any]):
    _, processor = checkpoint
    cells = torch.rand(10, 10)
    sizes = [(24, 24), (24, 7), (3, 24), (1, 24), (15, 24)]
    found = opened().module(
        "words.js",
        "return argument[1].map((size) => Array.from(module.smooth(argument[0], [10, 10], size)));",
        [cells.flatten().tolist(), sizes],
    )
    for size, values in zip(sizes, found, strict=True):
        expected = processor.image_processor.cells_to_pixels(cells, *size, smooth=True)
        np.testing.assert_allclose(np.array(values).reshape(size), expected.numpy(), rtol=1e-4)


def test_an_example_and_a_second_question(opened):
    page = opened()
    page.page.locator("#examples button").nth(1).click()
    expect(page.page.locator("#question")).to_have_value("Can you see a giraffe in the image?")
    page.page.locator("#question").press("Enter")
    expect(page.status).to_have_text(re.compile("^Answered"), timeout=120_000)
    first = page.answer()  # asked at once, it waited for the picture
    assert first.startswith(("Yes", "No"))
    page.ask("Describe the image.")
    assert page.answer() != first and page.page.locator("article").count() == 1
    page.page.get_by_role("option", name="Describe").click()
    expect(page.page.locator("output")).to_have_text(re.compile("^\u201cDescribe\u201d: "))


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_may_be_pasted_and_dropped(opened, way: str):
    page = opened()
    data = base64.b64encode(png(picture())["buffer"]).decode()
    page.page.evaluate(
        "([way, data]) => { const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));"
        " const transfer = new DataTransfer(); transfer.items.add(new File([bytes], 'a.png', { type: 'image/png' }));"
        " const options = { bubbles: true, cancelable: true };"
        " document.body.dispatchEvent(way === 'paste' ? new ClipboardEvent(way, { ...options, clipboardData: transfer })"
        " : new DragEvent(way, { ...options, dataTransfer: transfer })); }",
        [way, data],
    )
    expect(page.page.locator("#preview")).to_be_visible()
    assert page.ask("Is there a cup in the image?").startswith("Answered")


def test_an_answer_can_be_stopped(opened):
    page = opened()
    page.ask("Describe the image.", DATA / "safari.jpg")
    whole = page.answer()
    page.page.evaluate(
        "() => new MutationObserver(() => document.getElementById('stop').click())"
        ".observe(document.getElementById('streaming'), { childList: true })"
    )
    assert page.ask("Describe the image.").startswith("Stopped after")
    assert whole.startswith(page.answer()) and len(page.answer()) < len(whole) / 2
    assert page.page.locator("#ask").is_enabled() and page.page.locator("#stop").is_disabled()


def test_errors_are_sentences(opened):
    page = opened()
    for question, file, sentence in (
        ("Is there a cup?", None, "Choose a picture first."),
        ("  ", png(picture()), "Type a question first."),
        ("a " * 990, None, "The question takes 1009 tokens, and the model reads up to 960. Ask a shorter one."),
    ):
        assert page.ask(question, file) == sentence
        assert page.status.get_attribute("class") == "error"
    page.page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(page.status).to_have_text("This file cannot be read as a picture. Choose a PNG, JPEG, GIF or WebP.")
    assert page.ask("Is there a cup?").startswith("Answered")  # about the picture that was there before


def test_what_is_typed_stays_words(opened):
    page = opened()
    evil = "<img src=x onerror=alert(1)><|image|> <|eot_id|>?"
    assert page.ask(evil, png(picture())).startswith("Answered")
    assert page.page.locator("article .words").first.inner_text() == evil
    assert page.page.locator("article img").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_everybody_can_use_it(opened, scheme: str, width: int):
    """axe finds nothing serious, before, after and in an error; nothing runs over the edge of a phone."""
    page = opened(color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.faults() == []
    page.ask("Is there a cup?")
    assert page.faults() == []
    page.ask("Is there a cup?", DATA / "kitchen.jpg")
    page.page.get_by_role("option", name="cup").click()
    assert page.faults() == []
    assert page.page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_int8_answers_too(opened):
    page = opened("int8")
    assert page.ask("Is there a cup in the image?", DATA / "kitchen.jpg").startswith("Answered")
    assert page.answer().startswith("Yes")


def test_what_a_page_cannot_show_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in RUNTIME:
        (tmp_path / name).touch()
    check_page(tiny_processor(), tmp_path)
    other = tiny_processor()
    other.tokenizer.backend_tokenizer.pre_tokenizer.add_prefix_space = True
    for processor, folder, sentence in (
        (tiny_processor(do_pad=True), tmp_path, "its pictures are padded, cropped or kept in size"),
        (tiny_processor(resample=PIL.Image.Resampling.NEAREST), tmp_path, "another filter than bilinear and bicubic"),
        (tiny_processor(), tmp_path / "dist", "has no ort.wasm.bundle.min.mjs. Run `npm install onnxruntime-web`"),
        (other, tmp_path, "its tokenizer is not GPT-2's byte-level BPE"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_page(processor, folder)

    tiny_model(redrawn=False).save_pretrained(tmp_path / "model")
    tiny_processor(do_pad=True).save_pretrained(tmp_path / "model")
    arguments = ["export_onnx.py", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "onnx")]
    for more, sentence in (
        (["--page", str(tmp_path / "page")], "`--page` needs `--onnxruntime_web"),
        (["--page", str(tmp_path / "page"), "--onnxruntime_web", str(tmp_path)], "the page can only stretch them"),
    ):
        monkeypatch.setattr(sys, "argv", arguments + more)
        with pytest.raises(SystemExit, match=sentence):
            export_onnx.main()
    assert not (tmp_path / "page").exists() and not (tmp_path / "onnx").exists()


def test_the_page_folder_is_whole(servers: dict[str, Server]):
    """What the page is told is what the folder holds."""
    for server in servers.values():
        folder = Path(server.RequestHandlerClass.keywords["directory"])
        about = json.loads((folder / "page.json").read_text())
        assert all((folder / name).is_file() for name in about["files"].values())
        assert len(about["examples"]) == 4 and all((folder / one["file"]).is_file() for one in about["examples"])
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (folder / "index.html").read_text())[1]
        assert "http" not in policy and "unsafe-inline" not in policy and "default-src 'none'" in policy
