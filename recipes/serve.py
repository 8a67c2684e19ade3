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
Serves a checkpoint to OpenAI's clients.

    python recipes/serve.py runs/demo/age-vlm-lm --port 8000

It answers `POST /v1/chat/completions` (whole or as a stream, with pictures in the messages), `GET /v1/models` and
`GET /health`; the `openai` package and `transformers chat` talk to it. Pictures are part of the request, as data URLs. A
request that asks for what the options below do not allow is refused with a sentence. Needs `pip install -e ".[serve]"`.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from recipes.serving.limits import Limits
from recipes.terminal.startup import lasting_imports


SHUTDOWN_SECONDS = 5  # for answers that are being written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="checkpoint folder or Hub id; also the name that clients ask for")
    parser.add_argument("--host", default="localhost", help="address to listen at; default: this machine only")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at; default: 8000")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; default: a GPU if there is one")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 ...; default: that of the checkpoint")
    group = parser.add_argument_group("where pictures may come from, besides the request itself")
    group.add_argument(
        "--allowed-media-domains",
        nargs="+",
        default=[],
        metavar="HOST",
        help="hosts whose pictures are fetched; they have to be on the public internet",
    )
    group.add_argument(
        "--allowed-local-media-path",
        type=Path,
        metavar="FOLDER",
        help="a folder whose pictures file:// addresses may name",
    )
    group = parser.add_argument_group("what a request may ask")
    for option, name, type, meaning in (
        ("--max-requests", "requests", int, "requests in work, waiting ones included"),
        ("--max-request-bytes", "request_bytes", int, "bytes of a request"),
        ("--max-images", "images", int, "pictures in a request"),
        ("--max-image-pixels", "image_pixels", int, "pixels of a request's pictures together"),
        ("--max-image-bytes", "image_bytes", int, "bytes of a picture from an address or a file"),
        ("--image-timeout", "image_seconds", float, "seconds for fetching a picture"),
        ("--max-tokens", "tokens", int, "tokens of an answer"),
        ("--max-model-len", "context", int, "tokens of messages and answer together"),
    ):
        default = getattr(Limits, name)
        shown = "the model's" if default is None else f"{default:,}" if type is int else f"{default:g}"
        group.add_argument(
            option, dest=name, type=type, default=default, metavar="N", help=f"{meaning}; default: {shown}"
        )
    args = parser.parse_args()
    if not 0 <= args.port < 2**16:
        sys.exit(f"error: `--port` is {args.port}. Pass one from 0 to 65,535.")
    if args.allowed_local_media_path is not None and not args.allowed_local_media_path.is_dir():
        sys.exit(f"error: `--allowed-local-media-path` is {args.allowed_local_media_path}, where no folder is.")
    given = {field.name: getattr(args, field.name) for field in fields(Limits) if hasattr(args, field.name)}
    for name, value in given.items():
        if value is not None and not value > 0:
            sys.exit(f"error: the limit of {name.replace('_', ' ')} is {value}. Pass more than 0.")
    limits = Limits(
        **given,
        media_domains=frozenset(domain.lower() for domain in args.allowed_media_domains),
        media_path=args.allowed_local_media_path,
    )

    try:
        with lasting_imports():
            import torch
            import uvicorn
            from safetensors import SafetensorError

            from recipes.answering.checkpoint import load_checkpoint
            from recipes.serving.app import build_app
    except ImportError as error:
        sys.exit(f'error: {error}. The server needs `pip install -e ".[serve]"`.')
    try:
        model, processor = load_checkpoint(args.model)
        device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        dtype = None if args.dtype == "auto" else getattr(torch, args.dtype, args.dtype)
        model.to(device, dtype)
        app = build_app(args.model, model, processor, limits)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        sys.exit(f"error: {args.model} cannot be served: {reason}.")
    uvicorn.run(app, host=args.host, port=args.port, timeout_graceful_shutdown=SHUTDOWN_SECONDS)


if __name__ == "__main__":
    main()
