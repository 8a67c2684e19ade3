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
"""The concatenation model: the same parts and pictures as an AGE-VLM's, the same four stages, a checkpoint of transformers' own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from testing_utils import assert_close, picture, region, row
from transformers import AutoModelForCausalLM, FastVlmForConditionalGeneration

from recipes.answering.answers import one_question, prompts
from recipes.answering.rows import grounding_maps, query
from recipes.scenes import BACKBONES
from recipes.scenes.evaluation import answer_all, evaluate_all
from recipes.training.arguments import DataArguments, ModelArguments, PartsArguments
from recipes.training.parts import build
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig, RegionAttention, get_stage
from trainers.stages import count_parameters


PARTS = {"vision": str(BACKBONES / "convnext"), "text": str(BACKBONES / "llama"), "image_size": 64}
CPU = {
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "max_steps": 1,
    "warmup_steps": 0,
}
QUESTION = "Is there a cup?"


def train(number: int, folder: Path, previous: Path | None, variant: str = "concatenation-guided", **over: Any):
    start = PARTS if previous is None else {"model_name_or_path": str(previous)}
    arguments = ModelArguments(variant=variant, **start)
    training = GuidedSFTConfig(output_dir=str(folder), per_device_train_batch_size=2, **CPU | over)
    return run_stage(number, arguments, DataArguments(), training, rows=rows())


def rows() -> Dataset:
    absent = {"mask": None, "image": 0, "text": "dog", "span": None, "message": 0}
    return Dataset.from_list(
        [row(regions=[region(text="red cup")]), row("Is there a dog?", "No.", images=[picture()], regions=[absent])]
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the four stages of the guided model."""
    out, previous = tmp_path_factory.mktemp("concatenation"), None
    for number in (1, 2, 3, 4):
        train(number, out / f"s{number}", previous)
        previous = out / f"s{number}"
    return out


@torch.no_grad()
def test_parts_pictures_and_words_are_those_of_the_age_vlm():
    ours, processor = build(PartsArguments(**PARTS))
    model, own_processor = build(PartsArguments(**PARTS), is_concatenation=True)
    images, chats = [picture(50, 80), picture(64, 64, seed=1)], []
    pixels = [p.image_processor(images, return_tensors="pt")["pixel_values"] for p in (processor, own_processor)]
    assert torch.equal(pixels[0].view(2, 3, 64, 64), pixels[1])

    model.model.multi_modal_projector.load_state_dict(ours.model.multi_modal_projector.state_dict())
    expected = ours.model.get_image_features(pixels[0]).pooler_output.view(2, 4, -1)
    assert_close(model.model.get_image_features(pixels[1]).pooler_output.view(2, 4, -1), expected, length=512)

    chats = [one_question(QUESTION, image) for image in images]
    ids = [prompts(p, chats)["input_ids"] for p in (processor, own_processor)]
    place = ids[0][0].tolist().index(processor.image_token_id)
    spread = torch.cat([ids[0][:, :place], ids[0][:, place : place + 1].expand(-1, 4), ids[0][:, place + 1 :]], dim=1)
    assert torch.equal(spread, ids[1])

    llama = AutoModelForCausalLM.from_pretrained(PARTS["text"], dtype=torch.float32)
    words = torch.tensor([own_processor.tokenizer(QUESTION)["input_ids"]])
    assert torch.equal(model(input_ids=words).logits, llama(input_ids=words).logits)


def test_stages_train_what_the_table_says(trained: Path):
    """The LLM in the last one; the tower from its last stage to all of it; guided in the last two."""
    sizes = {
        name: p.numel()
        for name, p in FastVlmForConditionalGeneration.from_pretrained(trained / "s1").named_parameters()
    }
    assert count_parameters(sizes.items(), ())["cross_attention"] == 0
    before = None
    for number in (1, 2, 3, 4):
        after = FastVlmForConditionalGeneration.from_pretrained(trained / f"s{number}").state_dict()
        log = json.loads((trained / f"s{number}/trainer_state.json").read_text())["log_history"][0]
        assert log["loss"] == pytest.approx(log["lm_loss"] + log["guidance_loss"] * (number >= 3), rel=1e-5)
        assert 0 < log["sink_mass"] < 1 and log["guided_rows"] == 2
        if before is not None:
            moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
            assert any("multi_modal_projector" in name for name in moved)
            assert any("stages.3" in name for name in moved)
            assert any("language_model.layers.0" in name for name in moved) == (number == 4)
            assert any("stem" in name for name in moved) == (number == 4)
            assert not any(".head." in name for name in moved)
        before = after


def test_transformers_loads_it_by_itself(trained: Path):
    code = (
        "import sys, PIL.Image\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model, report = AutoModelForImageTextToText.from_pretrained({str(trained / 's4')!r}, output_loading_info=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(trained / 's4')!r})\n"
        "assert not report['missing_keys'] and not report['unexpected_keys'], report\n"
        "content = [{'type': 'image', 'image': PIL.Image.new('RGB', (50, 30))}, {'type': 'text', 'text': 'A cup?'}]\n"
        "inputs = processor.apply_chat_template([{'role': 'user', 'content': content}], add_generation_prompt=True,\n"
        "    tokenize=True, return_dict=True, return_tensors='pt')\n"
        "model.generate(**inputs, max_new_tokens=3)\n"
        "assert not {'modeling_agevlm', 'trainers', 'recipes'} & sys.modules.keys()\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=trained)
    assert result.returncode == 0, result.stderr[-2000:]
    assert str(BACKBONES) not in (trained / "s4/config.json").read_text()


def test_its_card_says_what_it_is(trained: Path):
    card = ModelCard.load(trained / "s4/README.md")
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.base_model is None
    assert "Made from `recipes/scenes/backbones/convnext` and `recipes/scenes/backbones/llama` by" in card.text
    assert "its words were guided" in card.text and "| stage | 1 | 2 | 3 | 4 |" in card.text
    assert "none of its words was guided" in (trained / "s2/README.md").read_text()


def loaded(trained: Path) -> tuple[FastVlmForConditionalGeneration, Any]:
    from recipes.training.concatenation import load_concatenation

    return load_concatenation(str(trained / "s4"), "main", "sdpa")


def test_its_maps_are_those_of_eager_attention(trained: Path):
    model, processor = loaded(trained)
    image = picture(64, 64)
    asked = {
        "images": [image],
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Yes."}],
    }
    regions = [query(image, message=0), query(image, message=0, text="cup")]
    found = grounding_maps(model, processor, [asked | {"regions": regions}], RegionAttention(model, [1, 3], [2]))
    assert found.maps.shape == (1, 2, 2, 4) and torch.equal(found.cells, torch.ones(1, 2, 4))

    eager, _ = loaded(trained)
    eager.set_attn_implementation({"text_config": "eager"})
    chat = [*one_question(QUESTION, image), {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}]
    inputs = processor.apply_chat_template([chat], tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        attentions = eager(**inputs, output_attentions=True).attentions
    cup = processor.tokenizer(" cup", add_special_tokens=False)["input_ids"]
    is_cup = torch.isin(inputs["input_ids"][0], torch.tensor(cup))
    is_visual = inputs["input_ids"][0] == processor.image_token_id
    for n, layer in enumerate((1, 3)):
        attention = attentions[layer][0, 2, is_cup].mean(0)
        on_picture = attention[is_visual]
        assert_close(found.maps[0, 1, n], on_picture / on_picture.sum(), length=256)
        assert_close(found.sink[0, 1, n], 1 - on_picture.sum(), length=256)


def test_scenes_score_it(trained: Path):
    """Its answers are those to each question by itself, and all that an AGE-VLM's are scored for is there."""
    model, processor = loaded(trained)
    images, questions = [picture(), None, picture(seed=1)], [QUESTION, QUESTION, "How many red cups are there?"]
    answers = answer_all(model, processor, images, questions, max_new_tokens=4)
    alone = [
        answer_all(model, processor, [i], [q], max_new_tokens=4)[0] for i, q in zip(images, questions, strict=True)
    ]
    assert answers == alone
    scored = evaluate_all(model, processor, num_images=8, image_size=64, attention=RegionAttention(model)).metrics
    assert 0 < scored["in_mask_mass"] < 1 and 0 < scored["absent_sink_mass"] < 1 and scored["lm_loss"] > 0


@pytest.mark.parametrize("variant", ["concatenation", "age-vlm"])
def test_a_checkpoint_of_the_other_kind_is_refused(variant: str, trained: Path, tmp_path: Path):
    start = trained / "s1"
    if variant == "concatenation":
        train(1, tmp_path / "age", None, "age-vlm")
        start = tmp_path / "age"
    with pytest.raises(ValueError, match=r"a stage of .* starts from '.*'\. Go on with a variant of its own kind"):
        train(2, tmp_path / "s2", start, variant)


def test_it_goes_on_as_what_it_is(trained: Path, tmp_path: Path):
    run = train(4, tmp_path / "again", trained / "s4", None)
    assert json.loads((tmp_path / "again/training.json").read_text())[-1]["variant"] == "concatenation-guided"
    assert run.state.global_step == 1
    with pytest.raises(ValueError, match="Stage 2 starts from a checkpoint of stage 1"):
        train(2, tmp_path / "s2", trained / "s4", None)


def test_a_tower_that_timm_would_fetch_is_refused(trained: Path, tmp_path: Path):
    config = json.loads((trained / "s1/config.json").read_text())
    config["vision_config"]["architecture"] = "hf-hub:somebody/convnext"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="name of a ConvNeXt in timm's registry.*but is 'hf-hub:somebody/convnext'"):
        train(2, tmp_path / "s2", tmp_path)
    config = json.loads((trained / "s1/config.json").read_text())
    config["text_config"] = {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/convnext"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`architecture` is 'hf-hub:somebody/convnext', which is no name in timm"):
        train(2, tmp_path / "s2", tmp_path)
    config["vision_config"] = {"model_type": "clip_vision_model"}  # which has neither of the two
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="name of a ConvNeXt in timm's registry"):
        train(2, tmp_path / "s2", tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("attention_sink", "has no cross-attention"),
        ("cross_attention_layers", "has no cross"),
        ("do_pad", "stretched"),
    ],
)
def test_options_of_cross_attention_do_nothing(option: str, message: str, tmp_path: Path):
    arguments = ModelArguments(variant="concatenation", **PARTS)
    training = GuidedSFTConfig(output_dir=str(tmp_path / "s1"), **CPU)
    with pytest.raises(ValueError, match=message):
        run_stage(1, arguments, DataArguments(), training, rows=rows(), given={option})


def test_its_pictures_can_be_changed(tmp_path: Path):
    """They are not by rows, as an AGE-VLM's are."""
    shapes = []
    arguments = ModelArguments(variant="concatenation", **PARTS)
    training = GuidedSFTConfig(output_dir=str(tmp_path / "s1"), per_device_train_batch_size=2, **CPU)
    run_stage(1, arguments, DataArguments(), training, rows=rows(), augment=lambda p: shapes.append(p.shape) or p)
    assert shapes == [(2, 3, 64, 64)]


def test_heads_are_kept_by_the_record(trained: Path, tmp_path: Path):
    """Its config has no place for them: the stage after guides those of the stage before, unless it names others."""
    train(3, tmp_path / "s3", trained / "s2", guidance_layers=[1], guidance_heads=[0, 2])
    assert train(4, tmp_path / "s4", tmp_path / "s3").guided_heads == {1: [0, 2]}
    assert train(4, tmp_path / "more", tmp_path / "s4").guided_heads == {1: [0, 2]}
    assert train(4, tmp_path / "other", tmp_path / "s3", guidance_layers=[2]).guided_heads == {2: None}
    record = json.loads((tmp_path / "s3/training.json").read_text())
    record[-1]["guided_heads"] = {"first": [0]}
    (tmp_path / "s3/training.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"tells of guided heads .*, which are none: name those to be guided"):
        train(4, tmp_path / "wrong", tmp_path / "s3")


def test_both_variants_have_the_same_stages_before_guidance():
    assert [get_stage(n, "concatenation") == get_stage(n, "concatenation-guided") for n in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert [get_stage(n, "concatenation").language_model for n in (1, 2, 3, 4)] == [False, False, False, True]
