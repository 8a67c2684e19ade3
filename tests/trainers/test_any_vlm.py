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
"""Other VLMs of transformers, collated and trained as AGE-VLM is."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset, DatasetDict, IterableDataset
from pages import PAGES, blocks
from peft import LoraConfig
from testing_utils import box_mask, picture, region, row
from tiny_vlms import CHAT_TEMPLATE, tiny_idefics3, tiny_llava
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaNextConfig,
    MllamaConfig,
    PaliGemmaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from vlm_families import FAMILIES as VLM_FAMILIES

from trainers import GuidedSFTConfig, GuidedSFTTrainer, collator_for, guidance_loss
from trainers.any_vlm_collator import DataCollatorForAnyVisionLanguageModel


CPU = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
TURNS = CHAT_TEMPLATE.replace("    {{- ' ' }}", "    {{- '<|eot_id|>' if message['role'] == 'assistant' else ' ' }}")
FAMILIES = {"llava": (tiny_llava, "<|image|>\\n"), "idefics3": (tiny_idefics3, "<image>")}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    make, image = FAMILIES[request.param]
    folder = make(tmp_path_factory.mktemp(request.param))
    (Path(folder) / "chat_template.jinja").write_text(TURNS.replace("IMAGE\\n", image))
    return folder


def load(checkpoint: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    return AutoModelForImageTextToText.from_pretrained(checkpoint), AutoProcessor.from_pretrained(checkpoint)


ABSENT = {"mask": None, "image": 0, "text": "dog", "span": None, "message": 0}


def rows() -> list[dict[str, Any]]:
    """One picture with two regions, a denied dog, two pictures, and none."""
    return [
        row(regions=[region(text="red cup"), region(box_mask(rows=(30, 64)))]),
        row("Is there a dog?", "No.", images=[picture(80, 64, seed=1)], regions=[ABSENT]),
        row("A cup?", "Yes.", images=[picture(), picture(seed=2)], regions=[region(text="cup", image=1, message=0)]),
        row("A?", "B.", images=[]),
    ]


def check_processors_own(batch: dict[str, torch.Tensor], processor: ProcessorMixin) -> None:
    """That the batch of the rows has all that their processor makes of them, to the bit."""
    expected = processor.apply_chat_template(
        [with_images(one) for one in rows()],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    for name, values in expected.items():
        assert torch.equal(batch[name], values), name


def test_batches_are_the_processors(checkpoint: str):
    """Its tokens and its pictures, padded on the right; answers are labels; words and visual tokens are where they stand."""
    model, processor = load(checkpoint)
    batch = DataCollatorForAnyVisionLanguageModel(processor, config=model.config)(rows())
    check_processors_own(batch, processor)
    words = [processor.decode(labels[labels >= 0]).strip() for labels in batch["labels"]]
    assert words == [
        f"{answer}<|eot_id|>" for answer in ("Yes, there is a red cup on the table.", "No.", "Yes.", "B.")
    ]
    queries = [
        [processor.decode(ids[query]).strip() for query in of_row if query.any()]
        for ids, of_row in zip(batch["input_ids"], batch["query_masks"], strict=True)
    ]
    assert queries == [["red cup", "Yes, there is a red cup on the table."], ["dog"], ["cup"], []]
    visual = batch["input_ids"] == processor.image_token_id
    masks = batch["region_masks"]
    assert masks.shape == (4, 2, visual.shape[1] + 1) and not (masks[..., :-1].sum(dim=1)[~visual]).any()
    assert masks[..., -1].tolist() == [[0, 0], [1, 0], [0, 0], [0, 0]]
    assert 0 < masks[0, 0].sum() < masks[0, 1].sum() < visual[0].sum() and masks[1, 0].sum() == 1
    second = visual[2].nonzero()[visual[2].sum() // 2 :, 0]
    assert masks[2, 0].sum() == masks[2, 0, second].sum() > 0  # in the second picture alone
    model(**{name: values for name, values in batch.items() if name in processor.model_input_names})


def with_images(one: dict[str, Any]) -> list[dict[str, Any]]:
    user, assistant = one["messages"]
    content = [
        *({"type": "image", "image": image} for image in one["images"]),
        {"type": "text", "text": user["content"]},
    ]
    answer = [{"type": "text", "text": assistant["content"]}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def test_a_cut_through_a_picture_is_said(checkpoint: str):
    model, processor = load(checkpoint)
    collate = DataCollatorForAnyVisionLanguageModel(processor, config=model.config, max_length=12)
    with pytest.raises(
        ValueError, match="`max_length` \\(12\\) cuts through the visual tokens of image 0|it has no label"
    ):
        collate([row("A?", "B.")])
    processor.chat_template = None
    with pytest.raises(ValueError, match="Processor has no chat template"):
        DataCollatorForAnyVisionLanguageModel(processor, config=model.config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MllamaConfig(), "type 'mllama' reads its pictures by cross-attention"),
        (PaliGemmaConfig(), "type 'paligemma' reads its prompt in both directions"),
        (LlavaNextConfig(), "It is not known which visual tokens show what"),
    ],
)
def test_others_are_refused(checkpoint: str, config: PreTrainedConfig, message: str):
    _, processor = load(checkpoint)
    with pytest.raises(ValueError, match=message):
        DataCollatorForAnyVisionLanguageModel(processor, config=config)


# PaliGemma has no chats, Mllama no visual tokens among its words.
OF_WORDS = sorted(VLM_FAMILIES.keys() - {"PaliGemma", "Mllama"})  # whose pictures stand among their words


def make(family: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    torch.manual_seed(0)
    model, processor = VLM_FAMILIES[family]()
    framed = f"<|vision_start|>{processor.image_token}<|vision_end|>" if "Qwen" in family else processor.image_token
    processor.chat_template = TURNS.replace("IMAGE\\n", framed)
    return model, processor


def trainer_of(
    parts: tuple[PreTrainedModel, ProcessorMixin], out: Path, data: Any = None, **arguments: Any
) -> GuidedSFTTrainer:
    arguments = {"per_device_train_batch_size": 4, "max_steps": 1, **CPU} | arguments
    return GuidedSFTTrainer(
        model=parts[0],
        args=GuidedSFTConfig(output_dir=str(out), **arguments),
        processing_class=parts[1],
        train_dataset=Dataset.from_list(rows()) if data is None else data,
    )


@pytest.mark.parametrize("family", OF_WORDS)
def test_every_family_is_collated_and_guided(family: str, tmp_path: Path):
    """By its own processor's tokens, and in its own attention."""
    model, processor = make(family)
    run = trainer_of((model, processor), tmp_path)
    check_processors_own(run.data_collator(rows()), processor)
    run.train()
    logs = run.state.log_history[0]
    assert logs["guided_rows"] == 3 and logs["dropped_regions"] == 0 and logs["guidance_loss"] > 0
    # Attention of weights as they are drawn is next to even.
    assert logs["in_mask_mass"] == pytest.approx(logs["uniform_mass"], rel=0.1) and 0 < logs["uniform_mass"] < 0.5


@pytest.mark.parametrize("family", OF_WORDS)
def test_accumulated_batches_are_one(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of both losses, also where the model's own loss could not be told of the step's labels."""
    gradients = []

    def kept(run: GuidedSFTTrainer, model: torch.nn.Module) -> None:
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(GuidedSFTTrainer, "_clip_grad_norm", kept)
    for accumulated in (1, 4):
        order = {"train_sampling_strategy": "sequential", "gradient_accumulation_steps": accumulated}
        trainer_of(make(family), tmp_path, per_device_train_batch_size=4 // accumulated, **order).train()
    whole, parts = gradients
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item() + 1e-7)


@pytest.mark.parametrize("family", ["LLaVA", "LLaVA-NeXT", "SmolVLM", "Qwen2.5-VL", "Gemma 3"])
def test_what_the_tokenizer_puts_first_is_trained_with(family: str):
    """As it is asked with. A chat template that begins with it by itself has it once."""
    model, processor = make(family)
    tokenizer = processor.tokenizer
    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    for template in (processor.chat_template, "{{ bos_token }}" + processor.chat_template):
        processor.chat_template = template
        batch = collator_for(model.config, processor)(rows())
        check_processors_own(batch, processor)
        assert (batch["input_ids"] == first[1]).sum(dim=1).tolist() == [1] * 4
        queries = [processor.decode(ids[query[0]]) for ids, query in zip(batch["input_ids"], batch["query_masks"])]  # noqa: B905
        assert [query.strip() for query in queries] == ["red cup", "dog", "cup", ""]


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path: Path):
    model, processor = make("LLaVA")
    processor.tokenizer.pad_token = None
    batch = trainer_of((model, processor), tmp_path).data_collator(rows())
    assert processor.tokenizer.pad_token == processor.tokenizer.eos_token
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.tokenizer.eos_token_id).all()
    processor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["padding"] is None


def test_the_template_that_is_named_says_how_answers_end(tmp_path: Path):
    """The collator and the generation know it, as those of the processor itself."""
    model, processor = make("LLaVA")
    template = tmp_path / "turns.jinja"
    template.write_text(processor.chat_template.replace("<|eot_id|>", "<|end_header_id|>"))
    end = processor.tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    for before in (processor.chat_template, processor.chat_template.replace("<|eot_id|>", " "), None):
        model, processor = make("LLaVA")
        processor.chat_template = before
        run = trainer_of((model, processor), tmp_path, chat_template_path=str(template))
        labels = run.data_collator(rows())["labels"]
        assert [of_row[of_row >= 0][-1].item() for of_row in labels] == [end] * 4
        assert end in model.generation_config.eos_token_id
    bare = make("LLaVA")
    bare[1].chat_template = bare[1].chat_template.replace("<|eot_id|>", " ")
    labels = trainer_of(bare, tmp_path, eos_token="<|end_header_id|>").data_collator(rows())["labels"]
    assert [of_row[of_row >= 0][-1].item() for of_row in labels] == [end] * 4
    with pytest.raises(
        ValueError, match="^`chat_template_path` has to be a file that ends in .jinja, but is 'someone/model'"
    ):
        trainer_of(make("LLaVA"), tmp_path, chat_template_path="someone/model")


def test_float16_is_refused(tmp_path: Path):
    model, processor = make("LLaVA")
    with pytest.raises(ValueError, match="fit float16: guide a model that is loaded with `dtype` bfloat16 or float32"):
        trainer_of((model.half(), processor), tmp_path)
    trainer_of((model, processor), tmp_path, guidance_weight=0.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            DatasetDict({"train": Dataset.from_list([row()])}),
            "of `datasets`, such as its split 'train', not as a DatasetDict.",
        ),
        ([row()], "of `datasets`, not as a list."),
    ],
    ids=["splits", "list"],
)
def test_what_is_no_data_set_is_said(data: Any, message: str, tmp_path: Path):
    with pytest.raises(TypeError, match=re.escape(message)):
        trainer_of(make("LLaVA"), tmp_path, data)


def test_guidance_needs_regions(tmp_path: Path):
    plain = [row(), row()]
    untyped = IterableDataset.from_generator(rows)  # whose regions nobody knows before they are read
    transformed = Dataset.from_dict({"n": [0]}).with_transform(lambda batch: {"n": batch["n"]})  # nor of these
    for data in (Dataset.from_list(rows()), untyped, transformed):
        trainer_of(make("LLaVA"), tmp_path, data, max_steps=1)
    without = Dataset.from_list(plain)
    for data in (without, without.remove_columns("regions").to_iterable_dataset()):
        with pytest.raises(ValueError, match="no row of the data set has a region"):
            trainer_of(make("LLaVA"), tmp_path, data)
    trainer_of(make("LLaVA"), tmp_path, Dataset.from_list(plain), guidance_weight=0.0)


def test_a_window_that_reaches_no_region_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for window, warns in ((1000, False), (2, True)):
        model, processor = make("Gemma 3")
        for layer in model.model.language_model.layers:
            layer.self_attn.sliding_window = layer.self_attn.sliding_window and window
        model.config.text_config.sliding_window = window
        caplog.clear()
        trainer_of((model, processor), tmp_path, guidance_layers=[0]).train()
        assert ("none was guided" in caplog.text) == warns


def trainer(checkpoint: str, out: Path, **arguments: Any) -> GuidedSFTTrainer:
    model, processor = load(checkpoint)
    more = {name: arguments.pop(name) for name in ("peft_config",) if name in arguments}
    return GuidedSFTTrainer(
        model=model,
        args=GuidedSFTConfig(
            output_dir=str(out), **{"per_device_train_batch_size": 4, "max_steps": 1, **CPU} | arguments
        ),
        processing_class=processor,
        train_dataset=Dataset.from_list(rows()),
        **more,
    )


PARTS = "{% for p in m['content'] if p['type'] == 'image' %}<image>IMAGE{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}TEXT{% endfor %}"
LLAVA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}" + PARTS.replace("IMAGE", "{{ '\\n' }}") + "{% endfor %}"
)
LLAVA = LLAVA.replace("TEXT", "{{ p['text'] + ' ' }}") + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
ONEVISION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    + PARTS.replace("IMAGE", "")
    + "<|im_end|>{% endfor %}"
)
ONEVISION = ONEVISION.replace("TEXT", "{{ '\\n' + p['text'] }}")
ONEVISION += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def test_an_answer_that_stands_in_the_prompt_is_found():
    """As it does in the name of its role."""
    model, processor = VLM_FAMILIES["LLaVA-OneVision"]()
    processor.chat_template = ONEVISION.replace("<image>", processor.image_token).replace("<|im_end|>", "<|eot_id|>")
    messages = [{"role": "user", "content": "A or a?"}, {"role": "assistant", "content": "a"}]
    example = collator_for(model.config, processor).read_row(row(messages=messages))
    assert processor.tokenizer.decode([label for label in example.labels if label != -100]) == "a<|eot_id|>"


@pytest.mark.parametrize(
    ("family", "template", "expected"),
    [
        ("LLaVA", LLAVA, [" Yes, a cup.EOS", " No.EOS"]),
        ("LLaVA-OneVision", ONEVISION, ["Yes, a cup.<|im_end|>", "No.<|im_end|>"]),
    ],
)
def test_answers_of_published_templates_end(family: str, template: str, expected: list[str], tmp_path: Path):
    """LLaVA-1.5's template ends turns with nothing; LLaVA-OneVision's prompts with other white space than it writes."""
    model, processor = VLM_FAMILIES[family]()
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]}, replace_extra_special_tokens=False
    )
    model.resize_token_embeddings(len(tokenizer))
    processor.chat_template = template.replace("<image>", processor.image_token)
    said = ("Is there a cup?", "Yes, a cup.", "And a dog?", "No.")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said, strict=True)]
    asked = row(regions=[region(text="a cup", message=1)], messages=messages)
    example = collator_for(model.config, processor).read_row(asked)
    labels, turns = torch.tensor(example.labels), []
    for label, before in zip(labels.tolist(), [-100, *labels.tolist()]):  # noqa: B905
        if label != -100:
            turns = [*turns, []] if before == -100 else turns
            turns[-1].append(label)
    ends = [text.replace("EOS", tokenizer.eos_token) for text in expected]
    assert [tokenizer.decode(turn) for turn in turns] == ends
    assert (
        tokenizer.decode(torch.tensor(example.input_ids)[torch.from_numpy(example.query_masks[0])]).strip() == "a cup"
    )
    args = GuidedSFTConfig(output_dir=str(tmp_path), max_steps=1, **CPU)
    run = GuidedSFTTrainer(model, args, processing_class=processor, train_dataset=Dataset.from_list([asked]))
    run.train()
    end = tokenizer.convert_tokens_to_ids(ends[0].rpartition(".")[2])
    eos = model.generation_config.eos_token_id
    assert end in (eos if isinstance(eos, list) else [eos, tokenizer.eos_token_id])


# The templates of checkpoints on the Hub, which TRL keeps copies of; what is trained of an answer to "Is there a cup?"
OF_THE_HUB = {
    "gemma3": ("Gemma 3", "Yes, a cup.<end_of_turn>"),
    "gemma4_v5": ("Gemma 4", "Yes, a cup.<turn|>"),
    "idefics3": ("Idefics3", " Yes, a cup.<end_of_utterance>"),
    "lfm2_2_5_vl": ("LFM2-VL", "Yes, a cup.<|im_end|>"),
    "llava_next": ("LLaVA-NeXT", " Yes, a cup.</s>"),
    "qwen2_5_vl": ("Qwen2.5-VL", "Yes, a cup.<|im_end|>"),
    "qwen3_vl": ("Qwen3-VL", "Yes, a cup.<|im_end|>"),
    "qwen3_5_nothink": ("Qwen3.5", None),  # it writes earlier answers without the thoughts that it prompts for
    "smolvlm": ("SmolVLM", " Yes, a cup.<end_of_utterance>"),
}


@pytest.mark.parametrize("name", OF_THE_HUB)
def test_templates_of_the_hub_say_what_is_answered(name: str):
    file = Path(trl.__file__).parent / f"chat_templates/{name}.jinja"
    if not file.exists():
        pytest.skip("not among this TRL's templates")
    family, first = OF_THE_HUB[name]
    model, processor = VLM_FAMILIES[family]()
    tokenizer, processor.chat_template = processor.tokenizer, file.read_text(encoding="utf-8")
    special = sorted({*re.findall(r"<[|/]?[a-z_]+[|]?>", processor.chat_template)})
    tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
    said = ("Is there a cup?", "Yes, a cup.", "And a dog?", "No.")
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, said, strict=True)]
    regions = [region(text="a cup", message=1), ABSENT | {"message": 2}]
    example = collator_for(model.config, processor).read_row(row(messages=messages, regions=regions))
    labels = np.array(example.labels)
    turns = np.split(labels, np.flatnonzero(np.diff(labels == -100)) + 1)
    answers = [tokenizer.decode(turn) for turn in turns if turn[0] != -100]
    expected = [first, first.replace("Yes, a cup.", "No.")] if first else ["No.<|im_end|>"]
    assert answers == expected
    ids = np.array(example.input_ids)
    assert [tokenizer.decode(ids[query]).strip() for query in example.query_masks] == ["a cup", "dog"]
    assert (ids == model.config.image_token_id).sum() == len(example.region_masks[0][1])


@pytest.mark.parametrize("family", ["Gemma 3", "InternVL"])
def test_the_token_of_pictures_among_the_words_is_said(family: str):
    model, processor = VLM_FAMILIES[family]()
    processor.chat_template = TURNS.replace("IMAGE\\n", processor.image_token)
    token = processor.tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    with pytest.raises(ValueError, match=f"{token},? stands among its words"):
        collator_for(model.config, processor).read_row(row(f"Is {token} a word?", "No."))


def test_what_other_pictures_would_change_is_not_cut_off():
    """LLaVA-OneVision cuts a picture into tiles only where a row has no other."""
    model, processor = VLM_FAMILIES["LLaVA-OneVision"]()
    processor.chat_template = TURNS.replace("IMAGE\\n", processor.image_token)
    messages = [{"role": "user", "content": "<image>A cup?"}, {"role": "assistant", "content": "Yes."}]
    row = {"images": [picture(), picture(seed=1)], "messages": messages * 2}
    length = len(collator_for(model.config, processor).read_row(row).input_ids)
    with pytest.raises(
        ValueError, match=r"cuts off image 1, without which the others are \d+ visual tokens instead of"
    ):
        collator_for(model.config, processor, max_length=length // 2).read_row(row)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    "family",
    ["LLaVA", "LLaVA-OneVision", "LLaVA-NeXT", "Gemma 3", "Gemma 4", "InternVL", "Qwen2.5-VL", "Qwen3.5", "SmolVLM"],
)
def test_training_goes_on_with_the_saved_weights(family: str, sharded: bool, tmp_path: Path):
    """Also of families whose tensors are called otherwise in a file: as it goes on, and for the best model in the end."""
    model, processor = VLM_FAMILIES[family]()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "checkpoint-1", max_shard_size="50KB" if sharded else "1GB")
    assert (tmp_path / "checkpoint-1/model.safetensors.index.json").exists() == sharded
    framed = f"<|vision_start|>{processor.image_token}<|vision_end|>" if "Qwen" in family else processor.image_token
    processor.chat_template = TURNS.replace("IMAGE\\n", framed)
    args = GuidedSFTConfig(output_dir=str(tmp_path), **CPU)
    run = GuidedSFTTrainer(model=model, args=args, processing_class=processor, train_dataset=Dataset.from_list(rows()))
    run.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    for load_weights in (lambda: run._load_from_checkpoint(run.state.best_model_checkpoint), run._load_best_model):
        for parameter in model.parameters():
            parameter.data.normal_()
        load_weights()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_the_loss_is_that_of_its_own_maps(checkpoint: str, tmp_path: Path):
    """As eager attention gives them, over both accumulated batches."""
    expected = trainer(checkpoint, tmp_path)
    expected.model.set_attn_implementation("eager")
    model, batch = expected.model.eval(), expected.data_collator(rows())
    inputs = {n: v for n, v in batch.items() if n in expected.processing_class.model_input_names}
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True, use_cache=False).attentions
    queries, masks = batch["query_masks"].float(), batch["region_masks"]
    visual = (batch["input_ids"] == expected.processing_class.image_token_id)[:, None]
    losses, inside = [], []
    for attention in attentions:
        maps = queries / queries.sum(dim=-1, keepdim=True).clamp(min=1) @ attention.mean(dim=1)
        on = maps * visual
        shown = guidance_loss((on,), masks[..., :-1])
        off = 1 - on[1, 0].sum()
        losses.append((3 * shown.loss - off.log()) / 4)
        inside.append(shown.in_mask_mass.sum() / 3)
        assert shown.is_guided.sum() == 3

    trained = trainer(
        checkpoint,
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    trained.train()
    logs = trained.state.log_history[0]
    assert logs["guidance_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-3)
    assert logs["in_mask_mass"] == pytest.approx(torch.stack(inside).mean().item(), rel=1e-3)
    assert logs["guided_rows"] == 3 and logs["dropped_regions"] == 0 and 0 < logs["sink_mass"] < 1


@pytest.mark.parametrize(
    "way", [{}, {"guidance_layers": [1], "guidance_heads": [2], "activation_checkpointing": True}]
)
def test_guidance_moves_attention(checkpoint: str, tmp_path: Path, way: dict[str, Any]):
    """And what is saved is a checkpoint as it was, which anybody loads."""
    moved = {}
    for weight in (0.0, 3.0):
        run = trainer(
            checkpoint, tmp_path / str(weight), guidance_weight=weight, max_steps=6, learning_rate=1e-2, **way
        )
        run.train()
        logs = [log for log in run.state.log_history if "in_mask_mass" in log]
        moved[weight] = logs[-1]["in_mask_mass"] - logs[0]["in_mask_mass"]
    assert moved[3.0] > moved[0.0] + 0.05
    run.save_final_model()
    config = json.loads((tmp_path / "3.0/config.json").read_text())
    assert "guided" not in json.dumps(config)
    again, trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "3.0"), run.model.eval()
    batch = run.data_collator(rows()[:1])
    inputs = {n: v for n, v in batch.items() if n in run.processing_class.model_input_names}
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(**inputs).logits, trained(**inputs).logits)


def test_adapters_are_trained_alone(checkpoint: str, tmp_path: Path):
    run = trainer(checkpoint, tmp_path, peft_config=LoraConfig(target_modules=["q_proj", "k_proj"]), max_steps=2)
    run.train()
    assert run.state.log_history[0]["guidance_loss"] > 0
    moved = {n for n, p in run.model.named_parameters() if "lora_B" in n and p.abs().sum() > 0}
    assert any("language_model" in name or "text_model" in name for name in moved)


def test_adapters_of_before_do_not_stay_beside_the_merged_model(checkpoint: str, tmp_path: Path):
    """Which would be loaded with them, a second time."""
    run = trainer(checkpoint, tmp_path, learning_rate=0.1, peft_config=LoraConfig(target_modules=["q_proj"]))
    run.train()
    run.save_model()
    assert (tmp_path / "adapter_config.json").exists()
    run.save_final_model()
    assert not list(tmp_path.glob("adapter_*"))
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    merged = run.unwrapped_model().state_dict()
    assert merged.keys() == saved.keys() and all(torch.equal(saved[name], merged[name]) for name in saved)


def test_maps_are_not_to_be_had(checkpoint: str, tmp_path: Path):
    with pytest.raises(ValueError, match="`guidance_normalization='max'` needs maps, which only an AGE-VLM gives"):
        trainer(checkpoint, tmp_path, guidance_normalization="max")


def test_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What docs/other_vlms.md shows, with a checkpoint of this size and rows that lie in files."""
    folder = tiny_idefics3(tmp_path / "tiny")
    (Path(folder) / "chat_template.jinja").write_text(TURNS.replace("IMAGE\\n", "<image>"))
    monkeypatch.chdir(tmp_path)
    picture().save("cup.png")
    lines = [json.dumps(row(images=["cup.png"], regions=[region(text="red cup", span=None)])) for _ in range(4)]
    Path("rows.jsonl").write_text("\n".join(lines))
    (block,) = blocks(PAGES["docs/other_vlms.md"], "python")
    for shown, here in {
        '"HuggingFaceTB/SmolVLM-256M-Instruct"': repr(folder),
        "guidance_layers=[8, 12]": f"guidance_layers=[0, 2], max_steps=1, **{CPU}",
    }.items():
        assert shown in block
        block = block.replace(shown, here)
    run: dict[str, Any] = {}
    exec(block, run)
    assert run["trainer"].state.log_history[0]["guided_rows"] > 0
