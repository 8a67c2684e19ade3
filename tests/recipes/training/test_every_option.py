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
"""
Every option of the stages: what it changes, or that it is refused.

A change is one of what a run leaves: its log, its weights, its files, its optimizer, how it reads its rows and what it says.
The arguments themselves are no part of that, nor is the record, which repeats them.
"""

import dataclasses
import hashlib
import inspect
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_data_sets import SHAPES, write
from testing_utils import box_mask, picture, rle, tiny_model, tiny_processor

from recipes.scenes import BACKBONES
from recipes.training import stage as stages
from recipes.training.arguments import DataArguments, ModelArguments
from trainers import GuidedSFTConfig, GuidedSFTTrainer
from trainers.guided_sft_config import UNUSED


CLASSES = (ModelArguments, DataArguments, GuidedSFTConfig)
FIELDS = {field.name: field for kind in CLASSES for field in dataclasses.fields(kind) if field.init}
RUNTIME = ("runtime", "per_second", "preparation_time", "flos")


class Case(NamedTuple):
    """What an option is set to, beside which others, and in which stage."""

    value: Any
    others: dict[str, Any] = {}
    number: int = 4


PARTS = {"vision": str(BACKBONES / "convnext"), "text": str(BACKBONES / "llama"), "model_name_or_path": None}
PARTS |= {"image_size": 64, "cross_attention_layers": [2]}
LM = {"variant": "ca-baseline"}
LORA = {**LM, "use_peft": True}
GUIDED = {"variant": "age-vlm-lm"}
EVAL = {"eval_split": "test", "eval_strategy": "steps", "eval_steps": 1}
SAVE = {"save_strategy": "steps", "save_steps": 1}
BEST = {**EVAL, **SAVE, "load_best_model_at_end": True, "max_steps": 4}
STREAM = {"streaming": True}
WORKERS = {"dataloader_num_workers": 1}

# Ours
CHANGES: dict[str, Case] = {
    "vision": Case("VISION", PARTS, 1),
    "text": Case("TEXT", PARTS, 1),
    "image_size": Case(96, PARTS, 1),
    "do_pad": Case(True, PARTS, 1),
    "do_center_crop": Case(True, PARTS, 1),
    "cross_attention_layers": Case([1, 2], PARTS, 1),
    "cross_attention_intermediate_size": Case(0, PARTS, 1),
    "use_visual_positions": Case(True, PARTS, 1),
    "attention_sink": Case(True, PARTS, 1),
    "attn_implementation": Case("eager"),
    "model_name_or_path": Case("OTHER"),
    "variant": Case("age-vlm-lm"),
    "vision_training": Case("none"),
    "use_peft": Case(True, LM),
    "lora_r": Case(4, LORA),
    "lora_alpha": Case(4, LORA),
    "lora_dropout": Case(0.5, LORA),
    "dataset_name": Case("OTHER ROWS"),
    "image_folder": Case("OTHER PICTURES"),
    "masks_name": Case("MASKS", {"guidance_weight": 0.0}),
    "masked_share": Case(0.5, {"masks_name": "MASKS"}),
    "dataset_split": Case("test"),
    "streaming": Case(True),
    "num_scenes": Case(4, {"dataset_name": "scenes", "num_scenes": 2, "max_steps": -1}),
    "scenes_seed": Case(1, {"dataset_name": "scenes", "num_scenes": 4}),
    "shuffle_buffer_size": Case(0, STREAM),
    "eval_dataset_name": Case(["own=OTHER ROWS"]),
    "eval_split": Case("test"),
    "guidance_weight": Case(0.5, GUIDED),
    "guidance_normalization": Case("max", GUIDED),
    "guidance_query": Case("question", GUIDED),
    "guidance_level": Case("phrase", GUIDED),
    "guidance_layers": Case([1], GUIDED),
    "guidance_heads": Case([0], GUIDED),
    "mask_downsampling": Case("area", GUIDED),
    "broken_rows": Case("skip", {"dataset_name": "BROKEN"}),
    "early_stopping_patience": Case(1, {**BEST, "greater_is_better": True}),
    "early_stopping_threshold": Case(9.0, {**BEST, "early_stopping_patience": 2}),
}
# TRL's and transformers'
CHANGES |= {
    "output_dir": Case("elsewhere"),
    "per_device_train_batch_size": Case(1),
    "num_train_epochs": Case(2.0, {"max_steps": -1}),
    "max_steps": Case(3),
    "learning_rate": Case(0.02),
    "lr_scheduler_type": Case("constant"),
    "lr_scheduler_kwargs": Case({"num_cycles": 1.5}, {"max_steps": 4}),
    "warmup_steps": Case(2),
    "optim": Case("adafactor"),
    "weight_decay": Case(0.0),
    "adam_beta1": Case(0.5),
    "adam_beta2": Case(0.5),
    "adam_epsilon": Case(0.1),
    "gradient_accumulation_steps": Case(2),
    "max_grad_norm": Case(0.01),
    "label_smoothing_factor": Case(0.1),
    "bf16": Case(True),
    "activation_checkpointing": Case(False),
    "activation_checkpointing_kwargs": Case({"preserve_rng_state": False}),
    "gradient_checkpointing": Case(False),
    "gradient_checkpointing_kwargs": Case({"preserve_rng_state": False}),
    "use_cache": Case(True),
    "neftune_noise_alpha": Case(5.0),
    "auto_find_batch_size": Case(True),
    "logging_strategy": Case("no"),
    "logging_steps": Case(2),
    "logging_first_step": Case(True, {"logging_steps": 2}),
    "include_num_input_tokens_seen": Case("all"),
    "log_level": Case("error"),
    "disable_tqdm": Case(False),
    "eval_strategy": Case("steps", {"eval_split": "test", "eval_steps": 1}),
    "eval_steps": Case(2, EVAL),
    "eval_delay": Case(2, EVAL),
    "per_device_eval_batch_size": Case(1, EVAL),
    "eval_on_start": Case(True, EVAL),
    "save_only_model": Case(True, SAVE),
    "save_strategy": Case("steps", {"save_steps": 1}),
    "save_steps": Case(2, SAVE),
    "save_total_limit": Case(1, SAVE),
    "load_best_model_at_end": Case(True, {**EVAL, **SAVE, "greater_is_better": True}),
    "metric_for_best_model": Case("entropy", BEST),
    "greater_is_better": Case(True, BEST),
    "full_determinism": Case(True),
    "seed": Case(1),
    "data_seed": Case(1, {"max_steps": 4}),
    "accelerator_config": Case({"split_batches": True}),
    "dataloader_drop_last": Case(True, {"per_device_train_batch_size": 3, "max_steps": -1}),
    "dataloader_num_workers": Case(1),
    "dataloader_persistent_workers": Case(True, WORKERS),
    "dataloader_prefetch_factor": Case(3, WORKERS),
    "dataloader_multiprocessing_context": Case("spawn", WORKERS),
    "dataloader_in_order": Case(False, WORKERS),
    "train_sampling_strategy": Case("sequential"),
    "skip_memory_metrics": Case(False),
    "chat_template_path": Case("TEMPLATE"),
    "eos_token": Case("<|end_header_id|>"),
    "max_length": Case(60),
    "pad_to_multiple_of": Case(64),
    "loss_type": Case("dft"),
}

# What a run on one CPU cannot show, and where it is seen
ELSEWHERE = {
    **dict.fromkeys(("model_revision", "text_revision", "dataset_config"), "the Hub: test_init.py, test_push.py"),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_token",
            "hub_private_repo",
            "hub_model_id",
            "hub_strategy",
            "hub_always_push",
            "hub_revision",
        ),
        "the Hub: test_push.py",
    ),
    **dict.fromkeys(
        ("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "the program that draws the curves",
    ),
    **dict.fromkeys(
        ("average_tokens_across_devices", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers")
        + ("ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "deepspeed", "parallelism_config")
        + ("local_rank", "log_on_each_node", "log_level_replica", "save_on_each_node"),
        "several processes: test_distributed.py",
    ),
    **dict.fromkeys(
        (
            "fp16",
            "tf32",
            "activation_offloading",
            "dataloader_pin_memory",
            "torch_empty_cache_steps",
            "torch_compile",
            "torch_compile_backend",
        )
        + ("torch_compile_mode", "use_cpu", "optim_target_modules"),
        "a GPU",
    ),
    **dict.fromkeys(
        (
            "resume_from_checkpoint",
            "overwrite_output_dir",
            "ignore_data_skip",
            "restore_callback_states_from_checkpoint",
            "enable_jit_checkpoint",
        ),
        "a run that was stopped: test_resuming.py, test_resume.py, test_evaluation.py",
    ),
    "optim_args": "optimizers of other packages",
    "length_column_name": "a column of lengths: test_rows.py",
    "debug": "losses that are no numbers",
    "logging_nan_inf_filter": "losses that are no numbers",
    "eval_accumulation_steps": "rows to predict",
}

# What would do nothing: (value, others, stage, sentence)
NOTHING = {
    "label_names": ["labels"],
    "packing": True,
    "eval_packing": True,
    "padding_free": True,
    "packing_strategy": "wrapped",
    "shuffle_dataset": True,
    "truncation_mode": "keep_end",
    "completion_only_loss": False,
    "model_init_kwargs": {"a": 1},
    "liger_kernel_config": {"rope": True},
    "dataset_text_field": "words",
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "dataset_num_proc": 2,
    "pad_token": "<|pad|>",
    "use_liger_kernel": True,
    "router_aux_loss_coef": 0.1,
}
REFUSED: dict[str, list[tuple[Any, dict[str, Any], int, str]]] = {
    name: [(value, {}, 4, f"`{name}` does nothing here")] for name, value in NOTHING.items()
}
IN_A_STAGE = "`--{}` does nothing here"
REFUSED |= {
    name: [(value, {}, 4, IN_A_STAGE.format(name))]
    for name, value in {
        "prediction_loss_only": True,
        "include_for_metrics": ["inputs"],
        "batch_eval_metrics": True,
        "eval_do_concat_batches": False,
        "eval_use_gather_object": True,
        "bf16_full_eval": True,
        "fp16_full_eval": True,
        "do_train": True,
        "remove_unused_columns": False,
        "do_predict": True,
        "trust_remote_code": True,
    }.items()
}
REFUSED |= {"assistant_only_loss": [(False, {}, 4, "`assistant_only_loss=False` is not supported")]}
# Where the others are as they are
REFUSED |= {
    name: [(value, others, number, f"`--{name}.* (does nothing here|is for building)")]
    for name, (value, others, number) in {
        "lora_r": (4, LM, 4),
        "lora_alpha": (4, LM, 4),
        "lora_dropout": (0.1, LM, 4),
        "guidance_weight": (0.5, LM, 4),
        "masked_share": (0.5, {}, 4),
        "shuffle_buffer_size": (5, {}, 4),
        "dataset_config": ("default", {}, 4),
        "model_revision": ("main", {}, 4),
        "text_revision": ("main", PARTS, 1),
        "vision": ("convnext_atto", {}, 4),
        "text": ("someone/llama", {}, 4),
        "image_size": (128, {}, 4),
        "do_pad": (True, {}, 4),
        "do_center_crop": (True, {}, 4),
        "cross_attention_layers": ([1], {}, 4),
        "cross_attention_intermediate_size": (0, {}, 4),
        "use_visual_positions": (True, {}, 4),
        "attention_sink": (True, {}, 4),
        "image_folder": ("pictures", {"dataset_name": "scenes"}, 4),
        "eval_strategy": ("epoch", {}, 4),
        "eval_on_start": (True, {}, 4),
        "do_eval": (True, {}, 4),
        "per_device_eval_batch_size": (2, {}, 4),
    }.items()
}
REFUSED["use_peft"] = [
    (True, {}, number, "`--use_peft` adapts the LLM, which does not train") for number in (1, 2, 3, 4)
]
REFUSED["guidance_weight"] += [(0.5, {}, number, "is not guided") for number in (1, 2)]
REFUSED["early_stopping_patience"] = [(1, {}, 4, "`early_stopping_patience` needs `load_best_model_at_end=True`")]
REFUSED["early_stopping_threshold"] = [(0.1, {}, 4, "does nothing without `early_stopping_patience`")]
REFUSED["train_sampling_strategy"] = [("group_by_length", STREAM, 4, "needs rows whose lengths are known")]


def test_every_option_is_walked():
    assert set(CHANGES) | set(REFUSED) | set(ELSEWHERE) == set(FIELDS)
    assert not set(CHANGES) & set(ELSEWHERE) and set(NOTHING) == set(UNUSED)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints before each stage, rows of several kinds with and without regions, parts."""
    folder = tmp_path_factory.mktemp("walk")
    for number in (0, 1, 2, 3):
        model = tiny_model()
        model.config.training_stage = number
        model.save_pretrained(folder / f"model-{number}")
        tiny_processor().save_pretrained(folder / f"model-{number}")
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(folder / "other-3")
    tiny_processor().save_pretrained(folder / "other-3")
    for part in ("convnext", "llama"):
        shutil.copytree(BACKBONES / part, folder / part)
        weights = load_file(folder / part / "model.safetensors")
        changed = {name: tensor * 1.5 for name, tensor in weights.items()}
        save_file(changed, folder / part / "model.safetensors", metadata={"format": "pt"})
    for name, first in (("rows", 0), ("other", 4)):
        (folder / name / "pictures").mkdir(parents=True)
        for n in range(4):
            picture(seed=first + n).save(folder / name / f"pictures/{n}.png")
    mask = box_mask(rows=(10, 45), columns=(10, 45))
    for name in ("rows/train", "rows/test", "other/train", "other/test"):
        write(folder / f"{name}.jsonl", [record(name, n, mask) for n in range(4)])
    write(folder / "masks/train.jsonl", [record("rows/train", n, box_mask()) for n in range(2)])
    shutil.copytree(folder / "rows/pictures", folder / "masks/pictures")
    write(folder / "broken/train.jsonl", [record("broken", n, mask) for n in range(3)])
    shutil.copytree(folder / "rows/pictures", folder / "broken/pictures")
    cut = folder / "broken/pictures/0.png"  # which shows only when it is decoded
    cut.write_bytes(cut.read_bytes()[:200])
    template = tiny_processor().chat_template
    (folder / "other.jinja").write_text(template.replace("{{- bos_token }}", "{{- bos_token }}Chat. ", 1))
    return folder


def record(name: str, n: int, mask: Any) -> dict[str, Any]:
    chat = [
        {"role": "user", "content": f"Is there a cup {n}?" + " Really?" * n},
        {"role": "assistant", "content": f"Yes, a cup. {name}"},
    ]
    region = {"mask": rle(mask), "image": 0, "text": "cup"}
    regions = [region | {"message": 0}, region | {"text": None, "message": None}]
    return {**SHAPES["messages"], "id": str(n), "messages": chat, "images": [f"pictures/{n}.png"], "regions": regions}


def arguments_of(place: Path, out: Path, number: int, options: dict[str, Any]) -> list[Any]:
    """The three arguments of a stage, with names instead of the places that the fixture made."""
    names = {
        "VISION": str(place / "convnext"),
        "TEXT": str(place / "llama"),
        "OTHER": str(place / "other-3"),
        "OTHER ROWS": str(place / "other"),
        "own=OTHER ROWS": f"own={place / 'other'}",
        "OTHER PICTURES": str(place / "other"),
        "MASKS": str(place / "masks"),
        "BROKEN": str(place / "broken"),
        "TEMPLATE": str(place / "other.jinja"),
        "elsewhere": str(out / "elsewhere"),
    }
    base = {
        "model_name_or_path": str(place / f"model-{number - 1}"),
        "dataset_name": str(place / "rows"),
        "output_dir": str(out),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 0.01,
        "warmup_steps": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    options = base | options
    for name, value in options.items():
        value = [names.get(part, part) for part in value] if isinstance(value, list) else value
        options[name] = names.get(value, value) if isinstance(value, str) else value
    return [
        kind(**{name: value for name, value in options.items() if name in kind.__dataclass_fields__})
        for kind in CLASSES
    ]


def run(
    place: Path, out: Path, number: int, options: dict[str, Any], given: set[str] = frozenset()
) -> GuidedSFTTrainer:
    return stages.run_stage(number, *arguments_of(place, out, number, options), given=given)


def digest(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def what_a_run_leaves(trainer: GuidedSFTTrainer, capsys: pytest.CaptureFixture) -> dict[str, Any]:
    """Everything about a run that an option may change, but the options themselves."""
    out = Path(trainer.args.output_dir)
    weights = load_file(out / "model.safetensors")
    logs = [
        {name: value for name, value in log.items() if not any(word in name for word in RUNTIME)}
        for log in trainer.state.log_history
    ]
    loaders = [trainer.get_train_dataloader()]
    if trainer.eval_dataset is not None:
        sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else [None]
        loaders += [trainer.get_eval_dataloader(name) for name in sets]
    attributes = (
        "batch_size",
        "num_workers",
        "pin_memory",
        "persistent_workers",
        "prefetch_factor",
        "drop_last",
        "in_order",
    )
    base = trainer.model
    printed = capsys.readouterr()
    return {
        "place": out.name,
        "logs": [{name: value for name, value in log.items() if not name.startswith("train_mem")} for log in logs],
        "metrics": sorted({name for log in trainer.state.log_history for name in log}),
        "weights": {name: digest(tensor.tolist()) for name, tensor in weights.items()},
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*") if "events" not in path.name),
        "optimizer": [
            type(getattr(trainer.optimizer, "optimizer", trainer.optimizer)).__name__,
            [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups],
        ],
        "scheduler": repr(trainer.lr_scheduler.state_dict()["_last_lr"]),
        "loaders": [
            [getattr(loader, name, None) for name in attributes]
            + [type(getattr(loader, "multiprocessing_context", None)).__name__]
            + [str(getattr(loader.dataset, "column_names", None))]
            + [type(getattr(loader, "batch_sampler", None)).__name__, str(getattr(loader, "_drop_last", None))]
            for loader in loaders
        ],
        "accelerator": [trainer.accelerator.mixed_precision, repr(trainer.accelerator.dataloader_config)],
        "model": json.loads(json.dumps(base.config.to_dict(), default=str)),
        "attention": base.config.text_config._attn_implementation,
        "checkpointing": checkpointing_of(base),
        "offloading": type(trainer.maybe_activation_offload_context).__name__,
        "callbacks": [type(callback).__name__ for callback in trainer.callback_handler.callbacks],
        "tokens": dict(trainer.processing_class.tokenizer.special_tokens_map),
        "verbosity": transformers.logging.get_verbosity(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "bars": "%|" in printed.err.split("Writing model")[0],
        "finder": trainer.args.auto_find_batch_size and inspect.ismethod(trainer._inner_training_loop),
    }


def checkpointing_of(model: torch.nn.Module) -> Any:
    for module in model.modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if function is not None and getattr(module, "gradient_checkpointing", False):
            return sorted(map(str, getattr(function, "keywords", {}).items()))
    return None


_seen: dict[str, dict[str, Any]] = {}


def seen_at(
    place: Path, out: Path, number: int, options: dict[str, Any], capsys: pytest.CaptureFixture
) -> dict[str, Any]:
    """What a run leaves, which is run once."""
    key = repr((number, sorted(options.items())))
    if key not in _seen:
        verbosity = transformers.logging.get_verbosity()
        try:
            _seen[key] = what_a_run_leaves(run(place, out / digest(key), number, options), capsys)
        finally:
            transformers.logging.set_verbosity(verbosity)
            torch.use_deterministic_algorithms(False)
    return _seen[key]


QUICK = {name for kind in (ModelArguments, DataArguments) for name in kind.__dataclass_fields__}
QUICK |= set(GuidedSFTConfig.__annotations__) & set(CHANGES)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CHANGES])
@pytest.mark.filterwarnings(
    "ignore::FutureWarning"
)  # TRL's and transformers', of options that go with their next versions
def test_an_option_changes_a_run(name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    value, others, number = CHANGES[name]
    if name == "broken_rows":
        with pytest.raises(ValueError, match="image 0, .*0.png, cannot be read"):
            run(place, tmp_path / "stop", number, others)
        assert any(
            log.get("skipped_rows") for log in run(place, tmp_path, number, {**others, name: value}).state.log_history
        )
        return
    before = seen_at(place, tmp_path, number, others, capsys)
    after = seen_at(place, tmp_path, number, {**others, name: value}, capsys)
    changed = [what for what in before if what != "place" and before[what] != after[what]]
    if name == "output_dir":
        changed = [what for what in before if before[what] != after[what]]
    assert changed, f"{name}={value}"


CASES = [(name, *case) for name, cases in REFUSED.items() for case in cases]


@pytest.mark.parametrize(("name", "value", "others", "number", "sentence"), CASES)
def test_an_option_without_effect_is_refused(
    name: str, value: Any, others: dict[str, Any], number: int, sentence: str, place: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=sentence):
        run(place, tmp_path, number, {**others, name: value}, given={name})
