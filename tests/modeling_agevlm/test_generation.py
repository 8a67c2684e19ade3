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
"""Every way of decoding that transformers has of its own gives what the plain one gives."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from testing_utils import (
    GRADIENT_LENGTH,
    IMAGE,
    IMAGE_SIZE,
    PAD,
    VOCAB_SIZE,
    assert_close,
    llama_twin,
    tiny_batch,
    tiny_model,
    tiny_processor,
)
from transformers import CompileConfig, PreTrainedModel, StaticCache

from modeling_agevlm import AgeVlmForConditionalGeneration
from modeling_agevlm.modeling_agevlm import AgeVlmCrossAttentionCacheLayer


# The weights are random: without being told, they would write a placeholder now and then.
NEW_TOKENS = {"min_new_tokens": 10, "max_new_tokens": 10, "pad_token_id": PAD, "suppress_tokens": [IMAGE]}
GREEDY = NEW_TOKENS | {"do_sample": False}


@pytest.fixture(scope="module")
def model() -> AgeVlmForConditionalGeneration:
    # With tied embeddings and random weights it would repeat itself.
    return tiny_model(tie_word_embeddings=False).requires_grad_(False)


def makes_5_guesses(assistant: PreTrainedModel) -> PreTrainedModel:
    assistant.generation_config.update(
        num_assistant_tokens=5, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    return assistant


@pytest.fixture(scope="module")
def smaller() -> AgeVlmForConditionalGeneration:
    """Another model with the same vocabulary, which guesses wrong."""
    text_config = {"num_hidden_layers": 3, "cross_attention_layers": [1]}
    return makes_5_guesses(tiny_model(text_config=text_config, tie_word_embeddings=False).requires_grad_(False))


def joined(rows: list[dict[str, torch.Tensor]], side: str = "left") -> dict[str, torch.Tensor]:
    """One padded batch of batches of one row each."""
    length = max(row["input_ids"].shape[1] for row in rows)
    num_images = max(row["pixel_values"].shape[1] for row in rows if "pixel_values" in row)
    batch = {name: torch.zeros(len(rows), length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    batch["pixel_values"] = torch.zeros(len(rows), num_images, 3, IMAGE_SIZE, IMAGE_SIZE)
    for n, row in enumerate(rows):
        own = row["input_ids"].shape[1]
        place = slice(length - own, None) if side == "left" else slice(own)
        batch["input_ids"][n, place] = row["input_ids"][0]
        batch["attention_mask"][n, place] = 1
        if "pixel_values" in row:
            batch["pixel_values"][n, : row["pixel_values"].shape[1]] = row["pixel_values"][0]
    return batch


@contextmanager
def counted_pictures(model: AgeVlmForConditionalGeneration) -> Iterator[list[int]]:
    """How many pictures each run of the vision tower gets."""
    pictures = []
    hook = model.model.vision_tower.register_forward_pre_hook(lambda module, args: pictures.append(len(args[0])))
    try:
        yield pictures
    finally:
        hook.remove()


# Decoding strategies


STRATEGIES = {
    "greedy with penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "top k": {"do_sample": True, "top_k": 5},
    "top p and temperature": {"do_sample": True, "top_p": 0.8, "temperature": 0.7},
    "min p": {"do_sample": True, "top_k": 0, "min_p": 0.2},
    "typical": {"do_sample": True, "top_k": 0, "typical_p": 0.5},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "beams with lengths": {"num_beams": 4, "length_penalty": -1.0, "early_stopping": True, "num_return_sequences": 3},
    "beam sample": {"num_beams": 3, "do_sample": True},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_cached_strategy_is_the_uncached_one(model: AgeVlmForConditionalGeneration, name: str):
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    batch["pixel_attention_mask"] = torch.ones(3, 2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.long)
    batch["pixel_attention_mask"][1, :, 32:] = 0
    arguments = GREEDY | STRATEGIES[name] | {"output_logits": True, "return_dict_in_generate": True}
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(model.generate(**batch, **arguments, use_cache=use_cache))
    cached, uncached = outputs
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(uncached.logits))


@pytest.mark.parametrize(
    "arguments",
    [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}],
    ids=["beams", "samples"],
)
def test_static_cache_is_the_dynamic_cache_for_several_sequences(
    model: AgeVlmForConditionalGeneration, arguments: dict[str, Any]
):
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    results = []
    for cache in ({}, {"cache_implementation": "static", "disable_compile": True}):
        torch.manual_seed(0)
        with counted_pictures(model) as pictures:
            results.append(model.generate(**batch, **GREEDY | arguments, **cache))
        assert pictures == [3]
    assert torch.equal(*results)


def test_reset_cache_has_forgotten_the_pictures(model: AgeVlmForConditionalGeneration):
    batch, text = tiny_batch(placeholders=((1, 6), (3,))), tiny_batch(placeholders=((), ()), seed=1)
    others = batch | {"pixel_values": 2 * batch["pixel_values"]}
    cache = StaticCache(config=model.config, max_cache_len=20)
    for inputs in (batch, others, text, batch):
        assert_close(model(**inputs, cache=cache, use_cache=True).logits, model(**inputs).logits)
        cache.reset()


def test_return_sequences_are_those_of_repeated_rows(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 6), (3,)))
    batch["pixel_attention_mask"] = torch.ones(2, 2, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.long)
    batch["pixel_attention_mask"][1, :, 32:] = 0
    repeated = {name: tensor.repeat_interleave(3, dim=0) for name, tensor in batch.items()}
    torch.manual_seed(0)
    found = model.generate(**batch, **NEW_TOKENS, do_sample=True, num_return_sequences=3)
    torch.manual_seed(0)
    expected = model.generate(**repeated, **NEW_TOKENS, do_sample=True)
    assert torch.equal(found, expected)
    assert len(found.unique(dim=0)) == 6


def test_left_padded_rows_have_the_beams_of_the_row_alone(model: AgeVlmForConditionalGeneration):
    alone = [tiny_batch(((1,),), 9, seed=1), tiny_batch(((2, 5),), 12, seed=2), tiny_batch(((),), 6, seed=3)]
    arguments = GREEDY | {"num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    with counted_pictures(model) as pictures:
        together = model.generate(**joined(alone), **arguments)
    assert pictures == [3]
    for n, row in enumerate(alone):
        expected = model.generate(**row, **arguments)
        assert torch.equal(together.sequences[n, -10:], expected.sequences[0, -10:])
        assert_close(together.sequences_scores[n], expected.sequences_scores[0])


# Assisted decoding


@pytest.fixture
def crops(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many tokens the caches were told to get rid of, call by call."""
    removed = []
    crop = AgeVlmCrossAttentionCacheLayer.crop

    def counted(self: AgeVlmCrossAttentionCacheLayer, tokens_to_remove: int) -> None:
        removed.append(abs(tokens_to_remove))
        crop(self, tokens_to_remove)

    monkeypatch.setattr(AgeVlmCrossAttentionCacheLayer, "crop", counted)
    return removed


@pytest.mark.parametrize("seed", range(3))
def test_assisted_by_a_smaller_model_is_greedy(
    model: AgeVlmForConditionalGeneration, smaller: AgeVlmForConditionalGeneration, crops: list[int], seed: int
):
    batch = tiny_batch(placeholders=((1, 6),), seed=seed)
    expected = model.generate(**batch, **GREEDY)
    with counted_pictures(model) as pictures, counted_pictures(smaller) as pictures_of_assistant:
        found = model.generate(**batch, **GREEDY, assistant_model=smaller)
    assert torch.equal(found, expected)
    assert max(crops) > 1  # guesses were taken back
    assert pictures == pictures_of_assistant == [2]


def test_assistant_sees_the_pictures(model: AgeVlmForConditionalGeneration):
    """A copy of the model guesses every token right, so that the model itself hardly runs."""
    batch = tiny_batch(placeholders=((1, 6),))
    expected = model.generate(**batch, **GREEDY)
    assistant, runs = makes_5_guesses(copy.deepcopy(model)), []
    hook = model.register_forward_pre_hook(lambda *_: runs.append(1))
    with counted_pictures(assistant) as pictures:
        found = model.generate(**batch, **GREEDY, assistant_model=assistant)
    hook.remove()
    assert torch.equal(found, expected)
    assert len(runs) == 2  # 5 guesses and the token after them, then the other 4
    assert pictures == [2]


def test_llama_assists_where_there_is_no_picture(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((),))
    expected = model.generate(**batch, **GREEDY)
    llama = makes_5_guesses(llama_twin(model))
    assert torch.equal(model.generate(**batch, **GREEDY, assistant_model=llama), expected)


@pytest.mark.parametrize("seed", range(3))
def test_prompt_lookup_is_greedy(model: AgeVlmForConditionalGeneration, crops: list[int], seed: int):
    batch = tiny_batch(placeholders=((1, 6),), length=12, seed=seed)
    batch["input_ids"][0, -3:] = batch["input_ids"][0, 2:5]  # so that the first guess goes on with token 5
    expected = model.generate(**batch, **GREEDY)
    with counted_pictures(model) as pictures:
        found = model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=4)
    assert torch.equal(found, expected)
    assert max(crops) > 0
    assert pictures == [2]


def test_prompt_lookup_does_not_guess_a_placeholder(model: AgeVlmForConditionalGeneration):
    """The words before the answer stand before the picture as well, as in the chat template."""
    batch = tiny_batch(placeholders=((2,),))
    batch["input_ids"][0, -2:] = batch["input_ids"][0, :2]
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=4), expected)


# Turns


def test_images_of_a_later_turn_for_some_of_the_rows(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((1, 7), (2,), (8,), ()))
    ids, pictures = batch["input_ids"], batch["pixel_values"]
    at_once = model(**batch, use_cache=False).logits
    for cache in (None, StaticCache(config=model.config, max_cache_len=16)):
        sooner = pictures[:, :1].clone()
        sooner[2] = 0
        first = model(input_ids=ids[:, :5], pixel_values=sooner, cache=cache, use_cache=True)
        later = torch.zeros_like(pictures[:, :1])  # rows 1 and 3 have no image in this turn
        later[0], later[2] = pictures[0, 1], pictures[2, 0]
        cache = first.cache
        second = model(input_ids=ids[:, 5:9], pixel_values=later, cache=cache, use_cache=True)
        last = model(input_ids=ids[:, 9:], cache=cache, use_cache=True)
        assert_close(torch.cat([first.logits, second.logits, last.logits], dim=1), at_once)


# Where the images stand, and how many there are


@pytest.mark.parametrize("side", ["left", "right"])
def test_image_first_in_the_middle_and_last(model: AgeVlmForConditionalGeneration, side: str):
    alone = [tiny_batch(((0,),), 8, seed=1), tiny_batch(((4,),), 10, seed=2), tiny_batch(((8,),), 9, seed=3)]
    batch = joined(alone, side)
    logits = model(**batch).logits
    for n, row in enumerate(alone):
        assert_close(logits[n][batch["attention_mask"][n] == 1], model(**row).logits[0])
        other = model(**row | {"pixel_values": row["pixel_values"] + 1}).logits
        changed = (other - model(**row).logits)[0].abs().amax(dim=-1) > 1e-4
        place = (row["input_ids"][0] == IMAGE).nonzero().item()
        assert changed.nonzero()[:, 0].tolist() == list(range(place, len(changed)))
    if side == "left":
        expected = [model.generate(**row, **GREEDY)[0, -10:] for row in alone]
        for use_cache in (True, False):
            generated = model.generate(**batch, **GREEDY, use_cache=use_cache)[:, -10:]
            assert torch.equal(generated, torch.stack(expected))


@pytest.fixture(scope="module")
def rows_with_0_to_8_images() -> list[dict[str, torch.Tensor]]:
    return [tiny_batch((tuple(range(1, n + 1)),), length=11 + n % 3, seed=n) for n in range(9)]


@pytest.fixture(scope="module")
def batch_with_0_to_8_images(
    model: AgeVlmForConditionalGeneration, rows_with_0_to_8_images: list[dict[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch = joined(rows_with_0_to_8_images)
    with counted_pictures(model) as pictures:
        generated = model.generate(**batch, **GREEDY)
    assert pictures == [36]
    return batch["attention_mask"], model(**batch).logits, generated[:, -10:]


@pytest.mark.parametrize("num_images", range(9))
def test_row_of_a_mixed_batch_is_the_row_alone(
    model: AgeVlmForConditionalGeneration,
    rows_with_0_to_8_images: list[dict[str, torch.Tensor]],
    batch_with_0_to_8_images: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    num_images: int,
):
    attention_mask, logits, generated = (tensor[num_images] for tensor in batch_with_0_to_8_images)
    alone = rows_with_0_to_8_images[num_images]
    assert_close(logits[attention_mask == 1], model(**alone).logits[0])
    assert torch.equal(generated, model.generate(**alone, **GREEDY)[0, -10:])


# Input embeddings


def test_embeddings_are_the_tokens_when_the_images_come_first(model: AgeVlmForConditionalGeneration):
    batch = tiny_batch(placeholders=((0,), (0,)))
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embeddings, pixel_values=batch["pixel_values"]).logits
    assert_close(found, model(**batch).logits)


@pytest.mark.parametrize("arguments", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_generation_from_embeddings(model: AgeVlmForConditionalGeneration, arguments: dict[str, Any]):
    alone = [tiny_batch(((0,),), 10, seed=1), tiny_batch(((0,),), 7, seed=2)]
    batch = joined(alone)
    embeddings = model.get_input_embeddings()(batch.pop("input_ids"))
    with counted_pictures(model) as pictures:
        found = model.generate(inputs_embeds=embeddings, **batch, **GREEDY, **arguments)
    assert pictures == [2]
    expected = [model.generate(**row, **GREEDY, **arguments)[:, -10:] for row in alone]
    assert torch.equal(found, torch.cat(expected))


# Compilation


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_forward_is_the_forward(model: AgeVlmForConditionalGeneration, backend: str):
    torch._dynamo.reset()
    compiled = torch.compile(model.forward, fullgraph=True, backend=backend)
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    caches = [StaticCache(config=model.config, max_cache_len=16) for _ in range(2)]
    attention_mask = batch["attention_mask"]
    for _ in range(4):
        expected, found = (
            forward(**batch, cache=cache, use_cache=True).logits
            for forward, cache in zip((model, compiled), caches, strict=True)
        )
        assert_close(found, expected)
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
        batch = {"input_ids": expected[:, -1:].argmax(-1), "attention_mask": attention_mask}


def test_compiled_generation_is_one_graph(model: AgeVlmForConditionalGeneration):
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    config = CompileConfig(backend=backend, fullgraph=True, mode=None)
    config._compile_all_devices = True  # transformers compiles by itself on a GPU only
    compiled = copy.deepcopy(model)  # which keeps what it compiled
    for seed in range(2):
        batch = tiny_batch(placeholders=((1, 6), (3,), ()), seed=seed)
        found = compiled.generate(**batch, **GREEDY, cache_implementation="static", compile_config=config)
        assert torch.equal(found, model.generate(**batch, **GREEDY))
    assert len(graphs) == 1  # of the decoding step; the prefill is not compiled


def test_compiled_training_step_is_the_training_step():
    model = tiny_model()
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    batch |= {"labels": batch["input_ids"], "query_masks": torch.ones(3, 2, 10, dtype=torch.bool)}
    torch._dynamo.reset()
    results = []
    for forward in (model.forward, torch.compile(model.forward, fullgraph=True, backend="eager")):
        model.zero_grad()
        outputs = forward(**batch, use_cache=False)
        (outputs.loss + outputs.grounding_maps[1][..., 0].sum()).backward()
        results.append([outputs.loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, GRADIENT_LENGTH)


@pytest.mark.parametrize("of_processor", [False, True], ids=["tokenizer", "processor"])
def test_stop_strings_end_in_the_middle_of_a_token(model: AgeVlmForConditionalGeneration, of_processor: bool):
    """Also where the processor is passed for the tokenizer, as transformers' own server does."""
    processor = tiny_processor()
    words = processor.tokenizer.batch_decode([[n] for n in range(VOCAB_SIZE)], skip_special_tokens=True)
    unreadable = [n for n, word in enumerate(words) if not word.isprintable() or word in ("", "\ufffd")]
    arguments = {
        **GREEDY,
        "min_new_tokens": None,
        "suppress_tokens": unreadable,
    }
    inputs = tiny_batch(((1,),))
    written = model.generate(**inputs, **arguments)[0, 10:].tolist()
    stop = words[written[3]][-1:] + words[written[4]][:1]
    text = ""
    expected = [token for token in written if (stop not in text, text := text + words[token])[0]]
    assert len(expected) < len(written)
    tokenizer = processor if of_processor else processor.tokenizer
    output = model.generate(**inputs, **arguments, stop_strings=[stop], tokenizer=tokenizer)
    assert output[0, 10:].tolist() == expected
