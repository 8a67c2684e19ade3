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
"""The words of an answer, token by token."""

import random

import pytest
from testing_utils import EOT, VOCAB_SIZE, tiny_tokenizer

from recipes.serving.answer_text import AnswerText


def write(token_ids: list[int], stops: list[str]) -> tuple[str, AnswerText]:
    """What is shown of an answer until it stops."""
    answer = AnswerText(tiny_tokenizer(), stops)
    shown = ""
    for token_id in token_ids:
        shown += answer.add(token_id)
        assert answer.text.startswith(shown)
        if answer.is_stopped:
            break
    return shown + answer.finish(), answer


@pytest.mark.parametrize("seed", range(100))
def test_pieces_are_the_whole(seed: int):
    """Also where bytes of characters are missing."""
    rng = random.Random(seed)
    token_ids = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    shown, answer = write(token_ids, [])
    assert shown == answer.text == tiny_tokenizer().decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("seed", range(100))
def test_answer_ends_before_the_first_stop_string(seed: int):
    rng = random.Random(seed)
    token_ids = [rng.randrange(VOCAB_SIZE) for _ in range(40)]
    text = tiny_tokenizer().decode(token_ids, skip_special_tokens=True)
    starts = [rng.randrange(len(text)) for _ in range(3)]
    stops = [stop for start in starts if "\ufffd" not in (stop := text[start : start + rng.randint(1, 6)])]
    _, start = min(((text.find(stop) + len(stop), text.find(stop)) for stop in stops), default=(0, len(text)))
    shown, answer = write(token_ids, stops)
    assert shown == answer.text == text[:start]
    assert answer.is_stopped == bool(stops)


def test_beginnings_of_stop_strings_are_held_back():
    tokenizer = tiny_tokenizer()
    answer = AnswerText(tokenizer, ["cup of"])
    pieces = [
        answer.add(token_id) for token_id in tokenizer("a cup or a cup of tea", add_special_tokens=False).input_ids
    ]
    shown = "".join(pieces)
    assert shown == "a cup or a " and answer.is_stopped
    assert answer.finish() == ""
    unfinished = AnswerText(tokenizer, ["cup of"])
    for token_id in tokenizer("a cup o", add_special_tokens=False).input_ids:
        assert "c" not in unfinished.add(token_id)
    assert unfinished.add(EOT) == ""
    assert unfinished.finish() == "cup o" and not unfinished.is_stopped
