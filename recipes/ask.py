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
Asks a checkpoint about a picture, and draws where the words of the question and of the answer look.

    python recipes/ask.py --image kitchen.png --question "Is there a cup in the image?" [--phrases cup "left lion"]

Prints the answer and writes two files. The PNG holds the picture, and over it the attention of the whole question, of the
whole answer and of every phrase of theirs, averaged over the guided layers and heads: all, unless the model's training chose
some. The .npz beside it holds the same in float32: `question`, `answer`, `question: cup` and so on of the picture's height
and width, summing to 1; and as `cells of question` and so on what each of these layers gave, of shape (layers, rows, columns).

The words of a model with an attention sink may look at nothing. How much of their attention does is printed and stands over
each panel; the maps sum to what is left, and `nothing of question` and so on, of shape (layers,), is what each layer gave to
the sink.

With `--html` there is a page as well, one file that needs nothing else: point at a word of the question or of the answer, or
drag over several, to see where they look. `--beside` sets another checkpoint's answer beside it there.

With `--abstain 0.2` phrases of the answer that look at nothing with more than a fifth of their attention are struck out (~~so~~),
and "I cannot tell." stands for a yes to words that do, or a no to words that look at the picture with more than that.

With `--zoom` the question is asked a second time where its words look at a small part of the picture (those of the answer, if the
question names nothing): the model reads that part at full resolution beside the whole. Maps and boxes are in the picture's
pixels, and hold the attention on both; `cells of question` and so on are those of the whole.

With `--json` all that is printed is one JSON object: the `answer` and its `phrases`, each with its `span` in the answer, and the
`box` (left, top, right, bottom), the `point` and the `score` of what it looks at, null where its words look at nothing in
particular; with `--abstain` also `abstaining`, what would have been printed; with `--zoom` also `zoomed`, the box of the part that
was read, or null.

Without `--phrases` the phrases are guessed: the longest runs of words between punctuation marks and function words (a
fixed list). That needs no parser, but verbs and adverbs come along ("man riding").
"""

import argparse
import json
import sys
from pathlib import Path

from recipes.scenes import TRAINED_MODEL
from recipes.terminal.startup import lasting_imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="a picture file")
    parser.add_argument("--question", required=True, help="what to ask")
    parser.add_argument("--phrases", nargs="+", help="words of the question or the answer; guessed by default")
    parser.add_argument(
        "--model",
        default=str(TRAINED_MODEL),
        help="checkpoint folder or Hub id; default: the tiny model of this repository",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ask.png"), help="PNG file to draw to; the .npz goes beside it"
    )
    parser.add_argument("--html", type=Path, help="HTML file for a page whose words can be pointed at")
    parser.add_argument("--beside", help="another checkpoint, to be shown beside the first on that page")
    parser.add_argument(
        "--look_at",
        nargs="+",
        type=float,
        metavar="PIXELS",
        help="tell the model where to look, in pixels of the picture: a point (across, down) or a box (left, top, right, "
        "bottom)",
    )
    parser.add_argument(
        "--abstain",
        type=float,
        metavar="SHARE",
        help="strike out what looks at nothing with more than this share of its attention, and do not tell whether something "
        "is there whose words look otherwise; for a model with an attention sink",
    )
    parser.add_argument(
        "--zoom", action="store_true", help="read again, at full resolution, the small part that the words look at"
    )
    parser.add_argument("--json", action="store_true", help="print the answer and its phrases' boxes as JSON")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens")
    args = parser.parse_args()
    if args.out.suffix != ".png":
        sys.exit(f"error: `--out` has to end in .png, but is {args.out}.")
    if args.html is not None and args.html.suffix != ".html":
        sys.exit(f"error: `--html` has to end in .html, but is {args.html}.")
    if args.beside is not None and args.html is None:
        sys.exit("error: `--beside` shows another checkpoint on the page: say with `--html` where to write it.")
    if args.abstain is not None and not 0 < args.abstain < 1:
        sys.exit(f"error: `--abstain` is a share between 0 and 1, but is {args.abstain:g}.")
    if args.zoom and args.html is not None:
        sys.exit("error: a page shows where words look in one pass: leave out either `--zoom` or `--html`.")
    if not args.question.strip():
        sys.exit("error: `--question` is empty.")

    with lasting_imports():
        import numpy as np
        import torch
        from transformers.utils.logging import disable_progress_bar

        from modeling_agevlm.image_reading_agevlm import read_image
        from recipes.answering.answers import ask
        from recipes.answering.attention import first_picture
        from recipes.answering.checkpoint import load_checkpoint, short_names
        from recipes.answering.grounded import abstain, ground_answer
        from recipes.answering.phrases import find_queries, guess_phrases
        from recipes.answering.places import mask_of_place
        from recipes.answering.words import look_of_words
        from recipes.answering.zooming import boxes_in_one_picture, in_one_picture, zoom_window
        from recipes.drawing.answer_page import answer_page
        from recipes.drawing.attention import save_attention
        from recipes.rows.appearing import appearing

    disable_progress_bar()
    try:
        picture = read_image(args.image)
    except ValueError as error:
        sys.exit(f"error: {error}")
    look_at = None
    if args.look_at is not None:
        try:
            look_at = mask_of_place(args.look_at, picture.height, picture.width)
        except ValueError as error:
            sys.exit(f"error: `--look_at`: {error}")
    names = [args.model] if args.beside is None else [args.model, args.beside]
    checkpoints = []
    for name in names:
        try:
            checkpoints.append(load_checkpoint(name))
        except ValueError as error:
            sys.exit(f"error: {name} cannot be loaded as an AGE-VLM checkpoint: {str(error).rstrip('.')}.")

    sizes, page, window = [(picture.height, picture.width)], None, None
    try:
        asked = [ask(*checkpoint, picture, args.question, args.max_new_tokens, look_at) for checkpoint in checkpoints]
        if args.zoom:
            window = zoom_window(*checkpoints[0], *asked[0][1:], args.question, sizes[0])
        if window is not None:
            asked = [ask(*checkpoints[0], picture, args.question, args.max_new_tokens, look_at, window)]
            sizes.append((window[3] - window[1], window[2] - window[0]))
        titles = [""] if args.beside is None else short_names(names)
        told = [answer for answer, *_ in asked]
        if args.abstain is not None:
            told = [
                abstain(*checkpoint, inputs, length, sizes, args.question, answer, args.abstain)
                for checkpoint, (answer, inputs, length) in zip(checkpoints, asked, strict=True)
            ]
        for title, text in zip(titles, told, strict=True):
            if not args.json:
                print(f"{title}: {text}" if title else text)
        if args.html is not None:
            given = None if args.phrases is None else dict.fromkeys(args.phrases)
            page = answer_page(
                picture,
                [
                    look_of_words(*checkpoint, inputs, length, picture, args.question, title, given)
                    for checkpoint, (_, inputs, length), title in zip(checkpoints, asked, titles, strict=True)
                ],
            )
        (model, processor), (answer, inputs, prompt_length) = checkpoints[0], asked[0]
        phrases = args.phrases or guess_phrases(f"{args.question} . {answer}")
        masks = find_queries(processor, inputs["input_ids"], prompt_length, args.question, phrases)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with torch.inference_mode():
        outputs = model(**inputs, query_masks=torch.stack(list(masks.values()))[None])
    maps, smooth = (
        of_pictures[0] if window is None else in_one_picture(of_pictures, window)
        for of_pictures in (processor.post_process_grounding(outputs, [sizes], smooth=way)[0] for way in (False, True))
    )
    maps, smooth = maps.numpy(), dict(zip(masks, smooth.numpy(), strict=True))
    cells, sink = (part[0].numpy() for part in first_picture(model, processor, outputs.grounding_maps))
    on_nothing = dict(zip(masks, sink.mean(axis=-1).tolist(), strict=True))
    arrays = dict(zip(masks, maps, strict=True)) | {f"cells of {name}": cells[n] for n, name in enumerate(masks)}
    if model.config.text_config.attention_sink:
        arrays |= {f"nothing of {name}": sink[n] for n, name in enumerate(masks)}
        if not args.json:
            print("\n".join(f"{name}: {share:.0%} on nothing" for name, share in on_nothing.items()))
    titles = {"question": f"question: {args.question}", "answer": f"answer: {answer}"}
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        looks = {titles.get(name, name): (smooth[name], share) for name, share in on_nothing.items()}
        save_attention(args.out, picture, looks)
        np.savez_compressed(args.out.with_suffix(".npz"), **arrays)
        if page is not None:
            args.html.parent.mkdir(parents=True, exist_ok=True)
            with appearing(args.html) as aside:
                aside.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        sys.exit(f"error: {error.filename or args.out} cannot be written ({error.strerror or error}).")
    written = [args.out, args.out.with_suffix(".npz"), *([] if args.html is None else [args.html])]
    if args.json:
        phrases = ground_answer(model, processor, inputs, prompt_length, sizes)
        result = {"answer": answer} | ({} if args.abstain is None else {"abstaining": told[0]})
        if args.zoom:
            result["zoomed"] = window
        if window is not None:
            phrases = boxes_in_one_picture(phrases, window)
        print(json.dumps(result | {"phrases": phrases, "files": list(map(str, written))}))
    else:
        if args.zoom:
            print(f"zoomed in: {'nowhere' if window is None else ', '.join(map(str, window))}")
        print(f"where it looked: {', '.join(map(str, written))}")


if __name__ == "__main__":
    main()
