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
Optimizer steps of [`GuidedSFTTrainer`] against the whole computation written down anew, in float64: from the rows'
characters over the LLaMA and its cross-attention to both losses, their gradients and AdamW. Of the package it uses only
the weights; the pictures' pixels come from the image processor, and timm's ConvNeXt and the tokenizer are taken as given.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from testing_utils import (
    GRADIENT_LENGTH,
    IMAGE,
    TEXT,
    assert_close,
    box_mask,
    picture,
    region,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
    up_to_rounding,
)
from torch.nn import functional as F

from modeling_agevlm import AgeVlmForConditionalGeneration
from trainers import GuidedSFTConfig, GuidedSFTTrainer, Stage, apply_stage, get_stage


FEATURES = Features(
    {
        "images": List(Image()),
        "messages": List(
            {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
        ),
        "regions": List(
            {
                "mask": {"size": List(Value("int64")), "counts": Value("string")},
                "image": Value("int64"),
                "text": Value("string"),
                "message": Value("int64"),
            }
        ),
    }
)
MAX_LENGTH = 75
LEARNING_RATE, MAX_GRAD_NORM = 1e-3, 0.5
HEADS, KEY_HEADS, HEAD_DIM = TEXT["num_attention_heads"], TEXT["num_key_value_heads"], 8
LOGGED = ("loss", "lm_loss", "guidance_loss", "in_mask_mass", "uniform_mass")
# One head of one layer, and a place for nothing
SINK = {"guidance_heads": [2], "guidance_layers": [3], "attention_sink": True}
BATCHES = [(4, 1), (2, 2), (1, 4)]  # rows per batch, batches per step: 4 rows, then the 3 that are left


class Case(NamedTuple):
    """A row: its turns as (number of pictures, words), and its regions as (masked pixels, region)."""

    turns: list[tuple[int, str]]
    regions: list[tuple[np.ndarray | None, dict[str, Any]]] = []


def guided(mask: np.ndarray | None, **over: Any) -> tuple[np.ndarray | None, dict[str, Any]]:
    return mask, region(box_mask() if mask is None else mask, **over) | ({"mask": None} if mask is None else {})


LONG = "A red cup is there. " + "The image is of a red cup on the table. " * 2 + "Is there a cup by the table? Yes."
CASES = [
    # Two pictures, of which the first answer sees one and the second answer both. The words of a region without a
    # message are those of both answers, as far as they see its picture.
    Case(
        [(1, "What is it?"), (0, "A red cup."), (1, "Is it here?"), (0, "No, a table.")],
        [
            guided(box_mask(rows=(0, 30)), text="red cup", image=0, message=1),
            guided(box_mask(rows=(20, 64), columns=(30, 80)), image=1),
            guided(box_mask(columns=(50, 70)), image=0),
            guided(None, text="table", image=0, message=3),  # the table is anywhere but in the first picture
        ],
    ),
    # Cut to `MAX_LENGTH`: one phrase stays, one is cut in two, one is cut off
    Case(
        [(1, "Is it a cup?"), (0, LONG)],
        [
            guided(box_mask(rows=(25, 40)), text="red cup"),
            guided(box_mask(), text="by the table"),
            guided(box_mask(), text="Yes"),
        ],
    ),
    Case([(0, "A?"), (0, "B.")]),
    Case([(1, "Is there a dog?"), (0, "There is no dog in the image.")], [guided(None, text="dog", message=0)]),
    Case([(0, "Is it red?"), (0, "Yes."), (0, "A cup?"), (0, "Yes, a cup.")]),
    # The phrase stands there twice, and means the first
    Case(
        [(1, "Is there a cup?"), (0, "Yes, a cup is by the cup.")],
        [guided(box_mask(rows=(40, 64), columns=(0, 50)), text="cup")],
    ),
    Case(
        [(1, "A cup?"), (0, "A table.")],
        [guided(box_mask(columns=(0, 45)), text="table"), guided(box_mask(rows=(10, 64)))],
    ),
]
NUM_DROPPED, NUM_GUIDED = 2, 4  # without regions that are nowhere
NUM_NOWHERE = 2


def pictures(n: int) -> list:
    """The pictures of case `n`, all of 64 x 80 pixels."""
    return [picture(seed=10 * n + m) for m in range(sum(num for num, _ in CASES[n].turns))]


def dataset() -> Dataset:
    rows = []
    for n, case in enumerate(CASES):
        messages = []
        for turn, (num_images, words) in enumerate(case.turns):
            content = [{"type": "image", "text": None}] * num_images + [{"type": "text", "text": words}]
            messages.append({"role": ("user", "assistant")[turn % 2], "content": content})
        rows.append({"images": pictures(n), "messages": messages, "regions": [r for _, r in case.regions]})
    return Dataset.from_list(rows, features=FEATURES)


# The reference


class Row(NamedTuple):
    """A case as tensors. T tokens, N pictures of 9 cells, K regions."""

    input_ids: torch.Tensor  # (T,)
    labels: torch.Tensor  # (T,)
    pixels: torch.Tensor  # (N, 3, 96, 96)
    visible: torch.Tensor  # (T, 9 * N), and one column more for the sink
    queries: list[torch.Tensor]  # K x (T,)
    masks: list[torch.Tensor]  # K x (9 * N,), and one more for the sink
    is_nowhere: list[bool]  # K


def cells(mask: np.ndarray, downsampling: str) -> torch.Tensor:
    """A mask on the 3 x 3 cells: of the mask at 3 times its size, a cell is a block of as many pixels as the mask has."""
    height, width = mask.shape
    blocks = np.kron(mask, np.ones((3, 3))).reshape(3, height, 3, width)
    covered = blocks.mean(axis=(1, 3)) > (0 if downsampling == "any" else 0.5)
    return torch.tensor(covered).flatten().double()


def read(n: int, downsampling: str, sink: bool = False) -> Row:
    case = CASES[n]
    text, words_at, labels_at = "<|begin_of_text|>", [], []
    for turn, (num_images, words) in enumerate(case.turns):
        text += f"<|start_header_id|>{('user', 'assistant')[turn % 2]}<|end_header_id|>\n\n" + "<|image|>" * num_images
        words_at.append((len(text), len(text) + len(words)))
        text += words + "<|eot_id|>"
        if turn % 2 == 1:
            labels_at.append((words_at[-1][0], len(text)))
    encoding = tiny_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    input_ids = torch.tensor(encoding["input_ids"][:MAX_LENGTH])
    offsets = encoding["offset_mapping"][:MAX_LENGTH]

    def tokens(spans: list[tuple[int, int]]) -> torch.Tensor:
        return torch.tensor([any(start < s[1] and end > s[0] for s in spans) for start, end in offsets])

    num_images = sum(num for num, _ in case.turns)
    placeholders = [t for t, token in enumerate(input_ids.tolist()) if token == IMAGE]
    visible = torch.zeros(len(input_ids), num_images, 9, dtype=torch.bool)
    for image, position in enumerate(placeholders):
        visible[position:, image] = True
    queries, masks, is_nowhere = [], [], []
    for mask, about in case.regions:
        turns = [about["message"]] if about["message"] is not None else range(1, len(case.turns), 2)
        spans = [words_at[turn] for turn in turns]
        if about["text"] is not None:
            start = text.index(about["text"], spans[0][0])
            spans = [(start, start + len(about["text"]))]
        if spans[-1][1] > offsets[-1][1] or (mask is None and not sink):
            continue
        queries.append(tokens(spans) & (torch.arange(len(input_ids)) >= placeholders[about["image"]]))
        masks.append(torch.full((num_images, 9), float(mask is None), dtype=torch.double))
        masks[-1][about["image"]] = 0 if mask is None else cells(mask, downsampling)
        masks[-1] = torch.cat([masks[-1].flatten(), torch.full((1,), mask is None)])[: 9 * num_images + sink]
        is_nowhere.append(mask is None)
    pixels = torch.zeros(0, 3, 96, 96)
    if num_images:
        pixels = tiny_processor().image_processor(pictures(n), return_tensors="pt")["pixel_values"].flatten(0, 1)
    return Row(
        input_ids,
        torch.where(tokens(labels_at), input_ids, -100),
        pixels.double(),
        torch.cat([visible.flatten(1), visible.flatten(1).any(dim=1, keepdim=True)], dim=1)[
            :, : 9 * num_images + sink
        ],
        queries,
        masks,
        is_nowhere,
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight


def heads(x: torch.Tensor) -> torch.Tensor:
    """`(length, heads * 8)` to `(4, length, 8)`; each of 2 key heads serves 2 query heads."""
    x = x.unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1)
    return x if x.shape[0] == HEADS else x.repeat_interleave(HEADS // KEY_HEADS, dim=0)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions: channel `c` and channel `c + 4` turn together."""
    frequencies = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.double) / HEAD_DIM)
    angles = torch.arange(x.shape[1], dtype=torch.double)[:, None] * frequencies
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Reference:
    """The model in float64. Its weights are leaves, so that `backward` leaves their gradients with them."""

    def __init__(self, model: AgeVlmForConditionalGeneration) -> None:
        self.tower = model.model.vision_tower.timm_model
        text = model.config.text_config
        self.sink, self.guided_heads = text.attention_sink, text.guidance_heads or list(range(HEADS))
        self.guided_layers = text.guidance_layers or TEXT["cross_attention_layers"]
        self.weights = {
            name: parameter.detach().double().requires_grad_() for name, parameter in model.named_parameters()
        }

    def __call__(self, row: Row) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits `(T, vocabulary)`, and of each guided layer the attention `(T, 9 * N)`, mean over guided heads."""
        w = self.weights
        embeddings = w["model.language_model.embed_tokens.weight"]
        visual = self.visual_tokens(row.pixels)
        hidden, attentions = embeddings[row.input_ids], []
        for n in range(TEXT["num_hidden_layers"]):
            layer = {
                name.removeprefix(f"model.language_model.layers.{n}.").removesuffix(".weight"): weight
                for name, weight in w.items()
                if name.startswith(f"model.language_model.layers.{n}.")
            }
            normed = rms_norm(hidden, layer["input_layernorm"])
            if n not in TEXT["cross_attention_layers"]:
                hidden = hidden + self.self_attention(layer, normed)
                hidden = hidden + self.mlp(layer, rms_norm(hidden, layer["post_attention_layernorm"]))
            elif len(visual):
                attended, attention = self.cross_attention(layer, normed, visual, row.visible)
                if n in self.guided_layers:
                    attentions.append(attention[self.guided_heads].mean(dim=0))
                sees = row.visible.any(dim=-1, keepdim=True)
                hidden = hidden + sees * attended
                hidden = hidden + sees * self.mlp(layer, rms_norm(hidden, layer["post_attention_layernorm"]))
        return rms_norm(hidden, w["model.language_model.norm.weight"]) @ embeddings.T, attentions

    def visual_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) == 0:
            return pixels.new_zeros(0, TEXT["hidden_size"])
        prefix = "model.vision_tower.timm_model."
        weights = {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}
        feature_map = torch.func.functional_call(self.tower, weights, pixels)  # (N, 24, 3, 3)
        x = feature_map.permute(0, 2, 3, 1).flatten(0, 2)
        w, name = self.weights, "model.multi_modal_projector.linear_"
        x = F.gelu(x @ w[f"{name}1.weight"].T + w[f"{name}1.bias"])
        return x @ w[f"{name}2.weight"].T + w[f"{name}2.bias"]

    @staticmethod
    def self_attention(layer: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(x @ layer[f"self_attn.{name}_proj"].T) for name in "qkv")
        scores = rotated(q) @ rotated(k).transpose(1, 2) / math.sqrt(HEAD_DIM)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v
        return mixed.transpose(0, 1).flatten(1) @ layer["self_attn.o_proj"].T

    @staticmethod
    def cross_attention(
        layer: dict[str, torch.Tensor], x: torch.Tensor, visual: torch.Tensor, visible: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        q = rms_norm(heads(x @ layer["cross_attn.q_proj"].T), layer["cross_attn.q_norm"])
        k = rms_norm(heads(visual @ layer["cross_attn.k_proj"].T), layer["cross_attn.k_norm"])
        v = heads(visual @ layer["cross_attn.v_proj"].T)
        if "cross_attn.sink_key" in layer:
            k = torch.cat([k, layer["cross_attn.sink_key"].repeat_interleave(HEADS // KEY_HEADS, dim=0)], dim=1)
            v = F.pad(v, (0, 0, 0, 1))
        # Of a token that sees nothing, nothing is used; the mask is left off only to keep its softmax finite.
        hidden = ~visible & visible.any(dim=-1, keepdim=True)
        attention = (q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM)).masked_fill(hidden, -math.inf).softmax(dim=-1)
        return (attention @ v).transpose(0, 1).flatten(1) @ layer["cross_attn.o_proj"].T, attention

    @staticmethod
    def mlp(layer: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return (F.silu(x @ layer["mlp.gate_proj"].T) * (x @ layer["mlp.up_proj"].T)) @ layer["mlp.down_proj"].T


def step_losses(
    model: Reference, cases: list[int], normalization: str = "sum", downsampling: str = "any", weight: float = 1.0
) -> dict[str, torch.Tensor]:
    """What one step over some cases minimizes and logs: means over all their labels, and over all regions and layers."""
    lm_losses, guidance, masses, uniform, on_sink = [], [], [], [], []
    for n in cases:
        row = read(n, downsampling, model.sink)
        logits, attentions = model(row)
        lm_losses.append(F.cross_entropy(logits[:-1], row.labels[1:], reduction="none")[row.labels[1:] != -100])
        for query, mask, is_nowhere in zip(row.queries, row.masks, row.is_nowhere, strict=True):
            reachable = row.visible[query].any(dim=0)
            if not is_nowhere:
                uniform.append((mask * reachable).sum() / reachable.sum())
            for attention in attentions:
                p = attention[query].mean(dim=0)  # sums to 1
                (on_sink if is_nowhere else masses).append((p * mask).sum())
                p = p if normalization == "sum" else p / p.max()
                guidance.append(-torch.log(2 * (mask * p).sum() / (mask.sum() + p.sum())))
    losses = {"lm_loss": torch.cat(lm_losses).mean()}
    sums = {"guidance_loss": guidance, "in_mask_mass": masses, "uniform_mass": uniform, "sink_mass": on_sink}
    losses |= {name: torch.stack(values).mean() for name, values in sums.items() if values}
    return {"loss": losses["lm_loss"] + weight * losses["guidance_loss"], **losses}


def make_trainer(out: Path, model: AgeVlmForConditionalGeneration, **arguments: Any) -> GuidedSFTTrainer:
    config = GuidedSFTConfig(
        output_dir=str(out),
        use_cpu=True,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        max_length=MAX_LENGTH,
        train_sampling_strategy="sequential",
        **arguments,
    )
    trainer = GuidedSFTTrainer(model=model, args=config, processing_class=tiny_processor(), train_dataset=dataset())
    trainer.create_optimizer()
    return trainer


# The tests


def test_cases_are_what_their_comments_say():
    rows = [read(n, "any") for n in range(len(CASES))]
    assert [len(row.queries) for row in rows] == [3, 1, 0, 0, 0, 1, 2]
    assert [len(row.pixels) for row in rows] == [2, 1, 0, 1, 0, 1, 1]
    assert len(rows[1].input_ids) == MAX_LENGTH and max(len(row.input_ids) for row in rows) == MAX_LENGTH
    assert NUM_DROPPED == len(CASES[1].regions) - len(rows[1].queries)
    assert NUM_NOWHERE == sum(sum(read(n, "any", sink=True).is_nowhere) for n in range(len(CASES)))
    assert NUM_GUIDED == sum(len(row.queries) > 0 for row in rows)
    decoded = [tiny_tokenizer().decode(row.input_ids[row.queries[0]]).strip() for row in rows if row.queries]
    assert decoded == ["red cup", "red cup", "cup", "table"]
    second, both = rows[0].queries[1:]
    assert rows[0].visible[second].all() and not rows[0].visible[both].all()
    assert tiny_tokenizer().decode(rows[1].input_ids).endswith("Is there a cup by the")


@pytest.mark.parametrize(
    ("normalization", "downsampling", "weight", "text_config"),
    [
        ("sum", "any", 1.0, {}),
        ("max", "any", 1.0, {}),
        ("sum", "area", 0.3, {}),
        ("sum", "any", 1.0, SINK),
        ("max", "any", 0.3, SINK),
        ("sum", "any", 1.0, {"guidance_heads": [0, 3]}),
    ],
)
def test_one_step(tmp_path: Path, normalization: str, downsampling: str, weight: float, text_config: dict):
    """Every number in the log and the gradient of every parameter."""
    model = tiny_model(text_config=text_config)
    sink = "attention_sink" in text_config
    reference = Reference(model)
    expected = step_losses(reference, list(range(len(CASES))), normalization, downsampling, weight)
    expected["loss"].backward()

    trainer = make_trainer(
        tmp_path,
        model,
        max_steps=1,
        per_device_train_batch_size=len(CASES),
        max_grad_norm=0.0,
        guidance_normalization=normalization,
        mask_downsampling=downsampling,
        guidance_weight=weight,
    )
    gradients = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({name: p.grad.clone() for name, p in model.named_parameters()})
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    assert set(expected) == {*LOGGED, "sink_mass"} if sink else set(LOGGED)
    for name in expected:
        assert logs[name] == up_to_rounding(expected[name].item()), name
    dropped = NUM_DROPPED + (0 if sink else NUM_NOWHERE)
    assert (logs["guided_rows"], logs["dropped_regions"], logs["skipped_rows"]) == (NUM_GUIDED + sink, dropped, 0)
    assert gradients.keys() == reference.weights.keys()
    for name, leaf in reference.weights.items():
        assert "sink_key" not in name or leaf.grad.any()
        assert_close(gradients[name], leaf.grad, GRADIENT_LENGTH, name)


@cache
def reference_run(stage: Stage) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Two epochs of two steps: what is logged, and the weights after them."""
    model = tiny_model()
    apply_stage(model, stage)
    reference = Reference(model)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    weights = [weight for name, weight in reference.weights.items() if name in trains]
    # Norms, biases and layer scales are the vectors among the parameters.
    groups = [
        {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": 0.1},
        {"params": [weight for weight in weights if weight.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-8)
    logs = {name: [] for name in (*LOGGED, "grad_norm")}
    for step in range(4):
        losses = step_losses(reference, [[0, 1, 2, 3], [4, 5, 6]][step % 2])
        optimizer.zero_grad()
        losses["loss"].backward()
        norm = sum(weight.grad.square().sum() for weight in weights).sqrt().item()
        for name, value in losses.items():
            logs[name].append(value.item())
        logs["grad_norm"].append(norm)
        for weight in weights:
            weight.grad *= min(1.0, MAX_GRAD_NORM / norm)
        # One step of warm-up (0.03 of 4, rounded up), then a cosine over three
        rate = 0.0 if step == 0 else LEARNING_RATE * (1 + math.cos(math.pi * (step - 1) / 3)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return logs, {name: weight.detach() for name, weight in reference.weights.items()}


@pytest.mark.parametrize(("batch_size", "accumulation"), BATCHES)
@pytest.mark.parametrize("stage", [get_stage(3), get_stage(4, "age-vlm-lm")], ids=["stage 3", "stage 4, LLM trained"])
def test_four_steps_of_adamw(tmp_path: Path, stage: Stage, batch_size: int, accumulation: int):
    """With clipping and the paper's schedule; the first 4 cases make one step, the 3 that are left another."""
    logs, weights = reference_run(stage)
    model = tiny_model()
    apply_stage(model, stage)
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        tmp_path,
        model,
        num_train_epochs=2,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_grad_norm=MAX_GRAD_NORM,
    )
    trainer.train()
    for name, expected in logs.items():
        found = [entry[name] for entry in trainer.state.log_history if name in entry]
        assert found == up_to_rounding(expected, GRADIENT_LENGTH), name
    assert min(logs["grad_norm"]) > 2 * MAX_GRAD_NORM
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, initial[name]), name
            continue
        # An element moves by twice the learning rate, if by anything; float32 holds that to 2e-4 of the rate.
        error = (parameter.detach().double() - weights[name]).abs().max().item()
        assert error < 1e-3 * LEARNING_RATE, f"{name}: off by {error / LEARNING_RATE} learning rates"
        assert not torch.equal(parameter, initial[name]), name
