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
"""What a finished demo shows: scored questions, and a sheet of some of them."""

from pathlib import Path

import torch
from tqdm import tqdm

from modeling_agevlm.conversion import loading
from recipes.answering.checkpoint import load_checkpoint
from recipes.scenes.evaluation import Judged, judge


def evaluate(out: Path, variant: str, questions: list[dict]) -> list[Judged]:
    """The answers of a variant, and where its words look."""
    with loading(str(out / variant)):
        model, processor = load_checkpoint(str(out / variant))
    with tqdm(total=len(questions), desc=f"{variant:<18}", unit=" questions") as bar:
        return judge(model, processor, questions, progress=lambda done: bar.update(done - bar.n))


def looked(judged: Judged) -> tuple[str, torch.Tensor, float]:
    """The answer, and where the first phrase looks: the attention over the cells, and its share on the sink."""
    return judged.prediction, judged.attention[1].mean(0), judged.sink[1].mean().item()


def sheet_rows(judged: dict[str, list[Judged]], names: dict[str, str], num_rows: int = 8) -> list[dict]:
    """The first questions of each kind about something in the picture: nobody picked them by how they look."""
    first = next(iter(judged.values()))
    chosen, kinds = [], ["random", "count", "relation", "adversarial"]
    for n in range(num_rows):
        kind = kinds[n % len(kinds)]
        chosen.append(
            next(
                i for i, j in enumerate(first) if j.question["kind"] == kind and j.question["mask"] and i not in chosen
            )
        )
    return [
        {
            "image": first[i].question["image"],
            "question": f"{first[i].question['question']} Words: {first[i].question['phrases'][0]['text']}",
            "truth": first[i].question["answer"],
            **{names[v]: looked(j[i]) for v, j in judged.items() if v in names},
        }
        for i in chosen
    ]
