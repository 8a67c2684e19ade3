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

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.terminal.errors import one_sentence
from recipes.terminal.options import print_help, wants_help
from recipes.training.arguments import DataArguments, ModelArguments


if TYPE_CHECKING:
    from trl import TrlParser


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
        try:
            arguments, data, training = parser.parse_args_and_config()
        except (ValueError, OSError, ImportError) as error:  # transformers' and TRL's classes look at their fields
            raise ValueError(" ".join(str(error).split())) from error
        given = given_options(TrlParser((ModelArguments, DataArguments, GuidedSFTConfig)), sys.argv[1:])
        run_stage(number, arguments, data, training, given=given)


def given_options(parser: "TrlParser", words: list[str]) -> set[str]:
    """
    The options that a command line, or the file that its `--config` names, gives a value.

    Raises:
        ValueError: If that file cannot be read.
    """
    import yaml

    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    config = []
    if "--config" in words[:-1]:
        place = words.index("--config")
        file, words = words[place + 1], words[:place] + words[place + 2 :]
        try:
            config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(config, dict):
            raise ValueError(f"{file} has to hold options with their values, one `name: value` a line.")
    return {*vars(parser.parse_known_args(words)[0]), *config}
