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
"""Tiny models, processors and rows that the tests share."""

from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco_mask
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmImageProcessor, AgeVlmProcessor


SPECIAL_TOKENS = [
    "<|pad|>",
    "<|begin_of_text|>",
    "<|image|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
PAD, BOS, IMAGE, _, _, EOT = range(len(SPECIAL_TOKENS))
VOCAB_SIZE = 320
IMAGE_SIZE = 96
NUM_CELLS = 9  # of one image: 3 x 3 squares of 32 pixels
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "cross_attention_layers": [1, 3],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOT,
    "pad_token_id": PAD,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
VISION = {
    "architecture": "convnext_atto",
    "model_args": {"depths": [1, 1, 1, 2], "dims": [8, 12, 16, 24]},
    "hidden_size": 24,
    "image_size": IMAGE_SIZE,
}


# As `length_of(tiny_model())`: 857 of the tower, 56 of the projector, 5 x 240 of the layers, 32 of the head.
MODEL_LENGTH = 2145
# Of a weight's gradient: there and back, and a sum over the 24 x 24 places of the stem in up to 6 pictures.
GRADIENT_LENGTH = 2 * MODEL_LENGTH + 6 * 24 * 24
# How many times a value is rounded on that way where matrices are added up in float32 and kept in half precision: 43
# times in the tower, 3 in the projector, 12 in each layer. All that a sum of half's products is off by is these.
HALF_LENGTH = 43 + 3 + 5 * 12
# Of a grounding map's sum over its cells: a softmax, means over heads and words, and the sum itself.
MAP_LENGTH = 27 + 4 + 12 + 27


def tolerance(dtype: torch.dtype, length: int) -> float:
    """
    By how much two sums of the same `length` products may differ, relative to the largest, where they are added up in
    another order, which the CPU's instructions, the number of threads and the shapes decide on. Either is off by
    sqrt(length) * eps / 2, for its roundings are as good as independent (Higham and Mary, "A new approach to
    probabilistic rounding error analysis", 2019).
    """
    return length**0.5 * torch.finfo(dtype).eps


def length_of(*modules: torch.nn.Module) -> int:
    """How many products lie one after another between inputs and outputs: the rows of all matrices, end to end."""
    return sum(p[0].numel() for module in modules for p in module.parameters() if p.dim() > 1)


def up_to_rounding(expected: Any, length: int = MODEL_LENGTH) -> Any:
    """What equals numbers (one, several, or by name) that float32 sums of `length` products gave."""
    return pytest.approx(expected, rel=tolerance(torch.float32, length))


def assert_close(
    found: torch.Tensor,
    expected: torch.Tensor,
    length: int = MODEL_LENGTH,
    name: str | None = None,
    atol: float = 0.0,
) -> None:
    """
    That the two differ by the order of sums of `length` products in `found`'s dtype at most, and by `atol` for what
    else is rounded. A float64 is exact.
    """
    atol += tolerance(found.dtype, length) * expected.abs().max().item()
    message = None if name is None else lambda text: f"{name}: {text}"
    exact = expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, check_dtype=not exact, msg=message)


def tiny_config(
    text_config: dict[str, Any] | None = None, vision_config: dict[str, Any] | None = None, **over: Any
) -> AgeVlmConfig:
    return AgeVlmConfig(
        text_config=TEXT | (text_config or {}),
        vision_config=VISION | (vision_config or {}),
        **{"image_token_id": IMAGE, **over},
    )


def tiny_model(redrawn: bool = True, attn_implementation: str = "sdpa", **over: Any) -> AgeVlmForConditionalGeneration:
    """
    A model in evaluation mode, the same on every call. As it is made, its cross-attention layers are the identity and
    the tower's blocks nearly so; `redrawn` gives every weight a size at which it matters, and makes sure that it does.
    """
    torch.manual_seed(0)
    config = tiny_config(**over)
    model = AgeVlmForConditionalGeneration._from_config(config, attn_implementation=attn_implementation).eval()
    if redrawn:
        redraw(model)
        batch = tiny_batch()
        seen = model(**batch).logits
        other = model(**batch | {"pixel_values": batch["pixel_values"].flip(0)}).logits
        without = torch.cat([model(input_ids=row[row != IMAGE][None]).logits[:, -1] for row in batch["input_ids"]])
        assert (seen - other).abs().max() > 1e-2
        assert (seen[:, -1] - without).abs().max() > 1e-2
    return model


@torch.no_grad()
def redraw(model: AgeVlmForConditionalGeneration) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.normal_(mean=1.0, std=0.3)
        elif "embed_tokens" in name:
            parameter.normal_(std=0.2)
        elif parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.normal_(std=0.1)
        else:  # norms
            parameter.normal_(mean=1.0, std=0.1)
        assert parameter.abs().max() > 1e-2, name


def llama_twin(model: AgeVlmForConditionalGeneration) -> LlamaForCausalLM:
    """A plain LLaMA with the weights of the model's LLM and its attention backend."""
    text = model.config.text_config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    names += ("max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")
    names += ("bos_token_id", "eos_token_id", "pad_token_id")
    config = LlamaConfig(
        num_hidden_layers=len(text.self_attention_layers), **{name: getattr(text, name) for name in names}
    )
    llama = LlamaForCausalLM._from_config(config, attn_implementation=text._attn_implementation).eval()
    source = model.model.language_model
    llama.model.embed_tokens.load_state_dict(source.embed_tokens.state_dict())
    llama.model.norm.load_state_dict(source.norm.state_dict())
    for layer, index in zip(llama.model.layers, text.self_attention_layers, strict=True):
        layer.load_state_dict(source.layers[index].state_dict())
    llama.lm_head.load_state_dict(model.lm_head.state_dict())
    return llama


def tiny_batch(
    placeholders: tuple[tuple[int, ...], ...] = ((1,), (4,)), length: int = 10, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random token rows with image placeholders at the given positions, and random images for them."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(len(SPECIAL_TOKENS), VOCAB_SIZE, (len(placeholders), length), generator=generator)
    num_images = max(len(row) for row in placeholders)
    pixel_values = torch.zeros(len(placeholders), num_images, 3, IMAGE_SIZE, IMAGE_SIZE)
    for row, positions in enumerate(placeholders):
        input_ids[row, list(positions)] = IMAGE
        pixel_values[row, : len(positions)] = torch.randn(
            len(positions), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator
        )
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    return batch | {"pixel_values": pixel_values} if num_images else batch


@cache
def _trained_tokenizer() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Is there a cup in the image? Yes, there is a red cup on the table."] * 2, trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with LLaMA-3's special tokens of the chat format. Frequent words are one token."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|image|>", "<|start_header_id|>", "<|end_header_id|>"],
    )


def tiny_processor(image_size: int = IMAGE_SIZE, **flags: Any) -> AgeVlmProcessor:
    image_processor = AgeVlmImageProcessor(size={"height": image_size, "width": image_size}, **flags)
    return AgeVlmProcessor(image_processor, tiny_tokenizer())


def picture(height: int = 64, width: int = 80, seed: int = 0) -> PIL.Image.Image:
    """A picture of colored squares."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.NEAREST)


def box_mask(
    height: int = 64, width: int = 80, rows: tuple[int, int] = (0, 20), columns: tuple[int, int] = (0, 20)
) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def region(
    mask: np.ndarray | dict[str, Any] | None = None,
    text: str | None = None,
    image: int = 0,
    message: int | None = None,
    **over: Any,
) -> dict[str, Any]:
    mask = box_mask() if mask is None else mask
    mask = mask if isinstance(mask, dict) else rle(mask)
    return {"mask": mask, "image": image, "text": text, "message": message, **over}


def row(
    question: str = "Is there a cup in the image?",
    answer: str = "Yes, there is a red cup on the table.",
    images: list[Any] | None = None,
    regions: list[dict[str, Any]] | None = None,
    **over: Any,
) -> dict[str, Any]:
    """A row of a data set: one question and answer about one picture by default."""
    return {
        "images": [picture()] if images is None else images,
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "regions": [] if regions is None else regions,
        **over,
    }


def guidance_by_hand(
    maps: tuple[torch.Tensor, ...], masks: torch.Tensor, normalization: str
) -> tuple[float, float, float, int]:
    """Loss, mass in the masks, its baseline and the number of regions, in float64, one region and layer after another."""
    losses, masses, baselines, num_regions = [], [], [], 0
    for b in range(masks.shape[0]):
        for k in range(masks.shape[1]):
            mask = masks[b, k].detach().double().numpy()
            layers = [layer[b, k].detach().double().numpy() for layer in maps]
            if mask.sum() == 0 or layers[0].sum() == 0:
                continue
            num_regions += 1
            reachable = np.sum(layers, axis=0) > 0
            baselines.append((mask * reachable).sum() / reachable.sum())
            for layer in layers:
                p = layer / (layer.sum() if normalization == "sum" else layer.max())
                losses.append(-np.log(2 * (p * mask).sum() / (p.sum() + mask.sum())))
                masses.append((layer * mask).sum() / layer.sum())
    return float(np.mean(losses)), float(np.mean(masses)), float(np.mean(baselines)), num_regions
