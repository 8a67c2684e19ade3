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
"""Rows that were written, as a data set on the Hub."""

from pathlib import Path

from datasets import Image, List, load_dataset
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id

from recipes.rows.files import check_complete


def check_id(repo_id: str) -> None:
    """Raises `ValueError` unless it is an id of the Hub, with its owner: before hours of work, rather than behind them."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`--push_to_hub` is an id such as me/captions, not {repo_id!r}: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"`--push_to_hub` is an id such as me/captions, not {repo_id!r}.")


def push(folder: Path, repo_id: str) -> str:
    """
    Puts the rows of a folder up with the bytes of their pictures, in a data set that is private if it is new. Returns the
    commit's address.

    Raises:
        ValueError: If files are missing, the Hub cannot be reached, or it says no. The rows stay in their folder.
    """
    check_complete(folder)
    rows = load_dataset(str(folder), split="train").cast_column("images", List(Image()))
    try:
        return rows.push_to_hub(repo_id, private=True).commit_url
    except (OSError, httpx.HTTPError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"The rows are in {folder}, but not on the Hub: {said}") from error
