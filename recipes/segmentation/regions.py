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
"""From what both networks found to the regions of a row."""

from typing import Any

import numpy as np
from datasets import Value
from pycocotools import mask as coco_mask

from modeling_agevlm.processing_agevlm import find_words, is_word_edge
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.queries import Finding
from trainers.rows import REGION
from trainers.run_lengths import encode_mask


MADE_REGION = REGION | {
    "score": Value("float32"),  # SAM's own estimate of its masks' IoU, the lowest one; null without a mask
    "outlines_kept": Value("int32"),  # instances whose mask is Florence-2's outline
}


def make_region(
    finding: Finding, masks: list[tuple[np.ndarray | None, float]], size: tuple[int, int], arguments: MaskArguments
) -> tuple[dict[str, Any] | None, str | None]:
    """
    The region of a finding, or why there is none.

    Args:
        finding ([`Finding`]): The query and its instances.
        masks (`list[tuple[np.ndarray | None, float]]`): SAM's mask, if the instance has none, and score of each instance.
        size (`tuple[int, int]`): Height and width of the picture.
        arguments ([`MaskArguments`]): What is dropped.
    """
    codes, kept = [], 0
    for instance, (mask, _) in zip(finding.instances, masks, strict=True):
        code = encode_mask(mask) if instance.code is None else instance.code
        if instance.outline:
            outline = coco_mask.merge(coco_mask.frPyObjects(instance.outline, *size))
            if coco_mask.iou([code], [outline], [0])[0, 0] < arguments.min_iou:
                code, kept = outline, kept + 1
        codes.append(code)
    union = coco_mask.merge(codes)
    share = coco_mask.area(union) / (size[0] * size[1])
    if share < arguments.min_area:
        return None, "too small"
    if share > arguments.max_area:
        return None, "whole image"
    region = {
        "mask": {"size": list(size), "counts": union["counts"].decode("ascii")},
        "image": finding.query.image,
        "text": None,
        "span": None,
        "message": finding.query.message,
        "score": min(score for _, score in masks),
        "outlines_kept": kept,
    }
    if finding.phrase is None:
        return region, None
    for message, text in finding.query.texts().items():
        place = find_ascii_words(text, finding.phrase)
        if place is not None:
            return region | {"text": text[slice(*place)], "message": message}, None
    return None, "phrase not in the text"


def find_ascii_words(text: str, phrase: str) -> tuple[int, int] | None:
    """Where a phrase first stands in a text as whole words. Florence-2 leaves out of a phrase whatever is not ASCII."""
    if text.isascii() or not phrase.isascii():
        return next(iter(find_words(text, phrase)), None)
    letters = [n for n, letter in enumerate(text) if letter.isascii()]
    for first, last in find_words("".join(text[n] for n in letters), phrase):
        start, end = letters[first], letters[last - 1] + 1
        while not is_word_edge(text, start) and not text[start - 1].isascii():
            start -= 1
        while not is_word_edge(text, end) and not text[end].isascii():
            end += 1
        if is_word_edge(text, start) and is_word_edge(text, end):
            return start, end
    return None
