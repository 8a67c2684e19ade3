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
Clients of the server, and a load of them.

    python tests/recipes/serving/clients.py --minutes 10

starts `recipes/serve.py` with the model that comes along and lets 8 clients ask it at once, with pictures and without, whole
and as streams, some of whom leave early. Prints how many answers there were, how many of them were not those of the model
alone, and the server's memory in the beginning and in the end.
"""

import argparse
import base64
import http.client
import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
from transformers import PreTrainedModel, ProcessorMixin

from recipes.answering.answers import generate, prompts
from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes import TRAINED_MODEL
from recipes.scenes.pictures import sample_scene


ROOT = Path(__file__).parents[3]
QUESTIONS = ("Is there a car in the image?", "Is there a dog in the image?", "What is in the picture?", "Hello.")
MAX_TOKENS = 24

Body = dict[str, Any]


def scene(index: int) -> PIL.Image.Image:
    return sample_scene("test", index, image_size=256).image


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def user(words: str, *urls: str) -> Body:
    """A message with pictures."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": words}]}


def chat(*messages: Body, **more: Any) -> Body:
    """The body of a request for a greedy answer."""
    return {"messages": list(messages), "temperature": 0, "max_tokens": MAX_TOKENS} | more


def send(port: int, body: Any, path: str = "/v1/chat/completions") -> http.client.HTTPConnection:
    """Sends a request, whose answer is left to be read (or not)."""
    connection = http.client.HTTPConnection("localhost", port, timeout=120)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json"})
    return connection


def read(connection: http.client.HTTPConnection) -> tuple[int, Body]:
    """Status and body of an answer."""
    response = connection.getresponse()
    content = json.loads(response.read())
    connection.close()
    return response.status, content


def said(port: int, body: Body) -> str:
    """The words of a whole answer."""
    status, content = read(send(port, body))
    assert status == 200, content
    return content["choices"][0]["message"]["content"]


def events(port: int, body: Body) -> list[Body]:
    """The events of a streamed answer."""
    connection = send(port, body | {"stream": True})
    received = connection.getresponse().read().decode().split("\n\n")
    connection.close()
    assert received[-2:] == ["data: [DONE]", ""], received
    return [json.loads(event.removeprefix("data: ")) for event in received[:-2]]


def streamed(port: int, body: Body) -> str:
    """The words of a streamed answer."""
    choices = [choice for event in events(port, body) for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def answer_alone(
    model: PreTrainedModel, processor: ProcessorMixin, words: str, *images: PIL.Image.Image, tokens: int = MAX_TOKENS
) -> str:
    """What the model says without any server."""
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": words}]
    output = generate(model, prompts(processor, [[{"role": "user", "content": content}]]), max_new_tokens=tokens)
    return processor.decode(output[0], skip_special_tokens=True)


def cases(model: PreTrainedModel, processor: ProcessorMixin, num_pictures: int) -> list[tuple[Body, str]]:
    """Requests with a picture, two and none, and the answers to them."""
    pictures = [scene(n) for n in range(num_pictures)]
    shown = [[], pictures[:2], *([picture] for picture in pictures)]
    return [
        (
            chat(user(words, *(data_url(png(image)) for image in images))),
            answer_alone(model, processor, words, *images),
        )
        for images in shown
        for words in QUESTIONS
    ]


def load(
    port: int, requests: list[tuple[Body, str]], num_clients: int, seconds: float, at_least: int = 1
) -> Counter[str]:
    """
    Lets clients ask at once.

    Args:
        port (`int`): Where the server listens.
        requests (`list[tuple[dict, str]]`): What they ask, and the answers to it.
        num_clients (`int`): How many they are.
        seconds (`float`): For how long.
        at_least (`int`, *optional*, defaults to 1): Requests of each client, however long they take.

    Returns:
        `Counter[str]`: How many answers came whole, as streams, to nobody, and how many were wrong.
    """
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng, asked = random.Random(number), 0
        while asked < at_least or time.monotonic() < end:
            body, expected = rng.choice(requests)
            kind = ("whole", "streamed", "left")[asked % 3]
            asked += 1
            counts[kind] += 1
            if kind == "left":
                leave(port, body | {"stream": rng.random() < 0.5}, patience=rng.choice([0.0, 0.05, 0.5]))
                continue
            try:
                answer = said(port, body) if kind == "whole" else streamed(port, body)
            except Exception as error:  # counts as a wrong answer
                answer = repr(error)
            if answer != expected:
                counts["wrong"] += 1
                print(f"{body['messages'][0]['content'][-1]} -> {answer!r} instead of {expected!r}", flush=True)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def leave(port: int, body: Body, patience: float) -> None:
    """Asks, waits for the first bytes of the answer, some seconds at the most, and is gone."""
    connection = send(port, body)
    connection.sock.settimeout(patience or None)
    if patience:
        try:
            connection.sock.recv(200)
        except TimeoutError:
            pass
    connection.close()


@contextmanager
def served(*arguments: str, log: Path, **options: Any) -> Iterator[tuple[int, subprocess.Popen]]:
    """`recipes/serve.py` with arguments, while it runs: its port and its process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [sys.executable, str(ROOT / "recipes/serve.py"), *arguments, "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | options.pop("env", {})
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, **options)
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                try:
                    socket.create_connection(("localhost", port), timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.3)
            yield port, process
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(30)


def memory(process: subprocess.Popen) -> float:
    """What a process has in memory, in MB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10, help="how long; default: 10")
    parser.add_argument("--clients", type=int, default=8, help="how many clients; default: 8")
    args = parser.parse_args()
    requests = cases(*load_checkpoint(str(TRAINED_MODEL)), num_pictures=12)
    log = Path("runs/serving-load.log")
    log.parent.mkdir(exist_ok=True)
    with served(str(TRAINED_MODEL), log=log) as (port, process):
        load(port, requests, args.clients, seconds=15)  # what is made on first use is there
        total: Counter[str] = Counter()
        print(f"in the beginning: {memory(process):.1f} MB", flush=True)
        for minute in range(args.minutes):
            total += load(port, requests, args.clients, seconds=60)
            print(f"after {minute + 1} min: {memory(process):.1f} MB, {dict(total)}", flush=True)


if __name__ == "__main__":
    main()
