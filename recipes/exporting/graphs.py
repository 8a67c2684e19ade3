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
The two graphs of a model in ONNX, which keep no state.

The vision graph makes of pictures the keys and values that the cross-attention layers read. The text graph goes on from them and
from the keys and values of the text so far, of which there may be none: one graph reads a prompt, and adds to it token by token.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from modeling_agevlm.modeling_agevlm import NEVER, visual_cache


VISION, TEXT, DESCRIPTION = "vision.onnx", "text.onnx", "export.json"
INT8 = {VISION: "vision_int8.onnx", TEXT: "text_int8.onnx"}
# A file of ONNX holds up to 2 GiB; what is larger keeps its weights in a file beside it.
MOST_IN_ONE_FILE = 2**31 - 2**24


class VisionGraph(nn.Module):
    """`pixel_values` of shape `(num_images, num_channels, height, width)` -> keys and values of each cross-attention layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        text = self.model.language_model
        states = self.model.get_image_features(pixel_values, return_dict=True).pooler_output
        if self.model.config.use_visual_positions:
            states = self.model._with_positions(pixel_values, states)
        layers = [text.layers[index].cross_attn for index in text.config.cross_attention_layers]
        return tuple(tensor for layer in layers for tensor in layer.project_visual_tokens(states, None, None))


class TextGraph(nn.Module):
    """What [`describe`] says of it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.text, self.lm_head = model.model.language_model, model.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        visible_from: torch.Tensor,
        query_masks: torch.Tensor,
        visual: list[torch.Tensor],
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        config = self.text.config
        cache = DynamicCache(config=config)
        visual_cache(cache, config)
        for n, layer in enumerate(config.cross_attention_layers):
            cache.update(visual[2 * n], visual[2 * n + 1], layer, visible_from)
        for n, layer in enumerate(config.self_attention_layers):
            cache.update(past[2 * n], past[2 * n + 1], layer)
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        outputs = self.text(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            query_masks=query_masks,
            use_cache=True,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -1])
        layers = [cache.layers[layer] for layer in config.self_attention_layers]
        present = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        return logits, torch.stack(outputs.grounding_maps, dim=2), *present


def tensor_names(prefix: str, layers: Sequence[int]) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in layers for kind in ("key", "value")]


def describe(model: PreTrainedModel, image_size: tuple[int, int]) -> dict[str, Any]:
    """
    What goes into the graphs and what comes out: names, types and shapes, in which words are lengths that may vary.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        image_size (`tuple[int, int]`): `(height, width)` of its pictures in pixels.
    """
    config, vision = model.config.text_config, model.config.vision_config
    cells = (image_size[0] // vision.patch_size) * (image_size[1] // vision.patch_size)
    maps = "visual + 1" if config.attention_sink else "visual"

    def states(prefix: str, layers: Sequence[int], batch: str, length: str | int) -> dict[str, Any]:
        shape = [batch, config.num_key_value_heads, length, config.head_dim]
        return {name: {"type": "float32", "shape": shape} for name in tensor_names(prefix, layers)}

    cross, own = config.cross_attention_layers, config.self_attention_layers
    return {
        "vision": {
            "inputs": {"pixel_values": {"type": "float32", "shape": ["images", vision.num_channels, *image_size]}},
            "outputs": states("visual", cross, "images", cells),
        },
        "text": {
            "inputs": {
                "input_ids": {"type": "int64", "shape": ["batch", "tokens"]},
                "attention_mask": {
                    "type": "int64",
                    "shape": ["batch", "past + tokens"],
                    "meaning": "0 on padding, which is on the left",
                },
                "visible_from": {
                    "type": "int64",
                    "shape": ["batch", "visual"],
                    "meaning": "the place of the picture's placeholder in the text, counted from its beginning with padding, for "
                    f"each of the picture's visual tokens; {NEVER} for those that no token is to see. A text without pictures has "
                    "one such token, of zeros: `visual` is never 0",
                },
                "query_masks": {
                    "type": "bool",
                    "shape": ["batch", "queries", "tokens"],
                    "meaning": "the tokens whose attention a grounding map averages; there may be no query",
                },
                **states("visual", cross, "batch", "visual"),
                **states("past", own, "batch", "past"),
            },
            "outputs": {
                "logits": {
                    "type": "float32",
                    "shape": ["batch", config.vocab_size],
                    "meaning": "of what follows the last token",
                },
                "grounding_maps": {
                    "type": "float32",
                    "shape": ["batch", "queries", len(config.guided_layers), maps],
                    "meaning": "the guided heads' attention, layer by layer"
                    + ("; the last column is the sink, on nothing" if config.attention_sink else ""),
                },
                **states("present", own, "batch", "past + tokens"),
            },
        },
        "cross_attention_layers": list(cross),
        "self_attention_layers": list(own),
        "num_image_tokens": cells,
        "image_token_id": model.config.image_token_id,
    }


@torch.no_grad()
def export_graphs(model: PreTrainedModel, description: dict[str, Any], folder: Path) -> None:
    """
    Writes the graphs of a model.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): In float32, with eager attention.
        description (`dict`): What [`describe`] says of it.
        folder (`Path`): Where they go; it is there.
    """
    inputs, outputs = description["text"]["inputs"], description["text"]["outputs"]
    # Lengths other than 0 and 1, for which PyTorch would write graphs of their own, and all different.
    lengths = {"batch": 2, "tokens": 5, "past": 7, "past + tokens": 12, "visual": 11, "queries": 3}
    examples = {
        name: torch.ones([lengths.get(side, side) for side in of["shape"]], dtype=getattr(torch, of["type"]))
        for name, of in inputs.items()
    }
    varying = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, side in enumerate(of["shape"]) if isinstance(side, str)}
        for name, of in inputs.items()
    }
    plain = ("input_ids", "attention_mask", "visible_from", "query_masks")
    lists = [[name for name in inputs if name.startswith(prefix)] for prefix in ("visual.", "past.")]
    write_graph(
        TextGraph(model),
        (*(examples[name] for name in plain), *([examples[name] for name in names] for names in lists)),
        (*(varying[name] for name in plain), *([varying[name] for name in names] for names in lists)),
        [*plain, *lists[0], *lists[1]],
        list(outputs),
        folder / TEXT,
    )
    _, *sides = description["vision"]["inputs"]["pixel_values"]["shape"]
    write_graph(
        VisionGraph(model),
        (torch.ones(2, *sides),),
        ({0: torch.export.Dim.DYNAMIC},),
        ["pixel_values"],
        list(description["vision"]["outputs"]),
        folder / VISION,
    )


def write_graph(
    graph: nn.Module,
    examples: tuple[Any, ...],
    varying: tuple[Any, ...],
    input_names: list[str],
    output_names: list[str],
    file: Path,
) -> None:
    """Writes one graph, with the lengths that vary in it."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.eval(),
            examples,
            dynamic_shapes=varying,
            input_names=input_names,
            output_names=output_names,
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    program.save(file, external_data=num_bytes > MOST_IN_ONE_FILE)


def quantize_graphs(folder: Path) -> None:
    """
    Writes the graphs of a folder once more, with the weights of matrix products and convolutions in 8 bits: unsigned ones, which
    onnxruntime multiplies faster in convolutions and, on CPUs without VNNI, without saturation.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # of shapes that it need not know
    try:
        for source, target in INT8.items():
            quantize_dynamic(
                folder / source,
                folder / target,
                per_channel=True,
                weight_type=QuantType.QUInt8,
                use_external_data_format=(folder / f"{source}.data").exists(),
            )
    finally:
        logging.disable(logging.NOTSET)


def file_bytes(folder: Path) -> dict[str, int]:
    """Of the graphs that a folder holds, each with its weights."""
    return {
        name: sum((folder / part).stat().st_size for part in (name, f"{name}.data") if (folder / part).exists())
        for name in (*INT8, *INT8.values())
        if (folder / name).exists()
    }


def read_description(folder: Path) -> dict[str, Any]:
    """What a folder of [`export`] says of its graphs. Raises `ValueError` if it is none."""
    try:
        return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(
            f"{folder} holds no {DESCRIPTION}. Write it with `python recipes/export_onnx.py --out {folder}`."
        ) from None
