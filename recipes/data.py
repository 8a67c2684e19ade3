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
LLaVA-style data (Cambrian-Alignment, Cambrian-7M/10M, LLaVA: a JSON or JSONL file and a folder of images) as rows to
train on.

    python recipes/data.py --json alignment_2.5m.jsonl --images cambrian --check
    python recipes/data.py --json alignment_2.5m.jsonl --images cambrian --out data/captions
    python recipes/data.py --images coco/val2014 --write_hashes coco_val2014.hashes

`--check` reads every record and decodes every image, says what is there and what is wrong with it, and writes nothing.
`--out` writes what can be trained on as parquet files; images stay where they are, and rows hold their paths. Either way
the first look is remembered beside the JSON file: the second command looks again only at what was at fault.

What is wrong is mended where that is safe, left out where not, and counted in any case (`--strict` stops at the first):

| mended | left out |
|---|---|
| turns of one speaker in a row are joined | no question with an answer |
| what comes before the first question or after the last answer goes | image missing, unreadable or truncated |
| a path in the wrong case is corrected | image outside of `--images`: by its path, or by a link that leads out |
| `<image>` is added or moved where there is none for an image | image of more pixels than `--max_pixels` |
| | more `<image>` than images |
| | a line that is not JSON or holds half a character, a record that repeats another one |
| | an image of `--drop_hashes` (evaluation pictures) |
"""

import argparse
import os
from pathlib import Path

from recipes.terminal.errors import one_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="JSON or JSONL file of conversations")
    parser.add_argument("--images", type=Path, required=True, help="folder that the images' paths start from")
    parser.add_argument("--check", action="store_true", help="say what there is, write nothing")
    parser.add_argument("--out", type=Path, help="folder to write parquet files to")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that has to be left out")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the rows to write, picked by their ids")
    parser.add_argument("--seed", type=int, default=0, help="picks another subset")
    parser.add_argument("--tokenizer", help="measure lengths in tokens of this checkpoint (folder or Hub id)")
    parser.add_argument("--drop_hashes", "--drop-hashes", type=Path, help="leave out the pictures in this file")
    parser.add_argument("--write_hashes", type=Path, help="write such a file of all pictures in `--images`, and stop")
    parser.add_argument("--max_pixels", type=int, help="larger images are left out; default: what Pillow refuses")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read images")
    args = parser.parse_args()

    from recipes.rows.files import write
    from recipes.rows.images import write_hashes
    from recipes.rows.survey import Source, survey

    with one_sentence():
        if not args.images.is_dir():
            raise ValueError(f"There is no folder {args.images}: `--images` is the folder that the images lie in.")
        if args.write_hashes is not None:
            print(f"{write_hashes(args.images, args.write_hashes):,} hashes in {args.write_hashes}")
            return
        if args.json is None or not args.json.is_file():
            raise ValueError(f"There is no file {args.json}: `--json` is a JSON or JSONL file of conversations.")
        if not args.check and args.out is None:
            raise ValueError("Pass `--check` to see what there is, or `--out` to write the rows to a folder.")
        if not 0 < args.subset <= 1:
            raise ValueError(f"`--subset` is a share of the rows between 0 and 1, but is {args.subset}.")
        source = Source(args.json, args.images, args.max_pixels or Source.max_pixels, args.drop_hashes, args.tokenizer)
        report = survey(source, args.workers, args.strict)
        print(report)
        if not args.check:
            num_rows = write(source, report.kept, args.out, args.subset, args.seed)
            print(f"{num_rows:,} rows in {args.out}")


if __name__ == "__main__":
    main()
