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
"""What is wrong with a request is said in one sentence."""

import json
from typing import Any

import pytest

from recipes.serving.chat_request import parse
from recipes.serving.errors import RequestError


HELLO = {"role": "user", "content": "Hello."}
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def request(**fields: Any) -> bytes:
    return json.dumps({"messages": [HELLO]} | fields).encode()


def message(**fields: Any) -> bytes:
    return request(messages=[fields])


WRONG = {
    b"": None,
    b"{": None,
    b"[]": None,
    b"\xff\xfe\x00": None,
    b"[" * 100_000: None,
    b'{"a":' * 100_000: None,
    b'{"messages": NaN}': None,
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}': None,
    request(temperature="1e999").replace(b'"1e999"', b"1e999"): "temperature",
    request(temperature="NaN").replace(b'"NaN"', b"NaN"): None,
    b"{}": "messages",
    request(messages=[]): "messages",
    request(messages=HELLO): "messages",
    request(messages=[1]): "messages[0]",
    request(messages=[HELLO, None]): "messages[1]",
    message(): "messages[0]",
    message(role="user"): "messages[0].content",
    message(role="tool", content="1"): "messages[0]",
    message(role=["user"], content="1"): "messages[0]",
    message(role="user", content=[]): "messages[0].content",
    message(role="user", content=1): "messages[0].content",
    message(role="user", content={"type": "text", "text": ""}): "messages[0].content",
    message(role="user", content=["words"]): "messages[0].content[0]",
    message(role="user", content=[{"text": ""}]): "messages[0].content[0]",
    message(role="user", content=[{"type": "text"}]): "messages[0].content[0].text",
    message(role="user", content=[{"type": "text", "text": 1}]): "messages[0].content[0].text",
    message(role="user", content=[{"type": "input_audio", "input_audio": {}}]): "messages[0].content[0]",
    message(role="user", content=[{"type": "video_url", "video_url": {}}]): "messages[0].content[0]",
    message(role="user", content=[{"type": "image_url"}]): "messages[0].content[0].image_url",
    message(role="user", content=[{"type": "image_url", "image_url": {}}]): "messages[0].content[0].image_url.url",
    message(role="user", content=[{"type": "image", "image": "a"}]): "messages[0].content[0]",
    message(role="user", content="", extra=1): "messages[0].extra",
    message(role="assistant", content=[IMAGE]): "messages[0].content[0]",
    message(role="system", content=[IMAGE]): "messages[0].content[0]",
    message(role="assistant", content="", tool_calls=[{"id": "1"}]): "messages[0]",
    request(model=1): "model",
    request(max_tokens=0): "max_tokens",
    request(max_tokens=-1): "max_tokens",
    request(max_tokens=1.5): "max_tokens",
    request(max_tokens=True): "max_tokens",
    request(max_tokens="16"): "max_tokens",
    request(max_completion_tokens=0): "max_completion_tokens",
    request(temperature=-0.1): "temperature",
    request(temperature=2.1): "temperature",
    request(temperature="0"): "temperature",
    request(top_p=0): "top_p",
    request(top_p=1.1): "top_p",
    request(seed=2**63): "seed",
    request(seed=1.5): "seed",
    request(stop=1): "stop",
    request(stop=[1]): "stop[0]",
    request(stop=""): "stop[0]",
    request(stop=["a", "b", "c", "d", "e"]): "stop",
    request(stop=["a" * 1000]): "stop[0]",
    request(stream="yes"): "stream",
    request(stream=1): "stream",
    request(stream_options=[]): "stream_options",
    request(generation_config="{"): None,
    request(generation_config="[]"): "generation_config",
    request(generation_config='{"num_beams": 4}'): "generation_config.num_beams",
    request(generation_config='{"max_new_tokens": 0}'): "generation_config.max_new_tokens",
    request(n=2): None,
    request(n=True): None,
    request(logprobs=True): None,
    request(tools=[{"type": "function", "function": {"name": "f"}}]): None,
    request(response_format={"type": "json_object"}): None,
    request(frequency_penalty=0.5): None,
    request(logit_bias={"5": 100}): None,
    request(modalities=["text", "audio"]): None,
    request(generation_config='{"top_k":0 5}'): None,
    request(generation_config="{% for"): None,
    request(**{"{0}": 1}): "{0}",
    message(role="{}", content="1"): "messages[0]",
    request(chat_template_kwargs={"images": []}): "chat_template_kwargs",
    request(**{"a" * 10_000: 1}): "a" * 200,
}


@pytest.mark.parametrize("body", WRONG, ids=lambda body: body[:60].decode(errors="replace"))
def test_wrong_request_is_one_sentence(body: bytes):
    with pytest.raises(RequestError) as caught:
        parse(body)
    error = caught.value
    assert (error.status, error.param) == (400, WRONG[body])
    assert error.message.rstrip(".") and "\n" not in error.message and len(error.message) < 500
    assert "extract fields" not in error.message
    assert set(json.loads(error.body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("part", [b"[]", b"{}", b"1", b'{"role": "user", "content": 1}', b'"a"'])
@pytest.mark.parametrize("is_inner", [False, True])
def test_only_the_first_of_many_faults_is_looked_at(part: bytes, is_inner: bool):
    """Each would be told of, in some KB."""
    wrong = b",".join([part] * 20_000)
    wrong = b'[{"role": "user", "content": [' + wrong + b"]}]" if is_inner else b"[" + wrong + b"]"
    with pytest.raises(RequestError) as caught:
        parse(b'{"messages": ' + wrong + b"}")
    assert caught.value.__cause__.error_count() == 1


def test_parts_are_counted_before_they_are_made():
    with pytest.raises(RequestError, match="commas"):
        parse(b'{"messages": [' + b"[]," * 100_001 + b"1]}")


def test_fields_that_change_nothing_are_taken():
    harmless = {"n": 1, "user": "me", "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "tools": []}
    harmless |= {"response_format": {"type": "text"}, "logprobs": False, "store": True, "stop": None, "stream": None}
    taken = parse(request(**harmless))
    assert taken == parse(request())
    answered = {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": None, "annotations": []}
    conversation = parse(request(messages=[HELLO, answered, HELLO])).conversation([])
    assert [message["role"] for message in conversation] == ["user", "assistant", "user"]
    assert conversation[1]["content"] == [{"type": "text", "text": "Yes."}]


def test_pictures_are_in_the_order_of_their_addresses():
    def image(url: str) -> dict[str, Any]:
        return IMAGE | {"image_url": {"url": url, "detail": "low"}}

    first = {"role": "user", "content": [image("a"), {"type": "text", "text": "and"}, image("b")]}
    second = {"role": "user", "content": [IMAGE | {"image_url": "c"}]}
    taken = parse(request(messages=[{"role": "developer", "content": "Be brief."}, first, second]))
    assert taken.urls == {
        "messages[1].content[0].image_url": "a",
        "messages[1].content[2].image_url": "b",
        "messages[2].content[0].image_url": "c",
    }
    contents = [message["content"] for message in taken.conversation(["A", "B", "C"])]
    assert contents[1] == [
        {"type": "image", "image": "A"},
        {"type": "text", "text": "and"},
        {"type": "image", "image": "B"},
    ]
    assert contents[2] == [{"type": "image", "image": "C"}]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"temperature": 0}, {"do_sample": False, "temperature": 1.0}),
        ({"temperature": 1e-300}, {"do_sample": False, "temperature": 1.0}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        (
            {"generation_config": '{"do_sample": true, "top_k": 3, "transformers_version": "5"}'},
            {"do_sample": True, "top_k": 3},
        ),
        (
            {"temperature": 0, "generation_config": '{"do_sample": true, "temperature": 0.5}'},
            {"do_sample": False, "temperature": 1.0},
        ),
    ],
)
def test_options_of_generate(fields: dict[str, Any], expected: dict[str, Any]):
    assert parse(request(**fields)).generation_options() == expected


def test_limit_of_tokens_has_three_names():
    config = '{"max_new_tokens": 3}'
    assert parse(request()).max_new_tokens is None
    assert parse(request(generation_config=config)).max_new_tokens == 3
    assert parse(request(generation_config=config, max_tokens=2)).max_new_tokens == 2
    assert parse(request(generation_config=config, max_tokens=2, max_completion_tokens=1)).max_new_tokens == 1
