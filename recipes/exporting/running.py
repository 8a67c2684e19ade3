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
"""Runs the graphs of a folder with onnxruntime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from modeling_agevlm.modeling_agevlm import NEVER
from recipes.exporting.graphs import INT8, TEXT, VISION, read_description, tensor_names


class OnnxModel:
    """
    The graphs of a folder that `recipes/export_onnx.py` wrote: keys and values of pictures are lists of arrays
    `(batch_size, num_key_value_heads, num_image_tokens, head_dim)`, two for each cross-attention layer, and those of the text two
    for each of the LLM's own.

    Args:
        folder (`Path`): The folder.
        description (`dict`, *optional*): What `export.json` says; read from the folder by default.
        int8 (`bool`, *optional*, defaults to `False`): Whether to run the graphs in int8.
        threads (`int`, *optional*): How many threads run one; onnxruntime chooses by default.

    Raises:
        ValueError: If the folder holds no such graphs.
    """

    def __init__(
        self, folder: Path, description: dict[str, Any] | None = None, int8: bool = False, threads: int | None = None
    ) -> None:
        self.description = description or read_description(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self.vision, self.text = (
            onnxruntime.InferenceSession(
                folder / (INT8[name] if int8 else name), options, providers=["CPUExecutionProvider"]
            )
            for name in (VISION, TEXT)
        )
        self.visual_names = tensor_names("visual", self.description["cross_attention_layers"])
        self.past_names = tensor_names("past", self.description["self_attention_layers"])

    def encode(self, pixel_values: np.ndarray) -> list[np.ndarray]:
        """
        The visual keys and values of rows of pictures, `(batch_size, num_images, num_channels, height, width)`; without
        pictures those of a token that nothing sees.
        """
        batch_size, num_images = pixel_values.shape[:2]
        if num_images == 0:
            return self._zeros(self.visual_names, batch_size, 1)
        found = self.vision.run(self.visual_names, {"pixel_values": pixel_values.reshape(-1, *pixel_values.shape[2:])})
        # (batch_size * num_images, heads, cells, head_dim) -> all pictures of a row one after another
        rows = [tensor.reshape(batch_size, num_images, *tensor.shape[1:]).swapaxes(1, 2) for tensor in found]
        return [tensor.reshape(*tensor.shape[:2], -1, tensor.shape[-1]) for tensor in rows]

    def visible_from(self, input_ids: np.ndarray, num_images: int) -> np.ndarray:
        """From which token on each visual token is seen: `(batch_size, num_images * num_image_tokens)`, or `(batch_size, 1)`."""
        if num_images == 0:
            return np.full((len(input_ids), 1), NEVER)
        places = np.full((len(input_ids), num_images), NEVER)
        for row, tokens in enumerate(input_ids):
            (found,) = np.nonzero(tokens == self.description["image_token_id"])
            places[row, : len(found)] = found
        return places.repeat(self.description["num_image_tokens"], axis=1)

    def _zeros(self, names: list[str], batch_size: int, length: int) -> list[np.ndarray]:
        shapes = [self.description["text"]["inputs"][name]["shape"] for name in names]
        return [np.zeros((batch_size, heads, length, head_dim), np.float32) for _, heads, _, head_dim in shapes]

    def __call__(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        visual: list[np.ndarray],
        visible_from: np.ndarray,
        past: list[np.ndarray] | None = None,
        query_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """The logits of what follows, `(batch_size, vocab_size)`; the grounding maps; and the text's keys and values."""
        if past is None:
            past = self._zeros(self.past_names, len(input_ids), 0)
        if query_masks is None:
            query_masks = np.zeros((len(input_ids), 0, input_ids.shape[1]), bool)
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "visible_from": visible_from,
            "query_masks": query_masks,
            **dict(zip(self.visual_names, visual, strict=True)),
            **dict(zip(self.past_names, past, strict=True)),
        }
        logits, maps, *present = self.text.run(list(self.description["text"]["outputs"]), inputs)
        return logits, maps, present

    def generate(
        self, input_ids: np.ndarray, pixel_values: np.ndarray, max_new_tokens: int, min_new_tokens: int = 0
    ) -> list[int]:
        """The greedy answer to one prompt, without what ends it."""
        visual, visible_from = self.encode(pixel_values), self.visible_from(input_ids, pixel_values.shape[1])
        tokens, new, past = input_ids, [], None
        for length in range(input_ids.shape[1], input_ids.shape[1] + max_new_tokens):
            logits, _, past = self(tokens, np.ones((1, length), np.int64), visual, visible_from, past)
            logits[:, self.description["suppressed_token_ids"]] = -np.inf
            if len(new) < min_new_tokens:
                logits[:, self.description["end_token_ids"]] = -np.inf
            tokens = logits.argmax(axis=-1)[:, None]
            if tokens.item() in self.description["end_token_ids"]:
                break
            new.append(tokens.item())
        return new
