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
"""Which heads look where: every head of every cross-attention layer by itself, guided or not."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from recipes.drawing import plt
from recipes.drawing.attention import draw_attention, draw_legend
from recipes.inside.figures import as_placed, save
from recipes.inside.vlm import AgeVlm, Vlm, labels
from trainers import decode_rle


def heads(vlms: list[Vlm], rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """
    Of each model and row (`image`, `question`, `words`: a phrase of the question, or None for all of it, and the `mask` of
    what they name, or None) a line per cross-attention layer, with a panel per head.

    Raises:
        ValueError: If a model is no AGE-VLM.
    """
    for vlm in vlms:
        if not isinstance(vlm, AgeVlm):
            raise ValueError(f"{vlm.name} is no AGE-VLM: it has no heads of cross-attention to draw.")
    configs = [vlm.model.config.text_config for vlm in vlms]
    num_lines = len(rows) * sum(len(config.cross_attention_layers) for config in configs)
    num_columns = 1 + max(config.num_attention_heads for config in configs)
    size = (1.6 * num_columns, 2.2 * num_lines)
    figure, grid = plt.subplots(num_lines, num_columns, figsize=size, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    numbers: dict[str, Any] = {"models": {}}
    maps, lines = {}, iter(grid)
    for vlm, name, config in zip(vlms, labels(vlms), configs, strict=True):
        layers = sorted(config.cross_attention_layers)
        all_heads = range(config.num_attention_heads)
        guided_heads = all_heads if config.guidance_heads is None else sorted(config.guidance_heads)
        guided = [(layer, head) for layer in sorted(config.guided_layers) for head in guided_heads]
        numbers["models"][name] = {"layers": layers, "guided": guided, "rows": []}
        for n, row in enumerate(rows):
            image, words = row["image"], row["words"] or row["question"]
            inputs, _ = vlm.encode(image, row["question"])
            attention, on_nothing = vlm.look_of_heads(inputs, vlm.find(inputs, words))
            shares = {"on nothing": on_nothing} if vlm.can_look_away else {}
            if row["mask"] is not None:
                cells = vlm.processor.image_processor.mask_coverage(decode_rle(row["mask"])) > 0
                shares["in the mask"] = (attention * cells).sum((-2, -1))
            maps[f"{n} {name}"] = attention.numpy()
            entry = {"question": row["question"], "words": words}
            numbers["models"][name]["rows"].append(entry | {what: share.tolist() for what, share in shares.items()})

            seen = as_placed(image, vlm.placement(image, vlm.grid)[0])
            panels = [next(lines) for _ in layers]
            panels[0][0].imshow(image)
            title = "\n".join([name, *textwrap.wrap(row["question"], 24), f"words: {row['words'] or 'all'}"])
            panels[0][0].set_title(title, fontsize=8, loc="left", parse_math=False)
            for place in np.ndindex(attention.shape[:2]):
                layer, head = layers[place[0]], place[1]
                axes = panels[place[0]][1 + head]
                draw_attention(axes, seen, attention[place].numpy())
                said = [f"{share[place]:.0%} {what}" for what, share in shares.items()]
                color = "tab:red" if (layer, head) in guided else "black"
                axes.set_title("\n".join([f"layer {layer}, head {head}", *said]), fontsize=8, loc="left", color=color)
    figure.tight_layout()
    figure.text(0.01, 0, "Guided heads are titled in red.", fontsize=8, va="top")
    draw_legend(figure)
    save(figure, out, numbers)
    np.savez_compressed(out.with_suffix(".npz"), **maps)
    return numbers
