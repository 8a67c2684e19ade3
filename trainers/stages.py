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
The four training stages (Table 1 of https://huggingface.co/papers/2511.17793), the four final models, and the concatenation
models that the paper compares them with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args


if TYPE_CHECKING:
    from torch import nn

Variant = Literal[
    "age-vlm", "age-vlm-lm", "ca-baseline", "ca-baseline-frozen", "concatenation", "concatenation-guided"
]
CONCATENATION = ("concatenation", "concatenation-guided")
"""The variants whose visual tokens stand among the words."""

VisionTraining = Literal["none", "last_block", "last_stage", "all"]


@dataclass(frozen=True)
class Stage:
    """What one stage trains. The projector and the cross-attention layers, if there are any, train in every stage."""

    number: int
    vision: VisionTraining
    """Which part of the vision tower trains. The paper's "final block" of the ConvNeXt is read as its last stage."""
    language_model: bool = False
    """Whether the LLM trains: self-attention, MLPs, norms, embeddings and head."""
    guided: bool = False
    """Whether the guidance loss is added."""


STAGES = {
    1: Stage(1, vision="none"),
    2: Stage(2, vision="last_stage"),
    3: Stage(3, vision="last_stage", guided=True),
    4: Stage(4, vision="all"),
}


def get_stage(number: int, variant: Variant = "age-vlm") -> Stage:
    """
    Stage `number` of a variant. The variants share stages 1 and 2:

    |                             | LLM frozen in stage 4 | LLM trained in stage 4 |
    |-----------------------------|-----------------------|------------------------|
    | guided in stage 3           | `age-vlm`             | `age-vlm-lm`, guided in stage 4 too |
    | never guided                | `ca-baseline-frozen`  | `ca-baseline`          |

    A concatenation model has the same tower, projector and LLM, with the visual tokens among the words. Its LLM trains in
    stage 4; `concatenation-guided` is guided in stages 3 and 4, `concatenation` never.

    Raises:
        ValueError: If there is no such stage or variant.
    """
    if number not in STAGES:
        raise ValueError(f"There is no stage {number}; the stages are {', '.join(map(str, STAGES))}.")
    stage = STAGES[number]
    match variant:
        case "age-vlm":
            return stage
        case "age-vlm-lm":
            return replace(stage, language_model=True, guided=True) if number == 4 else stage
        case "ca-baseline":
            return replace(stage, language_model=number == 4, guided=False)
        case "ca-baseline-frozen":
            return replace(stage, guided=False)
        case "concatenation":
            return replace(stage, language_model=number == 4, guided=False)
        case "concatenation-guided":
            return replace(stage, language_model=number == 4, guided=number >= 3)
    raise ValueError(f"There is no variant {variant!r}; the variants are {', '.join(get_args(Variant))}.")


def cross_attention_layers(model: nn.Module) -> Sequence[int]:
    """The layers of the LLM that read the picture by cross-attention; none of a concatenation model."""
    return getattr(model.config.text_config, "cross_attention_layers", ())


def model_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """
    The parameters of an [`AgeVlmForConditionalGeneration`] or of a concatenation model by part; tied parameters once, with the
    LLM.
    """
    base = model.model
    cross_attention = [p for i in cross_attention_layers(model) for p in base.language_model.layers[i].parameters()]
    ids = {id(p) for p in cross_attention}
    language_model = [p for p in base.language_model.parameters() if id(p) not in ids]
    if model.lm_head.weight is not base.language_model.embed_tokens.weight:
        language_model += list(model.lm_head.parameters())
    return {
        "vision_tower": list(base.vision_tower.parameters()),
        "projector": list(base.multi_modal_projector.parameters()),
        "cross_attention": cross_attention,
        "language_model": language_model,
    }


def trained_vision_modules(model: nn.Module, vision: VisionTraining) -> list[nn.Module]:
    """What of the vision tower trains."""
    tower = model.model.vision_tower
    last_stage = tower.timm_model.stages[-1]
    return {"none": [], "last_block": [last_stage.blocks[-1]], "last_stage": [last_stage], "all": [tower]}[vision]


def apply_stage(model: nn.Module, stage: Stage) -> None:
    """
    Sets `requires_grad` of every parameter of an [`AgeVlmForConditionalGeneration`] or of a concatenation model as `stage` says.
    """
    parts = model_parts(model)
    for part, trains in {
        "vision_tower": False,
        "projector": True,
        "cross_attention": True,
        "language_model": stage.language_model,
    }.items():
        for parameter in parts[part]:
            parameter.requires_grad_(trains)
    for module in trained_vision_modules(model, stage.vision):
        module.requires_grad_(True)
    model.model.vision_tower.timm_model.head.requires_grad_(
        False
    )  # a norm in transformers' own towers, which is not used


def count_parameters(sizes: Iterable[tuple[str, int]], cross_attention_layers: Sequence[int]) -> dict[str, int]:
    """Parameters per part of the model, from each tensor's name and number of elements."""
    cross_attention = tuple(f"language_model.layers.{layer}." for layer in cross_attention_layers)
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 0)
    for name, size in sizes:
        if "vision_tower." in name:
            counts["vision_tower"] += size
        elif "multi_modal_projector." in name:
            counts["projector"] += size
        elif any(layer in name for layer in cross_attention):
            counts["cross_attention"] += size
        else:
            counts["language_model"] += size
    return counts


def parameter_table(model: nn.Module) -> str:
    """A table of the parameters per part: all of them and those that train. Adapters count with the LLM."""
    layers = cross_attention_layers(model)
    # peft keeps the weights from before of what trains whole
    parameters = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    total = count_parameters(((name, p.numel()) for name, p in parameters), layers)
    trainable = count_parameters(((name, p.numel()) for name, p in parameters if p.requires_grad), layers)
    rows = [(part, total[part], trainable[part]) for part in total if total[part]]
    rows.append(("total", sum(total.values()), sum(trainable.values())))
    lines = [f"{'part':<16}{'parameters':>16}{'trainable':>16}"]
    lines += [f"{name:<16}{total:>16,}{trainable:>16,}" for name, total, trainable in rows]
    return "\n".join(lines)
