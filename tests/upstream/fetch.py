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
Puts transformers' own test mixins into a folder that git ignores, in the version that is installed.

The source distribution holds `tests/test_*common.py`, but neither `tests/generation` nor `tests/exporters` nor the
test utilities at the repository's root. `--checkout` takes all of them from a checkout of the repository; without it
empty stand-ins take their place, and the generation and export suites do not run.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


PICTURE = Path(__file__).parents[1].resolve() / "data/kitchen.jpg"
# What the source distribution leaves out, and what the suites import from it
STAND_INS = {
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    # The pictures that the suites name by address
    "utils/fetch_hub_objects_for_ci.py": f"def url_to_local_path(*args, **kwargs):\n    return {str(PICTURE)!r}\n",
}


def fetch(target: Path, checkout: Path | None) -> None:
    """Fills `target` with `tests/` and `utils/`, which can be imported from there."""
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        if checkout is None:
            requirement = f"transformers=={transformers.__version__}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--no-binary", ":all:", "--no-build-isolation", "--dest", folder, requirement]
            subprocess.run(command, check=True)
            with tarfile.open(next(Path(folder).glob("transformers-*.tar.gz"))) as archive:
                archive.extractall(folder, filter="data")
            checkout = next(path for path in Path(folder).glob("transformers-*") if path.is_dir())
        target.mkdir(parents=True)
        for name in ("tests", "utils"):
            if (checkout / name).is_dir():
                shutil.copytree(checkout / name, target / name)
    for name, text in STAND_INS.items():
        path = target / name
        if not path.exists():
            print(f"{name} is not there; its suite is left out")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for folder in ("tests", "tests/generation", "tests/exporters", "tests/utils"):
        (target / folder / "__init__.py").touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="folder to fill, replaced if it exists")
    parser.add_argument("--checkout", type=Path, help="checkout of transformers at the installed version")
    arguments = parser.parse_args()
    fetch(arguments.target, arguments.checkout)
