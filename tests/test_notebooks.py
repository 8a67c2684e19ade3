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
"""The notebooks run, and what they keep is what they print."""

import importlib.util
import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest


NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SLOW = {"tune_on_your_pictures": pytest.mark.slow}


def outputs(notebook: Path) -> list[list[dict[str, Any]]]:
    """Of each code cell."""
    return [cell["outputs"] for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def kinds(notebook: Path) -> list[list[str]]:
    """Of each code cell's outputs, in order; what is printed may come in one piece or in several."""
    return [[kind for kind, _ in groupby(output["output_type"] for output in cell)] for cell in outputs(notebook)]


def said(notebook: Path) -> str:
    """All that its cells print."""
    return "".join("".join(output.get("text", "")) for cell in outputs(notebook) for output in cell)


@pytest.mark.parametrize(
    "name", [pytest.param(p.stem, marks=SLOW.get(p.stem, ())) for p in sorted(NOTEBOOKS.glob("*.ipynb"))]
)
def test_notebook(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever numbers another machine gives, the words of the short answers are the same."""
    spec = importlib.util.spec_from_file_location("run", NOTEBOOKS / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH", "")]))
    kept = NOTEBOOKS / f"{name}.ipynb"
    module.run(kept, tmp_path)
    first = {
        "ask_and_look": "The lion is to the left of the elephant.",
        "guided_or_not": "with guidance: No.",
        "tune_on_your_pictures": "A red sign.",
    }
    for notebook in (kept, tmp_path / kept.name):
        assert first[name] in said(notebook)
    assert kinds(kept) == kinds(tmp_path / kept.name)


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_notebooks_keep(notebook: Path):
    """Their outputs, without warnings and without names of the machine where they ran."""
    text = notebook.read_text()
    assert any(outputs(notebook)) and '"stderr"' not in text and '"error"' not in text
    assert str(Path.home()) not in text and "/tmp/" not in text and ".venv" not in text
    assert len(text) < 500_000
