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
"""Any VLM, guided by one command: what it measures is so, what it saves is the model, and what it cannot do it says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from testing_utils import box_mask, picture, rle, tiny_model, tiny_processor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    PreTrainedModel,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm
from vlm_families import FAMILIES, with_tokens

from recipes.answering.rows import grounding_maps
from recipes.guiding.arguments import GuideArguments
from recipes.guiding.looking import look, summarize
from recipes.guiding.tuning import guide, held_out, load_vlm
from recipes.training.arguments import DataArguments
from trainers import GuidedSFTConfig, RegionAttention


RECIPE = Path(__file__).parents[3] / "recipes/guide.py"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}"
    "{% endfor %}{{ '<|eot_id|>' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
CPU = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "warmup_steps": 0, "max_steps": 1}


@pytest.fixture(autouse=True)
def no_num2words(monkeypatch: pytest.MonkeyPatch):
    """SmolVLM's processor spells out the number of frames of a video, of which there are none here."""
    monkeypatch.setattr(processing_smolvlm, "num2words", str, raising=False)
    monkeypatch.setattr(processing_smolvlm, "is_num2words_available", lambda: True)


def saved(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    framed = f"<|vision_start|>{processor.image_token}<|vision_end|>" if "Qwen" in family else processor.image_token
    processor.chat_template = TEMPLATE.replace("<image>", framed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("LLaVA, SigLIP", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file with pictures beside it: a bright cup on the left, and every other row denies a dog."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    mask = box_mask(64, 80, rows=(0, 64), columns=(0, 30))
    for n in range(12):
        pixels = np.asarray(picture(seed=n)) // 4
        pixels[:, :30] += 180
        PIL.Image.fromarray(pixels).save(folder / f"{n}.png")
        said = [("Is there a cup?", "Yes."), ("Is there a dog?", "No.")][n % 2]
        region = {"image": 0, "span": None, "message": 0, "text": "cup" if n % 2 == 0 else "dog"}
        region["mask"] = rle(mask) if n % 2 == 0 else None
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]
        lines.append({"id": str(n), "images": [f"{n}.png"], "messages": messages, "regions": [region]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl"


def run(model: Path, rows: Path, out: Path, over: dict[str, Any] | None = None, **training: Any) -> Any:
    over = {"num_held_out": 4} | (over or {})
    return guide(
        GuideArguments(model_name_or_path=str(model), **over),
        DataArguments(dataset_name=str(rows)),
        GuidedSFTConfig(output_dir=str(out), **CPU | training),
    )


def load(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def test_from_the_command_line(llava: Path, rows: Path, tmp_path: Path):
    """Adapters that are merged, and a checkpoint that transformers loads, beside a table, a file and a picture."""
    command = [sys.executable, str(RECIPE), "--model_name_or_path", str(llava), "--dataset_name", str(rows)]
    command += ["--output_dir", "out", "--use_peft", "true", "--guidance_layers", "1", "--num_held_out", "4"]
    command += ["--max_steps", "2", "--use_cpu", "true", "--report_to", "none"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| attention inside the mask |" in result.stdout and "its maximum inside the mask" in result.stdout
    found = json.loads((tmp_path / "out/guided.json").read_text())
    assert found["guided_heads"] == {"1": None} and found["regions"] == 4
    assert found["before"]["uniform_mass"] == found["after"]["uniform_mass"]
    assert {"in_mask_mass", "pointing_accuracy", "off_mass"} <= found["before"].keys()
    assert PIL.Image.open(tmp_path / "out/guided.png").width > 400
    assert json.loads((tmp_path / "out/training.json").read_text())[0]["steps"] == 2
    model, _ = load(tmp_path / "out")
    assert model.state_dict().keys() == load(llava)[0].state_dict().keys()


@pytest.mark.parametrize(("family", "use_peft"), [("LLaVA, SigLIP", False), ("SmolVLM", True), ("Qwen2.5-VL", False)])
def test_words_learn_to_look(family: str, use_peft: bool, rows: Path, tmp_path: Path):
    """Where the cup is, on rows that did not train, and off the picture for the dog; the tower stays as it was."""
    start = saved(family, tmp_path / "start")
    run(start, rows, tmp_path / "out", {"use_peft": use_peft}, max_steps=40, learning_rate=1e-2, guidance_weight=3.0)
    found = json.loads((tmp_path / "out/guided.json").read_text())
    before, after = found["before"], found["after"]
    assert after["in_mask_mass"]["value"] > before["in_mask_mass"]["value"] + 0.1
    assert after["off_mass"]["value"] > before["off_mass"]["value"]
    then, now = (
        AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in (start, tmp_path / "out")
    )
    moved = {name for name, tensor in now.items() if not torch.equal(tensor, then[name])}
    assert moved and all("language_model" in name or "text_model" in name or "lm_head" in name for name in moved)


def test_what_is_measured(llava: Path, rows: Path):
    """By hand from the maps: shares of what is on the picture, and where the most is."""
    model, processor = load(llava)
    data = [json.loads(line) for line in rows.read_text().splitlines()[:4]]
    for row in data:
        row["images"] = [str(rows.parent / name) for name in row["images"]]
    attention = RegionAttention(model, layers=[1], heads=[2])
    looked = look(model, processor, attention, [*data[:2], {"images": ["nowhere.png"], "messages": []}, *data[2:]])
    assert [(one.row, one.words) for one in looked] == [(0, "cup"), (1, "dog"), (3, "cup"), (4, "dog")]
    for one, row in zip(looked, data, strict=True):
        found = grounding_maps(model, processor, [row], attention)
        tokens = found.maps[0, 0, 0]
        assert one.off == pytest.approx(found.sink.item())
        assert one.attention.sum() == pytest.approx(1, abs=1e-4)  # of what is on the picture, all
        if one.words == "cup":
            cells = found.cells[0, 0].bool()
            assert one.inside == pytest.approx(tokens[cells].sum().item(), abs=1e-6)
            assert one.even == pytest.approx(cells.float().mean().item())
            assert one.hit == bool(cells[tokens.argmax()])
            left = one.attention[:, : 24 * 30 // 80].sum()
            assert left <= one.inside + 1e-4  # the mask's cells reach a little beyond it
        else:
            assert one.inside is one.even is one.hit is None
    summary = summarize(looked)
    assert summary["in_mask_mass"]["value"] == pytest.approx((looked[0].inside + looked[2].inside) / 2)
    assert summary["off_mass"]["value"] == pytest.approx((looked[1].off + looked[3].off) / 2)
    assert model.training == load(llava)[0].training


def test_it_goes_on_where_it_stopped(llava: Path, rows: Path, tmp_path: Path):
    whole = run(llava, rows, tmp_path / "whole", max_steps=4)
    run(llava, rows, tmp_path / "parts", max_steps=4, save_steps=2, save_strategy="steps")
    for name in ("config.json", "checkpoint-4"):  # as if it had been killed
        path = tmp_path / "parts" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    again = run(
        llava,
        rows,
        tmp_path / "parts",
        max_steps=4,
        save_steps=2,
        save_strategy="steps",
        resume_from_checkpoint="true",
    )
    assert again.state.global_step == 4
    for expected, tensor in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(expected, tensor)
    with pytest.raises(ValueError, match="holds the checkpoints of another run"):
        run(llava, rows, tmp_path / "parts", learning_rate=1.0)


def smolvlm_256m(folder: Path) -> Path:
    """SmolVLM-256M-Instruct's architecture and pictures of 1024 pixels in tiles of 512 (half of its own), with weights as they are drawn."""
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    tokenizer, image = with_tokens(
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles
    )
    text = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    text |= {"num_key_value_heads": 3, "vocab_size": 49280, "max_position_embeddings": 8192, "rope_theta": 100000.0}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = SmolVLMConfig(
        vision_config=vision | {"image_size": 512, "patch_size": 16},
        text_config=LlamaConfig(**text),
        image_token_id=image,
        scale_factor=4,
    )
    image_processor = SmolVLMImageProcessor(size={"longest_edge": 1024}, max_image_size={"longest_edge": 512})
    processor = SmolVLMProcessor(image_processor, tokenizer, SmolVLMVideoProcessor(), image_seq_len=64)
    processor.chat_template = TEMPLATE
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_smolvlm_of_256m(rows: Path, tmp_path: Path):
    """Its tiles, hundreds of visual tokens, the three heads of 270 that localize most."""
    start = smolvlm_256m(tmp_path / "start")
    over = {"use_peft": True, "num_held_out": 1}
    few = rows.with_name("few.jsonl")
    few.write_text("".join(rows.read_text().splitlines(keepends=True)[:4]))
    trained = run(
        start, rows, tmp_path / "out", over, guidance_heads="auto", per_device_train_batch_size=1, max_steps=2
    )
    assert sum(p.numel() for p in trained.model.parameters()) > 250e6
    found = json.loads((tmp_path / "out/guided.json").read_text())
    assert sum(map(len, found["guided_heads"].values())) == 3
    assert 0 < found["before"]["uniform_mass"]["value"] < 0.6
    assert found["before"]["in_mask_mass"]["value"] == pytest.approx(found["before"]["uniform_mass"]["value"], rel=0.3)


def without_a_tensor(folder: Path) -> Path:
    model, processor = load(folder)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "linear_1" not in name}
    copy = folder.parent / "cut"
    model.save_pretrained(copy, state_dict=tensors)
    processor.save_pretrained(copy)
    return copy


def test_models_that_cannot_be_guided(llava: Path, tmp_path: Path):
    refused = {
        "missing": (without_a_tensor(llava), r"2 of its tensors are missing \(.*linear_1"),
        "nowhere": (tmp_path / "nowhere", "cannot be loaded"),
        "mllama": (saved("Mllama", tmp_path / "mllama"), "reads its pictures by cross-attention"),
    }
    tiny_model().save_pretrained(tmp_path / "age")
    tiny_processor().save_pretrained(tmp_path / "age")
    refused["age"] = (tmp_path / "age", "it is an AGE-VLM, whose stages guide it")
    for model, message in refused.values():
        with pytest.raises(ValueError, match=message):
            load_vlm(GuideArguments(model_name_or_path=str(model)), torch.float32)


def test_rows_that_it_cannot_use(llava: Path, rows: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"`--num_held_out` is 12, but 12 rows are to train and to be measured"):
        run(llava, rows, tmp_path / "out", {"num_held_out": 12})
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    absent = rows.parent / "absent.jsonl"
    absent.write_text("".join(json.dumps(line) + "\n" for line in lines[1::2]))
    with pytest.raises(ValueError, match="None of the rows to measure has a region that shows something"):
        run(llava, absent, tmp_path / "out", {"num_held_out": 2})


def test_rows_of_another_set_are_measured():
    rows, others = [{"id": "a"}], [{"id": n} for n in range(5)]
    assert held_out(rows, others, 3) == (rows, others[:3])
    assert held_out(rows, {"x": others, "y": others}, 2) == (rows, others[:2] * 2)
