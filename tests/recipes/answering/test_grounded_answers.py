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
"""Where words look: marking their tokens, bringing maps over pictures, and `recipes/ask.py`, which does both."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import pyplot as pyplot
from testing_utils import (
    EOT,
    IMAGE_SIZE,
    MAP_LENGTH,
    assert_close,
    picture,
    region,
    row,
    tiny_model,
    tiny_processor,
    tolerance,
    up_to_rounding,
)
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from modeling_agevlm import AgeVlmProcessor
from modeling_agevlm.modeling_agevlm import AgeVlmCausalLMOutputWithPast
from recipes import ask
from recipes.answering import phrases
from recipes.answering.answers import one_question, prompts
from recipes.answering.attention import look_of_phrases
from recipes.answering.grounded import CANNOT_TELL, abstain, ground_answer
from recipes.drawing.attention import (
    COLORS,
    colored,
    draw_attention,
    in_numbers,
    save_attention,
    save_attention_lines,
    save_attention_sheet,
)
from trainers import DataCollatorForGuidedVisionLanguageModeling


pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # random weights write bytes that no font has


ANSWER = "Yes, there is a red cup on the table."


@pytest.fixture(scope="module")
def processor() -> AgeVlmProcessor:
    return tiny_processor()


def tokens(processor: AgeVlmProcessor, *texts: str) -> torch.Tensor:
    return processor.tokenizer(list(texts), padding=len(texts) > 1, return_tensors="pt")["input_ids"]


def marked(processor: AgeVlmProcessor, text: str, phrase: str) -> list[str]:
    """The marked tokens' text, in pieces of what stands together."""
    input_ids = tokens(processor, text)
    mask = processor.get_query_masks(input_ids, [phrase])[0, 0].tolist()
    pieces, open_piece = [], False
    for token_id, is_marked in zip(input_ids[0].tolist(), mask, strict=True):
        if is_marked:
            pieces = [*pieces[:-1], [*pieces[-1], token_id]] if open_piece else [*pieces, [token_id]]
        open_piece = is_marked
    return [processor.tokenizer.decode(piece) for piece in pieces]


# Marking tokens


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("Is there", ["Is there"]),
        ("cup", [" cup", " cup"]),
        ("red cup", [" red cup"]),
        ("RED  Cup\n", [" red cup"]),
        ("the image?", [" the image?"]),
        ("Yes,", ["Yes,"]),
        ("table.", [" table."]),
        ("?", ["?"]),
    ],
)
def test_all_occurrences_are_marked(processor: AgeVlmProcessor, phrase: str, expected: list[str]):
    assert marked(processor, f"<|image|>Is there a cup in the image?<|eot_id|>{ANSWER}<|eot_id|>", phrase) == expected


def test_a_phrase_is_whole_words(processor: AgeVlmProcessor):
    assert marked(processor, "<|image|>A cupboard, a teacup, a cup2, a (cup).", "cup") == ["cup"]
    assert marked(processor, "<|image|>She's a one-cup woman", "cup") == ["cup"]


def test_line_breaks_are_spaces(processor: AgeVlmProcessor):
    assert marked(processor, "<|image|>a red\n cup", "red cup") == [" red\n cup"]


def test_no_phrase_reaches_over_a_special_token(processor: AgeVlmProcessor):
    with pytest.raises(ValueError, match="'red cup' is not among the words"):
        marked(processor, "<|image|>red<|eot_id|> cup", "red cup")
    with pytest.raises(ValueError, match="'eot_id' is not among the words"):
        marked(processor, "<|image|>red<|eot_id|> cup", "eot_id")


def test_words_before_the_image_are_not_marked(processor: AgeVlmProcessor):
    assert marked(processor, "a cup<|image|> and a cup", "cup") == [" cup"]
    for text in ("a cup<|image|> and a dog", "a cup"):
        with pytest.raises(ValueError, match="'cup' is not among the words at or after the image in row 0"):
            marked(processor, text, "cup")


@pytest.mark.parametrize("phrase", ["teapot", "", "up", "cup in"])
def test_a_phrase_that_is_not_there_is_named(processor: AgeVlmProcessor, phrase: str):
    with pytest.raises(ValueError, match=f"^'{phrase}' is not .* row 1 .* which are 'A dog and a cup.'. Pass words"):
        processor.get_query_masks(tokens(processor, "<|image|>x", "<|image|>A dog and a cup."), [[], [phrase]])


@pytest.mark.parametrize("text", ["red cup", "Is there", "on the table.", ANSWER])
def test_same_tokens_as_in_training(processor: AgeVlmProcessor, text: str):
    message = 0 if text == "Is there" else 1
    collate = DataCollatorForGuidedVisionLanguageModeling(processor)
    batch = collate([row(regions=[region(text=text, message=message)])])
    assert torch.equal(processor.get_query_masks(batch["input_ids"], [text]), batch["query_masks"])


def test_generated_tokens_need_not_be_the_tokenizers(processor: AgeVlmProcessor):
    """A model may write a word in other tokens than the tokenizer cuts it into."""
    letters = [tokens(processor, letter)[0, 0].item() for letter in "redcup"]
    prompt = tokens(processor, "<|image|>What?")[0].tolist()
    masks = processor.get_query_masks([prompt + letters], ["redcup"])
    assert masks[0, 0].tolist() == [False] * len(prompt) + [True] * 6


@pytest.mark.parametrize(("phrase", "num_bytes"), [("caf\u00e9", 5), ("\U0001f992", 4), ("x", 1)])
def test_characters_of_several_tokens(processor: AgeVlmProcessor, phrase: str, num_bytes: int):
    """Every token with a byte of the phrase is marked, and none beside it."""
    input_ids = tokens(processor, f"<|image|>-{phrase}-\u00e9-")
    start = tokens(processor, "<|image|>-").shape[1]
    expected = [start <= n < start + num_bytes for n in range(input_ids.shape[1])]
    assert processor.get_query_masks(input_ids, [phrase])[0, 0].tolist() == expected


def test_text_that_breaks_off_within_a_character(processor: AgeVlmProcessor):
    input_ids = tokens(processor, "<|image|>a cup \u00e9")[:, :-1]
    mask = processor.get_query_masks(input_ids, ["cup"])[0, 0]
    assert processor.tokenizer.decode(input_ids[0][mask]) == " cup"


def test_tokenizer_of_llama_2():
    """Words begin with a mark instead of a space, the first space is dropped, rare characters are bytes."""
    words = ["<unk>", "<s>", "</s>", "<|image|>", "\u2581A", "\u2581red", "\u2581cup", "s", "<0xC3>", "<0xA9>"]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<|image|>"],
        chat_template="",
    )
    processor = AgeVlmProcessor(tiny_processor().image_processor, fast)
    input_ids = torch.tensor([[1, 3, 4, 5, 6, 7, 8, 9, 2]])  # A red cupsé
    assert processor.get_query_masks(input_ids, ["a", "cups\u00e9"])[0].int().tolist() == [
        [0, 0, 1, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 0],
    ]


def test_rows_with_phrases_of_their_own():
    """Padding on either side leaves the marks on their words; a row with fewer phrases ends in empty masks."""
    texts = ["<|image|>Is there a red cup?", "<|image|>A dog"]
    phrases = [["red cup", "Is there"], ["dog"]]
    for side in ("left", "right"):
        processor = tiny_processor()
        processor.tokenizer.padding_side = side
        input_ids = tokens(processor, *texts)
        masks = processor.get_query_masks(input_ids, phrases)
        assert masks.shape == (2, 2, input_ids.shape[1]) and masks.dtype == torch.bool
        decoded = [processor.tokenizer.decode(input_ids[b][masks[b, k]]) for b in range(2) for k in range(2)]
        assert decoded == [" red cup", "Is there", "dog", ""]


def test_as_many_lists_of_phrases_as_rows(processor: AgeVlmProcessor):
    with pytest.raises(ValueError, match="phrases for 2 rows, but `input_ids` has 1"):
        processor.get_query_masks(tokens(processor, "<|image|>a cup"), [["a"], ["cup"]])


# Maps over pictures


def outputs(cells: torch.Tensor, *more_layers: torch.Tensor) -> AgeVlmCausalLMOutputWithPast:
    return AgeVlmCausalLMOutputWithPast(grounding_maps=(cells, *more_layers))


def one_cell(line: int, column: int) -> torch.Tensor:
    cells = torch.zeros(1, 1, 3, 3)
    cells[..., line, column] = 1
    return cells.flatten(2)


@pytest.mark.parametrize(
    ("flags", "cell", "rows", "columns"),
    [
        # A picture of 64 x 128 pixels; 3 x 3 cells of 32 pixels
        ({}, (2, 1), (42 + 2 / 3, 64), (42 + 2 / 3, 85 + 1 / 3)),
        # as 48 x 96 pixels, 24 from the top
        ({"do_pad": True}, (0, 0), (0, 10 + 2 / 3), (0, 42 + 2 / 3)),
        ({"do_pad": True}, (1, 2), (10 + 2 / 3, 53 + 1 / 3), (85 + 1 / 3, 128)),
        ({"do_pad": True}, (2, 1), (53 + 1 / 3, 64), (42 + 2 / 3, 85 + 1 / 3)),
        # as 96 x 192 pixels, without 48 on the left and on the right
        ({"do_center_crop": True}, (0, 0), (0, 21 + 1 / 3), (32, 53 + 1 / 3)),
        ({"do_center_crop": True}, (1, 2), (21 + 1 / 3, 42 + 2 / 3), (74 + 2 / 3, 96)),
    ],
)
def test_attention_to_one_cell_lies_on_its_part_of_the_picture(flags, cell, rows, columns):
    found = tiny_processor(**flags).post_process_grounding(outputs(one_cell(*cell)), target_sizes=[(64, 128)])[0][0]
    shares = []
    for length, (first, last) in ((64, rows), (128, columns)):
        covered = [max(0, min(n + 1, last) - max(n, first)) for n in range(length)]  # of each pixel
        shares.append(np.array(covered) / (last - first))
    expected = np.outer(*shares)
    assert found.shape == (1, 64, 128) and found.dtype == torch.float32
    assert_close(found[0], torch.from_numpy(expected), MAP_LENGTH)
    assert found.sum().item() == up_to_rounding(1, 64 * 128)


@pytest.mark.parametrize("flags", [{}, {"do_pad": True}, {"do_center_crop": True}])
@pytest.mark.parametrize("size", [(64, 128), (333, 200), (7, 500), (1, 1), (95, 96)])
def test_geometry_is_that_of_the_masks(flags: dict[str, bool], size: tuple[int, int]):
    """Attention inside a mask is the same over the pixels as over the cells, for attention that is even within them."""
    image_processor = tiny_processor(**flags).image_processor
    mask = np.random.default_rng(0).random(size) < 0.4
    covered, seen = (image_processor.mask_coverage(m).double() for m in (mask, np.ones(size, dtype=bool)))
    cells = torch.rand(3, 3, dtype=torch.float64) * (seen > 0)
    found = image_processor.cells_to_pixels(cells, *size)
    assert_close(found.sum(), cells.sum(), found.numel())
    inside = (cells * covered / seen.clamp(min=1e-9)).sum()
    off = tolerance(torch.float32, IMAGE_SIZE**2) * cells.sum().item()  # as the masks' shares of the cells, in float32
    assert_close(found[torch.from_numpy(mask)].sum(), inside, found.numel(), atol=off)


@pytest.mark.parametrize(
    ("flags", "size", "cells_shown", "pixels_shown"),
    [
        ({}, (60, 120), (slice(0, 3), slice(0, 3)), (slice(0, 60), slice(0, 120))),
        ({"do_pad": True}, (20, 60), (slice(1, 2), slice(0, 3)), (slice(0, 20), slice(0, 60))),
        ({"do_center_crop": True}, (60, 180), (slice(0, 3), slice(0, 3)), (slice(0, 60), slice(60, 120))),
    ],
)
def test_smooth_maps_are_bilinear(flags, size, cells_shown, pixels_shown):
    """Between the cells of the picture, as there beyond the outermost ones; padding and what was cropped take no part."""
    processor = tiny_processor(**flags)
    cells = torch.rand(1, 3, 3, dtype=torch.float64)
    shown = cells[:, *cells_shown]
    found = processor.image_processor.cells_to_pixels(cells, *size, smooth=True)
    inside = found[:, *pixels_shown]
    density = shown * shown.numel() / inside.numel()
    expected = torch.nn.functional.interpolate(density[None], inside.shape[1:], mode="bilinear", align_corners=False)
    assert_close(inside, expected[0], MAP_LENGTH)
    assert found.sum().item() == pytest.approx(inside.sum().item()) == pytest.approx(shown.sum().item(), rel=0.1)
    by_outputs = processor.post_process_grounding(outputs(cells.float().flatten()[None, None]), [size], smooth=True)[
        0
    ][0]
    assert_close(by_outputs, found.float(), MAP_LENGTH)


@pytest.mark.parametrize("flags", [{}, {"do_pad": True}, {"do_center_crop": True}])
@pytest.mark.parametrize("size", [(48, 96), (104, 200), (102, 200), (95, 96), (7, 500), (1, 1)])
def test_smooth_maps_have_the_same_sum(flags: dict[str, bool], size: tuple[int, int]):
    """Also where the picture has but a sliver of a cell, and at any resolution; what is even over the cells stays even."""
    image_processor = tiny_processor(**flags).image_processor
    seen = image_processor.mask_coverage(np.ones(size, dtype=bool)).double() > 0
    cells = torch.rand(2, 3, 3, dtype=torch.float64) * seen
    cells[1] = seen
    for resolution in (None, (24, 12), (5, 40)):
        exact = image_processor.cells_to_pixels(cells, *size, resolution=resolution)
        found = image_processor.cells_to_pixels(cells, *size, smooth=True, resolution=resolution)
        assert_close(found.sum(dim=(1, 2)), exact.sum(dim=(1, 2)), exact.numel())
        assert_close(exact.sum(dim=(1, 2)), cells.sum(dim=(1, 2)), exact.numel())
        whole = found[1][(found[1] > found[1].max() * (1 - 1e-9))]  # pixels at the edge of a crop are seen in part
        assert whole.min() == pytest.approx(whole.max().item()) and len(whole) > 0
        if not flags.get("do_center_crop"):
            assert len(whole) == found[1].numel()


def test_a_resolution_is_of_the_same_geometry():
    """As the picture's pixels, averaged; a picture of that size would be padded in another way."""
    image_processor, cells = tiny_processor(do_pad=True).image_processor, torch.rand(3, 3, dtype=torch.float64)
    pixels = image_processor.cells_to_pixels(cells, 102, 204)
    expected = pixels.unflatten(0, (6, 17)).unflatten(2, (12, 17)).sum(dim=(1, 3))
    assert_close(image_processor.cells_to_pixels(cells, 102, 204, resolution=(6, 12)), expected, MAP_LENGTH)


def test_padding_holds_nothing_of_the_picture():
    """Attention to padding, which a model that is told of it does not pay, lies nowhere in the picture."""
    processor = tiny_processor(do_pad=True)
    found = processor.post_process_grounding(outputs(one_cell(0, 1)), target_sizes=[(32, 96)])[0][0]
    assert (found == 0).all()


def test_layers():
    processor, layers = tiny_processor(), (one_cell(0, 0), one_cell(2, 2))
    first, last, both = (
        processor.post_process_grounding(outputs(*layers), [(96, 96)], layers=chosen)[0][0][0]
        for chosen in ([0], [-1], None)
    )
    assert first[:32, :32].sum() == up_to_rounding(1, 32 * 32) and last[64:, 64:].sum() == up_to_rounding(1, 32 * 32)
    assert_close(both, (first + last) / 2, MAP_LENGTH)


@pytest.mark.parametrize("flags", [{}, {"do_pad": True}, {"do_center_crop": True}])
def test_two_pictures_and_a_row_with_one(flags: dict[str, bool]):
    """Over a row's pictures the attention of words after both sums to 1; of words between them, over the first."""
    model, processor = tiny_model(), tiny_processor(**flags)
    sizes = [[(64, 80), (90, 40)], [(50, 50)]]
    images = [[picture(*size, seed=n) for n, size in enumerate(row_sizes)] for row_sizes in sizes]
    text = ["<|image|>A cup<|image|> and a dog", "<|image|>A table"]
    inputs = processor(images=images, text=text, padding=True, return_tensors="pt")
    query_masks = processor.get_query_masks(inputs["input_ids"], [["cup", "dog"], ["table"]])
    with torch.no_grad():
        maps = processor.post_process_grounding(model(**inputs, query_masks=query_masks), sizes)
    assert [[tuple(m.shape) for m in row_maps] for row_maps in maps] == [[(2, 64, 80), (2, 90, 40)], [(2, 50, 50)]]
    sums = [m.sum(dim=(1, 2)) for row_maps in maps for m in row_maps]
    assert_close(sums[0] + sums[1], torch.ones(2), 64 * 80 + 90 * 40)
    assert sums[1][0] == 0 and 0.05 < sums[1][1] < 0.95
    assert_close(sums[2], torch.tensor([1.0, 0.0]), 50 * 50)


def test_question_and_generated_answer():
    """The prompt's part of a mask and the answer's part ask for the same words in either place."""
    model, processor = tiny_model(), tiny_processor()
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "Is there a cup?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = inputs["input_ids"].shape[1]
    output = torch.cat([inputs["input_ids"], tokens(processor, "A red cup.<|eot_id|>")], dim=1)
    masks = processor.get_query_masks(output, ["cup"]).repeat(1, 3, 1)
    masks[:, 1, length:] = masks[:, 2, :length] = False
    assert masks.sum(dim=2).tolist() == [[2, 1, 1]]
    with torch.no_grad():
        maps = processor.post_process_grounding(
            model(input_ids=output, pixel_values=inputs["pixel_values"], query_masks=masks), [(64, 80)]
        )[0][0]
    assert_close(maps[0], (maps[1] + maps[2]) / 2, MAP_LENGTH)
    assert (maps[1] - maps[2]).abs().max() > 1e-6


def test_outputs_without_maps(processor: AgeVlmProcessor):
    with pytest.raises(ValueError, match="Call the model with `query_masks`"):
        processor.post_process_grounding(AgeVlmCausalLMOutputWithPast(), [(64, 80)])


@pytest.mark.parametrize("sizes", [[], [(64, 80), (64, 80)], [[(64, 80), (64, 80)]]])
def test_sizes_that_do_not_fit(processor: AgeVlmProcessor, sizes: list):
    with pytest.raises(ValueError, match="`target_sizes` has sizes for .* of 1 rows with up to 1 pictures"):
        processor.post_process_grounding(outputs(one_cell(0, 0)), sizes)


# recipes/ask.py


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a cup in the image?", ["cup"]),
        ("The image shows a street with a dog. The dog is to the left of the car.", ["street", "dog", "car"]),
        ("Yes, there is a red cup on the table.", ["red cup", "table"]),
        ("Two lions, a zebra-striped car and the lion's tail.", ["Two lions", "zebra-striped car", "lion's tail"]),
        ("A cup. The cup! Cup?", ["cup"]),
        ("What is it?", []),
        ("It isn\u2019t a dog", ["dog"]),
        ("", []),
    ],
)
def test_guessed_phrases(text: str, expected: list[str]):
    assert [phrase.lower() for phrase in phrases.guess_phrases(text)] == [phrase.lower() for phrase in expected]


def test_places_of_phrases():
    text = "A red\n cup, and the cup: a red cup."
    found = [text[start:end] for start, end in phrases.phrase_spans(text)]
    assert found == ["red\n cup", "cup", "red cup"] and phrases.guess_phrases(text) == ["red cup", "cup"]


def test_question_and_answer_are_kept_apart(processor: AgeVlmProcessor):
    """Also where the answer repeats the question."""
    prompt = tokens(processor, "<|image|>A red cup?<|eot_id|>")
    input_ids = torch.cat([prompt, tokens(processor, "A red cup? A cup.")], dim=1)
    masks = phrases.find_queries(processor, input_ids, prompt.shape[1], "A red cup?", ["cup", "red cup?"])
    found = {name: processor.tokenizer.decode(input_ids[0][mask]) for name, mask in masks.items()}
    assert found == {
        "question": "A red cup?",
        "answer": "A red cup? A cup.",
        "question: cup": " cup",
        "answer: cup": " cup cup",
        "question: red cup?": " red cup?",
        "answer: red cup?": " red cup?",
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    tiny_processor(do_pad=True).save_pretrained(folder)
    return folder


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the recipe with these options in a folder that holds a picture."""
    monkeypatch.chdir(tmp_path)
    picture(50, 80).save("picture.png")

    def run_ask(**options: Any) -> None:
        options = {"model": checkpoint, "image": "picture.png", "question": "Is there a cup?"} | options
        options = {"out": "out/ask.png", "max_new_tokens": 3} | options
        values = {name: value if isinstance(value, list) else [str(value)] for name, value in options.items()}
        monkeypatch.setattr(sys, "argv", ["ask.py", *(w for n, v in values.items() for w in (f"--{n}", *v))])
        ask.main()

    return run_ask


def test_ask_writes_a_drawing_and_arrays(run, capsys: pytest.CaptureFixture):
    run(phrases=["cup", "is  there"])
    printed, arrays = capsys.readouterr().out, dict(np.load("out/ask.npz"))
    assert printed.endswith("where it looked: out/ask.png, out/ask.npz\n")
    assert "on nothing" not in printed and not any(name.startswith("nothing") for name in arrays)
    assert {"question", "answer", "question: cup", "question: is  there", "cells of question"} <= arrays.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        assert array.shape == ((2, 3, 3) if name.startswith("cells of ") else (50, 80))
        assert array.sum(axis=(-2, -1)) == up_to_rounding(np.ones(array.shape[:-2]), 50 * 80)
    assert PIL.Image.open("out/ask.png").width > 1000


def test_ask_prints_json(run, capsys: pytest.CaptureFixture):
    """Nothing else; what the words look at is that of the processor."""
    run(json=[], max_new_tokens=6)
    answered = json.loads(capsys.readouterr().out)
    assert answered.keys() == {"answer", "phrases", "files"} and answered["files"] == ["out/ask.png", "out/ask.npz"]
    for phrase in answered["phrases"]:
        assert phrase["text"] == answered["answer"][slice(*phrase["span"])]
        known = [phrase[name] is not None for name in ("image", "box", "point", "score")]
        assert all(known) or not any(known)


def test_ask_looks_where_it_is_told(run, capsys: pytest.CaptureFixture):
    run(phrases=["cup"])
    free = np.load("out/ask.npz")["question: cup"]
    run(phrases=["cup"], look_at=["0", "0", "20", "10"])
    told = np.load("out/ask.npz")["question: cup"]
    assert told[:16, :26].sum() > 2 * free[:16, :26].sum()
    capsys.readouterr()
    for box in (["5", "0", "5", "10"], ["0", "0", "81", "10"], ["0", "-1", "8", "10"]):
        with pytest.raises(SystemExit, match="is no box in the picture, which is 80 x 50 pixels"):
            run(look_at=box)
    with pytest.raises(SystemExit, match="error: `--look_at`: A place to look at is a point or a box"):
        run(look_at=["1", "2", "3"])


def test_ask_zooms_in(run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Into what is said; without a small part that is looked at, what was asked once is as it was, bit for bit."""
    run(phrases=["cup"])
    once = dict(np.load("out/ask.npz"))
    run(phrases=["cup"], zoom=[])
    assert "zoomed in: nowhere\n" in capsys.readouterr().out
    assert all(np.array_equal(array, once[name]) for name, array in np.load("out/ask.npz").items())
    monkeypatch.setattr("recipes.answering.zooming.zoom_window", lambda *inputs: (10, 5, 40, 35))
    run(phrases=["cup"], zoom=[])
    assert "zoomed in: 10, 5, 40, 35\n" in capsys.readouterr().out
    zoomed = np.load("out/ask.npz")
    assert zoomed["question: cup"].shape == (50, 80) and zoomed["question: cup"].sum() == pytest.approx(1, abs=1e-4)
    inside = [array["question: cup"][5:35, 10:40].sum() for array in (zoomed, once)]
    assert inside[0] > 1.2 * inside[1]
    run(json=[], zoom=[])
    assert json.loads(capsys.readouterr().out)["zoomed"] == [10, 5, 40, 35]
    with pytest.raises(SystemExit, match="leave out either `--zoom` or `--html`"):
        run(zoom=[], html="page.html")


def test_phrases_of_an_answer_look_by_themselves():
    """Each time that a phrase is written, with its own box; spans count from the answer's first letter."""
    model, processor, said = tiny_model(), tiny_processor(), " A red cup, and a cup."
    processor.grounding_readout = {"intercept": 5.0}  # random weights look at nothing much
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": picture(50, 80)}, {"type": "text", "text": "cup?"}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    length = prompt["input_ids"].shape[1]
    input_ids = torch.cat([prompt["input_ids"], tokens(processor, said)], dim=1)
    inputs = {**prompt, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    red, cup = ground_answer(model, processor, inputs, length, [(50, 80)])
    assert (red["text"], red["span"], cup["text"], cup["span"]) == ("red cup", [2, 9], "cup", [17, 20])
    words = [processor.tokenizer.decode(token) for token in input_ids[0]]
    masks = torch.zeros(1, 2, len(words), dtype=torch.bool)
    last = len(words) - 1 - words[::-1].index(" cup")
    masks[0, 0, [words.index(" red", length), words.index(" cup", length)]] = masks[0, 1, last] = True
    outputs = model(**inputs, query_masks=masks)
    (result,) = processor.post_process_grounded_object_detection(outputs, [(50, 80)])
    for label, entry in enumerate((red, cup)):
        scores = result["scores"].masked_fill(result["labels"] != label, -1)
        best = scores.argmax()
        assert entry["score"] == pytest.approx(scores[best].item(), abs=1e-4) and entry["image"] == 0
        assert entry["box"] == pytest.approx(result["boxes"][best].tolist(), abs=0.051)
        assert entry["point"] == pytest.approx(result["points"][best].tolist(), abs=0.051)
    assert ground_answer(model, processor, prompt, length, [(50, 80)]) == []
    processor.grounding_readout = {"intercept": -50.0}
    nothing = ground_answer(model, processor, inputs, length, [(50, 80)])
    assert [(entry["text"], entry["span"]) for entry in nothing] == [("red cup", [2, 9]), ("cup", [17, 20])]
    assert {entry[name] for entry in nothing for name in ("image", "box", "point", "score")} == {None}


SINK = {"text_config": {"attention_sink": True, "guidance_layers": [3], "guidance_heads": [2]}}


def test_ask_writes_a_page(run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """Of one checkpoint, or of two by their names; the phrases are those that were given."""
    run(html="out/answer.html", phrases=["cup"])
    assert capsys.readouterr().out.endswith("where it looked: out/ask.png, out/ask.npz, out/answer.html\n")
    shutil.copytree(checkpoint, tmp_path / "other")
    run(html="out/both.html", beside="other", phrases=["cup"])
    printed = capsys.readouterr().out
    assert f"{checkpoint.name}: " in printed and "\nother: " in printed
    for page, names in (("answer", [""]), ("both", [checkpoint.name, "other"])):
        text = Path(f"out/{page}.html").read_text(encoding="utf-8")
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])
        assert [model["name"] for model in data["models"]] == names
        for model in data["models"]:
            assert [word["text"] for word in model["words"]][:4] == ["Is", "there", "a", "cup?"]
            assert [phrase["text"] for phrase in model["phrases"]] == ["cup"]
    assert {path.name for path in Path("out").iterdir()} == {"ask.png", "ask.npz", "answer.html", "both.html"}


def test_ask_says_what_looks_at_nothing(
    run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Of the guided head: the last column of its attention, by hand; the maps hold the other columns."""
    shutil.copytree(checkpoint, tmp_path / "sink")
    tiny_model(**SINK).save_pretrained(tmp_path / "sink")
    drawn = {}
    monkeypatch.setattr("recipes.drawing.attention.save_attention", lambda path, picture, looks: drawn.update(looks))
    run(model=tmp_path / "sink", phrases=["cup"])
    printed, arrays = capsys.readouterr().out, dict(np.load("out/ask.npz"))

    processor = tiny_processor(do_pad=True)
    inputs = prompts(processor, [one_question("Is there a cup?", picture(50, 80))])
    words = processor.get_query_masks(inputs["input_ids"], ["Is there a cup?", "cup"])[0]
    with torch.no_grad():
        weights = tiny_model(**SINK, attn_implementation="eager")(**inputs, output_attentions=True).cross_attentions
    assert weights[1].shape == (1, 4, inputs["input_ids"].shape[1], 10)
    for name, title, tokens_of in zip(
        ("question", "question: cup"), ("question: Is there a cup?", "question: cup"), words, strict=True
    ):
        expected = weights[1][0, 2, tokens_of].mean(0)  # of the second cross-attention layer, 3, its head 2
        assert 0.01 < expected[-1] < 0.99
        assert arrays[f"cells of {name}"].shape == (1, 3, 3) and arrays[f"nothing of {name}"].shape == (1,)
        assert_close(torch.from_numpy(arrays[f"cells of {name}"]).flatten(), expected[:-1])
        assert_close(torch.from_numpy(arrays[f"nothing of {name}"]), expected[-1:])
        assert arrays[name].sum() == up_to_rounding(1 - expected[-1].item(), 50 * 80)
        assert f"\n{name}: {expected[-1].item():.0%} on nothing\n" in printed
        attention, on_nothing = drawn[title]
        smooth = processor.image_processor.cells_to_pixels(expected[:-1].view(3, 3), 50, 80, smooth=True)
        assert_close(torch.from_numpy(attention), smooth)
        assert on_nothing == arrays[f"nothing of {name}"].item()


def test_where_phrases_of_several_prompts_look():
    """Padding and the other rows change nothing: the mean over guided layers, by hand, of each prompt alone."""
    over = {"text_config": {"attention_sink": True, "guidance_heads": [0, 3]}}
    processor, chats = tiny_processor(), []
    for n, question in enumerate(("Is there a cup?", "Is there a red table in the image?")):
        chats.append(one_question(question, picture(seed=n)))
    found = look_of_phrases(
        tiny_model(**over), processor, prompts(processor, chats), ["cup", "red table"], [(300, 500)] * 2
    )
    eager = tiny_model(**over, attn_implementation="eager")
    for look, chat, phrase in zip(found, chats, ("cup", "red table"), strict=True):
        inputs = prompts(processor, [chat])
        words = processor.get_query_masks(inputs["input_ids"], [phrase])[0, 0]
        with torch.no_grad():
            layers = eager(**inputs, output_attentions=True).cross_attentions
        expected = torch.stack([layer[0, [0, 3]][:, words].mean(dim=(0, 1)) for layer in layers]).mean(dim=0)
        assert look.on_nothing == up_to_rounding(expected[-1].item()) and 0.01 < look.on_nothing < 0.99
        over_picture = processor.image_processor.cells_to_pixels(expected[:-1].view(3, 3), 14, 24)
        assert_close(look.map, over_picture)
    assert abs(found[0].on_nothing - found[1].on_nothing) > 1e-3


def test_ask_guesses_phrases(run):
    run(question="Is there a red cup on the table in the image?")
    assert {"question: red cup", "question: table"} <= dict(np.load("out/ask.npz")).keys()


def test_what_a_question_says_is_words(run, capsys: pytest.CaptureFixture):
    """Also where it reads like a placeholder, or the end of a turn."""
    run(question="Is <|image|> a cup? <|eot_id|>", html="out/answer.html")
    assert "where it looked: " in capsys.readouterr().out
    assert "question: cup" in np.load("out/ask.npz").files


def test_ask_survives_an_empty_answer(run, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = tiny_model()
    model.generation_config.forced_eos_token_id = EOT
    shutil.copytree(checkpoint, tmp_path / "silent")
    model.save_pretrained(tmp_path / "silent")
    run(model=tmp_path / "silent", max_new_tokens=1)
    assert capsys.readouterr().out.startswith("\n")
    names = {name for name in np.load("out/ask.npz") if not name.startswith("cells")}
    assert names == {"question", "question: cup"}


def test_ask_reads_pictures_of_all_kinds(run):
    image = picture(50, 80)
    rotated = image.getexif()
    rotated[0x0112] = 6
    image.rotate(90, expand=True).save("rotated.jpg", exif=rotated)
    for mode in ("L", "RGBA", "P", "LA", "1"):
        image.convert(mode).save(f"{mode}.png")
    picture(1, 700).save("thin.png")
    for name in ("rotated.jpg", "L.png", "RGBA.png", "P.png", "LA.png", "1.png"):
        run(image=name)
        assert np.load("out/ask.npz")["question"].shape == (50, 80)
    run(image="thin.png")
    assert np.load("out/ask.npz")["question"].shape == (1, 700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "missing.png"}, "error: 'missing.png' cannot be read as a picture"),
        ({"image": "text.png"}, "error: 'text.png' cannot be read as a picture"),
        ({"image": "cut.png"}, "error: 'cut.png' cannot be read as a picture"),
        ({"phrases": ["teapot"]}, "error: 'teapot' is not among the words"),
        ({"question": " "}, "error: `--question` is empty"),
        (
            {"max_new_tokens": 4096},
            "error: The question has .* tokens with all that stands around it. With an answer of up to",
        ),
        ({"model": "."}, "error: . cannot be loaded as an AGE-VLM checkpoint: it has no config.json."),
        ({"model": "llama"}, "error: llama cannot be loaded .*: its config.json is of model type 'llama'."),
        ({"model": "half"}, "error: half cannot be loaded as an AGE-VLM checkpoint: "),
        (
            {"model": "broken"},
            "error: broken cannot be loaded .*: its processor cannot be loaded: AttributeError: 'list'",
        ),
        ({"model": "me/nothing"}, "error: me/nothing cannot be loaded as an AGE-VLM checkpoint: "),
        ({"model": "runs/nothing"}, "error: runs/nothing cannot be loaded as an AGE-VLM checkpoint: "),
        ({"out": "out/ask.jpg"}, "error: `--out` has to end in .png"),
        ({"html": "out/ask.htm"}, "error: `--html` has to end in .html, but is out/ask.htm."),
        (
            {"beside": "runs/nothing"},
            "error: `--beside` shows another checkpoint on the page: say with `--html` where",
        ),
        (
            {"beside": "runs/nothing", "html": "out/a.html"},
            "error: runs/nothing cannot be loaded as an AGE-VLM checkpoint",
        ),
    ],
)
def test_ask_says_what_is_wrong(run, checkpoint: Path, options: dict[str, Any], message: str):
    """In one sentence, with exit status 1, and nothing is written."""
    Path("text.png").write_text("not a picture")
    Path("cut.png").write_bytes(Path("picture.png").read_bytes()[:-200])
    Path("llama").mkdir()
    Path("llama/config.json").write_text('{"model_type": "llama"}')
    shutil.copytree(checkpoint, "broken")
    Path("broken/processor_config.json").write_text("[]")
    shutil.copytree(checkpoint, "half")
    weights = (checkpoint / "model.safetensors").read_bytes()
    Path("half/model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(SystemExit, match=f"^{message}") as stopped:
        run(**options)
    assert "\n" not in stopped.value.code and not Path("out").exists()


def test_drawing_covers_the_picture_smoothly():
    """In the picture's pixels: at the cells' middles what the cells hold, between them linear, beyond them as there."""
    figure, axes = pyplot.subplots()
    attention = np.array([[1.0, 5.0, 2.0], [4.0, 8.0, 4.0]]) / 24  # in cells of 20 pixels
    draw_attention(axes, picture(40, 60), attention)
    photograph, overlay = axes.get_images()
    assert tuple(photograph.get_extent()) == tuple(overlay.get_extent()) == (0, 60, 40, 0)
    density = torch.nn.functional.interpolate(torch.tensor(attention * 6)[None, None], size=(40, 60), mode="bilinear")
    expected = colored(density[0, 0].numpy())
    np.testing.assert_allclose(overlay.get_array(), expected, atol=0.02)  # a step of the colors for rounding
    pyplot.close(figure)


def test_colors_are_of_multiples_of_even_attention():
    """The same for all maps: each doubling is a step of the same length, from none at all to the last color."""
    steps = [COLORS[round(255 * step / 5)].tolist() for step in (0, 1, 2, 5)]
    black = COLORS[0].tolist()
    found = colored(np.array([[1, 2, 4, 32], [64, 0.5, 0, 0.999]]))
    assert found.tolist() == [steps, [COLORS[255].tolist(), black, black, black]]
    assert COLORS[0, 3] == 0 and (np.diff(COLORS[:, 3]) > 0).all()


def test_even_attention_has_no_color():
    figure, axes = pyplot.subplots()
    draw_attention(axes, picture(40, 80), np.full((40, 80), 1 / 3200))
    assert not axes.get_images()[1].get_array()[..., 3].any()
    pyplot.close(figure)


def test_attention_in_numbers():
    even, one = np.full((10, 10), 0.01), np.eye(10) / 10
    assert in_numbers(even) == "half of it in 50% of the picture"
    assert in_numbers(one) == "half of it in 5% of the picture"
    assert in_numbers(0.21 * one, 0.79) == "79% on nothing, half the rest in 5%"
    assert in_numbers(np.zeros((10, 10)), 1.0) == "100% on nothing"


def test_titles_are_words_and_no_formulas(tmp_path: Path):
    """What a dollar begins would be taken for one, and fail where it is none."""
    words = "It costs $\\frac$."
    looks = {words: (np.ones((4, 5)), 0.0)}
    save_attention(tmp_path / "looks.png", picture(), looks)
    save_attention_lines(tmp_path / "lines.png", [(picture(), looks)])
    line = {"image": picture(), "question": words, "truth": words, "it": (words, torch.ones(9), 0.0)}
    save_attention_sheet(tmp_path / "sheet.png", [line], ["it"])
    assert {path.name for path in tmp_path.iterdir()} == {"looks.png", "lines.png", "sheet.png"}


def test_titles_say_what_looks_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed = []
    monkeypatch.setattr(pyplot, "close", closed.append)
    looks = {"cup": (np.ones((4, 5)), 0.79), "table": (np.ones((4, 5)), 0.0)}
    save_attention(tmp_path / "looks.png", picture(), looks)
    cells = torch.ones(9)
    line = {"image": picture(), "question": "Is there a cup?", "truth": "no"}
    line |= {"with": ("No.", cells, 0.786), "without": ("Yes.", cells, 0.0)}
    save_attention_sheet(tmp_path / "sheet.png", [line], ["with", "without"])
    titles = [[axes.get_title(loc="left") for axes in figure.axes] for figure in closed]
    assert titles == [
        ["", "cup\n79% on nothing, half the rest in 50%", "table\nhalf of it in 50% of the picture", ""],
        [
            "Is there a cup?\ntruth: no",
            "with\nNo.\n79% on nothing, half the rest in 56%",
            "without\nYes.\nhalf of it in 56% of the picture",
            "",
        ],
    ]
    monkeypatch.undo()
    for figure in closed:
        pyplot.close(figure)


def test_an_answer_without_what_nothing_speaks_for(monkeypatch: pytest.MonkeyPatch):
    """By what lies on nothing: phrases are struck out, a yes and a no are doubted from either side."""
    shares = {"red cup": 0.9, "dog": 0.1, "cat": 0.3}

    def grounded(text: str) -> list[dict[str, Any]]:
        return [
            {"text": words, "span": [text.index(words), text.index(words) + len(words)], "on_nothing": share}
            for words, share in shares.items()
            if words in text
        ]

    monkeypatch.setattr("recipes.answering.grounded.ground_question", lambda *given: grounded(given[3]))
    monkeypatch.setattr("recipes.answering.grounded.ground_answer", lambda *given: grounded(said))
    model = SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(attention_sink=True)))

    def told(question: str, answer: str, most: float) -> str:
        return abstain(model, None, {}, 0, [], question, answer, most)

    said = "A red cup and a dog."
    assert told("Describe the image.", said, 0.2) == "A ~~red cup~~ and a dog."
    assert told("Describe the image.", said, 0.05) == "A ~~red cup~~ and a ~~dog~~."
    assert told("Describe the image.", said, 0.95) == said
    assert told("Is there a red cup?", "Yes.", 0.2) == CANNOT_TELL
    assert told("Is there a red cup?", "No.", 0.2) == "No."
    assert told("Is there a dog?", "Yes.", 0.2) == "Yes."
    assert told("Is there a dog?", "No.", 0.2) == CANNOT_TELL
    assert told("Is there a dog?", "No.", 0.95) == "No."
    assert told("Is it?", "Yes.", 0.2) == "Yes."
    model.config.text_config.attention_sink = False
    with pytest.raises(ValueError, match="no attention sink"):
        told("Is there a dog?", "Yes.", 0.2)
