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
"""From tokens, one after the other, to the words of an answer, which end before the first of its stop strings."""

from transformers import PreTrainedTokenizerBase


class AnswerText:
    """
    Args:
        tokenizer (`PreTrainedTokenizerBase`): What decodes the tokens. Special ones have no words.
        stops (`list[str]`): Strings that end the answer; they need not begin or end with a token.

    `text` is the answer so far, `is_stopped` whether a stop string came.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: list[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.token_ids: list[int] = []
        self.text, self.is_stopped = "", False
        self._shown = 0  # characters of `text`
        self._context = self._decoded = 0  # tokens: what a piece is decoded after, and what `text` is from

    def add(self, token_id: int) -> str:
        """The words that this token lets be shown: none of them can still become a part of a stop string."""
        self.token_ids.append(token_id)
        return self._show(self._next_piece(is_last=False), is_last=False)

    def finish(self) -> str:
        """The words that were held back, when no more tokens come."""
        return self._show("" if self.is_stopped else self._next_piece(is_last=True), is_last=True)

    def _next_piece(self, is_last: bool) -> str:
        # Tokens are decoded together with those before them, for how a word begins depends on that.
        before = self._decode(self.token_ids[self._context : self._decoded])
        piece = self._decode(self.token_ids[self._context :])[len(before) :]
        if not is_last and (not piece or piece.endswith("\ufffd")):  # of a character some bytes are still to come
            return ""
        self._context, self._decoded = self._decoded, len(self.token_ids)
        return piece

    def _decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _show(self, piece: str, is_last: bool) -> str:
        if self.is_stopped:
            piece = ""
        first = max(0, len(self.text) - max(map(len, self.stops), default=0) + 1)  # where a stop string can begin
        self.text += piece
        found = [(start + len(stop), start) for stop in self.stops if (start := self.text.find(stop, first)) >= 0]
        if found and not self.is_stopped:
            _, start = min(found)  # the first to be complete, however the words come in tokens
            self.is_stopped, self.text = True, self.text[:start]
        end = len(self.text) if is_last or self.is_stopped else len(self.text) - self._held()
        shown, self._shown = self.text[self._shown : end], max(end, self._shown)
        return shown

    def _held(self) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        lengths = (
            length
            for stop in self.stops
            for length in range(min(len(stop) - 1, len(self.text)), 0, -1)
            if self.text.endswith(stop[:length])
        )
        return max(lengths, default=0)
