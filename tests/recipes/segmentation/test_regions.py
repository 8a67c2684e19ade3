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
"""The phrases of regions: found as words, and where training finds them."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
from testing_utils import tiny_processor

from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.queries import Finding, Instance, Query, find_queries
from recipes.segmentation.regions import find_ascii_words, make_region
from trainers import DataCollatorForGuidedVisionLanguageModeling


MASK = (np.eye(10, dtype=bool), 0.9)


def region_of(query: Query, phrase: str) -> tuple[dict[str, Any] | None, str | None]:
    """The region of a phrase, which covers a tenth of a picture of 10 x 10 pixels."""
    finding = Finding(query, [Instance((0, 0, 9, 9))], phrase)
    return make_region(finding, [MASK], (10, 10), MaskArguments(out="unused"))


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("A woman and a man.", "Man", "man"),
        ("A woman.", "man", None),
        ("A cup.", "", None),
        # What Florence-2 leaves of letters, apostrophes and dashes
        ("Two caf\u00e9s here", "cafs", "caf\u00e9s"),
        ("Un \u00e9t\u00e9 froid", "t froid", "\u00e9t\u00e9 froid"),
        ("the man\u2019s hat", "the mans hat", "the man\u2019s hat"),
        ("It \u2013 a cup", "It  a cup", "It \u2013 a cup"),
        ("jalape\u00f1o caf\u00e9", "cafe", None),
        ("\u00e9 a woman", "man", None),
    ],
)
def test_phrases_of_florence(text: str, phrase: str, expected: str | None):
    place = find_ascii_words(text, phrase)
    assert (None if place is None else text[slice(*place)]) == expected
    region, problem = region_of(Query(0, 1, text), phrase)
    assert (region and region["text"], problem) == (expected, None if expected else "phrase not in the text")


def test_a_phrase_belongs_to_the_message_that_says_it():
    """Where question and answer are looked for as one text, too."""
    messages = [
        {"role": "user", "content": "<image>\nIs the woman alone?"},
        {"role": "assistant", "content": "No, a man is with her."},
    ]
    ((query,), _) = find_queries(messages, 1, "both")
    assert query.text == "Is the woman alone? No, a man is with her."
    regions = [region_of(query, phrase)[0] for phrase in ("the woman", "a man")]
    assert [(region["text"], region["message"]) for region in regions] == [("the woman", 0), ("a man", 1)]
    assert region_of(query, "alone? No") == (None, "phrase not in the text")
    row = {"images": [PIL.Image.new("RGB", (10, 10))], "messages": messages, "regions": regions}
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())
    example = collate.read_row(row)
    marked = [np.array(example.input_ids)[mask] for mask in example.query_masks]
    assert [collate.processor.decode(ids).strip() for ids in marked] == ["the woman", "a man"]
