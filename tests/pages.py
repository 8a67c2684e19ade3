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
"""The pages that people read, and what of them can be run."""

import re
from pathlib import Path


ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")],
    )
    if path.name != "model_card.md"
    and not (path.parent / "config.json").exists()  # a template, and what is made of it
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SERVER = "localhost:8000"  # what a block that needs `recipes/serve.py` to run talks to


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [block for kind, block in FENCED.findall(text) if kind == language]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCED.sub("", text)
