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
"""Which pictures a token sees with every cache of transformers, against the run without a cache."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from testing_utils import IMAGE, PAD, assert_close, tiny_batch, tiny_model
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedConfig, StaticCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    QuantizedLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from modeling_agevlm import AgeVlmForConditionalGeneration
from modeling_agevlm.modeling_agevlm import AgeVlmCrossAttentionCacheLayer, visual_cache


GREEDY = {
    "do_sample": False,
    "min_new_tokens": 6,
    "max_new_tokens": 6,
    "pad_token_id": PAD,
    "suppress_tokens": [IMAGE],
}
ROOM = 64  # more tokens than any of the chats has


class Away:
    """A layer that takes nothing between being sent away and being fetched back, as one on another device."""

    away = False

    def offload(self) -> None:
        self.away = self.is_initialized

    def prefetch(self) -> None:
        self.away = False

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        assert not self.away, "the cached keys are on another device"
        return super().update(*args, **kwargs)


class AwayDynamicLayer(Away, DynamicLayer):
    pass


class AwayStaticLayer(Away, StaticLayer):
    pass


class LosslessLayer(QuantizedLayer):
    """A quantized layer after every second token, whose quantizer loses nothing."""

    def __init__(self) -> None:
        super().__init__(residual_length=2)

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return tensor

    def _dequantize(self, q_tensor: torch.Tensor) -> torch.Tensor:
        return q_tensor


class Stream(contextlib.nullcontext):
    def wait_stream(self, other: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloading is for GPUs; its order of calls is played here."""
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: Stream())


def offloaded(layers: list) -> Cache:
    cache = Cache(layers=layers)
    cache.offloading, cache.only_non_sliding, cache.prefetch_stream = True, False, Stream()
    return cache


def layers_of(make: Callable[[], Any]) -> Callable[[PreTrainedConfig], list]:
    return lambda config: [make() for _ in range(config.text_config.num_hidden_layers)]


CACHES: dict[str, Callable[[PreTrainedConfig], Cache]] = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic, without a config": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=ROOM),
    "sliding": lambda config: Cache(layers=layers_of(lambda: DynamicSlidingWindowLayer(ROOM))(config)),
    "static sliding": lambda config: Cache(
        layers=layers_of(lambda: StaticSlidingWindowLayer(ROOM, sliding_window=ROOM))(config)
    ),
    "offloaded": lambda config: offloaded(layers_of(AwayDynamicLayer)(config)),
    "offloaded static": lambda config: offloaded(layers_of(lambda: AwayStaticLayer(ROOM))(config)),
    "quantized": lambda config: Cache(layers=layers_of(LosslessLayer)(config)),
}


@pytest.fixture(scope="module")
def model() -> AgeVlmForConditionalGeneration:
    # With tied embeddings and random weights it would repeat itself.
    return tiny_model(tie_word_embeddings=False).requires_grad_(False)


def images_of(batch: dict[str, torch.Tensor], first: list[int], last: list[int]) -> torch.Tensor | None:
    """The images `first` to `last` of each row, and zeros behind them."""
    counts = [end - start for start, end in zip(first, last, strict=True)]
    if not max(counts):
        return None
    images = torch.zeros_like(batch["pixel_values"][:, : max(counts)])
    for row, (start, end) in enumerate(zip(first, last, strict=True)):
        images[row, : end - start] = batch["pixel_values"][row, start:end]
    return images


# Where the images' placeholders stand, row by row, and where the turns begin after the first one.
CHATS = {
    "one picture": (((2,),), [6]),
    "one picture, no turn": (((2,),), []),
    "no picture": (((),), [6]),
    "later picture": (((2, 9),), [6]),
    "text first": (((9,),), [6]),
    "two pictures, then a third": (((1, 4, 12),), [6, 11]),
    "two rows that differ": (((2, 8), (3,)), [6, 10]),
    "two rows, pictures in different turns": (((2,), (8,)), [6]),
    "three rows of every kind": (((2, 7, 13), (8,), ()), [6, 12]),
}
LENGTH = 15


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", CACHES)
def test_turns_with_a_cache_are_the_chat_without_one(model: AgeVlmForConditionalGeneration, name: str, chat: str):
    """Turn by turn, each with its own pictures, as whoever calls the model does; then token by token."""
    placeholders, turns = CHATS[chat]
    batch = tiny_batch(placeholders, length=LENGTH)
    expected = model(**batch, use_cache=False).logits
    cache, logits = CACHES[name](model.config), []
    edges = [0, *turns, *range(LENGTH - 1, LENGTH + 1)]
    for start, end in zip(edges, edges[1:], strict=False):
        seen = [[sum(place < edge for place in row) for row in placeholders] for edge in (start, end)]
        images = images_of(batch, *seen) if "pixel_values" in batch else None
        step = {"input_ids": batch["input_ids"][:, start:end], "pixel_values": images}
        logits.append(model(**step, cache=cache, use_cache=True).logits)
    assert_close(torch.cat(logits, dim=1), expected)
    if name != "dynamic, without a config" or "pixel_values" in batch:
        assert isinstance(cache.layers[1], AgeVlmCrossAttentionCacheLayer)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", CACHES)
def test_generation_goes_on_with_a_kept_cache(model: AgeVlmForConditionalGeneration, name: str, chat: str):
    """Each turn gives `generate` the whole chat with all of its pictures, as a chat template does."""
    placeholders, turns = CHATS[chat]
    batch = tiny_batch(placeholders, length=LENGTH)
    ids = batch["input_ids"][:, :0]
    cache = CACHES[name](model.config)
    for start, end in zip([0, *turns], [*turns, LENGTH], strict=True):
        ids = torch.cat([ids, batch["input_ids"][:, start:end]], dim=1)
        counts = [sum(place < end for place in row) for row in placeholders]
        images = images_of(batch, [0] * len(counts), counts) if "pixel_values" in batch else None
        chat_so_far = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}
        if images is None:
            del chat_so_far["pixel_values"]
        arguments = GREEDY | {"return_dict_in_generate": True, "output_logits": True}
        found = model.generate(**chat_so_far, **arguments, cache=cache)
        expected = model.generate(**chat_so_far, **arguments, use_cache=False)
        assert torch.equal(found.sequences, expected.sequences)
        assert_close(torch.stack(found.logits), torch.stack(expected.logits))
        ids = expected.sequences


IMPLEMENTATIONS = [{}, {"cache_implementation": "static", "disable_compile": True}]


@pytest.mark.parametrize("arguments", IMPLEMENTATIONS, ids=["dynamic", "static"])
@pytest.mark.parametrize("chat", CHATS)
def test_beams_with_a_cache_are_the_beams_without_one(
    model: AgeVlmForConditionalGeneration, arguments: dict[str, Any], chat: str
):
    batch = tiny_batch(CHATS[chat][0], length=LENGTH)
    beams = GREEDY | {"num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(**batch, **beams, use_cache=False)
    assert torch.equal(model.generate(**batch, **beams, **arguments), expected)


@pytest.mark.parametrize("chat", ["later picture", "two rows that differ", "text first"])
def test_beams_go_on_with_a_kept_cache(model: AgeVlmForConditionalGeneration, chat: str):
    placeholders, (turn, *_) = CHATS[chat]
    batch = tiny_batch(placeholders, length=LENGTH)
    first = [sum(place < turn for place in row) for row in placeholders]
    cache = DynamicCache(config=model.config)
    images = images_of(batch, [0] * len(first), first)
    model(input_ids=batch["input_ids"][:, :turn], pixel_values=images, cache=cache, use_cache=True)
    cache.batch_repeat_interleave(3)
    beams = GREEDY | {"num_beams": 3, "num_return_sequences": 3}
    expected = model.generate(**batch, **beams)
    assert torch.equal(model.generate(**batch, **beams, cache=cache), expected)


# Pictures that come, and pictures that go


def test_a_chat_may_go_on_with_the_new_pictures_alone(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(((2, 8), (3,)), length=LENGTH)
    new = images_of(batch, [1, 1], [2, 1])
    expected = model.generate(**batch, **GREEDY)
    for images in (batch["pixel_values"], new):
        cache = DynamicCache(config=model.config)
        model(
            input_ids=batch["input_ids"][:, :6],
            pixel_values=images_of(batch, [0, 0], [1, 1]),
            cache=cache,
            use_cache=True,
        )
        found = model.generate(input_ids=batch["input_ids"], pixel_values=images, **GREEDY, cache=cache)
        assert torch.equal(found, expected)


def test_embeddings_go_on_with_a_kept_cache(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(((2, 8), (3,)), length=LENGTH)
    embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
    expected = model.generate(inputs_embeds=embeddings, **batch, **GREEDY)
    cache = DynamicCache(config=model.config)
    first = images_of(batch, [0, 0], [1, 1])
    model(inputs_embeds=embeddings[:, :6], pixel_values=first, cache=cache, use_cache=True)
    assert torch.equal(model.generate(inputs_embeds=embeddings, **batch, **GREEDY, cache=cache), expected)


def test_an_image_of_zeros_is_not_taken_for_room(model: AgeVlmForConditionalGeneration):
    """A black picture that nothing normalized: "all of the chat's" and "the new one" look alike."""
    batch = tiny_batch(((2, 8),), length=LENGTH)
    batch["pixel_values"][:, 1] = 0
    cache = DynamicCache(config=model.config)
    model(input_ids=batch["input_ids"][:, :6], pixel_values=batch["pixel_values"][:, :1], cache=cache, use_cache=True)
    with pytest.raises(ValueError, match="an image cannot be told from room that is left"):
        model.generate(**batch, **GREEDY, cache=cache)
    found = model.generate(**batch | {"pixel_values": batch["pixel_values"][:, 1:]}, **GREEDY, cache=cache)
    assert torch.equal(found, model.generate(**batch, **GREEDY))


@pytest.mark.parametrize("num_images", [0, 3, 4])
def test_other_pictures_than_the_chat_has_are_refused(model: AgeVlmForConditionalGeneration, num_images: int):
    batch = tiny_batch(((2, 8),), length=LENGTH)
    cache = DynamicCache(config=model.config)
    model(input_ids=batch["input_ids"][:, :6], pixel_values=batch["pixel_values"][:, :1], cache=cache, use_cache=True)
    inputs = {"input_ids": batch["input_ids"], "pixel_values": torch.randn(1, num_images, 3, 96, 96)}
    message = r"the chat, whose rows have \[1\] in the cache and \[1\] placeholders behind them"
    if not num_images:
        del inputs["pixel_values"]
        message = "1 image placeholders .* but there are no `pixel_values`"
    with pytest.raises(ValueError, match=message):
        model.generate(**inputs, **GREEDY, cache=cache)


def test_a_text_that_ends_within_the_cache_is_refused(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(((2,),))
    cache = DynamicCache(config=model.config)
    model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"], cache=cache, use_cache=True)
    for length in (8, 10):
        ids = batch["input_ids"][:, :length]
        with pytest.raises(ValueError, match=f"The cache holds 10 tokens, and the text no more than {length}"):
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **GREEDY, cache=cache)


@pytest.mark.parametrize("name", ["dynamic", "static", "sliding"])
def test_a_turn_that_is_taken_back_takes_its_picture_along(model: AgeVlmForConditionalGeneration, name: str):
    """What comes in its place sees what it brings, also at the place where the forgotten picture stood."""
    batch = tiny_batch(((2, 9), (3, 8)), length=LENGTH)
    other = tiny_batch(((2, 11), (3,)), length=LENGTH, seed=1)
    other["input_ids"][:, :6] = batch["input_ids"][:, :6]
    other["pixel_values"][:, 0] = batch["pixel_values"][:, 0]
    expected = model(**other, use_cache=False).logits
    cache = CACHES[name](model.config)
    ids = batch["input_ids"], other["input_ids"]
    model(input_ids=ids[0][:, :6], pixel_values=batch["pixel_values"][:, :1], cache=cache, use_cache=True)
    if name == "sliding":
        cache.activate_past_recording()
    model(input_ids=ids[0][:, 6:], pixel_values=batch["pixel_values"][:, 1:], cache=cache, use_cache=True)
    cache.crop(6 - LENGTH)
    logits = [model(input_ids=ids[1][:, 6:10], cache=cache, use_cache=True).logits]
    new = images_of(other, [1, 1], [2, 1])
    logits.append(model(input_ids=ids[1][:, 10:], pixel_values=new, cache=cache, use_cache=True).logits)
    assert_close(torch.cat(logits, dim=1), expected[:, 6:])
    assert visual_cache(cache, model.config.text_config).num_images().tolist() == [2, 1]


def test_a_reset_cache_can_be_initialized_early(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(((2,), (3,)))
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    text_config = model.config.text_config
    shape = {"num_heads": text_config.num_key_value_heads, "head_dim": text_config.head_dim}
    for _ in range(2):
        cache.early_initialization(batch_size=2, **shape, dtype=model.dtype, device=model.device)
        assert cache.is_initialized
        assert_close(model(**batch, cache=cache, use_cache=True).logits, model(**batch).logits)
        cache.reset()


def test_what_it_has_no_place_in_is_refused(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(ValueError, match="Pass a `DynamicCache` or `StaticCache` instead of an `EncoderDecoderCache`"):
        model(**batch, cache=cache, use_cache=True)
    with pytest.raises(ValueError, match="AGE-VLM has no continuous batching"):
        model.generate_batch([row.tolist() for row in batch["input_ids"]])
    with pytest.raises(ValueError, match="AGE-VLM has no continuous batching"):
        model.generate(**batch, cache_implementation="paged")


def test_right_padding_is_refused(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch()
    batch["attention_mask"][1, -2:] = 0
    with pytest.raises(ValueError, match="The batch is padded on the right.* Pad on the left"):
        model.generate(**batch, **GREEDY)
