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
Makes the demo's two pretrained backbones, which the method takes for granted: a small ConvNeXt that has learned to name
single objects, and a small LLaMA that has read the scenes' texts and never seen a picture.

    python recipes/backbones.py --out recipes/scenes/backbones

The folders `convnext` (timm's `local-dir:` format) and `llama` (transformers' format, with its tokenizer) that this
writes in about an hour on two CPU cores are shipped beside this file, so that the demo need not make them.
"""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write `convnext` and `llama` to")
    parser.add_argument("--convnext", type=float, default=1.0, help="share of its steps; 0 leaves it as it is")
    parser.add_argument("--llama_steps", type=int, default=4500, help="0 leaves the LLaMA as it is")
    args = parser.parse_args()

    from recipes.scenes.pretraining import make_convnext, make_llama

    if args.convnext:
        make_convnext(args.out / "convnext", args.convnext)
    if args.llama_steps:
        make_llama(args.out / "llama", args.llama_steps)


if __name__ == "__main__":
    main()
