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
"""Questions for what is not there: told from all others, and given regions without a mask instead of a place."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from accelerate import PartialState
from datasets import Dataset, Features, List
from testing_utils import box_mask, picture, region, tiny_processor

from recipes import look_at_masks
from recipes.rows.records import FEATURES
from recipes.scenes.rows import load_scenes
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.denials import denied_things
from recipes.segmentation.maker import MaskMaker, make_masks, start_folder, summary
from recipes.segmentation.queries import Finding, Instance, Query, find_queries, nowhere_region, stands_in
from recipes.segmentation.regions import MADE_REGION
from recipes.segmentation.review import NOWHERE, choose, read_entries, show
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import load_rows
from trainers import DataCollatorForGuidedVisionLanguageModeling, get_stage


TAIL = "\nAnswer the question using a single word or phrase."  # LLaVA's, of the questions of VQA, GQA and POPE
NO_DOG = "No, there is no dog in the image."


def denied(question: str, answer: str) -> tuple[list[str], list[str]]:
    spans = denied_things(question, answer)
    return tuple([text[slice(*span)] for span in found] for text, found in zip((question, answer), spans, strict=True))


@pytest.mark.parametrize(
    ("question", "thing"),
    [
        (f"Is there a snowboard in the image?{TAIL}", "snowboard"),  # POPE
        ("Is there a traffic light in the image? Please answer yes or no.", "traffic light"),
        (f"Are there any fences in the scene?{TAIL}", "fences"),  # GQA
        ("Do you see people there?", "people"),
        ("Do you see any wine glasses in this photo?", "wine glasses"),
        ("Is there a man in the photograph?", "man"),  # VQAv2
        ("Are there any people?", "people"),
        ("Is there water?", "water"),
        ("Is there anyone in the picture?", "anyone"),
        ("Are any trees visible in the picture?", "trees"),
        ("Is the sun visible?", "sun"),
        ("Is there a clock shown?", "clock"),
        ("Does the image show a bus?", "bus"),
        ("Does this picture contain any text?", "text"),
        ("Can you see a bus anywhere in the image?", "bus"),
        ("  is there a T-shirt\nin the image", "T-shirt"),
    ],
)
@pytest.mark.parametrize(
    "answer", ["No", "no.", "NO!", " No, I don\u2019t.\n", "No, there isn't.", "No, it does not."]
)
def test_things_that_are_denied(question: str, thing: str, answer: str):
    assert denied(question, answer) == ([thing], [])


@pytest.mark.parametrize(
    ("question", "answer", "things", "repeated"),
    [
        ("Is there a dog?", NO_DOG, ["dog"], ["dog"]),
        ("Is there a dog?", "There is no dog in the image.", ["dog"], ["dog"]),
        ("Is there a dog?", f"{NO_DOG} The image shows a cat and two cars.", ["dog"], ["dog"]),
        ("Is there a dog?", f"{NO_DOG} The image shows a hot dog.", ["dog"], ["dog"]),
        ("Is there a dog?", "No, there isn\u2019t a dog here, but there is a cat.", ["dog"], ["dog"]),
        ("Is there a dog?", "No, there are not any dogs.", ["dog"], ["dogs"]),
        ("Are there any dogs?", "No dogs", ["dogs"], ["dogs"]),
        ("Is there a person?", "No, there are no people.", ["person"], ["people"]),
        ("Is there a knife?", "No, there's no knives in the picture.", ["knife"], ["knives"]),
        ("Does the image show a box?", "No, the image does not show any boxes.", ["box"], ["boxes"]),
        ("Can you see a bus?", "No, I cannot see a bus in the image.", ["bus"], ["bus"]),
        ("Are there either cups or wine glasses?", "No.", ["cups", "wine glasses"], []),
        ("Are there cups or plates?", "No, there are no plates or cups.", ["cups", "plates"], ["plates", "cups"]),
        ("Is there a dog?", "No, there are no cats or dogs.", ["dog"], ["dogs"]),
    ],
)
def test_things_that_the_answer_repeats(question: str, answer: str, things: list[str], repeated: list[str]):
    assert denied(question, answer) == (things, repeated)


@pytest.mark.parametrize(
    "question",
    [
        "Is there a dog to the left of the car?",  # a relation, a place or an attribute is denied, or a number
        "Is there a dog on the sofa?",
        "Are there clouds in the sky?",
        "Is the dog in the picture brown?",
        "Is the dog brown?",
        "Is the dog a poodle?",
        "Is there a brown dog in the image?",
        "Are there any chairs that are not white?",
        "Is there a man wearing a hat?",
        "Is there a bowl of fruit?",
        "Are there two dogs?",
        "Is there more than one dog?",
        "Are there many cars?",
        "Are there any other cars?",
        "Is there another?",
        "Are there both cats and dogs?",
        "Are there cats and dogs in the image?",
        "Is there no dog?",
        "Isn't there a dog?",
        "Is there anything in the picture?",
        "Are there any?",
        "Can you see it?",
        "Can you see well?",
        "Can you see through the window?",
        "Do you see this?",
        "Is there a dog? If so, what color is it?",
        "Is there a dog? Look at the sofa.",
        "What is there?",
        "Describe the image.",
        "",
    ],
)
@pytest.mark.parametrize("answer", ["No", NO_DOG])
def test_other_questions(question: str, answer: str):
    assert denied(question, answer) == ([], [])


@pytest.mark.parametrize(
    "answer",
    [
        "Yes",
        "No idea",
        "Not sure",
        "None of them",
        "Nobody knows.",
        "No one",
        "No, just one.",
        "No, there are two dogs.",
        "No, there are no dogs, only one.",
        "No, there are no dogs, but a dog's shadow.",
        "No, there is no dog to the left of the car.",
        "No, there is no brown dog.",
        "No, there is no cat.",
        "No, the dog is brown.",
        "Unknown",
        "",
    ],
)
def test_other_answers(answer: str):
    assert denied("Is there a dog?", answer) == ([], [])
    assert denied("Are there any dogs in the image?", answer) == ([], [])


def test_only_one_of_two_is_denied():
    assert denied("Is there a dog or a cat?", NO_DOG) == ([], [])


def test_denied_things_of_the_scenes():
    """Their answers are known: what is denied is what has no mask."""
    found, expected = [], []
    for row in load_scenes("train", "instruction", 100, image_size=64):
        words = [message["content"] for message in row["messages"]]
        for n in range(0, len(words), 2):
            found += [(n + k, thing) for k, things in enumerate(denied(*words[n : n + 2])) for thing in things]
        expected += [(region["message"], region["text"]) for region in row["regions"] if region["mask"] is None]
    assert found == expected and len(found) > 20


# Rows


def chat(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


def nowhere(text: str | None, message: int | None, image: int = 0, span: list[int] | None = None) -> dict[str, Any]:
    return {"mask": None, "image": image, "text": text, "span": span, "message": message}


@pytest.mark.parametrize("query", ["question", "answer", "both"])
def test_what_is_nowhere_is_not_looked_for(query: str):
    """Neither the question nor its answer; those around them are."""
    messages = chat(
        "What is this?", "A cup.", "Is there a car in the image?", f"{NO_DOG} No car.", "And that?", "Tea."
    )
    messages[3]["content"] = "No, there is no car in the image. It shows a carrot."
    texts = {"question": ["What is this?", "And that?"], "answer": ["A cup.", "Tea."]}
    texts["both"] = ["What is this? A cup.", "And that? Tea."]
    places = {"question": (0, 4), "answer": (1, 5), "both": (0, 4)}[query]
    queries, regions = find_queries(messages, 1, query)
    starts = [len("What is this? "), len("And that? ")] if query == "both" else [None, None]
    assert queries == [Query(0, *found) for found in zip(places, texts[query], starts, strict=True)]
    assert regions == [nowhere("car", 2), nowhere("car", 3)]  # which is not in "carrot"


def test_what_is_nowhere_and_named_twice_has_a_span():
    messages = chat("Is there a car in the image?", "No, there is no car in the image. It shows a car park.")
    regions = [nowhere_region(0, 1, messages[1]["content"], span) for span in ((16, 19), (45, 48))]
    assert regions == [nowhere("car", 1, span=[16, 19]), nowhere("car", 1, span=[45, 48])]
    assert nowhere_region(0, 1, "No car", (3, 6)) == nowhere("car", 1)
    assert nowhere_region(0, 1, "No cars", (3, 6)) == nowhere("car", 1, span=[3, 6])


@pytest.mark.parametrize(("text", "expected"), [("man", True), ("woman", False), ("A man.", True), (None, True)])
def test_words_of_a_region_stand_in_a_message_as_words(text: str | None, expected: bool):
    """A region of a woman says nothing of a message about a man, nor one of a man of one about a woman."""
    assert stands_in(nowhere(text, 1), 1, "A man.") == expected
    assert stands_in(nowhere("man", 1), 1, "A woman.") is False
    assert stands_in(nowhere(text, 2), 1, "A man.") is False


def test_what_is_nowhere_belongs_to_the_last_picture_that_its_words_see():
    image, text = {"type": "image"}, "Is there a dog in the image?"
    asked = {"type": "text", "text": text}
    messages = chat([image, asked], "Yes.", [image, asked], NO_DOG)
    queries, regions = find_queries(messages, 2, "answer")
    assert queries == [Query(0, 1, "Yes.")] and regions == [nowhere("dog", 2, 1), nowhere("dog", 3, 1)]
    assert find_queries(chat(text, "No."), 0, "answer") == ([], [])  # there is no picture to be nowhere in


@pytest.mark.parametrize(
    ("own", "left"),
    [
        (nowhere("Hund", 2), ["Tee."]),
        (nowhere("Nein", 3), ["Tee."]),
        (nowhere("Hund", None), ["Tee."]),
        (nowhere(None, 1), ["Nein."]),
        (nowhere(None, None), []),
    ],
)
def test_what_a_row_says_to_be_nowhere_is_not_looked_for(own: dict[str, Any], left: list[str]):
    """In any language."""
    messages = chat("Was ist das?", "Tee.", "Ist da ein Hund?", "Nein.")
    queries, regions = find_queries(messages, 1, "answer", [own])
    assert [query.text for query in queries] == left and regions == [own]


def test_what_a_row_says_itself_is_not_said_again():
    own = nowhere("a dog", 0)
    assert find_queries(chat("Is there a dog?", NO_DOG), 1, "answer", [own]) == ([], [own])


# Files


class OneBox:
    """Instead of both networks: all that is looked for is in the upper left corner. Keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, texts: list[str], pictures: list[PIL.Image.Image]) -> list[str]:
        self.asked += texts
        return texts

    def read(self, query: Query, written: str, picture: PIL.Image.Image) -> list[Finding]:
        return [Finding(query, [Instance((0, 0, 20, 20))])]

    def encode(self, pictures: list[PIL.Image.Image]) -> list[SimpleNamespace]:
        return [SimpleNamespace(size=picture.size) for picture in pictures]

    def prompt(self, encoded: SimpleNamespace, boxes: list[tuple]) -> list[np.ndarray]:
        return [box_mask(*encoded.size[::-1]) for _ in boxes]

    def masks(self, found: list[np.ndarray]) -> Any:
        return iter([(mask, 0.9) for mask in found])


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of masks, and what was looked for."""
    picture().save(tmp_path / "0.png")
    chats = [
        chat("Is there a dog?", NO_DOG),
        chat("What is this?", "A cup.", f"Are there any cars?{TAIL}", "No"),
        chat("Was ist das?", "Eine Tasse."),
    ]
    own = [[], [region(text="cup")], [nowhere("das", 0), region()]]
    rows = []
    for n, (messages, regions) in enumerate(zip(chats, own, strict=True)):
        messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        images = [{"path": str(tmp_path / "0.png"), "bytes": None}]
        regions = [{**found, "score": None, "outlines_kept": None} for found in regions]
        rows.append({"id": f"r{n}", "images": images, "messages": messages, "regions": regions})
    rows = Dataset.from_list(rows, features=Features({**FEATURES, "regions": List(MADE_REGION)}))
    networks = OneBox()
    arguments = MaskArguments(out=str(tmp_path / "masks"), num_workers=0, rows_per_file=1)
    start_folder(tmp_path / "masks", arguments.settings)
    make_masks(rows, MaskMaker(arguments, networks, networks), tmp_path / "masks", PartialState())
    return tmp_path / "masks", networks.asked


def test_masks_and_what_has_none(made: tuple[Path, list[str]]):
    """The first file has no mask, and yet their types are the same; a row's own regions without a mask are kept."""
    folder, asked = made
    assert asked == ["A cup."]
    data = DataArguments(dataset_name=str(folder))
    for streaming in (False, True):
        data.streaming = streaming
        rows = list(load_rows(data, get_stage(3), 96))
        expected = [[("dog", 0), ("dog", 1)], [("cars", 2), (None, 1)], [("das", 0)]]
        assert [[(found["text"], found["message"]) for found in row["regions"]] for row in rows] == expected
        for row in rows:
            assert row["mask_problems"] == []
            for found in row["regions"]:
                facts = (found["mask"] is None, found["score"] is None, found["outlines_kept"])
                assert facts == ((found["text"] is not None,) * 2 + (0,))
    lines = [
        "           3 rows",
        "           1 with masks",
        "           1 masks",
        "           0 of them with an outline of Florence-2 that SAM's mask disagreed with",
        "           4 names of what is nowhere in its picture, without a mask",
    ]
    assert summary(folder).splitlines() == lines
    batch = DataCollatorForGuidedVisionLanguageModeling(tiny_processor(), attention_sink=True)(rows)
    assert batch["dropped_regions"].tolist() == [0, 0, 0]
    assert batch["region_masks"][..., -1].tolist() == [[1, 1], [1, 0], [1, 0]]


def test_a_look_at_what_is_nowhere(
    made: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    folder, _ = made
    entries = read_entries(folder)
    chosen = choose(entries, 3, 0)
    assert [(kind, len(found)) for kind, found in chosen.items() if found] == [("smallest", 1), (NOWHERE, 3)]
    first = next(entry for entry in entries if entry.row == 0 and entry.share is None)
    shown, text, facts = show(first)
    assert np.array_equal(np.asarray(shown), np.asarray(picture())), "the picture is not marked"
    assert (text, facts) == ("dog", "r0: nowhere in the picture")
    monkeypatch.setattr(sys, "argv", ["look_at_masks.py", "--masks", str(folder), "--out", str(tmp_path / "look")])
    look_at_masks.main()
    assert "1 masks, 4 names of what is nowhere in the picture; see" in capsys.readouterr().out
    page = (tmp_path / "look/index.html").read_text()
    assert page.count("<figure>") == 5 and NOWHERE in page


@pytest.mark.parametrize("message", [0, None])
def test_a_look_at_regions_of_another_source(tmp_path: Path, message: int | None):
    """Without ids, scores, and a message of their own; a row may have none."""
    content = {"images": [{"bytes": None, "path": str(tmp_path / "0.png")}], "messages": chat("A cup?", "Yes.")}
    picture().save(tmp_path / "0.png")
    rows = [content | {"regions": [region(message=message)]}, content | {"regions": None}]
    rows[0]["regions"].append(nowhere(None, message))
    Dataset.from_list(rows).to_parquet(tmp_path / "train-0.parquet")
    masks, absent = choose(read_entries(tmp_path), 1, 0)["smallest"], choose(read_entries(tmp_path), 1, 0)[NOWHERE]
    text = "A cup?" if message == 0 else "A cup? Yes."
    assert show(masks[0])[1:] == (text, "train-0.parquet, row 0: 7.8% of the picture")
    assert show(absent[0])[1:] == (text, "train-0.parquet, row 0: nowhere in the picture")
