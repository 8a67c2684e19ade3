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
Writes a checkpoint as graphs of ONNX, which run without PyTorch, and a page that runs them in a browser, without a server.

    python recipes/export_onnx.py [--model MODEL] --out runs/onnx [--int8]
    python recipes/export_onnx.py --out runs/onnx --page runs/onnx_page --onnxruntime_web node_modules/onnxruntime-web/dist

The folder gets two graphs, the processor's files, and `export.json`, which says what goes into the graphs and what comes out:
names, types, shapes. `vision.onnx` makes of pictures what the cross-attention layers read; `text.onnx` reads a prompt or one token
more, with the keys and values of what came before, and gives the logits of what follows and where words look. Batch, lengths and
the number of pictures may vary. Both are compared with PyTorch on random inputs; where they differ by more than rounding does, the
command ends with an error. `--int8` writes them in int8 as well (the weights of matrix products and convolutions), and says by
how much these differ.

`--page` writes a page: a picture, a question, the answer word by word, and where its words look. It needs onnxruntime-web, which
`npm install onnxruntime-web` puts into node_modules/, and any server of files: `python -m http.server --bind localhost --directory runs/onnx_page`.

Needs `pip install -e ".[onnx]"`.
"""

import argparse
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL
from recipes.terminal.startup import lasting_imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=str(TRAINED_MODEL),
        help="checkpoint folder or Hub id; default: the tiny model of this repository",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/onnx"), help="folder for the graphs")
    parser.add_argument("--int8", action="store_true", help="graphs in int8 as well, for the page instead")
    parser.add_argument("--page", type=Path, help="folder for a page that runs them in a browser")
    parser.add_argument("--onnxruntime_web", type=Path, help="onnxruntime-web's folder `dist`, which the page needs")
    args = parser.parse_args()
    if (args.page is None) != (args.onnxruntime_web is None):
        sys.exit(
            "error: `--page` needs `--onnxruntime_web node_modules/onnxruntime-web/dist`, which "
            "`npm install onnxruntime-web` makes, and the other way round."
        )

    with lasting_imports():
        from transformers.utils.logging import disable_progress_bar

        from recipes.answering.checkpoint import load_checkpoint

        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401

            from recipes.exporting.folders import export
            from recipes.exporting.page import check_page, write_page
        except ImportError as error:
            sys.exit(f'error: {error}. Exporting needs `pip install -e ".[onnx]"`.')

    disable_progress_bar()
    try:
        model, processor = load_checkpoint(args.model, dtype="float32", attn_implementation="eager")
    except ValueError as error:
        sys.exit(f"error: {args.model} cannot be loaded as an AGE-VLM checkpoint: {str(error).rstrip('.')}.")
    try:
        if args.page is not None:
            check_page(processor, args.onnxruntime_web)
        written = export(model, processor, args.out, args.int8)
        if args.page is not None:
            write_page(model, processor, args.out, written, args.onnxruntime_web, args.page, args.int8)
    except ValueError as error:
        sys.exit(f"error: {args.model} cannot be exported: {str(error).rstrip('.')}.")
    except OSError as error:
        sys.exit(f"error: {error.filename or args.out} cannot be written ({error}).")
    for name, num_bytes in written["bytes"].items():
        print(f"{args.out / name}: {num_bytes / 1e6:.1f} MB")
    for key, kind in {"differences": "float32", "differences_int8": "int8"}.items():
        if key in written:
            logits, maps = written[key]["logits"], written[key]["maps"]
            print(
                f"{kind} against PyTorch: largest difference {logits:.1e} of the largest logit, {maps:.1e} in the maps"
            )
    if args.page is not None:
        print(
            f"page: `python -m http.server --bind localhost --directory {args.page}`, and open http://localhost:8000"
        )


if __name__ == "__main__":
    main()
