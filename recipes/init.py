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
Builds an AGE-VLM checkpoint folder from a pretrained ConvNeXt and a pretrained LLaMA.

    python recipes/init.py --output_dir runs/init [--vision TIMM_CONVNEXT] [--text LLAMA]

The defaults are the paper's LLaMA-3.2-1B and, as the paper does not say which ConvNeXt, timm's CLIP ConvNeXt-L of the
highest resolution (320 pixels) that was not fine-tuned to ImageNet's classes. Stage 1 does the same by itself when it is
given no checkpoint.
"""

from recipes.terminal.errors import one_sentence
from recipes.terminal.options import print_help, wants_help
from recipes.training.arguments import OutputArguments, PartsArguments


def main() -> None:
    if wants_help():
        print_help(__doc__, PartsArguments, OutputArguments)
        return

    from transformers import HfArgumentParser

    from recipes.training.parts import build
    from recipes.training.resuming import check_writable
    from trainers import parameter_table
    from trainers.checkpointing import save_whole

    parts, output = HfArgumentParser((PartsArguments, OutputArguments)).parse_args_into_dataclasses()
    with one_sentence():
        model, processor = build(parts)
        check_writable(output.output_dir)
        save_whole(output.output_dir, model, processor)
    print(parameter_table(model))


if __name__ == "__main__":
    main()
