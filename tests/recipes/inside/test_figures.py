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
"""The figures of a model's inside: numbers against computations by hand, for AGE-VLMs and concatenation VLMs."""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from testing_utils import (
    MAP_LENGTH,
    MODEL_LENGTH,
    assert_close,
    length_of,
    picture,
    row,
    tiny_model,
    tiny_processor,
    tolerance,
    up_to_rounding,
)
from tiny_vlms import tiny_idefics3, tiny_llava
from vlm_families import FAMILIES

from recipes import figures as command
from recipes.answering.rows import grounding_maps, query
from recipes.drawing.attention import colored, in_numbers
from recipes.inside import figures
from recipes.inside.hallucination import Case, score, tell
from recipes.inside.measures import auc, concentration, derangement, grouped_interval, interval, overlap, roc
from recipes.inside.vlm import AgeVlm, ConcatenationVlm, Look, Vlm, load_vlm
from recipes.scenes import BACKBONES


QUESTION = "Is there a cup in the image?"
KINDS = ("agevlm", "llava", "idefics3")
SINK = {"text_config": {"attention_sink": True, "guidance_layers": [3], "guidance_heads": [2]}}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoint folders."""
    folder = tmp_path_factory.mktemp("vlms")
    tiny_model().save_pretrained(folder / "agevlm")
    tiny_processor().save_pretrained(folder / "agevlm")
    tiny_model(**SINK).save_pretrained(folder / "sink")
    tiny_processor().save_pretrained(folder / "sink")
    tiny_llava(folder / "llava")
    tiny_llava(folder / "llava-pad", do_pad=True)
    tiny_idefics3(folder / "idefics3")
    return {path.name: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def vlms(names: dict[str, str]) -> dict[str, Vlm]:
    return {kind: load_vlm(name) for kind, name in names.items()}


# Measures


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_mann_whitney_with_ties(seed: int):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.4
    won = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    assert auc(scores, positive) == pytest.approx(np.mean(won))
    false_rates, true_rates = roc(scores, positive)
    assert np.trapezoid(true_rates, false_rates) == pytest.approx(np.mean(won))
    assert (false_rates[0], true_rates[0], false_rates[-1], true_rates[-1]) == (0, 0, 1, 1)


def test_auc_by_hand():
    assert auc(np.array([1.0, 2, 2, 3]), np.array([False, False, True, True])) == 3.5 / 4
    assert auc(np.array([1.0, 2, 3, 4]), np.array([True, True, False, False])) == 0
    assert np.isnan(auc(np.array([1.0, 2]), np.array([True, True])))


def test_overlap_of_the_same_of_disjoint_and_of_half():
    sample = np.random.default_rng(0).normal(size=50)
    assert overlap(sample, sample) == pytest.approx(1)
    assert overlap(np.array([0.0, 1]), np.array([2.0, 3])) == 0
    assert overlap(np.array([0.0, 0, 1, 1]), np.array([1.0, 1, 2, 2])) == 0.5
    assert overlap(np.ones(3), np.ones(3)) == 1


def test_groups_are_drawn_whole():
    values = np.random.default_rng(0).random(40)
    alone = grouped_interval(lambda rows: float(values[rows].mean()), np.arange(40))
    assert alone == interval(lambda rows: float(values[rows].mean()), 40)
    # rows of a group that are alike say no more than one of them
    fourfold = grouped_interval(lambda rows: float(values[rows // 4].mean()), np.arange(160) // 4)
    assert fourfold == pytest.approx(alone)


def test_interval_is_the_bootstraps():
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(lambda rows: float(values[rows].mean()), 400)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.02)
    assert np.isnan(interval(lambda rows: float("nan"), 5, num_draws=3)).all()


def test_concentration_of_a_point_and_of_even_attention():
    point = torch.zeros(10, 10)
    point[3, 4] = 1
    assert concentration(point) == {"entropy": 0, "max": 1, "top 5%": 1}
    even = concentration(torch.full((10, 10), 0.01))
    assert even == up_to_rounding({"entropy": 1, "max": 0.01, "top 5%": 0.05}, 100)
    halves = torch.zeros(16)
    halves[:4] = 0.25
    assert concentration(halves) == up_to_rounding({"entropy": 0.5, "max": 0.25, "top 5%": 0.25}, 16)
    assert concentration(0.21 * halves, on_nothing=0.79) == up_to_rounding(concentration(halves), 16)
    assert concentration(0 * halves, on_nothing=1.0) == {"entropy": 0, "max": 0, "top 5%": 0}


@pytest.mark.parametrize("num_rows", [2, 3, 50])
def test_derangement_leaves_no_row_with_itself(num_rows: int):
    partners = derangement(num_rows)
    assert sorted(partners) == list(range(num_rows))
    assert (partners != np.arange(num_rows)).all()


# Where words look


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_found_in_the_prompt(vlms: dict[str, Vlm], kind: str):
    vlm = vlms[kind]
    inputs, prompt_length = vlm.encode(picture(), QUESTION)
    assert inputs["input_ids"].shape == (1, prompt_length)
    found = {phrase: vlm.decode(inputs["input_ids"][0, vlm.find(inputs, phrase)]) for phrase in ("cup", QUESTION)}
    assert found == {"cup": "cup", QUESTION: QUESTION}
    with pytest.raises(ValueError, match="'zebra' is not among the words"):
        vlm.find(inputs, "zebra")


@pytest.mark.parametrize("kind", ["llava", "idefics3"])
def test_attention_of_a_concatenation_vlm_by_hand(vlms: dict[str, Vlm], kind: str):
    vlm = vlms[kind]
    inputs, _ = vlm.encode(picture(64, 64), QUESTION)
    ids = inputs["input_ids"][0].tolist()
    words = [n for n, token in enumerate(ids) if vlm.processor.tokenizer.decode([token]) in (" a", " cup")]
    image = [n for n, token in enumerate(ids) if token == vlm.image_token_id]
    side = {"llava": 6, "idefics3": 4}[kind]
    assert (len(words), len(image)) == (2, side**2)
    with torch.no_grad():
        attentions = vlm.model(**inputs, output_attentions=True).attentions

    masks, length = torch.stack([vlm.find(inputs, "a cup"), vlm.find(inputs, "cup")]), length_of(vlm.model)
    look = vlm.look(inputs, masks)
    assert look.maps.shape == (2, 3, side, side)
    for layer, weights in enumerate(attentions):
        expected = torch.zeros(len(ids))
        for head in range(4):
            for word in words:
                expected += weights[0, head, word] / 8
        share = expected[image].sum()
        assert_close(look.image_share[0, layer], share, length)
        assert 0.01 < share < 0.99
        assert_close(look.maps[0, layer].flatten(), expected[image] / share, length)
        assert (look.maps[0, layer] - look.maps[1, layer]).abs().max() > 1e-3
    assert_close(look.maps.sum((-2, -1)), torch.ones(2, 3), MAP_LENGTH)


def test_attention_of_ours_is_its_grounding_maps(vlms: dict[str, Vlm]):
    vlm, image = vlms["agevlm"], picture()
    example = row(QUESTION, images=[image], regions=[query(image, 0), query(image, 0, text="cup")])
    expected, _, _ = grounding_maps(vlm.model, vlm.processor, [example])
    inputs, _ = vlm.encode(image, QUESTION)
    look = vlm.look(inputs, torch.stack([vlm.find(inputs, QUESTION), vlm.find(inputs, "cup")]))
    assert_close(look.maps.flatten(2), expected[0])
    assert torch.equal(look.image_share, torch.ones(2, 2)) and not look.on_nothing.any()


def cross_attentions(vlm: Vlm, phrase: str, **over) -> torch.Tensor:
    """Where a phrase of the question looks, by what eager attention returns: `(num_layers, num_heads, num_keys)`."""
    inputs, _ = vlm.encode(picture(), QUESTION)
    with torch.no_grad():
        layers = tiny_model(attn_implementation="eager", **over)(**inputs, output_attentions=True).cross_attentions
    return torch.stack([layer[0][:, vlm.find(inputs, phrase)].mean(1) for layer in layers])


def test_attention_of_guided_heads_and_of_the_sink_by_hand(vlms: dict[str, Vlm]):
    vlm = vlms["sink"]
    inputs, _ = vlm.encode(picture(), QUESTION)
    look = vlm.look(inputs, torch.stack([vlm.find(inputs, QUESTION), vlm.find(inputs, "cup")]))
    assert look.maps.shape == (2, 1, 3, 3) and look.on_nothing.shape == (2, 1)
    for k, phrase in enumerate((QUESTION, "cup")):
        expected = cross_attentions(vlm, phrase, **SINK)[1, 2]
        assert 0.01 < expected[9] < 0.99
        assert_close(look.maps[k, 0].flatten(), expected[:9])
        assert_close(look.on_nothing[k, 0], expected[9])
        assert_close(look.image_share[k, 0], expected[:9].sum())


@pytest.mark.parametrize(("kind", "over"), [("agevlm", {}), ("sink", SINK)])
def test_attention_of_every_head_by_hand(vlms: dict[str, Vlm], kind: str, over: dict):
    vlm = vlms[kind]
    inputs, _ = vlm.encode(picture(), QUESTION)
    maps, on_nothing = vlm.look_of_heads(inputs, vlm.find(inputs, "a cup"))
    expected = cross_attentions(vlm, "a cup", **over)
    assert maps.shape == (2, 4, 3, 3)
    assert_close(maps.flatten(2), expected[..., :9])
    assert_close(on_nothing, expected[..., 9:].sum(-1))
    assert bool(on_nothing.any()) == (kind == "sink")


@pytest.mark.parametrize(
    ("layers", "heads", "first", "mean"),
    [
        (None, None, "first cross-attention layer", "mean over layers"),
        ([3], [2], "layer 3, head 2", "layer 3, head 2"),
        ([3, 1], [2, 0], "layer 1, heads 0, 2", "mean over layers 1, 3, heads 0, 2"),
        (None, [2], "layer 1, head 2", "mean over layers 1, 3, head 2"),
        ([3], None, "layer 3", "layer 3"),
    ],
)
def test_names_say_which_layers_and_heads(names: dict[str, str], layers, heads, first: str, mean: str):
    vlm = load_vlm(names["agevlm"])
    vlm.model.config.text_config.guidance_layers = layers
    vlm.model.config.text_config.guidance_heads = heads
    assert (vlm.first_layer, vlm.layer_names["mean"]) == (first, mean)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_batch_are_those_of_the_prompts(vlms: dict[str, Vlm], kind: str):
    """Padding in the batch changes nothing, and an answer put after its prompt reads as it was generated."""
    vlm, questions = vlms[kind], [QUESTION, "Is there a red cup on the table in the image?"]
    images = [picture(), picture(seed=1)]
    answers = vlm.generate(images, questions, max_new_tokens=5)
    for image, question, answer in zip(images, questions, answers, strict=True):
        inputs, prompt_length = vlm.encode(image, question, answer)
        assert inputs["input_ids"][0, prompt_length:].tolist() == answer
        assert inputs["attention_mask"].all()
        logits = vlm.look(inputs, vlm.find(inputs, "cup")[None]).logits
        predicted = logits[prompt_length - 1 : -1].argmax(-1).tolist()
        assert predicted[: len(answer)] == answer


def test_first_word_of_an_answer(vlms: dict[str, Vlm]):
    vlm = vlms["llava"]
    for answer, word in (("Yes, there is.", "Yes"), ("zebra on", "zebra"), ("No", "No")):
        ids = vlm.processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert vlm.decode(ids[: vlm.first_word(ids)]) == word


# What of the picture the model gets


@pytest.mark.parametrize(
    ("kind", "width", "height", "box", "padding"),
    [
        ("agevlm", 200, 100, (0, 0, 200, 100), None),
        ("llava", 200, 100, (50, 0, 150, 100), None),
        ("llava", 99, 300, (0, 100, 99, 200), None),
        ("llava-pad", 200, 100, (0, -50, 200, 150), ([0, 5], slice(None))),  # the seams are within cells
        ("llava-pad", 100, 300, (-100, 0, 200, 300), (slice(None), [0, 1, 4, 5])),
        ("idefics3", 200, 100, (0, 0, 200, 100), None),
    ],
)
def test_placement_of_crops_and_padding(vlms: dict[str, Vlm], kind, width, height, box, padding):
    grid = {"agevlm": (3, 3), "idefics3": (4, 4)}.get(kind, (6, 6))
    found, cells = vlms[kind].placement(picture(height, width), grid)
    assert np.abs(np.subtract(found, box)).max() <= 1
    expected = torch.zeros(grid, dtype=torch.bool)
    if padding:
        expected[padding] = True
    assert torch.equal(cells, expected)


@pytest.mark.parametrize("size", [(40, 100), (100, 30), (64, 80)])
def test_padded_cells_of_ours_are_those_that_the_model_masks(names: dict[str, str], size: tuple[int, int]):
    vlm, image = load_vlm(names["agevlm"]), picture(*size)
    vlm.processor.image_processor.do_pad = True
    inputs, _ = vlm.encode(image, QUESTION)
    visible = vlm.model.model._cell_mask(inputs["pixel_values"], inputs["pixel_attention_mask"])
    assert torch.equal(vlm.placement(image, (3, 3))[1], ~visible.view(3, 3))


def test_nothing_on_masked_padding(names: dict[str, str], tmp_path: Path):
    vlms = [load_vlm(names[kind]) for kind in ("agevlm", "llava", "llava-pad")]
    images = [picture(30, 90), picture(90, 30)]
    models = figures.padding(vlms, images, QUESTION, tmp_path / "padding.png")["models"]
    assert set(models) == {"agevlm", "llava-pad"}  # the other LLaVA crops
    ours, llava = models["agevlm"], models["llava-pad"]
    assert ours["area"] == llava["area"] == up_to_rounding(2 / 3, 9)
    assert ours["masked, first layer"] == ours["masked, mean over layers"] == 0
    assert 0.1 < ours["open, first layer"] < 0.99
    inputs, _ = vlms[2].encode(images[0], QUESTION)
    maps = vlms[2].look(inputs, vlms[2].find(inputs, QUESTION)[None]).maps[0]
    on_padding = maps[:, [0, 1, 4, 5]].sum((-2, -1))
    assert llava["each"]["open, first layer"][0] == up_to_rounding(on_padding[0].item(), MAP_LENGTH)
    assert llava["each"]["open, mean over layers"][0] == up_to_rounding(on_padding.mean().item(), MAP_LENGTH)
    with pytest.raises(ValueError, match="No model has a cell of nothing but padding"):
        figures.padding(vlms, [picture(64, 64)], QUESTION, tmp_path / "padding.png")


@pytest.mark.parametrize(
    ("family", "size"),
    [("InternVL", (96, 32)), ("Qwen2.5-VL", (128, 32)), ("Gemma 4", (400, 100))],  # 16, 16 and 64 tokens
)
def test_tiles_and_wide_grids_are_no_square(family: str, size: tuple[int, int]):
    model, processor = FAMILIES[family]()
    vlm = ConcatenationVlm(family, model, processor, model.config.image_token_id)
    inputs = processor(text=[processor.image_token], images=[[PIL.Image.new("RGB", size)]], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) in (16, 64)
    with pytest.raises(ValueError, match="which is no square grid"):
        vlm._image_tokens(inputs)


# Similarity


def test_similarity_of_last_hidden_states_by_hand(vlms: dict[str, Vlm]):
    vlm = vlms["llava"]
    inputs, _ = vlm.encode(picture(), QUESTION)
    with torch.no_grad():
        states = vlm.model.model(**inputs).last_hidden_state[0]
    is_image = inputs["input_ids"][0] == vlm.image_token_id
    words = vlm.find(inputs, "a cup")
    image, text = states[is_image].mean(0), states[words].mean(0)
    expected = (image @ text) / (image.norm() * text.norm())
    assert vlm.similarities(inputs, words) == pytest.approx(
        {"last hidden states": expected.item()}, abs=tolerance(torch.float32, length_of(vlm.model))
    )


@pytest.mark.parametrize(
    ("kind", "guided_layers", "guided_heads"), [("agevlm", (1, 3), range(4)), ("sink", (3,), [2])]
)
def test_similarities_of_ours_by_hand(vlms: dict[str, Vlm], kind: str, guided_layers, guided_heads):
    vlm = vlms[kind]
    inputs, _ = vlm.encode(picture(), QUESTION)
    words = vlm.find(inputs, "a cup")
    with torch.no_grad():
        outputs = vlm.model.model(**inputs, output_hidden_states=True)
        image = outputs.image_outputs.pooler_output[0]
        adapter = torch.cosine_similarity(image.mean(0), outputs.last_hidden_state[0, words].mean(0), dim=0)
        nearest = []
        for index in guided_layers:
            layer = vlm.model.model.language_model.layers[index]
            attention, entering = layer.cross_attn, layer.input_layernorm(outputs.hidden_states[index][0, words])
            queries = attention.q_norm(attention.q_proj(entering).view(2, 4, 8))
            keys = attention.k_norm(attention.k_proj(image).view(9, 2, 8))
            for word in queries:
                cosines = [
                    [torch.cosine_similarity(word[h], key[h // 2], dim=0) for h in guided_heads] for key in keys
                ]
                nearest.append(torch.tensor(cosines).mean(1).max())
    expected = {"adapter's output": adapter.item(), "nearest keys, to queries": torch.stack(nearest).mean().item()}
    assert vlm.similarities(inputs, words) == pytest.approx(expected, abs=tolerance(torch.float32, MODEL_LENGTH))


def test_captions_are_mismatched_only_where_they_differ(vlms: dict[str, Vlm], tmp_path: Path):
    captions = ["a cup", "a red cup", "a cup", "the table", "a cup", "the red table"]
    pairs = [(picture(seed=n), caption) for n, caption in enumerate(captions)]
    vlm = vlms["llava"]
    numbers = figures.similarity([vlm], pairs, tmp_path / "similarity.png")
    kept = [n for n, partner in enumerate(derangement(6)) if captions[partner] != captions[n]]
    assert numbers["num_pairs"] == len(kept) < 6
    found = numbers["models"]["llava"]["last hidden states"]
    for group, partners in (("matching", range(6)), ("mismatching", derangement(6))):
        for n, value in zip(kept, found[group], strict=True):
            inputs, _ = vlm.encode(pairs[n][0], captions[partners[n]])
            words = vlm.find(inputs, captions[partners[n]])
            assert value == up_to_rounding(vlm.similarities(inputs, words)["last hidden states"])
    assert found["overlap"] == overlap(np.array(found["matching"]), np.array(found["mismatching"]))


# Hallucination


class Pointing(AgeVlm):
    """
    Looks at one cell from the object's word, at all evenly from before the answer, at three from the answer; and with a sink
    from each as much at nothing as `on_nothing` says.
    """

    on_nothing = torch.zeros(3)

    def look(self, inputs: dict[str, torch.Tensor], query_masks: torch.BoolTensor) -> Look:
        self.seen = [inputs["input_ids"][0, mask].tolist() for mask in query_masks]
        maps = torch.zeros(3, 2, 9)
        maps[0, :, 4] = 1
        maps[1] = 1 / 9
        maps[2, :, :3] = 1 / 3
        logits = super().look(inputs, query_masks).logits
        on_nothing = self.on_nothing[:, None].expand(3, 2)
        maps *= 1 - on_nothing[..., None]
        return Look(maps.unflatten(-1, (3, 3)), 1 - on_nothing, logits, on_nothing)


THIRD = np.log(3) / np.log(9)
CONCENTRATIONS = {
    "object: high entropy": 0,
    "object: low max": -1,
    "object: low top 5%": -1,
    "before the answer: high entropy": 1,
    "before the answer: low max": -1 / 9,
    "before the answer: low top 5%": -1 / 9,
    "answer: high entropy": THIRD,
    "answer: low max": -1 / 3,
    "answer: low top 5%": -1 / 3,
}


@pytest.mark.parametrize("layers", ["first", "mean"])
def test_scores_of_constructed_attention(vlms: dict[str, Vlm], layers: str):
    ours = vlms["agevlm"]
    vlm = Pointing(ours.name, ours.model, ours.processor, ours.image_token_id)
    tokenizer = vlm.processor.tokenizer
    asked = {"image": picture(), "question": QUESTION, "answer": "no", "prediction": "Yes, a cup.", "correct": False}
    case = score(vlm, asked, layers)
    regions = {name: case.scores.pop(name) for name in list(case.scores) if name.endswith("low region score")}
    # one cell and three together hold what they have beyond the mean; what is even holds no region
    assert regions["object: low region score"] < regions["answer: low region score"] < 0
    assert regions["before the answer: low region score"] == 0
    prompt = vlm.encode(picture(), QUESTION)[0]["input_ids"][0].tolist()
    assert vlm.seen == [
        tokenizer(" cup", add_special_tokens=False)["input_ids"],
        prompt[-1:],
        tokenizer("Yes")["input_ids"],
    ]
    assert (case.wrong, case.false_yes, case.absent) == (True, True, None)
    assert case.scores.pop("answer: low probability") == up_to_rounding(-first_token_probability(vlm, "Yes"))
    assert case.scores == pytest.approx(CONCENTRATIONS)
    assert score(vlm, asked | {"prediction": "No.", "correct": True}, layers).false_yes is None
    assert score(vlm, asked | {"answer": "yes", "correct": True}, layers).false_yes is False


def test_scores_of_attention_to_nothing(vlms: dict[str, Vlm]):
    """The concentration is of what is left on the picture; how much that is, is a score of its own."""
    sink = vlms["sink"]
    vlm = Pointing(sink.name, sink.model, sink.processor, sink.image_token_id)
    vlm.on_nothing = torch.tensor([0.75, 0.5, 0.0])
    asked = {"image": picture(), "question": QUESTION, "answer": "no", "prediction": "Yes, a cup.", "correct": False}
    case = score(vlm, asked, "first")
    case.scores = {
        name: value for name, value in case.scores.items() if not name.endswith(("region score", "probability"))
    }
    shares = {"object": -0.25, "before the answer": -0.5, "answer": -1.0}
    assert case.scores == pytest.approx(
        CONCENTRATIONS | {f"{query}: low share on picture": share for query, share in shares.items()}
    )
    assert case.absent is True
    assert score(vlm, asked | {"answer": "yes"}, "first").absent is False
    assert score(vlm, asked | {"answer": "red"}, "first").absent is None


def first_token_probability(vlm: Vlm, word: str) -> float:
    inputs, _ = vlm.encode(picture(), QUESTION)
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0, -1]
    return logits.softmax(-1)[vlm.processor.tokenizer(word)["input_ids"][0]].item()


def test_tell_compares_wrong_to_right_and_false_yes_to_true_yes():
    cases = [
        Case({"a": 4.0, "b": 1.0}, wrong=True, false_yes=True, absent=None),
        Case({"a": 3.0, "b": 1.0}, wrong=True, false_yes=None, absent=None),
        Case({"a": 2.0, "b": 1.0}, wrong=False, false_yes=None, absent=None),
        Case({"a": 5.0, "b": 1.0}, wrong=False, false_yes=False, absent=None),
    ]
    numbers = tell(cases)
    assert (numbers["wrong"]["num_answers"], numbers["wrong"]["num_positive"]) == (4, 2)
    assert (numbers["false_yes"]["num_answers"], numbers["false_yes"]["num_positive"]) == (2, 1)
    assert {key: entry["auc"] for key, entry in numbers["wrong"]["auc"].items()} == {"a": 0.5, "b": 0.5}
    assert numbers["false_yes"]["auc"]["a"]["auc"] == 0
    assert tell(cases[:2])["wrong"]["auc"] == {}  # nothing to compare with
    assert numbers.keys() == {"wrong", "false_yes"}


def test_tell_compares_what_is_absent_to_what_is_there():
    told = [(0.9, True), (0.8, True), (0.85, False), (0.1, False), (0.95, None)]
    cases = [Case({"a": score}, wrong=False, false_yes=None, absent=absent) for score, absent in told]
    numbers = tell(cases)["absent"]
    assert (numbers["num_answers"], numbers["num_positive"], numbers["auc"]["a"]["auc"]) == (4, 2, 0.75)


# The command line


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["figures.py", *arguments, "--out", str(out)])
    command.main()
    assert PIL.Image.open(out).width > 300
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.filterwarnings("ignore:Glyph")  # random weights write bytes that no font has
def test_every_figure_from_the_command_line(names: dict[str, str], tmp_path: Path, monkeypatch):
    models = ["--models", *(names[kind] for kind in KINDS)]
    picture(30, 90).save(tmp_path / "wide.png")
    asked = ["--image", str(tmp_path / "wide.png"), "--question", QUESTION]
    drawn = run(monkeypatch, tmp_path / "attention.png", "attention", *models, *asked, "--words", "cup")
    assert set(drawn["rows"][0]["models"]) == set(KINDS)
    maps = np.load(tmp_path / "attention.npz")
    assert {name: maps[name].shape for name in maps} == {
        "0 agevlm": (2, 3, 3),
        "0 llava": (3, 6, 6),
        "0 idefics3": (3, 4, 4),
    }
    captions = [{"image": "wide.png", "caption": f"{word} cup"} for word in ("a", "the", "red")]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in captions))
    data = ["--data", str(tmp_path / "captions.jsonl")]
    assert run(monkeypatch, tmp_path / "similarity.png", "similarity", *models, *data)["num_pairs"] == 3
    assert set(run(monkeypatch, tmp_path / "padding.png", "padding", *models, *asked)["models"]) == {"agevlm"}
    told = run(monkeypatch, tmp_path / "scenes.png", "hallucination", *models, "--num_scenes", "3")
    assert told["models"]["llava"]["wrong"]["num_answers"] > 0

    record = {"image": "wide.png", "question": QUESTION, "answer": "yes"}
    answers = [("Yes.", True), ("No.", False), ("Yes, a cup.", True)]
    records = [record | {"prediction": prediction, "correct": correct} for prediction, correct in answers]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in records))
    told = run(
        monkeypatch,
        tmp_path / "records.png",
        "hallucination",
        "--models",
        names["llava"],
        "--records",
        str(tmp_path / "records.jsonl"),
    )
    assert told["models"]["llava"]["wrong"]["num_positive"] == 1
    assert "object: low share on picture" in told["models"]["llava"]["wrong"]["auc"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_of_guided_heads_and_a_sink(names: dict[str, str], vlms: dict[str, Vlm], tmp_path: Path, monkeypatch):
    closed = []
    monkeypatch.setattr(figures.plt, "close", closed.append)
    picture().save(tmp_path / "picture.png")
    asked = ["--image", str(tmp_path / "picture.png"), "--question", QUESTION]
    asked += ["--words", "cup", "--models", names["sink"], names["agevlm"]]
    drawn = run(monkeypatch, tmp_path / "attention.png", "attention", *asked)["rows"][0]["models"]
    every = cross_attentions(vlms["sink"], "cup", **SINK)
    share = every[1, 2, 9].item()
    for layer in ("first", "mean"):  # the only one
        assert drawn["sink"]["image_share"][layer] == up_to_rounding(1 - share)
        left = (every[1, 2, :9] / (1 - share)).double()
        assert drawn["sink"]["entropy"][layer] == up_to_rounding(concentration(left)["entropy"])
        assert drawn["agevlm"]["image_share"][layer] == 1
    assert np.load(tmp_path / "attention.npz")["0 sink"].shape == (1, 3, 3)
    _, guided, empty, *plain = closed.pop().axes
    on_cells = every[1, 2, :9].view(3, 3).numpy()
    assert guided.get_title(loc="left") == f"sink\nlayer 3, head 2\n{in_numbers(on_cells, share)}"
    overlay = guided.get_images()[1].get_array()
    height, width = overlay.shape[:2]
    cells = (
        overlay[:: height - 1, :: width - 1],
        colored(9 * on_cells)[::2, ::2],
    )  # in the corners as in the cells there
    np.testing.assert_allclose(*cells, atol=0.02)
    assert not empty.get_images() and not empty.axison
    first, mean, legend = (axes.get_title(loc="left") for axes in plain)
    assert first.startswith("agevlm\nfirst cross-attention layer\nhalf of it in ")
    assert mean.startswith("agevlm\nmean over layers\nhalf of it in ") and legend == ""

    drawn = run(monkeypatch, tmp_path / "heads.png", "heads", *asked)["models"]
    assert (drawn["sink"]["layers"], drawn["sink"]["guided"]) == ([1, 3], [[3, 2]])
    assert len(drawn["agevlm"]["guided"]) == 8
    assert_close(torch.tensor(drawn["sink"]["rows"][0]["on nothing"]), every[..., 9])
    assert drawn["agevlm"]["rows"] == [{"question": QUESTION, "words": "cup"}]
    assert np.load(tmp_path / "heads.npz")["0 sink"].shape == (2, 4, 3, 3)
    panels = [axes for axes in closed.pop().axes if axes.get_title(loc="left").startswith("layer")]
    assert len(panels) == 16
    reds = [axes.get_title(loc="left") for axes in panels if axes._left_title.get_color() == "tab:red"]
    assert reds == [
        f"layer 3, head 2\n{share:.0%} on nothing",
        *(f"layer {i}, head {h}" for i in (1, 3) for h in range(4)),
    ]

    picture(30, 90).save(tmp_path / "wide.png")
    run(monkeypatch, tmp_path / "padding.png", "padding", "--image", str(tmp_path / "wide.png"), *asked[6:])
    titles = [axes.get_title(loc="left").splitlines() for axes in closed.pop().axes]
    assert (
        titles[0][:2] == ["sink", "padding open, layer 3, head 2"]
        and "% on nothing, half the rest in " in titles[0][2]
    )
    assert titles[3][:2] == ["agevlm", "padding open, first layer"]

    told = run(monkeypatch, tmp_path / "scenes.png", "hallucination", *asked[6:], "--num_scenes", "6")["models"]
    assert told["sink"]["absent"]["num_positive"] == told["sink"]["absent"]["num_answers"] / 2 > 0
    assert "object: low share on picture" in told["sink"]["absent"]["auc"]
    assert "absent" not in told["agevlm"]
    assert closed.pop().axes[0].get_title(loc="left").endswith("\nattention: layer 3, head 2")


def test_heads_in_and_out_of_the_mask(names: dict[str, str], tmp_path: Path, monkeypatch):
    """Of a test scene, whose mask is known."""
    drawn = run(monkeypatch, tmp_path / "heads.png", "heads", "--models", names["agevlm"])["models"]["agevlm"]
    (question,) = figures.attention_rows([], [], None, num_scenes=1)
    (entry,), maps = drawn["rows"], torch.from_numpy(np.load(tmp_path / "heads.npz")["0 agevlm"])
    vlm = load_vlm(names["agevlm"])
    region = query(question["image"], 0, text=question["words"], mask=question["mask"])
    found = grounding_maps(
        vlm.model, vlm.processor, [row(question["question"], images=[question["image"]], regions=[region])]
    )
    inside = found.cells[0, 0].view(3, 3)
    assert 0 < inside.sum() < 9
    assert_close(torch.tensor(entry["in the mask"]), (maps * inside).sum((-2, -1)))
    assert_close(maps.mean(1).flatten(1), found.maps[0, 0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["attention", "--models", "nowhere/at-all"], "nowhere/at-all cannot be loaded as a vision-language model"),
        (["attention", "--models", "EMPTY"], "it has no config.json"),
        (["attention", "--models", "TEXT"], "Unrecognized configuration class"),
        (["heads", "--models", "LLAVA"], "llava is no AGE-VLM: it has no heads of cross-attention"),
        (["padding", "--models", "MODEL", "--image", "no.png"], "'no.png' cannot be read as a picture"),
        (["attention", "--models", "MODEL", "--image", "a", "b", "--words", "x", "y", "z"], "There are 2 pictures, 1 questions and 3 phrases"),
        (["hallucination", "--models", "MODEL", "--records", "PART"], "Row 0 of .* has no correct, image, prediction"),
        (["hallucination", "--models", "MODEL", "MODEL", "--records", "PART"], "are one model's answers"),
        (["similarity", "--models", "MODEL", "--data", "nowhere.jsonl"], "nowhere.jsonl cannot be read as JSONL"),
        (["padding", "--models", "MODEL", "--out", "a.jpg"], "has to end in .png"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(names, tmp_path: Path, monkeypatch, arguments: list[str], sentence: str):
    (tmp_path / "part.jsonl").write_text(json.dumps({"question": "?", "answer": "yes"}))
    places = {
        "EMPTY": tmp_path,
        "TEXT": BACKBONES / "llama",
        "MODEL": names["agevlm"],
        "LLAVA": names["llava"],
        "PART": tmp_path / "part.jsonl",
    }
    monkeypatch.setattr(sys, "argv", ["figures.py", *(str(places.get(part, part)) for part in arguments)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence) as exit:
        command.main()
    assert str(exit.value).startswith("error: ")
    assert len(str(exit.value).splitlines()) == 1


def test_too_few_scenes_for_a_question_are_said(tmp_path: Path):
    with pytest.raises(ValueError, match="no question for existence about so few scenes: take more .`--num_scenes`"):
        figures.hallucination([], [], "last", tmp_path)
