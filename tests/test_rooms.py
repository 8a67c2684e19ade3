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
"""The house: commands, the rooms that they share, and which of them may import which."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL


ROOT = Path(__file__).parents[1]
PACKAGES = ("recipes", "trainers", "modeling_agevlm")
COMMANDS = sorted(file for file in ROOT.glob("recipes/*.py") if file.name != "__init__.py")
COPIES = (TRAINED_MODEL, UNGUIDED_MODEL)
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.parent not in COPIES)
MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}


def imported(file: Path) -> Iterator[str]:
    """The project's modules that a file imports, anywhere in it, but for what only type checkers and scanners read."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    read = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    unread = {id(inner) for block in read for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in unread:
            continue
        if isinstance(node, ast.ImportFrom):
            inside = file.relative_to(ROOT).parent.parts[: 1 - node.level or None] if node.level else ()
            module = ".".join([*inside, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in names if module in MODULES)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def floor(module: str) -> str:
    """A command, a room, or one of the other packages."""
    package, *inner = module.split(".")
    if package != "recipes" or not inner:
        return package
    return f"recipes/{inner[0]}"


def test_nothing_imports_in_a_circle():
    graph = {module: set(imported(file)) - {module} for module, file in MODULES.items()}
    packages = {name: modules - {name.rpartition(".")[0]} for name, modules in graph.items()}
    order = list(TopologicalSorter(packages).static_order())
    assert len(order) == len(MODULES) > 80


def test_rooms_import_in_one_direction():
    arrows: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        here = floor(module)
        arrows.setdefault(here, set()).update({floor(name) for name in imported(file)} - {here})
    list(TopologicalSorter(arrows).static_order())
    commands = {f"recipes/{file.stem}" for file in COMMANDS}
    assert not {to for tos in arrows.values() for to in tos} & commands
    assert arrows["modeling_agevlm"] == set() and arrows["trainers"] <= {"modeling_agevlm"}
    assert {"recipes/scenes", "recipes/training", "recipes/evaluation", "recipes/inside"} <= arrows.keys() - commands


@pytest.mark.parametrize("file", COMMANDS, ids=lambda file: file.stem)
def test_commands_parse_before_they_import(file: Path):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body) or "import main" in (
        file.read_text(encoding="utf-8")
    )
    assert ast.unparse(tree.body[-1].test) == "__name__ == '__main__'"
    modules = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert {module.split(".")[0] for module in modules} <= {"recipes", *sys.stdlib_module_names}


def test_help_imports_no_torch():
    """The modules that commands import at the top are light."""
    tops = {
        node.module
        for file in COMMANDS
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("recipes")
    }
    code = f"import importlib, sys; [importlib.import_module(name) for name in {sorted(tops)}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_command_or_room_hides_a_library():
    """A script puts its folder first on the path; `recipes` takes it off before any library is imported."""
    names = {entry.stem for entry in (ROOT / "recipes").iterdir()} - {"__init__", "__pycache__"}
    assert not names & set(sys.stdlib_module_names)  # those are imported before
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'recipes')!r}); import recipes\n"
        "from importlib.machinery import PathFinder\n"
        f"specs = [PathFinder.find_spec(name) for name in {sorted((names | set(packages_distributions())) - set(PACKAGES))}]\n"
        "print([spec.origin for spec in specs if spec and '/recipes/' in (spec.origin or '')])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_files_are_of_a_length_that_one_reads():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    lengths.pop("modeling_agevlm/modeling_agevlm.py")
    assert max(lengths.values()) <= 600
