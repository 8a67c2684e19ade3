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
"""Rows with regions, collated for any VLM of transformers whose visual tokens stand among its words."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import PreTrainedConfig, ProcessorMixin

from modeling_agevlm.processing_agevlm import beginning_of_text

from .data_collator import DataCollatorForGuidedVisionLanguageModeling, Example, MaskKey, Tokens, mask_key
from .rows import as_row
from .turns import words_after_answer
from .visual_tokens import VisualTokens


# Resampling smears the edge of a mask over its neighbors: less of a visual token is not in the region.
LEAST_COVERAGE = 0.01
KINDS = ("mm_token_type_ids", "token_type_ids")  # which tokens are a picture's: most models', Gemma's
TARGETS = ("labels", "query_masks", "region_masks", "dropped_regions", "skipped_rows")  # of a batch


@dataclass
class DataCollatorForAnyVisionLanguageModel(DataCollatorForGuidedVisionLanguageModeling):
    """
    Collates rows as [`DataCollatorForGuidedVisionLanguageModeling`] does, for the model that a processor of transformers belongs
    to: its pictures and its text are what the processor makes of them, and a region is what arrives of its mask in each visual
    token ([`VisualTokens`]).

    Args:
        config ([`PreTrainedConfig`]): The model's.
        processor, max_length, guidance_query, guidance_level, mask_downsampling, broken_rows, pad_to_multiple_of:
            See [`DataCollatorForGuidedVisionLanguageModeling`]. A visual token is in a region by `"any"` if more than
            a hundredth of it is. `max_length` may not cut through the visual tokens of a picture.

    Returns what the processor does for B rows, padded on the right, with `labels` (B, T), `query_masks` (B, K, T) and
    `region_masks` (B, K, T + 1), as [`RegionAttention`] takes them, and the counts `dropped_regions` and `skipped_rows` (B,).

    An answer ends with what the chat template ends turns with, or where that is nothing (LLaVA-1.5), with the tokenizer's `eos_token`.

    Raises:
        ValueError: If the processor has no chat template, or its visual tokens cannot be followed or do not stand in the text.
    """

    config: PreTrainedConfig = field(kw_only=True)
    attention_sink: bool = True  # words for what is not there are guided off the pictures

    def __post_init__(self) -> None:
        if self.processor.chat_template is None:
            raise ValueError(
                f"{type(self.processor).__name__} has no chat template, which says how messages become text: set `chat_template`."
            )
        if getattr(self.config.get_text_config(), "cross_attention_layers", None) is not None:
            raise ValueError(
                f"A model of type {self.config.model_type!r} reads its pictures by cross-attention: its visual tokens do not stand "
                "among the words, where this collator puts regions."
            )
        if self.config.model_type == "paligemma":
            raise ValueError(
                "A model of type 'paligemma' reads its prompt in both directions, which these rows do not tell it; it has no chats."
            )
        self.visual_tokens = VisualTokens(self.processor, self.config)
        tokenizer = self.processor.tokenizer
        if tokenizer.pad_token is None:  # as TRL does
            tokenizer.pad_token = tokenizer.eos_token
        self.end = ""  # of answers, where the template ends turns with nothing
        if not words_after_answer(self.processor):
            self.end = tokenizer.eos_token or ""
            if not self.end:
                raise ValueError(
                    "The chat template ends the assistant's turn with nothing, and the tokenizer has no `eos_token`: no answer would "
                    "ever end. Set one."
                )
        self.beginning = beginning_of_text(tokenizer)  # left to it by some chat templates (LLaVA-1.5's "<s>")

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        if not self.end:
            return super()._render(messages, add_generation_prompt)
        text, before = "", ""
        for n, message in enumerate(messages):
            rendered = super()._render(messages[: n + 1])
            if not rendered.startswith(before):
                raise ValueError(
                    "the chat template ends turns with nothing, and renders them differently once others follow"
                )
            text += rendered[len(before) :]
            if message["role"] == "assistant":
                text = text.rstrip() + self.end
            before = rendered
        return text + super()._render(messages, True)[len(before) :] if add_generation_prompt else text

    def read_row(self, row: dict[str, Any]) -> Example:
        example = super().read_row(row)
        num_images = len(as_row(row)["images"])
        if 0 < len(example.images) < num_images:  # some processors write other tokens for fewer pictures
            text = self.processor.image_token * len(example.images)
            (ids,) = self.processor(text=[text], images=[example.images])["input_ids"]
            counts = [list(of).count(self.config.image_token_id) for of in (ids, example.input_ids)]
            if counts[0] != counts[1]:
                raise ValueError(
                    f"`max_length` ({self.max_length}) cuts off image {len(example.images)}, without which the others are {counts[0]} "
                    f"visual tokens instead of {counts[1]}: raise it"
                )
        return example

    def _tokenize(self, text: str, prompt_ends: list[int], images: list[PIL.Image.Image]) -> Tokens:
        """Tokens of the text in which the processor has put the visual tokens; places are those in the text without."""
        replaced = []
        if images:
            settings = {"return_text_replacement_offsets": True, "add_special_tokens": False}
            replaced = self.processor(text=[text], images=[images], **settings)["text_replacement_offsets"][0]
        expanded, last = "", 0
        for place in replaced:
            start, end = place["span"]
            expanded, last = expanded + text[last:start] + place["replacement"], end
        expanded += text[last:]

        def moved(place: int) -> int:
            return place + sum(len(r["replacement"]) - len(r["text"]) for r in replaced if r["span"][1] <= place)

        tokens = super()._tokenize(expanded, [moved(place) for place in prompt_ends], images)
        starts, ends, pictures = tokens.starts.copy(), tokens.ends.copy(), []
        outside = tokens.input_ids == self.config.image_token_id
        for place in replaced:
            first, stop = place["new_span"]
            inside = (tokens.starts >= first) & (tokens.starts < stop)
            pictures.append((int(inside.argmax()), int(inside.argmax() + inside.sum())))
            outside &= ~inside
            starts[inside] = ends[inside] = place["span"][0]
            behind = tokens.starts >= stop
            grown = len(place["replacement"]) - len(place["text"])
            starts[behind] -= grown
            ends[behind] -= grown
        if outside.any():  # Gemma 3's is another one than the placeholder
            token = self.processor.tokenizer.convert_ids_to_tokens(self.config.image_token_id)
            raise ValueError(f"the token of pictures, {token}, stands among its words")
        first = [] if text.startswith(self.beginning) else [self.processor.tokenizer.bos_token_id]
        return Tokens(
            np.concatenate([first, tokens.input_ids]).astype(tokens.input_ids.dtype),
            np.concatenate([np.full(len(first), -1), starts]),
            np.concatenate([np.full(len(first), -1), ends]),
            [(start + len(first), stop + len(first)) for start, stop in pictures],
        )

    def _region_cells(
        self, regions: Sequence[dict[str, Any]], images: list[PIL.Image.Image]
    ) -> dict[MaskKey, torch.Tensor | None]:
        """All of the regions on the row's visual tokens, for the processor is quicker with their masks together:
        `(num_visual_tokens,)`, 1 inside; None if it is nowhere in its picture."""
        masks = {mask_key(regions[0]): self._region_mask(regions[0], images)}
        for region in regions[1:]:
            with contextlib.suppress(Exception):  # which is said when it is its turn
                masks.setdefault(mask_key(region), self._region_mask(region, images))
        shown = [(key[0], mask) for key, mask in masks.items() if mask is not None]
        coverages = iter(self.visual_tokens.coverage(images, shown))
        least = LEAST_COVERAGE if self.mask_downsampling == "any" else 0.5
        return {key: None if mask is None else (next(coverages) > least).float() for key, mask in masks.items()}

    def _pixel_values(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """What the processor makes of the pictures of a batch; nothing if it has none."""
        images = [example.images for example in examples]
        if not any(images):
            return {}
        texts = [self.processor.image_token * len(of_row) for of_row in images]
        batch = self.processor(text=texts, images=images, padding=True, return_tensors="pt")
        self.processor.tokenizer.backend_tokenizer.no_padding()  # it would be saved with the checkpoint
        of_text = {*self.processor.tokenizer.model_input_names, "input_ids", "attention_mask", *KINDS}
        return {name: values for name, values in batch.items() if name not in of_text}

    def _collate(self, examples: list[Example], pictures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = super()._collate(examples, pictures)
        is_gemma = self.config.model_type == "gemma3"  # many tokenizers have its name for another thing
        if is_gemma or KINDS[0] in self.processor.model_input_names:
            kinds = self.processor.create_mm_token_type_ids(batch["input_ids"].tolist())
            batch[KINDS[is_gemma]] = torch.tensor(np.asarray(kinds))
        return batch

    def _region_masks(
        self, examples: list[Example], num_regions: int, batch: dict[str, torch.Tensor]
    ) -> torch.FloatTensor:
        """The regions of a batch on its tokens, and whether they are nowhere in their picture."""
        is_visual = batch["input_ids"] == self.config.image_token_id
        region_masks = torch.zeros((len(examples), num_regions, is_visual.shape[1] + 1))
        for row, example in enumerate(examples):
            places = is_visual[row].nonzero()[:, 0]
            for k, (image, cells) in enumerate(example.region_masks):
                if cells is None:
                    first, stop = example.pictures[image]
                    cells = ((places < first) | (places >= stop)).float()
                    region_masks[row, k, -1] = 1
                # `max_length` may have cut off pictures behind
                region_masks[row, k, places] = cells[: len(places)]
        return region_masks


def without_targets(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What of a batch the forward pass of any VLM takes to look at its pictures: neither labels nor regions."""
    return {name: value for name, value in batch.items() if name not in TARGETS}


def collator_for(
    config: PreTrainedConfig, processor: ProcessorMixin, **options: Any
) -> DataCollatorForGuidedVisionLanguageModeling:
    """The collator of rows for a model: an AGE-VLM's, or any other VLM's. `options` are fields of either."""
    if config.model_type == "agevlm":
        sink = config.text_config.attention_sink
        return DataCollatorForGuidedVisionLanguageModeling(processor, attention_sink=sink, **options)
    return DataCollatorForAnyVisionLanguageModel(processor, config=config, **options)
