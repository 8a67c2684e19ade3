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
"""What of a checkpoint folder goes to the Hub, and how: its own files only, all in one commit."""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import HubStrategy
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import PushInProgress, hf_api

from .model_card import model_card, other_vlm_card


logger = logging.get_logger(__name__)

RECORD_NAME = "training.json"
CARD_NAME = "README.md"
CODE = "*_agevlm.py"
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, "model-*-of-*.safetensors")
# Besides weights and card. Whatever else lies in the folder (optimizer, training_args.bin with its token, ...) stays.
BELONGS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    CODE,
    RECORD_NAME,
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
# What is being pushed in the background, safe from `save_total_limit`.
PUSHED = "_pushed"


def checkpoint_files(folder: str | Path) -> list[Path]:
    """The files of a checkpoint folder that go to the Hub, the card excepted."""
    names = {path.name for path in Path(folder).iterdir() if path.is_file()}
    # Where there are both, `from_pretrained` takes the single file.
    weights = WEIGHTS[:1] if SAFE_WEIGHTS_NAME in names else WEIGHTS[1:]
    return [Path(folder, name) for name in sorted(names) if any(fnmatch(name, p) for p in BELONGS + weights)]


def link_or_copy(source: str | Path, destination: str | Path) -> None:
    """A second name for a file, or a copy where the file system has no hard links."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def upload_checkpoint(
    folder: str | Path,
    repo_id: str,
    card: str,
    commit_message: str,
    revision: str | None = None,
    token: str | None = None,
    api: HfApi | None = None,
    more: Mapping[str, bytes] | None = None,
) -> CommitInfo:
    """
    Puts up a checkpoint folder with its card, in one commit: whoever loads meanwhile gets all of the old or all of the
    new one. Nothing is deleted but weights of an earlier push that `from_pretrained` would mix up with these.

    Args:
        folder (`str` or `Path`): The checkpoint.
        repo_id (`str`): A repository that exists.
        card (`str`): Text of the model card.
        commit_message (`str`): The commit's first line.
        revision (`str`, *optional*): Branch; made from the default branch if there is none.
        token (`str`, *optional*): Token, if not the one that is logged in.
        api (`HfApi`, *optional*): The Hub, if not the one that `HF_ENDPOINT` names.
        more (`Mapping[str, bytes]`, *optional*): Further files by their paths in the repository.
    """
    api = api or HfApi()
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True, token=token)
    files = checkpoint_files(folder)
    names = {file.name for file in files}
    operations: list = [CommitOperationAdd(file.name, str(file)) for file in files]
    further = {CARD_NAME: card.encode(), **(more or {})}
    operations += [CommitOperationAdd(path, content) for path, content in further.items()]
    operations += [
        CommitOperationDelete(name)
        for name in api.list_repo_files(repo_id, revision=revision, token=token)
        if name not in names and any(fnmatch(name, pattern) for pattern in WEIGHTS)
    ]
    return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision, token=token)


class HubMixin:
    """
    What [`GuidedSFTTrainer`] does otherwise than [`transformers.Trainer`] and TRL with the Hub: pushes hold the model's own
    files, code included, and the card is filled from a template.
    """

    _card_template: str | None = None
    """Text of `model_card.md`."""
    _parameter_counts: dict[str, int]
    """Parameters per part of the model."""

    _region_attention: Any = None
    """What reads the attention of a model that is no AGE-VLM."""

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes the README.md of the output folder: of an AGE-VLM from the card's template."""
        is_age_vlm, record = self._region_attention is None, self._current_record()
        if not (record if not is_age_vlm else self._card_template):
            return super().create_model_card(model_name, dataset_name, tags)
        if self.is_world_process_zero():
            name = self.hub_model_id or model_name or Path(self.args.output_dir).name
            log = self.state.log_history
            if is_age_vlm:
                config = self._base_model().config.to_dict()
                card = model_card(self._card_template, name, config, self._parameter_counts, log, record)
            else:
                card = other_vlm_card(name, record, log)
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            Path(self.args.output_dir, CARD_NAME).write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """
        As [`transformers.Trainer.push_to_hub`], but only what belongs to the model goes up: not the training arguments,
        which hold the token, and not what else lies in the output folder.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        job = self._push(self.args.output_dir, commit_message, token, revision)
        return job.result() if blocking else job

    def _push(self, folder: str | Path, message: str, token: str | None = None, revision: str | None = None) -> Future:
        """Starts to put up the checkpoint in `folder` with the card as it is now."""
        card = Path(self.args.output_dir, CARD_NAME).read_text(encoding="utf-8")
        revision, token = revision or self.args.hub_revision, token or self.args.hub_token
        api = hf_api()
        return api.run_as_future(upload_checkpoint, folder, self.hub_model_id, card, message, revision, token, api)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """
        Also puts up the code, which transformers (5.24) leaves out until the end of training
        (https://github.com/huggingface/transformers/issues/29714).
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # From a copy: the upload goes on in the background, and `save_total_limit` may take the checkpoint away.
        name = Path(checkpoint_folder).name
        copy = Path(self.args.output_dir, PUSHED, name)
        shutil.rmtree(copy if busy else copy.parent, ignore_errors=True)
        shutil.copytree(checkpoint_folder, copy, copy_function=link_or_copy)
        message = f"Training in progress, step {self.state.global_step}"
        jobs = [self._push(copy, message)]
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):  # to resume from
            jobs.append(
                hf_api().upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=copy,
                    path_in_repo="last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else name,
                    commit_message=f"{message}, checkpoint",
                    token=self.args.hub_token,
                    run_as_future=True,
                    ignore_patterns=[TRAINING_ARGS_NAME],  # holds the token
                    revision=self.args.hub_revision,
                )
            )
        if busy:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self) -> None:
        """Also says which pushes failed, which transformers (5.24) keeps to itself."""
        super()._finish_current_push()
        if self.args.push_to_hub and self.is_world_process_zero():
            for job in self.push_in_progress.jobs if self.push_in_progress is not None else []:
                if job.exception() is not None:
                    logger.warning(f"A push during training failed: {job.exception()}")
            self.push_in_progress = None
            shutil.rmtree(Path(self.args.output_dir, PUSHED), ignore_errors=True)
