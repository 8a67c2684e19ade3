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
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


RECORD_NAME = "training.json"
CARD_NAME = "README.md"
CODE = "*[!t]_agevlm.py"  # all but convert_agevlm.py, which no checkpoint needs
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
    """
    api = api or HfApi()
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True, token=token)
    files = checkpoint_files(folder)
    names = {file.name for file in files}
    operations: list = [CommitOperationAdd(file.name, str(file)) for file in files]
    operations.append(CommitOperationAdd(CARD_NAME, card.encode()))
    operations += [
        CommitOperationDelete(name)
        for name in api.list_repo_files(repo_id, revision=revision, token=token)
        if name not in names and any(fnmatch(name, pattern) for pattern in WEIGHTS)
    ]
    return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision, token=token)
