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
from datasets import Dataset, Features, Image, List
from huggingface_hub import ModelCard
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
from recipes.guiding.tuning import TUNING, guide, held_out, load_vlm
from recipes.inside.vlm import load_vlm as load_any_vlm
from recipes.rows.records import FEATURES, REGIONS
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import load_rows, shuffled
from trainers import (
    DataCollatorForAnyVisionLanguageModel,
    GuidedSFTConfig,
    RegionAttention,
    collator_for,
    guided_sft_trainer,
)


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
    data = over.pop("data", {})
    return guide(
        GuideArguments(model_name_or_path=str(model), **over),
        DataArguments(dataset_name=str(rows), **data),
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


def test_a_training_in_bfloat16_is_measured_and_drawn(llava: Path, rows: Path, tmp_path: Path):
    run(llava, rows, tmp_path / "out", bf16=True, max_steps=1)
    assert json.loads((tmp_path / "out/guided.json").read_text())["regions"] == 4
    assert (tmp_path / "out/guided.png").exists()


def test_what_is_measured(llava: Path, rows: Path):
    """By hand from the maps: shares of what is on the picture, and where the most is."""
    model, processor = load(llava)
    data = [json.loads(line) for line in rows.read_text().splitlines()[:4]]
    for row in data:
        row["images"] = [str(rows.parent / name) for name in row["images"]]
    attention = RegionAttention(model, layers=[1], heads=[2])
    collate = collator_for(model.config, processor)
    looked = look(model, collate, attention, [*data[:2], {"images": ["nowhere.png"], "messages": []}, *data[2:]])
    assert [(one.row, one.words) for one in looked] == [(0, "cup"), (1, "dog"), (3, "cup"), (4, "dog")]
    for one, row in zip(looked, data, strict=True):
        found = grounding_maps(model, processor, [row], attention)
        tokens = found.maps[0, 0, 0]
        assert one.off == pytest.approx(found.sink.item())
        if one.words == "cup":
            assert one.attention.sum() == pytest.approx(1, abs=1e-4)  # of what is on the picture, all
            cells = found.cells[0, 0].bool()
            assert one.inside == pytest.approx(tokens[cells].sum().item(), abs=1e-6)
            assert one.even == pytest.approx(cells.float().mean().item())
            assert one.hit == bool(cells[tokens.argmax()])
            left = one.attention[:, : 24 * 30 // 80].sum()
            assert left <= one.inside + 1e-4  # the mask's cells reach a little beyond it
        else:
            assert one.inside is one.even is one.hit is one.attention is None
    summary = summarize(looked)
    assert summary["in_mask_mass"]["value"] == pytest.approx((looked[0].inside + looked[2].inside) / 2)
    assert summary["off_mass"]["value"] == pytest.approx((looked[1].off + looked[3].off) / 2)
    assert model.training == load(llava)[0].training


def test_even_attention_is_on_what_the_words_can_see(llava: Path):
    """Pictures that come behind them are not."""
    model, processor = load(llava)
    collate, attention = collator_for(model.config, processor), RegionAttention(model)
    region = {"image": 0, "span": None, "message": 1, "text": "cup", "mask": rle(box_mask(columns=(0, 40)))}
    parts = [[{"type": "image"}, {"type": "text", "text": "What is it?"}], [{"type": "text", "text": "A cup."}]]
    first = [{"role": role, "content": part} for role, part in zip(("user", "assistant"), parts, strict=True)]
    one = {"images": [picture()], "messages": first, "regions": [region]}
    two = {"images": [picture(), picture(seed=1)], "messages": first * 2, "regions": [region]}
    (alone,), (before,) = look(model, collate, attention, [one]), look(model, collate, attention, [two])
    assert before.even == alone.even == 0.25 and before.inside == pytest.approx(alone.inside, abs=1e-5)


def test_the_training_says_which_words_are_measured(llava: Path):
    model, processor = load(llava)
    regions = [
        {"image": 0, "span": None, "message": 1, "text": text, "mask": rle(box_mask())} for text in ("Yes", None)
    ]
    messages = [{"role": "user", "content": "A cup?"}, {"role": "assistant", "content": "Yes, here."}]
    row = {"images": [picture()], "messages": messages, "regions": regions}
    for level, words in (("phrase", ["Yes"]), ("message", ["Yes, here."]), ("all", ["Yes", "Yes, here."])):
        collate = collator_for(model.config, processor, guidance_level=level)
        assert [one.words for one in look(model, collate, RegionAttention(model), [row])] == words


def test_what_is_measured_of_a_stream_never_trains(llava: Path, rows: Path, tmp_path: Path, monkeypatch):
    """It is shuffled anew in every pass."""
    call, seen = DataCollatorForAnyVisionLanguageModel.__call__, []
    spy = lambda self, batch: seen.extend(row["id"] for row in batch) or call(self, batch)  # noqa: E731
    monkeypatch.setattr(DataCollatorForAnyVisionLanguageModel, "__call__", spy)
    options = {"max_steps": 5, "per_device_train_batch_size": 4}
    run(llava, rows, tmp_path, {"data": {"streaming": True, "shuffle_buffer_size": 100}}, **options)
    assert {*seen} == {str(n) for n in range(4, 12)} and len(seen) >= 20


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_of_a_stream_of_several_files_hold_out_the_same(rows: Path, num_workers: int):
    """Each has files of its own, and would skip a part of what is held out."""
    lines = rows.read_text().splitlines(keepends=True)
    folder = rows.parent / "parts"
    folder.mkdir(exist_ok=True)
    for n in range(4):
        (folder / f"train-{n}.jsonl").write_text("".join(lines[3 * n : 3 * n + 3]))
    data = DataArguments(
        dataset_name=str(folder), image_folder=str(rows.parent), streaming=True, shuffle_buffer_size=5
    )
    stream, measured = held_out(load_rows(data, TUNING, 64), None, 5)
    stream = shuffled(stream, data, GuidedSFTConfig(output_dir=str(rows.parent / "out"), use_cpu=True))
    parts = [stream.shard(num_workers, n) for n in range(num_workers)]
    assert sorted(row["id"] for part in parts for row in part) == sorted(map(str, range(5, 12)))
    assert [row["id"] for row in measured] == [str(n) for n in range(5)]


def test_broken_pictures_are_left_out_of_what_is_measured(llava: Path, rows: Path, tmp_path: Path, caplog):
    """Also those that a data set holds itself, which it would decode."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    pictures = [(rows.parent / line["images"][0]).read_bytes() for line in lines]
    pictures[0] = pictures[0][:100]
    features = Features({"images": List(Image()), "messages": FEATURES["messages"], "regions": REGIONS["regions"]})
    made = Dataset.from_dict(
        {
            "images": [[{"path": None, "bytes": content}] for content in pictures],
            "messages": [
                [m | {"content": [{"type": "text", "text": m["content"]}]} for m in x["messages"]] for x in lines
            ],
            "regions": [line["regions"] for line in lines],
        },
        features=features,
    )
    made.select(range(4)).save_to_disk(tmp_path / "held")
    made.select(range(4, 12)).save_to_disk(tmp_path / "rows")
    held = {"eval_dataset_name": [str(tmp_path / "held")]}
    over = {"data": held, "num_held_out": 4}
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "broken_rows": "skip"}
    trained = run(llava, tmp_path / "rows", tmp_path / "out", over, **evaluated)
    assert (
        "1 of the rows to measure are broken and left out, the first one being row 0: image 0 cannot be read"
        in caplog.text
    )
    assert json.loads((tmp_path / "out/guided.json").read_text())["regions"] == 3
    assert any("eval_loss" in entry for entry in trained.state.log_history)


def test_what_it_says_of_itself(llava: Path, rows: Path, tmp_path: Path, caplog):
    """A stranger's record is no obstacle, a folder is no model on the Hub, and heads are kept."""
    start = tmp_path / "start"
    shutil.copytree(llava, start)
    (start / "training.json").write_text('{"epochs": 3}')
    run(start, rows, tmp_path / "one", guidance_layers=[1], guidance_heads=[2])
    assert "is no list of the stages" in caplog.text
    (record,) = json.loads((tmp_path / "one/training.json").read_text())
    assert (record["base_models"], record["model"], record["num_held_out"]) == ([], "start", 4)
    assert "Made from `start` by" in (tmp_path / "one/README.md").read_text()
    assert run(tmp_path / "one", rows, tmp_path / "two").guided_heads == {1: [2]}
    run(tmp_path / "two", rows, tmp_path / "three", guidance_weight=0.0)
    card = ModelCard.load(tmp_path / "three/README.md")
    assert (
        "its words were guided" in card.text and "by layer: {'1': [2]}." in card.text and card.data.base_model is None
    )


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
    start = tmp_path / "parts/checkpoint-2"
    with pytest.raises(ValueError, match=r"would clear away .*checkpoint-2, from which the run starts"):
        run(start, rows, tmp_path / "parts", {"overwrite_output_dir": True})


def test_a_run_that_goes_on_guides_what_it_guided(llava: Path, rows: Path, tmp_path: Path, monkeypatch):
    """Not what would be found now."""
    options = {"guidance_heads": "auto", "max_steps": 2, "save_steps": 1, "save_strategy": "steps"}
    monkeypatch.setattr(guided_sft_trainer, "localizing_heads", lambda *args: {1: [3]})
    run(llava, rows, tmp_path, **options)
    shutil.rmtree(tmp_path / "checkpoint-2")
    monkeypatch.setattr(guided_sft_trainer, "localizing_heads", lambda *args: {2: [0]})
    again = run(llava, rows, tmp_path, **options, resume_from_checkpoint="true")
    assert again.guided_heads == {1: [3]} and again.state.global_step == 2


def test_no_code_of_a_checkpoint_is_even_asked_for(llava: Path, tmp_path: Path, monkeypatch):
    start = tmp_path / "start"
    shutil.copytree(llava, start)
    config = json.loads((start / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (start / "config.json").write_text(json.dumps(config))
    (start / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_vlm(
            GuideArguments(model_name_or_path=str(start)),
            GuidedSFTConfig(output_dir=str(tmp_path), **CPU),
            torch.float32,
        )
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_any_vlm(str(start))
    assert not (tmp_path / "ran").exists()
    (llava / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it holds an adapter"):
        load_vlm(
            GuideArguments(model_name_or_path=str(llava)),
            GuidedSFTConfig(output_dir=str(tmp_path), **CPU),
            torch.float32,
        )
    (llava / "adapter_config.json").unlink()


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
        start, few, tmp_path / "out", over, guidance_heads="auto", per_device_train_batch_size=1, max_steps=2
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
        "missing": (without_a_tensor(llava), r"2 missing \(.*linear_1"),
        "nowhere": (tmp_path / "nowhere", "cannot be loaded"),
        "mllama": (saved("Mllama", tmp_path / "mllama"), "reads its pictures by cross-attention"),
    }
    tiny_model().save_pretrained(tmp_path / "age")
    tiny_processor().save_pretrained(tmp_path / "age")
    refused["age"] = (tmp_path / "age", "it is an AGE-VLM, whose stages guide it")
    for model, message in refused.values():
        with pytest.raises(ValueError, match=message):
            load_vlm(
                GuideArguments(model_name_or_path=str(model)),
                GuidedSFTConfig(output_dir=str(tmp_path), **CPU),
                torch.float32,
            )


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        (
            {"architecture": "hf-hub:somebody/tower"},
            "`architecture` is 'hf-hub:somebody/tower', which is no name in timm",
        ),
        ({"architecture": "local-dir:/somewhere"}, "which is no name in timm's registry"),
        ({"model_args": {"checkpoint_path": "/somewhere"}}, "`model_args` has `checkpoint_path`"),
        ({"model_args": {"pretrained": True}}, "has `pretrained`, which would read other files"),
    ],
)
def test_towers_that_timm_would_fetch(vision: dict[str, Any], message: str, tmp_path: Path):
    start = saved("FastVLM", tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    config["vision_config"] |= vision
    (start / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_vlm(
            GuideArguments(model_name_or_path=str(start)),
            GuidedSFTConfig(output_dir=str(tmp_path), **CPU),
            torch.float32,
        )
    with pytest.raises(ValueError, match=message):
        load_any_vlm(str(start))


def test_rows_that_it_cannot_use(llava: Path, rows: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"`--num_held_out` is 12, but 12 rows are to train and to be measured"):
        run(llava, rows, tmp_path / "out", {"num_held_out": 12})
    with pytest.raises(ValueError, match=r"`--num_held_out` is 13, but the stream has 12 rows"):
        run(llava, rows, tmp_path / "out", {"num_held_out": 13, "data": {"streaming": True}}, max_steps=1)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    with pytest.raises(ValueError, match="`--lora_r` does nothing here"):
        run(llava, rows, tmp_path / "out", {"lora_r": 4})
    absent = rows.parent / "absent.jsonl"
    absent.write_text("".join(json.dumps(line) + "\n" for line in lines[1::2]))
    with pytest.raises(ValueError, match="None of the rows to measure has a region that shows something"):
        run(llava, absent, tmp_path / "out", {"num_held_out": 2})


def test_rows_of_another_set_are_measured():
    rows, ids = Dataset.from_dict({"id": ["a"]}), [{"id": n} for n in range(5)]
    others = Dataset.from_list(ids)
    assert held_out(rows, others, 3) == (rows, ids[:3])
    assert held_out(rows, {"x": others, "y": others}, 2) == (rows, ids[:2] * 2)
