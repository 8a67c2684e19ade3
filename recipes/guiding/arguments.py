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
"""The arguments of `recipes/guide.py`: the VLM, what of it trains, and what is measured."""

from dataclasses import dataclass, field


@dataclass
class GuideArguments:
    """The VLM that is guided."""

    variant = "another VLM"  # in the record, where a stage has its own
    vision_training = None

    model_name_or_path: str = field(
        metadata={"help": "A VLM of transformers whose visual tokens stand among its words: folder or Hub id."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    attn_implementation: str = field(default="sdpa", metadata={"help": "Attention of the language model."})
    use_peft: bool = field(
        default=False,
        metadata={
            "help": "Train low-rank adapters (LoRA) on the language model instead of all of it. They are merged into the model that "
            "is saved in the end."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters are scaled by `lora_alpha / lora_r`."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})
    num_held_out: int = field(
        default=200,
        metadata={
            "help": "Rows that are measured before and after: the first of `--eval_dataset_name`, or as many of "
            "`--dataset_name`, drawn at random (the first ones of a stream), which do not train then."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Clear away another run's checkpoints in `--output_dir`, and begin."}
    )
