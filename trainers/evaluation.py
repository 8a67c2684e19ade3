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
"""Evaluation on the way, and predictions."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput


# What an evaluation says of a set, if nothing is computed besides
METRICS = ("loss", "lm_loss", "guidance_loss", "in_mask_mass", "uniform_mass", "sink_mass", "entropy")
METRICS += ("mean_token_accuracy", "guided_rows", "dropped_regions", "skipped_rows", "num_tokens", "runtime")
METRICS += ("samples_per_second", "steps_per_second")

# Of a batch: what the loss and the log are made of
NOT_FOR_LOGITS = ("labels", "query_masks", "region_masks", "dropped_regions", "skipped_rows")


def likeliest_tokens(logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """
    The token that the model would write after each token, `(batch_size, length)`, of logits `(batch_size, length,
    vocab_size)`: what is at place t is for label t + 1. The logits of a whole evaluation set fit into no memory.
    """
    return logits.argmax(dim=-1)


class EvaluationMixin:
    """
    What [`GuidedSFTTrainer`] does otherwise than [`transformers.Trainer`] and TRL when it evaluates and predicts: what it
    measures itself has the name of its set, as the loss has.
    """

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Also returns what the trainer measures, and TRL does, which both would add to the log without a set's name."""
        self._sums["eval"].zero_()
        self._metrics["eval"].clear()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        means = {name: sum(values) / len(values) for name, values in self._metrics["eval"].items()}
        self._metrics["eval"].clear()
        for name, value in (means | self._means("eval")).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Logits come from a forward pass of their own: TRL (1.16) has none from the one that gives the loss."""
        if prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        plain = {name: value for name, value in inputs.items() if name not in NOT_FOR_LOGITS}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, dict(inputs))
            logits = model(**plain).logits
        return loss, logits, inputs["labels"]

    def check_best_metric(self) -> None:
        """
        Raises `ValueError` if the metric by which the best checkpoint is known is none of those that an evaluation gives. It
        would be missed only after the first one.
        """
        metric = self.args.metric_for_best_model
        if metric is None or self.compute_metrics is not None or self.eval_dataset is None:
            return
        sets = [f"eval_{name}" for name in self.eval_dataset] if isinstance(self.eval_dataset, dict) else ["eval"]
        found = [f"{name}_{kind}" for name in sets for kind in METRICS]
        if f"eval_{metric.removeprefix('eval_')}" not in found:
            losses = [f"{name}_{kind}" for name in sets for kind in ("loss", "lm_loss")]
            raise ValueError(
                f"`metric_for_best_model` is {metric!r}, which no evaluation gives. Name one that it gives, such as "
                f"{', '.join(losses)}."
            )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError as error:  # one that depends on the rows, as the guidance loss does, or that is computed
            raise ValueError(error.args[0]) from error
