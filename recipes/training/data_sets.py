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
"""The rows that a stage trains on, and those that it is evaluated on."""

import functools
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)

from modeling_agevlm.conversion import loading
from recipes.rows.files import check_complete, load_records, read_records
from recipes.rows.json_files import MADE
from recipes.rows.records import FEATURES, REGIONS, Fault, hashed, read_as_written
from recipes.rows.tars import load_tars
from recipes.scenes.rows import load_scenes
from recipes.training.arguments import DataArguments, RowsArguments
from trainers import GuidedSFTConfig, Stage
from trainers.rows import as_row, undecoded


EVALUATION_SCENES = 200  # of `scenes`, at the most


def load_rows(
    data: RowsArguments, stage: Stage, image_size: int, skip_broken: bool = False
) -> Dataset | IterableDataset:
    """
    The rows of a stage: captions in stages 1 to 3, instructions in stage 4 where the data set is `scenes`. Where there are
    masks for some of them, those rows have `regions`. `skip_broken` leaves records out that cannot be trained on.

    Raises:
        ValueError: If the arguments do not go together.
    """
    rows = load_dataset_of(data.dataset_name, data, stage, image_size, skip_broken=skip_broken)
    if data.masks_name is None:
        return rows
    masked = load_dataset_of(data.masks_name, data, stage, image_size, skip_broken=skip_broken)
    if data.masked_share is None and data.streaming:
        raise ValueError("A stream cannot tell how many rows have masks: say how many shall, with `--masked_share`.")
    if data.masked_share is not None and not 0 < data.masked_share < 1:
        raise ValueError(f"`--masked_share` is a share between 0 and 1, but is {data.masked_share}.")
    for name, part in ((data.dataset_name, rows), (data.masks_name, masked)):
        if "id" not in (part.column_names or []):
            raise ValueError(f"{name} has no column `id`, by which rows and masks find each other.")
    if "regions" not in masked.column_names:
        raise ValueError(f"{data.masks_name} has no column `regions`: `--masks_name` is a data set with masks.")
    masked = in_one_form(masked).select_columns([*FEATURES, "regions"])
    known = Known(masked, data.masks_name)
    rest = in_one_form(rows).select_columns(list(FEATURES))  # its `regions` become null
    rest = rest.filter(known.lacks, input_columns=["id", "messages"], batched=True)
    if data.masked_share is None:
        return concatenate_datasets([masked, rest])
    shares = [data.masked_share, 1 - data.masked_share]
    return interleave_datasets(
        [masked, rest], probabilities=shares, seed=data.scenes_seed, stopping_strategy="all_exhausted"
    )


def in_one_form(rows: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Rows of any form with the columns that `recipes/data.py` writes, and the regions that they have."""
    rows = undecoded(rows)
    found = rows.features or {}
    features = Features(FEATURES | {name: found[name] for name in found if name == "regions"})
    if all(found.get(name) == feature for name, feature in features.items()):
        return rows
    others = [name for name in rows.column_names if name not in features]
    return rows.map(form, features=features, remove_columns=others)


def form(row: dict[str, Any]) -> dict[str, Any]:
    read = as_row(row)
    images = [{"path": image, "bytes": None} if isinstance(image, str) else image for image in read["images"]]
    try:
        return {"id": str(row["id"]), "images": images, "messages": read_as_written(read["messages"])}
    except Fault as fault:
        raise ValueError(f"Row {row['id']!r} cannot be joined with others: {fault}.") from None


class Known:
    """
    The rows of a data set with masks, by their ids. Of ids and answers it has 16 bytes a row, for those of ten million rows
    are to be known at the same time.
    """

    def __init__(self, rows: Dataset | IterableDataset, name: str) -> None:
        self.name, parts = name, [np.zeros((2, 0), np.uint64)]
        for batch in rows.select_columns(["id", "messages"]).iter(1_000):
            parts.append(np.stack([hashes(batch["id"]), hashes(map(answers_of, batch["messages"]))]))
        known = np.concatenate(parts, axis=1)
        self.ids, self.answers = known[:, np.argsort(known[0], kind="stable")]

    def lacks(self, names: Sequence[str], messages: Sequence[list[dict[str, Any]]]) -> list[bool]:
        """
        Which rows of another data set have no masks.

        Raises:
            ValueError: If a row with masks has the id of a row with other answers.
        """
        ids, answers = hashes(names), hashes(map(answers_of, messages))
        first, end = (np.searchsorted(self.ids, ids, side) for side in ("left", "right"))
        for n in np.flatnonzero(first < end):
            if answers[n] not in self.answers[first[n] : end[n]]:
                raise ValueError(
                    f"{self.name} has masks for a row {names[n]!r} with another answer than the row {names[n]!r} that they are "
                    "for: give rows of different data ids of their own, or make the masks anew."
                )
        return (first == end).tolist()


def hashes(texts: Iterable[str]) -> np.ndarray:
    """8 bytes of each text."""
    return np.array([hashed(text) for text in texts], dtype=np.uint64)


def answers_of(messages: list[dict[str, Any]]) -> str:
    """The words of the answers in a conversation."""
    answers = (message["content"] for message in messages if message["role"] == "assistant")
    return json.dumps([[part["text"] for part in answer if part["text"]] for answer in answers])


def load_evaluation_rows(
    data: DataArguments, stage: Stage, image_size: int, skip_broken: bool = False
) -> Dataset | dict[str, Dataset] | None:
    """
    The rows that a stage is evaluated on, by name if they are several sets; None if there are none.

    Raises:
        ValueError: If two sets have the same name, or one cannot be loaded.
    """
    entries = data.eval_dataset_name or ([] if data.eval_split is None else [data.dataset_name])
    entries = [entries] if isinstance(entries, str) else entries  # as YAML may have it
    sets, has_names = {}, len(entries) > 1
    for entry in entries:
        label, equals, name = entry.partition("=")
        if not equals or "/" in label:
            label, name = Path(entry).stem, entry
        else:
            has_names = True
        if label in sets:
            raise ValueError(
                f"Two evaluation sets are called {label!r}: name them, as in `--eval_dataset_name NAME={name}`."
            )
        own = replace(
            data,
            dataset_name=name,
            dataset_split=data.eval_split or "test",
            streaming=False,
            num_scenes=min(data.num_scenes, EVALUATION_SCENES),
        )
        sets[label] = load_dataset_of(name, own, stage, image_size, "test", skip_broken)
        if len(sets[label]) == 0:
            raise ValueError(f"The evaluation set {name} has no rows.")
    return sets if has_names else next(iter(sets.values()), None)


def load_dataset_of(
    name: str,
    data: RowsArguments,
    stage: Stage,
    image_size: int,
    default_split: str = "train",
    skip_broken: bool = False,
) -> Dataset | IterableDataset:
    """
    The rows of one data set. What has no splits is taken as the default one.

    Raises:
        ValueError: If it cannot be loaded, or has no such split.
    """
    split, place = data.dataset_split, Path(name)
    if name == "scenes":
        task = "instruction" if stage.number == 4 else "caption"
        return load_scenes(split, task, data.num_scenes, image_size, data.scenes_seed, streaming=data.streaming)
    if place.suffix in (".json", ".jsonl"):
        if not place.is_file():
            raise ValueError(f"There is no file {name}.")
        check_whole(name, split, default_split)
        return read_files([place], data, skip_broken)
    if (place / "dataset_info.json").exists() or (place / "dataset_dict.json").exists():
        with loading(name):
            rows = load_from_disk(name)
        if isinstance(rows, DatasetDict):
            if split not in rows:
                raise ValueError(f"{name} has no split {split!r}, but {', '.join(rows)}.")
            rows = rows[split]
        elif split != str(rows.split):
            check_whole(name, split, default_split)
        rows = rows.to_iterable_dataset() if data.streaming else rows
        return rows if data.image_folder is None else with_folder(rows, data.image_folder)
    files = json_files(place, split, default_split)
    if files:
        return read_files(files, data, skip_broken)
    tars = [place] if place.suffix == ".tar" else sorted(place.glob("*.tar")) if place.is_dir() else []
    if tars:
        check_whole(name, split, default_split)
        return load_tars(tars, data.streaming)
    if place.is_dir():
        check_complete(place)
    load = functools.partial(load_dataset, name, data.dataset_config, split=split)
    with loading(name):
        features = with_types(load(streaming=True).features) if place.is_dir() else None
        rows = load(streaming=data.streaming, features=features)
    folder = data.image_folder or (name if place.is_dir() else None)
    return rows if folder is None else with_folder(rows, folder)


def check_whole(name: str, split: str, default_split: str) -> None:
    """Raises `ValueError` if a split is asked for where there are none."""
    if split != default_split:
        raise ValueError(f"{name} has no splits, and so no {split!r}: leave the split out to take all of it.")


def json_files(folder: Path, split: str, default_split: str) -> list[Path]:
    """
    The JSON and JSONL files of a folder that hold a split: those whose names begin with it, or the only one there is.

    Raises:
        ValueError: If there are others only.
    """
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.json")]) if folder.is_dir() else []
    # Not what was made of a JSON list, nor what `datasets` makes rows of pictures with.
    files = [file for file in files if not MADE.search(file.name) and file.name != "metadata.jsonl"]
    found = [file for file in files if re.match(rf"{re.escape(split)}(?![a-zA-Z])", file.name)]
    if files and not found and not any(folder.glob("**/*.parquet")):
        if len(files) > 1 or split != default_split:
            raise ValueError(f"{folder} has no file of the split {split!r}, but {', '.join(f.name for f in files)}.")
        return files
    return found


def read_files(files: list[Path], data: RowsArguments, skip_broken: bool) -> Dataset | IterableDataset:
    """The rows of JSON and JSONL files."""
    parts = []
    for file in files:
        images = file.parent if data.image_folder is None else Path(data.image_folder)
        parts.append(load_records(file, images) if data.streaming else read_records(file, images, skip_broken))
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def with_folder(rows: Dataset | IterableDataset, folder: str) -> Dataset | IterableDataset:
    """Rows whose pictures are named by paths, with those that start from a folder whole."""
    for column in ("images", "image"):
        if (rows.features or {}).get(column) in (Value("string"), List(Value("string"))):
            rows = rows.map(functools.partial(joined, column=column, folder=folder), input_columns=column)
    return rows


def joined(names: str | list[str] | None, column: str, folder: str) -> dict[str, Any]:
    if isinstance(names, list):
        return {column: [os.path.join(folder, name) for name in names]}
    return {column: None if names is None else os.path.join(folder, names)}


def shuffled(
    rows: Dataset | IterableDataset, data: DataArguments, training: GuidedSFTConfig
) -> Dataset | IterableDataset:
    """
    A stream in another order in every pass, the same from the same seed. Scenes do not depend on each other, and other data
    sets are shuffled by their sampler.
    """
    if not isinstance(rows, IterableDataset) or data.shuffle_buffer_size == 0 or data.dataset_name == "scenes":
        return rows
    seed = training.seed if training.data_seed is None else training.data_seed
    return rows.shuffle(seed=seed, buffer_size=data.shuffle_buffer_size)


def with_types(features: Features | None) -> Features | None:
    """
    The features of a data set in whose first file nothing says of which type `regions` or one of their fields are, as where
    all are nowhere in their pictures: with the types that other files may need. None if there is no such field.
    """
    regions, known = (features or {}).get("regions"), REGIONS["regions"]
    if regions in (Value("null"), List(Value("null"))):
        return Features({**features, "regions": known})
    fields = regions.feature if isinstance(regions, List) and isinstance(regions.feature, dict) else {}
    untyped = {name: known.feature[name] for name in known.feature if fields.get(name) == Value("null")}
    return Features({**features, "regions": List({**fields, **untyped})}) if untyped else None
