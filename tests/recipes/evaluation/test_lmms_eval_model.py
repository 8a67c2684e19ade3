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
"""The model as lmms-eval sees it: which pictures and words reach the checkpoint, and what comes back."""

import shutil
from pathlib import Path

import pytest
import torch
from testing_utils import picture, tiny_model, tiny_processor, up_to_rounding
from vlm_families import FAMILIES


pytest.importorskip("lmms_eval", reason="needs lmms-eval: `make test-eval`")

import lmms_eval.models  # noqa: E402
from lmms_eval.api.instance import Instance  # noqa: E402

from recipes.answering.answers import answer as greedy_answer  # noqa: E402
from recipes.evaluation.journal import Journal  # noqa: E402
from recipes.evaluation.lmms_eval_model import (
    ImageTextToTextModel,  # noqa: E402
    fingerprint,  # noqa: E402
    generation_arguments,  # noqa: E402
)


GREEDY = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def model(checkpoint, monkeypatch):
    """The model, and what `generate` is given."""
    model = ImageTextToTextModel(checkpoint, batch_size=2)
    model.given = []
    generate = model.model.generate

    def record(**inputs):
        model.given.append(inputs)
        return generate(**inputs)

    monkeypatch.setattr(model.model, "generate", record)
    return model


def doc_to_messages(doc):
    content = [{"type": "image", "url": image} for image in doc["images"]]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["text"]}]}]


def requests(model, docs, only=None, gen_kwargs=lambda number: GREEDY):
    model.task_dict = {"task": {"test": docs}}
    return [
        Instance(
            request_type="generate_until",
            arguments=(docs[n]["text"], doc_to_messages, gen_kwargs(n), n, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": n, "repeats": 1},
        )
        for n in (range(len(docs)) if only is None else only)
    ]


def docs_with(*images):
    return [{"images": [image], "text": f"Is there a cup in image {n}?"} for n, image in enumerate(images)]


def inputs_of(model, text, *images):
    content = [{"type": "image", "image": image} for image in images] + [{"type": "text", "text": text}]
    as_tensors = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    return model.processor.apply_chat_template([{"role": "user", "content": content}], **as_tensors)


def test_lmms_eval_finds_the_model():
    assert lmms_eval.models.get_model("age_vlm") is ImageTextToTextModel


def test_a_batch_answers_as_each_question_does_alone_and_in_order(model):
    texts = [
        "Is there a cup?",
        "Hello.",
        "Which of these two pictures has the larger table?",
        "Cup?",
        "A table or a cup?",
    ]
    images = [[picture(seed=1)], [], [picture(seed=2), picture(seed=3)], [picture(40, 30, seed=4)], [picture(seed=5)]]
    docs = [{"images": those, "text": text} for those, text in zip(images, texts, strict=True)]
    answers = model.generate_until(requests(model, docs))
    lengths = [given["input_ids"].shape for given in model.given]
    assert [rows for rows, _ in lengths] == [2, 2, 1] and lengths[0][1] > lengths[-1][1]

    singly = [model.generate_until(requests(model, docs, only=[n]))[0] for n in range(len(docs))]
    assert answers == singly and len(set(answers)) > 2
    plain = greedy_answer(model.model, model.processor, [picture(seed=1)], texts[:1], max_new_tokens=6)
    assert answers[:1] == plain


def test_dtype_is_that_of_weights_and_pictures(checkpoint, monkeypatch):
    model = ImageTextToTextModel(checkpoint, dtype="bfloat16", device="cpu", batch_size="2")
    given = []
    generate = model.model.generate
    monkeypatch.setattr(model.model, "generate", lambda **inputs: given.append(inputs) or generate(**inputs))
    (answer,) = model.generate_until(requests(model, docs_with(picture())))
    assert model.model.dtype == given[0]["pixel_values"].dtype == torch.bfloat16 and answer


SINK = {"text_config": {"attention_sink": True, "guidance_layers": [3], "guidance_heads": [2]}}


def asked(model: ImageTextToTextModel, docs: list[dict], folder: Path) -> list[dict]:
    """What a journal has of the answers."""
    model.journal = Journal(folder, "task", {}, 0)
    model.generate_until(requests(model, docs))
    entries = list(model.journal.answers.values())
    model.journal.remove()
    return entries


def test_where_the_questions_first_phrase_looks(checkpoint, tmp_path):
    """The guided heads' attention, by hand; of questions without a picture nothing."""
    shutil.copytree(checkpoint, tmp_path / "sink")
    tiny_model(**SINK).save_pretrained(tmp_path / "sink")
    model = ImageTextToTextModel(str(tmp_path / "sink"), batch_size=2)
    texts = ["Is there a cup in the image?", "Is there a red table?", "A cup?", "A cup?"]
    docs = [{"images": [picture(60, 40, seed=n)] if n < 3 else [], "text": text} for n, text in enumerate(texts)]
    assert not any("on_nothing" in entry for entry in asked(model, docs, tmp_path / "a"))
    model.asks_what_is_there = True
    plain = sorted(asked(model, docs, tmp_path / "a"), key=lambda entry: entry["number"])
    model.pictures = tmp_path / "pictures"
    entries = sorted(asked(model, docs, tmp_path / "a"), key=lambda entry: entry["number"])
    eager = tiny_model(**SINK, attn_implementation="eager")
    for n, phrase in enumerate(("cup", "red table", "cup")):
        inputs = inputs_of(model, texts[n], picture(60, 40, seed=n))
        words = model.processor.get_query_masks(inputs["input_ids"], [phrase])[0, 0]
        with torch.no_grad():
            attention = eager(**inputs, output_attentions=True).cross_attentions[1][0, 2, words].mean(dim=0)
        assert plain[n]["on_nothing"] == entries[n]["on_nothing"] == up_to_rounding(attention[-1].item())
        assert "map" not in plain[n] and entries[n]["phrase"] == phrase
        cells = attention[:-1].view(1, 3, 3)
        expected = model.processor.image_processor.cells_to_pixels(cells, 24, 16)[0]
        torch.testing.assert_close(torch.tensor(entries[n]["map"]), expected, atol=6e-6, rtol=1e-3)
    assert not {"on_nothing", "map"} & entries[3].keys()
    model.picture = "none"
    assert not any("map" in entry for entry in asked(model, docs, tmp_path / "a"))


def test_models_without_a_sink_say_nothing_of_it(model, tmp_path):
    model.asks_what_is_there = True
    assert "on_nothing" not in asked(model, docs_with(picture()), tmp_path / "a")[0]
    model.pictures = tmp_path / "pictures"
    (entry,) = asked(model, docs_with(picture()), tmp_path / "a")
    assert "on_nothing" not in entry and sum(map(sum, entry["map"])) == pytest.approx(1, abs=1e-3)


def test_questions_with_other_arguments_are_no_batch(model):
    docs = docs_with(picture(seed=1), picture(seed=1), picture(seed=1))
    arguments = [GREEDY, GREEDY | {"max_new_tokens": 2}, GREEDY]
    answers = model.generate_until(requests(model, docs, gen_kwargs=lambda n: arguments[n]))
    assert sorted((len(given["input_ids"]), given["max_new_tokens"]) for given in model.given) == [(1, 2), (2, 6)]
    assert all(answers)


def test_blind_is_the_text_alone(model):
    docs = docs_with(picture(seed=1))
    seen = model.generate_until(requests(model, docs))
    model.picture = "none"
    blind = model.generate_until(requests(model, docs))
    alone = inputs_of(model, docs[0]["text"])
    assert model.given[-1]["input_ids"].equal(alone["input_ids"]) and "pixel_values" not in model.given[-1]
    assert model.given[0]["input_ids"].shape[1] > alone["input_ids"].shape[1]
    assert blind != seen


def test_swapped_shows_another_picture_and_always_the_same(model):
    cup, table, chair = picture(seed=1), picture(seed=2), picture(seed=3)
    docs = docs_with(cup, cup.copy(), cup, table, cup.convert("RGBA"), chair)
    model.picture = "swapped"
    # Three further on; where that shows the same, the next.
    expected = [table, chair, chair, cup, table, cup]
    for n, other in enumerate(expected):
        assert docs[n]["images"][0] is not other
        answers = [model.generate_until(requests(model, docs, only=[n])) for _ in range(2)]
        swapped = inputs_of(model, docs[n]["text"], other)
        assert answers[0] == answers[1]
        for given in model.given[-2:]:
            assert given["input_ids"].equal(swapped["input_ids"])
            torch.testing.assert_close(given["pixel_values"], swapped["pixel_values"], rtol=0, atol=0)


def test_swapped_replaces_every_picture(model):
    one, two, three = (picture(seed=seed) for seed in range(3))
    docs = [
        {"images": [one, two], "text": "Which is larger?"},
        {"images": [], "text": "Hello."},
        {"images": [two.copy(), three], "text": "Which is smaller?"},
    ]
    model.picture = "swapped"
    requests(model, docs)
    chats = [model.chat(doc_to_messages, n, "task", "test")[0][0]["content"] for n in range(3)]
    shown = [[part["image"] for part in content if part["type"] == "image"] for content in chats]
    assert [list(map(fingerprint, images)) for images in shown] == [
        [fingerprint(three)] * 2,
        [],
        [fingerprint(one)] * 2,
    ]
    assert [content[-1]["text"] for content in chats] == [doc["text"] for doc in docs]


def test_swapped_says_so_where_all_pictures_are_the_same(model):
    model.picture = "swapped"
    with pytest.raises(ValueError, match="All pictures of task are the same"):
        model.generate_until(requests(model, docs_with(picture(), picture())))


@pytest.mark.parametrize(
    ("gen_kwargs", "expected"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}),
        (GREEDY, {"max_new_tokens": 6, "do_sample": False, "temperature": None, "top_p": None, "num_beams": 1}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"do_sample": True, "temperature": 0}, {"do_sample": False, "temperature": None}),
        ({"do_sample": False, "temperature": 0.7}, {"do_sample": False, "temperature": None}),
    ],
)
def test_generation_arguments(gen_kwargs, expected):
    arguments, until = generation_arguments(gen_kwargs | {"image_aspect_ratio": "pad"})
    assert expected.items() <= arguments.items()
    assert until == [] and "image_aspect_ratio" not in arguments
    assert generation_arguments(gen_kwargs | {"until": ["\n\n", "Q:"]})[1] == ["Q:"]


def test_an_answer_ends_where_the_task_says(model):
    docs = docs_with(picture(seed=1))
    (whole,) = model.generate_until(requests(model, docs))
    stop = whole[2]
    for until in (stop, ["", "never", stop]):
        (answer,) = model.generate_until(
            requests(model, docs, gen_kwargs=lambda n, until=until: GREEDY | {"until": until})
        )
        assert answer == whole.split(stop)[0] != whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"picture": "blurred"}, "`picture` is one of real, none, swapped, got 'blurred'"),
        ({"batch_size": "auto"}, "`batch_size` is a number of questions, got 'auto'"),
        ({"batch_size": 0}, "`batch_size` is a number of questions, got 0"),
    ],
)
def test_arguments_that_make_no_sense(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageTextToTextModel(checkpoint, **arguments)


def test_checkpoints_that_cannot_be_asked(tmp_path):
    with pytest.raises(ValueError, match="nowhere/at-all cannot be loaded: "):
        ImageTextToTextModel("nowhere/at-all")
    model, processor = tiny_model(), tiny_processor()
    processor.save_pretrained(tmp_path)
    weights = model.state_dict()
    name = next(name for name in weights if "k_proj" in name)
    del weights[name]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="do not fit its architecture: 1 missing"):
        ImageTextToTextModel(str(tmp_path))
    model, processor = FAMILIES["LLaVA"]()
    processor.chat_template = None
    for part in (model, processor):
        part.save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match="has no chat template"):
        ImageTextToTextModel(str(tmp_path / "llava"))


def test_what_it_does_not_do(model):
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.generate_until_multi_round([])
    model.task_dict = {"task": {"test": ["a.mp4"]}}
    with pytest.raises(ValueError, match="task has videos or sounds"):
        model.chat(lambda doc: [{"role": "user", "content": [{"type": "video", "url": doc}]}], 0, "task", "test")
