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
from pathlib import Path
from typing import Literal

import pytest
import torch
from test_guided_sft_trainer import make_trainer
from testing_utils import tiny_batch, tiny_model

from modeling_agevlm import AgeVlmForConditionalGeneration
from trainers import STAGES, Stage, apply_stage, get_stage, parameter_table
from trainers.stages import model_parts


VARIANTS = ["age-vlm", "age-vlm-lm", "ca-baseline", "ca-baseline-frozen"]
# (variant, stage): vision, language model trains, guided. The projector and the cross-attention always train.
TABLE = {
    ("age-vlm", 1): ("none", False, False),
    ("age-vlm", 2): ("last_stage", False, False),
    ("age-vlm", 3): ("last_stage", False, True),
    ("age-vlm", 4): ("all", False, False),
    ("age-vlm-lm", 1): ("none", False, False),
    ("age-vlm-lm", 2): ("last_stage", False, False),
    ("age-vlm-lm", 3): ("last_stage", False, True),
    ("age-vlm-lm", 4): ("all", True, True),
    ("ca-baseline", 1): ("none", False, False),
    ("ca-baseline", 2): ("last_stage", False, False),
    ("ca-baseline", 3): ("last_stage", False, False),
    ("ca-baseline", 4): ("all", True, False),
    ("ca-baseline-frozen", 1): ("none", False, False),
    ("ca-baseline-frozen", 2): ("last_stage", False, False),
    ("ca-baseline-frozen", 3): ("last_stage", False, False),
    ("ca-baseline-frozen", 4): ("all", False, False),
}


def declared(name: str, vision: Literal["none", "last_block", "last_stage", "all"], language_model: bool) -> bool:
    """Whether a parameter of the tiny model is to change, by its name."""
    if name.startswith("model.multi_modal_projector."):
        return True
    if name.startswith(("model.language_model.layers.1.", "model.language_model.layers.3.")):
        return True
    if name.startswith("model.vision_tower."):
        last_stage = "model.vision_tower.timm_model.stages.3."
        prefix = {"last_block": last_stage + "blocks.1.", "last_stage": last_stage, "all": ""}
        return vision != "none" and name.startswith(prefix[vision])
    return language_model


def one_step(model: AgeVlmForConditionalGeneration) -> None:
    """A step on the labels and the maps of an optimizer that is given every parameter."""
    batch = tiny_batch(placeholders=((1, 6), (3,), ()))
    queries = torch.ones(3, 1, 10, dtype=torch.bool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    outputs = model(**batch, labels=batch["input_ids"], query_masks=queries, use_cache=False)
    (outputs.loss + sum(layer_map[..., 0].mean() for layer_map in outputs.grounding_maps)).backward()
    optimizer.step()


def assert_only_declared_parameters_change(stage: Stage) -> None:
    model = tiny_model().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    apply_stage(model, stage)
    one_step(model)
    for name, parameter in model.named_parameters():
        expected = declared(name, stage.vision, stage.language_model)
        assert parameter.requires_grad == expected, name
        assert torch.equal(parameter, before[name]) != expected, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", STAGES)
def test_stages_are_the_papers_table(variant: str, number: int):
    vision, language_model, guided = TABLE[variant, number]
    assert get_stage(number, variant) == Stage(number, vision, language_model, guided)


def test_default_variant():
    assert [get_stage(number) for number in STAGES] == [get_stage(number, "age-vlm") for number in STAGES]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", STAGES)
def test_a_step_changes_what_the_stage_declares(variant: str, number: int):
    assert_only_declared_parameters_change(get_stage(number, variant))


@pytest.mark.parametrize("vision", ["none", "last_block", "last_stage", "all"])
def test_a_step_changes_the_named_part_of_the_tower(vision: str):
    assert_only_declared_parameters_change(Stage(2, vision=vision))


DISTINCT = {get_stage(number, variant): (variant, number) for variant, number in TABLE}


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "head of its own"])
@pytest.mark.parametrize(
    "stage", DISTINCT, ids=[f"stage {number} of {variant}" for variant, number in DISTINCT.values()]
)
def test_training_changes_what_the_stage_declares(tmp_path: Path, stage: Stage, tied: bool):
    """Frozen is what no step and no weight decay moves, to the bit; all that trains has a gradient and moves."""
    model = tiny_model(tie_word_embeddings=tied, text_config={"tie_word_embeddings": tied})
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    apply_stage(model, stage)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    trainer = make_trainer(
        tmp_path,
        model,
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        warmup_steps=0,
        guidance_weight=float(stage.guided),
    )
    trainer.create_optimizer()
    felt = dict.fromkeys(before, False)

    def note(*_) -> None:
        for name, parameter in model.named_parameters():
            felt[name] |= parameter.grad is not None and bool(parameter.grad.any())

    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert after.keys() == before.keys()
    buffers = dict(model.named_buffers())
    for name, tensor in after.items():
        trains = name not in buffers and declared(name, stage.vision, stage.language_model)
        assert felt[name] == trains, name
        assert torch.equal(tensor, before[name]) != trains, name
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_a_stage_forgets_the_stage_before():
    model, fresh = tiny_model(), tiny_model()
    apply_stage(model, get_stage(4, "age-vlm-lm"))
    apply_stage(model, get_stage(1))
    apply_stage(fresh, get_stage(1))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in fresh.parameters()]


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_in_one_part(tied: bool):
    model = tiny_model(tie_word_embeddings=tied, text_config={"tie_word_embeddings": tied})
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    parts = [id(parameter) for part in model_parts(model).values() for parameter in part]
    assert len(parts) == len(set(parts))
    assert set(parts) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("trains", [True, False])
def test_untied_head_trains_with_the_language_model(trains: bool):
    model = tiny_model(tie_word_embeddings=False, text_config={"tie_word_embeddings": False})
    apply_stage(model, Stage(4, vision="all", language_model=trains))
    assert model.lm_head.weight.requires_grad == trains


def test_parameter_table_counts_every_parameter_once():
    model = tiny_model()
    apply_stage(model, get_stage(2))
    lines = {line.split()[0]: line.split()[1:] for line in parameter_table(model).splitlines()}
    counts = {part: [int(number.replace(",", "")) for number in lines[part]] for part in lines if part != "part"}
    assert counts["language_model"][1] == 0
    assert counts["cross_attention"][0] == counts["cross_attention"][1] > 0
    assert 0 < counts["vision_tower"][1] < counts["vision_tower"][0]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert counts["total"] == [sum(parameter.numel() for parameter in model.parameters()), trainable]


def test_unknown_stages_and_variants_are_refused():
    with pytest.raises(ValueError, match="no stage 5; the stages are 1, 2, 3, 4"):
        get_stage(5)
    with pytest.raises(ValueError, match="no variant 'baseline'; the variants are age-vlm, age-vlm-lm, ca-baseline"):
        get_stage(1, "baseline")
