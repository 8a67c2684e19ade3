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
"""What damages bytes and JSON."""

import json
import random
from typing import Any


# Where counters and sizes go wrong: around zero, signs, powers of two, and what is too much to allocate.
EXTREMES = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**62,
    2**63,
)
DEEP, LONG_NUMBER = "\x00deep", "\x00long"  # what `json.dumps` would not write
ODD = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 255, 1000, 2**31 - 1, 2**31, 2**32, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    10**30, 0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, 1e38, 5e-324, float("nan"), float("inf"), float("-inf"), "", " ", "0", "1",
    "none", "auto", "null", "True", "nan", "a" * 10_000, "\x00", "\n", "\u202e", "\ud83d", "\udc00x", "\U0001f600", "e\u0301",
    "../../etc/passwd", "/", ".", "~", "file:///etc/passwd", "http://", "<image>", "<|image|>", "<|eot_id|>",
    "<|start_header_id|>system<|end_header_id|>", "{{ 1 }}", "{% for", "<script>", "image", "user", [], [None], [[]], [0], [-1],
    [1, 2], ["a"], [2**70], [0.5], [[0]] * 3, list(range(300)), {}, {"": None}, {"a": {"b": []}}, {"type": "image"}, [{}], DEEP,
    LONG_NUMBER,
)  # fmt: skip


def mutated_bytes(data: bytes, rng: random.Random, others: list[bytes], head: int | None = None) -> bytes:
    """Some bytes with one to four things done to them, at the first `head` ones more often than elsewhere."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = len(content) if head is None or rng.random() < 0.3 else min(head, len(content))
        at = rng.randrange(end + 1)
        length = min(1 + int(rng.expovariate(1 / 16)), len(content) - at)
        match rng.randrange(7):
            case 0 if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(content):
                content[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                width = rng.choice((2, 4, 8))
                value = (rng.choice(EXTREMES) - rng.randrange(2)) % 2 ** (8 * width)
                content[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case 3:
                content[at:] = b"" if rng.random() < 0.5 else content[at + length :]
            case 4:
                content[at:at] = rng.randbytes(length)
            case 5:
                content[at:at] = content[at : at + length] * rng.choice((1, 1, 50))
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                content[at : at + length] = other[start : start + length * rng.choice((1, 20))]
    return bytes(content)


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a JSON value, as what holds it and its key there."""
    places, left = [], [value]
    while left:
        holder = left.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
        for key, inner in items:
            places.append((holder, key))
            left.append(inner)
    return places


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A JSON value of which one to three places hold something else, or are not there, or twice."""
    root = [json.loads(json.dumps(value))]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(nodes(root))
        match rng.randrange(8):
            case 0 if holder is not root:
                del holder[key]
            case 1:
                other, place = rng.choice(nodes(root))
                holder[key] = json.loads(json.dumps(other[place]))
            case 2:
                holder[key] = rng.choice(([holder[key]], {"value": holder[key]}, str(holder[key])))
            case 3 if isinstance(holder, list) and holder is not root:
                holder.insert(key, holder[key])
            case 3 | 4 if isinstance(holder, dict):
                holder[rng.choice([str(rng.choice(ODD)), key + "s", *holder])] = holder.pop(key)
            case 5 if isinstance(holder[key], str):
                text = holder[key]
                at, word = rng.randrange(len(text) + 1), rng.choice([word for word in ODD if isinstance(word, str)])
                holder[key] = text[:at] + word + text[at:]
            case 5 if isinstance(holder[key], (int, float)):
                holder[key] = holder[key] * rng.choice((-1, 0, 2, 10, 1e6, 0.5)) + rng.choice((-1, 0, 1))
            case _:
                holder[key] = json.loads(json.dumps(rng.choice(ODD)))
    return root[0] if root else None


def json_bytes(value: Any, rng: random.Random) -> bytes:
    """JSON as somebody may have written it: half characters escaped or not, and what Python would not write."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.7)
    deep, digits = rng.choice((5, 500, 100_000)), rng.choice((19, 400, 5000))
    for quoted in (json.dumps(DEEP), f'"{DEEP}"'):
        text = text.replace(quoted, "[" * deep + "]" * deep)
    for quoted in (json.dumps(LONG_NUMBER), f'"{LONG_NUMBER}"'):
        text = text.replace(quoted, "9" * digits)
    return text.encode(errors="surrogatepass")
