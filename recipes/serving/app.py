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
"""The endpoints: `/v1/chat/completions`, `/v1/models`, `/health`, and `/load_model` for `transformers chat`."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from transformers import PreTrainedModel, ProcessorMixin

from recipes.serving.chat_request import ChatRequest, parse
from recipes.serving.errors import RequestError
from recipes.serving.generation import Ending, Generator, Job
from recipes.serving.limits import Limits
from recipes.serving.pictures import PictureSources
from recipes.serving.prompts import PromptMaker


logger = logging.getLogger(__name__)

SEND_SECONDS = 60.0  # in which a client has to take what was sent before

FAILED = RequestError("The server failed. Its log says why.", status=500)


class ChatCompletions:
    """
    `POST /v1/chat/completions`, an ASGI application.

    A request goes through three hands: the event loop reads it and fetches its pictures, one thread makes the model's inputs,
    another one generates. When its client leaves, it ends where it is.

    Args:
        name (`str`): What the model is called.
        model (`PreTrainedModel`): The model, where it shall run.
        processor (`ProcessorMixin`): Its processor.
        limits (`Limits`): What a request may ask.
    """

    def __init__(self, name: str, model: PreTrainedModel, processor: ProcessorMixin, limits: Limits) -> None:
        self.name, self.limits = name, limits
        self.sources = PictureSources(limits)
        self.prompts = PromptMaker(model, processor, limits)
        self.generator = Generator(model, processor)
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prompts")
        self._in_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._in_work >= self.limits.requests:
            busy = RequestError("The server has too many requests in work. Repeat this one later.", status=429)
            return await Answer(send).fail(busy)
        self._in_work += 1
        answer = Answer(send)
        try:
            body = await read_body(Request(scope, receive), self.limits.request_bytes, self.limits.request_seconds)
            await while_there_is_a_client(receive, self._answer(body, answer))
        except ClientDisconnect:
            pass
        except RequestError as error:
            await answer.fail(error)
        except Exception:
            logger.exception("a request failed")
            await answer.fail(FAILED)
        finally:
            self._in_work -= 1

    async def _answer(self, body: bytearray, answer: "Answer") -> None:
        in_thread = asyncio.get_running_loop().run_in_executor
        request = await in_thread(self._threads, parse, body)
        body.clear()
        check_name(request.model, self.name)
        if len(request.urls) > self.limits.images:
            raise RequestError(
                f"The request has {len(request.urls)} pictures, and this server takes {self.limits.images}.",
                "messages",
            )
        files = []
        for field, url in request.urls.items():
            try:
                files.append(await self.sources.read(url))
            except RequestError as error:
                raise RequestError(error.message, field, error.code, error.status) from error
        inputs, options, sizes = await in_thread(self._threads, self.prompts.make, request, files)
        del files
        sizes = sizes if request.grounding else None
        job = self.generator.submit(inputs, options, request.stop, request.seed, sizes)
        try:
            await (self._stream if request.stream else self._whole)(request, job, answer)
        finally:
            job.cancel()

    async def _whole(self, request: ChatRequest, job: Job, answer: "Answer") -> None:
        async for news in job.news():
            ending = news
        message = {"role": "assistant", "content": job.text.text}
        if request.grounding:
            message["grounding"] = job.grounding
        choice = {"index": 0, "message": message, "finish_reason": ending.reason, "logprobs": None}
        await answer.whole(self._head("chat.completion") | {"choices": [choice], "usage": usage(job, ending)})

    async def _stream(self, request: ChatRequest, job: Job, answer: "Answer") -> None:
        head = self._head("chat.completion.chunk")
        delta = {"role": "assistant", "content": ""}
        async for news in job.news():
            reason = news.reason if isinstance(news, Ending) else None
            if reason is None:
                delta["content"] = news
            elif request.grounding:
                delta["grounding"] = job.grounding
            await answer.event(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
            delta = {}
        if request.stream_options.include_usage:
            await answer.event(head | {"choices": [], "usage": usage(job, news)})
        await answer.end()

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": self.name}


class Answer:
    """
    What goes to the client: a whole answer, or events one after the other. A client that takes nothing for
    `SEND_SECONDS` has left (`ClientDisconnect`).
    """

    def __init__(self, send: Send) -> None:
        self._to_client, self._is_started = send, False

    async def _send(self, message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self._to_client(message)
        except TimeoutError as error:
            raise ClientDisconnect from error

    async def whole(self, content: dict[str, Any] | bytes, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self._start(status, b"application/json", [(b"content-length", str(len(body)).encode())])
        await self._send({"type": "http.response.body", "body": body})

    async def event(self, content: dict[str, Any] | bytes) -> None:
        """A server-sent event."""
        if not self._is_started:
            await self._start(200, b"text/event-stream", [(b"cache-control", b"no-cache")])
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self._send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})

    async def end(self) -> None:
        await self.event(b"[DONE]")
        await self._send({"type": "http.response.body"})

    async def fail(self, error: RequestError) -> None:
        """An error, as the status where nothing was sent yet and as the last event otherwise."""
        with suppress(ClientDisconnect):
            if not self._is_started:
                return await self.whole(error.body, error.status)
            await self.event(error.body)
            await self._send({"type": "http.response.body"})

    async def _start(self, status: int, kind: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self._is_started = True
        headers = [(b"content-type", kind), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytearray:
    """
    The JSON body of a request.

    Raises:
        RequestError: If it is none, is not there in `seconds`, or has more than `max_bytes`, of which no more are kept.
        ClientDisconnect: If its client leaves.
    """
    # Pages of a browser can send other types to localhost without asking.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("The request's Content-Type is not application/json.", status=415)
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():  # to its end, for many clients do not listen before
                size += len(piece)
                if size <= max_bytes:
                    body += piece
                else:
                    body.clear()
    except TimeoutError as error:
        raise RequestError(f"The request's body was not there within {seconds:g} s.", status=408) from error
    if size > max_bytes:
        raise RequestError(f"The request's body has {size:,} bytes, and this server takes {max_bytes:,}.", status=413)
    return body


async def while_there_is_a_client(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Does some work, or breaks it off with a `ClientDisconnect` when the client leaves."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(until_gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.wait({working, leaving})


def check_name(asked: str | None, name: str) -> None:
    """Raises a [`RequestError`] for another model than the one that is served."""
    if asked not in (None, name):
        raise RequestError(
            f"There is no model {asked[:200]!r}, only {name!r}.", "model", "model_not_found", status=404
        )


def usage(job: Job, ending: Ending) -> dict[str, int]:
    return {
        "prompt_tokens": job.prompt_length,
        "completion_tokens": ending.num_tokens,
        "total_tokens": job.prompt_length + ending.num_tokens,
    }


def build_app(name: str, model: PreTrainedModel, processor: ProcessorMixin, limits: Limits) -> Starlette:
    """
    The server of one model.

    Args:
        name (`str`): What clients call it.
        model (`PreTrainedModel`): The model, where it shall run.
        processor (`ProcessorMixin`): Its processor.
        limits (`Limits`): What a request may ask.

    Raises:
        OSError: If the folder for pictures is not there.
    """
    card = {"id": name, "object": "model", "created": 0, "owned_by": "age-vlm"}

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        check_name(request.path_params["name"], name)
        return JSONResponse(card)

    async def load_model(request: Request) -> Response:
        """What `transformers chat` asks first: the model is there."""
        try:
            asked = json.loads(await read_body(request, max_bytes=10_000, seconds=limits.request_seconds))["model"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RequestError("The body of the request is not a JSON object with a `model`.") from error
        check_name(str(asked), name)
        ready = json.dumps({"status": "ready", "model": name, "cached": True})
        return Response(f"data: {ready}\n\n", media_type="text/event-stream")

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def refused(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = RequestError(
                f"This server has no {request.method} {request.url.path[:200]}.", status=error.status_code
            )
        return Response(error.body, error.status, media_type="application/json")

    return Starlette(
        routes=[
            Route("/v1/chat/completions", ChatCompletions(name, model, processor, limits), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/load_model", load_model, methods=["POST"]),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: refused, RequestError: refused, ClientDisconnect: left},
    )
