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
"""What a stage does with what lies in its output folder: goes on from it, leaves it alone, or clears it away."""

import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from recipes.training.record import read_record
from trainers import GuidedSFTConfig
from trainers.checkpointing import check_complete, checkpoints_of, is_complete, last_checkpoint, remove


# Of a stage's entry in the record: what may be another when it goes on.
MAY_CHANGE = ("command", "code", "steps")


def where_it_begins(
    training: GuidedSFTConfig, overwrite: bool, start: str | None, record: list[dict[str, Any]]
) -> Path | None:
    """
    The checkpoint that a run goes on from, whose guided heads go into its record; None if it begins. Makes the output folder.

    Args:
        training ([`GuidedSFTConfig`]): Where it saves, and whether it is to go on.
        overwrite (`bool`): `--overwrite_output_dir`: whether another run's checkpoints in it may go.
        start (`str`, *optional*): The model that it starts from.
        record (`list[dict]`): What the run is, as `run_record` says it.

    Raises:
        ValueError: If what it starts from would be cleared away, the checkpoint is of another run, or there are another run's.
        OSError: If nothing can be written there.
    """
    folder = Path(training.output_dir)
    if overwrite and start is not None and Path(start).resolve().parent == folder.resolve():
        raise ValueError(f"`--overwrite_output_dir` would clear away {start}, from which the run starts.")
    check_writable(training.output_dir)
    checkpoint = checkpoint_to_resume(training.output_dir, training.resume_from_checkpoint, overwrite, record)
    if checkpoint is not None and (heads := read_record(str(checkpoint))[-1].get("guided_heads")):
        record[-1]["guided_heads"] = heads  # `auto` might choose others on another machine
    return checkpoint


def checkpoint_to_resume(
    output_dir: str, resume: str | bool | None, overwrite: bool, record: list[dict[str, Any]]
) -> Path | None:
    """
    The checkpoint that a run goes on from; None if it begins.

    Args:
        output_dir (`str`): Where the run saves.
        resume (`str` or `bool`, *optional*): `--resume_from_checkpoint`: true for the last complete checkpoint in
            `output_dir` if there is one, false, or a checkpoint's folder.
        overwrite (`bool`): `--overwrite_output_dir`: whether another run's checkpoints in it may go.
        record (`list[dict]`): What the run is, as `run_record` says it.

    Raises:
        ValueError: If the checkpoint is of another run, or there are another run's, and they are not to go.
    """
    folder, word = Path(output_dir), str(resume or "false").lower()
    if overwrite and word != "false":
        raise ValueError(
            "`--overwrite_output_dir` begins anew and `--resume_from_checkpoint` goes on: leave one of them out."
        )
    if word not in ("true", "false") and not Path(word := str(resume)).is_dir():
        raise ValueError(
            f"`--resume_from_checkpoint` is `true`, `false` or the folder of a checkpoint, but there is no folder {word}."
        )
    checkpoint = {"true": last_checkpoint(folder), "false": None}.get(word, Path(word))
    if checkpoint is not None:
        check_complete(checkpoint)
        check_same_run(checkpoint, record)
        if checkpoint.resolve().parent == folder.resolve():
            return checkpoint
    left = [] if word == "true" else [path.name for path in checkpoints_of(folder)]
    if left and not overwrite:
        raise ValueError(
            f"{folder} holds the checkpoints of another run ({', '.join(left)}). Go on with it by `--resume_from_checkpoint "
            "true`, clear them away by `--overwrite_output_dir true`, or choose another `--output_dir`."
        )
    return checkpoint


def check_same_run(checkpoint: Path, record: list[dict[str, Any]]) -> None:
    """Raises `ValueError` if a checkpoint says that it is of another run than `record` describes."""
    *before, run = record
    *before_then, then = read_record(str(checkpoint)) or [None]
    if then is None:
        raise ValueError(
            f"{checkpoint} cannot be gone on from: nothing in it says of which run it is (training.json is not there)."
        )
    differing = differences(then, run)
    if before_then != before:
        differing.append("it started from another model")
    if differing:
        raise ValueError(
            f"{checkpoint} is of another run: {'; '.join(differing)}. Go on with what it was begun with, or begin anew with "
            "`--overwrite_output_dir true` or another `--output_dir`."
        )


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In words, what of two runs' entries in the record differs; versions that did not write a field say nothing of it."""
    found = []
    for name in [name for name in then if name in now and name not in MAY_CHANGE]:
        if isinstance(then[name], dict) and isinstance(now[name], dict):
            found += differences(then[name], now[name])
        elif then[name] != now[name]:
            found.append(f"its {name} was {then[name]!r}, not {now[name]!r}")
    return found


def how_it_begins(checkpoint: Path | None, training: GuidedSFTConfig) -> str:
    """In words, where a run begins that was asked to go on if it can."""
    cut_off = [path.name for path in checkpoints_of(training.output_dir) if not is_complete(path)]
    note = f" (Not complete, and left alone: {', '.join(cut_off)}.)" if cut_off else ""
    if checkpoint is None:
        return f"There is no checkpoint in {training.output_dir} to go on from: the run begins.{note}"
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    words = f"Goes on from {checkpoint}, after step {state.global_step} of {state.max_steps}"
    if training.max_steps > 0 and training.max_steps != state.max_steps:
        words += f". There are {training.max_steps} now, over which the learning rate is spread"
    return f"{words}.{note}"


def check_writable(output_dir: str) -> None:
    """Makes the output folder. Raises `OSError` if nothing can be written there."""
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        raise OSError(
            f"Nothing can be saved in {output_dir} ({error.strerror}): choose another `--output_dir`."
        ) from error


def clear(output_dir: str) -> None:
    """Removes the checkpoints in a folder. A finished model stays until there is another."""
    for checkpoint in checkpoints_of(output_dir):
        remove(checkpoint)


def check_finished(folder: str) -> None:
    """Raises `ValueError` if a folder's model is not that of the run that was last in it, which has not ended."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return
    model, then = (read_record(name) or [{}] for name in (folder, str(checkpoint)))
    if (
        len(then) != len(model)
        or differences(then[-1], model[-1])
        or then[-1].get("steps", 0) > model[-1].get("steps", 0)
    ):
        raise ValueError(
            f"{folder} holds {checkpoint.name} of a run that has not ended, beside the model of another one. Go on with that "
            "run first, or remove its checkpoints."
        )
