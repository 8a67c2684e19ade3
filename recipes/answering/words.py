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
"""Where every word of a question and its answer looks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import PIL.Image
import regex
import torch
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm.image_reading_agevlm import read_image
from modeling_agevlm.processing_agevlm import find_words, is_word_edge
from recipes.answering.attention import first_picture, map_size
from recipes.answering.phrases import guess_phrases


class LookingRegion(NamedTuple):
    """A part of the first picture that words look at."""

    box: tuple[float, ...]
    """Left, top, right and bottom, as shares of the picture's width and height."""
    score: float


class LookingWord(NamedTuple):
    """A word with what is written onto it, where it stands and where it looks. L guided layers."""

    text: str
    space: str
    """What stands between it and the next word."""
    part: str
    """`"question"` or `"answer"`."""
    maps: np.ndarray
    """Attention over the first picture, smooth to be drawn, of each layer: `(L, height, width)`."""
    on_nothing: np.ndarray
    """What of it lies on the model's sink, 0 without one, of each layer: `(L,)`."""
    regions: Sequence[LookingRegion] = ()
    """What it looks at, the best first, read as the processor's `post_process_grounded_object_detection` does."""


class LookingPhrase(NamedTuple):
    """Words that name something, by their places in a list of words."""

    text: str
    words: list[int]
    inside: float | None = None
    """The share of their attention inside the region that they are about, by the mean of the layers, if it is known."""
    regions: Sequence[LookingRegion] = ()
    """What they look at, as a word's."""


class LookingAnswer(NamedTuple):
    """A model's answer and where its words and the question's look."""

    name: str
    """The model's."""
    layers: list[str]
    """Names of the guided layers."""
    words: list[LookingWord]
    phrases: list[LookingPhrase]


def split_words(text: str) -> list[tuple[int, int]]:
    """
    Where the words of a text begin and end, with the punctuation that is written onto them; in writing without spaces
    between words each letter is one.
    """
    spans = []
    for word in regex.finditer(r"\S+", text):
        pairs = regex.finditer(
            r"\w(?=[\w--\p{M}--\p{Hangul}])", text, regex.V1, word.start(), word.end(), overlapped=True
        )
        cuts = [pair.end() for pair in pairs if is_word_edge(text, pair.end())]
        spans += pairwise([word.start(), *cuts, word.end()])
    return spans


def layer_names(model: PreTrainedModel) -> list[str]:
    """Of the guided layers, and of their guided heads if those are not all."""
    config = model.config.text_config
    heads = "" if config.guidance_heads is None else f", head {', '.join(map(str, sorted(config.guidance_heads)))}"
    return [f"layer {layer}{heads}" for layer in sorted(config.guided_layers)]


@torch.inference_mode()
def look_of_words(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, torch.Tensor],
    prompt_length: int,
    picture: PIL.Image.Image,
    question: str,
    name: str = "",
    phrases: Mapping[str, np.ndarray | None] | None = None,
) -> LookingAnswer:
    """
    Where every word looks of a question and of what a model answered.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        inputs (`Mapping`): Of one row, with the answer's tokens behind the prompt, as [`ask`] returns them.
        prompt_length (`int`): Tokens of the prompt.
        picture (`PIL.Image.Image`): The row's first picture.
        question (`str`): As it stands in the prompt after the picture.
        name (`str`, *optional*): The model's, to be shown.
        phrases (`Mapping[str, np.ndarray | None]`, *optional*): Phrases, each with the boolean mask `(height, width)` of
            what it names in the picture, if that is known. Those that do not stand there are left out. Guessed by default.

    Raises:
        ValueError: If the question does not stand there.
    """
    text, spans = processor.locate_tokens(inputs["input_ids"][0].tolist())
    found = find_words(text, question)
    if not found:
        raise ValueError(f"{question!r} is not among the words of the prompt after the picture.")
    answer = min((s for s, e in spans[prompt_length:] if e > s), default=len(text))
    ending = max((e for _, e in spans[prompt_length:]), default=answer)
    places = []  # of the words in the text, with the part that they stand in
    for part, (start, end) in {"question": found[0], "answer": (answer, max(answer, ending))}.items():
        places += [(part, start + first, start + last) for first, last in split_words(text[start:end])]
    queries = torch.zeros(len(places), len(spans), dtype=torch.bool)
    for query, (_, first, last) in zip(queries, places, strict=True):
        letters = regex.search(
            r"\w(.*\w)?", text[first:last]
        )  # punctuation is shown with a word, but looks for itself
        left, right = letters.span() if letters else (0, last - first)
        query[:] = torch.tensor([s < first + right and e > first + left for s, e in spans])

    if phrases is None:
        phrases = dict.fromkeys(guess_phrases(f"{question} . {text[answer:]}"))
    named = {}
    for phrase in phrases:
        runs = find_words(text, phrase)
        words = [n for n, (_, first, last) in enumerate(places) if any(first < e and last > s for s, e in runs)]
        if words:
            named[phrase] = words

    queries = torch.stack([*queries, *(queries[words].any(dim=0) for words in named.values())])

    width, height = read_image(picture).size
    outputs = model(**inputs, query_masks=queries[None].to(model.device))
    cells, sink = (part[0] for part in first_picture(model, processor, outputs.grounding_maps))
    maps = processor.image_processor.cells_to_pixels(cells, height, width, True, map_size(height, width)).numpy()
    (found,) = processor.post_process_grounded_object_detection(outputs, [(height, width)], return_masks=False)
    regions: list[list[LookingRegion]] = [[] for _ in queries]
    shares = (found["boxes"] / torch.tensor([width, height, width, height])).tolist()
    for label, box, score in zip(found["labels"].tolist(), shares, found["scores"].tolist(), strict=True):
        regions[label].append(LookingRegion(tuple(box), score))
    words = []
    for n, (part, first, last) in enumerate(places):
        next_part, start, _ = places[n + 1] if n + 1 < len(places) else ("", last, last)
        space = text[last:start] if next_part == part else ""
        words.append(LookingWord(text[first:last], space, part, maps[n], sink[n].numpy(), regions[n]))
    looks = [
        LookingPhrase(phrase, of_words, None, of_phrase)
        for (phrase, of_words), of_phrase in zip(named.items(), regions[len(places) :], strict=True)
    ]
    if any(phrases[phrase] is not None for phrase in named):
        exact = processor.post_process_grounding(outputs, [(height, width)])[0][0][len(places) :].numpy()
        looks = [
            look._replace(inside=float(attention[mask].sum())) if (mask := phrases[look.text]) is not None else look
            for look, attention in zip(looks, exact, strict=True)
        ]
    return LookingAnswer(name, layer_names(model), words, looks)
