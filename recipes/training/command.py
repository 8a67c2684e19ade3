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
"""The command line of the four stages."""

from recipes.terminal.errors import one_sentence
from recipes.terminal.options import print_help, wants_help
from recipes.training.arguments import DataArguments, ModelArguments


def main(number: int, description: str, **defaults) -> None:
    """
    Runs stage `number` as the command line says: every field of the three argument classes, or `--config file.yaml`.

    Args:
        number (`int`): 1 to 4.
        description (`str`): Of the command, for its help.
        defaults: Of fields, where they are others than the classes'.
    """
    if wants_help():
        print_help(description, ModelArguments, DataArguments, training=True)
        return

    from trl import TrlParser

    from recipes.training.stage import run_stage
    from trainers import GuidedSFTConfig

    parser = TrlParser((ModelArguments, DataArguments, GuidedSFTConfig))
    parser.set_defaults(**defaults)
    with one_sentence():
        arguments, data, training = parser.parse_args_and_config()
        run_stage(number, arguments, data, training)
