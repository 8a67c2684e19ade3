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
"""What README, docs and model card show works as it stands there, in a process that knows nothing of this project."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from pages import PAGES, ROOT, SERVER, blocks
from test_remote_code import PROLOGUE, run
from testing_utils import HALF_LENGTH, assert_close, picture, tiny_model, tiny_processor

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.publishing.checkpoint import make_card
from trainers import DataCollatorForGuidedVisionLanguageModeling


NAME = "runs/demo/age-vlm-lm"
# Every way to load and to call a checkpoint that transformers has for such models; what comes out is saved.
CALLS = """
import base64, io, os
from threading import Thread
from transformers import TextIteratorStreamer, pipeline

os.chdir(work)
name, image, trust = "runs/demo/age-vlm-lm", Image.open("tests/data/kitchen.jpg"), {"trust_remote_code": True}
def ask(*parts):
    return [{"role": "user", "content": [*({"type": "image", "image": i} for i in parts[1:]),
                                         {"type": "text", "text": parts[0]}]}]
as_tensors = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
length = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False}
found = {}

processor = AutoProcessor.from_pretrained(name, **trust)
assert AutoConfig.from_pretrained(name, **trust).model_type == "agevlm"
inputs = processor.apply_chat_template(ask("Is there a cup?", image), **as_tensors)
for key, options in {
    "plain": {}, "eager": {"attn_implementation": "eager"}, "sdpa": {"attn_implementation": "sdpa"},
    "auto": {"device_map": "auto"}, "bfloat16": {"dtype": "bfloat16"}, "both": {"dtype": "bfloat16", "device_map": "auto"},
}.items():
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        model = auto_class.from_pretrained(name, **trust, **options)
        assert {p.dtype for p in model.parameters()} == {getattr(torch, options.get("dtype", "float32"))}
        assert not model.training
        backend = options.get("attn_implementation", "sdpa")
        assert {c._attn_implementation for c in (model.config, model.config.text_config)} == {backend}
        with torch.no_grad():
            found[key, auto_class.__name__] = model(**inputs.to(model.device, dtype=model.dtype)).logits.float()
inputs = inputs.to(torch.float32)
model = AutoModelForImageTextToText.from_pretrained(name, **trust)
found["tokens"] = model.generate(**inputs, **length)

chats = [ask("Is there a cup?", image), ask("A red cup?", image, image.rotate(90)), ask("There?")]
batch = processor.apply_chat_template(chats, **as_tensors, processor_kwargs={"padding": True})
found["batch"] = model.generate(**batch, **length)[:, batch["input_ids"].shape[1]:]
found["alone"] = torch.cat([
    model.generate(**one, **length)[:, one["input_ids"].shape[1]:]
    for one in (processor.apply_chat_template(chat, **as_tensors) for chat in chats)])

streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
thread = Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, **length})
thread.start()
pieces = list(streamer)
thread.join()
found["streamed"] = "".join(pieces)
assert len(pieces) > 2, pieces

pipe = pipeline("image-text-to-text", model=name, **trust)
assert type(pipe.model).__name__ == "AgeVlmForConditionalGeneration"
data = base64.b64encode(open("tests/data/kitchen.jpg", "rb").read()).decode()
options = {"generate_kwargs": length, "return_full_text": False}
for key, given in {"PIL": {"image": image}, "path": {"path": "tests/data/kitchen.jpg"}, "base64": {"base64": data}}.items():
    chat = [{"role": "user", "content": [{"type": "image", **given}, {"type": "text", "text": "Is there a cup?"}]}]
    found["pipeline", key] = pipe(text=chat, **options)[0]["generated_text"]
text = processor.apply_chat_template(ask("Is there a cup?", image), add_generation_prompt=True)
found["pipeline", "text"] = pipe(images=image, text=text, **options)[0]["generated_text"]
for given, sentence in (
    ({"images": image, "text": "no placeholder"}, "Put one placeholder per image into the text"),
    ({"images": "nowhere.jpg", "text": text}, "'nowhere.jpg' cannot be read as a picture"),
    ({"images": "words.txt", "text": text}, "'words.txt' cannot be read as a picture"),
    ({"images": data[:-400], "text": text}, "...' cannot be read as a picture"),
):
    try:
        processor(**given)
    except (ValueError, OSError) as error:
        assert sentence in str(error) and len(str(error).splitlines()) == 1, error
    else:
        raise SystemExit(f"{given} was not refused")
torch.save(found, "found.pt")
"""
ANSWERED = "assert output.shape[1] > inputs['input_ids'].shape[1]"
CHECKS = {  # after each block of a page
    "README.md": [ANSWERED],
    "docs/use.md": [
        ANSWERED,
        "assert model.dtype == torch.bfloat16 and type(model).__name__ == 'AgeVlmForConditionalGeneration'",
        "assert cup.shape == (60, 90) and abs(cup.sum() - 1) < 1e-3",
        "assert found['boxes'].shape == (len(found['text_labels']), 4) and found['masks'].shape[1:] == (60, 90)",
        ANSWERED,
        "assert len(output) == 2",
        "assert cache.layers[1].num_images().tolist() == [2]",
        "assert pipe.model.dtype == torch.float32",
        "assert type(model.model.language_model.layers[1].cross_attn.q_proj.weight).__name__ == 'Int8Tensor'",
    ],
    "docs/data.md": ["assert os.listdir('data/mine')"],
    "docs/tune.md": [
        "lines = [open(f'signs/{split}.jsonl').readlines() for split in ('train', 'test')]\n"
        "assert [len({*of}) for of in lines] == [50, 50]\n"
        "open('signs/train.jsonl', 'w').writelines(lines[0][:2])",
        "assert right == 0 and len(rows) == 2",
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: a checkpoint and a picture."""
    folder = tmp_path_factory.mktemp("place")
    model = tiny_model()
    processor = tiny_processor()
    # It writes what is read as it was written: letters that the tokenizer never puts together.
    letters = processor.tokenizer.convert_tokens_to_ids([*"BCDEFGJKLMNOPQRSUVWXZ0123456789", "<|eot_id|>"])
    model.generation_config.suppress_tokens = sorted({*range(model.config.text_config.vocab_size)} - {*letters})
    model.save_pretrained(folder / NAME)
    processor.save_pretrained(folder / NAME)
    (folder / "tests/data").mkdir(parents=True)
    picture(60, 90).save(folder / "tests/data/kitchen.jpg")
    (folder / "words.txt").write_text("This is no picture.")
    return folder


def runnable(page: str) -> list[str]:
    """The Python blocks of a page that need no server."""
    return [block for block in blocks(PAGES[page], "python") if SERVER not in block]


def test_every_page_with_python_is_run():
    # docs/other_vlms.md trains with the project at hand: tests/trainers/test_any_vlm.py runs it.
    assert {page for page in PAGES if runnable(page)} - {"docs/other_vlms.md"} == set(CHECKS)
    assert set(CHECKS) == {"README.md", "docs/use.md", "docs/data.md", "docs/tune.md"}


def run_page(place: Path, page: str) -> None:
    script = [f"{block}\n{check}" for block, check in zip(runnable(page), CHECKS[page], strict=True)]
    run("\n".join([PROLOGUE, "import os\nos.chdir(work)", *script]), place / NAME, place)


@pytest.mark.parametrize("page", ["README.md", "docs/use.md", "docs/tune.md"])
def test_page(place: Path, page: str):
    for name in ("runs/signs", "runs/signs_lora"):  # docs/tune.md's; tests/test_tune.py makes them
        shutil.copytree(place / NAME, place / name, dirs_exist_ok=True)
    run_page(place, page)


def test_a_row_made_as_shown_trains(place: Path):
    run_page(place, "docs/data.md")
    rows = load_from_disk(place / "data/mine")
    batch = DataCollatorForGuidedVisionLanguageModeling(tiny_processor())([rows[0]])
    assert batch["region_masks"].any() and batch["query_masks"].any()


def test_model_card(place: Path):
    card = make_card(place / NAME, NAME, (ROOT / "model_card.md").read_text())
    given = blocks(card, "python")
    assert "from_pretrained" in given[0]
    script = [block.replace("picture.png", "tests/data/kitchen.jpg") for block in given]
    run("\n".join([PROLOGUE, *script]), place / NAME, place)


@pytest.fixture(scope="module")
def found(place: Path) -> dict[Any, Any]:
    run(PROLOGUE + CALLS, place / NAME, place)
    return torch.load(place / "found.pt")


@pytest.fixture(scope="module")
def expected(place: Path) -> dict[str, Any]:
    """The same with this project's classes."""
    model = AgeVlmForConditionalGeneration.from_pretrained(place / NAME)
    processor = AgeVlmProcessor.from_pretrained(place / NAME)
    content = [
        {"type": "image", "path": str(place / "tests/data/kitchen.jpg")},
        {"type": "text", "text": "Is there a cup?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, min_new_tokens=6, max_new_tokens=6, do_sample=False)
    words = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    with torch.no_grad():
        return {"logits": model(**inputs).logits, "tokens": tokens, "words": words}


@pytest.mark.parametrize("auto_class", ["AutoModel", "AutoModelForImageTextToText"])
def test_every_way_to_load(found: dict[Any, Any], expected: dict[str, Any], auto_class: str):
    for key in ("plain", "sdpa", "auto"):
        assert torch.equal(found[key, auto_class], expected["logits"]), key
    assert_close(found["eager", auto_class], expected["logits"])
    assert not torch.equal(found["bfloat16", auto_class], expected["logits"])
    for key in ("bfloat16", "both"):
        assert_close(found[key, auto_class].bfloat16(), expected["logits"].bfloat16(), HALF_LENGTH)


def test_every_way_to_generate(found: dict[Any, Any], expected: dict[str, Any]):
    assert torch.equal(found["tokens"], expected["tokens"])
    assert torch.equal(found["batch"], found["alone"])
    assert found["streamed"] == expected["words"] != ""
    for key in ("PIL", "path", "base64", "text"):
        assert found["pipeline", key] == expected["words"], key
