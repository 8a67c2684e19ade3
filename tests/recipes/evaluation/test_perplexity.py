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
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from testing_utils import IMAGE_SIZE, llama_twin, tiny_model, tiny_processor, tiny_tokenizer, up_to_rounding
from tokenizers.processors import TemplateProcessing
from torch.nn.functional import cross_entropy
from vlm_families import FAMILIES

from modeling_agevlm.processing_agevlm import LLAMA_3_CHAT_TEMPLATE
from recipes import perplexity as command
from recipes.evaluation.perplexity import TEXT, negative_log_likelihood, perplexities
from recipes.scenes.texts import scene_texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A LLaMA; an AGE-VLM around it, with a larger vocabulary; the same after its LLM was trained."""
    folder = tmp_path_factory.mktemp("models")
    model, processor = tiny_model(), tiny_processor(IMAGE_SIZE)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = LLAMA_3_CHAT_TEMPLATE
    llama_twin(model).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    model.resize_token_embeddings(384)
    model.lm_head.weight.data[320:] = 1.0  # would take probability away
    for name in ("frozen", "trained"):
        if name == "trained":
            layer = model.model.language_model.layers[model.config.text_config.self_attention_layers[0]]
            layer.mlp.down_proj.weight.data *= 1.1
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("llama", "frozen", "trained")}


@pytest.mark.parametrize("text", [str(TEXT), list(scene_texts("test", 4))], ids=["file", "chats"])
def test_only_a_trained_llm_changes(folders: dict[str, str], text: str | list):
    models = [folders["frozen"], folders["trained"], folders["llama"] + "/"]  # the last is an LLM
    base, frozen, trained, again = perplexities(folders["llama"], models, text).values()
    assert frozen == again == base and base["change"] == 0
    assert trained["nll_per_token"] != base["nll_per_token"] and trained["tokens"] == base["tokens"] > 400
    assert trained["change"] == pytest.approx(trained["perplexity"] / base["perplexity"] - 1)
    assert base["perplexity"] == pytest.approx(math.exp(base["nll_per_token"]))


def test_a_chat_begins_once(folders: dict[str, str], tmp_path: Path):
    """Whether its template writes the beginning, the tokenizer puts it there, or both."""
    chats, expected = list(scene_texts("test", 4)), None
    for written, put in ((True, False), (False, True), (True, True)):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = LLAMA_3_CHAT_TEMPLATE if written else LLAMA_3_CHAT_TEMPLATE.partition("\n")[2]
        if put:
            bos = (tokenizer.bos_token, tokenizer.bos_token_id)
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
        tokenizer.save_pretrained(tmp_path)
        llama_twin(tiny_model()).save_pretrained(tmp_path)
        (scores,) = perplexities(str(tmp_path), [], chats).values()
        expected = expected or scores
        assert scores == expected


def test_bits_per_byte(folders: dict[str, str], tmp_path: Path):
    text = "Is there a cup in the image? Ja, ein Stück Käse."
    (tmp_path / "text.txt").write_text(text)
    (score,) = perplexities(folders["llama"], [], str(tmp_path / "text.txt")).values()
    tokens = tiny_tokenizer()(text)["input_ids"]
    scored = len(text.encode()) - len(tiny_tokenizer().decode(tokens[:1]))  # nothing predicts the first token
    assert score["tokens"] == len(tokens) - 1
    assert score["bits_per_byte"] == pytest.approx(score["nll_per_token"] * score["tokens"] / math.log(2) / scored)


@pytest.mark.parametrize("window", [4, 5, 7, 16, 64])
def test_windows(window: int):
    llama = llama_twin(tiny_model()).eval()
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(6, 300, (length,), generator=generator).tolist() for length in (2, 9, 17, 18)]
    expected = 0.0
    for tokens in documents:
        for n in range(1, len(tokens)):
            # the first window, a half after the other, that holds the token
            start = max(0, math.ceil((n - window + 1) / (window // 2))) * (window // 2)
            assert n - start >= min(n, window // 2)
            with torch.no_grad():
                logits = llama(input_ids=torch.tensor([tokens[start:n]])).logits[0, -1, :300]
            expected -= logits.double().log_softmax(0)[tokens[n]].item()
    assert negative_log_likelihood(llama, documents, 300, window) == up_to_rounding(expected)


def test_the_same_as_the_models_own_loss():
    llama = llama_twin(tiny_model())
    tokens = list(range(6, 40))
    loss = llama(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss.item()
    assert negative_log_likelihood(llama, [tokens], 320) / 33 == up_to_rounding(loss)


def command_line(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr("sys.argv", ["perplexity.py", *map(str, arguments)])
    command.main()


def test_command_line(folders: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    out = tmp_path / "runs" / "scores.json"
    command_line(monkeypatch, folders["frozen"], "--base", folders["llama"], "--out", out)
    lines = capsys.readouterr().out.splitlines()
    scores = json.loads(out.read_text())
    assert lines[0].startswith("| model | tokens |") and list(scores) == [folders["llama"], folders["frozen"]]
    assert lines[3].startswith(f"| {folders['frozen']} | {scores[folders['frozen']]['tokens']} |")
    assert lines[3].endswith("| +0.00% |") and scores[folders["llama"]] == scores[folders["frozen"]]


def test_bad_input_ends_in_one_sentence(folders: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def sentence(*arguments: Any) -> str:
        with pytest.raises(SystemExit) as stopped:
            command_line(monkeypatch, *arguments)
        assert "\n" not in str(stopped.value)
        return str(stopped.value)

    frozen, base = folders["frozen"], ("--base", folders["llama"])
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    assert f"{tmp_path}/empty.txt holds no text to score" in sentence(frozen, *base, "--text", tmp_path / "empty.txt")
    assert "bytes.txt is no text in UTF-8" in sentence(frozen, *base, "--text", tmp_path / "bytes.txt")
    assert "`--text` is a file or scenes" in sentence(frozen, *base, "--text", "scene")
    assert "are whole checkpoints of VLMs or LLMs" in sentence(tmp_path, *base)
    assert f"{tmp_path} cannot be loaded" in sentence(frozen, "--base", tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Alice"])
    tokenizer.save_pretrained(tmp_path / "other")
    llama_twin(tiny_model()).save_pretrained(tmp_path / "other")
    assert "has another tokenizer than" in sentence(frozen, "--base", tmp_path / "other")
    assert "has no chat template" in sentence(frozen, "--base", tmp_path / "other", "--text", "scenes")


@pytest.mark.parametrize(
    "family", ["LLaVA", "LLaVA-OneVision", "FastVLM", "Idefics3", "Qwen2.5-VL", "Gemma 3", "LFM2-VL"]
)
def test_other_vlms_are_scored_as_their_language_model(family: str, tmp_path: Path):
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    for name in ("before", "tuned"):
        if name == "tuned":
            model.get_output_embeddings().weight.data *= 1.1
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    text = tmp_path / "text.txt"
    text.write_text("Is there a cup in the image? Yes, two cups.")
    before, tuned = perplexities(str(tmp_path / "before"), [str(tmp_path / "tuned")], str(text)).values()
    tokens = torch.tensor([processor.tokenizer(text.read_text())["input_ids"]])
    with torch.no_grad():
        states = model.eval().get_decoder()(input_ids=tokens).last_hidden_state
        loss = cross_entropy(model.get_output_embeddings()(states)[0, :-1], tokens[0, 1:]).item()
    assert tuned["nll_per_token"] == up_to_rounding(loss) and tuned["tokens"] == tokens.shape[1] - 1
    assert before["nll_per_token"] != up_to_rounding(loss)
    assert tuned["change"] == pytest.approx(math.expm1(loss - before["nll_per_token"]), rel=1e-3)
