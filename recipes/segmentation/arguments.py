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
"""How masks are made."""

from dataclasses import asdict, dataclass, field
from typing import Any


VERSION = 3  # of which texts and phrases are looked for; masks of another one do not go together with these
TASKS = {"message": "<REFERRING_EXPRESSION_SEGMENTATION>", "phrase": "<CAPTION_TO_PHRASE_GROUNDING>"}


@dataclass
class MaskArguments:
    """How masks are made."""

    out: str = field(metadata={"help": "Folder to write the rows with their regions to."})
    florence: str = field(
        default="florence-community/Florence-2-large", metadata={"help": "Florence-2: Hub id or folder."}
    )
    locator: str = field(
        default="florence",
        metadata={
            "help": "What finds for SAM: Florence-2 in any text, as in the paper, or Grounding DINO in an English one.",
            "choices": ["florence", "grounding_dino"],
        },
    )
    grounding_dino: str = field(
        default="IDEA-Research/grounding-dino-base", metadata={"help": "Grounding DINO: Hub id or folder."}
    )
    sam: str = field(default="facebook/sam-vit-huge", metadata={"help": "SAM, SAM-HQ or SAM 2: Hub id or folder."})
    segmenter: str = field(
        default="sam",
        metadata={
            "help": "What draws: SAM (or SAM-HQ or SAM 2) in the boxes that were found, as in the paper, or SAM 3 alone.",
            "choices": ["sam", "sam3"],
        },
    )
    sam3: str = field(default="facebook/sam3", metadata={"help": "SAM 3: Hub id or folder."})
    min_score: float = field(
        default=0.3, metadata={"help": "What SAM 3 or Grounding DINO is less sure of is left out."}
    )
    level: str = field(
        default="message",
        metadata={"help": "One mask for a whole text, or one per phrase in it.", "choices": list(TASKS)},
    )
    query: str = field(
        default="answer",
        metadata={
            "help": "The text: what the user says, what the assistant answers, or both as one.",
            "choices": ["question", "answer", "both"],
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Texts for Florence-2, and images for SAM, at a time."})
    num_beams: int = field(default=3, metadata={"help": "Beams of Florence-2."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest outline in tokens, two per point."})
    min_iou: float = field(default=0.5, metadata={"help": "Below this IoU of mask and outline, the outline is kept."})
    min_area: float = field(default=0.0005, metadata={"help": "Smaller masks are dropped, as a share of the picture."})
    max_area: float = field(default=0.95, metadata={"help": "Larger masks are dropped, as a share of the picture."})
    rows_per_file: int = field(default=1000, metadata={"help": "Rows of a file; what a stop can cost per process."})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Hub id to put the rows up under, too, with their pictures."}
    )
    num_workers: int = field(default=4, metadata={"help": "Processes that read images, per process with networks."})

    def __post_init__(self):
        for name in ("level", "query", "segmenter", "locator"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` has to be one of {choices}, but is {getattr(self, name)!r}.")

        for name, least in {"batch_size": 1, "num_beams": 1, "rows_per_file": 1, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` has to be {least} or more, but is {getattr(self, name)}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the masks depend on."""
        same = ("out", "batch_size", "num_workers", "push_to_hub")
        return {name: value for name, value in asdict(self).items() if name not in same} | {"version": VERSION}
