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
"""Masks by Florence-2 and SAM: everything around the two networks, exactly; the real classes with random weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from mask_networks import ExactLocator, ExactSegmenter, save_florence, save_sam, save_sam2
from testing_utils import box_mask, picture, rle, tiny_processor

from modeling_agevlm import read_image
from recipes import masks
from recipes.rows.records import FEATURES
from recipes.segmentation.arguments import MaskArguments
from recipes.segmentation.florence import Locator
from recipes.segmentation.maker import MaskMaker, file_names, make_masks, start_folder, summary
from recipes.segmentation.queries import Query, find_queries, prepare
from recipes.segmentation.sam import Segmenter
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import load_rows
from trainers import DataCollatorForGuidedVisionLanguageModeling, decode_rle, get_stage


ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    save_florence(folder / "florence")
    save_sam(folder / "sam")
    save_sam(folder / "sam_hq", hq=True)
    save_sam2(folder / "sam2")
    return folder


def test_outlines_end_at_the_picture():
    """A text may quote any place. pycocotools walks along an outline pixel by pixel, wherever it leads."""
    locator = Locator.__new__(Locator)
    found = {"polygons": [[[1, 2, 10**12, 3, 4, 10**12], [1, 2, 3, 4]]]}
    locator.task = "task"
    locator.processor = SimpleNamespace(post_process_generation=lambda *arguments, **more: {"task": found})
    (finding,) = locator.read(Query(0, 0, "a cup"), "", picture(40, 60))
    assert finding.instances[0].outline == [[1, 2, 60, 3, 4, 40]]


# Geometry, with exact raw outputs


SIZES = [(1024, 1536), (1500, 1100), (2160, 1024)]  # height, width


def draw(size: tuple[int, int], *polygons: list[tuple[float, float]], hole: list | None = None) -> np.ndarray:
    """A mask of polygons in shares of the picture's width and height."""
    height, width = size
    canvas = PIL.Image.new("1", (width, height))
    pen = PIL.ImageDraw.Draw(canvas)
    for polygon in polygons:
        pen.polygon([(x * width, y * height) for x, y in polygon], fill=1)
    if hole is not None:
        pen.polygon([(x * width, y * height) for x, y in hole], fill=0)
    return np.asarray(canvas)


def ring(x: float, y: float, radius: float, n: int = 40) -> list[tuple[float, float]]:
    return [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in np.linspace(0, 2 * np.pi, n, endpoint=False)]


DISC, SMALL = ring(0.3, 0.3, 0.15), ring(0.75, 0.2, 0.07)
BAR = [(0.1, 0.7), (0.45, 0.65), (0.5, 0.8), (0.12, 0.9)]
LEFT, RIGHT = ring(0.65, 0.7, 0.08), ring(0.85, 0.72, 0.09)
HOLE = ring(0.3, 0.3, 0.06)
# Of each text, its instances: the parts that Florence-2 outlines, and the hole that only SAM can see
THINGS: dict[str, list[tuple[list, list | None]]] = {
    "a small thing": [([SMALL], None)],
    "a ring": [([DISC], HOLE)],
    "two things": [([SMALL], None), ([BAR], None)],
    "a thing of two parts": [([LEFT, RIGHT], None)],
    "all of them": [([DISC], HOLE), ([SMALL], None), ([BAR], None), ([LEFT, RIGHT], None)],
}


def things_of(picture: PIL.Image.Image) -> list[np.ndarray]:
    size = (picture.height, picture.width)
    return [draw(size, *parts, hole=hole) for parts, hole in THINGS["all of them"]]


def truth(text: str, size: tuple[int, int]) -> np.ndarray:
    return np.logical_or.reduce([draw(size, *parts, hole=hole) for parts, hole in THINGS[text]])


def exact_maker(networks: Path, sam2: bool = False, **over: Any) -> MaskMaker:
    arguments = MaskArguments(out="unused", **over)

    def outlines(text: str, picture: PIL.Image.Image) -> str:
        scale = np.array(picture.size)
        instances = []
        for parts, _ in THINGS.get(text, []):
            polygons = [locator.write(np.array(part) * scale, picture) for part in parts]
            instances.append(f"<poly>{'<sep>'.join(polygons)}</poly>")
        return f"</s><s>{''.join(instances)}</s>"

    def boxes(text: str, picture: PIL.Image.Image) -> str:
        scale = np.array(picture.size * 2)
        found = ""
        for phrase, instances in THINGS.items():
            if phrase in text.lower():
                around = [
                    np.concatenate([np.min(p, axis=0), np.max(p, axis=0)])
                    for parts, _ in instances
                    for p in [np.concatenate(parts)]
                ]
                found += phrase + locator.write(np.array(around) * scale, picture)
        return f"</s><s>{found}</s>"

    locator = ExactLocator(arguments, networks / "florence", outlines if arguments.level == "message" else boxes)
    return MaskMaker(arguments, locator, ExactSegmenter(things_of, sam2))


def row_of(size: tuple[int, int], *texts: str) -> dict[str, Any]:
    image = PIL.Image.new("RGB", (size[1], size[0]))
    messages = []
    for text in texts:
        messages += [{"role": "user", "content": "What is there?"}, {"role": "assistant", "content": text}]
    return {"id": "0", "images": [image], "messages": messages}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("sam2", [False, True], ids=["SAM", "SAM 2"])
@pytest.mark.parametrize("size", SIZES)
def test_masks_of_texts_are_exact(networks: Path, size: tuple[int, int], sam2: bool):
    maker = exact_maker(networks, sam2)
    (found,) = maker([prepare(row_of(size, *THINGS), "answer")])
    assert found["mask_problems"] == [] and len(found["regions"]) == len(THINGS)
    for n, (text, region) in enumerate(zip(THINGS, found["regions"], strict=True)):
        assert region["message"] == 2 * n + 1 and region["text"] is None and region["outlines_kept"] == 0
        mask = decode_rle(region["mask"])
        assert mask.shape == size
        assert iou(mask, truth(text, size)) > 0.98, text
        assert region["score"] == pytest.approx(0.9)
    assert truth("a small thing", size).mean() < 0.05
    assert maker.segmenter.encoded == 1


@pytest.mark.parametrize("size", SIZES[:2])
def test_masks_of_phrases_are_exact(networks: Path, size: tuple[int, int]):
    text = "Here is A small thing beside a ring, and two things."
    maker = exact_maker(networks, level="phrase")
    (found,) = maker([prepare(row_of(size, text), "answer")])
    assert [region["text"] for region in found["regions"]] == ["A small thing", "a ring", "two things"]
    for region in found["regions"]:
        assert region["text"] in text and region["message"] == 1
        assert iou(decode_rle(region["mask"]), truth(region["text"].lower(), size)) > 0.98


def test_outline_is_kept_where_sam_disagrees(networks: Path):
    size = SIZES[0]
    maker = exact_maker(networks)
    nothing = np.zeros(size, dtype=bool)
    wrong = [nothing if n == 1 else thing for n, thing in enumerate(things_of(PIL.Image.new("L", size[::-1])))]
    maker.segmenter.masks_of = lambda picture: wrong
    (found,) = maker([prepare(row_of(size, "a small thing", "a ring", "two things"), "answer")])
    assert [region["outlines_kept"] for region in found["regions"]] == [1, 0, 1]
    for text, region in zip(("a small thing", "a ring", "two things"), found["regions"], strict=True):
        assert iou(decode_rle(region["mask"]), truth(text, size)) > 0.95, text


def test_what_has_no_mask_is_said(networks: Path, tmp_path: Path):
    size = SIZES[0]
    (tmp_path / "broken.jpg").write_text("no picture")
    broken = {**row_of(size, "a ring"), "images": [{"path": str(tmp_path / "broken.jpg"), "bytes": None}]}
    rows = [
        row_of(size, "a unicorn", "a ring"),
        broken,
        {"id": "text", "images": [], "messages": row_of(size, "a ring")["messages"]},
        row_of(size, "all of them"),
        row_of(size, "a small thing"),
    ]
    prepared = [prepare(row, "answer") for row in rows]
    found = exact_maker(networks, max_area=0.15, min_area=0.02)(prepared)
    problems = [row["mask_problems"] for row in found]
    assert problems[0] == ["empty"] and len(found[0]["regions"]) == 1
    assert problems[1][0].startswith("failed: ValueError") and found[1]["regions"] == []
    assert problems[2:] == [[], ["whole image"], ["too small"]]
    assert [len(row["regions"]) for row in found[2:]] == [0, 0, 0]
    found = exact_maker(networks, level="phrase")([prepare(row_of(size, "A RING here"), "answer")])
    assert found[0]["regions"][0]["text"] == "A RING"


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pictures_are_read_as_they_are_shown(networks: Path, tmp_path: Path, orientation: int):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    PIL.Image.new("CMYK", (1500, 1000)).save(tmp_path / "a.jpg", exif=exif)
    row = row_of((10, 10), "a ring") | {"images": [{"path": str(tmp_path / "a.jpg"), "bytes": None}]}
    (found,) = exact_maker(networks)([prepare(row, "answer")])
    size = (1500, 1000) if orientation >= 5 else (1000, 1500)
    assert iou(decode_rle(found["regions"][0]["mask"]), truth("a ring", size)) > 0.98
    collate = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())
    assert collate([found])["region_masks"].any()


def test_texts_of_a_chat():
    def turn(role: str, *parts: str) -> dict[str, Any]:
        content = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts]
        return {"role": role, "content": content}

    messages = [
        turn("user", "Hello."),
        turn("assistant", "Hi."),
        turn("user", "<image>", "A?"),
        turn("assistant", "B."),
    ]
    messages += [turn("user", "<image>", "<image>", "C?"), turn("assistant", "D."), turn("user", "E?")]
    assert find_queries(messages, 3, "answer") == ([Query(0, 3, "B."), Query(2, 5, "D.")], [])
    assert find_queries(messages, 3, "question") == ([Query(0, 2, "A?"), Query(2, 4, "C?"), Query(2, 6, "E?")], [])
    both = [Query(0, 2, "A? B.", 3), Query(2, 4, "C? D.", 3), Query(2, 6, "E?")]
    assert find_queries(messages, 3, "both") == (both, [])
    plain = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "B."}]
    assert find_queries(plain, 1, "answer") == ([Query(0, 1, "B.")], []) and find_queries(plain, 0, "answer") == (
        [],
        [],
    )


# Files


def data_set(folder: Path, num_rows: int = 10) -> Dataset:
    folder.mkdir()
    images_of = folder.with_name(f"{folder.name}_images")
    images_of.mkdir()
    rows = []
    for n in range(num_rows):
        picture(80 + n, 120, seed=n).save(images_of / f"{n}.png")
        words = [
            [{"type": "image", "text": None}, {"type": "text", "text": f"What is {n}?"}],
            [{"type": "text", "text": f"A cup {n}."}],
        ]
        messages = [
            {"role": role, "content": content} for role, content in zip(("user", "assistant"), words, strict=True)
        ]
        images = [{"path": str(images_of / f"{n}.png"), "bytes": None}] if n != 3 else []
        if not images:
            words[0].pop(0)
        rows.append({"id": f"r{n}", "images": images, "messages": messages})
    (images_of / "7.png").write_text("broken")
    rows = Dataset.from_list(rows, features=FEATURES)
    rows.to_parquet(folder / "rows.parquet")
    return rows


def command(networks: Path, data: Path, out: Path, *over: str, processes: int = 1) -> list[str]:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
    launch += (
        ["--config_file", str(ROOT / "recipes/accelerate_configs/two_cpu_processes.yaml")] if processes == 2 else []
    )
    arguments = {"dataset_name": data, "out": out, "florence": networks / "florence", "sam": networks / "sam"}
    arguments |= {"rows_per_file": 2, "num_workers": 1, "max_new_tokens": 24, "min_area": 0, "max_area": 1}
    words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    return [*launch, str(ROOT / "recipes/masks.py"), *words, *over]


def run(words: list[str], home: Path, **options: Any) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(home)}
    return subprocess.run(words, env=environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def made(networks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of ten rows by one process, from the command line."""
    folder = tmp_path_factory.mktemp("made")
    data_set(folder / "data")
    result = run(command(networks, folder / "data", folder / "masks"), folder / "cache")
    assert result.returncode == 0, result.stderr
    (folder / "table").write_text(result.stdout)
    return folder


def contents(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for file in sorted(folder.glob("*.parquet")):
        rows += Dataset.from_parquet(str(file), cache_dir=str(folder / "cache")).to_list()
    return rows


def test_command_line_writes_rows_with_masks(made: Path):
    assert sorted(file.name for file in (made / "masks").glob("*.parquet")) == sorted(file_names(10, 2))
    rows = contents(made / "masks")
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(10)]
    assert rows[7]["mask_problems"][0].startswith("failed: ValueError")
    assert rows[3]["regions"] == rows[3]["mask_problems"] == []
    table = (made / "table").read_text()
    assert "10 rows" in table and "1 failed: ValueError" in table
    assert str(summary(made / "masks")) in table


def test_command_line_goes_on_where_it_was(made: Path, networks: Path):
    """
    Whole files are left alone, what a killed process began is removed, the missing ones are made again, and that with the row
    that failed.
    """
    names = sorted(file_names(10, 2))
    before = {name: (made / "masks" / name).read_bytes() for name in names}
    (made / "masks" / names[1]).unlink()
    (made / "masks" / f"_{names[1]}.123").write_bytes(b"half")
    times = {name: (made / "masks" / name).stat().st_mtime_ns for name in names if name not in (names[1], names[3])}
    result = run(command(networks, made / "data", made / "masks"), made / "cache")
    assert result.returncode == 0, result.stderr
    assert {name: (made / "masks" / name).stat().st_mtime_ns for name in times} == times
    assert {file.name for file in (made / "masks").iterdir() if file.is_file()} == {*names, "masks.json"}
    assert all((made / "masks" / name).read_bytes() == before[name] for name in names)


def test_other_settings_do_not_mix(tmp_path: Path):
    start_folder(tmp_path, MaskArguments(out="a").settings)
    start_folder(tmp_path, MaskArguments(out="b", batch_size=3).settings)
    with pytest.raises(ValueError, match="holds masks made with another level, min_iou. Choose another `--out`"):
        start_folder(tmp_path, MaskArguments(out="a", level="phrase", min_iou=0.1).settings)
    before = {name: value for name, value in MaskArguments(out="a").settings.items() if name != "version"}
    (tmp_path / "masks.json").write_text(json.dumps(before))  # when what is nowhere was looked for
    with pytest.raises(ValueError, match="holds masks made with another version. Choose another `--out`"):
        start_folder(tmp_path, MaskArguments(out="a").settings)


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        (("--florence", "nowhere"), "error: nowhere cannot be loaded"),
        (("--dataset_name", "rows.jsonl"), "error: There is no file rows.jsonl"),
    ],
)
def test_one_sentence_on_the_command_line(
    made: Path, networks: Path, tmp_path: Path, over: tuple, sentence: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", command(networks, made / "data", tmp_path / "out", *over)[6:])
    with pytest.raises(SystemExit, match=sentence) as caught:
        masks.main()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sam", ["sam", "sam_hq", "sam2"])
def test_pictures_that_are_encoded_once_are_decoded_as_by_the_model_itself(networks: Path, sam: str):
    arguments = MaskArguments(out="", sam=str(networks / sam))
    segmenter = Segmenter(arguments, torch.device("cpu"), torch.float32)
    pictures, boxes = [picture(30, 60), picture(60, 40, seed=1)], [(3.0, 4.0, 20.0, 25.0), (0.0, 0.0, 30.0, 9.0)]
    for image, encoded in zip(pictures, segmenter.encode(pictures), strict=True):
        found = segmenter.prompt(encoded, boxes)
        inputs = segmenter.processor(images=image, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
        sizes = {name: inputs.pop(name) for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
        outputs = segmenter.model(**inputs, multimask_output=False)
        torch.testing.assert_close(found.logits, outputs.pred_masks[0, :, 0], rtol=1e-4, atol=1e-5)
        masks = segmenter.processor.post_process_masks(outputs.pred_masks, *sizes.values())[0][:, 0].numpy()
        for mask, (ours, _) in zip(masks, segmenter.masks(found), strict=True):
            assert ours.shape == (image.height, image.width) and (ours == mask).mean() > 0.999


@pytest.mark.parametrize(
    ("sam", "level"), [("sam2", "message"), ("sam_hq", "message"), ("sam", "phrase"), ("sam2", "phrase")]
)
def test_real_classes(networks: Path, tmp_path: Path, sam: str, level: str):
    """What random weights find makes no sense, but it is found without an error and fits the pictures."""
    rows = data_set(tmp_path / "data", 4)
    arguments = MaskArguments(
        out=str(tmp_path / "out"),
        florence=str(networks / "florence"),
        sam=str(networks / sam),
        level=level,
        max_new_tokens=24,
        min_area=0,
        max_area=1,
        num_workers=0,
    )
    device = torch.device("cpu")
    maker = MaskMaker(
        arguments, Locator(arguments, device, torch.float32), Segmenter(arguments, device, torch.float32)
    )
    with pytest.MonkeyPatch.context() as patch:  # so that there is something to segment
        words = (
            "A cup<loc_10><loc_20><loc_700><loc_800>"
            if level == "phrase"
            else "<poly><loc_10><loc_20><loc_700><loc_20><loc_400><loc_900></poly>"
        )
        patch.setattr(maker.locator, "generate", lambda texts, pictures: [words] * len(texts))
        start_folder(Path(arguments.out), arguments.settings)
        make_masks(rows, maker, Path(arguments.out), PartialState())
    written = maker.locator.generate(["a cup"], [picture()])
    assert len(written) == 1 and isinstance(written[0], str)
    found = contents(Path(arguments.out))
    assert [len(row["regions"]) for row in found] == [1, 1, 1, 0]
    for n, row in enumerate(found[:3]):
        assert row["regions"][0]["mask"]["size"] == [80 + n, 120]
        assert np.isfinite(row["regions"][0]["score"])


# Killed, on two processes


@pytest.mark.slow
def test_killed_and_restarted_it_makes_the_same(networks: Path, tmp_path: Path):
    data_set(tmp_path / "data", 40)
    whole = run(command(networks, tmp_path / "data", tmp_path / "whole", processes=2), tmp_path / "cache")
    assert whole.returncode == 0, whole.stderr
    words = command(networks, tmp_path / "data", tmp_path / "killed", processes=2)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    rng, counts = np.random.default_rng(), []
    for _ in range(3):
        before = len(list((tmp_path / "killed").glob("train-*")))
        process = subprocess.Popen(
            words, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "killed").glob("train-*"))) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(len(list((tmp_path / "killed").glob("train-*"))))
        for file in (tmp_path / "killed").glob("train-*"):
            Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "read"))  # none is half written
    assert counts[0] > 0
    result = run(words, tmp_path / "cache")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "killed").glob("train-*"))) == 20
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert sum(len(row["regions"]) for row in contents(tmp_path / "whole")) > 10
    one = run(command(networks, tmp_path / "data", tmp_path / "one"), tmp_path / "cache")
    assert one.returncode == 0 and contents(tmp_path / "one") == contents(tmp_path / "whole")


# Rows with masks in training


def test_masks_find_their_rows(made: Path):
    data = DataArguments(dataset_name=str(made / "data"), masks_name=str(made / "masks"))
    rows = load_rows(data, get_stage(3), 96)
    plain = {row["id"]: row for row in load_rows(DataArguments(dataset_name=str(made / "data")), get_stage(3), 96)}
    assert len(rows) == 10
    assert rows.column_names == ["id", "images", "messages", "regions"]
    for row in rows:
        assert row["messages"] == plain[row["id"]]["messages"]


def test_masked_share_is_met_and_the_order_can_be_resumed(made: Path, tmp_path: Path):
    many = data_set(tmp_path / "many", 60)
    renamed = many.map(lambda row, n: {"id": f"r{n}"}, with_indices=True)
    renamed.to_parquet(tmp_path / "many" / "rows.parquet")
    data = DataArguments(
        dataset_name=str(tmp_path / "many"), masks_name=str(made / "masks"), masked_share=0.5, streaming=True
    )
    rows = load_rows(data, get_stage(3), 96)
    stream = iter(rows)
    first = [next(stream) for _ in range(20)]
    state = rows.state_dict()
    after = [row["id"] for row in stream]
    again = load_rows(data, get_stage(3), 96)
    again.load_state_dict(state)
    assert [row["id"] for row in again] == after
    identities = [row["id"] for row in first] + after
    masked = {f"r{n}" for n in range(10)}
    assert 0.35 < np.mean([name in masked for name in identities]) < 0.65
    assert {f"r{n}" for n in range(60)} == set(identities)
    assert all((row["regions"] is None) == (row["id"] not in masked) for row in first)


@pytest.mark.parametrize("streaming", [False, True])
def test_own_rows_of_any_form_are_joined(tmp_path: Path, streaming: bool):
    """Whatever the columns and types of either: a JSON file here, prompts and decoded pictures there."""
    picture().save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cup."}]
    records = [{"id": n, "image": "0.png", "conversations": turns} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "own").mkdir()
    region = {"mask": rle(box_mask()), "image": 0, "text": "cup", "span": None, "message": 1}
    own = {"id": 1, "image": picture(), "prompt": "What?", "completion": "A cup.", "regions": [region]}
    Dataset.from_list([own]).to_parquet(tmp_path / "own/train.parquet")
    share = {"streaming": True, "masked_share": 0.5} if streaming else {}
    data = DataArguments(dataset_name=str(tmp_path / "rows.jsonl"), masks_name=str(tmp_path / "own"), **share)
    rows = {row["id"]: row for row in load_rows(data, get_stage(3), 96)}
    assert sorted(rows) == ["0", "1", "2"]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A cup."}]}
    assert [row["messages"][1] for row in rows.values()] == [answer] * 3
    assert {name: row.get("regions") for name, row in rows.items()} == {"0": None, "1": [region], "2": None}
    assert all(read_image(row["images"][0]).size == picture().size for row in rows.values())


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_one_id_are_joined_if_they_answer_the_same(tmp_path: Path, streaming: bool):
    """Also where all rows have masks; and not if the id is another row's, as line numbers of another file are."""
    region = {"mask": rle(box_mask()), "image": 0, "text": "cup", "span": None, "message": 1}
    rows = [{"id": str(n), "image": picture(), "prompt": "What?", "completion": f"A cup, {n}."} for n in range(3)]
    (tmp_path / "own").mkdir()
    (tmp_path / "rows").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "rows/train.parquet")
    share = {"streaming": True, "masked_share": 0.5} if streaming else {}
    data = DataArguments(dataset_name=str(tmp_path / "rows"), masks_name=str(tmp_path / "own"), **share)

    def joined(*masked: dict) -> list[str]:
        Dataset.from_list([row | {"regions": [region]} for row in masked]).to_parquet(tmp_path / "own/train.parquet")
        return sorted({row["id"] for row in load_rows(data, get_stage(3), 96)})

    if not streaming:  # a stream of both parts has two
        assert joined(*rows) == ["0", "1", "2"]
    assert joined(rows[1], rows[1]) == joined(rows[1] | {"prompt": "What is it?"}) == ["0", "1", "2"]
    with pytest.raises(
        ValueError, match="own has masks for a row '1' with another answer than the row '1' that they are"
    ):
        joined(rows[0], rows[2] | {"id": "1"})


@pytest.mark.parametrize(
    ("over", "sentence"),
    [
        ({"streaming": True}, "A stream cannot tell how many rows have masks"),
        ({"masked_share": 1.5}, "`--masked_share` is a share between 0 and 1, but is 1.5"),
        ({"masks_name": "scenes", "num_scenes": 2}, "scenes has no column `id`"),
        ({"masks_name": "DATA"}, "data has no column `regions`"),
    ],
)
def test_what_cannot_be_joined(made: Path, over: dict[str, Any], sentence: str):
    over = {name: str(made / "data") if value == "DATA" else value for name, value in over.items()}
    data = DataArguments(**{"dataset_name": str(made / "data"), "masks_name": str(made / "masks")} | over)
    with pytest.raises(ValueError, match=sentence):
        load_rows(data, get_stage(3), 96)
