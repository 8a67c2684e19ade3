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
Asks a checkpoint about a picture, and draws where it looked.

    python recipes/ask.py --image kitchen.png --question "Is there a cup in the image?"

Prints the answer and writes a PNG with the attention of the question's and of the answer's words over the picture,
averaged over the cross-attention layers.
"""

import argparse
import sys
from pathlib import Path

import PIL.Image
import PIL.ImageOps

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.attention import answer, grounding_maps, query
from recipes.pictures import save_attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="a picture file")
    parser.add_argument("--question", required=True, help="what to ask")
    parser.add_argument("--model", default="runs/demo/age-vlm", help="checkpoint folder or Hub id")
    parser.add_argument("--out", type=Path, default=Path("runs/ask.png"), help="PNG file to draw to")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens")
    args = parser.parse_args()
    try:
        picture = PIL.ImageOps.exif_transpose(PIL.Image.open(args.image)).convert("RGB")
    except OSError as error:
        sys.exit(f"error: {args.image} cannot be read as a picture ({error}). Pass a PNG, JPEG or WebP file.")
    if not Path(args.model).is_dir() and args.model == parser.get_default("model"):
        sys.exit(f"error: there is no checkpoint in {args.model}. Run `make demo` first, or pass `--model`.")
    model = AgeVlmForConditionalGeneration.from_pretrained(args.model).eval()
    processor = AgeVlmProcessor.from_pretrained(args.model)

    words = answer(model, processor, [picture], [args.question], args.max_new_tokens)[0]
    print(words)
    messages = [{"role": "user", "content": args.question}, {"role": "assistant", "content": words}]
    spoken = [n for n, message in enumerate(messages) if message["content"].strip()]
    row = {"images": [picture], "messages": messages, "regions": [query(picture, n) for n in spoken]}
    maps, _ = grounding_maps(model, processor, [row])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    titles = [messages[n]["content"] for n in spoken]
    save_attention(args.out, picture, dict(zip(titles, maps[0].mean(dim=1), strict=True)))
    print(f"where it looked: {args.out}")


if __name__ == "__main__":
    main()
