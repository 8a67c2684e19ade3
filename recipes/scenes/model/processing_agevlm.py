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
"""Processor of AGE-VLM: chat text with one placeholder per image, and the images."""

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.utils.versions import require_version


require_version("transformers>=5.24", "AGE-VLM needs it: pip install --upgrade transformers")

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images, make_nested_list_of_images
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import PreTrainedTokenizerBase, TextInput
from transformers.utils import auto_docstring

from .grounding_agevlm import GroundingReadout, find_regions


# Goes before an LLM's own chat template, which knows only words: a message's list of parts becomes its words with one
# placeholder per image, where the image stands. If all images of a message come last, they are moved to its front, for
# only the text after a placeholder sees the image. The date that LLaMA-3.2's template would take from the clock is fixed.
IMAGES_TO_PLACEHOLDERS = """\
{%- set flat = namespace(messages=[]) %}
{%- for message in messages %}
    {%- if message['content'] is string %}
        {%- set message = dict(message, content=message['content'] | trim) %}
    {%- elif message['content'] is iterable %}
        {%- set types = message['content'] | map(attribute='type') | join(' ') %}
        {%- set is_placed = 'text image' in types and 'image text' in types %}
        {%- set body = namespace(text='') %}
        {%- for part in message['content'] %}
            {%- if part['type'] != 'image' %}
                {%- set body.text = body.text + part['text'] %}
            {%- elif is_placed %}
                {%- set body.text = body.text + '<|image|>' %}
            {%- endif %}
        {%- endfor %}
        {%- set text = body.text | trim %}
        {%- if not is_placed %}
            {%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list | length %}
            {%- set text = '<|image|>' * images + text %}
        {%- endif %}
        {%- set message = dict(message, content=text) %}
    {%- endif %}
    {%- set flat.messages = flat.messages + [message] %}
{%- endfor %}
{%- set messages = flat.messages %}
{%- if date_string is not defined %}
    {%- set date_string = '26 Jul 2024' %}
{%- endif %}
"""
# LLaMA-3's chat format without its system message, for tokenizers that have its tokens and no template.
LLAMA_3_CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# How the names of letters begin that are written without spaces between words or, in Korean, with particles at the noun.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "THAI", "LAO", "KHMER", "MYANMAR")


def find_words(text: str, phrase: str) -> list[tuple[int, int]]:
    r"""
    Where a phrase stands in a text as whole words: `(start, end)` for each place, from left to right.

    "man" is not in "woman", nor "cafe" in "cafe\u0301". Case, kinds of white space and how letters are composed do not
    matter. In writing without spaces between words any letter may begin or end one.
    """
    folded, starts, ends = _fold(text)
    pattern = r"\s+".join(re.escape(_fold(word)[0]) for word in phrase.split())
    found = []
    for match in re.finditer(f"(?=({pattern}))", folded) if pattern else ():
        first, last = match.start(1), match.end(1) - 1
        is_split = starts[first] in starts[first - 1 : first] or ends[last] in ends[last + 1 : last + 2]
        if not is_split and is_word_edge(text, starts[first]) and is_word_edge(text, ends[last]):
            found.append((starts[first], ends[last]))
    return found


@lru_cache(maxsize=16)  # often one text for several phrases
def _fold(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """Text in which what is alike is equal, and where each of its characters begins and ends in the one that was given."""
    if text.isascii():
        return text.lower(), range(len(text)), range(1, len(text) + 1)
    folded, starts, ends = "", [], []
    for end in range(1, len(text) + 1):
        if not _is_mark(text[end : end + 1]):  # a letter with all of its marks
            start = ends[-1] if ends else 0
            letters = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text[start:end]).casefold())
            folded += letters
            starts += [start] * len(letters)
            ends += [end] * len(letters)
    return folded, starts, ends


def _is_mark(character: str) -> bool:
    """Whether a character belongs to the one before it: accents, vowel signs, joiners."""
    return character != "" and (unicodedata.category(character)[0] == "M" or character in "\u200c\u200d")


def is_word_edge(text: str, place: int) -> bool:
    """Whether a word can begin or end before the character at `place`, which is none of the marks of another."""
    around = text[max(place - 1, 0) : place + 1]
    is_inside = len(around) == 2 and all(c.isalnum() or c == "_" or _is_mark(c) for c in around)
    return not is_inside or any(unicodedata.name(c, "").startswith(UNSPACED) for c in around)


def default_template(templates: str | dict[str, str] | None) -> str | None:
    """
    The chat template, of several that have names the one that is meant where none is named.

    Raises:
        ValueError: If none has the name `"default"`.
    """
    if not isinstance(templates, dict):
        return templates
    if "default" not in templates:
        raise ValueError(
            f"None of the chat templates {', '.join(map(repr, sorted(templates)))} is named 'default'. Pass the one to use "
            "as `chat_template`."
        )
    return templates["default"]


def beginning_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that a tokenizer puts before a text by itself, or nothing."""
    is_put = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if is_put else ""


@auto_docstring
class AgeVlmProcessor(ProcessorMixin):
    _auto_class = "AutoProcessor"

    def __init__(
        self,
        image_processor,
        tokenizer,
        chat_template: str | None = None,
        image_token: str = "<|image|>",
        grounding_readout: dict[str, float] | None = None,
    ):
        r"""
        image_token (`str`, *optional*, defaults to `"<|image|>"`):
            The placeholder in the text, one per image. It has to be one token of the tokenizer.
        chat_template (`str` or `dict[str, str]`, *optional*):
            A Jinja template that puts one placeholder per image, or several by name, of which `"default"` is taken.
            Defaults to the tokenizer's own, extended by that. It writes the whole text: where it leaves the beginning
            of the text to the tokenizer, that is added to it.
        grounding_readout (`dict[str, float]`, *optional*):
            How regions are read from the attention, see [`GroundingReadout`]; only what differs from its defaults.
        """
        self.grounding_readout = grounding_readout
        GroundingReadout(**grounding_readout or {})  # refuses what it cannot be
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The image placeholder {image_token!r} is not a token of the tokenizer. Add it as a special token, or "
                "pass the `image_token` that the tokenizer has."
            )
        if chat_template is None:
            template = default_template(getattr(tokenizer, "chat_template", None))
            if template is None and "<|start_header_id|>" in tokenizer.get_vocab():
                template = LLAMA_3_CHAT_TEMPLATE
            if template is None:
                raise ValueError(
                    "The tokenizer has no chat template. Take the tokenizer of an instruction-tuned LLM, or pass "
                    "`chat_template`."
                )
            chat_template = IMAGES_TO_PLACEHOLDERS.replace("<|image|>", image_token) + template
        default_template(chat_template)  # refuses templates of which none is the default
        has_names = isinstance(chat_template, dict)
        templates = chat_template if has_names else {"default": chat_template}
        beginning = beginning_of_text(tokenizer)
        templates = {
            name: template
            if not beginning or beginning in template or "bos_token" in template
            else "{{- bos_token }}" + template
            for name, template in templates.items()
        }
        chat_template = templates if has_names else templates["default"]
        # `generate` goes on behind a row's last token, and LLaMA's tokenizers say "right". Only what was passed is saved.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        # Where LLaMA-2's tokenizers put spaces, which they lose when they are saved (transformers 5.24).
        if hasattr(tokenizer, "legacy"):
            tokenizer.init_kwargs["legacy"] = tokenizer.legacy
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @auto_docstring
    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        Returns:
            [`BatchFeature`]: A [`BatchFeature`] with the following fields:

            - **input_ids** -- `(batch_size, sequence_length)`; an image is one placeholder token.
            - **attention_mask** -- `(batch_size, sequence_length)`, 0 on padding, which is on the left.
            - **pixel_values** -- `(batch_size, num_images, num_channels, height, width)`, when there are images; rows
              with fewer images end in zeros.
            - **pixel_attention_mask** -- `(batch_size, num_images, height, width)`, when the image processor pads.
        """
        # What a chat template wrote has its beginning, which the tokenizer is not to put before it once more.
        texts, bos = [text] if isinstance(text, str) else text or [], self.tokenizer.bos_token
        if bos and any(words.startswith(bos) for words in texts):
            kwargs = {"add_special_tokens": False, **kwargs}
            beginning = beginning_of_text(self.tokenizer)
            text = [words if words.startswith(bos) else beginning + words for words in texts]
        return super().__call__(images=images, text=text, **kwargs)

    def prepare_inputs_layout(self, images: ImageInput | None = None, text=None, **kwargs):
        images, text, *rest = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        if images is not None:
            images = self._images_per_row(images, text)
            if not any(images):  # a batch of text alone
                images = None
        return images, text, *rest

    def _images_per_row(self, images: ImageInput, text: list[str] | None) -> list[list[ImageInput]]:
        """Images as a list per row; a flat list of images is dealt out to the rows' placeholders in order."""
        nested = make_nested_list_of_images(images)
        if text is None or len(nested) == len(text):
            return nested
        flat = make_flat_list_of_images(images)
        counts = [row.count(self.image_token) for row in text]
        if sum(counts) != len(flat):
            raise ValueError(
                f"The total number of {self.image_token} tokens in the prompts should be the same as the number of "
                f"images, but there are {sum(counts)} tokens and {len(flat)} images. Pass one list of images per text."
            )
        images_left = iter(flat)
        return [[next(images_left) for _ in range(count)] for count in counts]

    def apply_chat_template(self, conversation, *args, **kwargs):
        r"""
        As [`ProcessorMixin.apply_chat_template`]. With `sanitize_control_tokens=True` what a message says is words, also
        where it reads like the image placeholder, a turn's end or any other special token.
        """
        if kwargs.get("sanitize_control_tokens"):
            conversation = self._join_words(conversation)
        if kwargs.get("tokenize"):  # the template has written all there is, as for the tokenizer's own
            kwargs["processor_kwargs"] = {"add_special_tokens": False, **(kwargs.get("processor_kwargs") or {})}
        return super().apply_chat_template(conversation, *args, **kwargs)

    def _join_words(self, messages):
        """Messages whose neighboring texts are one: a special token in two halves would be found in neither."""
        if isinstance(messages, (list, tuple)):
            return [self._join_words(message) for message in messages]
        content = messages.get("content") if isinstance(messages, dict) else None
        if not isinstance(content, (list, tuple)):
            return messages
        joined = []
        for part in content:
            if joined and part["type"] == joined[-1]["type"] == "text":
                joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
            else:
                joined.append(part)
        return messages | {"content": joined}

    def validate_inputs(self, images: ImageInput | None = None, text=None, **kwargs) -> None:
        if kwargs.get("sanitize_control_tokens"):
            return  # the sanitized words are cut out of `text`, and what was around them can read like a placeholder
        if text is not None and images is not None:
            for row, (row_text, row_images) in enumerate(zip(text, images, strict=True)):
                num_placeholders = row_text.count(self.image_token)
                if num_placeholders != len(row_images):
                    raise ValueError(
                        f"Text {row} has {num_placeholders} image placeholders ({self.image_token}), but "
                        f"{len(row_images)} images. Put one placeholder per image into the text; "
                        "`apply_chat_template` does so for every image of a message."
                    )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: BatchFeature, image_idx: int, **kwargs) -> str:
        return self.image_token  # cross-attention reads the image: the text keeps one token per image

    def get_query_masks(self, input_ids: torch.LongTensor, phrases: list[str] | list[list[str]]) -> torch.BoolTensor:
        r"""
        Marks the tokens of phrases. Passed to the model as `query_masks`, it returns where these words look.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Token ids with their image placeholders: a prompt, or what `generate` returned for it.
            phrases (`list[str]` or `list[list[str]]`):
                Words as they stand in the text, the same for all rows or a list for each. Case and line breaks do not
                matter, but they have to be whole words: "cup" is not in "cupboard".

        Returns:
            `torch.BoolTensor` of shape `(batch_size, num_phrases, sequence_length)`: True for all tokens that share a
            character with the phrase, wherever it stands at or after the row's first image. Set what you do not mean to
            False, such as the prompt (`[..., :prompt_length]`) to ask for the answer's words alone. A row with fewer
            phrases ends in masks without a token.

        Raises:
            ValueError: If a phrase does not stand there. Words before the first image do not see it.
        """
        input_ids = torch.as_tensor(input_ids)
        if all(isinstance(phrase, str) for phrase in phrases):
            phrases = [phrases] * len(input_ids)
        if len(phrases) != len(input_ids):
            raise ValueError(
                f"There are lists of phrases for {len(phrases)} rows, but `input_ids` has {len(input_ids)}. Pass one "
                "list per row, or one of strings for all."
            )
        query_masks = torch.zeros((len(input_ids), max(map(len, phrases)), input_ids.shape[1]), dtype=torch.bool)
        for row, (token_ids, row_phrases) in enumerate(zip(input_ids.tolist(), phrases, strict=True)):
            text, spans = self.locate_tokens(token_ids)
            for k, phrase in enumerate(row_phrases):
                found = find_words(text, phrase)
                if not found:
                    words = textwrap.shorten(text.replace("\0", " "), 200, placeholder=" ...")
                    raise ValueError(
                        f"{phrase!r} is not among the words at or after the image in row {row} of `input_ids`, which "
                        f"are {words!r}. Pass words as they stand there."
                    )
                marked = [any(start < last and end > first for first, last in found) for start, end in spans]
                query_masks[row, k] = torch.tensor(marked)
        return query_masks.to(input_ids.device)

    def locate_tokens(self, token_ids: list[int]) -> tuple[str, list[tuple[int, int]]]:
        r"""
        Which characters each token stands for.

        Args:
            token_ids (`list[int]`):
                The tokens of one row with their image placeholders: a prompt, or what `generate` returned for it.

        Returns:
            `tuple[str, list[tuple[int, int]]]`: The text from the first image on, where special tokens are NUL
            characters, and for each token its `(start, end)` there. Special tokens and those before the image stand
            nowhere (`(0, 0)`).
        """
        special_ids = {*self.tokenizer.all_special_ids, self.image_token_id}
        first = token_ids.index(self.image_token_id) if self.image_token_id in token_ids else len(token_ids)
        text, spans = "", [(0, 0)] * first
        for is_special, run in groupby(token_ids[first:], key=special_ids.__contains__):
            run = list(run)
            if is_special:
                text += "\0"
                spans += [(0, 0)] * len(run)
                continue
            # Generated tokens need not be what the tokenizer makes of their text, so its offsets do not tell.
            prefixes = self.tokenizer.batch_decode(
                [run[: n + 1] for n in range(len(run))], clean_up_tokenization_spaces=False
            )
            start = 0
            for prefix in prefixes:
                complete = len(prefix.rstrip("\ufffd"))  # without a character of which only some bytes are there yet
                spans.append((len(text) + start, len(text) + complete + (complete < len(prefix))))
                start = complete
            text += prefixes[-1]
        return text, spans

    def get_visual_bias(self, masks: list[list[np.ndarray | None]], strength: float = 4.0) -> torch.FloatTensor:
        """
        Tells a model where to look: the `visual_bias` of its call, or of `generate`.

        Args:
            masks (`list[list[np.ndarray | None]]`):
                For each row and picture the boolean mask `(height, width)` of where to look, in the pixels of the picture
                as it is shown (after its EXIF rotation), or `None` for anywhere in it. Rows have as many as they have
                pictures.
            strength (`float`, *optional*, defaults to 4.0):
                By how much the scores of all other cells of a picture are lowered: their attention is `exp(-strength)`
                times what it would be.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_images * num_image_tokens)`: 0 for the cells that a mask touches,
            `-strength` for the others.

        Raises:
            ValueError: If a mask is empty or no mask, or the strength is no finite number from 0 on.
        """
        if not 0 <= strength < float("inf"):
            raise ValueError(f"`strength` is {strength}, but should be a finite number from 0 on.")
        bias = torch.zeros(len(masks), max(map(len, masks), default=0), math.prod(self._grid))
        for n, row in enumerate(masks):
            for m, mask in enumerate(row):
                if mask is None:
                    continue
                mask = np.asarray(mask)
                if mask.ndim != 2 or mask.dtype != bool:
                    raise ValueError(
                        f"The mask of row {n}, picture {m} is of shape {mask.shape} and {mask.dtype}, but should be boolean, of "
                        "the picture's height and width."
                    )
                touched = self.image_processor.mask_coverage(mask).flatten() > 0
                if not touched.any():
                    raise ValueError(
                        f"The mask of row {n}, picture {m} is empty, or lies where the picture is cropped."
                    )
                bias[n, m, ~touched] = -strength
        return bias.flatten(1)

    def post_process_grounding(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | list[list[tuple[int, int]]],
        layers: list[int] | None = None,
        smooth: bool = False,
    ) -> list[list[torch.FloatTensor]]:
        r"""
        Brings the model's `grounding_maps` over the pictures: where the words of each query look.

        Args:
            outputs ([`AgeVlmCausalLMOutputWithPast`]):
                What the model returned when it was called with `query_masks`.
            target_sizes (`list[tuple[int, int]]` or `list[list[tuple[int, int]]]`):
                For each row the `(height, width)` in pixels of its picture, or a list of that for each of its pictures.
                Pictures are measured as they are shown (after their EXIF rotation).
            layers (`list[int]`, *optional*):
                Which guided layers to average, 0 for the first of them. Defaults to all.
            smooth (`bool`, *optional*, defaults to `False`):
                Whether the maps go over smoothly from one cell to the next, to look at them.

        Returns:
            `list[list[torch.FloatTensor]]`: For each row and picture a tensor of shape `(num_regions, height, width)`,
            in float32 on the CPU. A pixel's value is its share of the query's attention: over all pictures of a row they
            sum to 1, less what lies on the sink of a model that has one. Each cell's attention lies evenly on the part of
            the picture that the cell shows: nothing lies on padding, and nothing on what was cropped.

        Raises:
            ValueError: If there are no `grounding_maps`, or the sizes do not fit them.
        """
        maps, rows = self._cells_of_pictures(outputs, target_sizes, layers)
        return [
            [
                self.image_processor.cells_to_pixels(cells, *size, smooth=smooth)
                for cells, size in zip(row_maps, sizes, strict=False)
            ]
            for row_maps, sizes in zip(maps, rows, strict=True)
        ]

    @property
    def _grid(self) -> tuple[int, int]:
        """How many rows and columns of cells a picture has."""
        size, patch_size = self.image_processor.size, self.image_processor.patch_size
        return size.height // patch_size, size.width // patch_size

    def _cells_of_pictures(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | list[list[tuple[int, int]]],
        layers: list[int] | None = None,
    ) -> tuple[torch.FloatTensor, list[list[tuple[int, int]]]]:
        """The mean of the `grounding_maps` as `(batch_size, num_images, num_regions, h, w)`, and each row's sizes."""
        if outputs.grounding_maps is None:
            raise ValueError("The outputs have no `grounding_maps`. Call the model with `query_masks`.")
        # Layers may lie on several devices.
        maps = torch.stack([layer_map.cpu() for layer_map in outputs.grounding_maps])
        maps = maps.mean(dim=0) if layers is None else maps[layers].mean(dim=0)
        height, width = self._grid
        maps = maps[..., : maps.shape[-1] // (height * width) * (height * width)]  # the sink's column comes last
        # (batch_size, num_regions, num_images * h * w) -> (batch_size, num_images, num_regions, h, w)
        maps = maps.unflatten(-1, (-1, height, width)).transpose(1, 2)
        rows = [sizes if isinstance(sizes, list) else [sizes] for sizes in target_sizes]
        if len(rows) != maps.shape[0] or max(map(len, rows)) > maps.shape[1]:
            raise ValueError(
                f"`target_sizes` has sizes for {list(map(len, rows))} pictures per row, but the outputs are of "
                f"{maps.shape[0]} rows with up to {maps.shape[1]} pictures."
            )
        return maps, rows

    def post_process_grounded_object_detection(
        self,
        outputs,
        target_sizes: list[tuple[int, int]] | list[list[tuple[int, int]]],
        text_labels: list[list[str]] | None = None,
        threshold: float = 0.25,
        return_masks: bool = True,
    ) -> list[dict[str, Any]]:
        r"""
        Brings the model's `grounding_maps` into boxes, points and masks of the pictures: what the words of each query look
        at. Several regions that are apart are one result each; a query whose words look nowhere has none.

        Args:
            outputs ([`AgeVlmCausalLMOutputWithPast`]):
                What the model returned when it was called with `query_masks`.
            target_sizes (`list[tuple[int, int]]` or `list[list[tuple[int, int]]]`):
                As in [`~AgeVlmProcessor.post_process_grounding`].
            text_labels (`list[list[str]]`, *optional*):
                For each row what each query is called.
            threshold (`float`, *optional*, defaults to 0.25):
                The lowest score. `grounding_readout` makes it of how much of the attention lies in the region, and on
                nothing.
            return_masks (`bool`, *optional*, defaults to `True`):
                Whether there are `masks`, which take a byte of memory for each pixel and result.

        Returns:
            `list[dict]`: For each picture, those of a row one after another, the results by query, the best first:
            `scores` of shape `(num_results,)` in [0, 1]; `labels`, the number of each one's query; `text_labels`, its
            name; `boxes` of shape `(num_results, 4)`, left, top, right and bottom in pixels; `points` of shape
            `(num_results, 2)`, across and down, the middle of the attention in the region; boolean `masks` of shape
            `(num_results, height, width)`. For soft masks see [`~AgeVlmProcessor.post_process_grounding`]`(..., smooth=True)`.

        Raises:
            ValueError: If there are no `grounding_maps`, or the sizes or labels do not fit them.
        """
        cells, rows = self._cells_of_pictures(outputs, target_sizes)
        if text_labels is not None and [len(names) for names in text_labels] != [cells.shape[2]] * len(cells):
            raise ValueError(
                f"`text_labels` names {[len(names) for names in text_labels]} queries per row, but the outputs are of "
                f"{len(cells)} rows with {cells.shape[2]}."
            )
        readout, found = GroundingReadout(**self.grounding_readout or {}), []
        on_nothing = (1 - cells.sum(dim=(1, 3, 4))).tolist()
        for row, (row_cells, sizes) in enumerate(zip(cells, rows, strict=True)):
            for picture_cells, (height, width) in zip(row_cells, sizes, strict=False):
                # finer than a cell, for the attention goes over smoothly from one to the next
                grid = min(height, 8 * cells.shape[-2]), min(width, 8 * cells.shape[-1])
                attention = self.image_processor.cells_to_pixels(picture_cells, height, width, True, grid)
                regions = [
                    (readout.score(region.excess, on_nothing[row][label]), label, region)
                    for label, of_query in enumerate(attention)
                    for region in find_regions(of_query, readout.threshold)
                ]
                regions = [entry for entry in regions if entry[0] >= threshold]
                scale = torch.tensor([width / grid[1], height / grid[0]])
                boxes = torch.tensor([region.box for *_, region in regions], dtype=torch.float32).reshape(-1, 4)
                points = torch.tensor([region.point for *_, region in regions], dtype=torch.float32).reshape(-1, 2)
                result = {
                    "scores": torch.tensor([score for score, *_ in regions]),
                    "labels": torch.tensor([label for _, label, _ in regions], dtype=torch.long),
                    "boxes": boxes * scale.repeat(2),
                    "points": points * scale,
                }
                if text_labels is not None:
                    result["text_labels"] = [text_labels[row][label] for _, label, _ in regions]
                if return_masks:
                    masks = torch.zeros(len(regions), *grid)
                    for n, (*_, region) in enumerate(regions):
                        masks[n] = region.mask
                    masks = nn.functional.interpolate(masks[:, None], size=(height, width), mode="nearest-exact")
                    result["masks"] = masks[:, 0] > 0
                found.append(result)
        return found


__all__ = ["AgeVlmProcessor"]
