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
"""AGE-VLM from pretrained parts: every tensor and token is where it belongs, and bad parts get one sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import timm
import torch
from hub_server import HubServer, oid_of
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from testing_utils import assert_close, length_of, picture, up_to_rounding
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor, from_vision_text_pretrained
from modeling_agevlm.configuration_agevlm import default_cross_attention_layers
from recipes import init
from recipes.training import command, stage
from recipes.training.arguments import DataArguments, ModelArguments, PartsArguments
from recipes.training.parts import build
from trainers import DataCollatorForGuidedVisionLanguageModeling, GuidedSFTConfig


LLAMA_3_2 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] "
    "+ '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
    "}}{% endif %}"
)
TINYLLAMA = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
# Special tokens after the 256 bytes, the roles that they have, all ends of a text by id, and the chat template.
FAMILIES: dict[str, tuple[list[str], dict[str, Any], list[int], str | None]] = {
    "llama-3.2": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"]
        + ["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|reserved_special_token_1|>"],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        [257, 262, 263],
        LLAMA_3_2,
    ),
    "smollm2": (
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"],
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
        }
        | {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        [258],
        SMOLLM2,
    ),
    "tinyllama": (
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        [258],
        TINYLLAMA,
    ),
}
IMAGE = 258  # LLaMA-3.2's first reserved token
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is there a cup?"},
    {"role": "assistant", "content": "Yes, there is."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "On the table."},
]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Bytes, and the special tokens of an LLM."""
    tokens, roles, _, template = FAMILIES[family]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(tokens)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **roles)


def save_llama(
    folder: Path, family: str = "llama-3.2", dtype: torch.dtype = torch.bfloat16, shard: str = "40KB", **over: Any
) -> Path:
    """A LLaMA in its folder, whose every weight is a random number of a size that matters, with its tokenizer."""
    tokenizer = tokenizer_of(family)
    config = LlamaConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "eos_token_id": FAMILIES[family][2],
            "bos_token_id": tokenizer.bos_token_id,
            **over,
        }
    )
    llama = LlamaForCausalLM(config)
    for parameter in llama.parameters():
        torch.nn.init.normal_(parameter)
    llama.to(dtype).save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return folder


def save_tower(folder: Path, name: str = "convnext_atto.d2_in1k", **arguments: Any) -> Path:
    """A timm model in its folder, as timm writes it."""
    arguments = {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 24], **arguments}
    tower = timm.create_model(name, **arguments)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter)
    timm.models.save_for_hf(tower, folder, safe_serialization=True)
    return folder


def change_config(folder: Path, **over: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | over))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a ConvNeXt and of a LLaMA."""
    root = tmp_path_factory.mktemp("parts")
    return save_tower(root / "convnext"), save_llama(root / "llama")


def assert_holds(model: AgeVlmForConditionalGeneration, vision: Path, text: Path, dtype: torch.dtype) -> None:
    """Each tensor on disk is in the model once, with its value; what the model has beyond that is new by its name."""
    left = dict(model.state_dict())
    for name, tensor in tensors_of(vision).items():
        if not name.startswith("head."):
            assert torch.equal(left.pop(f"model.vision_tower.timm_model.{name}"), tensor.to(dtype)), name
    for name, tensor in tensors_of(text).items():
        place = name.replace("model.", "model.language_model.", 1)
        if name.startswith("model.layers."):
            index = int(name.split(".")[2])
            place = place.replace(f"layers.{index}.", f"layers.{index + (index >= 2) + (index >= 6)}.")
        assert torch.equal(left.pop(place)[: len(tensor)], tensor.to(dtype)), name
    if model.lm_head.weight is model.get_input_embeddings().weight:
        left.pop("lm_head.weight")
    parents = ("model.multi_modal_projector.", "model.language_model.layers.2.", "model.language_model.layers.7.")
    assert left and all(name.startswith(parents) for name in left)
    assert all(tensor.dtype == dtype for tensor in left.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
def test_every_tensor_keeps_its_value(parts, tmp_path: Path, tied: bool, source: torch.dtype, dtype: torch.dtype):
    vision, text = parts[0], save_llama(tmp_path / "llama", tie_word_embeddings=tied, dtype=source)
    assert len(list(text.glob("*.safetensors"))) > 2
    model = from_vision_text_pretrained(str(vision), str(text), IMAGE, dtype=dtype)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert_holds(model, vision, text, dtype)
    model.save_pretrained(tmp_path / "saved")
    again, report = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values())
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_two_tables_are_kept_where_the_config_says_one(parts: tuple[Path, Path], tmp_path: Path):
    text = save_llama(tmp_path / "llama", tie_word_embeddings=False)
    change_config(text, tie_word_embeddings=True)
    model = from_vision_text_pretrained(str(parts[0]), str(text), IMAGE)
    assert_holds(model, parts[0], text, torch.float32)
    model.save_pretrained(tmp_path / "saved")
    assert_holds(AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "saved"), parts[0], text, torch.float32)


@pytest.mark.parametrize(("image_token_id", "rows"), [(IMAGE, 265), (264, 265), (265, 320), (320, 384)])
def test_the_placeholder_is_in_the_vocabulary(parts: tuple[Path, Path], image_token_id: int, rows: int):
    model = from_vision_text_pretrained(*map(str, parts), image_token_id, attn_implementation="eager")
    assert model.config.image_token_id == image_token_id
    assert model.config.text_config.vocab_size == len(model.get_input_embeddings().weight) == rows
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.text_config._attn_implementation == "eager"
    assert_holds(model, *parts, torch.float32)


TOWERS = {
    "plain": ("convnext_atto.d2_in1k", {}, IMAGENET_MEAN, IMAGENET_STD),
    "fine-tuned": ("convnext_atto.d2_in1k", {"num_classes": 7}, IMAGENET_MEAN, IMAGENET_STD),
    "headless": ("convnext_atto.d2_in1k", {"num_classes": 0}, IMAGENET_MEAN, IMAGENET_STD),
    "clip": ("convnext_large_mlp.clip_laion2b_ft_soup_320", {"head_hidden_size": 24}, CLIP_MEAN, CLIP_STD),
    "norm-first": ("convnext_tiny_hnf.a2h_in1k", {}, IMAGENET_MEAN, IMAGENET_STD),
    "v2": ("convnextv2_atto.fcmae_ft_in1k", {}, IMAGENET_MEAN, IMAGENET_STD),
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_that_timm_writes(name: str, parts: tuple[Path, Path], tmp_path: Path):
    architecture, arguments, mean, std = TOWERS[name]
    vision = save_tower(tmp_path / "tower", architecture, **arguments)
    model, processor = build(PartsArguments(vision=str(vision), text=str(parts[1]), image_size=64))
    assert_holds(model, vision, parts[1], torch.float32)
    assert (processor.image_processor.image_mean, processor.image_processor.image_std) == (mean, std)
    pixel_values = processor.image_processor([[picture()]], return_tensors="pt")["pixel_values"][0]
    tower = timm.create_model(f"local-dir:{vision}", pretrained=True).eval()
    found = model.get_image_features(pixel_values).last_hidden_state
    assert_close(found, tower.forward_features(pixel_values).flatten(2).transpose(1, 2), length_of(tower))
    model.save_pretrained(tmp_path / "saved")
    assert_holds(AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "saved"), vision, parts[1], torch.float32)


def test_a_weight_file_stands_for_its_folder(parts: tuple[Path, Path]):
    for vision in (parts[0] / "model.safetensors", f"local-dir:{parts[0]}"):
        model = from_vision_text_pretrained(str(vision), str(parts[1]), IMAGE)
        assert_holds(model, *parts, torch.float32)


def put(hub: HubServer, repo: str, folder: Path, branch: str = "main") -> None:
    """Puts a folder up on the Hub."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (hub.repos.get(repo) or hub.create(repo)).add(branch, "upload", files)
    hub.objects.update({oid_of(name, content): content for name, content in files.items()})


def test_names_on_the_hub(hub: HubServer, parts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vision, text = parts
    other_vision, other_text = save_tower(tmp_path / "convnext"), save_llama(tmp_path / "llama")
    put(hub, "timm/convnext_atto.d2_in1k", vision)
    put(hub, "someone/tower", vision)
    put(hub, "someone/tower", other_vision, branch="v2")
    put(hub, "someone/llama", text)
    put(hub, "someone/llama", other_text, branch="v2")
    for offline in (False, True):  # the second time from the cache
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        for name, revision, *folders in (
            ("convnext_atto.d2_in1k", "main", vision, text),
            ("hf-hub:someone/tower", "v2", vision, other_text),
            ("hf-hub:someone/tower@v2", "main", other_vision, text),
        ):
            arguments = PartsArguments(vision=name, text="someone/llama", text_revision=revision)
            model, processor = build(arguments)
            assert_holds(model, *folders, torch.float32)
            assert len(processor.tokenizer) == 265


@pytest.mark.parametrize("ends", [None, 5])
def test_an_llm_without_an_end_of_text_ends_with_its_turns(ends: int | None, parts: tuple[Path, Path], tmp_path: Path):
    text = save_llama(tmp_path / "llama", "smollm2", eos_token_id=ends)
    tokenizer = AutoTokenizer.from_pretrained(text)
    end = tokenizer.eos_token_id  # of its turns
    tokenizer.eos_token = None
    tokenizer.save_pretrained(text)
    model, processor = build(PartsArguments(vision=str(parts[0]), text=str(text), image_size=64))
    assert processor.tokenizer.eos_token is None
    assert model.generation_config.eos_token_id == [*([] if ends is None else [ends]), end]


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_shortest_llms_see(num_layers: int, parts: tuple[Path, Path], tmp_path: Path):
    text = save_llama(tmp_path / "llama", num_hidden_layers=num_layers)
    model, processor = build(PartsArguments(vision=str(parts[0]), text=str(text), image_size=64))
    assert len(model.config.text_config.cross_attention_layers) == 1
    chat = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "A cup?"}]}]
    inputs = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**inputs, max_new_tokens=2).shape[1] > inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_is_the_llms_own(family: str, parts: tuple[Path, Path], tmp_path: Path):
    text = save_llama(tmp_path / "llama", family)
    own = AutoTokenizer.from_pretrained(text)
    model, processor = build(PartsArguments(vision=str(parts[0]), text=str(text), image_size=64))
    tokenizer, image = processor.tokenizer, processor.image_token
    ends = FAMILIES[family][2]
    for messages in (CHAT, CHAT[1:], CHAT[1:2]):
        for prompt in (False, True):
            arguments = {"add_generation_prompt": prompt, "tokenize": False}
            expected = own.apply_chat_template(messages, date_string="26 Jul 2024", **arguments)
            assert processor.apply_chat_template(messages, **arguments) == expected
    with_image = [{"role": "user", "content": [{"type": "text", "text": "Is there a cup?"}, {"type": "image"}]}]
    expected = own.apply_chat_template(CHAT[1:2], date_string="26 Jul 2024", tokenize=False)
    expected = expected.replace("Is there a cup?", f"{image}Is there a cup?")
    assert processor.apply_chat_template(with_image) == expected

    # Its tokens are where they were; the placeholder and the padding are none that it writes or reads.
    assert own.get_vocab().items() <= tokenizer.get_vocab().items()
    assert set(own.all_special_tokens) <= set(tokenizer.all_special_tokens)
    assert tokenizer.pad_token_id not in {*ends, processor.image_token_id, tokenizer.bos_token_id}
    assert model.config.image_token_id == processor.image_token_id
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.pad_token_id == model.config.text_config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.suppress_tokens == [processor.image_token_id]
    rows = model.get_input_embeddings().num_embeddings
    if family == "llama-3.2":
        assert (image, tokenizer.pad_token) == ("<|reserved_special_token_0|>", "<|finetune_right_pad_id|>")
        assert len(tokenizer) == len(own) == rows
    else:
        assert (image, tokenizer.pad_token) == ("<|image|>", "<|pad|>")
        assert len(tokenizer) == len(own) + 2 and rows == 320
    assert model.config.text_config.vocab_size == model.lm_head.out_features == rows
    assert_holds(model, parts[0], text, torch.float32)

    messages = [{"role": m["role"], "content": m["content"]} for m in CHAT]
    batch = DataCollatorForGuidedVisionLanguageModeling(processor)([{"images": [picture()], "messages": messages}])
    labels = batch["labels"][0]
    end = tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id)
    assert tokenizer.decode(labels[labels != -100]) == f"Yes, there is.{end}On the table.{end}"
    assert (batch["input_ids"] == processor.image_token_id).sum() == 1

    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = AgeVlmProcessor.from_pretrained(tmp_path / "saved")
    assert again.apply_chat_template(with_image) == expected
    assert again.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert again.tokenizer.pad_token_id == tokenizer.pad_token_id
    saved = json.loads((tmp_path / "saved/generation_config.json").read_text())
    assert saved["eos_token_id"] == ends


def test_a_stage_trains_with_the_llms_own_chat_template(parts: tuple[Path, Path], tmp_path: Path):
    """It has no `{% generation %}`, without which TRL would not train on the assistant's words alone."""
    text = save_llama(tmp_path / "llama", "smollm2")
    arguments = ModelArguments(vision=str(parts[0]), text=str(text), image_size=64)
    training = GuidedSFTConfig(
        output_dir=str(tmp_path / "stage1"),
        per_device_train_batch_size=2,
        max_steps=2,
        learning_rate=1e-2,
        activation_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
    )
    trainer = stage.run_stage(1, arguments, DataArguments(num_scenes=4), training)
    assert "generation %}" not in trainer.processing_class.chat_template
    model = AgeVlmForConditionalGeneration.from_pretrained(training.output_dir)
    assert_holds(model, parts[0], text, torch.float32)  # what is frozen
    assert model.model.language_model.layers[2].cross_attn.o_proj.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("num_layers", "expected"),  # of the LLM alone
    [
        (16, [2, 7, 12, 17]),  # LLaMA-3.2-1B
        (22, [2, 7, 12, 17, 22]),  # TinyLlama
        (24, [2, 7, 12, 17, 22, 27]),  # SmolLM2-1.7B
        (28, [2, 7, 12, 17, 22, 27, 32]),  # LLaMA-3.2-3B
        (30, [2, 7, 12, 17, 22, 27, 32]),  # SmolLM2-135M
        (32, [2, 7, 12, 17, 22, 27, 32, 37]),  # SmolLM2-360M
    ],
)
def test_cross_attention_layers_of_other_sizes(num_layers: int, expected: list[int]):
    assert default_cross_attention_layers(num_layers) == expected
    total = num_layers + len(expected)
    assert expected == [layer for layer in range(total) if layer % 5 == 2]


def remove_shard(folder: Path) -> None:
    next(folder.glob("model-00002-*")).unlink()


def cut_off(pattern: str, size: int = -100) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = next(folder.glob(pattern))
        file.write_bytes(file.read_bytes()[:size])

    return damage


def to_pickle(folder: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "unpickled"),))

    for file in folder.glob("*.safetensors*"):
        file.unlink()
    for name in ("pytorch_model.bin", "model.pth"):
        torch.save({"trap": Trap()}, folder / name)


def change_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Of the shard that holds the last norm."""

    def damage(folder: Path) -> None:
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            if NORM in tensors or STAGE in tensors:
                change(tensors)
                save_file(tensors, file, metadata={"format": "pt"})

    return damage


def other_text(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for file in [*folder.glob("*.safetensors*"), folder / "config.json"]:
            file.unlink()
        make(folder)

    return damage


def save_classifier(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=265, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)


def drop_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


NORM, STAGE = "model.norm.weight", "stages.3.blocks.0.gamma"
BAD_TEXTS = {
    "architecture": (
        lambda f: change_config(f, model_type="gpt2"),
        "is a 'gpt2' checkpoint, but AGE-VLM is built around",
    ),
    "quantized": (lambda f: change_config(f, quantization_config={"quant_method": "gptq"}), "is quantized. Pass the"),
    "classifier": (other_text(save_classifier), r"1 missing \(lm_head.weight\), 1 left over \(score.weight\)"),
    "no-config": (lambda f: (f / "config.json").unlink(), "cannot be loaded: Unrecognized model"),
    "lost-shard": (remove_shard, "No such file or directory: .*model-00002-of.*a folder with whole safetensors"),
    "cut-off": (
        cut_off("model-00002-*"),
        "incomplete metadata, file not fully covered. .*a folder with whole safetensors",
    ),
    "cut-off-index": (cut_off("*.index.json"), "cannot be loaded: .*line"),
    "pickle": (to_pickle, "no file named model.safetensors .*pickles are never loaded"),
    "missing": (
        change_tensors(lambda t: t.pop(NORM, 0)),
        rf"do not fit its architecture: 1 missing \({NORM}\)\. Pass",
    ),
    "left-over": (
        change_tensors(lambda t: t.update(extra=torch.ones(2))),
        r"architecture: 1 left over \(extra\)\. Pass",
    ),
    "misshapen": (change_tensors(lambda t: t.update({NORM: torch.ones(7)})), rf"1 of another shape \({NORM}\)\. Pass"),
    "no-template": (
        drop_template,
        "The tokenizer has no chat template. Take the tokenizer of an instruction-tuned LLM",
    ),
    "no-tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tokenizer*")],
        "Couldn't instantiate the backend tokenizer",
    ),
}


def assert_sentence(error: BaseException, name: Any) -> None:
    """One paragraph that names the part."""
    assert str(name) in str(error) and "\n" not in str(error) and len(str(error)) < 700, str(error)


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_text_gets_a_sentence(name: str, parts: tuple[Path, Path], tmp_path: Path):
    vision, text = parts[0], tmp_path / "llama"
    if name in ("no-template", "no-tokenizer"):
        save_llama(text, "smollm2")
    else:
        shutil.copytree(parts[1], text)
    damage, sentence = BAD_TEXTS[name]
    damage(text)
    with pytest.raises(ValueError, match=sentence) as error:
        build(PartsArguments(vision=str(vision), text=str(text)))
    assert_sentence(error.value, text)
    assert not (text / "unpickled").exists()


BAD_TOWERS = {
    "vit": (
        lambda f: change_config(f, architecture="vit_tiny_patch16_224", model_args={}),
        r"has to be the name of a ConvNeXt in timm's registry .* but is 'vit_tiny_patch16_224'\.",
    ),
    "resnet": (lambda f: change_config(f, architecture="resnet18", model_args={}), "a ConvNeXt in timm's registry"),
    # It has four stages and a stride of 32, and other blocks.
    "edgenext": (
        lambda f: change_config(f, architecture="edgenext_small", model_args={}),
        "a ConvNeXt in timm's registry .* but is 'edgenext_small'",
    ),
    "stride-16": (lambda f: change_config(f, model_args={"output_stride": 16}), "is not a ConvNeXt of stride 32"),
    "unknown": (lambda f: change_config(f, architecture="convnext_nano_2"), "timm's registry .* 'convnext_nano_2'"),
    "another-repository": (
        lambda f: change_config(f, architecture="hf-hub:somebody/else"),
        "timm's registry, such as 'convnext_large', but is 'hf-hub:somebody/else'",
    ),
    "another-folder": (
        lambda f: change_config(f, architecture=f"local-dir:{f}"),
        "timm's registry, such as 'convnext_large', but is 'local-dir:",
    ),
    "file-to-open": (
        lambda f: change_config(f, model_args={"checkpoint_path": "weights.bin"}),
        r"arguments of timm's ConvNeXt \(.*\), but has 'checkpoint_path'",
    ),
    "folder-to-write": (
        lambda f: change_config(f, model_args={"cache_dir": "elsewhere"}),
        r"arguments of timm's ConvNeXt \(.*\), but has 'cache_dir'",
    ),
    "string-of-arguments": (
        lambda f: change_config(f, model_args="depths"),
        "`model_args` in its config.json has to be an object, but is 'depths'",
    ),
    "three-stages": (
        lambda f: change_config(f, model_args={"depths": [1, 1, 1], "dims": [8, 12, 16]}),
        "timm cannot build `convnext_atto` with `model_args`",
    ),
    "list": (lambda f: (f / "config.json").write_text("[]"), "names no timm `architecture`"),
    "cut-off-config": (cut_off("config.json"), "cannot be loaded: "),
    "no-timm": (
        lambda f: (f / "config.json").write_text('{"model_type": "convnext"}'),
        "names no timm `architecture`",
    ),
    "no-config": (lambda f: (f / "config.json").unlink(), "there is no config.json in"),
    "cut-off": (cut_off("model.safetensors"), "incomplete metadata, file not fully covered"),
    "pickle": (to_pickle, "there is no model.safetensors in .*pickles are never loaded"),
    "missing": (change_tensors(lambda t: t.pop(STAGE)), rf"do not fit its architecture: 1 missing \({STAGE}\)\."),
    "left-over": (change_tensors(lambda t: t.update(extra=torch.ones(2))), r"1 left over \(extra\)\."),
    "misshapen": (change_tensors(lambda t: t.update({STAGE: torch.ones(7)})), rf"1 of another shape \({STAGE}\)\."),
}


@pytest.mark.parametrize("name", BAD_TOWERS)
def test_bad_tower_gets_a_sentence(name: str, parts: tuple[Path, Path], tmp_path: Path):
    vision = shutil.copytree(parts[0], tmp_path / "convnext")
    damage, sentence = BAD_TOWERS[name]
    damage(vision)
    with pytest.raises(ValueError, match=sentence) as error:
        from_vision_text_pretrained(str(vision), str(parts[1]), IMAGE)
    assert_sentence(error.value, vision)
    assert not (vision / "unpickled").exists()


@pytest.mark.parametrize(
    ("vision", "sentence"),
    [
        ("convnext_2", r"timm has no weights of this name, see `timm.list_pretrained\('convnext\*'\)`"),
        ("convnext_atto_rms", "timm has no weights of this name"),
        ("convnext_tiny.nobody", r"Invalid pretrained tag \(nobody\) for convnext_tiny"),
        ("someone/tower", "Use 'hf-hub:someone/tower' to load from the Hub or 'local-dir:someone/tower'"),
        ("local-dir:nowhere", "there is no folder nowhere"),
        ("{pickle}", "the weight file has to be a model.safetensors.*pickles are never loaded"),
    ],
)
def test_names_that_timm_does_not_know(vision: str, sentence: str, parts: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "model.pth").touch()
    vision = vision.format(pickle=tmp_path / "model.pth")
    with pytest.raises(ValueError, match=sentence) as error:
        from_vision_text_pretrained(vision, str(parts[1]), IMAGE)
    assert_sentence(error.value, vision)


def test_what_the_hub_does_not_give(hub: HubServer, parts: tuple[Path, Path], tmp_path: Path, monkeypatch):
    vision, text = parts
    for repo, folder in (("meta-llama/gated", text), ("someone/gated", vision)):
        put(hub, repo, folder)
        hub.repos[repo].gated = True
    for repo, folder in (("someone/pickled", text), ("someone/pickled-tower", vision), ("someone/lost", text)):
        copy = shutil.copytree(folder, tmp_path / repo)
        (remove_shard if repo == "someone/lost" else to_pickle)(copy)
        put(hub, repo, copy)
    put(hub, "someone/whole", text)
    put(hub, "someone/whole-tower", vision)
    gated = "is gated. Accept its license on its page on the Hub, then log in with `hf auth login` or set `HF_TOKEN`"
    cases = [
        ({"text": "meta-llama/gated"}, gated),
        ({"vision": "hf-hub:someone/gated"}, gated),
        ({"text": "someone/nothing"}, "is not a local folder and is not a valid model identifier"),
        ({"vision": "hf-hub:someone/nothing"}, "is not a local folder and is not a valid model identifier"),
        ({"text": "someone/whole", "text_revision": "v9"}, "v9 is not a valid git identifier"),
        ({"vision": "hf-hub:someone/whole-tower@v9"}, "v9 is not a valid git identifier"),
        ({"text": "someone/pickled"}, "pickles are never loaded"),
        ({"vision": "hf-hub:someone/pickled-tower"}, "a file named model.safetensors.*pickles are never loaded"),
        ({"text": "someone/lost"}, "model-00002-of-"),
        ({"text": "someone/file.gguf"}, "There is no file someone/file.gguf. Pass the path of a GGUF file, or `repo:"),
        ({"text": "someone/whole:file.gguf"}, "a file named file.gguf"),
    ]
    monkeypatch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")
    for over, sentence in cases:
        if over.get("text") != "someone/whole":
            monkeypatch.delenv("HF_TOKEN", raising=False)
        with pytest.raises(ValueError, match=sentence) as error:
            build(PartsArguments(**{"vision": str(vision), "text": str(text), **over}))
        assert_sentence(error.value, over.get("text") or over["vision"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for over in ({"text": "someone/else"}, {"vision": "hf-hub:someone/else"}, {"vision": "convnext_tiny"}):
        with pytest.raises(ValueError, match="couldn't find them in the cached files") as error:
            build(PartsArguments(**{"vision": str(vision), "text": str(text), **over}))
        assert_sentence(error.value, next(iter(over.values())))


def save_gguf(file: Path, llama: Path) -> None:
    """A LLaMA folder as llama.cpp writes it, where the halves of each head's rotation stand next to each other."""
    config = LlamaConfig.from_pretrained(llama)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in tensors_of(llama).items():
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file(hub: HubServer, parts: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "gguf").mkdir()
    save_gguf(tmp_path / "gguf/llama.gguf", parts[1])
    put(hub, "someone/gguf", tmp_path / "gguf")
    for text in (str(tmp_path / "gguf/llama.gguf"), "someone/gguf:llama.gguf"):
        model = from_vision_text_pretrained(str(parts[0]), text, IMAGE)
        assert_holds(model, *parts, torch.float32)
    whole = (tmp_path / "gguf/llama.gguf").read_bytes()
    for size in (0, 10, 1000, len(whole) // 2, len(whole) - 100):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cut.gguf cannot be loaded: .*or a whole GGUF file") as error:
            from_vision_text_pretrained(str(parts[0]), str(tmp_path / "cut.gguf"), IMAGE)
        assert_sentence(error.value, tmp_path / "cut.gguf")


def test_command_lines_end_with_the_sentence(parts: tuple[Path, Path], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    vision, text = ("--vision", parts[0]), ("--text", parts[1])
    gpt2 = shutil.copytree(parts[1], tmp_path / "gpt2")
    change_config(gpt2, model_type="gpt2")
    for main, arguments, sentence in (
        (init.main, (*vision, "--text", gpt2), f"error: {gpt2} is a 'gpt2' checkpoint"),
        (init.main, ("--vision", "convnext_2", *text), "error: convnext_2 cannot be loaded: timm has no weights"),
        (init.main, (*vision, *text, "--image_size", 100), "error: `image_size` (100) has to be a multiple"),
        (init.main, (*vision, *text, "--cross_attention_layers", 0), "error: `cross_attention_layers` has to hold"),
        (init.main, (*vision, "--text", tmp_path), f"error: {tmp_path} cannot be loaded: "),
        (lambda: command.main(1, ""), (*vision, "--text", gpt2), f"error: {gpt2} is a 'gpt2' checkpoint"),
        (
            lambda: command.main(1, ""),
            (*vision, *text, "--cross_attention_layers", 0),
            "error: `cross_attention_layers` has",
        ),
        (
            lambda: command.main(2, ""),
            ("--model_name_or_path", "someone/else"),
            "error: someone/else cannot be loaded: We",
        ),
        (
            lambda: command.main(2, ""),
            ("--model_name_or_path", parts[1]),
            f"error: {parts[1]} is a 'llama' checkpoint",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["recipe", "--output_dir", str(tmp_path / "out"), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code.startswith(sentence) and "\n" not in end.value.code, end.value.code
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_default_parts_exist():
    assert PartsArguments.vision in timm.list_pretrained("convnext_large_mlp.clip*")
    assert timm.get_pretrained_cfg(PartsArguments.vision).num_classes == 768  # CLIP's space, not ImageNet's classes
    assert PartsArguments.text == "meta-llama/Llama-3.2-1B-Instruct"


SAVE_REAL_SIZE = """
import sys, timm, torch
from transformers import LlamaConfig, LlamaForCausalLM
tower = timm.create_model("convnext_large_mlp.clip_laion2b_ft_soup_320")
timm.models.save_for_hf(tower, f"{sys.argv[1]}/convnext", safe_serialization=True)
config = LlamaConfig(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
                     dtype="bfloat16")
llama = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
llama.save_pretrained(f"{sys.argv[1]}/llama", max_shard_size="1GB")
"""
BUILD_REAL_SIZE = """
import json, re, sys, time, torch
from modeling_agevlm import from_vision_text_pretrained

def memory(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024

folder, dtype = sys.argv[1], getattr(torch, sys.argv[2])
arguments = (f"{folder}/convnext", f"{folder}/llama", 128002)
before, start = memory("VmRSS"), time.time()
model = from_vision_text_pretrained(*arguments, dtype=dtype)
seconds = time.time() - start
for parameter in model.parameters():
    parameter.sum()  # what is only mapped from a file counts as well
found = {"seconds": seconds, "peak": memory("VmHWM") - before}
found["size"] = sum(p.numel() * p.element_size() for p in model.parameters())
text, tower = model.model.language_model, model.model.vision_tower
new = [text.layers[i] for i in model.config.text_config.cross_attention_layers]
count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())
found["parameters"] = {"LLaMA": count(text) - count(*new), "cross-attention": count(*new), "ConvNeXt": count(tower),
                       "projector": count(model.model.multi_modal_projector)}
if dtype == torch.float32:
    start = time.time()
    ids = torch.tensor([[128000, model.config.image_token_id, 791, 10747, 374]])
    pixels = torch.randn(1, 1, 3, 768, 768)
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels, query_masks=torch.ones(1, 1, 5, dtype=torch.bool))
    found["forward_seconds"] = time.time() - start
    found["maps"] = [list(m.shape) for m in output.grounding_maps]
    found["sums"] = [m.sum().item() for m in output.grounding_maps]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_real_size_build(tmp_path: Path, record_property: Callable):
    """LLaMA-3.2-1B and ConvNeXt-L by shape. It takes 10 GB of memory, 4 GB of disk and about a minute."""

    def run(script: str, *arguments: str) -> str:
        command = [sys.executable, "-c", script, str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run(SAVE_REAL_SIZE)
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    try:
        found = {dtype: json.loads(run(BUILD_REAL_SIZE, dtype)) for dtype in ("float32", "bfloat16")}
    finally:
        shutil.rmtree(tmp_path)
    record_property("measured", json.dumps(found))
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        assert found[dtype]["parameters"] == {
            "LLaMA": 1_235_814_400,
            "cross-attention": 243_286_528,
            "ConvNeXt": 196_227_264,
            "projector": 7_344_128,
        }
        assert found[dtype]["size"] == width * sum(found[dtype]["parameters"].values())
        assert found[dtype]["peak"] <= 1.3 * found[dtype]["size"]
    assert found["float32"]["maps"] == [[1, 1, 24 * 24]] * 4
    assert found["float32"]["sums"] == up_to_rounding([1.0] * 4, 2 * 24 * 24 + 32 + 5)  # softmax, heads, words, sum
