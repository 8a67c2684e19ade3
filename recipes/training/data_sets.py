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
"""The rows that a stage trains on."""

import functools
from pathlib import Path

import pyarrow as pa
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
    load_dataset,
    load_from_disk,
)

from recipes.rows.files import load_records
from recipes.scenes.rows import FEATURES, load_scenes
from recipes.training.arguments import DataArguments
from trainers import Stage


def load_rows(data: DataArguments, stage: Stage, image_size: int) -> Dataset | IterableDataset:
    """
    The rows of a stage: captions in stages 1 to 3, instructions in stage 4 where the data set is `scenes`. Where there are
    masks for some of them, those rows have `regions`.

    Raises:
        ValueError: If the arguments do not go together.
    """
    rows = load_dataset_of(data.dataset_name, data, stage, image_size)
    if data.masks_name is None:
        return rows
    masked = load_dataset_of(data.masks_name, data, stage, image_size)
    if data.masked_share is None and data.streaming:
        raise ValueError("A stream cannot tell how many rows have masks: say how many shall, with `--masked_share`.")
    if data.masked_share is not None and not 0 < data.masked_share < 1:
        raise ValueError(f"`--masked_share` is a share between 0 and 1, but is {data.masked_share}.")
    for name, part in ((data.dataset_name, rows), (data.masks_name, masked)):
        if "id" not in (part.column_names or []):
            raise ValueError(f"{name} has no column `id`, by which rows and masks find each other.")
    identities = (
        set(masked["id"]) if isinstance(masked, Dataset) else {row["id"] for row in masked.select_columns("id")}
    )
    rest = rows.filter(lambda identity: identity not in identities, input_columns="id")
    rest = rest.select_columns(["id", "images", "messages"])  # its `regions` become null
    masked = masked.select_columns(["id", "images", "messages", "regions"])
    if data.masked_share is None:
        return concatenate_datasets([masked, rest])
    shares = [data.masked_share, 1 - data.masked_share]
    return interleave_datasets(
        [masked, rest], probabilities=shares, seed=data.scenes_seed, stopping_strategy="all_exhausted"
    )


def load_dataset_of(name: str, data: DataArguments, stage: Stage, image_size: int) -> Dataset | IterableDataset:
    """The rows of one data set."""
    if name == "scenes":
        task = "instruction" if stage.number == 4 else "caption"
        return load_scenes(
            data.dataset_split, task, data.num_scenes, image_size, data.scenes_seed, streaming=data.streaming
        )
    folder = Path(name)
    if folder.suffix in (".json", ".jsonl"):
        if data.image_folder is None or not data.streaming:
            raise ValueError(
                f"{name} is read as a stream: pass `--streaming true` and `--image_folder`, or make a data set of it with "
                "`recipes/data.py --out`."
            )
        return load_records(folder, Path(data.image_folder))
    if (folder / "dataset_info.json").exists() or (folder / "dataset_dict.json").exists():
        rows = load_from_disk(name)
        rows = rows[data.dataset_split] if (folder / "dataset_dict.json").exists() else rows
        return rows.to_iterable_dataset() if data.streaming else rows
    load = functools.partial(load_dataset, name, data.dataset_config, split=data.dataset_split)
    features = with_types(load(streaming=True).features) if folder.is_dir() else None
    return load(streaming=data.streaming, features=features)


def with_types(features: Features | None) -> Features | None:
    """
    The features of a data set in whose first file nothing says of which type `regions` or one of their fields are, as where
    all are nowhere in their pictures: with the types that other files may need. None if there is no such field.
    """
    regions, known = (features or {}).get("regions"), FEATURES["regions"]
    if regions in (Value("null"), List(Value("null"))):
        return Features({**features, "regions": known})
    fields = regions.feature if isinstance(regions, List) and isinstance(regions.feature, dict) else {}
    untyped = {name: known.feature[name] for name in known.feature if fields.get(name) == Value("null")}
    return Features({**features, "regions": List({**fields, **untyped})}) if untyped else None


def check_regions(rows: Dataset | IterableDataset, stage: Stage, guidance_weight: float, attention_sink: bool) -> None:
    """Raises `ValueError` if a guided stage would train on rows without a single region that this model can look at."""
    if not stage.guided or guidance_weight == 0:
        return
    num_regions = num_masks = 0
    if "regions" in (rows.column_names or []):
        if not isinstance(rows, Dataset):
            return
        for chunk in rows.data.column("regions").chunks:
            regions = chunk.flatten() if pa.types.is_nested(chunk.type) else chunk
            if pa.types.is_struct(regions.type):  # where no row has any, their type is null
                num_regions += len(regions)
                has_field = "mask" in regions.type.names  # otherwise the collator says what is missing
                num_masks += len(regions) - (regions.field("mask").null_count if has_field else 0)
    unguided = "train an unguided variant (`--variant ca-baseline-frozen` or `ca-baseline`)"
    if num_regions == 0:
        raise ValueError(
            f"Stage {stage.number} adds the guidance loss, but no row of the data set has a region. Make masks first, or "
            f"{unguided}."
        )
    if num_masks == 0 and not attention_sink:
        raise ValueError(
            f"Stage {stage.number} adds the guidance loss, but every region of the data set is nowhere in its picture (its "
            "`mask` is null), where only the words of a model with an attention sink can look. Make masks, build the model "
            f"with `--attention_sink true`, or {unguided}."
        )
