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
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from testing_utils import (
    IMAGE,
    MAP_LENGTH,
    NUM_CELLS,
    PAD,
    assert_close,
    box_mask,
    picture,
    region,
    rle,
    row,
    tiny_model,
    tiny_processor,
    tiny_tokenizer,
)

from trainers import BrokenRowError, DataCollatorForGuidedVisionLanguageModeling, data_collator
from trainers.data_collator import as_parts, mask_key, message_text


Collator = DataCollatorForGuidedVisionLanguageModeling


def collator(image_flags: dict | None = None, **over: Any) -> Collator:
    return Collator(tiny_processor(**image_flags or {}), **over)


def words(collate: Collator, ids: torch.Tensor, where: torch.Tensor) -> str:
    """The text of the tokens that a mask marks."""
    return collate.processor.tokenizer.decode(ids[where])


def labelled(collate: Collator, batch: dict[str, torch.Tensor], n: int = 0) -> str:
    """The text of the labels of a row, at whose places the inputs are the same tokens."""
    ids, labels = batch["input_ids"][n], batch["labels"][n]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    return words(collate, ids, labels != -100)


def query(collate: Collator, batch: dict[str, torch.Tensor], n: int = 0, k: int = 0) -> str:
    return words(collate, batch["input_ids"][n], batch["query_masks"][n, k])


def query_of(one: dict[str, Any], the_row: dict[str, Any] | None = None, **over: Any) -> str:
    """The query of a row's only region."""
    collate = collator(**over)
    batch = collate([(the_row or row()) | {"regions": [one]}])
    assert batch["query_masks"].shape[:2] == (1, 1)
    return query(collate, batch)


def png(image: PIL.Image.Image, **arguments: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **arguments)
    return file.getvalue()


def chat(*contents: Any) -> list[dict[str, Any]]:
    """Messages of the user and the assistant in turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


# Labels


def test_labels_are_the_assistants_words_and_its_end_of_turn():
    collate = collator()
    batch = collate([row("A cup?", "Yes.") | {"messages": chat("A cup?", "Yes, a cup.", "And?", "No.")}])
    tokens = collate.processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens[:2] == ["<|begin_of_text|>", "<|start_header_id|>"] and tokens[-1] == "<|eot_id|>"
    assert labelled(collate, batch) == "Yes, a cup.<|eot_id|>No.<|eot_id|>"
    assert (batch["labels"] != IMAGE).all() and (batch["input_ids"] == IMAGE).sum() == 1
    ends = batch["labels"][0] == collate.processor.tokenizer.eos_token_id
    assert ends.sum() == 2 and ends[-1]


def test_text_is_that_of_the_chat_template():
    collate = collator()
    batch = collate([row("A cup?", "Yes.")])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A cup?"}]}]
    messages += [{"role": "assistant", "content": "Yes."}]
    expected = collate.processor.apply_chat_template(messages)
    assert collate.processor.tokenizer.decode(batch["input_ids"][0]) == expected


def test_placeholder_in_the_assistants_turn_is_no_label():
    collate = collator()
    answer = [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": " there."}]
    batch = collate([row() | {"messages": chat("Draw.", answer)}])
    assert (batch["input_ids"] == IMAGE).sum() == 1
    assert labelled(collate, batch) == "See  there.<|eot_id|>"


# Queries


def test_query_of_a_phrase():
    assert query_of(region(text="red cup")) == " red cup"


def test_query_of_a_phrase_that_ends_within_a_token():
    """Every token that holds a character of the phrase belongs to it."""
    assert query_of(region(text="the ta", span=[3, 9]), row(answer="On the table.")) == " the table"
    assert query_of(region(text="up", span=[3, 5]), row(answer="A cup.")) == " cup"


def test_query_of_a_repeated_phrase_is_its_first_occurrence():
    collate = collator()
    the_row = row(answer="A cup and a cup.", regions=[region(text="cup"), region(text="cup", span=[12, 15])])
    batch = collate([the_row])
    places = [mask.nonzero()[0].tolist() for mask in batch["query_masks"][0].numpy()]
    assert query(collate, batch, k=0) == query(collate, batch, k=1) == " cup"
    assert places[0][-1] < places[1][0]


def test_query_of_a_phrase_is_found_as_words():
    collate = collator()
    batch = collate([row(answer="A woman and a man.", regions=[region(text="man"), region(text="a\nMan.")])])
    assert query(collate, batch, k=0) == "man" and query(collate, batch, k=1) == " a man."
    places = [mask.nonzero()[0].tolist() for mask in batch["query_masks"][0].numpy()]
    assert places[0][-1] > len(places[0]) and set(places[0]) < set(places[1])
    with pytest.raises(
        BrokenRowError, match="region 0: its phrase 'man' does not stand in its message as whole words"
    ):
        collate([row(answer="A woman.", regions=[region(text="man")])])


def test_query_of_a_phrase_is_rather_in_its_own_case():
    collate = collator()
    regions = [region(text="cup"), region(text="Cup"), region(text="CUP")]
    batch = collate([row(answer="Cup or cup.", regions=regions)])
    assert [query(collate, batch, k=k) for k in range(3)] == [" cup", "Cup", "Cup"]


def test_query_of_a_phrase_in_a_later_answer():
    the_row = row() | {"messages": chat("A cup?", "Yes.", "And a dog?", "No dog.")}
    assert query_of(region(text="dog"), the_row) == "dog"
    assert query_of(region(text="dog", message=2), the_row) == "dog"
    collate = collator()
    batch = collate([the_row | {"regions": [region(text="dog"), region(text="dog", message=2)]}])
    assert batch["query_masks"][0, 0].nonzero().min() > batch["query_masks"][0, 1].nonzero().max()


def test_query_of_a_whole_message():
    the_row = row() | {"messages": chat("A cup?", "Yes.", "And a dog?", "No dog.")}
    assert query_of(region(message=0), the_row) == "A cup?"
    assert query_of(region(message=3), the_row) == "No dog."


@pytest.mark.parametrize(
    ("guidance_query", "expected"),
    [("question", "A cup?And a dog?"), ("answer", "Yes.No dog."), ("both", "A cup?Yes.And a dog?No dog.")],
)
def test_query_of_a_region_without_a_message(guidance_query: str, expected: str):
    the_row = row() | {"messages": chat("A cup?", "Yes.", "And a dog?", "No dog.")}
    assert query_of(region(), the_row, guidance_query=guidance_query) == expected


def test_phrase_without_a_message_is_looked_for_where_the_query_is():
    the_row = row("Is a cup there?", "Yes, a cup.")
    for guidance_query in ("question", "answer"):
        collate = collator(guidance_query=guidance_query)
        batch = collate([the_row | {"regions": [region(text="cup")]}])
        is_answer = bool((batch["labels"][0] != -100)[batch["query_masks"][0, 0]].all())
        assert is_answer == (guidance_query == "answer")


def test_queries_hold_no_special_tokens():
    collate = collator(guidance_query="both")
    batch = collate([row("Say <|eot_id|> now", "<|begin_of_text|> Yes.", regions=[region()])])
    marked = batch["input_ids"][0][batch["query_masks"][0, 0]]
    special = torch.tensor(collate.processor.tokenizer.all_special_ids)
    assert len(marked) > 4 and not torch.isin(marked, special).any()
    assert torch.isin(batch["input_ids"][0], special).sum() > 8


def test_words_are_found_behind_a_header_that_looks_like_them():
    assert query_of(region(message=0), row("user", "user")) == "user"
    assert query_of(region(text="assistant"), row("assistant?", "assistant")) == "assistant"
    collate = collator()
    batch = collate([row("user", "assistant", regions=[region(message=0), region(message=1)])])
    tokens = collate.processor.tokenizer.decode(batch["input_ids"][0][: batch["query_masks"][0, 0].nonzero()[0]])
    assert tokens.endswith("<|end_header_id|>\n\n<|image|>")


def test_surrounding_space_is_no_part_of_the_query():
    assert query_of(region(message=0), row("  A cup? \n", "Yes.")) == "A cup?"
    assert query_of(region(text="cup", message=0), row("  A cup? \n", "Yes.")) == " cup"


def test_images_between_parts_of_text():
    content = [
        {"type": "text", "text": "This cup "},
        {"type": "image"},
        {"type": "text", "text": " and that cup "},
        {"type": "image"},
        {"type": "text", "text": " Which?"},
    ]
    the_row = row(images=[picture(), picture()]) | {"messages": chat(content, "The red one.")}
    regions = [region(image=0, message=0), region(image=1, message=0), region(image=0, text="that cup", message=0)]
    collate = collator()
    batch = collate([the_row | {"regions": regions}])
    # Only words after its placeholder see an image.
    assert query(collate, batch, k=0).replace(" ", "") == "andthatcupWhich?"
    assert query(collate, batch, k=1) == "Which?"
    assert query(collate, batch, k=2) == " that cup"


def test_phrase_before_its_image_is_dropped_and_counted():
    content = [{"type": "text", "text": "This cup"}, {"type": "image"}, {"type": "text", "text": "is it red?"}]
    regions = [region(text="This cup", message=0), region(text="red", message=0)]
    collate = collator()
    batch = collate([row(regions=regions) | {"messages": chat(content, "Yes.")}])
    assert batch["query_masks"].shape[1] == 1 and query(collate, batch) == " red"
    assert batch["dropped_regions"].tolist() == [1]


def test_phrase_stands_where_it_sees_its_image():
    """Of the places of a phrase, those before the picture cannot look at it."""
    content = "This cup <image> or that cup <image>, is the cup red?"
    regions = [region(text="cup", image=n, message=0) for n in (0, 1)]
    collate = collator()
    batch = collate([row(images=[picture(), picture(seed=1)], regions=regions) | {"messages": chat(content, "Yes.")}])
    assert batch["dropped_regions"].tolist() == [0]
    first, second = (mask.nonzero().min() for mask in batch["query_masks"][0])
    images = (batch["input_ids"][0] == IMAGE).nonzero().flatten().tolist()
    assert images[0] < first < images[1] < second


# Tags


def text_of(the_row: dict[str, Any]) -> str:
    """The user's turn of a row, as it is trained on."""
    collate = collator()
    text = collate.processor.tokenizer.decode(collate([the_row])["input_ids"][0])
    return text.split("user<|end_header_id|>\n\n")[1].split("<|eot_id|>")[0]


@pytest.mark.parametrize(
    ("words", "num_images", "expected"),
    [
        ("<image>\nA cup?", 1, "<|image|>A cup?"),
        ("A cup?\n<image>", 1, "<|image|>A cup?"),
        ("Left: <image> right: <image> Alike?", 2, "Left: <|image|> right: <|image|> Alike?"),
        ("<image>\n<image>\nAlike?", 2, "<|image|><|image|>Alike?"),
        ("<image><image>Alike?", 2, "<|image|><|image|>Alike?"),
        ("One <image>, two <image>", 2, "One <|image|>, two <|image|>"),
        ("<image>", 1, "<|image|>"),
        ("A cup?", 2, "<|image|><|image|>A cup?"),
        ("No <images> here", 1, "<|image|>No <images> here"),
    ],
)
def test_tags_become_pictures_where_they_stand(words: str, num_images: int, expected: str):
    the_row = row(images=[picture(seed=n) for n in range(num_images)])
    for content in (words, [{"type": "text", "text": words}]):
        assert text_of(the_row | {"messages": chat(content, "Yes.")}) == expected


def test_tags_in_several_messages():
    images = [picture(seed=n) for n in range(3)]
    messages = chat("<image>\nA cup?", "Yes.", "And <image> or <image>?", "No.")
    batch = collator()([{"images": images, "messages": messages}])
    parts = [{"type": "image"}, {"type": "text", "text": "A cup?"}]
    more = [{"type": "text", "text": "And "}, {"type": "image"}, {"type": "text", "text": " or "}, {"type": "image"}]
    expected = collator()(
        [{"images": images, "messages": chat(parts, "Yes.", [*more, {"type": "text", "text": "?"}], "No.")}]
    )
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize(
    ("content", "num_images", "found"),
    [
        ("<image>\n<image>\nA?", 1, 2),
        ("<image>\nA?", 0, 1),
        ("<image>\nA?", 2, 1),
        ([{"type": "image"}, {"type": "text", "text": "<image>\nA?"}], 1, 2),
    ],
)
def test_tags_are_as_many_as_pictures(content: Any, num_images: int, found: int):
    """None is trained on as words, also where the pictures got lost."""
    sentence = (
        f"it has {num_images} images, but {found} image placeholders in its messages .image parts and `<image>`.\\."
    )
    with pytest.raises(BrokenRowError, match=sentence):
        collator()([{"images": [picture()] * num_images, "messages": chat(content, "B.")}])


def test_spans_are_those_of_what_was_written():
    """The tag counts, with its line break."""
    words = "<image>\nA cup or a cup?"
    assert words[17:] == "a cup?"
    collate = collator()
    for content in (words, [{"type": "text", "text": words}]):
        regions = [region(text="cup", span=[10, 13], message=0), region(text="cup", span=[19, 22], message=0)]
        batch = collate(
            [row(regions=[*regions, region(text="a cup", message=0)]) | {"messages": chat(content, "Yes.")}]
        )
        first, second, third = (mask.nonzero().flatten().tolist() for mask in batch["query_masks"][0])
        assert [query(collate, batch, k=k) for k in range(3)] == [" cup", " cup", " a cup"]
        assert first[-1] < second[0] and third[-1] == second[-1]
    broken = row(regions=[region(text="cup", span=[2, 5], message=0)]) | {"messages": chat(words, "Yes.")}
    with pytest.raises(BrokenRowError, match="its phrase 'cup' does not stand in its message"):
        collate([broken])


def test_words_around_a_tag_are_words():
    """They do not grow together where the tag stood."""
    the_row = row(regions=[region(text="cup", message=0)]) | {"messages": chat("Is this<image>cup?", "Yes.")}
    assert query_of(region(text="cup", message=0), the_row) == "cup"
    assert message_text(as_parts(0, the_row["messages"][0])) == "Is this       cup?"


def test_queries_fit_the_model():
    batch = collator()([row(regions=[region(), region(text="cup")]), row(images=[], regions=[])])
    names = ("input_ids", "attention_mask", "labels", "pixel_values", "query_masks")
    outputs = tiny_model()(**{name: batch[name] for name in names})
    assert outputs.loss.isfinite()
    assert_close(outputs.grounding_maps[0].sum(-1), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), MAP_LENGTH)


# Region masks


def test_mask_becomes_cells():
    batch = collator()([row(images=[picture(96, 96)], regions=[region(box_mask(96, 96, (0, 32), (40, 96)))])])
    assert batch["region_masks"].shape == (1, 1, NUM_CELLS)
    assert batch["region_masks"][0, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("mask_downsampling", "expected"), [("any", [1, 1, 0]), ("area", [1, 0, 0])])
def test_mask_downsampling(mask_downsampling: str, expected: list[int]):
    """The first cell is covered for three quarters, the second for one."""
    mask = box_mask(96, 96, (0, 32), (8, 40))
    batch = collator(mask_downsampling=mask_downsampling)([row(images=[picture(96, 96)], regions=[region(mask)])])
    assert batch["region_masks"][0, 0].tolist() == expected + [0] * 6


def test_small_object_survives_only_as_any():
    the_row = row(regions=[region(box_mask(rows=(5, 6), columns=(5, 6)))])
    assert collator()([the_row])["region_masks"].sum() == 1
    batch = collator(mask_downsampling="area")([the_row])
    assert "region_masks" not in batch and batch["dropped_regions"].tolist() == [1]


def test_empty_mask_is_dropped_and_counted():
    batch = collator()([row(regions=[region(box_mask() & False), region()]), row(regions=[region()])])
    assert batch["query_masks"].shape[:2] == (2, 1)
    assert batch["dropped_regions"].tolist() == [1, 0]


def test_region_of_the_second_image():
    the_row = row(images=[picture(), picture(96, 96)], regions=[region(box_mask(96, 96, (64, 96), (0, 32)), image=1)])
    batch = collator()([the_row])
    assert batch["region_masks"].shape == (1, 1, 2 * NUM_CELLS)
    assert batch["region_masks"][0, 0].nonzero().flatten().tolist() == [NUM_CELLS + 6]


def test_mask_is_cropped_as_the_picture_is():
    """Of a picture twice as wide as high, the left quarter is cut off."""
    the_row = row(images=[picture(96, 192)], regions=[region(box_mask(96, 192, (0, 96), (0, 48)))])
    batch = collator(image_flags={"do_center_crop": True})([the_row])
    assert "region_masks" not in batch and batch["dropped_regions"].tolist() == [1]


def test_padded_pictures_come_with_their_mask():
    batch = collator(image_flags={"do_pad": True})([row(images=[picture(48, 96)])])
    assert batch["pixel_attention_mask"].shape == (1, 1, 96, 96) and batch["pixel_attention_mask"].sum() == 48 * 96


def test_mask_belongs_to_the_picture_as_it_is_shown():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = {"bytes": png(picture(64, 80), exif=exif)}
    batch = collator()([row(images=[image], regions=[region(box_mask(80, 64))])])
    assert "region_masks" in batch
    with pytest.raises(BrokenRowError, match="64 x 80 pixels .* image 0 has 80 x 64"):
        collator()([row(images=[image], regions=[region(box_mask(64, 80))])])


@pytest.mark.parametrize(("level", "expected"), [("all", 2), ("message", 1), ("phrase", 1)])
def test_guidance_level(level: str, expected: int):
    collate = collator(guidance_level=level)
    batch = collate([row(regions=[region(), region(text="red cup")])])
    assert batch["query_masks"].shape[1] == expected and batch["dropped_regions"].tolist() == [0]
    if level != "all":
        assert (
            query(collate, batch) == {"message": "Yes, there is a red cup on the table.", "phrase": " red cup"}[level]
        )


# Regions that are nowhere in their picture


ABSENT = row("Is there a dog in the image?", "No, there is no dog.")
TWO_PICTURES = row(images=[picture(), picture(seed=1)]) | {
    "messages": chat(
        [{"type": "image"}, {"type": "text", "text": "A cup?"}],
        "Yes.",
        [{"type": "image"}, {"type": "text", "text": "Is there a cup?"}],
        "No cup.",
    )
}


def nowhere(**where: Any) -> dict[str, Any]:
    return region(**where) | {"mask": None}


def places(batch: dict[str, torch.Tensor], n: int, k: int) -> list[float]:
    """Of each picture's cells and of the sink, the one value that they have in a region."""
    *pictures, sink = batch["region_masks"][n, k].split(NUM_CELLS)
    assert all((cells == cells[0]).all() for cells in pictures) and sink.shape == (1,)
    return [cells[0].item() for cells in [*pictures, sink]]


def test_nowhere_is_on_the_sink():
    collate = collator(attention_sink=True)
    batch = collate([ABSENT | {"regions": [nowhere(text="dog", message=0), nowhere(text="dog", message=1), region()]}])
    assert batch["region_masks"].shape == (1, 3, NUM_CELLS + 1) and batch["dropped_regions"].tolist() == [0]
    assert places(batch, 0, 0) == places(batch, 0, 1) == [0, 1]
    assert query(collate, batch, k=0) == query(collate, batch, k=1) == "dog"
    assert batch["query_masks"][0, 0].nonzero().max() < batch["query_masks"][0, 1].nonzero().min()
    plain = collator()([ABSENT | {"regions": [region()]}])["region_masks"][0, 0]
    assert batch["region_masks"][0, 2].tolist() == [*plain.tolist(), 0] and plain.any()


def test_nowhere_in_one_picture_may_be_in_the_others():
    """But not in pictures that the row does not have."""
    regions = [nowhere(text="cup", message=2), nowhere(text="cup", message=2, image=1), region(text="cup", message=0)]
    rows = [TWO_PICTURES | {"regions": regions}, ABSENT | {"regions": [nowhere(text="dog", message=1)]}]
    batch = collator(attention_sink=True)(rows)
    assert batch["region_masks"].shape == (2, 3, 2 * NUM_CELLS + 1) and batch["dropped_regions"].tolist() == [0, 0]
    assert places(batch, 0, 0) == [0, 1, 1] and places(batch, 0, 1) == [1, 0, 1]
    mask = batch["region_masks"][0, 2]
    assert mask[:NUM_CELLS].any() and not mask[NUM_CELLS:].any()
    assert places(batch, 1, 0) == [0, 0, 1]
    assert not batch["region_masks"][1, 1:].any() and not batch["query_masks"][1, 1:].any()  # it has no more regions


def test_without_a_sink_there_is_no_nowhere():
    regions = [nowhere(text="dog", message=0), region(message=1), nowhere(message=0)]
    collate = collator()
    batch = collate([ABSENT | {"regions": regions}, row(regions=[region()])])
    assert batch["region_masks"].shape == (2, 1, NUM_CELLS) and batch["dropped_regions"].tolist() == [2, 0]
    assert query(collate, batch) == "No, there is no dog."
    batch = collate([ABSENT | {"regions": regions[:1]}])
    assert "region_masks" not in batch and batch["dropped_regions"].tolist() == [1]


def test_empty_mask_is_not_nowhere():
    batch = collator(attention_sink=True)([ABSENT | {"regions": [region(box_mask() & False), region()]}])
    assert batch["dropped_regions"].tolist() == [1]
    assert batch["region_masks"].shape == (1, 1, NUM_CELLS + 1) and batch["region_masks"][0, 0, -1] == 0


def test_nowhere_is_cut_with_its_words():
    the_row = TWO_PICTURES | {"regions": [nowhere(text="cup", message=0), nowhere(text="cup", message=2, image=1)]}
    whole = collator(attention_sink=True)([the_row])
    assert places(whole, 0, 0) == [0, 1, 1]
    last = int(whole["query_masks"][0, 1].nonzero()[-1])
    for length, dropped in ((last + 1, 0), (last, 1)):
        batch = collator(attention_sink=True, max_length=length)([the_row])
        assert batch["dropped_regions"].tolist() == [dropped] and batch["query_masks"].shape[1] == 2 - dropped
    placeholder = int((whole["input_ids"][0] == IMAGE).nonzero()[1])
    batch = collator(attention_sink=True, max_length=placeholder)([the_row])  # the second picture goes, too
    assert batch["dropped_regions"].tolist() == [1] and places(batch, 0, 0) == [0, 1]


def test_nowhere_before_its_picture_is_dropped_and_counted():
    content = [{"type": "text", "text": "This cup"}, {"type": "image"}, {"type": "text", "text": "is it red?"}]
    regions = [nowhere(text="This cup", message=0), nowhere(text="red", message=0), nowhere(message=0)]
    collate = collator(attention_sink=True)
    batch = collate([row(regions=regions) | {"messages": chat(content, "Yes.")}])
    assert batch["dropped_regions"].tolist() == [1] and batch["query_masks"].shape[1] == 2
    assert query(collate, batch, k=0) == " red" and query(collate, batch, k=1) == "is it red?"
    later = TWO_PICTURES | {"regions": [nowhere(text="cup", message=0, image=1)]}
    assert collate([later])["dropped_regions"].tolist() == [1]


@pytest.mark.parametrize(("level", "expected"), [("all", ["No.", "dog"]), ("message", ["No."]), ("phrase", ["dog"])])
def test_guidance_level_of_what_is_nowhere(level: str, expected: list[str]):
    regions = [nowhere(message=1), nowhere(text="dog", message=0)]
    collate = collator(guidance_level=level, attention_sink=True)
    batch = collate([row("Is there a dog?", "No.", regions=regions)])
    assert [query(collate, batch, k=k) for k in range(batch["query_masks"].shape[1])] == expected
    assert batch["dropped_regions"].tolist() == [0]


def test_words_of_what_is_nowhere():
    """Found as those of a mask are: by span, by message, by what the query is."""
    the_row = row("A dog or a dog?", "No dog.")
    assert query_of(nowhere(text="dog", message=0), the_row, attention_sink=True) == "dog"
    assert query_of(nowhere(message=1), the_row, attention_sink=True) == "No dog."
    assert query_of(nowhere(), the_row, guidance_query="question", attention_sink=True) == "A dog or a dog?"
    collate = collator(attention_sink=True)
    spans = [nowhere(text="dog", message=0, span=span) for span in ([2, 5], [11, 14])]
    first, second = collate([the_row | {"regions": spans}])["query_masks"][0]
    assert first.sum() == second.sum() and first.nonzero().max() < second.nonzero().min()


@pytest.mark.parametrize("attention_sink", [False, True])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"image": 1}, "region 0: it belongs to image 1, but there are 1 images"),
        ({"message": 2}, "region 0: it belongs to message 2, but there are 2 messages"),
        ({"text": "cat"}, "region 0: its phrase 'cat' does not stand in its message"),
    ],
)
def test_what_is_nowhere_is_looked_at_as_closely(attention_sink: bool, where: dict[str, Any], message: str):
    with pytest.raises(BrokenRowError, match=message):
        collator(attention_sink=attention_sink)([ABSENT | {"regions": [nowhere(**where)]}])


def test_nowhere_fits_the_model():
    """What the model makes of these masks is all that does not lie on the region's own picture."""
    regions = [nowhere(text="cup", message=2), nowhere(text="cup", message=2, image=1), nowhere(text="cup", message=0)]
    batch = collator(attention_sink=True)([TWO_PICTURES | {"regions": regions}])
    names = ("input_ids", "attention_mask", "pixel_values", "query_masks")
    inputs = {name: batch[name] for name in names}
    model = tiny_model(text_config={"attention_sink": True})
    maps = model(**inputs).grounding_maps
    masses = model(**inputs, region_masks=batch["region_masks"]).region_attention
    for layer, mass in zip(maps, masses, strict=True):
        first, second, sink = layer[0].split([NUM_CELLS, NUM_CELLS, 1], dim=-1)
        own = torch.stack([first[0].sum(), second[1].sum(), first[2].sum()])
        assert_close(mass[0], 1 - own, MAP_LENGTH)
        assert (second[2] == 0).all() and (sink > 0).all()  # the first words see no second picture


# Batches


def test_padding():
    rows = [row("A?", "B.", regions=[region(text="B")]), row(regions=[region(text="red cup"), region()])]
    collate = collator()
    batch, alone = collate(rows), collate(rows[:1])
    length = alone["input_ids"].shape[1]
    real = batch["attention_mask"][0] == 1
    assert real.sum() == length and real[0]
    for name, fill in (("input_ids", PAD), ("labels", -100), ("attention_mask", 0)):
        assert torch.equal(batch[name][0][real], alone[name][0])
        assert (batch[name][0][~real] == fill).all()
    assert torch.equal(batch["query_masks"][0, 0][real], alone["query_masks"][0, 0])
    assert not batch["query_masks"][0, 0][~real].any() and not batch["query_masks"][0, 1].any()
    assert not batch["region_masks"][0, 1].any()
    assert query(collate, batch, 1, 0) == " red cup"


def test_length_is_a_multiple():
    batch = collator(pad_to_multiple_of=16)([row(regions=[region()])])
    assert {batch[name].shape[-1] % 16 for name in ("input_ids", "labels", "attention_mask", "query_masks")} == {0}


def test_pictures_whose_placeholder_is_cut_go_with_it():
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "Is there a cup?"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [image, {"type": "text", "text": "And here?"}]},
        {"role": "assistant", "content": "No."},
    ]
    rows = [{"images": [picture(), picture(seed=1)], "messages": messages, "regions": []}]
    whole = collator()(rows)
    second = (whole["input_ids"][0] == IMAGE).nonzero()[1].item()
    batch = collator(max_length=second)(rows)
    assert batch["pixel_values"].shape[1] == 1 and torch.equal(batch["pixel_values"], whole["pixel_values"][:, :1])
    tiny_model()(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels")})


def test_truncation_drops_and_counts_what_is_cut():
    the_row = row(regions=[region(text="Yes"), region(text="red cup"), region()])
    whole = collator()([the_row])
    cut = int(whole["query_masks"][0, 1].nonzero()[0]) + 1  # between "red" and "cup"
    collate = collator(max_length=cut)
    batch = collate([the_row])
    assert batch["input_ids"].shape[1] == cut
    assert batch["query_masks"].shape[1] == 1 and query(collate, batch) == "Yes"
    assert batch["dropped_regions"].tolist() == [2]


def test_truncation_leaves_what_fits():
    the_row = row(regions=[region(text="red cup")])
    whole = collator()([the_row])
    exact = int(whole["query_masks"][0, 0].nonzero()[-1]) + 1
    assert collator(max_length=exact)([the_row])["dropped_regions"].tolist() == [0]


def test_phrase_cut_within_a_letter_is_dropped():
    the_row = row(answer="Yes, there is a café.", regions=[region(text="café", message=1)])
    last = int(collator()([the_row])["query_masks"][0, 0].nonzero().max())
    tokens = tiny_tokenizer()("é", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 1  # which share one place in the text
    for length, dropped in ((last + 1, 0), (last, 1), (last - 1, 1)):
        assert collator(max_length=length)([the_row])["dropped_regions"].tolist() == [dropped]


def test_text_only_row_in_a_mixed_batch():
    batch = collator()([row(images=[]), row(regions=[region()])])
    assert (batch["input_ids"] == IMAGE).sum(dim=1).tolist() == [0, 1]
    assert (batch["pixel_values"][0] == 0).all() and not batch["query_masks"][0].any()


def test_batch_without_images():
    batch = collator()([row(images=[]), row("A?", "B.", images=[])])
    assert set(batch) == {"input_ids", "attention_mask", "labels", "dropped_regions", "skipped_rows"}


def test_batch_without_regions():
    batch = collator()([row(), row(regions=[])])
    assert "query_masks" not in batch and "region_masks" not in batch and "pixel_values" in batch


@pytest.mark.parametrize("missing", ["images", "regions"])
@pytest.mark.parametrize("how", ["None", "absent"])
def test_rows_without_images_or_regions_need_not_say_so(missing: str, how: str):
    the_row = row(images=[]) | {missing: None}
    if how == "absent":
        del the_row[missing]
    assert labelled(collator(), collator()([the_row])) == "Yes, there is a red cup on the table.<|eot_id|>"


def test_images_may_be_pictures_paths_or_bytes(tmp_path: Path):
    path = tmp_path / "picture.png"
    path.write_bytes(png(picture()))
    sources = [picture(), str(path), {"bytes": png(picture()), "path": None}, {"bytes": None, "path": str(path)}]
    pixels = [collator()([row(images=[source])])["pixel_values"] for source in sources]
    assert all(torch.equal(pixels[0], other) for other in pixels[1:])


def test_rows_are_not_changed():
    the_row = row(regions=[region(text="cup")])
    messages = [dict(message) for message in the_row["messages"]]
    collator()([the_row])
    assert the_row["messages"] == messages and the_row["regions"] == [region(text="cup")]


# Broken rows


def truncated_png() -> bytes:
    return png(PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)))[:5000]


def damaged(counts: Any) -> dict[str, Any]:
    return region({"size": [64, 80], "counts": counts})


SOUND = rle(box_mask())["counts"]
BROKEN = {
    "mask of another size": (
        row(regions=[region(box_mask(80, 64))]),
        "region 0: its mask has 80 x 64 pixels .* 64 x 80",
    ),
    "cut run lengths": (
        row(regions=[damaged(SOUND[:-4])]),
        "region 0: The mask's run lengths do not decode to 64 x 80",
    ),
    "garbage": (row(regions=[damaged("~~~ not a mask ~~~")]), "region 0: The mask's run lengths do not decode"),
    "garbage bytes": (row(regions=[damaged(b"\xff\x00\xfe")]), "region 0: The mask's run lengths do not decode"),
    "no run lengths": (row(regions=[damaged("")]), "region 0: The mask's run lengths do not decode"),
    "run lengths of a larger mask": (
        row(regions=[damaged(rle(box_mask(80, 80))["counts"])]),
        "region 0: The mask's run",
    ),
    "short list": (row(regions=[damaged([100, 20])]), "region 0: The mask's run lengths do not decode"),
    "long list": (row(regions=[damaged([5000, 200])]), "region 0: The mask's run lengths do not decode"),
    "phrase": (
        row(regions=[region(), region(text="dog")]),
        "region 1: its phrase 'dog' does not stand in its message",
    ),
    "phrase in another message": (row(regions=[region(text="red", message=0)]), "region 0: its phrase 'red' does not"),
    "span": (
        row(regions=[region(text="red", span=[0, 3])]),
        "region 0: its phrase 'red' does not stand in its message at its span .0, 3.",
    ),
    "image of the region": (row(regions=[region(image=1)]), "region 0: it belongs to image 1, but there are 1 images"),
    "message of the region": (row(regions=[region(message=2)]), "region 0: it belongs to message 2, but there are 2"),
    "cut image": (row(images=[picture(), {"bytes": truncated_png()}]), r"image 1 cannot be read \(.*truncated"),
    "no image": (row(images=[{"bytes": b"not an image"}]), "image 0 cannot be read .*of no kind that Pillow knows"),
    "missing file": (
        row(images=["missing/picture.png"]),
        "image 0 cannot be read .*No such file.*missing/picture.png",
    ),
    "empty image": (row(images=[None]), "image 0 cannot be read"),
    "more images than placeholders": (
        row(images=[picture(), picture()])
        | {"messages": chat([{"type": "image"}, {"type": "text", "text": "A?"}], "B")},
        "it has 2 images, but 1 image placeholders",
    ),
    "more placeholders than images": (
        row(images=[]) | {"messages": chat([{"type": "image"}, {"type": "text", "text": "A?"}], "B")},
        "it has 0 images, but 1 image placeholders",
    ),
    "placeholder among the words": (row("A <|image|>?"), r"the image placeholder <\|image\|> stands among its words"),
    "no messages": (row() | {"messages": None}, "its messages are of type NoneType, not a list"),
    "tool call": (
        row() | {"messages": [*chat("A?"), {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]}]},
        "its message 1 has `tool_calls`, which is not trained here",
    ),
    "tools": (row(tools=[{"name": "look"}]), "it has `tools`, which no chat is trained with here"),
    "span without text": (row(regions=[region(span=[0, 2], message=1)]), "region 0: it has a `span`, but no `text`"),
    "no message": (row() | {"messages": ["A?", "B."]}, "its message 0 is not {'role': "),
    "no role": (row() | {"messages": [{"content": "A?"}]}, "its message 0 is not {'role': "),
    "no content": (row() | {"messages": chat(None, "B.")}, "its message 0 is not {'role': "),
    "other content": (row() | {"messages": chat("A?", {"text": "B."})}, "its message 1 is not {'role': "),
    "other part": (row() | {"messages": chat([{"type": "video"}], "B.")}, "its message 0 has a part that is neither"),
    "part without words": (
        row() | {"messages": chat("A?", [{"type": "text"}])},
        "its message 1 has a part that is neither",
    ),
    "images of another type": (row() | {"images": 3}, "its `images` are of type int, not a list"),
    "regions of another type": (row() | {"regions": {"mask": 1}}, "its `regions` are of type dict, not a list"),
    "no region": (row(regions=["cup"]), "region 0: it is of type str, not a dictionary"),
    "text of another type": (row(regions=[region() | {"text": 3}]), "region 0: its `text` is 3"),
    "span of another type": (
        row(regions=[region() | {"span": "cup"}]),
        r"region 0: its `span` is 'cup', not \[start, end\]",
    ),
    "no mask": (row(regions=[region() | {"mask": "cup"}]), "region 0: its `mask` is 'cup'"),
    "no size": (
        row(regions=[region({"size": [], "counts": SOUND})]),
        r"region 0: A mask is .* but its size is \[\]\.",
    ),
    "no field": (row(regions=[{"mask": rle(box_mask())}]), "region 0: it has no `image`"),
    "negative run lengths": (row(regions=[damaged([-20, 5140])]), "region 0: .*-20"),
    "no user": (
        row() | {"messages": [{"role": "assistant", "content": "A cup."}]},
        "it has images, but no user message",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_row_stops_and_is_named(name: str):
    broken, message = BROKEN[name]
    with pytest.raises(
        BrokenRowError, match=rf"Row 1 of the batch \(id 'r7'\), which begins with .* is broken: {message}"
    ):
        collator()([row(), broken | {"id": "r7"}])


def is_of_regions(name: str) -> bool:
    return "region" in BROKEN[name][1]


@pytest.mark.parametrize("name", [name for name in BROKEN if not is_of_regions(name)])
def test_broken_row_is_skipped_and_counted(name: str):
    collate = collator(broken_rows="skip")
    batch = collate([row("A?", "B."), BROKEN[name][0], row(regions=[region()])])
    assert batch["input_ids"].shape[0] == 2 and batch["skipped_rows"].tolist() == [1, 0]
    assert [labelled(collate, batch, n).startswith(start) for n, start in enumerate(("B.", "Yes,"))] == [True, True]


@pytest.mark.parametrize("name", [name for name in BROKEN if is_of_regions(name)])
def test_regions_that_cannot_be_used_are_dropped_and_counted(name: str):
    collate = collator(broken_rows="skip")
    batch = collate([BROKEN[name][0], row(regions=[region()])])
    assert batch["skipped_rows"].tolist() == [0, 0] and batch["dropped_regions"].tolist() == [1, 0]
    assert labelled(collate, batch, 0) == labelled(collate, batch, 1)
    sound = 1 if name == "phrase" else 0  # the first of its two
    assert (batch["region_masks"] > 0).any(dim=-1).sum(dim=1).tolist() == [sound, 1]


NO_ROWS = [None, "row", 3, [1], {}, {"messages": 3}, {"messages": [["A?"]]}]
NO_ROWS += [{"messages": [{"role": "user"}], "id": "\ud800"}, {"messages": [{1: 2}]}]


@pytest.mark.parametrize("broken", NO_ROWS)
def test_what_is_no_row_is_named(broken: Any):
    with pytest.raises(BrokenRowError, match="Row 0 of the batch.*, which begins with .*, is broken: its? ") as caught:
        collator()([broken])
    str(caught.value).encode()
    assert collator(broken_rows="skip")([broken, row()])["skipped_rows"].tolist() == [1]


class Unspeakable:
    """A value that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")


def test_the_name_of_a_row_cannot_fail():
    for broken in (Unspeakable(), {"id": Unspeakable(), "messages": Unspeakable()}):
        with pytest.raises(BrokenRowError, match="of type Unspeakable"):
            collator()([broken])


@pytest.mark.parametrize(
    "error", [RuntimeError("of a decoder"), MemoryError(), RecursionError("too deep"), KeyError(3)]
)
@pytest.mark.parametrize("part", ["read_image", "tokenizer", "_pixel_values"])
def test_any_exception_is_its_rows(monkeypatch: pytest.MonkeyPatch, error: Exception, part: str):
    """Of a decoder, a tokenizer or what makes pixels of pictures: the sound row trains, the other is named."""
    collate = collator(broken_rows="skip")
    original = {
        "read_image": data_collator.read_image,
        "tokenizer": type(collate.processor.tokenizer).__call__,
        "_pixel_values": type(collate)._pixel_values,
    }[part]

    def fail(*args: Any, **kwargs: Any) -> Any:
        is_odd = {
            "read_image": lambda: args[0] == "odd",
            "tokenizer": lambda: "odd" in args[1],
            "_pixel_values": lambda: any(image.size == (7, 7) for example in args[1] for image in example.images),
        }[part]
        if is_odd():
            raise error
        return original(*args, **kwargs)

    target = {"read_image": data_collator, "tokenizer": type(collate.processor.tokenizer)}.get(part, type(collate))
    monkeypatch.setattr(target, "__call__" if part == "tokenizer" else part, fail)
    odd = row("How odd?", images=["odd"] if part == "read_image" else [picture(7, 7)], id="r7")
    batch = collate([odd, row("A?", "B.")])
    assert batch["skipped_rows"].tolist() == [1] and labelled(collate, batch, 0).startswith("B.")
    with pytest.raises(
        BrokenRowError, match=r"Row 1 of the batch \(id 'r7'\), which begins with 'How odd\?', is broken: "
    ):
        collator()([row("A?", "B."), odd])


def test_a_picture_that_cannot_be_cropped_is_its_rows():
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor(do_center_crop=True), broken_rows="skip")
    thin = row(images=[picture(1, 3000)])
    batch = collate([row("A?", "B."), thin, row()])
    assert batch["skipped_rows"].tolist() == [1, 0] and batch["pixel_values"].shape[0] == 2
    collate.broken_rows = "stop"
    with pytest.raises(BrokenRowError, match="Row 1 of the batch, .*would cut all but"):
        collate([row("A?", "B."), thin])


def test_a_picture_that_cannot_be_read_is_named_by_its_file():
    with pytest.raises(BrokenRowError, match=r"image 0, photos/3\.jpg, cannot be read"):
        collator()([row(images=[{"bytes": b"no picture", "path": "photos/3.jpg"}])])


def test_what_the_chat_template_refuses_is_a_broken_row():
    collate = collator()
    collate.processor.chat_template = "{{ raise_exception('roles have to alternate') }}"
    with pytest.raises(BrokenRowError, match="is broken: roles have to alternate. Mend or remove the row"):
        collate([row()])


def test_message_shows_the_first_words_of_the_row():
    with pytest.raises(BrokenRowError, match="Row 0 of the batch, which begins with 'Where is the dog"):
        collator()([row("Where is the dog?", images=["missing.png"])])


@pytest.mark.parametrize("num_broken", [1, 3])
def test_a_batch_of_broken_rows_is_skipped(num_broken: int):
    batch = collator(broken_rows="skip")([row(images=["missing.png"])] * num_broken)
    assert batch["skipped_rows"].tolist() == [num_broken] and batch["dropped_regions"].tolist() == [0]
    assert (
        batch["input_ids"].shape == (1, 2) and (batch["labels"] == -100).all() and (batch["attention_mask"] == 1).all()
    )
    assert not {"pixel_values", "region_masks"} & batch.keys()


WITHOUT_LABELS = {
    "cut off": row("Is there a cup? " * 10, "Yes.", regions=[region()]),
    "no answer": row() | {"messages": [{"role": "user", "content": "Hello"}]},
}


@pytest.mark.parametrize("name", WITHOUT_LABELS)
@pytest.mark.parametrize("others", [[], [row("A?", "B.")]])
def test_a_row_without_a_label_is_broken(name: str, others: list[dict[str, Any]]):
    collate = collator(max_length=40)
    unlabelled = WITHOUT_LABELS[name]
    with pytest.raises(BrokenRowError, match=r"Row 0 of the batch, .* it has no label: .* `max_length` \(40\)"):
        collate([unlabelled, *others])
    collate.broken_rows = "skip"
    batch = collate([unlabelled, *others])
    assert batch["skipped_rows"].tolist() == [1] and (batch["labels"] != -100).any() == bool(others)


def test_max_length_leaves_no_trace_in_the_tokenizer(tmp_path):
    collate = collator(max_length=500)
    collate([row()])
    collate.processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None
    assert "max_length" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_masks_that_differ_in_the_middle_are_two():
    """NumPy writes of a long array the ends alone."""
    mask = np.indices((64, 80)).sum(axis=0) % 2 == 0
    changed = mask.copy()
    changed[:, 30:50] = False
    counts = [np.diff(np.flatnonzero(np.diff(m.T.ravel().astype(int), prepend=2, append=2))) for m in (mask, changed)]
    masks = [{"size": [64, 80], "counts": np.insert(runs, 0, 0)} for runs in counts]
    assert min(map(len, counts)) > 1000
    keys = [mask_key(region(mask)) for mask in masks]
    assert keys[0] != keys[1] and keys[0] == mask_key(region({**masks[0], "counts": masks[0]["counts"].tolist()}))
