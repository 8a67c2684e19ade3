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
"""Tunes any VLM of transformers with the guidance loss, and measures where its words look before and after."""

import functools
import json
import signal
import sys
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin, set_seed
from transformers.utils import logging

from modeling_agevlm.conversion import loading
from recipes.answering.checkpoint import is_age_vlm, load_other, read_other
from recipes.guiding.arguments import GuideArguments
from recipes.guiding.looking import Looked, draw, look, summarize, table
from recipes.rows.appearing import appearing
from recipes.rows.records import hashed
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import load_evaluation_rows, load_rows, shuffled
from recipes.training.record import LORA, public_name, read_record, run_record
from recipes.training.resuming import check_same_run, clear, where_it_begins
from trainers import GuidedSFTConfig, GuidedSFTTrainer, RegionAttention, Stage, collator_for
from trainers.rows import PICTURES, as_row, undecoded
from trainers.turns import set_template


logger = logging.get_logger(__name__)
TUNING = Stage(4, vision="none", language_model=True, guided=True)
SCENE_SIZE = 256  # pixels of the scenes, if they are the rows


def load_vlm(
    arguments: GuideArguments, training: GuidedSFTConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The VLM and its processor, with the chat template of the training if that names one. Runs no code of the checkpoint, and reads
    no pickles.

    Raises:
        ValueError: If it cannot be loaded, or it is not known which of its tokens show what.
    """
    name, revision = arguments.model_name_or_path, arguments.model_revision
    with loading(name, "`--model_name_or_path` is a vision-language model of transformers."):
        if is_age_vlm(name, revision):
            raise ValueError("it is an AGE-VLM, whose stages guide it: train it on with recipes/stage4.py")
        config, processor = read_other(name, revision)
        set_template(processor, training.chat_template_path, training.eos_token)
        collator_for(config, processor)  # says what it does not know before the weights are read
        attention = {"text_config": arguments.attn_implementation}
        model = load_other(name, config, revision, dtype=dtype, attn_implementation=attention)
    return model, processor


def train_language_model(model: PreTrainedModel) -> None:
    """Has the language model train, and nothing else."""
    model.requires_grad_(False)
    model.get_decoder().requires_grad_(True)
    model.get_output_embeddings().requires_grad_(True)


def adapters(model: PreTrainedModel, arguments: GuideArguments) -> LoraConfig | None:
    """Low-rank adapters on all linear layers of the language model, if they are asked for."""
    if not arguments.use_peft:
        return None
    decoder = {id(module) for module in model.get_decoder().modules() if isinstance(module, nn.Linear)}
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=[name for name, module in model.named_modules() if id(module) in decoder],
    )


def held_out(
    rows: Dataset | IterableDataset, others: Dataset | dict[str, Dataset] | None, number: int
) -> tuple[Dataset | IterableDataset, list[dict[str, Any]]]:
    """
    The rows that train, and those that are measured: the first ones of `others`, or some of `rows`, drawn at random, or the first ones
    of a stream, which must not be shuffled yet.

    Raises:
        ValueError: If nothing would be left of either.
    """
    if others is not None:
        sets = others.values() if isinstance(others, dict) else [others]
        return rows, [row for part in sets for row in islice(undecoded(part), number)]
    if not isinstance(rows, Dataset):
        rows = undecoded(rows)
        measured = list(rows.take(number))
        if len(measured) < number:
            raise ValueError(
                f"`--num_held_out` is {number}, but the stream has {len(measured)} rows: leave some of them to train."
            )
        # Not by `skip`: workers and processes each skip a part of it, of files of their own.
        return rows.filter(functools.partial(is_other, held={identity(row) for row in measured})), measured
    if not 0 < number < len(rows):
        raise ValueError(
            f"`--num_held_out` is {number}, but {len(rows)} rows are to train and to be measured: leave some for either, or "
            "name others to measure by `--eval_dataset_name`."
        )
    order = np.random.default_rng(0).permutation(len(rows))
    return rows.select(np.sort(order[number:])), list(undecoded(rows).select(np.sort(order[:number])))


def identity(row: dict[str, Any]) -> int:
    """What a row is, wherever it stands."""
    pictures = [
        (image.get("path"), blake2b(image.get("bytes") or b"").digest()) if isinstance(image, dict) else image
        for image in as_row(row)["images"]
    ]
    return hashed(repr((pictures, {name: value for name, value in row.items() if name not in PICTURES})))


def is_other(row: dict[str, Any], held: set[int]) -> bool:
    """Whether a row is none of those that are held out."""
    return identity(row) not in held


def guide(arguments: GuideArguments, data: DataArguments, training: GuidedSFTConfig) -> GuidedSFTTrainer:
    """
    Tunes a VLM, and saves it to `training.output_dir` with what was measured (`guided.json`) and drawn (`guided.png`).

    Raises:
        ValueError: If it cannot start from what it is given.
    """
    name = arguments.model_name_or_path
    for option in () if arguments.use_peft else LORA:
        if getattr(arguments, option) != arguments.__dataclass_fields__[option].default:
            raise ValueError(f"`--{option}` does nothing here: it is of adapters, which `--use_peft true` asks for.")
    try:
        before = read_record(name, arguments.model_revision)
    except ValueError as error:
        logger.warning(f"{error} It is left out of what is recorded here.")
        before = []
    record = run_record(0, arguments, data, training, before)
    record[-1] |= {
        "model": public_name(name),
        "base_models": [] if Path(name).exists() else [name],
        "num_held_out": arguments.num_held_out,
    }
    overwrite = arguments.overwrite_output_dir
    checkpoint = where_it_begins(training, overwrite, name, record)
    set_seed(training.seed)
    has_bf16 = arguments.use_peft and training.bf16  # frozen weights need no more
    model, processor = load_vlm(arguments, training, torch.bfloat16 if has_bf16 else torch.float32)
    skip_broken = training.broken_rows == "skip"
    others = load_evaluation_rows(data, TUNING, SCENE_SIZE, skip_broken)
    rows = load_rows(data, TUNING, SCENE_SIZE, skip_broken)
    rows, measured = held_out(rows, others, arguments.num_held_out)
    rows = shuffled(rows, data, training)
    if isinstance(rows, Dataset):
        record[-1]["rows"] = len(rows)
        if checkpoint is not None:
            check_same_run(checkpoint, record)
    train_language_model(model)
    trainer = GuidedSFTTrainer(
        model,
        training,
        train_dataset=rows,
        eval_dataset=others,
        processing_class=processor,
        peft_config=adapters(model, arguments),
        record=record,
    )
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            "Where words look is measured in between, which takes whole weights on every process: launch with plain data "
            "parallelism (`accelerate launch --multi_gpu`) instead of FSDP or DeepSpeed."
        )
    trainer.accelerator.wait_for_everyone()  # all have seen what there is
    if overwrite and training.should_save:
        clear(training.output_dir)
    before = measure(trainer, measured)
    if not any(one.inside is not None for one in before):
        raise ValueError(
            "None of the rows to measure has a region that shows something: draw more of them by `--num_held_out`, or name others by "
            "`--eval_dataset_name`."
        )
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if trainer.is_preempted:
        sys.exit(128 + signal.SIGTERM)
    trainer.save_final_model()  # with adapters merged: what is measured is what is saved
    after = measure(trainer, measured)
    if trainer.accelerator.is_main_process:
        report(Path(training.output_dir), trainer, before, after)
    return trainer


def measure(trainer: GuidedSFTTrainer, rows: list[dict[str, Any]]) -> list[Looked]:
    """Where words look now, in the guided heads. Every process measures, so that none waits too long."""
    model = trainer.unwrapped_model()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=trainer.args.bf16):
        return look(model, trainer.data_collator, RegionAttention(model, heads=trainer.guided_heads), rows)


def report(folder: Path, trainer: GuidedSFTTrainer, before: list[Looked], after: list[Looked]) -> None:
    """Writes and prints what was measured, and draws it."""
    results = {
        "guided_heads": trainer.guided_heads,
        "regions": len(before),
        "before": summarize(before),
        "after": summarize(after),
    }
    with appearing(folder / "guided.json") as aside:
        aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(folder / "guided.png", before, after)
    print(f"\n{table(results['before'], results['after'])}\n\nsee {folder / 'guided.png'}", flush=True)
