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
Puts a checkpoint up on the Hub: model, processor, code and a model card with what was measured. It checks first that
the checkpoint loads back where nothing of this project is installed.

    python recipes/push.py --checkpoint runs/demo/age-vlm-lm --repo_id me/age-vlm [--private] [--revision BRANCH]

With `--space` the app of recipes/app.py goes up as well, as a Space that asks the checkpoint, and beside it `--beside`.

The token is the one that `hf auth login` stored, or `HF_TOKEN`. A checkpoint of any stage will do, also a
`checkpoint-N` folder; the optimizer and the like stay here.
"""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder that a stage or init.py wrote")
    parser.add_argument("--repo_id", required=True, help="repository on the Hub, `owner/name`; made if there is none")
    parser.add_argument("--private", action="store_true", help="only the owner sees the repository")
    parser.add_argument("--revision", help="branch to push to; made if there is none")
    parser.add_argument("--commit_message")
    parser.add_argument("--metrics_command", help="what printed the numbers in metrics.json, if it does not say")
    parser.add_argument(
        "--evaluation", type=Path, help="folder that evaluate.py wrote, to show its results on the Hub"
    )
    parser.add_argument(
        "--space", metavar="OWNER/NAME", help="a Space to put the app up as, for whoever has no Python"
    )
    parser.add_argument(
        "--beside", metavar="OWNER/NAME", help="another checkpoint on the Hub for the app to ask beside this"
    )
    parser.add_argument("--model_card", type=Path, help="template of the model card; default: model_card.md")
    args = parser.parse_args()
    if args.beside is not None and args.space is None:
        sys.exit("error: `--beside` is for the app: say with `--space` where to put it.")
    if args.space is not None and importlib.util.find_spec("gradio") is None:
        sys.exit(
            'error: the Space names the version of Gradio that is here, and there is none: `pip install -e ".[app]"`.'
        )

    from huggingface_hub.utils import httpx

    from recipes.publishing.checkpoint import push
    from recipes.publishing.space import push_space
    from recipes.training.record import MODEL_CARD, read_record
    from trainers.model_card import llama_license

    try:
        model_card = args.model_card or MODEL_CARD
        template = model_card.read_text(encoding="utf-8") if model_card.exists() else None
        commit = push(
            args.checkpoint,
            args.repo_id,
            args.private,
            args.revision,
            args.commit_message,
            args.metrics_command,
            template,
            args.evaluation,
        )
    except (ValueError, OSError, httpx.HTTPError) as error:  # the last two: the Hub says no, or cannot be reached
        sys.exit(f"Not pushed: {error}")
    print(f"{commit.commit_url}\n{commit.oid}")
    if args.space is not None:
        models = [args.repo_id] if args.beside is None else [args.repo_id, args.beside]
        try:
            print(push_space(args.space, models, args.private).commit_url)
        except (ValueError, OSError, httpx.HTTPError) as error:
            sys.exit(f"The app was not pushed: {error}")
    record = read_record(args.checkpoint)
    text = next((run["text"] for run in record if run.get("text")), None)
    if llama_license(text) and not args.repo_id.split("/")[-1].lower().startswith("llama"):
        warnings.warn(f"The license of {text} asks that the model's name begin with 'Llama'; {args.repo_id} does not.")


if __name__ == "__main__":
    main()
