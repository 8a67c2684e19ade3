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
"""`recipes/serve.py` and those who talk to it: the `openai` package, `transformers chat` and the block of the docs."""

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clients import answer_alone, read, scene, send, served
from pages import PAGES, ROOT, SERVER, blocks
from PIL import Image

from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes import TRAINED_MODEL


openai = pytest.importorskip("openai", reason="needs transformers[serving]")

NAME = "runs/demo/age-vlm-lm"
QUESTION = "Is there a cup in the image?"
TEXT_PART = {"type": "text", "text": QUESTION}
REQUEST = "Describe the image."  # whose answer is long
REQUEST_PART = {"type": "text", "text": REQUEST}


@dataclass
class Server:
    place: Path
    port: int

    @property
    def client(self) -> "openai.OpenAI":
        return openai.OpenAI(base_url=f"http://localhost:{self.port}/v1", api_key="none", max_retries=0, timeout=60)

    def image_part(self) -> dict:
        data = base64.b64encode((self.place / "tests/data/kitchen.jpg").read_bytes()).decode()
        return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}

    def ask(self, *content: dict, max_tokens: int = 12, **options: object) -> "openai.types.chat.ChatCompletion":
        messages = [{"role": "user", "content": list(content)}]
        return self.client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=max_tokens, temperature=0, **options
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(TRAINED_MODEL, place / NAME)
    (place / "tests/data").mkdir(parents=True)
    scene(0).save(place / "tests/data/kitchen.jpg")
    with served(NAME, log=place / "log", cwd=place, env={"HF_HOME": str(place / "home")}) as (port, _):
        yield Server(place, port)


def expected(place: Path, num_images: int, max_new_tokens: int = 12, question: str = QUESTION) -> str:
    images = [place / "tests/data/kitchen.jpg"] * num_images
    return answer_alone(*load_checkpoint(str(place / NAME)), question, *images, tokens=max_new_tokens)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_answers_are_the_models(server: Server, num_images: int):
    parts = [server.image_part()] * num_images + [REQUEST_PART]
    answer = server.ask(*parts).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in server.ask(*parts, stream=True) if chunk.choices]
    assert answer == "".join(pieces) == expected(server.place, num_images, question=REQUEST)
    assert sum(bool(piece) for piece in pieces) > 2


def test_answers_depend_on_the_picture(server: Server):
    assert expected(server.place, 0, question=REQUEST) != expected(server.place, 1, question=REQUEST)


def test_stop(server: Server):
    answer = expected(server.place, 1, question=REQUEST)
    parts = [server.image_part(), REQUEST_PART]
    stop = answer[8:13]
    assert server.ask(*parts, stop=stop).choices[0].message.content == answer[: answer.find(stop)]
    chunks = server.ask(*parts, stop=[stop], stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == answer[: answer.find(stop)]


def test_errors_are_those_of_the_client(server: Server):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="cannot be decoded") as caught:
        server.ask(part, TEXT_PART)
    assert caught.value.param == "messages[0].content[0].image_url"
    with pytest.raises(openai.BadRequestError, match="`stop`"):
        server.ask(TEXT_PART, stop=["a"] * 5, stream=True)
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("another")
    assert server.client.models.retrieve(NAME).id == [model.id for model in server.client.models.list()][0] == NAME
    assert server.ask(TEXT_PART).choices[0].message.content == expected(server.place, 0)


def test_blocks_of_the_docs(server: Server):
    """The page's client prints the answer while it is written; the one after it draws the boxes that it got."""
    asks, draws = (block for text in PAGES.values() for block in blocks(text, "python") if SERVER in block)
    program = f"{asks}\n{draws}".replace(SERVER, f"localhost:{server.port}")
    result = subprocess.run([sys.executable, "-c", program], cwd=server.place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected(server.place, 1, max_new_tokens=32)
    answer = server.ask(server.image_part(), REQUEST_PART, max_tokens=32, extra_body={"grounding": True})
    boxes = [phrase["box"] for phrase in answer.choices[0].message.grounding if phrase["box"] is not None]
    assert boxes
    with Image.open(server.place / "grounded.png") as drawn:
        for left, top, right, _ in boxes:
            assert (255, 0, 0) in [drawn.getpixel((int(left + right) // 2, int(top) + step)) for step in (-1, 0, 1)]


def test_curl_of_the_docs(server: Server):
    (block,) = [block for text in PAGES.values() for block in blocks(text, "bash") if f"curl {SERVER}" in block]
    words = shlex.split(block)
    status, content = read(send(server.port, words[words.index("-d") + 1].encode()))
    assert status == 200 and content["choices"][0]["message"]["content"]


def test_transformers_chat(server: Server):
    command = [sys.executable, "-m", "transformers.cli.transformers", "chat", NAME, f"http://localhost:{server.port}"]
    command += ["max_new_tokens=12", "do_sample=False"]
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}  # it takes the server for the Hub
    result = subprocess.run(
        command,
        cwd=server.place,
        env=environment,
        input=f"{QUESTION}\nn\n!exit\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    shown = re.sub(r"\s", "", result.stdout)
    assert re.sub(r"\s", "", expected(server.place, 0)) in shown, result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/checkpoint"], "no/checkpoint cannot be served"),
        ([str(TRAINED_MODEL), "--allowed-local-media-path", "no/folder"], "no/folder"),
        ([str(TRAINED_MODEL), "--max-images", "0"], "the limit of images is 0"),
        ([str(TRAINED_MODEL), "--dtype", "float99"], "cannot be served"),
        ([str(TRAINED_MODEL), "--device", "nowhere"], "cannot be served"),
    ],
)
def test_command_that_cannot_begin(tmp_path: Path, arguments: list[str], message: str):
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipes/serve.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and last.startswith("error: ") and message in last
    assert "Traceback" not in result.stderr
