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
What `recipes/benchmark_model.py` compares: AGE-VLM with random weights in three sizes, the same tower and projector
before transformers' Mllama decoder and before a plain LLaMA that reads the visual tokens as words, their batches, their
training steps, their decoding.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from datasets import Dataset, Features
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaForCausalLM, _prepare_cross_attention_mask
from trl.trainer.utils import add_fused_lm_head

from modeling_agevlm import (
    AgeVlmConfig,
    AgeVlmForConditionalGeneration,
    AgeVlmImageProcessor,
    AgeVlmProcessor,
    AgeVlmVisionModel,
)
from modeling_agevlm.configuration_agevlm import default_cross_attention_layers
from modeling_agevlm.modeling_agevlm import AgeVlmMultiModalProjector, AgeVlmOutputProjection
from recipes.benchmarks.timing import DEVICE, DTYPE, peak_bytes
from recipes.rows.records import FEATURES
from trainers import GuidedSFTConfig, GuidedSFTTrainer, Stage, apply_stage, guidance_loss


FUSED_OUTPUTS = ("log_probs", "entropy", "is_top1")  # what TRL's SFTTrainer asks of its head


@dataclass(frozen=True)
class Size:
    """A model and the shapes that it is measured at."""

    config: AgeVlmConfig
    batch_size: int
    text_tokens: int = 64
    long_text_tokens: int = 512
    new_tokens: int = 32
    prefill_batch_size: int = 16
    loss_shape: tuple[int, int, int] = (512, 2048, 128256)
    """Tokens of a row, hidden size and vocabulary of the comparison of losses."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    image_sizes: tuple[int, ...] = (384, 768, 1152, 1536)
    image_counts: tuple[int, ...] = (1, 2, 4, 8)
    region_counts: tuple[int, ...] = (1, 2, 4, 8, 16)


def make_size(name: str) -> Size:
    """
    `"tiny"` (as in the tests), `"small"` (ConvNeXt-T at 384 pixels and a LLaMA shaped as SmolLM2-135M) or `"paper"`
    (ConvNeXt-L at 768 pixels, LLaMA-3.2-1B).
    """
    if name == "paper":
        return Size(AgeVlmConfig(), batch_size=16)
    ids = {"bos_token_id": 1, "eos_token_id": 5, "pad_token_id": 0}
    if name == "tiny":
        text = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5}
        text |= {"cross_attention_layers": [1, 3], "num_attention_heads": 4, "num_key_value_heads": 2}
        vision = {"model_args": {"depths": [1, 1, 1, 2], "dims": [8, 12, 16, 24]}, "hidden_size": 24, "image_size": 96}
        vision["architecture"] = "convnext_atto"
        shapes = {"text_tokens": 12, "long_text_tokens": 24, "new_tokens": 4, "prefill_batch_size": 2}
        shapes |= {"batch_sizes": (1, 2), "lengths": (16, 32), "image_sizes": (96, 192), "image_counts": (1, 2)}
        shapes |= {"region_counts": (1, 16), "loss_shape": (64, 32, 2048)}
    else:
        layers = default_cross_attention_layers(30)
        text = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}
        text |= {"num_key_value_heads": 3, "num_hidden_layers": 30 + len(layers), "cross_attention_layers": layers}
        vision = {"architecture": "convnext_tiny", "hidden_size": 768, "image_size": 384}
        shapes = {"loss_shape": (512, 576, 128256), "batch_sizes": (1, 2, 4, 8)}
    text |= ids | {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return Size(AgeVlmConfig(text_config=text, vision_config=vision, image_token_id=2), batch_size=2, **shapes)


@torch.no_grad()
def draw(model: nn.Module) -> nn.Module:
    """Opens what starts at zero or next to it, so that no part of the work is on zeros or denormal numbers."""
    for name, parameter in model.named_parameters():
        if name.endswith((".gamma", "_gate")):
            parameter.fill_(1.0)
    for module in model.modules():
        if isinstance(module, AgeVlmOutputProjection):
            module.weight.normal_(std=0.02)
    return model.to(DEVICE, DTYPE)


def make_model(config: AgeVlmConfig) -> AgeVlmForConditionalGeneration:
    torch.manual_seed(0)
    with DEVICE:
        return draw(AgeVlmForConditionalGeneration._from_config(copy.deepcopy(config), dtype=DTYPE))


def llama_config(config: AgeVlmConfig) -> LlamaConfig:
    """The LLM of `config` by itself."""
    text = config.text_config.to_dict()
    text["num_hidden_layers"] = len(config.text_config.self_attention_layers)
    del text["model_type"], text["cross_attention_layers"], text["cross_attention_intermediate_size"]
    return LlamaConfig(**text)


def make_batch(
    config: AgeVlmConfig,
    batch_size: int,
    text_tokens: int,
    num_images: int = 1,
    num_regions: int = 1,
    image_size: int | None = None,
) -> dict[str, torch.Tensor]:
    """
    What the collator makes of rows that begin with their images. Every word is a label and part of every region's
    query; a region is a quarter of its image.
    """
    generator = torch.Generator().manual_seed(0)
    side = image_size or config.vision_config.image_size
    cells = side // config.vision_config.patch_size
    input_ids = torch.randint(config.text_config.vocab_size - 1, (batch_size, text_tokens), generator=generator)
    input_ids += input_ids >= config.image_token_id
    input_ids[:, :num_images] = config.image_token_id
    masks = torch.zeros(batch_size, num_regions, num_images, cells, cells)
    for k in range(num_regions):
        masks[:, k, k % num_images, : -(-cells // 2), : -(-cells // 2)] = 1
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": input_ids.masked_fill(input_ids == config.image_token_id, -100),
        "pixel_values": torch.randn(batch_size, num_images, 3, side, side, generator=generator),
        "query_masks": torch.ones(batch_size, num_regions, text_tokens, dtype=torch.bool),
        "region_masks": masks.flatten(2),
        "dropped_regions": torch.zeros(batch_size),
        "skipped_rows": torch.zeros(batch_size),
    }
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def without_guidance(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name not in ("query_masks", "region_masks")}


def with_regions(batch: dict[str, torch.Tensor], num_regions: int) -> dict[str, torch.Tensor]:
    """The same batch with every region repeated."""
    more = {
        name: batch[name][:, :1].expand(-1, num_regions, -1).contiguous() for name in ("query_masks", "region_masks")
    }
    return batch | more


# Training


def make_processor(config: AgeVlmConfig) -> AgeVlmProcessor:
    """With the tokenizer of the embedded LLM; the vocabularies need not fit, for nothing is tokenized for the model."""
    side = config.vision_config.image_size
    tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(__file__).parents[1] / "scenes/backbones/llama")
    image_processor = AgeVlmImageProcessor(size={"height": side, "width": side})
    return AgeVlmProcessor(image_processor, tokenizer)


def make_trainer(model: AgeVlmForConditionalGeneration) -> GuidedSFTTrainer:
    """The trainer as the stages make it; here it computes losses of ready batches."""
    turns = [("user", "image", None), ("user", "text", "What is it?"), ("assistant", "text", "A thing.")]
    messages = [{"role": role, "content": [{"type": kind, "text": text}]} for role, kind, text in turns]
    row = {"id": "0", "images": [PIL.Image.new("RGB", (32, 32))], "messages": messages}
    features = {name: FEATURES[name] for name in row}
    with tempfile.TemporaryDirectory() as folder:
        args = GuidedSFTConfig(
            output_dir=folder,
            bf16=False,
            activation_checkpointing=False,
            use_cpu=DEVICE.type == "cpu",
            report_to="none",
            guidance_weight=0.0,  # that of each loss is its own
        )
        rows = Dataset.from_list([row], features=Features(features))
        trainer = GuidedSFTTrainer(model, args, train_dataset=rows, processing_class=make_processor(model.config))
    model.train()
    return trainer


def trainer_loss(
    trainer: GuidedSFTTrainer, batch: dict[str, torch.Tensor], weight: float = 1.0, normalization: str = "sum"
) -> torch.Tensor:
    """The loss of a batch that is a whole optimizer step."""
    trainer.args.guidance_weight, trainer.args.guidance_normalization = weight, normalization
    num_regions = batch["region_masks"].shape[:2].numel() if "region_masks" in batch else 0
    trainer._num_regions = torch.tensor(float(num_regions), device=DEVICE)
    num_labels = (batch["labels"][:, 1:] != -100).sum()
    return trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=num_labels)


def one_head_loss(trainer: GuidedSFTTrainer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same with one guided head in the first cross-attention layer."""
    text_config = trainer.model.config.text_config
    text_config.guidance_layers, text_config.guidance_heads = text_config.cross_attention_layers[:1], [0]
    try:
        return trainer_loss(trainer, batch)
    finally:
        text_config.guidance_layers = text_config.guidance_heads = None


@contextmanager
def eager_cross_attention(model: AgeVlmForConditionalGeneration) -> Iterator[list[torch.Tensor]]:
    """The cross-attention layers, and they alone, compute their weights; yields the list that fills with them."""
    text_config, weights, handles = model.config.text_config, [], []
    layers = [model.model.language_model.layers[n].cross_attn for n in text_config.cross_attention_layers]
    eager = copy.copy(layers[0].config)
    eager._attn_implementation = "eager"
    configs = [layer.config for layer in layers]
    for layer in layers:
        layer.config = eager
        handles.append(layer.register_forward_hook(lambda module, args, output: weights.append(output[1])))
    try:
        yield weights
    finally:
        for layer, config, handle in zip(layers, configs, handles, strict=True):
            layer.config = config
            handle.remove()


def eager_loss(trainer: GuidedSFTTrainer, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The guided loss as it would be without either way of the model's own: from the weights that eager attention returns."""
    with eager_cross_attention(trainer.model) as weights:
        lm_loss = trainer_loss(trainer, without_guidance(batch))
    shares = batch["query_masks"].float()
    shares = shares / shares.sum(dim=-1, keepdim=True)
    maps = tuple(torch.matmul(shares, layer.float().mean(dim=1)) for layer in weights)
    return lm_loss + guidance_loss(maps, batch["region_masks"], "sum").loss


class Trained:
    """
    Takes training steps: forward, backward, clipping and AdamW, at a learning rate of 0. That is all the work, and the
    weights stay as they are, so that subjects can share them.

    Args:
        module (`nn.Module`): The model.
        choose (`Callable`): Sets `requires_grad` of its parameters; called before every step, for others choose too.
    """

    def __init__(self, module: nn.Module, choose: Callable[[], None]) -> None:
        self.module, self.choose = module, choose
        choose()
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, weight_decay=0.0, fused=True)

    def step(self, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
        self.choose()
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value.detach()

    def peak_bytes(self, loss: Callable[[], torch.Tensor]) -> int:
        """Weights, the optimizer's state, and what a step needs beyond them at its peak."""
        self.step(loss)  # makes the optimizer's state
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        held = sum(tensor.nbytes for tensor in (*self.module.parameters(), *states))
        return held + peak_bytes(lambda: self.step(loss))


# Architectures


class Ours(nn.Module):
    """AGE-VLM."""

    def __init__(self, config: AgeVlmConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = make_model(config)
        add_fused_lm_head(self.vlm, outputs=FUSED_OUTPUTS)

    def apply_stage(self, stage: Stage) -> None:
        apply_stage(self.vlm, stage)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        names = ("input_ids", "attention_mask", "pixel_values", "labels")
        return self.vlm(**{name: batch[name] for name in names}, fused_lm_head=True).loss

    def image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.vlm.get_image_features(pixel_values).pooler_output
        return tokens.reshape(pixel_values.shape[0], -1, tokens.shape[-1])

    def prefill(self, input_ids: torch.Tensor, image_tokens: torch.Tensor) -> tuple[torch.Tensor, Cache]:
        """The last position's logits, and the cache."""
        seen = torch.ones((*input_ids.shape, 1), dtype=torch.bool, device=input_ids.device)  # all of it, by all words
        outputs = self.vlm.model.language_model(
            input_ids=input_ids,
            cross_attention_states=image_tokens,
            cross_attention_mask=seen,
            use_cache=True,
        )
        return self.vlm.lm_head(outputs.last_hidden_state[:, -1]), outputs.cache

    def decode(self, input_ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        return self.vlm(input_ids=input_ids, cache=cache, use_cache=True).logits[:, -1]


class TowerAndDecoder(nn.Module):
    """AGE-VLM's tower and projector before another decoder."""

    def __init__(self, config: AgeVlmConfig) -> None:
        super().__init__()
        self.config = config
        torch.manual_seed(0)
        with DEVICE:
            self.vision_tower = AgeVlmVisionModel._from_config(copy.deepcopy(config.vision_config), dtype=DTYPE)
            self.multi_modal_projector = AgeVlmMultiModalProjector(config)
            self.language_model = self.make_decoder()
        draw(self).train()
        add_fused_lm_head(self, outputs=FUSED_OUTPUTS)

    def make_decoder(self) -> nn.Module:
        raise NotImplementedError

    def cross_attention(self) -> list[nn.Module]:
        """The layers that train even while the LLM does not."""
        return []

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    @property
    def base_model(self) -> Callable:
        return self.decode_text  # what the fused head runs

    def apply_stage(self, stage: Stage) -> None:
        self.requires_grad_(False)
        trained = {"none": [], "last_stage": [self.vision_tower.stages[-1]], "all": [self.vision_tower]}[stage.vision]
        trained += [self.multi_modal_projector, *self.cross_attention()]
        for module in [*trained, self.language_model] if stage.language_model else trained:
            module.requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("Only the loss with the fused head is computed.")

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        names = ("input_ids", "attention_mask", "pixel_values", "labels")
        return self(**{name: batch[name] for name in names}, fused_lm_head=True).loss

    def image_tokens(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.multi_modal_projector(self.vision_tower(pixel_values.flatten(0, 1)).last_hidden_state)
        return tokens.reshape(pixel_values.shape[0], -1, tokens.shape[-1])


class MllamaStyle(TowerAndDecoder):
    """
    Before transformers' [`MllamaForCausalLM`], with cross-attention layers at the same places and of the same sizes. Its
    embedding is tied to its head as our LLM's is, without Mllama's eight additional rows.
    """

    def make_decoder(self) -> nn.Module:
        text = self.config.text_config
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        names += ("intermediate_size", "rope_parameters", "rms_norm_eps", "max_position_embeddings")
        names += ("cross_attention_layers", "bos_token_id", "eos_token_id", "pad_token_id")
        decoder_config = MllamaTextConfig(**{name: copy.deepcopy(getattr(text, name)) for name in names})
        decoder = MllamaForCausalLM._from_config(decoder_config, dtype=DTYPE)
        decoder.model.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size, dtype=DTYPE)
        nn.init.normal_(decoder.model.embed_tokens.weight, std=0.02)
        if text.tie_word_embeddings:
            decoder.lm_head.weight = decoder.model.embed_tokens.weight
        return decoder

    def cross_attention(self) -> list[nn.Module]:
        return [self.language_model.model.layers[n] for n in self.config.text_config.cross_attention_layers]

    def masks(self, input_ids: torch.Tensor, visual_tokens: int) -> dict[str, torch.Tensor]:
        """As [`MllamaModel`] prepares them for text that sees all of one tile."""
        seen = torch.ones((*input_ids.shape, 1, 1), device=input_ids.device)
        mask, row_mask = _prepare_cross_attention_mask(seen, visual_tokens, DTYPE)
        return {"cross_attention_mask": mask, "full_text_row_masked_out_mask": row_mask}

    def decode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor, use_cache: bool
    ) -> Any:
        tokens = self.image_tokens(pixel_values)
        return self.language_model.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            cross_attention_states=tokens,
            use_cache=use_cache,
            **self.masks(input_ids, tokens.shape[1]),
        )

    def prefill(self, input_ids: torch.Tensor, image_tokens: torch.Tensor) -> tuple[torch.Tensor, Cache]:
        outputs = self.language_model.model(
            input_ids=input_ids,
            cross_attention_states=image_tokens,
            use_cache=True,
            **self.masks(input_ids, image_tokens.shape[1]),
        )
        return self.language_model.lm_head(outputs.last_hidden_state[:, -1]), outputs.cache

    def decode(self, input_ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        layer = cache.layers[self.config.text_config.cross_attention_layers[0]]
        masks = self.masks(input_ids, layer.keys.shape[-2])
        return self.language_model(input_ids=input_ids, cache=cache, use_cache=True, **masks).logits[:, -1]


class LlavaStyle(TowerAndDecoder):
    """Before a plain LLaMA that reads the visual tokens as words before the text."""

    def make_decoder(self) -> nn.Module:
        return LlamaForCausalLM._from_config(llama_config(self.config), dtype=DTYPE)

    def decode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, pixel_values: torch.Tensor, use_cache: bool
    ) -> Any:
        tokens = self.image_tokens(pixel_values)
        embeddings = torch.cat([tokens, self.language_model.model.embed_tokens(input_ids)], dim=1)
        attention_mask = torch.cat([attention_mask.new_ones(tokens.shape[:2]), attention_mask], dim=1)
        outputs = self.language_model.model(
            inputs_embeds=embeddings, attention_mask=attention_mask, use_cache=use_cache
        )
        outputs.last_hidden_state = outputs.last_hidden_state[:, tokens.shape[1] :]
        return outputs

    def prefill(self, input_ids: torch.Tensor, image_tokens: torch.Tensor) -> tuple[torch.Tensor, Cache]:
        embeddings = torch.cat([image_tokens, self.language_model.model.embed_tokens(input_ids)], dim=1)
        outputs = self.language_model.model(inputs_embeds=embeddings, use_cache=True)
        return self.language_model.lm_head(outputs.last_hidden_state[:, -1]), outputs.cache

    def decode(self, input_ids: torch.Tensor, cache: Cache) -> torch.Tensor:
        return self.language_model(input_ids=input_ids, cache=cache, use_cache=True).logits[:, -1]


def bytes_of(cache: Cache) -> int:
    """Bytes of all keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class Decoding:
    """Greedy decoding of so many tokens after a prefill; every call starts from the same cache."""

    def __init__(
        self,
        decode: Callable[[torch.Tensor, Cache], torch.Tensor],
        logits: torch.Tensor,
        cache: Cache,
        num_tokens: int,
    ) -> None:
        self.decode, self.cache, self.num_tokens = decode, cache, num_tokens
        self.first = logits.argmax(dim=-1, keepdim=True)
        self.text_tokens = int(cache.get_seq_length())
        self.kept = [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def __call__(self) -> list[int]:
        for layer, (keys, values) in zip(self.cache.layers, self.kept, strict=True):
            if hasattr(layer, "cumulative_length"):  # a static layer of text, written in place
                layer.cumulative_length.fill_(self.text_tokens)
            else:
                layer.keys, layer.values = keys, values
        token, tokens = self.first, []
        for _ in range(self.num_tokens):
            token = self.decode(token, self.cache).argmax(dim=-1, keepdim=True)
            tokens.append(token)
        return torch.cat(tokens, dim=1)[0].tolist()
