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
"""What a stage's checkpoint tells about its making (`training.json`), and the template of its model card."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recipes.answering.checkpoint import find_file
from trainers import GuidedSFTConfig
from trainers.hub import RECORD_NAME


ROOT = Path(__file__).parents[2]
MODEL_CARD = ROOT / "model_card.md"
HYPERPARAMETERS = ("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2")
HYPERPARAMETERS += ("max_grad_norm", "max_length", "bf16", "seed", "guidance_weight", "guidance_normalization")
HYPERPARAMETERS += ("guidance_query", "guidance_level", "guidance_layers", "guidance_heads", "mask_downsampling")
LORA = ("lora_r", "lora_alpha", "lora_dropout")
# Of each stage's entry in the record
FIELDS = {"stage": int, "variant": str, "dataset": str, "hyperparameters": dict, "code": str}
FIELDS |= dict.fromkeys(("command", "dataset_id", "vision", "text", "model"), str | None)
FIELDS |= {"base_models": list | None, "guided_heads": dict | None}
SECRET = re.compile(r"\bhf_\w+")
REDACTED = "..."


def card_template() -> str | None:
    """The text of `model_card.md`; None where the recipes were installed without the repository around them."""
    return MODEL_CARD.read_text(encoding="utf-8") if MODEL_CARD.exists() else None


def code_version() -> str:
    """The commit of this repository, with `-dirty` if files differ from it; outside of git, the package's version."""
    if (ROOT / ".git").exists():
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
        result = subprocess.run(describe, capture_output=True, text=True)
        if result.returncode == 0:
            return result.stdout.strip()
    return f"age-vlm {version('age-vlm')}"


def public_name(path: str) -> str:
    """A path as others may read it: relative to the repository if inside it, the last part if absolute."""
    if not Path(path).is_absolute():
        return path
    resolved = Path(path).resolve()
    return resolved.relative_to(ROOT).as_posix() if resolved.is_relative_to(ROOT) else resolved.name


def public_command(arguments: Sequence[str]) -> str:
    """A command line as others may read it: without tokens and without this machine's folders."""
    words, hide = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hide:
            argument = REDACTED
        elif equals:
            argument = f"{name}={REDACTED if is_secret(name) else public_name(value)}"
        else:
            argument = public_name(argument)
        words.append(SECRET.sub(REDACTED, argument))
        hide = not equals and is_secret(name)
    return f"python {shlex.join(words)}"


def is_secret(option: str) -> bool:
    return option.startswith("--") and option.endswith(("token", "key", "password"))


def hub_ids(vision: str, text: str) -> list[str]:
    """Ids on the Hub of the parts that come from there, the LLM first."""
    ids = []
    if not Path(text).exists():
        ids.append(text.rpartition(":")[0] if text.endswith(".gguf") else text)
    if not Path(vision).exists() and not vision.startswith("local-dir:"):
        vision = vision.removeprefix("hf-hub:").removeprefix("hf_hub:").partition("@")[0]
        ids.append(vision if "/" in vision else f"timm/{vision}")
    return ids


def read_record(checkpoint: str | None, revision: str | None = None) -> list[dict[str, Any]]:
    """
    The stages that a checkpoint (folder or Hub id) went through; nothing where it does not say.

    Raises:
        ValueError: If what it says is no such record.
    """
    if checkpoint is None:
        return []
    file = find_file(checkpoint, RECORD_NAME, revision)
    if file is None:
        return []
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{checkpoint}: its {RECORD_NAME} is no JSON ({error}).") from None
    for run in record if isinstance(record, list) else [record]:
        wrong = [
            name for name, kind in FIELDS.items() if not isinstance(run, dict) or not isinstance(run.get(name), kind)
        ]
        if wrong or not isinstance(record, list) or not all(isinstance(n, str) for n in run.get("base_models") or ()):
            raise ValueError(
                f"{checkpoint}: its {RECORD_NAME} is no list of the stages that it went through, as the stages write it "
                f"(look at {', '.join(wrong) or 'base_models'}). Mend it, or remove it."
            )
    return record


def parts_of(record: list[dict[str, Any]]) -> dict[str, str]:
    """What the checkpoint was built from, by the options' names, as far as its record says."""
    return {name: run[name] for run in record for name in ("vision", "text") if isinstance(run.get(name), str)}


def run_record(
    number: int, arguments: Any, data: Any, training: GuidedSFTConfig, before: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """
    The record of a run after those of what the checkpoint went through before. It holds no token and no folder of this machine.

    Args:
        number (`int`): 1 to 4 for a stage.
        arguments ([`ModelArguments`]): The model that the stage starts from, and the variant.
        data ([`DataArguments`]): The rows.
        training ([`GuidedSFTConfig`]): The training arguments.
        before (`list[dict]`): What the checkpoint's own record says, as `read_record` gives it.
    """
    name = arguments.model_name_or_path
    scenes = data.dataset_name == "scenes"
    is_local = scenes or Path(data.dataset_name).exists()
    words = [f"{data.num_scenes} scenes, seed {data.scenes_seed}" if scenes else f"`{public_name(data.dataset_name)}`"]
    words += [data.dataset_config] if data.dataset_config and not scenes else []
    run = {
        "stage": number,
        "variant": arguments.variant or "age-vlm",
        "vision_training": arguments.vision_training,
        "dataset": " ".join([*words, f"({data.dataset_split})"]),
        "dataset_id": None if is_local else data.dataset_name,
        "hyperparameters": {
            "rows_per_step": training.per_device_train_batch_size
            * training.gradient_accumulation_steps
            * training.world_size,
            **{key: getattr(training, key) for key in HYPERPARAMETERS},
            **({key: getattr(arguments, key) for key in LORA} if arguments.use_peft else {}),
        },
        "command": public_command(sys.argv),
        "code": code_version(),
    }
    if name is None:
        run |= {
            "vision": public_name(arguments.vision),
            "text": public_name(arguments.text),
            "base_models": hub_ids(arguments.vision, arguments.text),
        }
    return [*before, run]
