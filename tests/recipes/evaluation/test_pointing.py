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

import argparse
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from testing_utils import picture, tiny_model, tiny_processor
from tiny_vlms import tiny_llava

from recipes.evaluation import report
from recipes.evaluation.benchmarks import evaluate
from recipes.evaluation.comparison import counts_table, numbered
from recipes.evaluation.journal import Journal
from recipes.evaluation.metrics import floors, summarize
from recipes.evaluation.pointing import gathered, over_picture, place_of, point, read_box, read_phrases, touched
from recipes.evaluation.records import Record, read_records, write_records
from recipes.evaluation.results import Runs
from recipes.inside.vlm import AgeVlm, Look, Vlm, load_vlm
from recipes.scenes import TRAINED_MODEL
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.evaluation import attend
from recipes.scenes.questions import load_questions


NAME = "refcoco_pointing"


def save_refcoco(folder: Path, phrases: list[tuple[str, Any, str, dict[str, Any]]]) -> None:
    """RefCOCO's files of a picture's name, the picture, a phrase and its mask each."""
    (folder / "refcoco/images").mkdir(parents=True)
    images, annotations, references = {}, [], []
    for n, (name, image, words, mask) in enumerate(phrases):
        if name not in images:
            image.save(folder / "refcoco/images" / name)
            images[name] = {"id": len(images), "file_name": name, "height": image.height, "width": image.width}
        image_id = images[name]["id"]
        annotations.append({"id": n, "image_id": image_id, "category_id": 7, "segmentation": mask})
        references.append({"ann_id": n, "image_id": image_id, "split": "val", "sentences": [{"raw": words}]})
    content = {"images": list(images.values()), "annotations": annotations, "categories": [{"id": 7, "name": "cup"}]}
    (folder / "refcoco/instances.json").write_text(json.dumps(content))
    (folder / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references))


def point_at_all(vlm: Vlm, name: str, data: Path, split: str, **options: Any) -> tuple[list[Record], dict[str, int]]:
    """The records of all phrases, and what was left out."""
    phrases = read_phrases(name, data, split)
    journal = Journal(data / "answers", name, {}, rank=0)
    point(vlm, name, phrases, range(len(phrases.asked)), journal, **options)
    entries = list(journal.answers.values())
    journal.remove()
    return gathered(entries, phrases.faults), phrases.faults


def test_scenes_in_the_published_form_give_the_projects_own_numbers(tmp_path: Path):
    asked = [
        question
        for question in load_questions("test", num_images=12, image_size=320)
        if question["kind"] in POPE_KINDS and question["mask"]
    ]
    phrases = {(q["scene"], q["object"]): (f"{q['scene']}.png", q["image"], q["object"], q["mask"]) for q in asked}
    save_refcoco(tmp_path, list(phrases.values()))
    vlm = load_vlm(str(TRAINED_MODEL))
    records, faults = point_at_all(vlm, NAME, tmp_path, "val")
    assert not faults and len(records) == len(phrases) > 5
    found = {(record["picture"], record["answer"]): record for record in records}
    for question in asked:
        record = found[f"{question['scene']}.png", question["object"]]
        ((attention, _, cells),) = attend(vlm.model, vlm.processor, [question])
        assert record["question"] == question["question"] and record["kind"] == "cup"
        assert record["touches"] == record["correct"] == bool(cells[1][attention[1].mean(0).argmax()])
        assert record["mass"] == pytest.approx((attention[1] * cells[1]).sum(-1).mean().item(), abs=1e-4)
        assert record["even"] == pytest.approx(cells[1].mean().item())
    metrics = summarize(records)
    assert metrics["pointing_accuracy"] == np.mean([record["touches"] for record in records]) > 0.7
    assert metrics["in_mask_mass"] > 3 * floors(records)["even attention"]["in_mask_mass"]
    assert metrics["box_iou"] > floors(records)["whole picture"]["box_iou"]
    assert metrics["box_accuracy_50"] == np.mean([record["iou"] >= 0.5 for record in records]) > 0.1
    write_records(tmp_path / "a.jsonl", records)
    assert read_records(tmp_path / "a.jsonl") == records
    assert numbered(records).max() + 1 == len({record["picture"] for record in records})
    assert "| kind cup | " in str(counts_table(("A", "B"), list(zip(records, records, strict=True))))


@pytest.fixture(scope="module", params=["AGE-VLM", "LLaVA"])
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    folder = tmp_path_factory.mktemp("vlm")
    if request.param == "LLaVA":
        tiny_llava(folder)
    else:
        tiny_model().save_pretrained(folder)
        tiny_processor().save_pretrained(folder)
    return load_vlm(str(folder))


def save_flickr30k(folder: Path, captions: dict[str, str], boxes: dict[int, int]) -> None:
    """Flickr30k Entities' files of pictures' captions and boxes, 10 x 10 pixels, by number their left side."""
    for name in ("Sentences", "Annotations", "images"):
        (folder / name).mkdir(parents=True)
    for stem, caption in captions.items():
        (folder / "Sentences" / f"{stem}.txt").write_text(caption)
        sides = "<ymin>0</ymin><xmax>{}</xmax><ymax>9</ymax>"
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin>{sides.format(x + 9)}</bndbox></object>"
            for name, x in boxes.items()
        )
        size = "<size><width>80</width><height>64</height></size>"
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        picture().save(folder / "images" / f"{stem}.jpg")


def test_phrases_of_captions(vlm: Vlm, tmp_path: Path):
    """Of any VLM; entities without a box, other splits and broken files are left out."""
    folder = tmp_path / "flickr30k"
    caption = "[/EN#1/people A man] holds [/EN#2/other a cup] near [/EN#3/scene a lake] ."
    save_flickr30k(folder, dict.fromkeys("123", caption), {1: 0, 2: 40})
    (folder / "images/3.jpg").write_text("no picture")
    (folder / "test.txt").write_text("1\n3\n")
    records, faults = point_at_all(vlm, "flickr30k_pointing", tmp_path, "test")
    assert [(record["answer"], record["kind"]) for record in records] == [("A man", "people"), ("a cup", "other")]
    assert dict(faults) == {"image unreadable": 1}
    metrics = summarize(records)
    assert {f"pointing_accuracy, {part}" for part in ("kind people", "kind other", "place border")} <= metrics.keys()
    assert 0 <= metrics["in_mask_mass"] <= 1
    with pytest.raises(ValueError, match="There is no .*val.txt, which flickr30k_pointing needs"):
        read_phrases("flickr30k_pointing", tmp_path, "val")


@pytest.mark.parametrize("asked", ["caption", "expression"])
def test_a_phrase_that_stands_twice_looks_from_its_own_place(vlm: Vlm, tmp_path: Path, monkeypatch, asked: str):
    """Neither the same words elsewhere, nor those of the request, look with it."""
    text, places = {
        "caption": ("A man shows a man the image of a man .", [(0, 5), (12, 17), (18, 27), (31, 36)]),
        "expression": ("Is there an image in the image?", [(12, 17)]),
    }[asked]
    looked, look = [], vlm.look

    def noting(inputs: dict[str, torch.Tensor], words: torch.BoolTensor) -> Look:
        ids = inputs["input_ids"][0]
        looked.append((vlm.decode(ids[words[0]].tolist()), vlm.decode(ids[: words[0].nonzero()[0, 0]].tolist())))
        return look(inputs, words)

    monkeypatch.setattr(vlm, "look", noting)
    if asked == "caption":
        marked = text
        for number, (start, end) in reversed(list(enumerate(places, start=1))):
            marked = f"{marked[:start]}[/EN#{number}/other {text[start:end]}]{marked[end:]}"
        save_flickr30k(tmp_path / "flickr30k", {"1": marked}, {number: 10 * number for number in range(1, 5)})
        (tmp_path / "flickr30k/test.txt").write_text("1")
        point_at_all(vlm, "flickr30k_pointing", tmp_path, "test")
    else:
        save_refcoco(tmp_path, [("a.png", picture(), "image", [[5, 5, 25, 5, 25, 25, 5, 25]])])
        point_at_all(vlm, NAME, tmp_path, "val")
    assert [words for words, _ in looked] == [text[start:end] for start, end in places]
    assert all(before.endswith(text[:start].strip()) for (_, before), (start, _) in zip(looked, places, strict=True))


def test_an_error_of_the_model_is_no_fault_of_the_annotations(vlm: Vlm, tmp_path: Path, monkeypatch):
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    save_refcoco(tmp_path, [("a.png", picture(), words, square) for words in ("red cup", "", "blue cup")])
    placed = []
    placement = vlm.placement
    monkeypatch.setattr(vlm, "placement", lambda *arguments: placed.append(1) or placement(*arguments))
    records, faults = point_at_all(vlm, NAME, tmp_path, "val")
    assert [record["answer"] for record in records] == ["red cup", "blue cup"]  # those after the empty one, too
    assert dict(faults) == {"no words": 1} and len(placed) == 1  # once for a picture

    def fails(*arguments: Any) -> None:
        raise ValueError("30 tokens are no square grid")

    monkeypatch.setattr(vlm, "look", fails)
    with pytest.raises(ValueError, match="no square grid"):
        point_at_all(vlm, NAME, tmp_path, "val")


def test_processes_share_the_pictures(vlm: Vlm, tmp_path: Path):
    square = [[5, 5, 25, 5, 25, 25, 5, 25]]
    save_refcoco(tmp_path, [(f"{n // 2}.png", picture(seed=n // 2), f"cup {n}", square) for n in range(6)])
    whole, _ = point_at_all(vlm, NAME, tmp_path, "val", pictures=tmp_path / "pictures")
    phrases = read_phrases(NAME, tmp_path, "val")
    for rank in range(2):
        journal = Journal(tmp_path / "answers", NAME, {}, rank)
        point(vlm, NAME, phrases, range(6), journal, tmp_path / "pictures", rank, 2)
    assert gathered(list(Journal(tmp_path / "answers", NAME, {}, 0).answers.values()), phrases.faults) == whole
    assert [record["answer"] for record in whole] == [f"cup {n}" for n in range(6)]
    for record in whole:
        assert (tmp_path / record["image"]).exists() and record["phrase"] == record["answer"]
        assert sum(map(sum, record["map"])) == pytest.approx(1, abs=1e-3)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Runs]:
    """Looks for the phrases of six pictures as the command line would; `square` shifts what they name."""
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")

    def save(left: int) -> None:
        shutil.rmtree(tmp_path / "refcoco", ignore_errors=True)
        square = [[left, 5, 25, 5, 25, 25, left, 25]]
        save_refcoco(tmp_path, [(f"{n // 2}.png", picture(seed=n // 2), f"cup {n}", square) for n in range(6)])
        file = tmp_path / "refcoco/instances.json"
        content = json.loads(file.read_text())
        content["categories"].append({"id": 8, "name": "dog"})
        content["annotations"][5]["category_id"] = 8
        file.write_text(json.dumps(content))

    save(5)

    def run(**options: Any) -> Runs:
        if "left" in options:
            save(options.pop("left"))
        names = {"model": str(tmp_path / "model"), "out": tmp_path / "out", "benchmarks": [NAME], "data": tmp_path}
        defaults = {"pictures": ["real"], "limit": None, "split": "val", "repope": None, "dtype": "auto"}
        defaults |= {"device": "cpu", "batch_size": 8, "save_pictures": False}
        return evaluate(argparse.Namespace(**names | defaults | options), load_vlm)

    return run


def test_a_run_that_was_killed_goes_on_with_its_picture(run: Callable[..., Runs], tmp_path: Path, monkeypatch):
    whole = run(out=tmp_path / "whole", save_pictures=True)
    looked, look = [], AgeVlm.look

    def killed(self: AgeVlm, *arguments: Any) -> Look:
        looked.append(1)
        if len(looked) in (4, 9):
            raise KeyboardInterrupt
        return look(self, *arguments)

    monkeypatch.setattr(AgeVlm, "look", killed)
    for left in (5, 6):  # other regions are not those that were looked for
        with pytest.raises(KeyboardInterrupt):
            run(save_pictures=True, left=left)
    again = run(save_pictures=True, left=5)
    assert len(looked) == 4 + 5 + 4  # the first picture's two phrases are not looked for again
    assert again[NAME]["real"]["metrics"] == whole[NAME]["real"]["metrics"]
    name = f"{NAME}-real.jsonl"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    record = read_records(tmp_path / "out" / name)[0]
    assert (tmp_path / "out" / record["image"]).exists() and record["phrase"] == "cup 0"
    report.save_page(tmp_path / "out/page.html", "tiny", again)
    assert "where &#39;cup" in (tmp_path / "out/page.html").read_text()


def test_options_of_pointing(run: Callable[..., Runs], tmp_path: Path, monkeypatch):
    types, look = [], AgeVlm.look
    monkeypatch.setattr(AgeVlm, "look", lambda self, *a: types.append(self.model.dtype) or look(self, *a))
    assert run(limit=2, dtype="bfloat16")[NAME]["real"]["questions"] == 2
    records = read_records(tmp_path / f"out/{NAME}-real.jsonl")
    assert sorted(record["kind"] for record in records) == ["cup", "dog"]  # of every kind
    assert set(types) == {torch.bfloat16}
    found = run()[NAME]["real"]
    assert found["questions"] == 6 and types[-1] == torch.float32
    assert {f"pointing_accuracy, {kind}" for kind in ("kind cup", "kind dog", "place border")} <= found[
        "metrics"
    ].keys()
    for options, why in (({"limit": 2}, "limit None, not 2"), ({"left": 6}, "other questions or pictures")):
        with pytest.raises(ValueError, match=f"real.jsonl has answers that this run would replace .{why}"):
            run(**options)
    with pytest.raises(ValueError, match="`--dtype` is auto or a type of torch's, such as bfloat16, but is bf"):
        run(dtype="bf", out=tmp_path / "other")


def test_attention_over_the_picture_leaves_the_padding_out():
    attention = np.array([[9, 9], [1, 3], [2, 2], [9, 9]]) / 44  # over a square around a picture of twice the width
    shown = np.array(over_picture(attention, (0, -20, 80, 60), (40, 80)))
    assert shown.shape == (12, 24)
    assert shown[0, 0] == pytest.approx(1 / 8 / 72, abs=1e-5) and shown[5, 23] == pytest.approx(3 / 8 / 72, abs=1e-5)
    cropped = np.array(over_picture(np.ones((2, 2)) / 4, (20, 0, 60, 40), (40, 80)))
    assert not cropped[:, :6].any() and not cropped[:, 18:].any() and cropped[0, 6] == pytest.approx(1 / 144, abs=1e-5)


def test_cells_that_a_mask_touches():
    mask = np.zeros((40, 80), dtype=bool)
    mask[10, 79] = True
    assert touched(mask, (0, 0, 80, 40), (4, 8)).nonzero().tolist() == [[1, 7]]
    assert touched(mask, (0, -20, 80, 60), (4, 4)).nonzero().tolist() == [[1, 3]]  # padded to a square
    assert not touched(mask, (20, 0, 60, 40), (4, 4)).any()  # cropped
    assert place_of(mask) == "border"
    assert torch.equal(touched(~mask, (0, 0, 80, 40), (2, 2)), torch.ones(2, 2, dtype=torch.bool))


def test_boxes_are_those_of_the_processor():
    """Of square, stretched, padded and cropped pictures."""
    for size, options in (
        ((256, 256), {}),
        ((60, 90), {}),
        ((60, 90), {"do_pad": True}),
        ((90, 50), {"do_center_crop": True}),
    ):
        processor = tiny_processor(**options)
        model = tiny_model()
        vlm = AgeVlm("tiny", model, processor, model.config.image_token_id)
        image = picture(*size)
        rows, columns = vlm.grid
        attention = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) ** 8
        attention /= attention.sum()
        box, padding = vlm.placement(image, (rows, columns))
        outputs = SimpleNamespace(grounding_maps=[attention.flatten()[None, None]])
        (result,) = processor.post_process_grounded_object_detection(outputs, [size], threshold=0.0)
        found = read_box(attention.masked_fill(padding, 0), box, padding, size, vlm.readout)
        assert found == pytest.approx(result["boxes"][0].tolist(), abs=1.5)
    assert (
        read_box(torch.full((2, 2), 0.25), (0, 0, 8, 8), torch.zeros(2, 2, dtype=torch.bool), (8, 8), vlm.readout)
        is None
    )
