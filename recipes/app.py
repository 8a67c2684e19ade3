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
An app in the browser: a picture from a file, the camera or the clipboard, a question, the answer word by word, and where the
words look.

    python recipes/app.py [CHECKPOINT ...] [--port 7860]

With several checkpoints, two answers stand side by side. Nobody but this machine can open it unless `--host` says otherwise.
`recipes/push.py --space` puts it up on the Hub. Needs `pip install -e ".[app]"`.
"""

import argparse
import os
import sys

from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.space import examples
from recipes.terminal.startup import lasting_imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models",
        nargs="*",
        default=[str(TRAINED_MODEL), str(UNGUIDED_MODEL)],
        help="checkpoint folders or Hub ids; default: the tiny model of this repository and its twin without guidance",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: this machine only")
    parser.add_argument("--port", type=int, default=7860, help="port to listen at; default: 7860")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens")
    args = parser.parse_args()

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        with lasting_imports():
            from recipes.space.interface import build, launch
    except ImportError as error:
        sys.exit(f'error: {error}. The app needs `pip install -e ".[app]"`.')
    try:
        app = build(args.models, examples(), args.max_new_tokens)
        launch(app, server_name=args.host, server_port=args.port)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
