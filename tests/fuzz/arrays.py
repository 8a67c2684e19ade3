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
"""Arrays and tensors of all types, shapes and values through the one reader of pictures."""

import json
import random
import warnings

import numpy as np
import PIL.Image
import torch

from modeling_agevlm.image_reading_agevlm import read_image


NUMPY = (
    "bool",
    "u1",
    "i1",
    "u2",
    "i2",
    "u4",
    "i4",
    "u8",
    "i8",
    "f2",
    "f4",
    "f8",
    "g",
    "c8",
    "c16",
    ">u2",
    ">f4",
    "U3",
    "S2",
    "O",
    "M8[s]",
)
TORCH = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64",
         "float8_e4m3fn", "uint16", "uint32", "uint64")  # fmt: skip
VALUES = (0, 1, -1, 0.5, 127, 128, 254.5, 255, 255.5, 256, 4095, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**63, 1e-40, 6e4, 1e38,
          1e308, float("nan"), float("inf"), float("-inf"))  # fmt: skip
SIDES = (0, 1, 2, 3, 4, 5, 7, 16, 24)
LAYOUTS = (None, None, None, "channels_last", "channels_first", "none", "channels")


def seeds() -> list[bytes]:
    return [
        json.dumps({"library": "numpy", "type": "u1", "shape": [4, 4, 3], "range": [0, 255], "layout": None}).encode()
    ]


def mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    library = rng.choice(("numpy", "torch"))
    made = {
        "library": library,
        "type": rng.choice(NUMPY if library == "numpy" else TORCH),
        "shape": rng.choices(SIDES, k=rng.choice((0, 1, 2, 2, 3, 3, 3, 4))),
        "range": rng.choices(VALUES, k=2),
        "layout": rng.choice(LAYOUTS),
    }
    return json.dumps(made).encode()


def run(data: bytes) -> str:
    made = json.loads(data)
    low, high = made["range"]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of values that the type does not have
        values = np.resize(np.array([low, high, (low + high) / 2, low]), made["shape"])
        if made["library"] == "torch":
            array = torch.from_numpy(values).to(getattr(torch, made["type"]))
        else:
            array = (
                values.astype("i8").astype(made["type"]) if made["type"] == "M8[s]" else values.astype(made["type"])
            )
        image = read_image(array, made["layout"])
    assert image.mode == "RGB" and sorted(image.size)[0] > 0
    assert set(image.size) <= set(made["shape"]) and 2 <= len(made["shape"]) <= 3
    assert isinstance(image, PIL.Image.Image)
    return f"image of {made['library']}"
