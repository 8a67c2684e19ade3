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
Runs the notebooks and keeps their outputs, but for what goes to stderr.

    python notebooks/run.py [NOTEBOOK ...] [--out FOLDER]
"""

import argparse
from pathlib import Path


HERE = Path(__file__).parent


def run(notebook: Path, out: Path) -> None:
    """Writes the notebook to `out` as it is after all of its cells have run, in the folder where it stands."""
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    NotebookClient(content, timeout=None, resources={"metadata": {"path": str(notebook.parent)}}).execute()
    for cell in content.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(content, out / notebook.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to; default: where they stand")
    args = parser.parse_args()
    for notebook in args.notebooks:
        run(notebook, args.out)


if __name__ == "__main__":
    main()
