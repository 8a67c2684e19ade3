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
"""Runs a stage: model, rows, training, saving."""

import signal
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, ProgressCallback, TrainerCallback, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging

from modeling_agevlm import AgeVlmConfig
from modeling_agevlm.conversion import loading
from recipes.answering.checkpoint import load_checkpoint
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.concatenation import CONCATENATION_TYPE, load_concatenation
from recipes.training.data_sets import load_evaluation_rows, load_rows, shuffled
from recipes.training.idle import check_options, check_parts
from recipes.training.looks import Looks
from recipes.training.parts import build, mend_generation_config
from recipes.training.record import card_template, parts_of, read_record, run_record
from recipes.training.resuming import (
    check_finished,
    check_same_run,
    clear,
    how_it_begins,
    where_it_begins,
)
from trainers import GuidedSFTConfig, GuidedSFTTrainer, Stage, apply_stage, get_stage, lora_config, parameter_table
from trainers.checkpointing import checkpoints_of
from trainers.stages import CONCATENATION, Variant


logger = logging.get_logger(__name__)
GO_ON = "The checkpoint is saved; `--resume_from_checkpoint true` goes on from it."


def load_model(arguments: ModelArguments, stage: Stage) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The model of the stage before, or of the same stage to be trained on, in float32 (mixed precision keeps float32 weights),
    and its processor.

    Raises:
        ValueError: If there is no such checkpoint.
    """
    name, is_concatenation = arguments.model_name_or_path, arguments.variant in CONCATENATION
    if name is None:
        if stage.number > 1:
            raise ValueError(
                f"Stage {stage.number} starts from a checkpoint of stage {stage.number - 1}: pass its folder or Hub id "
                "as `--model_name_or_path`."
            )
        return build(arguments, arguments.attn_implementation, is_concatenation)
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        unfinished = " It holds checkpoints of a stage that has not ended: go on with that first."
        raise ValueError(
            f"{name} is not a checkpoint folder: it has no config.json.{unfinished if checkpoints_of(name) else ''}"
        )
    check_finished(name)
    with loading(name):
        config, _ = AgeVlmConfig.get_config_dict(name, revision=arguments.model_revision)
        model_type = config.get("model_type")
    expected = CONCATENATION_TYPE if is_concatenation else AgeVlmConfig.model_type
    if model_type != expected:
        hint = "Build one around it with `recipes/init.py --text`."
        if model_type in (CONCATENATION_TYPE, AgeVlmConfig.model_type):
            hint = "Go on with a variant of its own kind, or build anew in stage 1."
        raise ValueError(
            f"{name} is a {model_type!r} checkpoint, but a stage of {arguments.variant} starts from {expected!r}. {hint}"
        )
    attention = arguments.attn_implementation
    with loading(name):
        if is_concatenation:
            model, processor = load_concatenation(name, arguments.model_revision, attention)
        else:
            model, processor = load_checkpoint(
                name, arguments.model_revision, attn_implementation=attention, dtype="float32"
            )
    mend_generation_config(model.generation_config, name)
    been_through = getattr(model.config, "training_stage", 0)
    if been_through not in (stage.number - 1, stage.number):
        raise ValueError(
            f"Stage {stage.number} starts from a checkpoint of stage {stage.number - 1}, or trains one of stage {stage.number} "
            f"on, but {name} is one of stage {been_through}. Run the stages in order."
        )
    return model, processor


def peft_config(model: PreTrainedModel, arguments: ModelArguments, stage: Stage) -> LoraConfig | None:
    """
    The adapters that `--use_peft` asks for.

    Raises:
        ValueError: If the LLM does not train.
    """
    if not arguments.use_peft:
        return None
    if not stage.language_model:
        raise ValueError(
            f"`--use_peft` adapts the LLM, which does not train in stage {stage.number} of {arguments.variant}. It is for "
            "stage 4 with `--variant age-vlm-lm` or `ca-baseline`."
        )
    return lora_config(model, stage, arguments.lora_r, arguments.lora_alpha, lora_dropout=arguments.lora_dropout)


def chosen_variant(number: int, arguments: ModelArguments, record: list[dict[str, Any]]) -> Variant:
    """The variant that is asked for, or else that of the checkpoint's record. Says if the two do not go together."""
    known = [run["variant"] for run in record if run["variant"] in get_args(Variant)]
    variant = arguments.variant or (known[-1] if known else "age-vlm")
    for run in record:
        if run["variant"] in known and get_stage(run["stage"], run["variant"]) != get_stage(run["stage"], variant):
            logger.warning(
                f"{arguments.model_name_or_path} went through stage {run['stage']} as {run['variant']}, where {variant} trains "
                f"otherwise. It goes on with stage {number} of {variant}."
            )
    return variant


class Augmenting:
    """A collator whose batches' pictures, normalized and of shape `(num_pictures, 3, height, width)`, are changed."""

    def __init__(
        self, collate: Callable[..., dict[str, torch.Tensor]], change: Callable[[torch.Tensor], torch.Tensor]
    ):
        self.collate, self.change = collate, change

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.collate(rows)
        if "pixel_values" in batch:
            pictures = batch["pixel_values"]  # an AGE-VLM has them by rows
            by_rows = pictures.shape[:-3]
            batch["pixel_values"] = self.change(pictures.flatten(0, len(by_rows) - 1)).view_as(pictures)
        return batch


def run_stage(
    number: int,
    arguments: ModelArguments,
    data: DataArguments,
    training: GuidedSFTConfig,
    progress: TrainerCallback | None = None,
    rows: Dataset | IterableDataset | None = None,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    given: Collection[str] = (),
) -> GuidedSFTTrainer:
    """
    Trains stage `number` and saves model, processor, code and log to `training.output_dir`.

    Args:
        number (`int`): 1 to 4.
        arguments ([`ModelArguments`]): The model to start from, and the variant.
        data ([`DataArguments`]): The rows.
        training ([`GuidedSFTConfig`]): The training arguments.
        progress (`TrainerCallback`, *optional*): Shows the progress instead of the table of what trains and the
            trainer's own bar and log lines.
        rows (`Dataset`, *optional*): The rows themselves, instead of those that `data` names.
        augment (`Callable`, *optional*): Changes the normalized pictures of a batch, `(num_pictures, 3, height, width)`.
        given (`Collection[str]`, *optional*): Options that were asked for, which must not be without effect.

    Raises:
        ValueError: If the stage cannot start from what it is given.
    """
    record = read_record(arguments.model_name_or_path, arguments.model_revision)
    arguments = replace(arguments, variant=chosen_variant(number, arguments, record))
    stage = get_stage(number, arguments.variant)
    if arguments.vision_training is not None:
        stage = Stage(stage.number, arguments.vision_training, stage.language_model, stage.guided)
    check_options(given, stage, arguments, data, training)
    if not stage.guided:
        training.guidance_weight = 0.0
    record = run_record(number, arguments, data, training, record)
    overwrite = arguments.overwrite_output_dir
    checkpoint = where_it_begins(training, overwrite, arguments.model_name_or_path, record)
    set_seed(training.seed)  # of what is built anew
    model, processor = load_model(arguments, stage)
    if arguments.model_name_or_path is not None:
        check_parts(given, arguments, model, processor, parts_of(record))
    image_size, skip_broken = processor.image_processor.size["height"], training.broken_rows == "skip"
    if rows is None:
        rows = shuffled(load_rows(data, stage, image_size, skip_broken), data, training)
    if isinstance(rows, Dataset):
        record[-1]["rows"] = len(rows)
        if checkpoint is not None:
            check_same_run(checkpoint, record)
    eval_rows = load_evaluation_rows(data, stage, image_size, skip_broken)
    is_concatenation = arguments.variant in CONCATENATION
    apply_stage(model, stage)
    adapters = peft_config(model, arguments, stage)
    model.config.training_stage = number
    trainer = GuidedSFTTrainer(
        model,
        training,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=adapters,
        card_template=None if is_concatenation else card_template(),
        record=record,
    )
    if augment is not None:
        trainer.data_collator = Augmenting(trainer.data_collator, augment)
    if adapters is not None and (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "`--use_peft` merges the adapters in the end, which takes whole weights on every process: launch with plain "
            "data parallelism (`accelerate launch --multi_gpu`) instead of FSDP or ZeRO-3."
        )
    if progress is not None:
        trainer.remove_callback(PrinterCallback if training.disable_tqdm else ProgressCallback)
        trainer.add_callback(progress)
    elif trainer.accelerator.is_main_process:
        print(f"Stage {number} of {arguments.variant}\n{parameter_table(trainer.model)}", flush=True)
        if str(training.resume_from_checkpoint or "false").lower() != "false":
            print(how_it_begins(checkpoint, training), flush=True)
    if training.report_to and not is_concatenation:
        trainer.add_callback(Looks(trainer))
    trainer.accelerator.wait_for_everyone()  # all have seen what there is
    if overwrite and training.should_save:
        clear(training.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_preempted:
        if trainer.accelerator.is_main_process:
            print(
                f"Told to end, after step {trainer.state.global_step} of {trainer.state.max_steps}. {GO_ON}",
                flush=True,
            )
        sys.exit(128 + signal.SIGTERM)  # as a process that ends by it: not as one that has done its work
    if eval_rows is not None and training.eval_strategy == "no":
        trainer.evaluate()
    trainer.save_final_model()
    return trainer
