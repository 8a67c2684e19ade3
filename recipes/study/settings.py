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
"""What the study changes: the four models, the ablations, the long runs."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

from recipes.study.plans import IMAGE_SIZE, LLM_LAYERS
from trainers import Variant


LEARNING_RATE = {
    "llama": {1: 3e-3, 2: 3e-3, 3: 2e-3, 4: 5e-4},
    "smollm2": {1: 1e-3, 2: 1e-3, 3: 1e-3, 4: 1e-4},  # it has learned to write already
}
STEPS = {
    "llama": {1: 100, 2: 100, 3: 1500, 4: 2000},
    "smollm2": {1: 50, 2: 50, 3: 500, 4: 700},  # a third: of an LLM of 135M each takes seconds on a CPU
}
SHARES = {"existence": 0.7, "caption": 0.15, "instruction": 0.15}  # of the rows of stage 4
LONG = 4  # times the steps of stage 4
BATCH_SIZE = 4
TEST_IMAGES = 200
CURVE_POINTS = 6


@dataclass(frozen=True)
class Setting:
    """What a model is trained with. The defaults are the paper's AGE-VLM as this project reads it."""

    seed: int = 0
    language_model: bool = False
    """Whether the LLM trains in stage 4."""
    guided: tuple[int, ...] = (3,)
    """The stages that add the guidance loss."""
    normalization: str = "sum"
    level: str = "all"
    downsampling: str = "any"
    weight: float = 1.0
    guidance_layers: tuple[int, ...] | None = None
    """The cross-attention layers that are guided; None for all."""
    guidance_heads: tuple[int, ...] | Literal["auto"] | None = None
    """Their attention heads that are guided; None for all, "auto" for those of a concatenation model that already localize."""
    attention_sink: bool = False
    """Whether the cross-attention has a place for nothing."""
    positions: bool = False
    """Whether the visual tokens have a code of their places."""
    denied: bool = True
    """Whether the words of denied objects are guided to it."""
    fades: bool = False
    """Whether the weight of the guidance falls to zero in stage 4."""
    masked_share: float = 1.0
    """Share of the rows that have masks."""
    masks: Literal["own", "other"] = "own"
    """Whether a row has its own masks, or those of another row."""
    cross_attention_layers: tuple[int, ...] = (1, 3, 5)
    mlp_width: int | None = None
    """Of the cross-attention layers; None for the LLM's."""
    stage2: bool = True
    first_image_size: int = IMAGE_SIZE
    """Pixels in stage 1; `IMAGE_SIZE` from stage 2 on."""
    pictures: Literal["square", "stretched", "padded", "padded in the picture"] = "square"
    """Square scenes, or scenes of 8 to 5 that are stretched, or padded with or without masking the padded cells."""
    length: int = 1
    """Stage 4 has so many times its steps."""
    text: Literal["llama", "smollm2"] = "llama"
    """The LLM: that of the scenes, or SmolLM2-135M-Instruct."""
    architecture: Literal["cross-attention", "concatenation"] = "cross-attention"
    """How the LLM reads the picture; of a concatenation model, guided layers are those of its self-attention."""
    steps_share: float = 1.0
    """Every stage has so much of its steps."""

    def choices(self, number: int) -> dict[str, Any]:
        """What of the setting stage `number` and those before it depend on."""
        names = ["seed", "cross_attention_layers", "mlp_width", "first_image_size", "pictures"]
        names += ["stage2"] * (number >= 2) + ["language_model", "length"] * (number == 4)
        guided = [stage for stage in self.guided if stage <= number]
        # What was not there at first counts where it is not as it was then.
        later = ["attention_sink", "positions", "text", "architecture", "steps_share"]
        if guided:
            names += ["normalization", "level", "downsampling", "weight", "masked_share", "masks"]
            later += ["guidance_layers", "guidance_heads", "denied"] + ["fades"] * (number == 4)
        names += [name for name in later if getattr(self, name) != getattr(Setting, name)]
        return {"guided": guided, **{name: getattr(self, name) for name in names}}

    def steps(self, number: int) -> int:
        """The steps of stage `number`."""
        return round(self.steps_share * STEPS[self.text][number] * (self.length if number == 4 else 1))

    def folder(self, number: int) -> str:
        """Name of the folder of stage `number`: the same for all settings that agree on it."""
        digest = hashlib.sha256(json.dumps(self.choices(number)).encode()).hexdigest()
        return f"stage{number}-{digest[:10]}"

    def variant(self, number: int) -> Variant:
        """The variant that runs stage `number`."""
        if self.architecture == "concatenation":
            return "concatenation-guided" if number in self.guided else "concatenation"
        if number < 4:
            return "age-vlm" if number in self.guided else "ca-baseline-frozen"
        if self.language_model:
            return "age-vlm-lm" if 4 in self.guided else "ca-baseline"
        if 4 in self.guided:
            raise ValueError("There is no variant that guides stage 4 while its LLM is frozen.")
        return "age-vlm" if self.guided else "ca-baseline-frozen"


LM = Setting(language_model=True, guided=(3, 4))
HEAD = replace(LM, guidance_layers=(1,), guidance_heads=(0,), weight=0.1)
# How much of the attention is guided, and whether there is a place for nothing
HEADS = {
    "no guidance": replace(LM, guided=()),
    "all heads": LM,
    "one head": HEAD,
    "no guidance, sink": replace(LM, guided=(), attention_sink=True),
    "one head, sink": replace(HEAD, attention_sink=True, denied=False),
    "one head, denied words to the sink": replace(HEAD, attention_sink=True),
    "the same, weight 0.3": replace(HEAD, attention_sink=True, weight=0.3),
    "the same, another head": replace(HEAD, attention_sink=True, guidance_heads=(3,)),
    "the same, weight 0.3, two heads of one key head": replace(
        HEAD, attention_sink=True, weight=0.3, guidance_heads=(0, 1)
    ),
}
BASELINE = "no guidance"
SUNK = HEADS["one head, denied words to the sink"]
# One thing at a time is changed of the one guided head.
HEAD_ABLATIONS = {
    "base (one head of the first layer, denied words to the sink)": SUNK,
    "two heads of one key head": replace(SUNK, guidance_heads=(0, 1)),
    "two heads, one of each key head": replace(SUNK, guidance_heads=(0, 2)),
    "all heads of the first layer": replace(SUNK, guidance_heads=None),
    "another head": replace(SUNK, guidance_heads=(3,)),
    "the second layer": replace(SUNK, guidance_layers=(3,)),
    "the third layer": replace(SUNK, guidance_layers=(5,)),
    "one head of every layer": replace(SUNK, guidance_layers=None),
    "all heads of all layers": replace(SUNK, guidance_heads=None, guidance_layers=None),
    "weight 0.03": replace(SUNK, weight=0.03),
    "weight 0.3": replace(SUNK, weight=0.3),
    "weight 1": replace(SUNK, weight=1.0),
    "with positions": replace(SUNK, positions=True),
    "guidance fades out in stage 4": replace(SUNK, fades=True),
    "guidance in stage 3 only": replace(SUNK, guided=(3,)),
    "1 % of the rows have masks": replace(SUNK, masked_share=0.01),
    "3 % of the rows have masks": replace(SUNK, masked_share=0.03),
    "10 % of the rows have masks": replace(SUNK, masked_share=0.1),
    "30 % of the rows have masks": replace(SUNK, masked_share=0.3),
}
MODELS = {
    "age-vlm": Setting(),
    "ca-baseline-frozen": Setting(guided=()),
    "age-vlm-lm": LM,
    "age-vlm-lm, weight 0.1": replace(LM, weight=0.1),
    "ca-baseline": replace(LM, guided=()),
    "age-vlm-lm, other masks": replace(LM, masks="other"),
}
# One thing at a time is changed of age-vlm-lm, which is guided in both stages.
ABLATIONS = {
    "base (age-vlm-lm)": LM,
    "no guidance": replace(LM, guided=()),
    "guidance in stage 3 only": replace(LM, guided=(3,)),
    "guidance in stage 4 only": replace(LM, guided=(4,)),
    "maps divided by their maximum": replace(LM, normalization="max"),
    "query: whole messages (the paper's)": replace(LM, level="message"),
    "query: phrases": replace(LM, level="phrase"),
    "a cell counts from half of its area on": replace(LM, downsampling="area"),
    "weight 0.1": replace(LM, weight=0.1),
    "weight 0.3": replace(LM, weight=0.3),
    "weight 3": replace(LM, weight=3.0),
    "1 % of the rows have masks": replace(LM, masked_share=0.01),
    "3 % of the rows have masks": replace(LM, masked_share=0.03),
    "10 % of the rows have masks": replace(LM, masked_share=0.1),
    "30 % of the rows have masks": replace(LM, masked_share=0.3),
    "without stage 2": replace(LM, stage2=False),
    "stage 1 at 128 pixels": replace(LM, first_image_size=IMAGE_SIZE // 2),
    "cross-attention: first layer only": replace(LM, cross_attention_layers=(1,)),
    "cross-attention: last layer only": replace(LM, cross_attention_layers=(5,)),
    "cross-attention: before every layer": replace(LM, cross_attention_layers=(1, 3, 5, 7)),
    "cross-attention without MLP": replace(LM, mlp_width=0),
    "cross-attention with half the MLP": replace(LM, mlp_width=160),
    "wide pictures, stretched": replace(LM, pictures="stretched"),
    "wide pictures, padding masked": replace(LM, pictures="padded"),
    "wide pictures, padding seen": replace(LM, pictures="padded in the picture"),
}
CONCATENATION = replace(LM, architecture="concatenation")
CONCATENATION_HEAD = replace(CONCATENATION, guidance_layers=(1,), guidance_heads=(0,), weight=0.3)
# With the paper's 576 visual tokens a step of cross-attention takes 0.37 to 0.42 of a concatenation model's on two CPU cores, 0.67 to
# 0.79 on a GPU at the paper's size (docs/speed.md); with the 64 of the scenes both take about the same.
SAME_TIME = 0.4
CONCATENATION_MODELS = {
    "concatenation, no guidance": replace(CONCATENATION, guided=()),
    "concatenation, all heads of all layers": replace(CONCATENATION, denied=False),
    "concatenation, one head, denied words off the picture, weight 0.3": CONCATENATION_HEAD,
    "concatenation, three heads that localize already, else the same": replace(
        CONCATENATION, guidance_heads="auto", weight=0.3
    ),
    "concatenation, no guidance, steps of the same time": replace(CONCATENATION, guided=(), steps_share=SAME_TIME),
    "concatenation, one head, steps of the same time": replace(CONCATENATION_HEAD, steps_share=SAME_TIME),
}
PAIRS = (("age-vlm", "ca-baseline-frozen"), ("age-vlm-lm", "ca-baseline"), ("age-vlm-lm, weight 0.1", "ca-baseline"))
LONG_MODELS = {
    "age-vlm-lm, long": replace(LM, length=LONG),
    "ca-baseline, long": replace(LM, guided=(), length=LONG),
    "one head, denied words to the sink, weight 0.3, long": replace(SUNK, weight=0.3, length=LONG),
}
AROUND_SMOLLM2 = {"text": "smollm2", "cross_attention_layers": tuple(LLM_LAYERS["smollm2"])}
SMOLLM2_MODELS = {
    "SmolLM2, no guidance": replace(LM, guided=(), **AROUND_SMOLLM2),
    "SmolLM2, all heads": replace(LM, **AROUND_SMOLLM2),
    "SmolLM2, one head, denied words to the sink, weight 0.3": replace(
        SUNK, weight=0.3, guidance_layers=tuple(LLM_LAYERS["smollm2"][:1]), **AROUND_SMOLLM2
    ),
}
