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
"""Where every word looks: the words' places, and their attention one by one."""

import numpy as np
import pytest
import torch
from testing_utils import assert_close, picture, tiny_model, tiny_processor

from recipes.answering.answers import ask, one_question, prompts
from recipes.answering.words import look_of_words, split_words


SINK = {"text_config": {"attention_sink": True, "guidance_heads": [2], "guidance_layers": [1, 3]}}
QUESTION = "Is there a red cup, or a dog?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("A cup, isn't it?", ["A", "cup,", "isn't", "it?"]),
        ("  well-known\n\t\u201ccaf\u00e9\u201d ", ["well-known", "\u201ccaf\u00e9\u201d"]),
        ("cafe\u0301s", ["cafe\u0301s"]),
        ("\u732b\u3068\u72ac\u3002 dog", ["\u732b", "\u3068", "\u72ac\u3002", "dog"]),
        ("3.5 x_1", ["3.5", "x_1"]),
        ("\ucef5\uc774 \uc788\ub098\uc694?", ["\ucef5\uc774", "\uc788\ub098\uc694?"]),  # Korean has spaces
        ("\u0e16\u0e49\u0e27\u0e22", ["\u0e16\u0e49", "\u0e27", "\u0e22"]),  # a Thai letter with its mark
        ("\u0915\u094d\u092f\u093e \u0939\u0948?", ["\u0915\u094d\u092f\u093e", "\u0939\u0948?"]),
    ],
)
def test_words(text: str, words: list[str]):
    assert [text[start:end] for start, end in split_words(text)] == words


def asked(processor, answer: str):
    """A prompt with an answer behind it, and the prompt's length."""
    inputs = prompts(processor, [one_question(QUESTION, picture(60, 90))])
    prompt = inputs["input_ids"]
    new = torch.tensor([processor.tokenizer(answer, add_special_tokens=False)["input_ids"]], dtype=torch.long)
    input_ids = torch.cat([prompt, new], dim=1)
    return {**inputs, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}, prompt.shape[1]


@pytest.mark.parametrize("over", [{}, SINK])
def test_each_word_looks_where_it_does_alone(over):
    """Without the punctuation at it, by layers and smooth; words of the question and of the answer that are alike have places of their own."""
    model, processor = tiny_model(**over), tiny_processor()
    processor.grounding_readout = {"intercept": 5.0}  # random weights look at nothing much
    inputs, length = asked(processor, "A red cup.")
    found = look_of_words(model, processor, inputs, length, picture(60, 90), QUESTION, "it")
    assert found.name == "it"
    assert found.layers == (["layer 1, head 2", "layer 3, head 2"] if over else ["layer 1", "layer 3"])
    assert "".join(word.text + word.space for word in found.words if word.part == "question") == QUESTION
    assert "".join(word.text + word.space for word in found.words if word.part == "answer") == "A red cup."
    assert [word.part for word in found.words] == ["question"] * 8 + ["answer"] * 3
    assert [(phrase.text, phrase.words, phrase.inside) for phrase in found.phrases] == [
        ("red cup", [3, 4, 9, 10], None),
        ("dog", [7], None),
    ]
    every = processor.get_query_masks(inputs["input_ids"], ["red", "cup"])[0]
    for number, mask, start, end in ((3, every[0], 0, length), (10, every[1], length, None)):
        alone = torch.zeros_like(mask)
        alone[start:end] = mask[start:end]
        with torch.no_grad():
            outputs = model(**inputs, query_masks=alone[None, None])
        word = found.words[number]
        assert word.maps.shape == (2, 16, 24) and word.on_nothing.shape == (2,)
        for layer in (0, 1):
            expected = processor.post_process_grounding(outputs, [(16, 24)], layers=[layer], smooth=True)[0][0][0]
            assert_close(torch.from_numpy(word.maps[layer]), expected)
            sink = outputs.grounding_maps[layer][0, 0, 9:].sum()
            assert_close(torch.tensor(word.on_nothing[layer]), sink)
            assert (sink > 0) == bool(over)
        (boxes,) = processor.post_process_grounded_object_detection(outputs, [(60, 90)], return_masks=False)
        assert [region.score for region in word.regions] == pytest.approx(boxes["scores"].tolist(), abs=1e-5)
        sides = torch.tensor([region.box for region in word.regions]).reshape(-1, 4) * torch.tensor([90, 60, 90, 60])
        assert sides.shape == boxes["boxes"].shape and (sides - boxes["boxes"]).abs().sum() < 0.01
    assert any(word.regions for word in found.words)


def test_how_much_of_a_phrase_is_inside_its_region():
    """By the mean of the layers, exactly and not smooth; a phrase without a mask, or that is not there, has none."""
    model, processor = tiny_model(), tiny_processor()
    inputs, length = asked(processor, "No.")
    mask = np.zeros((60, 90), dtype=bool)
    mask[13:40, 50:] = True
    given = {"dog": mask, "red cup": None, "lion": mask}
    found = look_of_words(model, processor, inputs, length, picture(60, 90), QUESTION, phrases=given).phrases
    with torch.no_grad():
        outputs = model(**inputs, query_masks=processor.get_query_masks(inputs["input_ids"], ["dog"]))
    expected = processor.post_process_grounding(outputs, [(60, 90)])[0][0][0][torch.from_numpy(mask)].sum()
    assert [phrase.text for phrase in found] == ["dog", "red cup"] and found[1].inside is None
    assert found[0].inside == pytest.approx(expected.item(), rel=1e-5)


def test_what_was_answered():
    """Nothing at all, or what a model generated."""
    model, processor = tiny_model(), tiny_processor()
    inputs, length = asked(processor, "")
    found = look_of_words(model, processor, inputs, length, picture(60, 90), QUESTION)
    assert {word.part for word in found.words} == {"question"}
    answer, inputs, length = ask(model, processor, picture(60, 90), QUESTION, 5)
    found = look_of_words(model, processor, inputs, length, picture(60, 90), QUESTION)
    assert "".join(word.text + word.space for word in found.words if word.part == "answer") == answer
    with pytest.raises(ValueError, match="'Why\\?' is not among the words of the prompt after the picture"):
        look_of_words(model, processor, inputs, length, picture(60, 90), "Why?")
