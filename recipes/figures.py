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
Draws what the paper draws of a model's inside, for AGE-VLMs and for concatenation VLMs (LLaVA, SmolVLM, ...) alike.

    python recipes/figures.py attention --models runs/demo/age-vlm-lm llava-hf/llava-1.5-7b-hf
    python recipes/figures.py heads --models runs/demo/age-vlm-lm --num_scenes 1
    python recipes/figures.py similarity
    python recipes/figures.py padding --image wide.jpg tall.jpg
    python recipes/figures.py hallucination --records runs/pope.jsonl

Each writes a PNG and, beside it, the numbers as JSON (`attention` and `heads` also their maps as .npz).

- `attention`: where the words of a question look (Tables 4 and 6), in the first layer that reads the picture, as the paper
  draws it, and averaged over all of them. Of an AGE-VLM these are its guided layers and heads; above a panel stands how
  much of the attention lies on its sink, if it has one, and looks at nothing.
- `heads`: the same for every head of every cross-attention layer of an AGE-VLM, guided or not.
- `similarity`: the cosine similarity of text and image states for matching and mismatching captions (Fig. 2).
- `padding`: the share of the attention that falls on padding (appendix D), against the padding's share of the area.
- `hallucination`: whether attention that is spread out tells that an answer is wrong; of an AGE-VLM with a sink also
  whether what looks at nothing tells that an object is not there.

`recipes/inside/vlm.py` says how the two kinds of models are read.
"""

import argparse
from pathlib import Path

from recipes.terminal.errors import one_sentence


MODELS = ["runs/demo/age-vlm-lm", "runs/demo/ca-baseline"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help)
        made.add_argument("--models", nargs="+", default=MODELS, help="checkpoint folders or Hub ids")
        made.add_argument("--out", type=Path, default=Path(f"runs/figures/{name}.png"), help="PNG file to draw to")
        return made

    for made, num_scenes in (
        (command("attention", "where words look: Tables 4 and 6"), 4),
        (command("heads", "where words look in every head of an AGE-VLM"), 1),
    ):
        made.add_argument("--image", nargs="+", default=[], help="picture files; test scenes by default")
        made.add_argument(
            "--question", nargs="+", default=["Describe the image."], help="one for all pictures, or one each"
        )
        made.add_argument("--words", nargs="+", help="words of the question; all of them by default")
        made.add_argument("--num_scenes", type=int, default=num_scenes, help="pictures to draw without `--image`")
    made = command("similarity", "text and image states of matching and mismatching pairs: Fig. 2")
    made.add_argument("--data", default="scenes", help="JSONL of `image` and `caption`, data set folder or Hub id")
    made.add_argument("--split", default="train", help="split of a data set")
    made.add_argument("--num_rows", type=int, default=200, help="pictures")
    made = command("padding", "attention on padding: appendix D")
    made.add_argument("--image", nargs="+", help="picture files; halves of test scenes by default")
    made.add_argument("--question", default="Describe the image.", help="whose words look")
    made.add_argument("--num_scenes", type=int, default=40, help="pictures without `--image`")
    made = command("hallucination", "does attention tell that an answer is wrong?")
    made.add_argument(
        "--records", type=Path, help="JSONL of one model's answers, with pictures; asks about test scenes by default"
    )
    made.add_argument("--layers", choices=("first", "mean"), default="mean", help="which layers' attention")
    made.add_argument("--num_scenes", type=int, default=300, help="pictures to ask about without `--records`")
    args = parser.parse_args()

    from modeling_agevlm.image_reading_agevlm import read_image
    from recipes.inside.figures import (
        attention,
        attention_rows,
        existence_questions,
        hallucination,
        halves_of_scenes,
        padding,
        read_captions,
        similarity,
    )
    from recipes.inside.hallucination import read_answers
    from recipes.inside.heads import heads
    from recipes.inside.vlm import load_vlm
    from recipes.terminal.progress import show_own_bars_only

    show_own_bars_only()
    with one_sentence():
        if args.out.suffix != ".png":
            raise ValueError(f"`--out` has to end in .png, but is {args.out}.")
        if args.command == "hallucination" and args.records and len(args.models) > 1:
            raise ValueError("`--records` are one model's answers: pass that model as `--models`.")
        vlms = [load_vlm(name) for name in args.models]
        if args.command in ("attention", "heads"):
            rows = attention_rows(args.image, args.question, args.words, args.num_scenes)
            (attention if args.command == "attention" else heads)(vlms, rows, args.out)
        elif args.command == "similarity":
            similarity(vlms, read_captions(args.data, args.split, args.num_rows), args.out)
        elif args.command == "padding":
            images = [read_image(image) for image in args.image or []] or halves_of_scenes(args.num_scenes)
            padding(vlms, images, args.question, args.out)
        else:
            rows = read_answers(args.records) if args.records else existence_questions(args.num_scenes)
            hallucination(vlms, rows, args.layers, args.out)


if __name__ == "__main__":
    main()
