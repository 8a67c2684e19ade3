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
"""What the four stage recipes share: command line, data, model, training, saving."""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
from datasets import (
    Dataset,
    IterableDataset,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)
from peft import LoraConfig
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, ProgressCallback, TrainerCallback, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import TrlParser

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmProcessor
from modeling_agevlm.modeling_agevlm import loading
from recipes.data import load_records
from recipes.errors import one_sentence
from recipes.init import PartsArguments, build
from recipes.record import card_template, run_record
from recipes.scenes import load_scenes
from trainers import (
    GuidedSFTConfig,
    GuidedSFTTrainer,
    Stage,
    Variant,
    apply_stage,
    get_stage,
    lora_config,
    parameter_table,
)


@dataclass
class ModelArguments(PartsArguments):
    """The model that a stage starts from. Stage 1 builds it from `--vision` and `--text` when given no checkpoint."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint of the stage before (folder or Hub id)."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "Attention of the LLM's own layers."})
    variant: Variant = field(default="age-vlm", metadata={"help": "Which of the four final models is made."})
    vision_training: str | None = field(
        default=None,
        metadata={
            "help": "What of the vision tower trains, if not what the stage says.",
            "choices": ["none", "last_block", "last_stage", "all"],
        },
    )
    use_peft: bool = field(
        default=False,
        metadata={
            "help": "Where the LLM trains, train low-rank adapters (LoRA) on its self-attention instead. They are merged "
            "into the model that is saved in the end."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters are scaled by `lora_alpha / lora_r`."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})


@dataclass
class DataArguments:
    """The rows that a stage trains on."""

    dataset_name: str = field(
        default="scenes",
        metadata={
            "help": "`scenes` (made on the spot), a folder written by `datasets`' `save_to_disk`, a folder of parquet "
            "files, a LLaVA-style JSON or JSONL file (`--streaming`), or a Hub id; rows of `images`, `messages` and "
            "`regions`."
        },
    )
    image_folder: str | None = field(
        default=None, metadata={"help": "Folder that the image paths of a JSON or JSONL file start from."}
    )
    masks_name: str | None = field(
        default=None,
        metadata={
            "help": "Rows with masks, as `recipes/masks.py` writes them. They stand in for those of the same `id`."
        },
    )
    masked_share: float | None = field(
        default=None,
        metadata={"help": "Share of the rows that are to come from `--masks_name`. Default: as many as there are."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    streaming: bool = field(default=False, metadata={"help": "Read rows as they come. Needs `--max_steps`."})
    num_scenes: int = field(default=10000, metadata={"help": "Rows to make of `scenes`."})
    scenes_seed: int = field(default=0, metadata={"help": "Seed of `scenes`."})


def load_rows(data: DataArguments, stage: Stage, image_size: int) -> Dataset | IterableDataset:
    """
    The rows of a stage: captions in stages 1 to 3, instructions in stage 4 where the data set is `scenes`. Where there are
    masks for some of them, those rows have `regions`.

    Raises:
        ValueError: If the arguments do not go together.
    """
    rows = load_dataset_of(data.dataset_name, data, stage, image_size)
    if data.masks_name is None:
        return rows
    masked = load_dataset_of(data.masks_name, data, stage, image_size)
    if data.masked_share is None and data.streaming:
        raise ValueError("A stream cannot tell how many rows have masks: say how many shall, with `--masked_share`.")
    if data.masked_share is not None and not 0 < data.masked_share < 1:
        raise ValueError(f"`--masked_share` is a share between 0 and 1, but is {data.masked_share}.")
    for name, part in ((data.dataset_name, rows), (data.masks_name, masked)):
        if "id" not in (part.column_names or []):
            raise ValueError(f"{name} has no column `id`, by which rows and masks find each other.")
    identities = (
        set(masked["id"]) if isinstance(masked, Dataset) else {row["id"] for row in masked.select_columns("id")}
    )
    rest = rows.filter(lambda identity: identity not in identities, input_columns="id")
    rest = rest.select_columns(["id", "images", "messages"])  # its `regions` become null
    masked = masked.select_columns(["id", "images", "messages", "regions"])
    if data.masked_share is None:
        return concatenate_datasets([masked, rest])
    shares = [data.masked_share, 1 - data.masked_share]
    return interleave_datasets(
        [masked, rest], probabilities=shares, seed=data.scenes_seed, stopping_strategy="all_exhausted"
    )


def load_dataset_of(name: str, data: DataArguments, stage: Stage, image_size: int) -> Dataset | IterableDataset:
    """The rows of one data set."""
    if name == "scenes":
        task = "instruction" if stage.number == 4 else "caption"
        return load_scenes(
            data.dataset_split, task, data.num_scenes, image_size, data.scenes_seed, streaming=data.streaming
        )
    folder = Path(name)
    if folder.suffix in (".json", ".jsonl"):
        if data.image_folder is None or not data.streaming:
            raise ValueError(
                f"{name} is read as a stream: pass `--streaming true` and `--image_folder`, or make a data set of it with "
                "`recipes/data.py --out`."
            )
        return load_records(folder, Path(data.image_folder))
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        rows = load_from_disk(name)
        rows = rows[data.dataset_split] if (folder / "dataset_dict.json").exists() else rows
        return rows.to_iterable_dataset() if data.streaming else rows
    return load_dataset(name, data.dataset_config, split=data.dataset_split, streaming=data.streaming)


def check_regions(rows: Dataset | IterableDataset, stage: Stage, guidance_weight: float) -> None:
    """Raises `ValueError` if a guided stage would train on rows without a single region."""
    if not stage.guided or guidance_weight == 0:
        return
    columns = rows.column_names or []
    lengths = (
        pc.list_value_length(rows.data.column("regions"))
        if isinstance(rows, Dataset) and "regions" in columns
        else None
    )
    if "regions" not in columns or (lengths is not None and not (pc.max(lengths).as_py() or 0)):
        raise ValueError(
            f"Stage {stage.number} adds the guidance loss, but no row of the data set has a region. Make masks first, or "
            "train an unguided variant (`--variant ca-baseline-frozen` or `ca-baseline`)."
        )


def load_model(arguments: ModelArguments, stage: Stage) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The model of the stage before, in float32 (mixed precision keeps float32 weights), and its processor.

    Raises:
        ValueError: If there is no checkpoint of the stage before.
    """
    name = arguments.model_name_or_path
    if name is None:
        if stage.number > 1:
            raise ValueError(
                f"Stage {stage.number} starts from a checkpoint of stage {stage.number - 1}: pass its folder or Hub id "
                "as `--model_name_or_path`."
            )
        return build(arguments)
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise ValueError(f"{name} is not a checkpoint folder: it has no config.json.")
    with loading(name):
        config, _ = AgeVlmConfig.get_config_dict(name, revision=arguments.model_revision)
    if config.get("model_type") != AgeVlmConfig.model_type:
        raise ValueError(
            f"{name} is a {config.get('model_type')!r} checkpoint, but a stage starts from an AGE-VLM ('agevlm'). Build one "
            "around it with `recipes/init.py --text`."
        )
    with loading(name):
        model = AgeVlmForConditionalGeneration.from_pretrained(
            name, revision=arguments.model_revision, attn_implementation=arguments.attn_implementation, dtype="float32"
        )
        processor = AgeVlmProcessor.from_pretrained(name, revision=arguments.model_revision)
    if model.config.training_stage != stage.number - 1:
        raise ValueError(
            f"Stage {stage.number} starts from a checkpoint of stage {stage.number - 1}, but {name} is one of stage "
            f"{model.config.training_stage}. Run the stages in order."
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


def run_stage(
    number: int,
    arguments: ModelArguments,
    data: DataArguments,
    training: GuidedSFTConfig,
    progress: TrainerCallback | None = None,
    rows: Dataset | IterableDataset | None = None,
) -> GuidedSFTTrainer:
    """
    Trains stage `number` and saves model, processor, code and log to `training.output_dir`.

    Args:
        number (`int`): 1 to 4.
        arguments ([`ModelArguments`]): The model to start from, and the variant.
        data ([`DataArguments`]): The rows.
        training ([`GuidedSFTConfig`]): The training arguments.
        progress (`TrainerCallback`, *optional*): Shows the progress instead of the trainer's own bar and log lines.
        rows (`Dataset`, *optional*): The rows themselves, instead of those that `data` names.

    Raises:
        ValueError: If the stage cannot start from what it is given.
    """
    stage = get_stage(number, arguments.variant)
    if arguments.vision_training is not None:
        stage = Stage(stage.number, arguments.vision_training, stage.language_model, stage.guided)
    if not stage.guided:
        training.guidance_weight = 0.0
    set_seed(training.seed)  # of what is built anew
    model, processor = load_model(arguments, stage)
    if rows is None:
        rows = load_rows(data, stage, model.config.vision_config.image_size)
    check_regions(rows, stage, training.guidance_weight)
    apply_stage(model, stage)
    adapters = peft_config(model, arguments, stage)
    model.config.training_stage = number
    trainer = GuidedSFTTrainer(
        model,
        training,
        processor,
        rows,
        peft_config=adapters,
        card_template=card_template(),
        record=run_record(number, arguments, data, training),
    )
    if adapters is not None and (trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()):
        raise ValueError(
            "`--use_peft` merges the adapters in the end, which takes whole weights on every process: launch with plain "
            "data parallelism (`accelerate launch --multi_gpu`) instead of FSDP or ZeRO-3."
        )
    if progress is not None:
        trainer.remove_callback(PrinterCallback if training.disable_tqdm else ProgressCallback)
        trainer.add_callback(progress)
    if trainer.accelerator.is_main_process:
        print(f"Stage {number} of {arguments.variant}\n{parameter_table(trainer.model)}", flush=True)
    resume = training.resume_from_checkpoint
    trainer.train(resume_from_checkpoint={"true": True, "True": True}.get(resume, resume))
    trainer.save_final_model()
    return trainer


def main(number: int, **defaults) -> None:
    """Command line of stage `number`: every field of the three argument classes, or `--config file.yaml`."""
    parser = TrlParser((ModelArguments, DataArguments, GuidedSFTConfig))
    parser.set_defaults(**defaults)
    with one_sentence():
        arguments, data, training = parser.parse_args_and_config()
        run_stage(number, arguments, data, training)
