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
Loads checkpoint folders as somebody does who has nothing of this project, and answers one question about a picture.

    python -I recipes/load_check.py FOLDER...

Prints one line of JSON per folder: what is wrong with it, or null. `recipes/push.py` runs it; it imports nothing of ours.
"""

import argparse
import importlib.abc
import json
import sys


class NotInstalled(importlib.abc.MetaPathFinder):
    """Hides this project where it is installed: a checkpoint has to bring all of its code."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in ("modeling_agevlm", "trainers", "recipes"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def problem(folder: str) -> str | None:
    """What is wrong with a checkpoint, or None."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, report = AutoModelForImageTextToText.from_pretrained(
        folder,
        trust_remote_code=True,
        use_safetensors=True,
        dtype="auto",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    kinds = {"missing_keys": "missing", "unexpected_keys": "left over", "mismatched_keys": "of another shape"}
    found = [
        f"{len(report[key])} {words} ({sorted(map(str, report[key]))[0]})"
        for key, words in kinds.items()
        if report[key]
    ]
    if found:
        return (
            f"its weights do not fit its config.json: {', '.join(found)}. Save the model again with `save_pretrained`"
        )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    wrong = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        return f"{len(wrong)} of its weights hold NaN or infinity ({wrong[0]}). Push a checkpoint from before that"
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    image = Image.radial_gradient("L").convert("RGB")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Is there a circle in the image?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(dtype=model.dtype)
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    if not logits.isfinite().all():
        return (
            "it answers a picture with NaN or infinity. Save it in float32 or bfloat16, or push an earlier checkpoint"
        )
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="checkpoint folder")
    args = parser.parse_args()
    sys.meta_path.insert(0, NotInstalled())
    for folder in args.folders:
        try:
            found = problem(folder)
        except Exception as error:  # whatever a stranger would see
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            found = f"loading it raises {type(error).__name__}: {line} Save model and processor again with `save_pretrained`"
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
