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
"""From the body of a chat request to what the model is asked, or to what is wrong with it."""

import itertools
from typing import Annotated, Any, Literal

import pydantic_core
from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from recipes.serving.errors import RequestError


# What the answer does not depend on.
IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "reasoning_effort", "verbosity",
)  # fmt: skip
# What this server cannot do, and the values that do not ask for it.
UNSUPPORTED = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
MAX_STOPS = 4
MAX_STOP_LENGTH = 256  # characters
MIN_TEMPERATURE = 0.01
# Of a body. Parts of objects and lists have one between them, base64 has none, and words that a model has room for fewer.
# Each part takes far more memory than its bytes.
MAX_COMMAS = 100_000
# Of pydantic's sentences those that speak of Python.
SENTENCES = {
    "missing": "it is missing",
    "extra_forbidden": "this server knows no such field",
    "dict_type": "it has to be an object",
    "model_type": "it has to be an object",
    "model_attributes_type": "it has to be an object",
    "union_tag_not_found": "{discriminator} is missing",
    "union_tag_invalid": "{discriminator} is {tag!r}, and this server knows {expected_tags}",
}

Temperature = Annotated[float, Ge(0), Le(2)]
Share = Annotated[float, Gt(0), Le(1)]
Count = Annotated[int, Gt(0)]


def without_empty(fields: Any, ignored: tuple[str, ...] = (), unsupported: dict[str, tuple] | None = None) -> Any:
    """The fields that say something. Raises a `ValueError` for those that ask for what is not there."""
    if not isinstance(fields, dict):
        return fields
    kept = {name: value for name, value in fields.items() if value is not None and name not in ignored}
    unsupported = unsupported or {}
    for name in sorted(kept.keys() & unsupported.keys()):
        neutral = unsupported[name]
        if not any(type(kept[name]) is type(value) and kept[name] == value for value in neutral):
            raise ValueError(f"`{name}` is not supported by this server. Leave it out.")
    return {name: value for name, value in kept.items() if name not in unsupported}


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Text(Part):
    type: Literal["text"]
    text: str


class ImageUrl(Part):
    url: str
    detail: str | None = None


class Image(Part):
    type: Literal["image_url"]
    image_url: ImageUrl
    look_at: list[Annotated[float, Ge(0)]] | None = None
    """Of this server alone: a point or a box of the picture, in its pixels, that the model is told to look at."""

    @model_validator(mode="before")
    @classmethod
    def _plain_url(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(fields.get("image_url"), str):
            return fields | {"image_url": {"url": fields["image_url"]}}
        return fields


class Message(Part):
    """Of those who show no pictures."""

    role: Literal["system", "developer", "assistant"]
    content: Annotated[list[Text], MinLen(1), FailFast()]

    @model_validator(mode="before")
    @classmethod
    def _plain_text(cls, fields: Any) -> Any:
        """Words alone are one part. What clients send back of an answer (`refusal`, ...) is empty."""
        more = dict.fromkeys(("tool_calls", "function_call", "audio", "refusal", "reasoning_content"), ([], ""))
        fields = without_empty(fields, ("name", "annotations"), more)
        if isinstance(fields, dict) and isinstance(fields.get("content"), str):
            return fields | {"content": [{"type": "text", "text": fields["content"]}]}
        return fields


class UserMessage(Message):
    role: Literal["user"]
    content: Annotated[list[Annotated[Text | Image, Field(discriminator="type")]], MinLen(1), FailFast()]


class StreamOptions(Part):
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationOptions(Part):
    """What `transformers chat` sends in `generation_config`, as far as one answer at a time can have it."""

    do_sample: bool | None = None
    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Ge(0)] | None = None
    min_p: Annotated[float, Ge(0), Le(1)] | None = None
    repetition_penalty: Annotated[float, Ge(0.1), Le(10)] | None = None
    no_repeat_ngram_size: Annotated[int, Ge(0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        return without_empty(fields, ("transformers_version",))


class ChatRequest(Part):
    """
    The body of `POST /v1/chat/completions`.

    Fields that are null count as left out.
    """

    model: str | None = None
    messages: Annotated[list[Annotated[Message | UserMessage, Field(discriminator="role")]], MinLen(1), FailFast()]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: Annotated[int, Ge(-(2**63)), Le(2**63 - 1)] | None = None
    stop: Annotated[list[Annotated[str, MinLen(1), MaxLen(MAX_STOP_LENGTH)]], MaxLen(MAX_STOPS)] = []
    grounding: bool = False
    """Of this server alone: whether the answer comes with where its phrases look."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    generation_config: GenerationOptions = GenerationOptions()

    @model_validator(mode="before")
    @classmethod
    def _given(cls, fields: Any) -> Any:
        fields = without_empty(fields, IGNORED, UNSUPPORTED)
        if isinstance(fields, dict):
            if isinstance(fields.get("stop"), str):
                fields["stop"] = [fields["stop"]]
            if isinstance(fields.get("generation_config"), str):
                fields["generation_config"] = pydantic_core.from_json(fields["generation_config"], allow_inf_nan=False)
        return fields

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens or self.generation_config.max_new_tokens

    @property
    def images(self) -> dict[str, Image]:
        """The pictures, by the field that says so, in their order."""
        return {
            f"messages[{m}].content[{n}]": part
            for m, message in enumerate(self.messages)
            for n, part in enumerate(message.content)
            if isinstance(part, Image)
        }

    @property
    def urls(self) -> dict[str, str]:
        """Where the pictures are, by the field that says so, in their order."""
        return {f"{field}.image_url": part.image_url.url for field, part in self.images.items()}

    def generation_options(self) -> dict[str, Any]:
        """
        The options of `generate` that differ from the checkpoint's.

        A temperature asks for sampling, but for those near 0: what divides the scores by them, overflows.
        """
        options = self.generation_config.model_dump(exclude_none=True, exclude={"max_new_tokens"})
        options |= {"top_p": self.top_p} if self.top_p is not None else {}
        if self.temperature is not None:
            options |= {"temperature": self.temperature, "do_sample": True}
        if options.get("temperature", 1.0) < MIN_TEMPERATURE:
            options |= {"temperature": 1.0, "do_sample": False}
        return options

    def conversation(self, images: list[Any]) -> list[dict[str, Any]]:
        """The messages as `apply_chat_template` takes them, with `images` in the order of `urls`."""
        left = iter(images)
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": [
                    {"type": "image", "image": next(left)} if isinstance(part, Image) else part.model_dump()
                    for part in message.content
                ],
            }
            for message in self.messages
        ]


def parse(body: bytes) -> ChatRequest:
    """Raises a [`RequestError`] that says what is wrong with the first thing that is."""
    if body.count(b",") > MAX_COMMAS:
        raise RequestError(f"The body of the request has more than {MAX_COMMAS:,} commas, and so too many parts.")
    try:
        fields = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The body of the request is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise RequestError("The body of the request is not a JSON object. Send one with `messages`.")
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ""
        for before, name in itertools.pairwise((None, *first["loc"])):
            if isinstance(name, int):
                path += f"[{name}]"
            elif not isinstance(before, int):  # after a number it is which kind of message or part it was taken for
                path += f".{name}"
        path = path.lstrip(".")[:200]
        sentence = SENTENCES.get(first["type"])
        # What others say can hold what the client wrote, braces too.
        said = (
            first["msg"].removeprefix("Value error, ")
            if sentence is None
            else sentence.format_map(first.get("ctx", {}))
        )
        message = said.rstrip(".")
        message = f"`{path}`: {message}." if path else f"{message}."
        raise RequestError(message if len(message) < 400 else f"{message[:400]}...", path or None) from error
