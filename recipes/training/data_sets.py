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

from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets, load_dataset, load_from_disk

from recipes.rows.files import load_records
from recipes.scenes.rows import load_scenes
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
    return load_dataset(name, data.dataset_config, split=data.dataset_split, streaming=data.streaming)


def check_regions(rows: Dataset | IterableDataset, stage: Stage, guidance_weight: float) -> None:
    """Raises `ValueError` if a guided stage would train on rows without a single region."""
    if not stage.guided or guidance_weight == 0:
        return
    columns = rows.column_names or []
    lengths = (
        pc.list_value_length(rows.data.column("regions"))
        if isinstance(rows, Dataset) and "regions" in columns
        else None
    )
    if "regions" not in columns or (lengths is not None and not (pc.max(lengths).as_py() or 0)):
        raise ValueError(
            f"Stage {stage.number} adds the guidance loss, but no row of the data set has a region. Make masks first, or "
            "train an unguided variant (`--variant ca-baseline-frozen` or `ca-baseline`)."
        )
