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
"""From files of annotations of a format that is named to parquet files of rows."""

import itertools
import json
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Features
from tqdm.auto import tqdm

from recipes.annotations.annotated import Annotated, Faults
from recipes.annotations.coco import read_instances, read_panoptic
from recipes.annotations.own import read_mask_pictures, read_own
from recipes.annotations.phrases import read_flickr30k, read_refcoco, read_visual_genome
from recipes.annotations.rows import rows_of
from recipes.rows.files import NOTE_NAME, check_folder, make_folder, write_parquet
from recipes.rows.json_files import Lines, as_lines
from recipes.rows.records import FEATURES, REGIONS, parse


ROWS_PER_FILE = 20_000
NOTE = {"program": "recipes/regions.py"}
FOLDERS = ("flickr30k", "masks")  # formats that are no file
# Which formats an option is for
OPTIONS = {
    "captions": ("coco", "lvis", "panoptic"),
    "exhaustive": ("coco",),
    "masks": ("panoptic",),
    "instances": ("refcoco",),
    "split": ("refcoco",),
}
NEEDED = {"panoptic": "masks", "refcoco": "instances"}


def check_options(args: Namespace) -> None:
    """Raises `ValueError` if an option is missing, or would do nothing."""
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    if args.to_coco is not None:
        if idle := sorted(given - {"to_coco", "out", "images"}):
            raise ValueError(f"`--{idle[0]}` does nothing with `--to_coco`: leave it out.")
        return
    missing = [name for name in ("format", "annotations", "images") if name not in given]
    if missing:
        raise ValueError(f"Pass {', '.join(f'`--{name}`' for name in missing)}, or `--to_coco`.")
    if args.seed is not None and args.seed < 0:
        raise ValueError(f"`--seed` is 0 or more, not {args.seed}.")
    for name, formats in OPTIONS.items():
        if name in given and args.format not in formats:
            raise ValueError(f"`--{name}` does nothing with `--format {args.format}`: it is for {', '.join(formats)}.")
    needed = NEEDED.get(args.format)
    if needed is not None and needed not in given:
        raise ValueError(f"`--format {args.format}` needs `--{needed}`.")
    for name in ("images", *(["masks"] if "masks" in given else [])):
        if not getattr(args, name).is_dir():
            raise ValueError(f"There is no folder {getattr(args, name)}: pass one as `--{name}`.")
    if not (args.annotations.is_dir() if args.format in FOLDERS else args.annotations.is_file()):
        kind = "folder" if args.format in FOLDERS else "file"
        raise ValueError(f"There is no {kind} {args.annotations}: `--annotations` of `{args.format}` is a {kind}.")


def read(args: Namespace) -> tuple[Iterator[Annotated], Faults]:
    """The pictures of the annotations, and what is wrong with them, which is counted while they are read."""
    faults, source = Faults(), args.annotations
    pictures = {
        "coco": lambda: read_instances(source, args.captions, args.exhaustive, faults),
        "lvis": lambda: read_instances(source, args.captions, False, faults),
        "panoptic": lambda: read_panoptic(source, args.masks, args.captions, faults),
        "refcoco": lambda: read_refcoco(source, args.instances, args.split, faults),
        "flickr30k": lambda: read_flickr30k(source, faults),
        "visual_genome": lambda: read_visual_genome(source, args.images, faults),
        "masks": lambda: read_mask_pictures(source, args.images, faults),
        "jsonl": lambda: read_own(records(source, faults), faults),
    }
    return pictures[args.format](), faults


def records(path: Path, faults: Faults) -> Iterator[dict[str, Any]]:
    lines = Lines(as_lines(path))
    for number in range(len(lines)):
        if line := lines[number].strip():
            with faults.counting():
                yield parse(line)


def open_folder(out: Path) -> None:
    """
    Makes the folder, or takes one of an earlier run, whose rows stay until the new ones are complete.

    Raises:
        ValueError: If it holds what something else has made.
    """
    check_folder(out, NOTE["program"])
    make_folder(out)
    (out / NOTE_NAME).write_text(json.dumps(NOTE), encoding="utf-8")
    for aside in out.glob("_*.parquet*"):  # of a process that was killed
        aside.unlink()


def write(pictures: Iterator[Annotated], faults: Faults, images: Path, out: Path, seed: int) -> str:
    """
    Writes the rows of the pictures, in the place of those of an earlier run. Returns what there is to say of them.

    Raises:
        ValueError: If there are none, or the folder holds others.
    """
    open_folder(out)
    features, numbers = Features(FEATURES | REGIONS), Counter()
    num_rows = num_masks = num_nowhere = 0
    rows = (
        row for picture in tqdm(pictures, unit=" pictures") for row in rows_of(picture, images, faults, seed, numbers)
    )
    files: list[Path] = []
    try:
        while some := list(itertools.islice(rows, ROWS_PER_FILE)):
            files.append(out / f"_{len(files):05d}.parquet")
            write_parquet(files[-1], some, features)
            num_rows += len(some)
            masks = [region["mask"] for row in some for region in row["regions"]]
            num_masks, num_nowhere = num_masks + len(masks) - masks.count(None), num_nowhere + masks.count(None)
        if not num_rows:
            raise ValueError("\n".join(["There is nothing to train on.", *faults.lines()]))
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    for file in out.glob("train-*.parquet"):
        file.unlink()
    for n, file in enumerate(files):  # a part of them is not taken for the whole
        file.rename(out / f"train-{n:05d}-of-{len(files):05d}.parquet")
    lines = [f"{num_rows:>12,} rows in {out}", f"{num_masks:>12,} regions with a mask"]
    lines += [f"{num_nowhere:>12,} regions of what is nowhere in its picture"]
    return "\n".join([*lines, *faults.lines()])
