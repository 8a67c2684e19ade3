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
"""Pretrains the demo's two backbones: a ConvNeXt on the drawings, a LLaMA on the texts of scenes."""

import json
import time
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from modeling_agevlm.image_processing_agevlm import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from modeling_agevlm.processing_agevlm import LLAMA_3_CHAT_TEMPLATE
from recipes.scenes.classes import CLASSES
from recipes.scenes.pictures import draw_object
from recipes.scenes.texts import scene_texts


# 0.8M parameters; at stride 32 a scene of 256 pixels is 64 visual tokens.
CONVNEXT = {"depths": [1, 1, 2, 1], "dims": [32, 64, 128, 192]}
# 0.9M parameters
LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,  # about hidden_size ** -0.5; the usual 0.02 starts layers this narrow too near zero
    "tie_word_embeddings": True,
}
SPECIAL_TOKENS = [
    "<|pad|>",
    "<|begin_of_text|>",
    "<|image|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 5% of the steps, then a cosine to zero."""
    warmup = max(1, steps // 20)
    return peak * min(step / warmup, 0.5 * (1 + np.cos(np.pi * step / steps)))


def optimize(parameters: list[torch.nn.Parameter], steps: int, peak: float, loss_of_step: callable, name: str) -> None:
    """Runs `steps` steps of AdamW on `loss_of_step(step)` and prints the loss ten times."""
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.05)
    start = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, steps, peak)
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"{name}: step {step + 1}/{steps}, loss {loss.item():.3f}, {time.time() - start:.0f} s", flush=True)


def object_batch(split: str, first: int, size: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized pictures `(batch_size, 3, size, size)` of single objects and their class indices."""
    pictures, labels = zip(
        *(draw_object(split, index, size=size) for index in range(first, first + batch_size)), strict=True
    )
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last), torch.tensor(labels)


def jitter(pixels: torch.Tensor) -> torch.Tensor:
    """Changes the brightness, the contrast and the tint of every normalized picture at random."""
    gain = 1 + 0.25 * torch.randn(len(pixels), 1, 1, 1) + 0.1 * torch.randn(len(pixels), 3, 1, 1)
    return pixels * gain + 0.3 * torch.randn(len(pixels), 1, 1, 1) + 0.1 * torch.randn(len(pixels), 3, 1, 1)


def disturb(pixels: torch.Tensor) -> torch.Tensor:
    """Mixes the colors of every normalized picture at random, changes its contrast and lays a random texture over it."""
    number, size = len(pixels), pixels.shape[-2:]
    mix = torch.eye(3) + 0.12 * torch.randn(number, 3, 3)
    pixels = torch.einsum("nij,njhw->nihw", mix / mix.sum(2, keepdim=True), pixels)
    pixels = pixels * (0.25 * torch.randn(number, 1, 1, 1)).exp() + 0.3 * torch.randn(number, 1, 1, 1)
    side = int(torch.randint(3, 25, ()))
    mode = "bilinear" if torch.rand(()) < 0.5 else "nearest"
    texture = F.interpolate(torch.randn(number, 3, side, side), size=size, mode=mode)
    pixels = pixels + 0.5 * torch.rand(number, 1, 1, 1) * texture
    return pixels.contiguous(memory_format=torch.channels_last)


# What is done to the pictures of the ConvNeXt, and for how many steps; the learning rate starts anew each time.
ROUNDS = ((jitter, 4000), (disturb, 3000), (disturb, 4000))


def make_convnext(out: Path, share: float, batch_size: int = 64, size: int = 96) -> None:
    """Trains the ConvNeXt to name single objects, for a share of the steps of `ROUNDS`; saves it without its classifier."""
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=len(CLASSES), ls_init_value=0.1, **CONVNEXT)
    model = model.to(memory_format=torch.channels_last).train()

    def logits_of(pixels: torch.Tensor) -> torch.Tensor:
        # Any cell may show the object: in a scene every cell has to speak for itself.
        cells = model.head.norm(model.forward_features(pixels)).flatten(2).transpose(1, 2)
        return model.head.fc(cells).logsumexp(dim=1)

    done = 0
    for change, full in ROUNDS:

        def loss_of_step(step: int, change: callable = change, done: int = done) -> torch.Tensor:
            pixels, labels = object_batch("train", (done + step) * batch_size, size, batch_size)
            return F.cross_entropy(logits_of(change(pixels)), labels, label_smoothing=0.1)

        steps = round(share * full)
        optimize(list(model.parameters()), steps, 2e-3, loss_of_step, f"convnext, {change.__name__}")
        done += steps
    model.eval()
    for split, first in (("train", done * batch_size), ("test", 0)):
        with torch.no_grad():
            pixels, labels = object_batch(split, first, size, 1000)
            accuracy = (logits_of(pixels).argmax(-1) == labels).float().mean().item()
        print(f"convnext: {accuracy:.1%} of 1000 new objects of the {split} split are named right")
    out.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("head.fc")}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": "convnext_atto",
        "num_classes": 0,
        "num_features": CONVNEXT["dims"][-1],
        "model_args": CONVNEXT,
        "pretrained_cfg": {
            "architecture": "convnext_atto",
            "num_classes": 0,
            "input_size": [3, size, size],
            "mean": list(OPENAI_CLIP_MEAN),
            "std": list(OPENAI_CLIP_STD),
            "first_conv": "stem.0",
            "classifier": "head.fc",
        },
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE on the texts, with LLaMA-3's special tokens of the chat format and the image placeholder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|image|>", "<|start_header_id|>", "<|end_header_id|>"],
        chat_template=LLAMA_3_CHAT_TEMPLATE,
    )


def make_llama(out: Path, steps: int, batch_size: int = 16, num_texts: int = 20000) -> None:
    """Trains the LLaMA on the scenes' chats, without pictures, and saves it with its tokenizer."""
    torch.manual_seed(0)
    chats = list(scene_texts("train", num_texts))
    rendered, _ = render_jinja_template(chats, chat_template=LLAMA_3_CHAT_TEMPLATE, bos_token="<|begin_of_text|>")
    words = [message["content"] for chat in chats for message in chat]
    tokenizer = make_tokenizer(words, vocab_size=768)
    encoded = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    print(
        f"llama: {sum(map(len, encoded)):,} tokens, vocabulary {len(tokenizer)}, longest chat {max(map(len, encoded))}"
    )
    held_out, encoded = encoded[:500], encoded[500:]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **LLAMA,
    )
    model = LlamaForCausalLM(config).train()

    def loss_of(rows: list[list[int]]) -> torch.Tensor:
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt", padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return model(**batch, labels=labels).loss

    # Texts of like length go into one batch: mixed ones would be half padding.
    encoded.sort(key=len)
    generator = np.random.default_rng(0)
    starts = generator.integers(len(encoded) - batch_size, size=steps)
    optimize(
        list(model.parameters()),
        steps,
        2e-3,
        lambda step: loss_of(encoded[starts[step] : starts[step] + batch_size]),
        "llama",
    )
    model.eval()
    with torch.no_grad():
        print(f"llama: loss {loss_of(held_out[:200]).item():.3f} nats per token on texts it has not read")
    # Half the size on disk; the demo computes in float32.
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
