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
"""Low-rank adapters on the LLM's self-attention, through [`GuidedSFTTrainer`] and peft."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_guided_sft_trainer import CPU, dataset, logged, parameters_of
from test_stages import declared
from testing_utils import GRADIENT_LENGTH, assert_close, tiny_batch, tiny_model, tiny_processor

from modeling_agevlm import AgeVlmForConditionalGeneration
from modeling_agevlm.modeling_agevlm import AgeVlmVisionModel
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig, GuidedSFTTrainer, Stage, apply_stage, get_stage, lora_config, parameter_table


STAGE_4 = get_stage(4, "age-vlm-lm")
ADAPTED = {f"model.language_model.layers.{n}.self_attn.{name}_proj" for n in (0, 2, 4) for name in "qkvo"}
PREFIX = "base_model.model."


def make_trainer(out: Path, stage: Stage = STAGE_4, lora: bool = True, **arguments: Any) -> GuidedSFTTrainer:
    model = tiny_model()
    config = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, **CPU} | arguments
    if not lora:
        apply_stage(model, stage)
    return GuidedSFTTrainer(
        model=model,
        args=GuidedSFTConfig(output_dir=str(out), **config),
        processing_class=tiny_processor(),
        train_dataset=dataset(),
        peft_config=lora_config(model, stage, r=4, lora_alpha=8) if lora else None,
    )


def plain_name(name: str) -> str:
    """The parameter's name in the model without adapters."""
    return name.removeprefix(PREFIX).replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def trained(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def batch() -> dict[str, torch.Tensor]:
    return tiny_batch(placeholders=((1, 4), (3,), ()))


@pytest.mark.parametrize("vision", ["none", "last_block", "last_stage", "all"])
def test_adapters_and_what_trains_whole(tmp_path: Path, vision: str):
    """The tower, the projector and the cross-attention as the stage says; of the LLM only the adapters."""
    model = make_trainer(tmp_path, Stage(4, vision=vision, language_model=True)).model
    adapters = {name for name in trained(model) if ".lora_" in name}
    expected = {f"{PREFIX}{name}.lora_{side}.default.weight" for name in ADAPTED for side in "AB"}
    assert adapters == expected
    whole = {plain_name(name) for name in trained(model).keys() - adapters}
    assert whole == {name for name, _ in tiny_model().named_parameters() if declared(name, vision, False)}


def test_first_gradients_are_those_without_adapters(tmp_path: Path):
    """Before the first step the adapters add nothing: both losses have the same gradients in what trains whole."""
    gradients = {}
    for lora, weight in ((True, 1.0), (False, 1.0), (True, 0.0)):
        trainer = make_trainer(tmp_path, lora=lora, guidance_weight=weight, max_steps=1, max_grad_norm=0.0)
        trainer.create_optimizer()
        model, found = trainer.model, {}
        trainer.optimizer.register_step_pre_hook(
            lambda *_, model=model, found=found: found.update(
                {plain_name(name): p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
            )
        )
        trainer.train()
        gradients[lora, weight] = found
        assert len(logged(trainer, "guidance_loss")) == 1
    for name, gradient in gradients[True, 1.0].items():
        if ".lora_" not in name:
            expected = gradients[False, 1.0][name]
            assert_close(gradient, expected, GRADIENT_LENGTH, name)
        if "cross_attn.q_" in name or "cross_attn.k_" in name or "projector" in name:
            guidance = (gradient - gradients[True, 0.0][name]).abs().max()
            assert guidance > 0.01 * gradient.abs().max(), name


def test_saved_loaded_and_merged_adapters_answer_the_same(tmp_path: Path):
    trainer = make_trainer(tmp_path, max_steps=4)
    before = parameters_of(trainer.model)
    trainer.train()
    masses = logged(trainer, "in_mask_mass")
    assert len(masses) == 4 and masses[-1] > masses[0] + 0.05
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    plain = tiny_model()
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            name = plain_name(name).replace(".base_layer.", ".")
            assert torch.equal(parameter, plain.get_parameter(name)), name

    trainer.save_model(str(tmp_path / "adapters"))
    queries = {"query_masks": torch.ones(3, 1, 10, dtype=torch.bool)}
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.model(**batch(), **queries)
        assert (expected.logits - plain(**batch()).logits).abs().max() > 0.1
        loaded = PeftModel.from_pretrained(plain, tmp_path / "adapters").eval()
        assert torch.equal(loaded(**batch()).logits, expected.logits)
        prompt = {name: tensor[:2] for name, tensor in batch().items()}
        generated = loaded.generate(**prompt, max_new_tokens=5, do_sample=False)
        merged = loaded.merge_and_unload()
        assert type(merged) is AgeVlmForConditionalGeneration
        assert merged.lm_head.weight is merged.get_input_embeddings().weight
        merged.save_pretrained(tmp_path / "merged")
        again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
        assert again.state_dict().keys() == tiny_model().state_dict().keys()
        for model in (merged, again):
            found = model(**batch(), **queries)
            assert_close(found.logits, expected.logits)
            for layer_map, expected_map in zip(found.grounding_maps, expected.grounding_maps, strict=True):
                assert_close(layer_map, expected_map)
            assert torch.equal(model.generate(**prompt, max_new_tokens=5, do_sample=False), generated)


def test_only_matrices_decay(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    trainer.create_optimizer()
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    found = {name: decays.pop(id(parameter)) for name, parameter in trained(trainer.model).items()}
    assert not decays
    for name, parameter in trained(trainer.model).items():
        assert found[name] == (0.1 if parameter.dim() > 1 else 0.0), name


def test_resumed_training_is_uninterrupted_training(tmp_path: Path):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path, **arguments)
    whole.train()
    resumed = make_trainer(tmp_path, **arguments)
    steps = []
    resumed.model.register_forward_pre_hook(lambda *_: steps.append(resumed.state.global_step))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps == [2, 3]
    expected = parameters_of(whole.model)
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize("lora", [False, True])
def test_table_counts_what_trains_once(tmp_path: Path, lora: bool):
    model = make_trainer(tmp_path, Stage(4, "all", language_model=True), lora).model
    plain = sum(p.numel() for p in tiny_model().parameters())
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    *_, language_model, total = [
        [int(word.replace(",", "")) for word in line.split()[1:]] for line in parameter_table(model).splitlines()[1:]
    ]
    assert (adapters > 0) == lora
    assert total == [plain + adapters, sum(p.numel() for p in trained(model).values())]
    assert language_model[1] == (adapters if lora else language_model[0])


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, lora: bool):
    ends = {}
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, lora=lora, activation_checkpointing=checkpointing, max_steps=2)
        trainer.train()
        towers = [module for module in trainer.model.modules() if isinstance(module, AgeVlmVisionModel)]
        assert len(towers) == 1 + lora  # peft trains a copy
        assert {stage.grad_checkpointing for tower in towers for stage in tower.timm_model.stages} == {checkpointing}
        ends[checkpointing] = parameters_of(trainer.model)
    for name, parameter in ends[True].items():
        assert torch.equal(parameter, ends[False][name]), name


# Stage 4's recipe


def arguments_of(out: Path, start: Path, **over: Any) -> tuple[ModelArguments, DataArguments, GuidedSFTConfig]:
    model = {"model_name_or_path": str(start), "variant": "age-vlm-lm", "use_peft": True, "lora_r": 4}
    names = ModelArguments.__dataclass_fields__
    training = {**CPU, "per_device_train_batch_size": 4, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    training |= {"learning_rate": 1e-2, "warmup_steps": 0, "guidance_query": "question", "bf16": False}
    return (
        ModelArguments(**model | {name: value for name, value in over.items() if name in names}),
        DataArguments(num_scenes=16),
        GuidedSFTConfig(
            output_dir=str(out), **training | {name: value for name, value in over.items() if name not in names}
        ),
    )


@pytest.fixture(scope="module")
def stage_3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage3")
    model = tiny_model()
    model.config.training_stage = 3
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_stage_four_saves_the_merged_model(tmp_path: Path, stage_3: Path, monkeypatch: pytest.MonkeyPatch):
    trained_model = {}

    save = GuidedSFTTrainer.save_final_model

    def keep_and_save(trainer: GuidedSFTTrainer) -> None:
        model = trainer.model.eval()
        with torch.no_grad():
            trained_model["logits"] = model(**batch()).logits
        trained_model["plain"] = isinstance(model, PeftModel)
        save(trainer)

    monkeypatch.setattr(GuidedSFTTrainer, "save_final_model", keep_and_save)
    run_stage(4, *arguments_of(tmp_path / "out", stage_3))
    names = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "processor_config.json", "training.json"} <= names
    assert not any("adapter" in name for name in names)
    assert (tmp_path / "out" / "checkpoint-4" / "adapter_model.safetensors").exists()
    merged = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    # Through transformers' own integration of peft, whose version it checks in other places than peft does.
    with_adapters = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "out" / "checkpoint-4").eval()
    assert merged.config.training_stage == 4
    with torch.no_grad():
        found, start = merged(**batch()).logits, tiny_model()(**batch()).logits
        unmerged = with_adapters(**batch()).logits
    assert trained_model["plain"]
    for logits in (found, unmerged):
        assert_close(logits, trained_model["logits"])
    assert (found - start).abs().max() > 0.1
    before, after = tiny_model().state_dict(), merged.state_dict()
    for name in before:
        adapted = name.removesuffix(".weight") in ADAPTED
        elsewhere = ("vision_tower", "multi_modal_projector", "layers.1.", "layers.3.")
        if not any(part in name for part in elsewhere):
            assert torch.equal(before[name], after[name]) != adapted, name


def test_stage_four_goes_on_from_adapters(tmp_path: Path, stage_3: Path):
    run_stage(4, *arguments_of(tmp_path / "whole", stage_3))
    run_stage(4, *arguments_of(tmp_path / "stopped", stage_3))
    (tmp_path / "stopped" / "model.safetensors").unlink()
    resume = {"resume_from_checkpoint": str(tmp_path / "stopped" / "checkpoint-2")}
    run_stage(4, *arguments_of(tmp_path / "stopped", stage_3, **resume))
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, stopped[name]), name


def test_adapters_need_an_llm_that_trains(tmp_path: Path, stage_3: Path):
    with pytest.raises(ValueError, match="does not train in stage 4 of age-vlm.*--variant age-vlm-lm"):
        run_stage(4, *arguments_of(tmp_path, stage_3, variant="age-vlm"))


def test_adapters_are_not_pushed(tmp_path: Path, stage_3: Path):
    with pytest.raises(ValueError, match="adapters that do not load by themselves"):
        run_stage(4, *arguments_of(tmp_path, stage_3, push_to_hub=True))


def test_adapters_need_whole_weights(tmp_path: Path, stage_3: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recipes.training.stage.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="plain data parallelism"):
        run_stage(4, *arguments_of(tmp_path, stage_3))


def test_adapters_under_zero_3_would_be_checkpointed_reentrantly(tmp_path: Path):
    model = tiny_model()
    args = GuidedSFTConfig(output_dir=str(tmp_path), **CPU)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    with pytest.raises(ValueError, match="reentrant activation checkpointing.* Set `activation_checkpointing=False`"):
        GuidedSFTTrainer(
            model,
            args,
            train_dataset=dataset(),
            processing_class=tiny_processor(),
            peft_config=lora_config(model, STAGE_4),
        )
