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
"""Rows as people have them, and the data sets that hold them."""

import copy
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Image, IterableDataset, List, Value


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# Any of these columns makes the messages of a row, and any of those its pictures.
CHATS = (("messages",), ("conversations",), ("prompt", "completion"))
PICTURES = ("images", "image")
COLUMNS = (*PICTURES, *(name for names in CHATS for name in names), "regions", "id", "tools")
# Tokens of an LLM's vocabulary that no text has trained, best first: one of them stands for a picture.
PLACEHOLDERS = ("<|image|>", "<|reserved_special_token_0|>")
SHAPES = (
    '{"images": [picture, ...], "messages": [{"role": ..., "content": ...}, ...]}, or with "prompt" and "completion", or '
    '"conversations" of {"from": ..., "value": ...}, in the place of "messages"; it may have "regions"'
)
# The columns of a region. Its mask is null where its words mean nothing in the picture.
REGION = {
    "mask": {"size": List(Value("int32")), "counts": Value("string")},
    "image": Value("int32"),
    "text": Value("string"),
    "span": List(Value("int32")),
    "message": Value("int32"),
}


def as_row(row: dict[str, Any]) -> dict[str, Any]:
    """
    A row with `images` and `messages`, whichever way it is written: with a chat (`messages`), as ShareGPT's
    (`conversations` of `{"from": ..., "value": ...}`) or as `prompt` and `completion`, each words or messages; pictures in
    `images`, `image`, or in the parts of the messages that stand for them. What is wrong with it is left for whoever reads
    it. Everything else stays.
    """
    names = next((names for names in CHATS if any(row.get(name) is not None for name in names)), CHATS[0])
    if names == ("prompt", "completion"):
        messages = [*as_turns(row.get("prompt"), "user"), *as_turns(row.get("completion"), "assistant")]
    else:
        messages = row.get(names[0])
    if isinstance(messages, (list, tuple)):
        messages = [as_message(message) for message in messages]
    images = row.get("images")
    if images is None:
        images = row.get("image")
        images = images if isinstance(images, (list, tuple)) else [] if images is None else [images]
    return {**row, "messages": messages, "images": images or pictures_of(messages)}


def as_turns(value: Any, role: str) -> Sequence[Any]:
    """A prompt or a completion, which is words or messages, as messages."""
    if value is None or isinstance(value, (list, tuple)):
        return value or []
    return [{"role": role, "content": value}]


def as_message(message: Any) -> Any:
    """A message of ShareGPT's kind as one of ours; any other stays as it is."""
    speaker = message.get("from") if isinstance(message, dict) and "role" not in message else None
    if not isinstance(speaker, str) or "value" not in message:
        return message
    return {"role": ROLES.get(speaker, speaker), "content": message["value"]}


def pictures_of(messages: Any) -> list[Any]:
    """The pictures that the parts of the messages hold themselves: `{"type": "image", "image": picture}`."""
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    return [
        part["image"]
        for part in parts
        if isinstance(part, dict) and part.get("type") == "image" and part.get("image") is not None
    ]


def num_characters(row: dict[str, Any]) -> int:
    """Of the words of a row: about how long it is."""
    messages = as_row(row)["messages"]
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents for part in (content if isinstance(content, (list, tuple)) else [content])]
    return sum(len(str(part.get("text") or "") if isinstance(part, dict) else str(part)) for part in parts)


def with_lengths(dataset: Dataset, column: str) -> Dataset:
    """
    A data set with its lengths in a column, which is that of before or made of the rows' characters. Of what is made, the
    pictures are left out: it tells how long rows are, no more.
    """
    if column in dataset.column_names:
        return dataset
    chats = dataset.select_columns([name for names in CHATS for name in names if name in dataset.column_names])
    return chats.add_column(column, [num_characters(row) for row in chats])


def has_transform(dataset: Dataset | IterableDataset) -> bool:
    """Whether rows are what a function makes of the columns (`with_transform`), so that the columns say nothing of them."""
    return isinstance(dataset, Dataset) and dataset.format["type"] == "custom"


def check_columns(dataset: Dataset | IterableDataset) -> None:
    """Raises `ValueError` if the columns are none of rows to train on, `TypeError` for what is no data set."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        splits = f", such as its split {next(iter(dataset))!r}" if isinstance(dataset, dict) and dataset else ""
        raise TypeError(
            f"Rows come as a `Dataset` or an `IterableDataset` of `datasets`{splits}, not as a {type(dataset).__name__}."
        )
    if dataset.features is None or has_transform(dataset):
        return
    columns = set(dataset.features)
    if not any(columns.issuperset(names) for names in CHATS):
        raise ValueError(
            f"The data set has the columns {sorted(columns)}, but none of a chat, such as 'messages'. A row is {SHAPES}."
        )


def check_regions(rows: Dataset | IterableDataset, guidance_weight: float, attention_sink: bool) -> None:
    """Raises `ValueError` if guidance would train on rows without a single region that this model can look at."""
    if guidance_weight == 0 or rows.features is None or has_transform(rows):
        return
    num_regions = num_masks = 0
    if "regions" in rows.features:
        if not isinstance(rows, Dataset):
            return
        for chunk in rows.data.column("regions").chunks:
            regions = chunk.flatten() if pa.types.is_nested(chunk.type) else chunk
            if pa.types.is_struct(regions.type):  # where no row has any, their type is null
                num_regions += len(regions)
                has_field = "mask" in regions.type.names  # otherwise the collator says what is missing
                num_masks += len(regions) - (regions.field("mask").null_count if has_field else 0)
    unguided = "train without guidance (`guidance_weight=0`, or a variant that is never guided)"
    if num_regions == 0:
        raise ValueError(
            f"The guidance loss is added, but no row of the data set has a region. Make masks first, or {unguided}."
        )
    if num_masks == 0 and not attention_sink:
        raise ValueError(
            "The guidance loss is added, but every region of the data set is nowhere in its picture (its `mask` is null), where "
            "only the words of a model with an attention sink can look. Make masks, build the model with an `attention_sink`, or "
            f"{unguided}."
        )


def undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """
    The data set with its pictures left as bytes. The collator reads them, and so can name the row of one that is broken. A
    transform gets what it was written for.
    """
    if dataset.features is None or has_transform(dataset):
        return dataset
    features = Features({name: left(feature) for name, feature in dataset.features.items()})
    if features == dataset.features:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.cast(features)
    # What is stored stays as it is. `cast` would write all of it anew (datasets 5.2).
    dataset = copy.copy(dataset)
    dataset._info = copy.copy(dataset._info)
    dataset._info.features = features
    return dataset


def left(feature: Any) -> Any:
    """A column's type, its pictures left undecoded."""
    if isinstance(feature, Image):
        return Image(mode=feature.mode, decode=False)
    if isinstance(feature, List):
        return List(left(feature.feature), length=feature.length)
    if isinstance(feature, dict):
        return {name: left(part) for name, part in feature.items()}
    return feature
