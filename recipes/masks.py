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
Adds language-grounded masks to a data set: rows of `images` and `messages` become the same rows with `regions`.

    accelerate launch recipes/masks.py --dataset_name data/captions --out data/captions_with_masks

As in the paper (appendix B): Florence-2 outlines what a text refers to, the box around each outline prompts SAM, and the
union of SAM's masks is the text's mask. Where SAM's mask and the outline disagree, the outline itself is kept, and the
region says so (`outlines_kept`). `--level phrase` asks Florence-2 for the boxes of every phrase in the text instead, and
gives each phrase a mask of its own.

What is not there has no mask: where a question for existence ("Is there a dog in the image?", in English) is answered with
no, or a row brings regions with `mask: null` of its own, that question and answer are not looked for, and the regions of
the denied things say that they are nowhere in the picture. Other regions that a row brings are made anew.

`--segmenter sam3` takes SAM 3 in the place of both networks: it finds and draws the noun phrases of an English text.
`--locator grounding_dino` takes Grounding DINO in the place of Florence-2 alone: it finds boxes of the same phrases.

Runs on any number of processes and goes on where it was stopped: what is written are parquet files of `--rows_per_file`
rows each, which appear when they are complete. Run again for a data set that has grown or changed, it makes masks for the
rows that are new. A row that the networks fail on is written without masks, and with why.
"""

from dataclasses import asdict
from pathlib import Path

from recipes.segmentation.arguments import MaskArguments
from recipes.terminal.errors import one_sentence
from recipes.terminal.options import print_help, wants_help
from recipes.training.arguments import RowsArguments


def main() -> None:
    if wants_help():
        print_help(__doc__, RowsArguments, MaskArguments)
        return

    import torch
    from accelerate import PartialState
    from datasets import Dataset, Image, List
    from trl import TrlParser

    from recipes.rows import hub
    from recipes.segmentation.florence import Locator
    from recipes.segmentation.grounding_dino import BoxLocator
    from recipes.segmentation.maker import MaskMaker, make_masks, start_folder, summary
    from recipes.segmentation.sam import Segmenter
    from recipes.segmentation.sam3 import ConceptLocator
    from recipes.training.data_sets import load_rows
    from trainers.stages import get_stage

    parser = TrlParser((RowsArguments, MaskArguments))
    with one_sentence():
        data, arguments = parser.parse_args_and_config()
        if arguments.push_to_hub is not None:
            hub.check_id(arguments.push_to_hub)
        state = PartialState()
        rows = load_rows(data, get_stage(3), image_size=1024)
        if not isinstance(rows, Dataset):
            raise ValueError("Masks are made for a data set that can be counted: leave `--streaming` out.")
        if not {"images", "messages"} <= set(rows.column_names):
            raise ValueError(
                f"{data.dataset_name} has the columns {rows.column_names}, but needs images and messages."
            )
        if "mask_problems" in rows.column_names:
            rows = rows.remove_columns("mask_problems")
        rows = rows.cast_column("images", List(Image(decode=False)))
        out = Path(arguments.out)
        with state.main_process_first():
            if state.is_main_process:
                start_folder(out, {**arguments.settings, "data": asdict(data)})
        dtype = torch.bfloat16 if state.device.type == "cuda" else torch.float32
        if arguments.segmenter == "sam3":
            networks = (ConceptLocator(arguments, state.device, dtype),)
        else:
            locator = BoxLocator if arguments.locator == "grounding_dino" else Locator
            networks = locator(arguments, state.device, dtype), Segmenter(arguments, state.device, dtype)
        maker = MaskMaker(arguments, *networks)
        make_masks(rows, maker, out, state)
    state.wait_for_everyone()
    if state.is_main_process:
        print(summary(out))
        if arguments.push_to_hub is not None:
            with one_sentence():
                print(hub.push(out, arguments.push_to_hub))


if __name__ == "__main__":
    main()
