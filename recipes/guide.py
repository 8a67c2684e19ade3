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
Teaches the words of any VLM to look at what they mean: tunes it on rows with regions, and shows where they look before and after.

    accelerate launch recipes/guide.py --model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct \\
        --dataset_name FILE_FOLDER_OR_HUB_ID --output_dir runs/guided --use_peft true --guidance_heads auto

The VLM is one of transformers whose visual tokens stand among its words (LLaVA, LLaVA-NeXT, LLaVA-OneVision, FastVLM, SmolVLM,
Idefics3, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, Gemma 3, Gemma 4, InternVL, LFM2-VL). Its language model trains, whole or by
adapters; its vision tower stays. Rows are as for the stages, with the words and masks of `regions`. Some are held out: of their words,
the share of attention inside the mask and whether its maximum is there are measured before and after (`guided.json`) and drawn
(`guided.png`), beside the tuned model in `--output_dir`. `--help` lists every option.
"""

from recipes.guiding.arguments import GuideArguments
from recipes.terminal.errors import one_sentence
from recipes.terminal.options import print_help, wants_help
from recipes.training.arguments import DataArguments


def main() -> None:
    if wants_help():
        print_help(__doc__, GuideArguments, DataArguments, training=True)
        return

    from trl import TrlParser

    from recipes.guiding.tuning import guide
    from trainers import GuidedSFTConfig

    with one_sentence():
        try:
            arguments, data, training = TrlParser(
                (GuideArguments, DataArguments, GuidedSFTConfig)
            ).parse_args_and_config()
        except (ValueError, OSError, ImportError) as error:  # transformers' and TRL's classes look at their fields
            raise ValueError(" ".join(str(error).split())) from error
        guide(arguments, data, training)


if __name__ == "__main__":
    main()
