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
"""Evaluation on the way, best checkpoints, early stopping and predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_guided_sft_trainer import CPU, SCALARS, dataset, independent, make_trainer
from testing_utils import picture, region, row, tiny_model, tiny_processor, up_to_rounding
from transformers.trainer_utils import EvalPrediction

from trainers import GuidedSFTConfig, GuidedSFTTrainer, get_stage, lora_config


OTHER = [row("A?", "B.", images=[picture(seed=7)], regions=[region()])]
SETS = {"own": dataset(), "other": dataset(OTHER)}


def trainer_of(out: Path, compute: dict[str, Any] | None = None, **arguments: Any) -> GuidedSFTTrainer:
    """A trainer with two evaluation sets."""
    model = tiny_model()
    adapters = {"peft_config": lora_config(model, get_stage(4), r=2)} if arguments.pop("lora", False) else {}
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "warmup_steps": 0, **CPU} | arguments
    return GuidedSFTTrainer(
        model,
        GuidedSFTConfig(output_dir=str(out), **arguments),
        train_dataset=dataset(),
        eval_dataset=SETS,
        processing_class=tiny_processor(),
        **(compute or {}),
        **adapters,
    )


def every_step(metric: str, **arguments: Any) -> dict[str, Any]:
    """Arguments of a training that becomes worse, evaluated at each step."""
    return {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": False,
        "learning_rate": 0.5,
        **arguments,
    }


def test_each_set_has_numbers_of_its_own(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    expected = {"own": independent(trainer.model), "other": independent(trainer.model, OTHER)}
    metrics = trainer.evaluate()
    for name, values in expected.items():
        for kind in SCALARS:
            assert metrics[f"eval_{name}_{kind}"] == up_to_rounding(values[kind]), (name, kind)
    logs = trainer.state.log_history
    for name, other, log in zip(SETS, reversed(SETS), logs, strict=True):
        assert {f"eval_{name}_{kind}" for kind in (*SCALARS, "loss", "entropy", "mean_token_accuracy")} <= log.keys()
        assert not any(key.startswith(f"eval_{other}") for key in log) and "eval_lm_loss" not in log


def test_predictions_are_the_likeliest_tokens(tmp_path: Path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=2)
    expected = independent(trainer.model, OTHER)
    found = trainer.predict(dataset(OTHER))
    batch = trainer.data_collator(OTHER)
    with torch.no_grad():
        logits = trainer.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], pixel_values=batch["pixel_values"]
        ).logits
    assert np.array_equal(found.predictions, logits.argmax(-1).numpy())
    assert np.array_equal(found.label_ids, batch["labels"].numpy())
    for kind in SCALARS:
        assert found.metrics[f"test_{kind}"] == up_to_rounding(expected[kind]), kind
    # and nothing of it is left for the next evaluation
    metrics = trainer.evaluate(dataset())
    assert metrics["eval_lm_loss"] == up_to_rounding(independent(trainer.model)["lm_loss"])
    assert "test_lm_loss" not in metrics


def test_metrics_are_computed_of_rows_of_all_lengths(tmp_path: Path):
    seen = []

    def accuracy(predicted: EvalPrediction) -> dict[str, float]:
        seen.append(predicted.predictions)
        is_label = predicted.label_ids[:, 1:] != -100
        return {"right": (predicted.predictions[:, :-1] == predicted.label_ids[:, 1:])[is_label].mean().item()}

    compute = {"compute_metrics": accuracy}
    trainer = trainer_of(tmp_path, compute, per_device_eval_batch_size=2, metric_for_best_model="own_right")
    metrics = trainer.evaluate()
    assert metrics.keys() >= {"eval_own_right", "eval_other_right"}
    assert seen[0].ndim == 2 and len(seen[0]) == 4 and seen[0].dtype.kind == "i"
    compute = {
        "compute_metrics": lambda predicted: {"width": predicted.predictions.shape[-1]},
        "preprocess_logits_for_metrics": lambda logits, labels: logits[..., :3],
    }
    assert trainer_of(tmp_path, compute, per_device_eval_batch_size=4).evaluate()["eval_other_width"] == 3


@pytest.mark.parametrize("lora", [False, True])
def test_the_best_model_is_saved_in_the_end(tmp_path: Path, lora: bool):
    trainer = trainer_of(tmp_path, lora=lora, **every_step("eval_other_lm_loss", greater_is_better=True))
    trainer.train()
    losses = [log["eval_other_lm_loss"] for log in trainer.state.log_history if "eval_other_lm_loss" in log]
    best = int(np.argmax(losses))
    assert len(losses) == 4 and trainer.state.best_metric == losses[best] and best < 3
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best + 1}")
    trainer.save_final_model()
    if not lora:
        saved, expected = (
            load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / f"checkpoint-{best + 1}")
        )
        assert all(torch.equal(saved[name], expected[name]) for name in expected)
    again = GuidedSFTTrainer(
        str(tmp_path), GuidedSFTConfig(output_dir=str(tmp_path / "again"), **CPU), train_dataset=dataset()
    )
    assert again.evaluate(dataset(OTHER))["eval_lm_loss"] == up_to_rounding(losses[best])


def test_it_stops_when_it_becomes_worse(tmp_path: Path):
    trainer = trainer_of(tmp_path, max_steps=8, **every_step("other_lm_loss", early_stopping_patience=2))
    trainer.train()
    losses = [log["eval_other_lm_loss"] for log in trainer.state.log_history if "eval_other_lm_loss" in log]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 8 and all(loss > losses[best] for loss in losses[best + 1 :])


def test_a_resumed_training_has_no_new_patience(tmp_path: Path):
    arguments = {"max_steps": 8, **every_step("other_lm_loss", early_stopping_patience=2)}
    whole = trainer_of(tmp_path / "whole", **arguments)
    whole.train()
    last = whole.state.global_step
    resumed = trainer_of(tmp_path / "whole", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{last - 1}"))
    assert resumed.state.global_step == last


@pytest.mark.parametrize("metric", ["loss", "eval_lm_loss", "eval_own_accuracy", "train_loss"])
def test_a_metric_that_no_evaluation_gives_is_refused_at_once(tmp_path: Path, metric: str):
    with pytest.raises(
        ValueError, match="which no evaluation gives.* eval_own_loss, eval_own_lm_loss, eval_other_loss"
    ):
        trainer_of(tmp_path, **every_step(metric))


def test_a_metric_that_these_rows_do_not_give_is_a_sentence(tmp_path: Path):
    plain = dataset([row()])
    trainer = make_trainer(tmp_path, eval_dataset=plain, **every_step("guidance_loss"))
    with pytest.raises(ValueError, match="'eval_guidance_loss', which is not found in the evaluation metrics"):
        trainer.train()


@pytest.mark.parametrize("arguments", [{"early_stopping_patience": 2}, {"early_stopping_threshold": 0.1}])
def test_early_stopping_without_a_best_model_is_refused(tmp_path: Path, arguments: dict[str, Any]):
    with pytest.raises(ValueError, match="`early_stopping_(patience` needs|threshold` does nothing)"):
        GuidedSFTConfig(output_dir=str(tmp_path), **arguments, **CPU)
