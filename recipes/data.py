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
the first look is remembered beside the JSON file: the second command looks again only at what was at fault. Several machines
share the work with `--shard 1/8` to `--shard 8/8` on folders that all of them see: each looks at its part, and writes its
files when it is run again after that. What was at fault is then not looked at again: run it without `--shard` for that.

What is wrong is mended where that is safe, left out where not, and counted in any case (`--strict` stops at the first):

| mended | left out |
|---|---|
| turns of one speaker in a row are joined | no question with an answer |
| what comes before the first question or after the last answer goes | image missing, unreadable or truncated |
| a path written in another way (case, `%20`, ...) is corrected | image outside of `--images`: by its path, or by a link that leads out |
| `<image>` is added to questions where there is none for an image | image of more pixels than `--max_pixels` |
| | more `<image>` than images, images under another name, videos; `regions` that training would stop at |
| | a line that is not JSON, holds half a character or the model's own placeholder, a record that repeats another one |
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
    parser.add_argument("--push_to_hub", metavar="ID", help="Hub id to put the rows up under, too")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that has to be left out")
    parser.add_argument("--subset", type=float, default=1.0, help="share of the rows to write, picked by their ids")
    parser.add_argument("--seed", type=int, default=0, help="picks another subset")
    parser.add_argument("--tokenizer", help="measure lengths in tokens of this checkpoint (folder or Hub id)")
    parser.add_argument("--drop_hashes", "--drop-hashes", type=Path, help="leave out the pictures in this file")
    parser.add_argument("--write_hashes", type=Path, help="write such a file of all pictures in `--images`, and stop")
    parser.add_argument("--max_pixels", type=int, help="larger images are left out; default: what Pillow refuses")
    parser.add_argument("--shard", default="1/1", help="what this machine does of several, such as 3/8")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read images")
    args = parser.parse_args()

    from recipes.rows import hub
    from recipes.rows.files import check_folder, write
    from recipes.rows.images import write_hashes
    from recipes.rows.survey import WHOLE, Shard, Source, survey

    with one_sentence():
        if not args.images.is_dir():
            raise ValueError(f"There is no folder {args.images}: `--images` is the folder that the images lie in.")
        if args.write_hashes is not None:
            if args.write_hashes.is_dir() or not args.write_hashes.resolve().parent.is_dir():
                raise ValueError(f"`--write_hashes` is a file in a folder that is there, not {args.write_hashes}.")
            print(f"{write_hashes(args.images, args.write_hashes):,} hashes in {args.write_hashes}")
            return
        if args.max_pixels is not None and args.max_pixels < 1:
            raise ValueError(f"`--max_pixels` is a number of pixels, but is {args.max_pixels}.")
        if args.workers < 1:
            raise ValueError(f"`--workers` is a number of processes, but is {args.workers}.")
        if args.json is not None and (args.json.suffix in (".parquet", ".tar") or args.json.is_dir()):
            raise ValueError(
                f"{args.json} is no JSON or JSONL file. Folders of parquet files and of tar shards need nothing made of them: "
                "the stages and `recipes/masks.py` read them as they are (`--dataset_name`)."
            )
        if args.json is None or not args.json.is_file():
            raise ValueError(f"There is no file {args.json}: `--json` is a JSON or JSONL file of conversations.")
        if not args.check and args.out is None:
            raise ValueError("Pass `--check` to see what there is, or `--out` to write the rows to a folder.")
        if not 0 < args.subset <= 1:
            raise ValueError(f"`--subset` is a share of the rows between 0 and 1, but is {args.subset}.")
        shard = Shard.of(args.shard)
        if args.push_to_hub is not None:
            hub.check_id(args.push_to_hub)
            if shard != WHOLE:
                raise ValueError("With `--shard` no machine has all rows: `--push_to_hub` goes with a run without it.")
        if not args.check:
            check_folder(args.out)
        source = Source(args.json, args.images, args.max_pixels or Source.max_pixels, args.drop_hashes, args.tokenizer)
        report = survey(source, args.workers, args.strict, shard)
        if report is None:
            print(f"Shard {args.shard} is looked at. Run it again once all the others are.")
            return
        print(report)
        if not len(report.kept):
            raise ValueError(f"{args.json} has nothing to train on.")
        if not args.check:
            num_rows = write(report, args.out, args.subset, args.seed, workers=args.workers, shard=shard)
            print(f"{num_rows:,} rows in {args.out}")
            if args.push_to_hub is not None:
                print(hub.push(args.out, args.push_to_hub))


if __name__ == "__main__":
    main()
