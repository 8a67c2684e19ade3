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
"""Requests to the server, in this process: an answer, or a 4xx with OpenAI's error body."""

import asyncio
import base64
import json
import random
from functools import cache
from typing import Any

from starlette.applications import Starlette

from fuzz import pictures
from fuzz.mutation import json_bytes, mutated_bytes, mutated_json
from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes import TRAINED_MODEL
from recipes.serving.app import build_app
from recipes.serving.limits import Limits


CHAT, LOAD = "/v1/chat/completions", "/load_model"
PICTURE = "\x00picture"  # where a picture goes, damaged or not


@cache
def app() -> Starlette:
    model, processor = load_checkpoint(str(TRAINED_MODEL))
    return build_app(
        "model", model, processor, Limits(tokens=3, images=3, image_pixels=2_000_000, request_bytes=3_000_000)
    )


@cache
def seeds() -> list[bytes]:
    """The path, a line break, the body."""
    image = {"type": "image_url", "image_url": {"url": PICTURE, "detail": "auto"}}
    words = {"type": "text", "text": "Is there a car in the image?"}
    asked, said = {"role": "user", "content": [image, words]}, {"role": "assistant", "content": "Yes."}
    bodies = [
        {"messages": [asked], "max_tokens": 1, "temperature": 0},
        {"model": "model", "messages": [{"role": "system", "content": "Be brief."}, asked, said, asked], "max_tokens": 2},
        {"messages": [{"role": "user", "content": "Hello."}], "stream": True, "stream_options": {"include_usage": True}},
        {"messages": [asked], "stop": ["a", "\n"], "seed": 3, "temperature": 1.0, "top_p": 0.9, "max_completion_tokens": 3},
        {"messages": [{"role": "user", "content": [words]}], "n": 1, "user": "me", "tools": [], "response_format": {"type": "text"},
         "logprobs": False, "presence_penalty": 0, "metadata": {"a": "b"}, "max_tokens": 1},
        {"messages": [asked], "stream": True, "max_tokens": 3,
         "generation_config": json.dumps({"do_sample": True, "top_k": 5, "max_new_tokens": 2, "repetition_penalty": 1.1})},
    ]  # fmt: skip
    made = [f"{CHAT}\n{json.dumps(body)}" for body in bodies] + [f"{LOAD}\n" + json.dumps({"model": "model"})]
    return [with_pictures(text, pictures.seeds()[-1]) for text in made]


def with_pictures(text: str, file: bytes) -> bytes:
    url = "data:image/png;base64," + base64.b64encode(file).decode()
    return text.encode(errors="surrogatepass").replace(json.dumps(PICTURE)[1:-1].encode(), url.encode())


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    path, _, body = rng.choice(seeds).partition(b"\n")
    kind = rng.random()
    if kind < 0.15:
        return path + b"\n" + mutated_bytes(body, rng, seeds)
    if kind < 0.35:
        file = pictures.mutated(rng, pictures.seeds())
        fields = json.loads(body)
        for message in fields.get("messages", []):
            for part in message["content"] if isinstance(message["content"], list) else []:
                if part["type"] == "image_url":
                    part["image_url"]["url"] = "data:image/png;base64," + base64.b64encode(file).decode()
        return path + b"\n" + json.dumps(fields).encode()
    return path + b"\n" + json_bytes(mutated_json(json.loads(body), rng), rng)


async def post(path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of an answer."""
    requests, sent = [{"type": "http.request", "body": body, "more_body": False}], []
    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "headers": headers,
    }
    scope |= {
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "server": ("localhost", 80),
    }

    async def receive() -> dict[str, Any]:
        return requests.pop() if requests else await asyncio.Future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app()(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def run(data: bytes) -> str:
    path, _, body = data.partition(b"\n")
    status, content = asyncio.run(post(path.decode(), body))
    assert status == 200 or 400 <= status < 500, f"{status}: {content[:300]}"
    if status != 200:
        error = json.loads(content)["error"]
        assert error["type"] == "invalid_request_error" and error.keys() == {"message", "type", "param", "code"}
        assert error["message"].endswith((".", "...")), error["message"]
        return f"{status} {error['message']}"
    if content.startswith(b"data: "):
        events = [json.loads(event[6:]) for event in content.split(b"\n\n") if event not in (b"data: [DONE]", b"")]
        assert not any("error" in event for event in events)
        return "200 events"
    answer = json.loads(content)
    assert isinstance(answer["choices"][0]["message"]["content"], str)
    return "200 answer"
