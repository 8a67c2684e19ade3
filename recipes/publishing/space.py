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
"""A Space on the Hub that runs the app: its files are the app's own and the packages that it imports, from here."""

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.hf_api import CommitInfo
from packaging.requirements import Requirement

from recipes.space import examples


ROOT = Path(__file__).parents[2]
FOLDERS = ("modeling_agevlm", "recipes/answering", "recipes/drawing", "recipes/space", "recipes/terminal")
# What they import. Gradio's version stands in the card.
PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "safetensors",
    "huggingface-hub",
    "jinja2",
    "pillow",
    "matplotlib",
)
APP = '''"""The app of AGE-VLM, whose sources stand beside this file."""

from pathlib import Path

from recipes.space import examples
from recipes.space.interface import build, launch


launch(build({models}, examples(Path(__file__).parent / "examples")))
'''
CARD = """
# Ask {name}, and see where the words look

An app for {links}: choose a picture, ask a question, and point at the words of the answer to see which part of the picture they
look at. The attention is drawn in multiples of even attention, in the same colors for all words.
"""


def requirements() -> list[str]:
    """The lines of `pyproject.toml` for the packages that the app imports."""
    given = [Requirement(line) for line in metadata.requires("age-vlm")]
    return [str(line) for line in given if line.name in PACKAGES and line.marker is None]


def space_files(models: Sequence[str], version: str) -> dict[str, bytes]:
    """
    The files of a Space by their paths.

    Args:
        models (`Sequence[str]`): Hub ids of the checkpoints; with several, two answers stand side by side.
        version (`str`): Gradio's, with which the app runs.
    """
    links = " and ".join(f"[{name}](https://huggingface.co/{name})" for name in models)
    header = {"title": "AGE-VLM", "sdk": "gradio", "sdk_version": version, "app_file": "app.py"}
    header |= {"python_version": "3.11", "models": list(models), "license": "apache-2.0", "pinned": False}
    card = f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{CARD.format(name=models[0], links=links)}"
    files = {
        "README.md": card.encode(),
        "app.py": APP.format(models=json.dumps(list(models))).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in requirements()).encode(),
        "recipes/__init__.py": (ROOT / "recipes/__init__.py").read_bytes(),
    }
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).iterdir()):
            if file.is_file():
                files[f"{folder}/{file.name}"] = file.read_bytes()
    return files | {f"examples/{Path(file).name}": Path(file).read_bytes() for file, _ in examples()}


def push_space(repo_id: str, models: Sequence[str], private: bool = False, api: HfApi | None = None) -> CommitInfo:
    """
    Puts the app up as a Space, in one commit.

    Args:
        repo_id (`str`): The Space, `owner/name`; made if there is none.
        models (`Sequence[str]`): Hub ids of the checkpoints that it asks.
        private (`bool`, *optional*, defaults to `False`): Whether only its owner sees it.
        api (`HfApi`, *optional*): The Hub, if not the one that `HF_ENDPOINT` names.
    """
    api = api or HfApi()
    made = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
    files = [
        CommitOperationAdd(path, content) for path, content in space_files(models, metadata.version("gradio")).items()
    ]
    return api.create_commit(made.repo_id, files, commit_message="Push the app", repo_type="space")
