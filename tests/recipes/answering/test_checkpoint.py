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
"""Whatever is wrong with a checkpoint, in any of its parts, ends in one sentence that says which part; no code of it runs."""

import json
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from testing_utils import tiny_batch, tiny_model, tiny_processor
from vlm_families import FAMILIES

from recipes.answering.checkpoint import load_checkpoint, load_other, read_other


Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "checkpoint")


def change(file: str, *place: str, **over: Any) -> Damage:
    """Fields of a JSON file, or of an object in it, become others."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        inner = content
        for name in place:
            inner = inner[name]
        inner.update(over)
        (folder / file).write_text(json.dumps(content))

    return damage


def text(**over: Any) -> Damage:
    return change("config.json", "text_config", **over)


def vision(**over: Any) -> Damage:
    return change("config.json", "vision_config", **over)


def model_args(**over: Any) -> Damage:
    return change("config.json", "vision_config", "model_args", **over)


def pictures(**over: Any) -> Damage:
    return change("processor_config.json", "image_processor", **over)


def write(file: str, content: str | bytes) -> Damage:
    content = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(content)


def cut(file: str) -> Damage:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:200])


def header(**over: Any) -> Damage:
    """The entry of a tensor in the header of the weights becomes another."""

    def damage(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        entries[min(entries.keys() - {"__metadata__"})].update(over)
        changed = json.dumps(entries).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(changed)) + changed + data[8 + length :])

    return damage


def weights(make: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        make(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def index(content: str) -> Damage:
    """An index in the place of the weights, which lie outside."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        (folder / "model.safetensors.index.json").write_text(content)

    return damage


def pickled(folder: Path) -> None:
    torch.save(safetensors.torch.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


NORM = "model.language_model.norm.weight"
CONFIG = {
    "list": (write("config.json", "[]"), "it is no JSON object"),
    "cut off": (cut("config.json"), "is not a valid JSON file"),
    "no text": (write("config.json", b"\xff\xfe\x00"), "is not a valid JSON file"),
    "too deep": (write("config.json", "[" * 100_000), "recursion"),
    "hidden_act": (text(hidden_act="nope"), "`hidden_act` has to be one of .*, silu, .*, but is 'nope'"),
    "projector_hidden_act": (
        change("config.json", projector_hidden_act="nope"),
        "`projector_hidden_act` has to be one of .* but is 'nope'",
    ),
    "rope_type": (text(rope_parameters={"rope_type": "nope"}), "`rope_type` has to be one of default, .* is 'nope'"),
    "rope_parameters": (text(rope_parameters={"rope_type": "yarn"}), "Missing required keys in `rope_parameters`"),
    "heads": (text(num_attention_heads=0), "`num_attention_heads` has to be at least 1, but is 0"),
    "key heads": (text(num_key_value_heads=3), "has to be a multiple of `num_key_value_heads`"),
    "layers": (text(num_hidden_layers=10**9), "`num_hidden_layers` can be 1024 at the most"),
    "layers of a word": (text(num_hidden_layers="5"), "'num_hidden_layers' expected int, got str"),
    "patch_size": (vision(patch_size=0), "`patch_size` has to be at least 1, but is 0"),
    "another patch_size": (vision(patch_size=16), "24 channels at stride 32, but `vision_config` says"),
    "cross-attention first": (
        text(cross_attention_layers=[0]),
        "`cross_attention_layers` has to hold distinct indices",
    ),
    "image token": (change("config.json", image_token_id=10**6), "is not in the vocabulary"),
    "pad token": (text(pad_token_id=10**6), "`pad_token_id` .* is not in the vocabulary"),
    "no object of arguments": (vision(model_args="x"), "Field 'model_args'"),
    "pretrained": (model_args(pretrained=True), "arguments of timm's ConvNeXt .* but has 'pretrained'"),
    "checkpoint_path": (model_args(checkpoint_path="x.dat"), "but has 'checkpoint_path'"),
    "no ConvNeXt": (vision(architecture="resnet18", model_args=None), "a ConvNeXt in timm's registry"),
    "another repository": (vision(architecture="hf-hub:somebody/else"), "is 'hf-hub:somebody/else'"),
    "kernels": (change("config.json", attn_implementation="some/body"), "names a repository of kernels"),
    "kernels inside": (text(_attn_implementation="some/body"), "names a repository of kernels"),
    "other weights": (change("config.json", transformers_weights="x.safetensors"), "`transformers_weights`"),
    "labels": (change("config.json", num_labels=10**12), "`num_labels` of 1000000000000 is of a classifier"),
    "no text_config": (change("config.json", text_config=[]), "Field 'text_config'"),
    "dtype": (change("config.json", dtype="nope"), "no attribute 'nope'"),
    "half a character": (vision(architecture="\ud800"), r"in timm's registry, .*'\\ud800'"),
    "half a name": (change("config.json", "vision_config", "model_args", **{"\ud800": 1}), r"but has '\\ud800'"),
    "sizes that overflow": (text(hidden_size=2**40), "`hidden_size` can be 16777216 at the most"),
}
MODEL = {
    "quantized": (
        change("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "its model cannot be loaded: .*(optimum|gptq)",
    ),
    "vocabulary": (
        text(vocab_size=2**24),
        r"do not fit its architecture: 1 of another shape \(.*embed_tokens.weight\)",
    ),
    "another width": (text(hidden_size=2**17, head_dim=8), "do not fit its architecture: [0-9]+ of another shape"),
    "more layers": (text(num_hidden_layers=1000), r"do not fit its architecture: [0-9]+ missing \("),
    "cut off": (cut("model.safetensors"), "its weights cannot be loaded: .*header"),
    "empty": (write("model.safetensors", ""), "its weights cannot be loaded: .*header too small"),
    "long header": (write("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "header too large"),
    "offsets": (header(data_offsets=[0, 2**60]), "its weights cannot be loaded: .*offset"),
    "unknown dtype": (header(dtype="NOPE"), "unknown variant `NOPE`"),
    "huge shape": (header(shape=[2**40, 2**40]), "overflow computing buffer size"),
    "other shape": (weights(lambda t: t.update({NORM: torch.ones(7)})), rf"1 of another shape \({NORM}\)"),
    "integers": (weights(lambda t: t.update({NORM: t[NORM].int()})), rf"1 of another type than floats \({NORM}\)"),
    "missing": (weights(lambda t: t.pop(NORM)), rf"1 missing \({NORM}\)"),
    "none": (weights(lambda t: t.clear()), "[0-9]+ missing"),
    "no file": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "pickle": (pickled, "no file named model.safetensors"),
    "adapter": (write("adapter_config.json", '{"base_model_name_or_path": "a/b"}'), "it holds an adapter"),
    "index list": (index("[]"), "it has no `weight_map`"),
    "index cut off": (index('{"weight'), "its model.safetensors.index.json cannot be loaded: Unterminated string"),
    "index without map": (index('{"metadata": {}}'), "it has no `weight_map`"),
    "index of an outside shard": (
        index('{"metadata": {}, "weight_map": {"a": "../outside.safetensors"}}'),
        "it names ../outside.safetensors, which is no safetensors file beside it",
    ),
    "index of a pickle": (index('{"metadata": {}, "weight_map": {"a": "x.bin"}}'), "it names x.bin, which is no"),
    "index of a missing shard": (
        index('{"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}'),
        "there is no model-1.safetensors",
    ),
    "generation_config list": (write("generation_config.json", "[]"), "'list' object|it is no JSON object"),
    "generation_config cut off": (
        write("generation_config.json", '{"eos'),
        "its generation_config.json cannot be loaded: Unterminated string",
    ),
    "end of answers": (
        change("generation_config.json", eos_token_id="x"),
        "`eos_token_id` holds 'x', which is no token",
    ),
    "suppressed": (change("generation_config.json", suppress_tokens=[10**9]), "`suppress_tokens` holds '1000000000'"),
    "hidden states": (
        change("generation_config.json", output_hidden_states=[None]),
        r"`output_hidden_states` has to be true or false, but is '\[None\]'",
    ),
    "penalty": (
        change("generation_config.json", repetition_penalty="much"),
        "`repetition_penalty` has to be a number from 0.001 to inf, but is 'much'",
    ),
    "share": (change("generation_config.json", top_p=2), "`top_p` has to be a number from 0 to 1, but is '2'"),
    "draw": (change("generation_config.json", do_sample=True, temperature=0), "`do_sample` asks for a draw"),
    "no penalty": (
        change("generation_config.json", repetition_penalty=0),
        "`repetition_penalty` has to be a number from 0.001",
    ),
    "beams": (change("generation_config.json", num_beams=0), "`num_beams` has to be a number from 1 on, but is '0'"),
    "cache": (change("generation_config.json", cache_implementation="nope"), "Invalid `cache_implementation`"),
}
PROCESSOR = {
    "list": (write("processor_config.json", "[]"), "AttributeError: 'list' object"),
    "cut off": (cut("processor_config.json"), "is not a valid JSON file"),
    "empty": (write("processor_config.json", ""), "is not a valid JSON file"),
    "tokenizer_config list": (write("tokenizer_config.json", "[]"), "AttributeError: 'list' object"),
    "tokenizer_config cut off": (write("tokenizer_config.json", '{"eos'), "Unterminated string"),
    "tokenizer cut off": (cut("tokenizer.json"), "Expecting|Unterminated"),
    "tokenizer of nothing": (write("tokenizer.json", "{}"), "KeyError: 'added_tokens'"),
    "tokenizer without model": (change("tokenizer.json", model={}), "did not match any variant"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "backend tokenizer"),
    "code of the tokenizer": (
        change("tokenizer_config.json", auto_map={"AutoTokenizer": ["a/b--x.Y", None]}, tokenizer_class="Evil"),
        "trust_remote_code",
    ),
    "code of the image processor": (
        pictures(auto_map={"AutoImageProcessor": "some/body--evil.Evil"}, image_processor_type="Evil"),
        "trust_remote_code",
    ),
    "another image processor": (pictures(image_processor_type="CLIPImageProcessor"), "are for a CLIPImageProcessor"),
    "placeholder": (change("processor_config.json", image_token="<nope>"), "'<nope>' is not a token of the tokenizer"),
    "another placeholder": (
        change("config.json", image_token_id=3),
        r"its placeholder '<\|image\|>' is token 2, but the model's is 3",
    ),
    "template": (write("chat_template.jinja", "{% for %}"), "TemplateSyntaxError: "),
    "template of code": (write("chat_template.jinja", "{{ ''.__class__.__mro__ }}"), "SecurityError"),
    "template of a file": (write("chat_template.jinja", "{% include '/etc/hostname' %}"), "no loader"),
    "template that raises": (write("chat_template.jinja", "{{ raise_exception('not so') }}"), "not so"),
    "template without pictures": (
        write("chat_template.jinja", "{{ messages[0]['role'] }}"),
        "placeholder|picture|image",
    ),
    "mean": (
        pictures(image_mean="abc"),
        "`image_mean` has to hold numbers|`image_mean` has to hold a number for each",
    ),
    "one mean": (pictures(image_mean=[0.5]), "`image_mean` has to hold a number for each channel"),
    "deviation": (pictures(image_std=[0, 1, 1]), "`image_std` has to be above 0"),
    "size": (pictures(size={"height": 0, "width": 0}), "`size` has to be of multiples of 32 pixels"),
    "size of no cells": (pictures(size={"height": 100, "width": 96}), "`size` has to be of multiples of 32 pixels"),
    "huge size": (pictures(size={"height": 32 * 10**8, "width": 96}), "more pixels than a picture has"),
    "patch_size": (pictures(patch_size=7), "`patch_size` is 7, but the model's is 32"),
    "resample": (pictures(resample="x"), "."),
    "rescale_factor": (pictures(rescale_factor="x"), "."),
}
PARTS = {"its config.json": CONFIG, "": MODEL, "its processor": PROCESSOR}


def test_whole_numbers_of_a_generation_config_are_numbers(folder: Path):
    change("generation_config.json", repetition_penalty=2, temperature=1)(folder)
    model, _ = load_checkpoint(str(folder))
    assert type(model.generation_config.repetition_penalty) is type(model.generation_config.temperature) is float


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, names in PARTS.items() for name in names])
def test_what_is_wrong_ends_in_a_sentence(part: str, name: str, folder: Path):
    damage, sentence = PARTS[part][name]
    damage(folder)
    with pytest.raises(ValueError, match=sentence) as error:
        load_checkpoint(str(folder))
    said = str(error.value)
    assert (
        said.startswith(f"{part} cannot be loaded: " if part else "") and "\n" not in said and len(said.encode()) < 800
    ), said


def test_a_sound_checkpoint_loads_as_it_was_saved(folder: Path):
    model, processor = load_checkpoint(str(folder))
    batch = tiny_batch()
    assert not model.training and torch.equal(model(**batch).logits, tiny_model()(**batch).logits)
    assert processor.image_token_id == model.config.image_token_id


def test_shards_and_half_precision_load(folder: Path):
    (folder / "model.safetensors").unlink()
    tiny_model().to(torch.bfloat16).save_pretrained(folder, max_shard_size="50kB")
    assert not (folder / "model.safetensors").exists()
    model, _ = load_checkpoint(str(folder), dtype="float32")
    expected = tiny_model().to(torch.bfloat16).float()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_no_pickle_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch):
    pickled(folder)
    monkeypatch.setattr(torch, "load", lambda *arguments, **more: pytest.fail("a pickle is opened"))
    with pytest.raises(ValueError, match="no file named model.safetensors"):
        load_checkpoint(str(folder))


TIMM = {"model_type": "timm_wrapper", "architecture": "resnet18"}
ONE_FORMER = {"image_processor_type": "OneFormerImageProcessor"}
OTHERS = {
    "no folder of a model": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "adapter": (write("adapter_config.json", "{}"), "it holds an adapter"),
    "pickle": (pickled, "no file named model.safetensors"),
    "kernels": (
        change("config.json", "text_config", _attn_implementation="somebody/kernels"),
        "names a repository of kernels .'somebody/kernels'.",
    ),
    "labels": (change("config.json", "text_config", num_labels=10**12), "`num_labels` of 1000000000000"),
    "weights elsewhere": (
        change("config.json", transformers_weights="x.safetensors.index.json"),
        "`transformers_weights` .'x.safetensors.index.json'. would read",
    ),
    "distributed": (
        lambda folder: shutil.copy(
            folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors"
        ),
        "it is a distributed checkpoint",
    ),
    "text of a tower": (
        change("config.json", text_config={"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/tower"}),
        "`architecture` is 'hf-hub:somebody/tower'",
    ),
    "tower from a file": (
        change("config.json", text_config=TIMM | {"model_args": {"checkpoint_path": "/somewhere"}}),
        "`model_args` has `checkpoint_path`",
    ),
    "backbone": (
        change("config.json", vision_config={"model_type": "detr", "backbone": "a/b", "use_timm_backbone": False}),
        "`backbone` .'a/b'. would read",
    ),
    "image processor": (
        change("processor_config.json", image_processor=ONE_FORMER | {"class_info_file": "/etc/hostname"}),
        "its processor_config.json cannot be loaded: `class_info_file` .'/etc/hostname'. would read",
    ),
    "huge": (change("config.json", "text_config", num_hidden_layers=2000), "files hold"),
    "code": (
        change("config.json", model_type="unheard_of", auto_map={"AutoConfig": "code.Config"}),
        "trust_remote_code|unheard_of",
    ),
    "missing tensor": (
        lambda folder: without(folder, "multi_modal_projector.linear_1.bias"),
        "1 missing .*linear_1.bias",
    ),
    "shards elsewhere": (
        lambda folder: (
            (folder / "model.safetensors").rename(folder.parent / "away.safetensors"),
            write(
                "model.safetensors.index.json",
                json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": "../away.safetensors"}}),
            )(folder),
        ),
        "it names ../away.safetensors",
    ),
}


def without(folder: Path, name: str) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors[name]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    for part in FAMILIES["LLaVA"]():
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_wrong_with_a_vlm_of_transformers(
    name: str, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    damage, sentence = OTHERS[name]
    folder = shutil.copytree(llava, tmp_path / "vlm")
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("one is asked"))
    monkeypatch.setattr(torch, "load", lambda *arguments, **more: pytest.fail("a pickle is opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: pytest.fail("an address is looked up"))
    with pytest.raises((ValueError, OSError), match=sentence):
        load_other(str(folder), read_other(str(folder))[0])


def test_a_vlm_of_transformers_loads_as_it_was_saved(tmp_path: Path):
    saved, processor = FAMILIES["LLaVA"]()
    saved.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config, loaded = read_other(str(tmp_path))
    model = load_other(str(tmp_path), config, attn_implementation="eager")
    assert not model.training and loaded.image_token_id == processor.image_token_id
    assert model.config.text_config._attn_implementation == "eager"
    expected = saved.state_dict()
    assert {*model.state_dict()} == {*expected}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
