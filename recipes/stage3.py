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
Stage 3: spatial grounding. As stage 2, with the guidance loss on the captions that have masks.

    accelerate launch recipes/stage3.py --output_dir runs/stage3 \\
        --model_name_or_path runs/stage2 \\
        --dataset_name FOLDER_OR_HUB_ID

Defaults are the paper's (https://huggingface.co/papers/2511.17793, appendix C); `--help` lists every option.
"""

from recipes.training.command import main


if __name__ == "__main__":
    main(3, __doc__)
