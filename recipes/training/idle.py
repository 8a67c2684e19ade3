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
"""Options that would do nothing, which is said instead of ignoring them."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from recipes.training.arguments import DataArguments, ModelArguments, PartsArguments
from recipes.training.record import public_name
from trainers import GuidedSFTConfig, Stage
from trainers.stages import CONCATENATION


PARTS = tuple(field.name for field in fields(PartsArguments))
CROSS_ATTENTION = (
    "cross_attention_layers",
    "cross_attention_intermediate_size",
    "use_visual_positions",
    "attention_sink",
)
LORA = ("lora_r", "lora_alpha", "lora_dropout")
# Of the trainer's, what says how and how often rows are evaluated
EVALUATION = ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "do_eval")
EVALUATION += ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
EVALUATION += ("early_stopping_patience", "early_stopping_threshold")
PREDICTIONS = ("prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches")
PREDICTIONS += ("eval_use_gather_object", "eval_accumulation_steps")


def idle_options(
    stage: Stage, arguments: ModelArguments, data: DataArguments, training: GuidedSFTConfig
) -> Iterator[tuple[Collection[str], str]]:
    """Options that do nothing where the others are as they are, and why."""
    names = [data.dataset_name, data.masks_name, *(data.eval_dataset_name or [])]
    yield PREDICTIONS, "they are of metrics that are computed of predictions, which a stage has none of"
    # It would leave the weights so, and nothing after that save what was trained.
    yield ("bf16_full_eval", "fp16_full_eval"), "a stage evaluates the weights that it trains (see `--bf16`)"
    yield ("do_train", "do_predict"), "a stage trains, and is evaluated where `--eval_dataset_name` says on what"
    yield ("remove_unused_columns",), "a stage has no use for other columns"
    yield ("trust_remote_code",), "a stage runs no code of a checkpoint"
    if arguments.model_name_or_path is None:
        yield ("model_revision",), "there is no `--model_name_or_path` that it would be of"
        if Path(arguments.text).exists():
            yield ("text_revision",), f"{arguments.text} is on this machine"
    elif Path(arguments.model_name_or_path).exists():
        yield ("model_revision",), f"{arguments.model_name_or_path} is on this machine"
    if not arguments.use_peft:
        yield LORA, "adapters are trained with `--use_peft true`"
    if not stage.guided and training.guidance_weight != 0:
        yield (
            ("guidance_weight",),
            f"stage {stage.number} of {arguments.variant} is not guided",
        )
    if arguments.variant in CONCATENATION:
        yield CROSS_ATTENTION, f"a {arguments.variant} model has no cross-attention"
        yield ("do_pad", "do_center_crop"), f"a {arguments.variant} model gets its pictures stretched"
    if data.masks_name is None:
        yield ("masked_share",), "there is no `--masks_name`"
    if all(name is None or name == "scenes" or Path(name.rpartition("=")[2]).exists() for name in names):
        yield ("dataset_config",), "it is of data sets on the Hub"
    if data.dataset_name == "scenes":
        yield ("image_folder",), "the pictures of `scenes` have no paths"
    if not data.streaming or data.dataset_name == "scenes":
        yield ("shuffle_buffer_size",), "what is no stream is shuffled whole, and `scenes` have no order"
    if not data.eval_dataset_name and data.eval_split is None:
        yield (
            EVALUATION,
            "there are no rows to evaluate on: name them with `--eval_dataset_name`, or a split of `--dataset_name` with "
            "`--eval_split`",
        )


def check_options(
    given: Collection[str], stage: Stage, arguments: ModelArguments, data: DataArguments, training: GuidedSFTConfig
) -> None:
    """
    Raises `ValueError` if one of the options that were `given` would do nothing, or the trainer is to evaluate without rows.
    """
    if training.eval_strategy != "no":
        given = {*given, "eval_strategy"}
    for names, reason in idle_options(stage, arguments, data, training):
        for name in names:
            if name in given:
                raise ValueError(f"`--{name}` does nothing here: {reason}.")


def check_parts(
    given: Collection[str],
    arguments: ModelArguments,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    built_from: dict[str, Any],
) -> None:
    """
    Raises `ValueError` if an option says that the checkpoint, which is built, is another. `built_from` are the parts that its
    record names.
    """
    known = {**built_from, "image_size": processor.image_processor.size["height"]}
    if arguments.variant not in CONCATENATION:
        text = model.config.text_config
        known |= {
            "do_pad": processor.image_processor.do_pad,
            "do_center_crop": processor.image_processor.do_center_crop,
            "cross_attention_layers": list(text.cross_attention_layers),
            "cross_attention_intermediate_size": text.cross_attention_intermediate_size,
            "use_visual_positions": model.config.use_visual_positions,
            "attention_sink": text.attention_sink,
        }
    for name in PARTS:
        value = getattr(arguments, name)
        same = public_name(value) if name in built_from else value  # as the record has it
        if name in given and (name not in known or same != known[name]):
            has = f", which has {known[name]}" if name in known else ""
            raise ValueError(
                f"`--{name} {value}` is for building a model, but this one is there: {arguments.model_name_or_path}{has}. Leave "
                "the option out, or build anew in stage 1."
            )
