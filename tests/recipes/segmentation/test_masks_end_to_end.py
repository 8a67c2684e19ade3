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
"""From a LLaVA-style file on disk to a trained model: check, rows, masks, a look at them, stages 3 and 4."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from accelerate import PartialState
from mask_networks import ExactLocator, ExactSegmenter, save_florence
from testing_utils import tiny_model, tiny_processor

from modeling_agevlm import AgeVlmForConditionalGeneration
from recipes import look_at_masks
from recipes.rows.files import write
from recipes.rows.survey import Source, survey
from recipes.scenes.rows import load_scenes
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.maker import MaskMaker, make_masks, start_folder, summary
from recipes.segmentation.review import KINDS, Entry, choose
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.data_sets import load_rows
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig, decode_rle, get_stage


NUM_SCENES = 12


def save_llava(folder: Path) -> dict[tuple[str, bytes], np.ndarray]:
    """Scenes as a JSONL file and a folder of images. Returns the mask of each caption over its picture."""
    (folder / "images").mkdir(parents=True)
    lines, masks = [], {}
    for n, row in enumerate(load_scenes("train", "caption", NUM_SCENES, image_size=256)):
        picture = row["images"][0].convert("RGB")
        picture.save(folder / f"images/{n}.png")
        speakers = {"user": "human", "assistant": "gpt"}
        turns = [{"from": speakers[m["role"]], "value": m["content"]} for m in row["messages"]]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        lines.append(json.dumps({"id": f"scene{n}", "image": f"{n}.png", "conversations": turns}))
        for region in row["regions"]:
            if region["text"] is None:
                caption = row["messages"][region["message"]]["content"]
                masks[caption, picture.tobytes()] = decode_rle(region["mask"])
    (folder / "data.jsonl").write_text("\n".join(lines))
    return masks


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the rows (`rows`), and those of every second one with masks (`masks`)."""
    folder = tmp_path_factory.mktemp("place")
    masks = save_llava(folder)
    source = Source(folder / "data.jsonl", folder / "images")
    report = survey(source)
    assert len(report.kept) == report.num_records == NUM_SCENES and not report.faults and not report.mended
    assert write(report, folder / "rows", 1.0, 0) == NUM_SCENES
    some = replace(report, kept=report.kept[::2], repeats_id=report.repeats_id[::2])
    write(some, folder / "some", 1.0, 0)

    arguments = MaskArguments(out=str(folder / "masks"), min_iou=0.0, num_workers=0, rows_per_file=4)

    def outline(text: str, picture: PIL.Image.Image) -> str:
        """The box around the caption's objects; their shape is up to SAM."""
        mask = masks[text, picture.tobytes()]
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = [columns[0], columns[-1] + 1], [rows[0], rows[-1] + 1]
        corners = np.array([[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]]])
        return f"<poly>{locator.write(corners, picture)}</poly>"

    locator = ExactLocator(arguments, save_florence(folder / "florence"), outline)
    by_picture = {picture: mask for (_, picture), mask in masks.items()}
    segmenter = ExactSegmenter(lambda picture: [by_picture[picture.tobytes()]])
    start_folder(folder / "masks", arguments.settings)
    rows = load_rows(DataArguments(dataset_name=str(folder / "some")), get_stage(3), 256)
    make_masks(rows, MaskMaker(arguments, locator, segmenter), folder / "masks", PartialState())
    folder_masks = load_rows(DataArguments(dataset_name=str(folder / "masks")), get_stage(3), 256)
    for row in folder_masks:
        (region,) = row["regions"]
        caption = row["messages"][1]["content"][0]["text"]
        picture = row["images"][0]
        exact = masks[
            caption, (picture if isinstance(picture, PIL.Image.Image) else PIL.Image.open(picture["path"])).tobytes()
        ]
        found = decode_rle(region["mask"])
        assert (found & exact).sum() / (found | exact).sum() > 0.98
    return folder


def test_table(place: Path):
    assert summary(place / "masks").splitlines()[:3] == [f"{6:>12} rows", f"{6:>12} with masks", f"{6:>12} masks"]


@pytest.mark.parametrize("share", [None, 0.5])
def test_stages_three_and_four_train_on_them(place: Path, tmp_path: Path, share: float | None):
    model = tiny_model()
    model.config.training_stage = 2
    model.save_pretrained(tmp_path / "stage2")
    tiny_processor().save_pretrained(tmp_path / "stage2")
    data = DataArguments(
        dataset_name=str(place / "rows"),
        masks_name=str(place / "masks"),
        masked_share=share,
    )
    previous = tmp_path / "stage2"
    for stage, variant in ((3, "age-vlm-lm"), (4, "age-vlm-lm")):
        training = GuidedSFTConfig(
            output_dir=str(tmp_path / f"stage{stage}"),
            per_device_train_batch_size=4,
            max_steps=6,
            learning_rate=3e-3,
            guidance_query="answer",
            logging_steps=1,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = run_stage(stage, ModelArguments(model_name_or_path=str(previous), variant=variant), data, training)
        previous = training.output_dir
        log = [entry for entry in trainer.state.log_history if "lm_loss" in entry]
        assert len(log) == 6
        assert 0 < sum(entry["guided_rows"] for entry in log) < 24
        assert sum(entry["dropped_regions"] + entry["skipped_rows"] for entry in log) == 0
        assert all(np.isfinite(entry["lm_loss"]) for entry in log)
    assert AgeVlmForConditionalGeneration.from_pretrained(previous).config.training_stage == 4


def test_look_at_masks(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    arguments = ["look_at_masks.py", "--out", str(tmp_path), "--number", "2", "--masks"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(place / "masks")])
    look_at_masks.main()
    assert "6 masks, 0 names of what is nowhere in the picture" in capsys.readouterr().out
    assert PIL.Image.open(tmp_path / "sheet.png").size[0] > 500
    page = (tmp_path / "index.html").read_text()
    assert page.count("<figure>") == page.count("data:image/jpeg") == 6 and "scene0" in page
    monkeypatch.setattr(sys, "argv", [*arguments, str(tmp_path)])
    with pytest.raises(SystemExit, match="error: There are no masks in"):
        look_at_masks.main()


def test_doubtful_masks_come_first():
    facts = [(0.5, 0.9, 0), (0.001, 0.8, 0), (0.9, 0.95, 0), (0.3, 0.1, 0), (0.2, 0.7, 2), (0.4, 0.9, 0)]
    entries = [Entry(Path("a"), n, 0, *values) for n, values in enumerate(facts)]
    chosen = {kind: [entry.row for entry in found] for kind, found in choose(entries, 1, 0).items()}
    assert [chosen[kind] for kind in list(KINDS)[:4]] == [[1], [2], [3], [4]] and chosen["any"][0] in (0, 5)
