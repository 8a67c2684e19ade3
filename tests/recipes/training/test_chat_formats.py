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
"""Whatever chat format an LLM has: the text that training reads is the one that every way to ask makes."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from chat_formats import FORMATS, Format, save_llm, tokenizer_of
from jinja2 import TemplateError
from test_init import save_tower
from testing_utils import picture, region
from transformers import (
    GenerationConfig,
    ImageTextToTextPipeline,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmImageProcessor, AgeVlmProcessor
from recipes.answering.answers import prompts
from recipes.scenes.evaluation import answer_all
from recipes.serving.chat_request import parse
from recipes.serving.errors import RequestError
from recipes.serving.limits import Limits
from recipes.serving.prompts import PromptMaker
from recipes.training.arguments import PartsArguments
from recipes.training.parts import build
from trainers import BrokenRowError, DataCollatorForGuidedVisionLanguageModeling
from trainers.turns import end_generation_with_turns, end_of_turn


QUESTION, SYSTEM, ANSWER = "Is there a cup?", {"role": "system", "content": "Be brief."}, "Yes."


class Case(NamedTuple):
    """A format, the processor that a stage trains with, and what is loaded from the folder that it was saved to."""

    given: Format
    trained: AgeVlmProcessor
    model: PreTrainedModel
    processor: AgeVlmProcessor


@pytest.fixture(scope="module", params=FORMATS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("format")
    vision, text = save_tower(folder / "convnext"), save_llm(folder / "llm", request.param)
    parts = PartsArguments(vision=str(vision), text=str(text), image_size=64, cross_attention_layers=[1])
    model, trained = build(parts)
    model.save_pretrained(folder / "saved")
    trained.save_pretrained(folder / "saved")
    model = AgeVlmForConditionalGeneration.from_pretrained(folder / "saved").eval()
    return Case(FORMATS[request.param], trained, model, AgeVlmProcessor.from_pretrained(folder / "saved"))


def user(*parts: str, as_words: bool = False) -> dict[str, Any]:
    """What a user says; "" is the picture."""
    if as_words:
        return {"role": "user", "content": "".join(part or "<image>\n" for part in parts)}
    content = [{"type": "text", "text": part} if part else {"type": "image", "image": picture()} for part in parts]
    return {"role": "user", "content": content}


def assistant(words: str = ANSWER) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


def read(processor: AgeVlmProcessor, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Tokens and labels of a row in training."""
    example = DataCollatorForGuidedVisionLanguageModeling(processor).read_row(
        {"images": [picture()], "messages": messages}
    )
    return example.input_ids, example.labels


def asked(case: Case, chat: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """The tokens of a prompt, by who makes it."""
    model, processor = case.model, case.processor
    found, seen = {}, []
    as_tensors = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    found["chat"] = processor.apply_chat_template(chat, **as_tensors)["input_ids"][0].tolist()
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    found["text"] = processor(images=picture(), text=text, return_tensors="pt")["input_ids"][0].tolist()
    batch = processor(images=[[picture()], []], text=[text, "Plain words."], padding=True, return_tensors="pt")
    found["batch"] = batch["input_ids"][0].tolist()
    found["recipes"] = prompts(processor, [chat])["input_ids"][0].tolist()

    def generate(input_ids: torch.LongTensor, **kwargs: Any) -> torch.LongTensor:
        seen.append(input_ids[0].tolist())
        return input_ids

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", generate)
        pipe = ImageTextToTextPipeline(model=model, processor=processor)
        pipe(text=chat)
        pipe(images=picture(), text=text)
        found |= {"pipeline": seen[0], "pipeline of text": seen[1]}
        if chat == [user("", QUESTION)]:
            answer_all(model, processor, [picture()], [QUESTION])
            found["scenes"] = seen[2]

    file = io.BytesIO()
    picture().save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    messages = [
        {"role": m["role"], "content": m["content"] if isinstance(m["content"], str) else [
            part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": url}} for part in m["content"]
        ]}
        for m in chat
    ]  # fmt: skip
    request = parse(json.dumps({"messages": messages}).encode())
    inputs, _, _ = PromptMaker(model, processor, Limits()).make(request, [file.getvalue()])
    return found | {"server": inputs["input_ids"][0].tolist()}


def assert_one_text(case: Case, chat: list[dict[str, Any]], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a chat is this text everywhere, and that training goes on behind it with the answer."""
    tokenizer, given = case.trained.tokenizer, case.given
    prompt = tokenizer(expected, add_special_tokens=False)["input_ids"]
    for name, ids in asked(case, chat, monkeypatch).items():
        assert ids == prompt, name
    bos = tokenizer.bos_token_id
    assert (prompt[0] == bos) == expected.startswith(given.roles["bos_token"])
    assert not given.puts_beginning or (prompt[0] == bos and prompt[1] != bos)
    for processor in (case.trained, case.processor):
        ids, labels = read(processor, [*chat, assistant()])
        assert ids == tokenizer(expected + given.after, add_special_tokens=False)["input_ids"]
        assert ids[: len(prompt)] == prompt and labels[len(prompt) - 1] == -100
        # What is to be written behind the prompt, to the end of the turn.
        answer = tokenizer(expected + given.after.rstrip(), add_special_tokens=False)["input_ids"][len(prompt) :]
        assert labels[len(prompt) :][: len(answer)] == answer
        assert all(label == -100 for label in labels[len(prompt) + len(answer) :])
        assert answer[-1] == tokenizer.convert_tokens_to_ids(given.end)


@pytest.mark.parametrize("with_system", [False, True])
def test_one_question(case: Case, with_system: bool, monkeypatch: pytest.MonkeyPatch):
    before = case.given.system if with_system else case.given.alone
    if before is None:
        pytest.skip("the format knows no system")
    chat = [SYSTEM] * with_system + [user("", QUESTION)]
    expected = f"{before}{case.processor.image_token}{QUESTION}{case.given.between}"
    assert_one_text(case, chat, expected, monkeypatch)
    # As other trainers write it
    row = [SYSTEM] * with_system + [user("", QUESTION, as_words=True), assistant()]
    assert read(case.trained, row) == read(case.trained, [*chat, assistant()])


def test_two_turns(case: Case, monkeypatch: pytest.MonkeyPatch):
    given, image = case.given, case.processor.image_token
    chat = [user(QUESTION, ""), assistant(), user("And there?")]
    # The second turn begins as the first one does, after what only the first text has.
    again = given.alone[given.alone.rindex(given.again) :] if given.again else ""
    expected = f"{given.alone}{image}{QUESTION}{given.between}{given.after}{again}And there?{given.between}"
    assert_one_text(case, chat, expected, monkeypatch)
    _, labels = read(case.trained, [*chat, assistant("No.")])
    written = case.trained.tokenizer.decode([label for label in labels if label != -100], skip_special_tokens=True)
    assert written.replace(" ", "") == "Yes.No."


def test_words_are_the_same_as_a_string_and_as_parts(case: Case):
    """Also where there is space around them, which belongs to no message."""
    chats = [
        [user(""), assistant(" Yes. \n"), user(" And there?\n")],
        [
            user(""),
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
            user("And there?", as_words=True),
        ],
    ]
    first, second = (case.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats)
    assert first == second
    messages = [[*chat, assistant(words)] for chat, words in zip(chats, (ANSWER, f"\n{ANSWER} "), strict=True)]
    assert read(case.trained, messages[0]) == read(case.trained, messages[1])


def test_words_are_found_wherever_the_format_puts_them(case: Case):
    """The system's, too, which some formats fold into a turn of the user."""
    has_system = case.given.system is not None
    first = user("The cup: ", "", " a cup is not a cupboard, is it a Cup?")
    messages = [SYSTEM] * has_system + [first, assistant("A cup.")]
    n = int(has_system)
    regions = [region(text="Cup", message=n), region(text="cup", message=n + 1), region(message=n + 1)]
    regions += [region(message=0)] * has_system
    collate = DataCollatorForGuidedVisionLanguageModeling(case.trained)
    example = collate.read_row({"images": [picture()], "messages": messages, "regions": regions})
    found = [case.trained.tokenizer.decode([i for i, m in zip(example.input_ids, mask, strict=True) if m])
             for mask in example.query_masks]  # fmt: skip
    assert [words.strip() for words in found] == ["Cup", "cup", "A cup."]
    assert example.dropped_regions == has_system  # it stands before the picture


def test_generation_ends_where_training_ends(case: Case, monkeypatch: pytest.MonkeyPatch):
    """With a model that writes the end of a turn as soon as it may."""
    end = case.processor.tokenizer.convert_tokens_to_ids(case.given.end)
    assert end_of_turn(case.processor) == end in case.model.generation_config.eos_token_id
    assert end in case.processor.tokenizer.all_special_ids and end != case.processor.tokenizer.pad_token_id
    inputs = prompts(case.processor, [[user("", QUESTION)]])

    def write(module: torch.nn.Module, given: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor(end), logits.shape[-1]).float().expand_as(logits)

    hook = case.model.lm_head.register_forward_hook(write)
    output = case.model.generate(**inputs, max_new_tokens=5, do_sample=False)
    hook.remove()
    assert output[0, inputs["input_ids"].shape[1] :].tolist() == [end]
    assert case.processor.decode(output[0, -1:], skip_special_tokens=True) == ""


# What only some formats do


def build_of(
    name: str, folder: Path, change: Callable[[PreTrainedTokenizerFast], None] = lambda tokenizer: None
) -> tuple:
    text = save_llm(folder / "llm", name)
    tokenizer = tokenizer_of(name)
    change(tokenizer)
    tokenizer.save_pretrained(text)
    vision = save_tower(folder / "convnext")
    return build(PartsArguments(vision=str(vision), text=str(text), image_size=64, cross_attention_layers=[1]))


def processor_of(name: str) -> AgeVlmProcessor:
    tokenizer = tokenizer_of(name)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|image|>"], "pad_token": "<|pad|>"})
    return AgeVlmProcessor(AgeVlmImageProcessor(size={"height": 64, "width": 64}), tokenizer)


def test_a_system_that_the_format_does_not_know_is_refused_alike(tmp_path: Path):
    model, processor = build_of("mistral", tmp_path)
    chat = [SYSTEM, user(QUESTION)]
    with pytest.raises(TemplateError, match="Roles have to alternate"):
        processor.apply_chat_template(chat)
    with pytest.raises(BrokenRowError, match="Roles have to alternate"):
        DataCollatorForGuidedVisionLanguageModeling(processor)([{"images": [], "messages": [*chat, assistant()]}])
    request = parse(json.dumps({"messages": chat}).encode())
    with pytest.raises(RequestError, match="Roles have to alternate"):
        PromptMaker(model, processor, Limits()).make(request, [])


def test_only_what_was_prompted_for_is_trained_on():
    """Where the system's words move on with the chat, the first answer does not stand behind the prompt that it had."""
    processor = processor_of("mistral with a system")
    chat = [SYSTEM, user("", QUESTION), assistant(), user("And there?"), assistant("No.")]
    ids, labels = read(processor, chat)
    prompt = prompts(processor, [chat[:-1]])["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt and labels[: len(prompt)] == [-100] * len(prompt)
    assert processor.decode(labels[len(prompt) :]) == "No.</s>"
    assert read(processor, chat[:3])[1][-1] == end_of_turn(processor)


def test_no_token_lies_across_the_end_of_a_prompt():
    """Mistral's answers follow the bracket of the prompt at once, and there is a token "](", which no prompt ends with."""
    processor = processor_of("mistral")
    chat = [user("", QUESTION), assistant("(A) Yes."), user("And there?"), assistant("(B) No.")]
    joined = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    bracket, paren, both = processor.tokenizer.convert_tokens_to_ids(["]", "(", "]("])
    assert joined.count(both) == 2
    ids, labels = read(processor, chat)
    assert both not in ids and processor.decode(ids) == processor.decode(joined)
    places = [n for n in range(1, len(ids)) if ids[n - 1 : n + 1] == [bracket, paren]]
    assert [labels[n - 1 : n + 1] for n in places] == [[-100, paren]] * 2
    prompt = prompts(processor, [chat[:1]])["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt and labels[len(prompt)] == paren


def legacy_tokenizer() -> LlamaTokenizer:
    """LLaMA-2's own, as folders that say `legacy` have it: a space comes behind every special token."""
    letters = ["<unk>", "<s>", "</s>", "\u2581", "\n", *"<|>uservaitn?AcupY."]
    vocabulary = {letter: n for n, letter in enumerate(dict.fromkeys(letters))}
    tokenizer = LlamaTokenizer(vocabulary, [], legacy=True, add_bos_token=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|image|>"], "pad_token": "<|pad|>"})
    tokenizer.chat_template = FORMATS["tinyllama"].template
    return tokenizer


def test_a_tokenizer_is_loaded_as_it_was_saved(tmp_path: Path):
    processor = AgeVlmProcessor(AgeVlmImageProcessor(), legacy_tokenizer())
    processor.save_pretrained(tmp_path)
    again = AgeVlmProcessor.from_pretrained(tmp_path)
    texts = ["<|user|>\nA cup?</s>\n<|user|>", "<s>A cup?</s>A cup", "A cup"]
    assert again(text=texts)["input_ids"] == processor(text=texts)["input_ids"]
    assert again.tokenizer.convert_ids_to_tokens(again(text=texts[1])["input_ids"][0])[:3] == ["<s>", "\u2581", "A"]


def test_transformers_still_saves_it_otherwise(tmp_path: Path):
    """When this fails, the processor need not put `legacy` among what is saved."""
    tokenizer = legacy_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = LlamaTokenizer.from_pretrained(tmp_path)
    assert again("<s>A cup")["input_ids"] != tokenizer("<s>A cup")["input_ids"]


def test_named_templates_without_a_default_are_refused():
    tokenizer = tokenizer_of("several templates")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|image|>"]})
    del tokenizer.chat_template["default"]
    with pytest.raises(
        ValueError, match="None of the chat templates 'rag', 'tool_use' is named 'default'. Pass the one"
    ):
        AgeVlmProcessor(AgeVlmImageProcessor(), tokenizer)


def test_named_templates_are_kept(tmp_path: Path):
    """Each writes the beginning of the text, and the default is the one that is meant."""
    tokenizer = tokenizer_of("several templates")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|image|>"]})
    tokenizer.chat_template = None
    templates = {"default": "A {{ messages[0]['content'] }}", "loud": "{{ bos_token }}B {{ messages[0]['content'] }}"}
    AgeVlmProcessor(AgeVlmImageProcessor(), tokenizer, chat_template=templates).save_pretrained(tmp_path)
    again = AgeVlmProcessor.from_pretrained(tmp_path)
    assert again.chat_template == templates | {"default": "{{- bos_token }}" + templates["default"]}
    chat = [{"role": "user", "content": "cup"}]
    assert again.apply_chat_template(chat) == "<s>A cup"
    assert again.apply_chat_template(chat, chat_template="loud") == "<s>B cup"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}",
            "turn with '', which is no",
        ),
        ("{% for m in messages %}{{ m['content'] + '<end>' }}{% endfor %}", "turn with '<end>', which is no special"),
        ("{{ raise_exception('not so') }}", "cannot be used: not so."),
    ],
)
def test_a_format_without_an_end_is_refused(template: str, sentence: str, tmp_path: Path):
    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.chat_template = template

    with pytest.raises(ValueError, match=sentence) as raised:
        build_of("tinyllama", tmp_path, change)
    assert len(str(raised.value).splitlines()) == 1


def test_an_end_that_was_only_added_is_no_part_of_answers(tmp_path: Path):
    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.add_tokens(["<turn>"])
        tokenizer.chat_template = tokenizer.chat_template.replace("eos_token", "'<turn>'")

    model, processor = build_of("zephyr in bytes", tmp_path, change)
    processor.save_pretrained(tmp_path / "saved")
    tokenizer = AgeVlmProcessor.from_pretrained(tmp_path / "saved").tokenizer
    end = tokenizer.convert_tokens_to_ids("<turn>")
    assert (
        end in model.generation_config.eos_token_id and tokenizer.eos_token_id in model.generation_config.eos_token_id
    )
    assert end != tokenizer.unk_token_id and tokenizer.decode([end], skip_special_tokens=True) == ""


def test_a_checkpoint_from_before_is_given_its_end():
    """Those that were built when only the tokenizer's own end counted."""
    processor = processor_of("chatml on llama-2")
    end, eos = end_of_turn(processor), processor.tokenizer.eos_token_id
    for given, expected in ((None, [end]), (eos, [eos, end]), ([eos], [eos, end]), ([end, eos], [end, eos])):
        config = GenerationConfig(eos_token_id=given)
        end_generation_with_turns(config, processor)
        assert config.eos_token_id == expected


def test_a_checkpoint_from_before_is_given_its_beginning(tmp_path: Path):
    """Its template left the beginning to the tokenizer, which training did not ask."""
    processor = processor_of("tinyllama")
    assert processor.chat_template.startswith("{{- bos_token }}")
    old = processor.chat_template.removeprefix("{{- bos_token }}")
    again = AgeVlmProcessor(processor.image_processor, processor.tokenizer, chat_template=old)
    assert again.chat_template == processor.chat_template
    again.save_pretrained(tmp_path)
    assert AgeVlmProcessor.from_pretrained(tmp_path).chat_template == processor.chat_template
