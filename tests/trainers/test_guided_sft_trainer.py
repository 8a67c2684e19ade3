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
import contextlib
import copy
import gc
import inspect
import logging
import math
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from testing_utils import (
    GRADIENT_LENGTH,
    assert_close,
    box_mask,
    guidance_by_hand,
    picture,
    region,
    row,
    tiny_model,
    tiny_processor,
    tolerance,
    up_to_rounding,
)
from torch.nn import functional as F
from trl import SFTConfig, SFTTrainer

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from trainers import (
    BrokenRowError,
    DataCollatorForGuidedVisionLanguageModeling,
    GuidedSFTConfig,
    GuidedSFTTrainer,
    Stage,
    apply_stage,
    get_stage,
)
from trainers.checkpointing import CheckpointMixin
from trainers.evaluation import EvaluationMixin
from trainers.hub import HubMixin


FEATURES = Features(
    {
        "images": List(Image()),
        "messages": List({"role": Value("string"), "content": Value("string")}),
        "regions": List(
            {
                "mask": {"size": List(Value("int64")), "counts": Value("string")},
                "image": Value("int64"),
                "text": Value("string"),
                "message": Value("int64"),
            }
        ),
    }
)
CPU = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
SCALARS = ("lm_loss", "guidance_loss", "in_mask_mass", "uniform_mass")


def rows() -> list[dict[str, Any]]:
    """Four rows that differ in pictures, labels and regions."""
    return [
        row(regions=[region(text="red cup"), region(box_mask(rows=(30, 64)))]),
        row("A?", "B.", images=[]),
        row("Is there a dog?", "No.", images=[picture(seed=1)]),
        row("A cup?", "Yes, a cup. " * 3, images=[picture(seed=2)], regions=[region(box_mask(columns=(40, 70)))]),
    ]


def dataset(the_rows: list[dict[str, Any]] | None = None) -> Dataset:
    return Dataset.from_list(rows() if the_rows is None else the_rows, features=FEATURES)


def sgd(model: AgeVlmForConditionalGeneration, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)


def make_trainer(
    out: Path,
    model: AgeVlmForConditionalGeneration | None = None,
    train_dataset: Dataset | None = None,
    eval_dataset: Dataset | None = None,
    lr: float | None = None,
    **arguments: Any,
) -> GuidedSFTTrainer:
    """A trainer on the four rows; with `lr`, it takes plain unclipped steps of gradient descent."""
    model = tiny_model() if model is None else model
    arguments = {"max_steps": 1, "per_device_train_batch_size": 4, **CPU} | arguments
    if lr is not None:
        arguments |= {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}
    return GuidedSFTTrainer(
        model=model,
        args=GuidedSFTConfig(output_dir=str(out), **arguments),
        processing_class=tiny_processor(),
        train_dataset=dataset() if train_dataset is None else train_dataset,
        eval_dataset=eval_dataset,
        **({} if lr is None else {"optimizers": (sgd(model, lr), None)}),
    )


@contextlib.contextmanager
def logs_of(caplog: pytest.LogCaptureFixture, name: str) -> Iterator[None]:
    """Catches what a package logs."""
    logger = logging.getLogger(name)
    logger.addHandler(caplog.handler)
    try:
        yield
    finally:
        logger.removeHandler(caplog.handler)


def logged(trainer: GuidedSFTTrainer, name: str) -> list[float]:
    return [logs[name] for logs in trainer.state.log_history if name in logs]


def parameters_of(model: AgeVlmForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def independent(
    model: AgeVlmForConditionalGeneration, the_rows: list[dict[str, Any]] | None = None, normalization: str = "sum"
) -> dict[str, float]:
    """What should be logged for rows that make one step, from a plain forward pass of each row alone."""
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())
    lm_sum = num_labels = 0.0
    guided = []
    for the_row in rows() if the_rows is None else the_rows:
        batch = collate([the_row])
        region_masks = batch.pop("region_masks", None)
        for name in ("dropped_regions", "skipped_rows"):
            del batch[name]
        labels = batch.pop("labels")
        with torch.no_grad():
            outputs = model(**batch)
        lm_sum += F.cross_entropy(outputs.logits[0, :-1].double(), labels[0, 1:], reduction="sum").item()
        num_labels += (labels[0, 1:] != -100).sum().item()
        if region_masks is not None:
            guided.append(guidance_by_hand(outputs.grounding_maps, region_masks, normalization))
    num_regions = sum(part[3] for part in guided)
    means = [sum(part[n] * part[3] for part in guided) / max(num_regions, 1) for n in range(3)]
    return {"lm_loss": lm_sum / num_labels, "guided_rows": len(guided)} | dict(zip(SCALARS[1:], means, strict=True))


# What it overrides

# Much of it is private to transformers and TRL: a version that renames or calls it otherwise has to be noticed.
OVERRIDDEN = {
    GuidedSFTTrainer: {
        "_get_dataloader",
        "_get_eval_sampler",
        "_get_train_sampler",
        "_prepare_dataset",
        "_remove_unused_columns",
        "_set_signature_columns_if_needed",
        "compute_loss",
        "get_batch_samples",
        "get_decay_parameter_names",
        "log",
    },
    CheckpointMixin: {
        "_finalize_training",
        "_get_dataloader",
        "_get_output_dir",
        "_init_training_state",
        "_load_best_model",
        "_load_from_checkpoint",
        "_load_optimizer_and_scheduler",
        "_push_from_checkpoint",
        "_save",
        "_save_checkpoint",
        "save_model",
        "train",
    },
    EvaluationMixin: {"_determine_best_metric", "evaluation_loop", "prediction_step"},
    HubMixin: {"_finish_current_push", "_push_from_checkpoint", "create_model_card", "push_to_hub"},
}


@pytest.mark.parametrize("part", OVERRIDDEN)
def test_overridden_methods_take_what_their_parents_take(part: type):
    def parameters(method: Callable) -> list[tuple]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]

    own = {name: method for name, method in vars(part).items() if inspect.isfunction(method) and name != "__init__"}
    assert {name for name in own if hasattr(SFTTrainer, name)} == OVERRIDDEN[part]
    for name in OVERRIDDEN[part]:
        assert parameters(own[name]) == parameters(getattr(SFTTrainer, name)), name


def test_columns_that_are_kept(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    for _ in range(2):
        trainer._set_signature_columns_if_needed()
        columns = trainer._signature_columns
        assert {"images", "messages", "regions", "id", "length"} <= set(columns) and len(columns) == len(set(columns))


def test_a_log_waits_for_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = GuidedSFTTrainer.log

    def log_alone(trainer: GuidedSFTTrainer, *args: Any) -> None:
        with monkeypatch.context() as patch:
            for name in ("reduce", "gather", "gather_for_metrics", "wait_for_everyone"):
                patch.setattr(trainer.accelerator, name, lambda *_, **__: pytest.fail("a collective"))
            log(trainer, *args)

    monkeypatch.setattr(GuidedSFTTrainer, "log", log_alone)
    trainer = make_trainer(tmp_path, eval_dataset=dataset())
    trainer.train()
    trainer.evaluate()
    assert len(logged(trainer, "lm_loss")) == len(logged(trainer, "eval_lm_loss")) == 1


# What it takes


def test_a_checkpoint_trains_by_its_path(tmp_path: Path):
    model, expected = tiny_model(), tiny_model()
    model.half().save_pretrained(tmp_path / "start")
    tiny_processor().save_pretrained(tmp_path / "start")
    args = GuidedSFTConfig(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, **CPU)
    trainer = GuidedSFTTrainer(str(tmp_path / "start"), args, train_dataset=dataset())
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert logged(trainer, "lm_loss")[0] == pytest.approx(independent(expected)["lm_loss"], rel=1e-2)


def test_a_collator_that_is_given_collates(tmp_path: Path):
    """As it would for TRL: the pictures are pictures, and only what the model takes has to be there."""
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())
    seen = []

    def collate_two(the_rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.extend(the_rows)
        own = ("dropped_regions", "skipped_rows")
        return {name: tensor for name, tensor in collate(the_rows[:2]).items() if name not in own}

    model = tiny_model()
    expected = independent(model, rows()[:2])
    args = GuidedSFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        **CPU,
    )
    trainer = GuidedSFTTrainer(model, args, collate_two, dataset(), processing_class=tiny_processor())
    trainer.train()
    assert all(isinstance(image, PIL.Image.Image) for the_row in seen for image in the_row["images"])
    for name in SCALARS:
        assert logged(trainer, name)[0] == pytest.approx(expected[name], rel=1e-4), name


def test_a_failing_start_leaves_the_arguments_alone(tmp_path: Path):
    args = GuidedSFTConfig(output_dir=str(tmp_path), **CPU)
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        GuidedSFTTrainer(tiny_model(), args, processing_class=tiny_processor())
    assert args.assistant_only_loss
    with pytest.raises(ValueError, match="pass one as `processing_class`"):
        GuidedSFTTrainer(tiny_model(), args, train_dataset=dataset())


def test_trls_card_names_the_paper(tmp_path: Path):
    make_trainer(tmp_path).create_model_card("me/model")
    card = (tmp_path / "README.md").read_text()
    assert "https://huggingface.co/papers/2511.17793" in card and "@article{mahajan2025attention," in card
    assert "Attention Guided Alignment in Efficient Vision-Language Models" in card


# The losses


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("normalization", ["sum", "max"])
def test_logged_numbers_are_those_of_the_batch(tmp_path: Path, checkpointing: bool, normalization: str):
    model = tiny_model()
    expected = independent(model, normalization=normalization)
    trainer = make_trainer(
        tmp_path,
        model,
        max_steps=2,
        learning_rate=1e-3,
        warmup_steps=0,
        activation_checkpointing=checkpointing,
        guidance_normalization=normalization,
    )
    trainer.train()
    for name, value in expected.items():
        first, second = logged(trainer, name)
        assert first == up_to_rounding(value), name
        assert name in ("guided_rows", "uniform_mass") or first != second, name
    assert logged(trainer, "dropped_regions") == logged(trainer, "skipped_rows") == [0, 0]
    assert expected["guided_rows"] == 2


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_loss_is_the_sum_of_both(tmp_path: Path, weight: float):
    trainer = make_trainer(tmp_path, guidance_weight=weight)
    trainer.train()
    expected = logged(trainer, "lm_loss")[0] + weight * logged(trainer, "guidance_loss")[0]
    assert logged(trainer, "loss")[0] == up_to_rounding(expected)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_step_follows_the_gradient_of_the_sum(tmp_path: Path, checkpointing: bool):
    """Against the gradient of the losses written down anew, on the plain model."""
    model = tiny_model()
    before = parameters_of(model)
    batch = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())(rows())
    masks = batch.pop("region_masks")
    del batch["dropped_regions"], batch["skipped_rows"]
    reference = copy.deepcopy(model).train()
    outputs = reference(**batch, use_cache=False)
    guided = masks.sum(-1) > 0
    masks = masks[guided]
    losses = [-torch.log(2 * (p[guided] * masks).sum(-1) / (1 + masks.sum(-1))).mean() for p in outputs.grounding_maps]
    (outputs.loss + 0.5 * sum(losses) / len(losses)).backward()

    make_trainer(tmp_path, model, lr=0.1, guidance_weight=0.5, activation_checkpointing=checkpointing).train()
    for name, parameter in reference.named_parameters():
        step = (before[name] - model.get_parameter(name).detach()) / 0.1
        kept = tolerance(step.dtype, 1) * before[name].abs().max().item()  # of a parameter, where it is written
        assert_close(step, parameter.grad, GRADIENT_LENGTH, name, atol=kept / 0.1)


@pytest.mark.parametrize("stage", [get_stage(3), get_stage(4, "age-vlm-lm")], ids=["stage 3", "stage 4, LLM trained"])
def test_checkpointing_changes_no_gradient(tmp_path: Path, stage: Stage):
    gradients, logs, runs = [], [], []
    for checkpointing in (True, False):
        model, modules_run = tiny_model(), []
        apply_stage(model, stage)
        layers = model.model.language_model.layers
        for module in (layers[0].self_attn, layers[1].cross_attn, model.model.vision_tower.stages[-1].blocks[-1]):
            module.register_forward_pre_hook(lambda module, *_, runs=modules_run: runs.append(type(module).__name__))
        trainer = make_trainer(tmp_path, model, lr=0.1, activation_checkpointing=checkpointing)
        trainer.optimizer.register_step_pre_hook(
            lambda *_, model=model: gradients.append(
                {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
            )
        )
        trainer.train()
        logs.append({name: logged(trainer, name) for name in ("loss", "grad_norm", *SCALARS)})
        runs.append(sorted(modules_run))
    assert runs[0] == sorted(runs[1] * 2)  # with checkpointing, each runs a second time for its gradient
    assert logs[0] == logs[1] and all(len(values) == 1 for values in logs[0].values())
    assert all(torch.equal(gradients[0][name], expected) for name, expected in gradients[1].items())
    assert gradients[0].keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated")  # and works until TRL 2
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_guidance_moves_the_queries_and_keys(tmp_path: Path, label_smoothing: float):
    models = [tiny_model(), tiny_model()]
    for model, weight in zip(models, (0.0, 1.0), strict=True):
        make_trainer(tmp_path, model, lr=0.1, guidance_weight=weight, label_smoothing_factor=label_smoothing).train()
    without, with_guidance = (parameters_of(model) for model in models)
    for layer in (1, 3):
        for projection in ("q_proj", "k_proj"):
            name = f"model.language_model.layers.{layer}.cross_attn.{projection}.weight"
            assert (without[name] - with_guidance[name]).abs().max() > 1e-5, name


def test_training_raises_the_mass_in_the_masks(tmp_path: Path):
    model = tiny_model()
    apply_stage(model, get_stage(3))
    trainer = make_trainer(tmp_path, model, max_steps=15, learning_rate=5e-3, warmup_steps=0)
    trainer.train()
    masses = logged(trainer, "in_mask_mass")
    assert masses[-1] > masses[0] + 0.1


@pytest.mark.parametrize("splits", [((4, 1), (2, 2), (1, 4)), ((3, 1), (1, 3))], ids=["4 rows", "3 rows, then 1"])
def test_accumulated_batches_are_one_batch(tmp_path: Path, splits: tuple[tuple[int, int], ...]):
    found = {}
    for batch_size, accumulation in splits:
        model = tiny_model()
        trainer = make_trainer(
            tmp_path,
            model,
            lr=0.05,
            max_steps=2,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        logs = {name: logged(trainer, name) for name in (*SCALARS, "loss", "guided_rows", "grad_norm")}
        found[accumulation] = parameters_of(model), logs
    (parameters, logs), initial = found[1], tiny_model().requires_grad_(False)
    assert len(logs["lm_loss"]) == 2 and sum(logs["guided_rows"]) == (4 if len(splits) == 3 else 2)
    for _, accumulation in splits[1:]:
        for name, parameter in found[accumulation][0].items():
            start = initial.get_parameter(name)
            kept = tolerance(start.dtype, 1) * start.abs().max().item()  # of a parameter, at each of the two steps
            assert_close(parameter - start, parameters[name] - start, GRADIENT_LENGTH, name, atol=2 * kept)
        for name, values in found[accumulation][1].items():
            assert values == up_to_rounding(logs[name], GRADIENT_LENGTH), (accumulation, name)


# Where nothing is guided, it is TRL's trainer


def train_with_trl(out: Path, train_dataset: Dataset | IterableDataset, **arguments: Any) -> SFTTrainer:
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor(), max_length=2048)

    def without_regions(the_rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        own = ("query_masks", "region_masks", "dropped_regions", "skipped_rows")
        return {name: tensor for name, tensor in collate(the_rows).items() if name not in own}

    model = tiny_model()
    args = SFTConfig(
        output_dir=str(out),
        bf16=False,
        activation_checkpointing=True,  # TRL's default has its old name
        remove_unused_columns=False,
        **arguments,
        **CPU,
    )
    trainer = SFTTrainer(
        model, args, data_collator=without_regions, train_dataset=train_dataset, processing_class=tiny_processor()
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", ["weight 0", "no regions"])
def test_without_guidance_it_is_trls_trainer_to_the_bit(tmp_path: Path, case: str):
    """Five steps, of three rows and of the one that is left, in turns."""
    train_dataset = dataset(rows())
    if case == "no regions":  # of which only a stream may have none
        train_dataset = dataset([the_row | {"regions": []} for the_row in rows()]).to_iterable_dataset()
    same = {"learning_rate": 1e-3, "weight_decay": 0.0, "lr_scheduler_type": "linear", "warmup_steps": 0}
    same |= {"max_steps": 5, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    model = tiny_model()
    trainer = make_trainer(
        tmp_path / "guided",
        model,
        train_dataset,
        adam_beta2=0.999,
        guidance_weight=0.0 if case == "weight 0" else 1.0,
        **same,
    )
    trainer.train()
    trl = train_with_trl(tmp_path / "trl", train_dataset, **same)
    initial, found, expected = (parameters_of(m) for m in (tiny_model(), model, trl.model))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in expected.items())
    assert not any(torch.equal(found[name], initial[name]) for name in found)
    for name in ("loss", "grad_norm", "learning_rate", "entropy", "mean_token_accuracy", "num_tokens"):
        assert len(logged(trl, name)) == 5 and logged(trainer, name) == logged(trl, name), name
    assert bool(logged(trainer, "guidance_loss")) == (case == "weight 0")


def test_text_alone_trains(tmp_path: Path):
    model = tiny_model()
    before = parameters_of(model)
    trainer = make_trainer(
        tmp_path,
        model,
        dataset([row(images=[]), row("A?", "B.", images=[])]),
        learning_rate=1e-3,
        warmup_steps=0,
        guidance_weight=0.0,
    )
    trainer.train()
    after = parameters_of(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("cross_attn" in name or "vision" in name for name in changed)
    assert logged(trainer, "guided_rows") == [0]


# Evaluation


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_evaluation_logs_means_over_all_rows(tmp_path: Path, batch_size: int):
    trainer = make_trainer(tmp_path, eval_dataset=dataset(), per_device_eval_batch_size=batch_size)
    expected = independent(trainer.model)
    metrics = trainer.evaluate()
    for name in SCALARS:
        assert metrics[f"eval_{name}"] == up_to_rounding(expected[name]), name
    assert metrics["eval_guided_rows"] == 2 and "lm_loss" not in metrics
    if batch_size == 4:
        loss = metrics["eval_lm_loss"] + metrics["eval_guidance_loss"]
        assert metrics["eval_loss"] == up_to_rounding(loss)


def test_evaluation_during_training_keeps_the_numbers_apart(tmp_path: Path):
    other = [row("A?", "B.", images=[picture(seed=7)], regions=[region()])]
    model = tiny_model()
    expected = independent(model), independent(model, other)
    trainer = make_trainer(
        tmp_path,
        model,
        eval_dataset=dataset(other),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=2,
        learning_rate=0.0,
    )
    trainer.train()
    for name in SCALARS:
        assert logged(trainer, name) == up_to_rounding([expected[0][name]] * 2), name
        assert logged(trainer, f"eval_{name}") == up_to_rounding([expected[1][name]] * 2), name


@pytest.mark.parametrize("batch_size", [3, 4])
def test_evaluation_logs_what_training_logs(tmp_path: Path, batch_size: int):
    """On the same rows and weights: a step at learning rate 0, then the evaluation."""
    trainer = make_trainer(
        tmp_path, eval_dataset=dataset(), per_device_eval_batch_size=batch_size, learning_rate=0.0, weight_decay=0.0
    )
    trainer.train()
    trainer.evaluate()
    training, _, evaluation = trainer.state.log_history
    names = {*SCALARS, "guided_rows", "dropped_regions", "skipped_rows"}
    if batch_size == 4:  # of several batches, TRL logs the mean of the batches' means
        names |= {"loss", "entropy", "mean_token_accuracy"}
    for name in names:
        assert evaluation[f"eval_{name}"] == up_to_rounding(training[name]), name
    assert set(training) - {"grad_norm", "learning_rate", "epoch", "step"} == {
        name.removeprefix("eval_") for name in evaluation
    } - {"runtime", "samples_per_second", "steps_per_second", "epoch", "step"}


# The optimizer is the paper's


def test_norms_biases_and_layer_scales_do_not_decay(tmp_path: Path):
    trainer = make_trainer(tmp_path)
    trainer.create_optimizer()
    decays = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    kinds = {0.0: 0, 0.1: 0}
    for module_name, module in trainer.model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_norm = "norm" in type(module).__name__.lower()
            expected = 0.0 if is_norm or name in ("bias", "gamma") else 0.1
            assert decays[id(parameter)] == expected, f"{module_name}.{name}"
            kinds[expected] += 1
    assert min(kinds.values()) > 10


def test_hyperparameters_are_the_papers(tmp_path: Path):
    config = GuidedSFTConfig(output_dir=str(tmp_path), use_cpu=True)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.guidance_weight) == (1, 16, 1.0)
    assert (config.guidance_normalization, config.guidance_query, config.bf16) == ("sum", "answer", False)


def test_schedule_of_a_run_is_the_papers(tmp_path: Path):
    trainer = make_trainer(
        tmp_path,
        train_dataset=dataset([row("A?", "B.", images=[])] * 40),
        max_steps=-1,
        per_device_train_batch_size=1,
        guidance_weight=0.0,
    )
    trainer.create_optimizer()
    rates = []

    def note(optimizer: torch.optim.Optimizer, *_) -> None:
        assert isinstance(optimizer, torch.optim.AdamW)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        settings = {(group["betas"], group["eps"], group["lr"]) for group in optimizer.param_groups}
        assert len(settings) == 1
        betas, eps, rate = settings.pop()
        assert (betas, eps) == ((0.9, 0.95), 1e-8)
        rates.append(rate)

    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    warmup = math.ceil(0.03 * 40)
    expected = [1e-5 * step / warmup for step in range(warmup)]
    expected += [1e-5 * 0.5 * (1 + math.cos(math.pi * step / (40 - warmup))) for step in range(40 - warmup)]
    assert rates == pytest.approx(expected, rel=1e-6, abs=1e-12) and max(rates) == 1e-5


# Interruptions and faults


def test_checkpoint_is_a_whole_model(tmp_path: Path):
    model = tiny_model()
    make_trainer(tmp_path, model, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    assert {"modeling_agevlm.py", "processor_config.json", "tokenizer.json"} <= {p.name for p in folder.iterdir()}
    again = AgeVlmForConditionalGeneration.from_pretrained(folder)
    assert all(torch.equal(again.get_parameter(name), p) for name, p in model.named_parameters())


def test_chat_template_needs_no_generation_markers(tmp_path: Path):
    """LLMs' own templates rarely have them. The labels of the same words are the same."""
    processor = tiny_processor()
    assert "{%- generation %}" in processor.chat_template
    losses = []
    for template in (processor.chat_template, re.sub(r"{%- (end)?generation %}", "", processor.chat_template)):
        trainer = GuidedSFTTrainer(
            model=tiny_model(),
            args=GuidedSFTConfig(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, **CPU),
            processing_class=AgeVlmProcessor(processor.image_processor, processor.tokenizer, chat_template=template),
            train_dataset=dataset(),
        )
        trainer.train()
        losses += logged(trainer, "lm_loss")
    assert len(losses) == 2 and losses[0] == losses[1] and trainer.args.assistant_only_loss


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_reentrant_checkpointing_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="Reentrant activation checkpointing silently drops the gradient"):
        make_trainer(tmp_path, **{name: True, f"{name}_kwargs": {"use_reentrant": True}})
    assert not GuidedSFTConfig(output_dir=str(tmp_path), use_cpu=True, **{name: False}).activation_checkpointing


def test_reentrant_checkpointing_by_hand_is_refused(tmp_path: Path):
    model = tiny_model()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="Reentrant .* of the model's own `gradient_checkpointing_enable`"):
        make_trainer(tmp_path, model, activation_checkpointing=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    make_trainer(tmp_path, model, activation_checkpointing=False)


def test_checkpointing_is_not_reentrant_with_other_arguments(tmp_path: Path):
    trainer = make_trainer(tmp_path, activation_checkpointing_kwargs={"preserve_rng_state": False})
    trainer.train()  # by the guided maps, which a reentrant one does not take
    assert trainer.args.activation_checkpointing_kwargs == {"use_reentrant": False, "preserve_rng_state": False}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("guidance_normalization", "mean", "`guidance_normalization` has to be one of .* but is 'mean'"),
        ("guidance_query", "caption", "`guidance_query` has to be one of .* but is 'caption'"),
        ("broken_rows", "ignore", "`broken_rows` has to be one of .* but is 'ignore'"),
        ("guidance_weight", -1.0, "`guidance_weight` must not be negative, but is -1.0"),
        ("packing", True, "`packing` does nothing here: rows are not packed"),
        ("dataset_text_field", "words", "`dataset_text_field` does nothing here"),
        (
            "completion_only_loss",
            False,
            "`completion_only_loss` does nothing here: only the assistant's words are labels",
        ),
        ("assistant_only_loss", False, "`assistant_only_loss=False` is not supported"),
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, argument: str, value: Any, message: str):
    with pytest.raises(ValueError, match=message):
        GuidedSFTConfig(output_dir=str(tmp_path), use_cpu=True, **{argument: value})


@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_rows_without_a_chat_are_refused(tmp_path: Path, which: str):
    with pytest.raises(ValueError, match=r"has the columns \['images', 'regions'\], but none of a chat"):
        make_trainer(tmp_path, **{which: dataset().remove_columns("messages")})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("which", ["train_dataset", "eval_dataset"])
def test_a_data_set_without_rows_is_refused(tmp_path: Path, which: str, streaming: bool):
    empty = dataset().select([])
    empty = dataset().to_iterable_dataset().take(0) if streaming else empty
    purpose = {"train_dataset": "to train on", "eval_dataset": "to evaluate on"}[which]
    with pytest.raises(ValueError, match=f"^The data set {purpose} has no rows.$"):
        make_trainer(tmp_path, **{which: empty})
    with pytest.raises(ValueError, match="^The data set 'other' to evaluate on has no rows.$"):
        make_trainer(tmp_path, eval_dataset={"one": dataset(), "other": empty})


def broken_rows() -> Dataset:
    the_rows = rows()
    the_rows[2]["images"] = [{"bytes": b"not an image", "path": None}]
    return dataset(the_rows)


def test_broken_image_stops_and_its_row_is_named(tmp_path: Path):
    with pytest.raises(BrokenRowError, match="begins with 'Is there a dog.*image 0 cannot be read"):
        make_trainer(tmp_path, train_dataset=broken_rows()).train()


def test_broken_image_is_skipped_and_counted(tmp_path: Path):
    model = tiny_model()
    expected = independent(model, [rows()[n] for n in (0, 1, 3)])
    trainer = make_trainer(tmp_path, model, broken_rows(), broken_rows="skip")
    trainer.train()
    assert logged(trainer, "skipped_rows") == [1]
    assert logged(trainer, "lm_loss")[0] == up_to_rounding(expected["lm_loss"])


def test_a_step_of_broken_rows_alone_trains_nothing_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    the_rows = rows()
    the_rows[1]["images"] = [{"bytes": b"not an image", "path": None}]
    model = tiny_model()
    trainer = make_trainer(
        tmp_path,
        model,
        dataset(the_rows[:3]),
        lr=0.1,
        broken_rows="skip",
        per_device_train_batch_size=1,
        max_steps=3,
        train_sampling_strategy="sequential",
        weight_decay=0.0,
    )
    states = []
    model.model.register_forward_pre_hook(lambda *_: states.append(parameters_of(model)))
    with logs_of(caplog, "trainers"):
        trainer.train()
    assert [entry["skipped_rows"] for entry in trainer.state.log_history[:3]] == [0, 1, 0]
    assert logged(trainer, "loss")[1] == 0 and len(logged(trainer, "lm_loss")) == 2
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(states, states[1:], strict=False)]
    assert moved == [True, False]  # by the first step, not by the second
    assert any((parameters_of(model)[name] != value).any() for name, value in states[2].items())
    assert "All 1 rows since the last log were broken: nothing was trained." in caplog.text


def test_dropped_regions_are_counted(tmp_path: Path):
    empty = region(box_mask() & False)
    trainer = make_trainer(tmp_path, train_dataset=dataset([row(regions=[region(), empty, empty])]))
    trainer.train()
    assert logged(trainer, "dropped_regions") == [2] and logged(trainer, "guided_rows") == [1]


def test_lost_maps_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(trainer, "_base_model", torch.nn.Identity)  # one that does not run
    with pytest.raises(RuntimeError, match="the model returned nothing of its attention"):
        trainer.train()


def test_model_does_not_keep_its_trainer_alive(tmp_path: Path):
    model = tiny_model()
    trainer = make_trainer(tmp_path, model)
    trainer.train()
    trainer_alive = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert trainer_alive() is None
    assert not model.model._forward_hooks


def test_streamed_data_trains(tmp_path: Path):
    model = tiny_model()
    expected = independent(model)
    trainer = make_trainer(tmp_path, model, dataset().to_iterable_dataset())
    trainer.train()
    for name in SCALARS:
        assert logged(trainer, name)[0] == up_to_rounding(expected[name]), name
