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
Serves a checkpoint with transformers' own OpenAI-compatible server.

    python recipes/serve.py runs/demo/age-vlm --port 8000

`transformers serve` finds models by their name in the library, where AGE-VLM is not. This puts it there, and is
`transformers serve` otherwise: the same arguments (`--help`), the same endpoints. `transformers chat` and the `openai`
client talk to it. Needs `pip install "transformers[serving]"`.
"""

import sys

from recipes.terminal.options import wants_help
from recipes.terminal.startup import lasting_imports


def register() -> None:
    """Makes the server find AGE-VLM as it finds the library's own models."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration

    name = AgeVlmForConditionalGeneration.__name__
    setattr(transformers, name, AgeVlmForConditionalGeneration)
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[AgeVlmConfig.model_type] = name


def main() -> None:
    with lasting_imports():
        import typer
        from transformers.cli.serve import Serve

        if not wants_help():
            register()
    app = typer.Typer(add_completion=False)
    app.command(help=__doc__)(Serve)
    try:
        app()
    except (ImportError, OSError, ValueError) as error:  # packages or the checkpoint are not there
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
