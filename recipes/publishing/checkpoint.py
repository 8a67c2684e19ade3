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
"""Checks a checkpoint, writes its card, and puts it up on the Hub."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from safetensors import safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import modeling_agevlm
from modeling_agevlm import AgeVlmConfig
from recipes.publishing.results import eval_results, results_of, with_model_index
from recipes.training.record import MODEL_CARD, card_template, code_version, read_record
from trainers.hub import CODE, RECORD_NAME, checkpoint_files, upload_checkpoint
from trainers.model_card import model_card, other_vlm_card
from trainers.stages import count_parameters


PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
# What the trainer leaves in a folder beside the model. These are pickles, too; they just stay here.
TRAINING_STATE = (
    "training_args.bin",
    "optimizer*.pt",
    "optimizer*.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
)
METRICS_NAME = "metrics.json"
LOAD_CHECK = Path(__file__).parents[1] / "load_check.py"


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises `ValueError` if the file holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}). Mend it, or save the checkpoint again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is no JSON object. Mend it, or save the checkpoint again.")
    return found


def is_age_vlm(folder: Path) -> bool:
    """Whether a checkpoint is an AGE-VLM, which brings its code; what guide.py and the concatenation variants save is transformers'."""
    return read_object(folder / CONFIG_NAME).get("model_type") == AgeVlmConfig.model_type


def check_links(folder: Path) -> None:
    """
    Refuses a folder that would put up, or tell on its card, what lies elsewhere: whoever made it may have linked
    anything.

    Raises:
        ValueError: If a file that is read leads out of the folder.
    """
    told = [folder / name for name in (RECORD_NAME, METRICS_NAME, TRAINER_STATE_NAME)]
    out = [
        file.name
        for file in [*checkpoint_files(folder), *told]
        if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve())
    ]
    if out:
        raise ValueError(
            f"{folder} holds links that lead out of it ({', '.join(sorted(set(out)))}), which are not followed: copy "
            "the checkpoint with what they lead to (`cp -rL`), and push the copy."
        )


def check_files(folder: Path) -> None:
    """
    Refuses what can be told without loading.

    Raises:
        ValueError: If it is not the folder of a whole checkpoint, or holds pickles.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder. `--checkpoint` is the folder that a stage or `init.py` wrote.")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if ADAPTER_CONFIG_NAME in names:
        raise ValueError(
            f"{folder} holds a LoRA adapter, not a whole model: merge it first (`model.merge_and_unload()`), save the "
            "merged model and the processor with `save_pretrained` to another folder, and push that."
        )
    pickles = [
        name
        for name in names
        if any(fnmatch(name, pattern) for pattern in PICKLES)
        and not any(fnmatch(name, pattern) for pattern in TRAINING_STATE)
    ]
    if pickles:
        raise ValueError(
            f"{folder} holds pickle files ({', '.join(pickles)}), which run code in whoever loads them: save the "
            "model with `save_pretrained`, which writes safetensors, and remove them."
        )
    needed = {CONFIG_NAME, "processor_config.json", "tokenizer.json"}
    if CONFIG_NAME not in names or is_age_vlm(folder):
        needed |= {path.name for path in Path(modeling_agevlm.__file__).parent.glob(CODE)}
    if SAFE_WEIGHTS_NAME not in names:
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        shards = read_object(index).get("weight_map") if index.exists() else {"": SAFE_WEIGHTS_NAME}
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise ValueError(f"{index} has no `weight_map` of files. Save the model again with `save_pretrained`.")
        needed |= set(shards.values())
    missing = sorted(needed - set(names))
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}: save the model and the processor to it again with "
            "`save_pretrained`, which also copies the code."
        )


def load_problems(folders: Sequence[Path]) -> list[str | None]:
    """What is wrong with each checkpoint when a process that has nothing of this project, and no token, loads it."""
    with tempfile.TemporaryDirectory() as work:
        hidden = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_MODULES_CACHE")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"HF_HOME": work, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-I", str(LOAD_CHECK), *(str(folder.resolve()) for folder in folders)]
        result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    lines = result.stdout.splitlines()[-len(folders) :]
    if result.returncode != 0 or len(lines) != len(folders):
        last = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
        return [f"the process that loads it ends with: {last[0]}"] * len(folders)
    return [json.loads(line) for line in lines]


def find_metrics(folder: Path) -> tuple[dict[str, float], str | None]:
    """
    The numbers of `metrics.json` that were measured on this checkpoint, and the command that it names. One beside the
    checkpoint holds those of several, by the names of their folders.
    """
    for file in (folder / METRICS_NAME, folder.resolve().parent / METRICS_NAME):
        if file.exists():
            entries = read_object(file)
            own = entries.get(folder.resolve().name, entries if file.parent == folder else None)
            if isinstance(own, dict):
                numbers = {key: value for key, value in own.items() if isinstance(value, int | float)}
                command = own.get("command", entries.get("command"))
                return numbers, command if isinstance(command, str) else None
    return {}, None


def make_card(folder: Path, repo_id: str, template: str | None, metrics_command: str | None = None) -> str:
    """The model card of a checkpoint folder, from what lies in it and beside it; `template` is an AGE-VLM's."""
    state = folder / TRAINER_STATE_NAME
    log_history = read_object(state).get("log_history", ()) if state.exists() else ()
    if not isinstance(log_history, list | tuple) or not all(isinstance(entry, dict) for entry in log_history):
        raise ValueError(f"{state} has no `log_history` of entries. Mend it, or remove it.")
    record = read_record(str(folder))
    if not is_age_vlm(folder):
        return other_vlm_card(repo_id, record, log_history, code_version())
    if template is None:
        raise ValueError(f"There is no {MODEL_CARD}: pass the template of the model card as `--model_card`.")
    config = read_object(folder / CONFIG_NAME)
    sizes = []
    for file in checkpoint_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():
                    count = 1
                    for side in tensors.get_slice(name).get_shape():
                        count *= side
                    sizes.append((name, count))
    metrics, command = find_metrics(folder)
    return model_card(
        template,
        repo_id,
        config,
        count_parameters(sizes, config["text_config"]["cross_attention_layers"]),
        log_history=log_history,
        record=record,
        metrics=metrics,
        metrics_command=metrics_command or command,
        code=code_version(),
    )


def push(
    checkpoint: str | Path,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    commit_message: str | None = None,
    metrics_command: str | None = None,
    template: str | None = None,
    evaluation: Path | None = None,
    api: HfApi | None = None,
) -> CommitInfo:
    """
    Checks a checkpoint and puts it up. Nothing reaches the Hub, not even an empty repository, if the check fails.

    Args:
        checkpoint (`str` or `Path`): The folder.
        repo_id (`str`): The repository; made if there is none.
        private (`bool`, *optional*, defaults to `False`): Whether only its owner sees it.
        revision (`str`, *optional*): Branch; made if there is none.
        commit_message (`str`, *optional*): The commit's first line.
        metrics_command (`str`, *optional*): What printed the numbers in `metrics.json`.
        template (`str`, *optional*): The card with placeholders, if not `model_card.md`.
        evaluation (`Path`, *optional*): Folder that `recipes/evaluate.py` wrote, for the card's `model-index` and
            `.eval_results`.
        api (`HfApi`, *optional*): The Hub, if not the one that `HF_ENDPOINT` names.

    Raises:
        ValueError: If the checkpoint does not load back or is not in its folder, the evaluation is not of it or has
            nothing to show, or a public repository is to become a private one.
    """
    folder = Path(checkpoint)
    check_files(folder)
    check_links(folder)
    results = {} if evaluation is None else results_of(evaluation, folder)
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside)  # just what goes up: that has to load
        for file in checkpoint_files(folder):
            (copy / file.name).symlink_to(file.resolve())
        found = load_problems([copy])[0]
        if found is not None:
            raise ValueError(f"{folder} does not load back: {found}.")
        card = make_card(folder, repo_id, template or card_template(), metrics_command)
        if results:
            card = with_model_index(card, repo_id.split("/")[-1], results)
        api = api or HfApi()
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public, but `--private` was given: make it private in its settings, or "
                "choose another `--repo_id`. Nothing was pushed."
            )
        message = commit_message or f"Push {folder.resolve().name}"
        return upload_checkpoint(copy, repo_id, card, message, revision=revision, api=api, more=eval_results(results))
