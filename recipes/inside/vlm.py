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
Any VLM of transformers, opened for a look inside: where its words look, and how its text and image states compare.

Two kinds are told apart by the model type of their config.json. An AGE-VLM reads the picture by cross-attention, and points at
what its words mean with the guided heads of its guided layers, which are therefore the ones that are read here; what lies on
its attention sink, if it has one, looks at nothing. A concatenation VLM (LLaVA, SmolVLM, ...) puts the picture's tokens between those of the text, so that self-attention reads
them; it has to give a picture one square grid of tokens. Models that cut a picture into tiles (SmolVLM, Idefics3) get it
whole here: `do_image_splitting` is set to False.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from modeling_agevlm import AgeVlmImageProcessor, AgeVlmProcessor
from modeling_agevlm.conversion import in_words
from modeling_agevlm.grounding_agevlm import GroundingReadout
from modeling_agevlm.processing_agevlm import find_words
from recipes.answering.answers import generate, one_question, prompts
from recipes.answering.attention import split_sink
from recipes.answering.checkpoint import is_age_vlm, load_checkpoint, load_other, read_other, short_names


# Of the layers that read the picture.
LAYERS = {"first": "first layer", "mean": "mean over layers"}
# Of the blue of a white picture: a pixel below is padding, whose color is black or about the mean of all pictures.
LEAST_OF_PICTURE = 0.75


@dataclass
class Look:
    """What one forward pass tells of K queries' attention in L layers to a picture of h x w visual tokens."""

    maps: torch.Tensor  # (K, L, h, w), each summing to 1, less what is on nothing
    image_share: torch.Tensor  # (K, L), of all attention, what goes to the picture
    logits: torch.Tensor  # (T, vocab_size)
    on_nothing: torch.Tensor  # (K, L), what lies on the sink of an AGE-VLM; 0 without one


class Vlm:
    """A model with its processor. One picture and one question at a time, except for `generate`."""

    first_layer: str  # what the paper draws
    layer_names: dict[str, str] = LAYERS  # of a model that reads some of its layers only, with their numbers
    image_states: str  # what is compared to the text's states
    can_look_away: bool  # whether attention can go elsewhere than to the picture
    readout = GroundingReadout()  # how boxes are read from attention

    def __init__(self, name: str, model: PreTrainedModel, processor: ProcessorMixin, image_token_id: int) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.image_token_id = image_token_id
        # Finds words in anybody's chat text; its pictures' part and its template are not used.
        self.words = AgeVlmProcessor(
            AgeVlmImageProcessor(),
            processor.tokenizer,
            chat_template="",
            image_token=processor.tokenizer.convert_ids_to_tokens(image_token_id),
        )

    def _prompts(self, images: list[PIL.Image.Image], questions: list[str]) -> BatchFeature:
        inputs = prompts(self.processor, [one_question(*pair) for pair in zip(questions, images, strict=True)])
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def generate(
        self, images: list[PIL.Image.Image], questions: list[str], max_new_tokens: int = 24
    ) -> list[list[int]]:
        """The greedy answers' tokens, without special ones."""
        answers = generate(self.model, self._prompts(images, questions), max_new_tokens=max_new_tokens)
        special = set(self.processor.tokenizer.all_special_ids)
        return [[token for token in answer if token not in special] for answer in answers.tolist()]

    def decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids).strip()

    def encode(
        self, image: PIL.Image.Image, question: str, answer: list[int] | None = None
    ) -> tuple[dict[str, torch.Tensor], int]:
        """The model's inputs for a question, with an answer's tokens after the prompt, and the prompt's length."""
        inputs = dict(self._prompts([image], [question]))
        prompt = inputs["input_ids"]
        if answer:
            new = {"input_ids": prompt.new_tensor([answer]), "attention_mask": prompt.new_ones(1, len(answer))}
            for name, value in inputs.items():
                if value.shape == prompt.shape:  # also what else some models have for each token
                    inputs[name] = torch.cat([value, new.get(name, value.new_zeros(1, len(answer)))], dim=1)
        return inputs, prompt.shape[1]

    def find(self, inputs: dict[str, torch.Tensor], phrase: str) -> torch.BoolTensor:
        """
        The tokens `(T,)` of a phrase, wherever it stands after the picture.

        Raises:
            ValueError: If it does not stand there.
        """
        return self.words.get_query_masks(inputs["input_ids"], [phrase])[0, 0]

    def find_place(self, inputs: dict[str, torch.Tensor], text: str, start: int, end: int) -> torch.BoolTensor:
        """
        The tokens `(T,)` of the words `text[start:end]` of a text that stands after the picture, and of no others like them.

        Raises:
            ValueError: If it does not stand there.
        """
        ids = inputs["input_ids"][0]
        all_words, spans = self.words.locate_tokens(ids.tolist())
        found = find_words(all_words, text)
        if not found:
            raise ValueError(f"{text!r} is not among the words at or after the image.")
        begin, finish = found[-1]
        number = find_words(text, text[start:end]).index((start, end))
        first, last = find_words(all_words[begin:finish], text[start:end])[number]
        marked = [left < begin + last and right > begin + first for left, right in spans]
        return torch.tensor(marked, device=ids.device)

    def first_word(self, answer: list[int]) -> int:
        """How many tokens an answer's first word takes."""
        word = re.match(r"\W*\w*", self.decode(answer))[0]
        return next(n for n in range(1, len(answer) + 1) if len(self.decode(answer[:n])) >= len(word))

    def look(self, inputs: dict[str, torch.Tensor], query_masks: torch.BoolTensor) -> Look:
        """Where the tokens of each query `(K, T)` look, averaged over the heads and the query's tokens."""
        raise NotImplementedError

    def similarities(self, inputs: dict[str, torch.Tensor], words: torch.BoolTensor) -> dict[str, float]:
        """
        Cosine similarity of the mean image state and the mean state of the words `(T,)`, by what stands for the image
        states. The paper compares "final hidden states of image tokens (or their projected representations) and text
        tokens" without saying how tokens become one number; means are our reading.
        """
        raise NotImplementedError

    def _frame(self, image: PIL.Image.Image) -> torch.Tensor:
        """The picture `(3, height, width)` as the vision tower gets it, its values from 0 to 1."""
        image_processor = self.processor.image_processor
        pixels = image_processor(images=image, return_tensors="pt")["pixel_values"]
        if pixels.dim() < 4 or math.prod(pixels.shape[:-3]) != 1:
            raise ValueError(
                f"{self.name} gets a picture as a tensor of shape {tuple(pixels.shape)}; only models that get it as one "
                "frame can be drawn."
            )
        pixels = pixels.reshape(pixels.shape[-3:])
        if image_processor.do_normalize:
            mean, std = (
                pixels.new_tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std)
            )
            pixels = pixels * std + mean
        return pixels

    def placement(
        self, image: PIL.Image.Image, grid: tuple[int, int]
    ) -> tuple[tuple[int, int, int, int], torch.BoolTensor]:
        """
        What of a picture the grid of visual tokens covers. Measured rather than known, since every image processor
        stretches, crops and pads in its own way: a picture of the same size, whose red and green tell the place and whose
        blue is full, goes through it.

        Returns:
            The box `(left, top, right, bottom)` in the picture's pixels, outside of it where there is padding; and the
            cells, of shape `grid`, that hold nothing but padding.
        """
        width, height = image.size
        places = np.full((height, width, 3), 255.0)
        places[..., 0] = 255 * (np.arange(width) + 0.5) / width
        places[..., 1] = 255 * (np.arange(height)[:, None] + 0.5) / height
        frame = self._frame(PIL.Image.fromarray(places.round().astype(np.uint8)))
        inside = frame[2] > LEAST_OF_PICTURE
        edges = []
        for channel, length, axis in ((0, width, 0), (1, height, 1)):
            found = inside.any(axis).nonzero()[:, 0].numpy()
            found = found[2:-2] if len(found) > 8 else found  # resizing blurs the seam to the padding
            sums = (frame[channel] * inside).sum(axis) / inside.sum(axis)
            line = np.polyfit(found + 0.5, sums[found].numpy(), 1)
            ends = []
            for place in length * np.polyval(line, [0, inside.shape[1 - axis]]):
                # Measured to a fraction of a percent: an edge so near to the picture's is the picture's.
                near = [edge for edge in (0, length) if abs(edge - place) <= 0.01 * length]
                ends.append(near[0] if near else round(place))
            edges.append(ends)
        (left, right), (top, bottom) = edges
        padding = torch.nn.functional.adaptive_max_pool2d(inside[None].float(), grid)[0] == 0
        return (left, top, right, bottom), padding


class AgeVlm(Vlm):
    image_states = "adapter's output"

    @property
    def can_look_away(self) -> bool:
        return self.model.config.text_config.attention_sink

    @property
    def readout(self) -> GroundingReadout:
        return GroundingReadout(**self.processor.grounding_readout or {})

    @property
    def layer_names(self) -> dict[str, str]:
        """`LAYERS`, or where only some layers or heads are guided, which they are. Both are one if one layer is."""
        text = self.model.config.text_config
        if text.guidance_layers is None and text.guidance_heads is None:
            return LAYERS
        layers, heads = sorted(text.guided_layers), sorted(text.guidance_heads or ())
        of_heads = f", head{'s'[: len(heads) > 1]} {', '.join(map(str, heads))}" if heads else ""
        names = {"first": f"layer {layers[0]}{of_heads}"}
        mean = f"mean over layers {', '.join(map(str, layers))}{of_heads}"
        return names | {"mean": mean if len(layers) > 1 else names["first"]}

    @property
    def first_layer(self) -> str:
        return "first cross-attention layer" if self.layer_names is LAYERS else self.layer_names["first"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the picture's cells."""
        size, patch_size = self.processor.image_processor.size, self.processor.image_processor.patch_size
        return size.height // patch_size, size.width // patch_size

    @torch.inference_mode()
    def look(self, inputs: dict[str, torch.Tensor], query_masks: torch.BoolTensor) -> Look:
        outputs = self.model(**inputs, query_masks=query_masks[None])
        maps, sink = (part[0] for part in split_sink(outputs.grounding_maps, math.prod(self.grid)))
        return Look(maps.unflatten(-1, self.grid), 1 - sink, outputs.logits[0].cpu(), sink)

    def best_scores(self, look: Look) -> list[float]:
        """The best score of a region that each query looks at, by the checkpoint's readout; 0 for one that looks at none."""
        outputs = SimpleNamespace(grounding_maps=[layer[None] for layer in look.maps.flatten(2).unbind(1)])
        size = self.processor.image_processor.size
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, [(size.height, size.width)], threshold=0.0, return_masks=False
        )
        labels, scores = found["labels"].tolist(), found["scores"].tolist()
        return [
            max((s for s, k in zip(scores, labels, strict=True) if k == n), default=0.0) for n in range(len(look.maps))
        ]

    @torch.inference_mode()
    def look_of_heads(
        self, inputs: dict[str, torch.Tensor], words: torch.BoolTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Where the words `(T,)` look in every head of every cross-attention layer, guided or not: the attention
        `(num_layers, num_heads, h, w)`, and what lies on the sink, `(num_layers, num_heads)`, 0 without one.
        """
        num_cells = math.prod(self.grid)
        each = torch.eye(num_cells + self.can_look_away, device=self.model.device)  # a region of every cell by itself
        outputs = self.model(
            **inputs,
            query_masks=words.expand(1, len(each), -1),
            region_masks=each[None],
            output_head_region_attention=True,
        )
        maps = torch.stack([layer[0].float().cpu() for layer in outputs.head_region_attention])
        return maps[..., :num_cells].unflatten(-1, self.grid), maps[..., num_cells:].sum(-1)

    @torch.inference_mode()
    def similarities(self, inputs: dict[str, torch.Tensor], words: torch.BoolTensor) -> dict[str, float]:
        """
        No layer of an AGE-VLM has image states: the adapter's output stands for them. It is not in the text's space (the
        keys' and values' weights lie in between), so the second comparison is of what meets in the attention: each word's
        query and the key nearest to it, for a word needs no more than one cell that shows what it names. Averaged over
        the guided heads, words and guided layers.
        """
        text_config, layers = self.model.config.text_config, self.model.model.language_model.layers
        attentions = [layers[index].cross_attn for index in text_config.guided_layers]
        heads = slice(None) if text_config.guidance_heads is None else text_config.guidance_heads
        states = {}
        hooks = [
            module.register_forward_hook(lambda module, args, output: states.update({module: output[0].float()}))
            for attention in attentions
            for module in (attention.q_norm, attention.k_norm)
        ]
        outputs = self.model(**inputs, output_hidden_states=True)
        for hook in hooks:
            hook.remove()
        text = outputs.hidden_states[-1][0, words].float().mean(0)
        adapter = torch.cosine_similarity(outputs.image_outputs.pooler_output[0].float().mean(0), text, dim=0)
        in_layers = []
        for attention in attentions:
            queries = states[attention.q_norm][:, words].unsqueeze(2)
            keys = states[attention.k_norm].repeat_interleave(attention.num_key_value_groups, dim=0).unsqueeze(1)
            cosines = torch.cosine_similarity(queries, keys, dim=-1)  # (num_heads, num_words, num_image_tokens)
            in_layers.append(cosines[heads].mean(0).amax(-1).mean())
        return {self.image_states: adapter.item(), "nearest keys, to queries": torch.stack(in_layers).mean().item()}


class ConcatenationVlm(Vlm):
    first_layer = "first self-attention layer"
    image_states = "last hidden states"
    can_look_away = True

    def _image_tokens(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.BoolTensor, int]:
        """Which tokens `(T,)` are the picture's, and the side of their grid."""
        is_image = inputs["input_ids"][0] == self.image_token_id
        side = math.isqrt(int(is_image.sum()))
        values, grid = inputs["pixel_values"], inputs.get("image_grid_thw")
        if values.dim() < 4:  # patches, whose number does not tell how they lie
            is_square = grid is not None and bool(grid[0, 1] == grid[0, 2])
        else:
            is_square = math.prod(values.shape[:-3]) == 1  # not of several tiles
        if side < 2 or side * side != is_image.sum() or not is_square:
            raise ValueError(
                f"{self.name} has {int(is_image.sum())} tokens for a picture, which is no square grid; only models that "
                "put one such grid between the words can be drawn."
            )
        return is_image, side

    @torch.inference_mode()
    def look(self, inputs: dict[str, torch.Tensor], query_masks: torch.BoolTensor) -> Look:
        is_image, side = self._image_tokens(inputs)
        outputs = self.model(**inputs, output_attentions=True)
        if not outputs.attentions or any(layer is None for layer in outputs.attentions):
            raise ValueError(f"{self.name} does not return the attention weights of all of its layers.")
        weights = query_masks / query_masks.sum(-1, keepdim=True)
        layers = [weights @ layer[0].float().mean(0) for layer in outputs.attentions]  # L x (K, T)
        attention = torch.stack(layers, dim=1)[..., is_image].cpu()
        share = attention.sum(-1)
        # A layer with a window that does not reach the picture has a map of zeros.
        maps = attention / share.clamp(min=torch.finfo(share.dtype).tiny).unsqueeze(-1)
        return Look(maps.unflatten(-1, (side, side)), share, outputs.logits[0].cpu(), torch.zeros_like(share))

    @torch.inference_mode()
    def similarities(self, inputs: dict[str, torch.Tensor], words: torch.BoolTensor) -> dict[str, float]:
        is_image, _ = self._image_tokens(inputs)
        states = self.model(**inputs, output_hidden_states=True).hidden_states[-1][0].float()
        similarity = torch.cosine_similarity(states[is_image].mean(0), states[words].mean(0), dim=0)
        return {self.image_states: similarity.item()}


def load_vlm(name: str) -> Vlm:
    """
    Opens a checkpoint folder or Hub id, on a GPU if there is one.

    Raises:
        ValueError: If it cannot be loaded, or is neither an AGE-VLM nor a concatenation VLM.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if is_age_vlm(name):
            model, processor = load_checkpoint(name)
            return AgeVlm(name, model.to(device), processor, model.config.image_token_id)
        config, processor = read_other(name)
        dtype = torch.float32 if device == "cpu" else "auto"
        # Of the backends, only this one returns attention weights.
        model = load_other(name, config, attn_implementation="eager", dtype=dtype)
        image_token_id = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
        if image_token_id is None:
            raise ValueError(f"the configuration of a {config.model_type!r} model names no image token")
        if processor.chat_template is None:
            raise ValueError("its processor has no chat template")
    except Exception as error:  # readers of files raise all kinds
        reason = in_words(error)
        raise ValueError(f"{name} cannot be loaded as a vision-language model: {reason}.") from error
    for cutting in ("do_image_splitting", "do_pan_and_scan"):
        if hasattr(processor.image_processor, cutting):
            setattr(processor.image_processor, cutting, False)
    return ConcatenationVlm(name, model.to(device), processor, image_token_id)


def labels(vlms: list[Vlm]) -> list[str]:
    """What the figures call the models."""
    return short_names([vlm.name for vlm in vlms])


def by_layers(layers: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `(L, ...)` is in the first layer and on average."""
    return {"first": layers[0], "mean": layers.mean(0)}


def read_rows(path: Path, fields: dict[str, type]) -> list[dict[str, Any]]:
    """
    The rows of a JSONL file, which all have fields of these types; an `image` is relative to the file, and becomes its path.

    Raises:
        ValueError: If it cannot be read, is empty, or a line lacks a field or has one of another type.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSONL ({error}).") from error
    if not rows:
        raise ValueError(f"{path} has no rows.")
    for n, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"Row {n} of {path} is no JSON object: {str(row)[:60]!r}.")
        if missing := fields.keys() - row.keys():
            raise ValueError(f"Row {n} of {path} has no {', '.join(sorted(missing))}.")
        for name, kind in fields.items():
            if not isinstance(row[name], kind):
                words = "true or false" if kind is bool else "a string"
                raise ValueError(f"Row {n} of {path}: `{name}` has to be {words}, but is {str(row[name])[:60]!r}.")
    return [row | {"image": path.parent / row["image"]} for row in rows]
