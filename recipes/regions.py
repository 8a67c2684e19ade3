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
What people have drawn and said of pictures, as rows with regions: no network has to look for anything.

    python recipes/regions.py --format coco --annotations instances_val2017.json --captions captions_val2017.json \
        --exhaustive --images val2017 --out data/coco
    python recipes/regions.py --format lvis --annotations lvis_v1_val.json --images coco --out data/lvis
    python recipes/regions.py --format panoptic --annotations panoptic_val2017.json --masks panoptic_val2017 \
        --images val2017 --out data/panoptic
    python recipes/regions.py --format refcoco --annotations "refs(unc).p" --instances instances.json --split train \
        --images train2014 --out data/refcoco
    python recipes/regions.py --format flickr30k --annotations flickr30k_entities --images flickr30k --out data/flickr30k
    python recipes/regions.py --format visual_genome --annotations region_descriptions.json --images VG --out data/vg
    python recipes/regions.py --format masks --annotations masks --images pictures --out data/own
    python recipes/regions.py --format jsonl --annotations own.jsonl --images pictures --out data/own
    python recipes/regions.py --to_coco data/captions_with_masks --out regions.json   # for a labelling tool

Of a caption, phrases look at what they name; a description's words at its part of the picture; and questions for what is
there ("Is there a dog in the image?") at it, or at nothing for what is verified to be absent: LVIS's negatives, and with
`--exhaustive`, as in COCO, every category that a picture has no annotation of. A box is a mask of all of its pixels, which is
said. What is wrong is left out and counted, and what it shows is neither there nor absent. `recipes/look_at_masks.py` shows what
came of it.

A line of `jsonl`: {"image": "a/1.jpg", "text": "A cup beside a plate.", "regions": [{"phrase": "A cup", "box": [left, top,
width, height]}, {"phrase": "a plate", "polygon": [x0, y0, x1, y1, ...]}, {"phrase": "dog", "mask": null}]}, in pixels; with
an "id" for its row if it has one. A mask of `masks`: `kitchen/1/red_cup.png` (or `red_cup_2.png`) for `kitchen/1.jpg`, black or
transparent outside.
"""

import argparse
from pathlib import Path

from recipes.terminal.errors import one_sentence


FORMATS = ("coco", "lvis", "panoptic", "refcoco", "flickr30k", "visual_genome", "masks", "jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=FORMATS, help="of the annotations")
    parser.add_argument("--annotations", type=Path, help="file or folder")
    parser.add_argument("--images", type=Path, help="folder that the pictures' names start from")
    parser.add_argument("--captions", type=Path, help="COCO's file of captions (coco, lvis, panoptic)")
    parser.add_argument("--masks", type=Path, help="folder of PNG files (panoptic)")
    parser.add_argument("--instances", type=Path, help="COCO's instances (refcoco)")
    parser.add_argument("--split", help="only this one (refcoco)")
    parser.add_argument("--exhaustive", action="store_true", help="what is not annotated is absent (coco)")
    parser.add_argument("--to_coco", type=Path, help="folder of rows with regions to write in COCO's format")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rows; with --to_coco: file")
    parser.add_argument("--push_to_hub", metavar="ID", help="Hub id to put the rows up under, too")
    parser.add_argument("--seed", type=int, help="draws other questions (default: 0)")
    args = parser.parse_args()

    from recipes.annotations.export import to_coco
    from recipes.annotations.files import check_options, read, write
    from recipes.rows import hub

    with one_sentence():
        check_options(args)
        if args.to_coco is not None:
            print(to_coco(args.to_coco, args.out, args.images))
            return
        if args.push_to_hub is not None:
            hub.check_id(args.push_to_hub)
        print(write(*read(args), args.images, args.out, args.seed or 0))
        if args.push_to_hub is not None:
            print(hub.push(args.out, args.push_to_hub))


if __name__ == "__main__":
    main()
