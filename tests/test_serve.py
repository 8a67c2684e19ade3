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
"""transformers' own server with AGE-VLM added answers as the model does."""

import base64
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pages import PAGES, ROOT, SERVER, blocks
from testing_utils import VOCAB_SIZE, picture, tiny_model, tiny_processor

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor


openai = pytest.importorskip("openai", reason="needs transformers[serving]")

NAME = "runs/demo/age-vlm"
QUESTION = "Is there a cup in the image?"


@dataclass
class Server:
    place: Path
    port: int

    @property
    def client(self) -> "openai.OpenAI":
        return openai.OpenAI(base_url=f"http://localhost:{self.port}/v1", api_key="none", max_retries=0, timeout=60)

    def ask(self, *content: dict, stream: bool = False):
        messages = [{"role": "user", "content": list(content)}]
        return self.client.chat.completions.create(
            model=NAME, messages=messages, max_tokens=12, temperature=0, stream=stream
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("place")
    model, processor = tiny_model(), tiny_processor()
    words = processor.tokenizer.batch_decode([[n] for n in range(VOCAB_SIZE)], skip_special_tokens=True)
    # Streamers hold back characters of which only some bytes are there yet.
    model.generation_config.suppress_tokens = [n for n, word in enumerate(words) if not word or not word.isprintable()]
    model.generation_config.suppress_tokens += [n for n, word in enumerate(words) if "\ufffd" in word]
    model.generation_config.do_sample = False
    model.save_pretrained(place / NAME)
    processor.save_pretrained(place / NAME)
    (place / "tests/data").mkdir(parents=True)
    picture(60, 90).save(place / "tests/data/kitchen.jpg")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "recipes/serve.py"), NAME, "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "home")}
    log = (place / "log").open("w")
    process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (place / "log").read_text()
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield Server(place, port)
        assert process.poll() is None, (place / "log").read_text()
    finally:
        process.terminate()
        process.wait(30)


def image_part(data: bytes | None = None, place: Path | None = None) -> dict:
    data = (place / "tests/data/kitchen.jpg").read_bytes() if data is None else data
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"}}


TEXT_PART = {"type": "text", "text": QUESTION}


def expected(place: Path, num_images: int, max_new_tokens: int = 12) -> str:
    model = AgeVlmForConditionalGeneration.from_pretrained(place / NAME)
    processor = AgeVlmProcessor.from_pretrained(place / NAME)
    content = [{"type": "image", "path": str(place / "tests/data/kitchen.jpg")}] * num_images + [TEXT_PART]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**inputs, max_new_tokens=max_new_tokens)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("num_images", [0, 1, 2])
def test_answers_are_the_models(server: Server, num_images: int):
    parts = [image_part(place=server.place)] * num_images + [TEXT_PART]
    answer = server.ask(*parts).choices[0].message.content
    streamed = [chunk.choices[0].delta.content or "" for chunk in server.ask(*parts, stream=True) if chunk.choices]
    assert answer == "".join(streamed) == expected(server.place, num_images)
    assert sum(bool(piece) for piece in streamed) > 2


def test_answers_depend_on_the_picture(server: Server):
    assert expected(server.place, 0) != expected(server.place, 1)


def test_broken_picture_is_an_error_and_the_server_goes_on(server: Server):
    with pytest.raises(openai.APIError):
        server.ask(image_part(b"this is no picture"), TEXT_PART)
    assert server.ask(TEXT_PART).choices[0].message.content == expected(server.place, 0)


def test_block_of_the_docs(server: Server):
    (block,) = [block for text in PAGES.values() for block in blocks(text, "python") if SERVER in block]
    block = block.replace(SERVER, f"localhost:{server.port}")
    result = subprocess.run([sys.executable, "-c", block], cwd=server.place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == expected(server.place, 1, max_new_tokens=32)


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
