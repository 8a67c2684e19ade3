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
"""From rows of `images`, `messages` and `regions` to the tensors of a training step."""

import contextlib
import functools
import math
import numbers
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import PIL.Image
import torch
from jinja2 import TemplateError
from transformers import ProcessorMixin
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from modeling_agevlm.image_reading_agevlm import read_image
from modeling_agevlm.processing_agevlm import default_template, find_words

from .rows import as_row
from .run_lengths import decode_rle, mask_size


logger = logging.get_logger(__name__)

Span = tuple[int, int]
# How many trainers' data sets write a picture into the words, with the line breaks that set it apart.
TAG = re.compile(r"\n?<image>\n?")
# Around the words of each part, with its number, to find them in the chat text. No text has these characters.
MARKED = re.compile("\ufdd0([0-9]+)\ufdd1(.*?)\ufdd2", re.DOTALL)


# Of a message, what some chat templates write besides its content
UNTRAINED = ("tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")

MaskKey = tuple[int, str]


def mask_key(region: dict[str, Any]) -> MaskKey:
    """What regions with the same mask have in common."""
    mask = region["mask"]
    # A long array's words are cut short, and so would be those of others.
    mask = mask and {name: part.tolist() if hasattr(part, "tolist") else part for name, part in mask.items()}
    return region["image"], str(mask)


class BrokenRowError(ValueError):
    """A row that cannot be trained on. The message says which, what is wrong with it and how to mend it."""


def with_placeholders(messages: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """
    Messages whose contents are lists of parts, with one of type `"image"` per image: those that are there, and each
    `<image>` among the user's words.

    Without any of either, all images go to the front of the first user message.

    Raises:
        ValueError: If one is no message, there are placeholders, but not one per image, or there is no user message to put
            the images into.
    """
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"its messages are of type {type(messages).__name__}, not a list")
    messages = [as_parts(n, message) for n, message in enumerate(messages)]
    num_placeholders = sum(part["type"] == "image" for m in messages for part in m["content"])
    if num_placeholders == 0 and num_images > 0:
        first = next((m for m in messages if m["role"] == "user"), None)
        if first is None:
            raise ValueError("it has images, but no user message that they could belong to")
        first["content"] = [{"type": "image"}] * num_images + first["content"]
    elif num_placeholders != num_images:
        raise ValueError(
            f"it has {num_images} images, but {num_placeholders} image placeholders in its messages (image parts and "
            "`<image>`)"
        )
    return messages


def as_parts(n: int, message: dict[str, Any]) -> dict[str, Any]:
    """Message `n` with its content as a list of parts. Raises `ValueError` if it is no message."""
    for name in UNTRAINED if isinstance(message, dict) else ():
        if message.get(name):
            raise ValueError(
                f"its message {n} has `{name}`, which is not trained here: write it out as words, or leave it out"
            )
    content = message.get("content") if isinstance(message, dict) else None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, (list, tuple)) or not isinstance(message.get("role"), str):
        raise ValueError(f"its message {n} is not {{'role': ..., 'content': words or a list of parts}}")
    if not all(is_part(part) for part in parts):
        raise ValueError(
            f"its message {n} has a part that is neither {{'type': 'text', 'text': words}} nor {{'type': 'image'}}"
        )
    content = []
    for part in parts:
        if part["type"] == "image":
            content.append({"type": "image"})
        else:  # an answer about "<image>" has it as words
            content += split_tags(part["text"]) if message["role"] == "user" else [dict(part)]
    return {"role": message["role"], "content": content}


def split_tags(text: str) -> list[dict[str, Any]]:
    """A text as parts: its words, and a picture that keeps the text of its tag for each `<image>`."""
    parts, end = [], 0
    for tag in TAG.finditer(text):
        parts += [{"type": "text", "text": text[end : tag.start()]}, {"type": "image", "text": tag[0]}]
        end = tag.end()
    parts.append({"type": "text", "text": text[end:]})
    return [part for part in parts if part["text"]]


def is_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def message_text(message: dict[str, Any]) -> str:
    """The words of a message of parts, with blanks for tags, so that each stands where it was written."""
    texts = [(part["type"], part.get("text", "")) for part in message["content"]]
    return "".join(text if kind == "text" else " " * len(text) for kind, text in texts)


def check_region(n: int, region: dict[str, Any]) -> None:
    """Raises `ValueError` if region `n` lacks a field, or has one of another type."""
    whole, nothing = numbers.Integral, type(None)
    types = {"mask": (dict, nothing), "image": whole, "text": (str, nothing), "message": (whole, nothing)}
    if not isinstance(region, dict):
        raise ValueError(f"region {n}: it is of type {type(region).__name__}, not a dictionary")
    for name, kind in types.items():
        if name not in region:
            raise ValueError(f"region {n}: it has no `{name}`")
        if not isinstance(region[name], kind):
            raise ValueError(f"region {n}: its `{name}` is {shortened(region[name])}")
    span = region.get("span") or [0, 0]
    if not (isinstance(span, (list, tuple)) and len(span) == 2 and all(isinstance(place, whole) for place in span)):
        raise ValueError(f"region {n}: its `span` is {shortened(span)}, not [start, end]")
    if region.get("span") and region["text"] is None:
        raise ValueError(f"region {n}: it has a `span`, but no `text` that stands there")


def shortened(value: Any) -> str:
    """How a value, whatever it is, is shown in a message."""
    try:
        text = repr(value)
    except Exception:
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."


class Tokens(NamedTuple):
    """A chat text, tokenized. T tokens, N pictures."""

    input_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    """Where each token begins and ends in the text, `(T,)` each."""
    pictures: list[Span]
    """The tokens from which on and before which each picture stands."""


class Piece(NamedTuple):
    """Words of one text part of a message: from `raw_start` on in the message's text, from `start` on in the chat text."""

    raw_start: int
    start: int
    length: int


@dataclass
class Example:
    """One row, tokenized. T tokens, K regions."""

    input_ids: list[int]
    labels: list[int]
    images: list[PIL.Image.Image]
    pictures: list[Span]  # the tokens that stand for each of them
    query_masks: list[np.ndarray]  # K x (T,) bool
    region_masks: list[
        tuple[int, torch.Tensor | None]
    ]  # K x (image index, its visual tokens or None for nowhere in it)
    dropped_regions: int


@dataclass
class DataCollatorForGuidedVisionLanguageModeling:
    """
    Collates rows `{"images": [...], "messages": [...], "regions": [...]}` into the inputs of
    [`AgeVlmForConditionalGeneration`] and the masks of the guidance loss.

    A region is `{"mask": {"size": [height, width], "counts": rle} or None, "image": index, "text": phrase or None, "span":
    [start, end] or None, "message": index or None}`, the mask in the pixels of the picture as it is shown. Without a mask
    it says that its words mean nothing in the picture, as those of a denied object do. Its query is the phrase (the
    character span, or the first place where it stands as whole words and sees the image, rather in its own upper and lower
    case) in its message, or the whole message, or without a message the turns that `guidance_query` names. Special tokens
    are never part of a query.

    Regions whose mask is empty on the visual tokens' grid, whose words are cut off by `max_length` or stand before
    their image are dropped and counted; so are those without a mask, unless the model has an attention sink, and, where broken
    rows are skipped, those that cannot be used.

    Args:
        processor ([`AgeVlmProcessor`]):
            The processor. Labels are the assistant's words and its ends of turn in its chat template.
        max_length (`int`, *optional*):
            Tokens per row; longer rows are cut at the end.
        guidance_query, guidance_level, mask_downsampling, broken_rows, pad_to_multiple_of:
            See [`GuidedSFTConfig`].
        attention_sink (`bool`, *optional*, defaults to `False`):
            Whether the model has one: `text_config.attention_sink` of its config.

    Returns a batch of B rows with N images and K regions at the most, and S visual tokens per image:
        `input_ids`, `attention_mask`, `labels` (B, T), `pixel_values` (B, N, 3, H, W), with padded pictures
        `pixel_attention_mask` (B, N, H, W), `query_masks` (B, K, T) and `region_masks` (B, K, N * S), or (B, K, N * S + 1)
        with the sink, if any row has a region, and the counts `dropped_regions` and `skipped_rows`, each (B,).

    Raises:
        BrokenRowError: For a row that cannot be read or has no label, unless `broken_rows` is `"skip"`. A batch of such
            rows alone is then two tokens without labels.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    guidance_query: Literal["question", "answer", "both"] = "answer"
    guidance_level: Literal["message", "phrase", "all"] = "all"
    mask_downsampling: Literal["any", "area"] = "any"
    broken_rows: Literal["stop", "skip"] = "stop"
    pad_to_multiple_of: int | None = None
    attention_sink: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        examples = {}
        for position, row in enumerate(rows):
            with self._naming(position, row):
                examples[position] = self.read_row(row)
        try:
            pictures = self._pixel_values(list(examples.values()))
        except Exception:  # whose picture it is
            for position in list(examples):
                with self._naming(position, rows[position]):
                    example = examples.pop(position)
                    self._pixel_values([example])
                    examples[position] = example
            pictures = self._pixel_values(list(examples.values()))
        skipped_rows = len(rows) - len(examples)
        batch = self._collate(list(examples.values()) or [self._nothing()], pictures)
        batch["skipped_rows"] = torch.tensor([skipped_rows] + [0] * (len(batch["input_ids"]) - 1))
        return batch

    def batch_of(self, example: Example) -> dict[str, torch.Tensor]:
        """A row that was read, as a batch of its own; without the counts of skipped rows."""
        return self._collate([example], self._pixel_values([example]))

    @contextlib.contextmanager
    def _naming(self, position: int, row: Any) -> Iterator[None]:
        """Has whatever a row raises, which is anything, name the row, or skips the row."""
        try:
            yield
        except Exception as error:
            if self.broken_rows == "stop":
                # Others do not say what is wrong by themselves.
                reason = error if isinstance(error, (ValueError, OSError, TemplateError)) else repr(error)
                raise BrokenRowError(
                    f"{self._name(position, row)} is broken: {reason}. Mend or remove the row, or set "
                    "`broken_rows='skip'`."
                ) from error

    def _name(self, position: int, row: Any) -> str:
        """Names a row so that its owner finds it: its id if it has one, its place in the batch and its first words."""
        identity = f" (id {shortened(row['id'])})" if isinstance(row, dict) and "id" in row else ""
        try:
            words = message_text(as_parts(0, row["messages"][0]))
        except Exception:  # which may be what is wrong with it
            words = shortened(row.get("messages", "") if isinstance(row, dict) else row)
        return f"Row {position} of the batch{identity}, which begins with {words[:60]!r},"

    def _nothing(self) -> Example:
        """What a batch consists of whose rows are all broken: every process has to have one to go on with."""
        return Example([self.processor.tokenizer.pad_token_id] * 2, [-100] * 2, [], [], [], [], dropped_regions=0)

    def read_row(self, row: dict[str, Any]) -> Example:
        """One row to token ids, labels, pictures and regions. Raises `ValueError` or `OSError` if it is broken."""
        if not isinstance(row, dict):
            raise ValueError(f"it is of type {type(row).__name__}, not a dictionary")
        row = as_row(row)
        regions = row.get("regions") or []
        if self.broken_rows == "skip" and not isinstance(regions, (list, tuple)):
            regions = [regions]  # which is none, and is dropped as one
        for name, value in {"images": row.get("images") or [], "regions": regions}.items():
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"its `{name}` are of type {type(value).__name__}, not a list")
        images = []
        for n, image in enumerate(row.get("images") or []):
            try:
                # Whoever wrote a row may name a file, not an address.
                images.append(read_image(Path(image) if isinstance(image, str) else image))
            except Exception as error:
                path = image.get("path") if isinstance(image, dict) else None
                place = "" if path is None else f", {path},"
                raise OSError(f"image {n}{place} cannot be read ({str(error).rstrip('.') or repr(error)})") from error
        messages = with_placeholders(row.get("messages"), len(images))
        tokenizer = self.processor.tokenizer
        if not messages:
            raise ValueError("it has no messages")
        if row.get("tools"):
            raise ValueError("it has `tools`, which no chat is trained with here")
        up_to = functools.cache(lambda n: self._render(messages[: n + 1]))  # the chat text up to and with message n
        text = up_to(len(messages) - 1)
        image_token = self.processor.image_token
        if text.count(image_token) != len(images):
            raise ValueError(f"the image placeholder {image_token} stands among its words")
        answers = self._assistant_spans(messages, up_to)
        input_ids, starts, ends, pictures = self._tokenize(text, [start for start, _ in answers], images)
        special = np.isin(input_ids, tokenizer.all_special_ids + [self.processor.image_token_id])

        is_label = np.zeros(len(starts), dtype=bool)
        for span in answers:
            is_label |= (starts < span[1]) & (ends > span[0])
        is_label &= input_ids != self.processor.image_token_id
        # Cut here: the tokenizer would keep its own truncation as a setting, and save it with the checkpoint.
        kept = slice(self.max_length)
        labels = np.where(is_label, input_ids, -100)[kept]
        pictures_left = [picture for picture in pictures if picture[0] < len(labels)]
        if pictures_left and pictures_left[-1][1] > len(labels):
            raise ValueError(
                f"`max_length` ({self.max_length}) cuts through the visual tokens of image {len(pictures_left) - 1}: raise it"
            )
        if (labels[1:] == -100).all():
            raise ValueError(
                f"it has no label: of no assistant turn anything is left within `max_length` ({self.max_length}), or it has none"
            )
        seen = images[: len(pictures_left)]
        example = Example(input_ids[kept].tolist(), labels.tolist(), seen, pictures_left, [], [], dropped_regions=0)
        located, cells_of = None, {}  # several texts of a row often share a mask
        for n, region in enumerate(regions):
            try:
                check_region(n, region)
                if self.guidance_level != "all" and (self.guidance_level == "phrase") == (region["text"] is None):
                    continue
                try:
                    located = located or self._locate_words(messages, text)
                    if (mask := mask_key(region)) not in cells_of:
                        cells_of |= self._region_cells(regions[n:], images)
                    cells = cells_of[mask]
                    is_somewhere = self.attention_sink if cells is None else bool(cells.any())
                    image_start = int(starts[pictures[region["image"]][0]])
                    spans = self._query_spans(region, messages, located, image_start)
                except Exception as error:
                    raise ValueError(f"region {n}: {error}") from error
            except ValueError:
                if self.broken_rows == "stop":
                    raise
                example.dropped_regions += 1  # its row trains without it
                continue
            query = np.zeros(len(starts), dtype=bool)
            for span in spans:
                query |= (starts < span[1]) & (ends > span[0])
            query &= ~special
            query[: pictures[region["image"]][0]] = False  # only words at and after its placeholder see an image
            is_cut = query[len(labels) :].any()
            if is_somewhere and query.any() and not is_cut:
                example.query_masks.append(query[kept])
                example.region_masks.append((region["image"], cells))
            else:
                example.dropped_regions += 1
        return example

    def _tokenize(self, text: str, prompt_ends: list[int], images: list[PIL.Image.Image]) -> Tokens:
        """
        In use a prompt is tokenized before there is an answer: a token with letters of both (Mistral's "](", where an answer
        begins with a bracket) is taken apart.
        """
        tokenizer = self.processor.tokenizer
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        input_ids = np.array(encoding["input_ids"])
        spans = np.array(encoding["offset_mapping"]).reshape(-1, 2)
        for place in prompt_ends:
            for n in np.flatnonzero((spans[:, 0] < place) & (spans[:, 1] > place)):
                ids, halves = [], []
                for span in ((spans[n, 0], place), (place, spans[n, 1])):
                    # Behind a line break, for some tokenizers put a space before what stands alone.
                    both = tokenizer(["\n", "\n" + text[slice(*span)]], add_special_tokens=False)["input_ids"]
                    ids += both[1][len(both[0]) :]
                    halves += [span] * (len(ids) - len(halves))
                input_ids = np.concatenate([input_ids[:n], ids, input_ids[n + 1 :]])
                spans = np.concatenate([spans[:n], halves, spans[n + 1 :]])
        places = np.flatnonzero(input_ids == self.processor.image_token_id).tolist()
        return Tokens(input_ids, spans[:, 0], spans[:, 1], [(place, place + 1) for place in places])

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        """The chat text."""
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=default_template(self.processor.chat_template),
            add_generation_prompt=add_generation_prompt,
            **self.processor.tokenizer.special_tokens_map,
        )
        return texts[0]

    def _assistant_spans(self, messages: list[dict[str, Any]], up_to: Callable[[int], str]) -> list[Span]:
        """
        Where the assistant's words and its ends of turn stand in the chat text: what `generate` is to write. Some templates
        write an earlier turn in another way once others follow, so that it was never prompted for: it is left out.
        """
        text, spans, changed = up_to(len(messages) - 1), [], []
        for n, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self._render(messages[:n], add_generation_prompt=True)
                turn = up_to(n).rstrip()  # some templates end a turn with a line break
                start = len(prompt) if turn.startswith(prompt) else None
                if start is None:  # LLaVA-OneVision's prompts with other white space than stands before an answer
                    alike = re.match(r"\s*" + r"\s+".join(map(re.escape, prompt.split())) + r"\s*", turn)
                    start = alike and alike.end()
                if text.startswith(turn) and start is not None:
                    spans.append((start, len(turn)))
                else:
                    changed.append(n)
        if changed and not spans:
            raise ValueError(
                f"the chat template renders the assistant's message {changed[0]} differently once others follow, or "
                "differently from what it prompts for"
            )
        if changed:
            logger.warning_once(
                "The chat template renders earlier turns of the assistant differently once others follow, so that they are "
                "not what it is prompted for: of such rows only the later answers are labels."
            )
        return spans

    def _locate_words(self, messages: list[dict[str, Any]], text: str) -> list[list[Piece]]:
        """Where the words of each message stand in the chat text: one piece per text part that has words."""
        marked, origins = [], []  # origins: the message of each marked text, and where it stands there
        for n, message in enumerate(messages):
            content, raw_end = [], 0
            for part in message["content"]:
                written, words = part.get("text", ""), part.get("text", "").strip()
                if part["type"] == "text" and words:
                    before, after = written.split(words, 1)
                    origins.append((n, raw_end + len(before), words))
                    part = part | {"text": f"{before}\ufdd0{len(origins) - 1}\ufdd1{words}\ufdd2{after}"}
                content.append(part)
                raw_end += len(written)
            marked.append(message | {"content": content})
        rendered = self._render(marked)
        if MARKED.sub(r"\2", rendered) != text:
            raise ValueError(
                "the chat template writes its messages differently for other words, so that the words of a region cannot be "
                "found in the text"
            )
        located, num_marks = [[] for _ in messages], 0
        for match in MARKED.finditer(rendered):
            n, raw_start, words = origins[int(match[1])]
            if match[2] != words:
                raise ValueError(f"the chat template changes the words of message {n}")
            located[n].append(Piece(raw_start, match.start() - num_marks, len(words)))
            num_marks += len(match[0]) - len(words)
        return located

    def _query_spans(
        self, region: dict[str, Any], messages: list[dict[str, Any]], located: list[list[Piece]], image_start: int
    ) -> list[Span]:
        """Character spans in the chat text of the words that look at a region of the image that stands at `image_start`."""
        if region["message"] is not None and not 0 <= region["message"] < len(messages):
            raise ValueError(f"it belongs to message {region['message']}, but there are {len(messages)} messages")
        if region["message"] is not None:
            candidates = [region["message"]]
        else:
            roles = {"question": ["user"], "answer": ["assistant"], "both": ["user", "assistant"]}[self.guidance_query]
            candidates = [n for n, message in enumerate(messages) if message["role"] in roles]
        if region["text"] is None:
            return [(piece.start, piece.start + piece.length) for n in candidates for piece in located[n]]
        found = []
        for n in candidates:
            raw = message_text(messages[n])
            for piece in located[n]:
                words = raw[piece.raw_start : piece.raw_start + piece.length]
                if region.get("span"):
                    first, last = (place - piece.raw_start for place in region["span"])
                    places = [(first, last)] if 0 <= first and words[first:last] == region["text"] else []
                else:
                    places = find_words(words, region["text"])
                for first, last in places:
                    start = piece.start + first
                    is_like = words[first:last] == region["text"]
                    found.append((start < image_start, not is_like, start, start + last - first))
        if not found:
            place = f"at its span {list(region['span'])}" if region.get("span") else "as whole words"
            raise ValueError(f"its phrase {region['text']!r} does not stand in its message {place}")
        return [min(found)[2:]]

    def _region_cells(
        self, regions: Sequence[dict[str, Any]], images: list[PIL.Image.Image]
    ) -> dict[MaskKey, torch.Tensor | None]:
        """
        The first one of the regions, and others if that is no more work, on the grid of the visual tokens: `(h, w)`, 1 inside;
        None if it is nowhere in its picture.
        """
        mask = self._region_mask(regions[0], images)
        if mask is None:
            return {mask_key(regions[0]): None}
        coverage = self.processor.image_processor.mask_coverage(mask)
        return {mask_key(regions[0]): (coverage > (0.0 if self.mask_downsampling == "any" else 0.5)).float()}

    def _region_mask(self, region: dict[str, Any], images: list[PIL.Image.Image]) -> np.ndarray | None:
        """The region in the pixels of its picture: `(height, width)`, boolean; None if it is nowhere there."""
        if not 0 <= region["image"] < len(images):
            raise ValueError(f"it belongs to image {region['image']}, but there are {len(images)} images")
        if region["mask"] is None:
            return None
        size = images[region["image"]].height, images[region["image"]].width
        height, width = mask_size(region["mask"])
        if (height, width) != size:
            raise ValueError(
                f"its mask has {height} x {width} pixels (height x width), but image {region['image']} has {size[0]} x "
                f"{size[1]}"
            )
        return decode_rle(region["mask"])

    def _pixel_values(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """The pictures of a batch; nothing if it has none."""
        if not any(example.images for example in examples):
            return {}
        return dict(self.processor.image_processor([example.images for example in examples], return_tensors="pt"))

    def _collate(self, examples: list[Example], pictures: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        length = max(len(example.input_ids) for example in examples)
        if self.pad_to_multiple_of is not None:
            length = -(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of

        def padded(values: list, fill: int) -> torch.Tensor:
            return torch.tensor(list(values) + [fill] * (length - len(values)))

        batch = {
            "input_ids": torch.stack([padded(e.input_ids, tokenizer.pad_token_id) for e in examples]),
            "attention_mask": torch.stack([padded([1] * len(e.input_ids), 0) for e in examples]),
            "labels": torch.stack([padded(e.labels, -100) for e in examples]),
            "dropped_regions": torch.tensor([e.dropped_regions for e in examples]),
        }
        batch |= pictures
        num_regions = max(len(e.query_masks) for e in examples)
        if num_regions > 0:
            batch["query_masks"] = torch.zeros((len(examples), num_regions, length), dtype=torch.bool)
            for row, example in enumerate(examples):
                for k, query in enumerate(example.query_masks):
                    batch["query_masks"][row, k] = padded(query.tolist(), False)
            batch["region_masks"] = self._region_masks(examples, num_regions, batch)
        return batch

    def _region_masks(
        self, examples: list[Example], num_regions: int, batch: dict[str, torch.Tensor]
    ) -> torch.FloatTensor:
        """The regions of a batch on its visual tokens, and with the sink whether they are nowhere in their picture."""
        num_images = batch["pixel_values"].shape[1]
        patch_size = self.processor.image_processor.patch_size
        num_cells = math.prod(side // patch_size for side in batch["pixel_values"].shape[-2:])
        region_masks = torch.zeros((len(examples), num_regions, num_images, num_cells))
        is_nowhere = torch.zeros((len(examples), num_regions, 1))
        for row, example in enumerate(examples):
            for k, (image, cells) in enumerate(example.region_masks):
                if cells is None:  # anywhere but in this picture
                    region_masks[row, k, : len(example.images)] = 1
                    is_nowhere[row, k] = 1
                region_masks[row, k, image] = 0 if cells is None else cells.flatten()
        columns = [region_masks.flatten(2), is_nowhere]
        return torch.cat(columns[: 1 + self.attention_sink], dim=-1)
