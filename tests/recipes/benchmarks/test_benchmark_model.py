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
"""That the benchmark of the model compares like with like, and that its formulas count what is there."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from testing_utils import assert_close, length_of, redraw
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import LlamaForCausalLM

from recipes import benchmark_model
from recipes.benchmarks import model, parts, stages
from recipes.benchmarks.costs import cache_bytes, guidance_work, text_work, total, tower_work, weight_bytes
from recipes.benchmarks.subjects import (
    Decoding,
    LlavaStyle,
    MllamaStyle,
    Ours,
    Trained,
    bytes_of,
    eager_loss,
    llama_config,
    make_batch,
    make_model,
    make_size,
    make_trainer,
    trainer_loss,
    with_regions,
    without_guidance,
)
from recipes.benchmarks.timing import Machine, Row, make_result, peak_bytes, rows_table
from trainers import GuidedSFTTrainer, apply_stage, get_stage


SIZE = make_size("tiny")
CONFIG = SIZE.config
LENGTH = length_of(make_model(CONFIG))
CELLS = CONFIG.vision_config.num_image_tokens
LLM_TRAINED = get_stage(4, "age-vlm-lm")
SPEED = Path(__file__).parents[3] / "docs" / "speed"


@pytest.fixture(scope="module")
def trainer() -> GuidedSFTTrainer:
    return make_trainer(make_model(CONFIG))


@pytest.fixture(scope="module")
def subjects() -> dict[str, torch.nn.Module]:
    return {"AGE-VLM": Ours(CONFIG), "Mllama": MllamaStyle(CONFIG), "LLaVA": LlavaStyle(CONFIG)}


# The subjects


def test_guidance_is_all_that_differs(trainer: GuidedSFTTrainer):
    batch = make_batch(CONFIG, 2, 12)
    unguided = trainer_loss(trainer, without_guidance(batch))
    assert torch.equal(trainer_loss(trainer, batch, weight=0.0), unguided)
    guided = trainer_loss(trainer, batch)
    assert guided > unguided + 0.1
    assert_close(eager_loss(trainer, batch), guided, LENGTH)
    assert_close(trainer_loss(trainer, with_regions(batch, 16)), guided, LENGTH)  # the same region 16 times
    assert torch.equal(trainer_loss(trainer, without_guidance(batch)), unguided)  # all is as it was


def test_eager_weights_guide_as_region_masks_do():
    batch, model = make_batch(CONFIG, 2, 12), make_model(CONFIG)
    redraw(model)  # attention that is nearly even leaves gradients that are differences of what is nearly the same
    apply_stage(model, get_stage(3))
    trainer = make_trainer(model)
    gradients = []
    for loss in (trainer_loss, eager_loss):
        model.zero_grad()
        loss(trainer, batch).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    places = 2 * (CONFIG.vision_config.image_size // 4) ** 2  # of the stem, over which gradients are added up
    for name in gradients[0] | gradients[1]:
        assert_close(gradients[0][name], gradients[1][name], 2 * LENGTH + places, name)


@pytest.mark.parametrize("stage", [get_stage(3), LLM_TRAINED])
def test_architectures_train_the_same_parts(subjects: dict[str, torch.nn.Module], stage):
    counts = {}
    for name, subject in subjects.items():
        subject.apply_stage(stage)
        counts[name] = sum(p.numel() for p in subject.parameters() if p.requires_grad)
    layers = [
        subjects["AGE-VLM"].vlm.model.language_model.layers[n] for n in CONFIG.text_config.cross_attention_layers
    ]
    assert counts["Mllama"] == counts["AGE-VLM"] + 2 * len(layers)  # its gates
    assert counts["LLaVA"] == counts["AGE-VLM"] - sum(p.numel() for layer in layers for p in layer.parameters())


def test_mllamas_decoder_with_our_weights_has_our_loss():
    ours, mllama = Ours(CONFIG), MllamaStyle(CONFIG)
    mllama.vision_tower.load_state_dict(ours.vlm.model.vision_tower.state_dict())
    mllama.multi_modal_projector.load_state_dict(ours.vlm.model.multi_modal_projector.state_dict())
    decoder = mllama.language_model.model
    keys = decoder.load_state_dict(ours.vlm.model.language_model.state_dict(), strict=False)
    assert not keys.unexpected_keys and all(key.endswith("_gate") for key in keys.missing_keys)
    for layer in mllama.cross_attention():
        layer.cross_attn_attn_gate.data.fill_(20.0)  # whose tanh is 1
        layer.cross_attn_mlp_gate.data.fill_(20.0)
    batch = make_batch(CONFIG, 2, 12)
    assert_close(mllama.loss(batch), ours.loss(batch), LENGTH)
    with torch.no_grad():
        answers = []
        for subject in (ours, mllama):
            tokens = subject.image_tokens(batch["pixel_values"][:1])
            answers.append(subject.prefill(batch["input_ids"][:1], tokens)[0])
    assert_close(*answers, LENGTH)


def test_loss_is_the_models_own(subjects: dict[str, torch.nn.Module]):
    batch = make_batch(CONFIG, 2, 12)
    vlm = subjects["AGE-VLM"].vlm
    names = ("input_ids", "attention_mask", "pixel_values", "labels")
    expected = vlm(**{name: batch[name] for name in names}).loss
    assert_close(subjects["AGE-VLM"].loss(batch), expected, LENGTH)
    llava = subjects["LLaVA"]
    embeddings = llava.language_model.get_input_embeddings()(batch["input_ids"])
    embeddings = torch.cat([llava.image_tokens(batch["pixel_values"]), embeddings], dim=1)
    labels = torch.nn.functional.pad(batch["labels"], (CELLS, 0), value=-100)
    expected = llava.language_model(inputs_embeds=embeddings, labels=labels).loss
    assert_close(llava.loss(batch), expected, LENGTH)


def test_step_takes_a_gradient_and_leaves_the_weights(subjects: dict[str, torch.nn.Module]):
    subject, batch = subjects["AGE-VLM"], make_batch(CONFIG, 2, 12)
    trained = Trained(subject, lambda: subject.apply_stage(get_stage(3)))
    subject.requires_grad_(True)  # another subject had it
    before = {name: p.clone() for name, p in subject.named_parameters()}
    losses = [trained.step(lambda: subject.loss(batch)) for _ in range(2)]
    assert torch.equal(*losses)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in subject.named_parameters())
    assert len(trained.optimizer.state) == len(trained.parameters) < len(before)
    assert all(state["exp_avg"].any() for state in trained.optimizer.state.values())


@pytest.mark.parametrize("name", ["AGE-VLM", "Mllama", "LLaVA"])
def test_decoding_starts_from_the_same_cache(subjects: dict[str, torch.nn.Module], name: str):
    subject, ids = subjects[name], make_batch(CONFIG, 1, 12)["input_ids"]
    with torch.no_grad():
        tokens = subject.image_tokens(make_batch(CONFIG, 1, 12)["pixel_values"])
        logits, cache = subject.prefill(ids, tokens)
        decoding = Decoding(subject.decode, logits, cache, 4)
        found = decoding()
        assert decoding() == found
        for _ in range(5):  # without a cache
            logits, _ = subject.prefill(ids, tokens)
            ids = torch.cat([ids, logits.argmax(dim=-1, keepdim=True)], dim=1)
        logits, _ = subject.prefill(ids, tokens)
        assert_close(subject.decode(ids[:, -1:], cache), logits, LENGTH)
    assert ids[0, -4:].tolist() == found


# The formulas


KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
# torch 2.14 counts its attention kernels for GPUs alone.
CPU_KERNELS = {
    getattr(torch.ops.aten, KERNEL): lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    getattr(torch.ops.aten, f"{KERNEL}_backward"): lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
}


def flops(call) -> tuple[dict[str, int], object]:
    with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
        result = call()
    return {str(op).removeprefix("aten."): n for op, n in counter.get_flop_counts()["Global"].items()}, result


@pytest.mark.parametrize("batch_size, tokens, num_images, side", [(2, 12, 1, 96), (1, 5, 2, 96), (1, 7, 1, 160)])
def test_forward_takes_the_operations_of_the_formula(batch_size: int, tokens: int, num_images: int, side: int):
    model, batch = make_model(CONFIG), make_batch(CONFIG, batch_size, tokens, num_images, image_size=side)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    counted, _ = flops(lambda: model(**inputs, logits_to_keep=2))
    counted.pop("bmm", None)  # rotary angles
    works = tower_work(CONFIG, batch_size * num_images, get_stage(3), side)
    works += text_work(CONFIG, batch_size, tokens, num_images * (side // 32) ** 2, 2 * batch_size, get_stage(3))
    assert sum(counted.values()) == total(works)
    assert counted["convolution"] == total(works, parts=("tower",))


@pytest.mark.parametrize("stage", [get_stage(1), replace(LLM_TRAINED, vision="none")])
def test_backward_takes_the_operations_of_the_formula(stage):
    """Without the tower, for torch (2.15) does not count the backward pass of grouped convolutions right."""
    model, batch = make_model(CONFIG), make_batch(CONFIG, 2, 12)
    apply_stage(model, stage)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    loss = model(**inputs).logits.sum()
    counted, _ = flops(loss.backward)
    works = text_work(CONFIG, 2, 12, CELLS, 24, stage)
    products = [work for work in works if not work.is_attention]
    attentions = [work for work in works if work.is_attention]
    attention = counted.pop(f"{KERNEL}_backward")
    # the kernel computes the scores again
    assert attention == (total(attentions, step=True) - total(attentions)) // 4 * 5
    assert sum(counted.values()) == total(products, step=True) - total(products)


@pytest.mark.parametrize("num_regions", [1, 8, 9])
def test_guidance_takes_the_operations_of_the_formula(num_regions: int):
    model, batch = make_model(CONFIG), make_batch(CONFIG, 2, 12, num_regions=num_regions)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    plain, _ = flops(lambda: model(**inputs))
    inputs["query_masks"] = batch["query_masks"]
    by_maps, _ = flops(lambda: model(**inputs))
    by_masks, _ = flops(lambda: model(**inputs, region_masks=batch["region_masks"]))
    maps, masks = (total(guidance_work(CONFIG, 2, 12, CELLS, num_regions, maps)) for maps in (True, False))
    assert sum(by_maps.values()) - sum(plain.values()) == maps
    assert by_masks[KERNEL] - plain[KERNEL] == masks


@torch.no_grad()
@pytest.mark.parametrize("tokens", [3, 12])
def test_cache_has_the_bytes_of_the_formula(subjects: dict[str, torch.nn.Module], tokens: int):
    batch = make_batch(CONFIG, 1, tokens)
    for name, subject in subjects.items():
        _, cache = subject.prefill(batch["input_ids"], subject.image_tokens(batch["pixel_values"]))
        assert bytes_of(cache) == cache_bytes(CONFIG, tokens, CELLS, 4, name != "LLaVA")


def test_formulas_at_the_papers_size():
    paper = make_size("paper").config
    for tokens, expected in ((64, 0.325), (512, 0.603)):
        ratio = cache_bytes(paper, tokens, 576, 2) / cache_bytes(paper, tokens, 576, 2, cross_attention=False)
        assert round(ratio, 3) == expected
    assert round(weight_bytes(paper, 2, cross_attention=False) / weight_bytes(paper, 2), 2) == 0.84
    stage = get_stage(3)
    ours = total(text_work(paper, 1, 64, 576, 1, stage), parts=("text", "head"))
    llava = total(text_work(paper, 1, 640, 576, 1, stage, cross_attention=False), parts=("text", "head"))
    assert round(ours / llava, 2) == 0.13
    for tokens, expected in ((64, 0.46), (512, 0.60)):
        steps = [
            total(tower_work(paper, 16, s) + text_work(paper, 16, tokens, 576, 16 * tokens, s), step=True)
            for s in (stage, LLM_TRAINED)
        ]
        assert round(steps[0] / steps[1], 2) == expected


def test_decoding_reads_all_weights_but_the_visual_ones():
    llama = LlamaForCausalLM(llama_config(CONFIG))
    assert weight_bytes(CONFIG, 4, cross_attention=False) == 4 * sum(p.numel() for p in llama.parameters())
    text = make_model(CONFIG).model.language_model
    visual = [layer.cross_attn for layer in text.layers if hasattr(layer, "cross_attn")]
    unread = sum(p.numel() for a in visual for m in (a.k_proj, a.v_proj, a.k_norm) for p in m.parameters())
    assert weight_bytes(CONFIG, 4) == 4 * (sum(p.numel() for p in text.parameters()) - unread)


# The measures and tables


def test_peak_is_what_is_held_at_once():
    def one_after_another():
        for _ in range(3):
            torch.ones(1000)

    assert peak_bytes(one_after_another) == 4000
    assert peak_bytes(lambda: [torch.ones(1000) for _ in range(3)]) == 12000


def test_table():
    rows = [Row("a / b", 0.5, 0.25, 0.75, "<= 1", 0.125, "1 / 2 s"), Row("b", 2.0)]
    lines = rows_table(make_result("thing", rows, "A note.")).splitlines()
    assert lines[2] == "| a / b | 0.500 (0.250-0.750) | <= 1 | 0.125 | 1 / 2 s |"
    assert lines[3] == "| b | 2.000 |  |  |  |" and lines[-1] == "A note."


@pytest.mark.parametrize("command", benchmark_model.COMMANDS)
def test_every_command_makes_a_table(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    for module in (model, stages):
        monkeypatch.setattr(module, "measure_machine", lambda: Machine(1e11, 1e10))
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)  # takes half a minute
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["", command, "--size", "tiny", "--rounds", "1", "--out", str(out)])
    benchmark_model.main()
    result = json.loads(out.read_text())
    assert result["size"] == "tiny" and len(result["rows"]) >= 4
    assert all(row["value"] > 0 for row in result["rows"] if "text and the rest" not in row["what"])
    printed = capsys.readouterr().out
    assert all(f"| {row['what']} | {row['value']:.3f}" in printed for row in result["rows"])
    assert out.with_suffix(".png").exists() == (command == "growth")
    if command == "decode":
        assert "All modes write the same tokens: True." in printed


def test_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = ["", "architectures", "--size", "tiny", "--profile", "--out", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark_model.main()
    assert not (tmp_path / "result.json").exists()
    assert len(list(tmp_path.glob("profiles/*.trace.json"))) == 6
    longest = (tmp_path / "profiles/architectures_stage_3_AGE-VLM.txt").read_text()
    assert "aten::mm" in longest and "Self CPU" in longest


def test_losses_of_the_head_are_alike():
    head = parts.Head(CONFIG, 32, 2048)
    parts.add_fused_lm_head(head, outputs=("log_probs",))
    hidden, labels = torch.randn(2, 6, 32), torch.randint(2048, (2, 6))
    labels[:, 2] = -100
    fused = head(hidden, labels=labels, fused_lm_head=True).loss
    assert_close(fused, parts.ForCausalLMLoss(head(hidden), labels, 2048), 32 + 2048)


@pytest.mark.parametrize("path", sorted(SPEED.glob("*.json")), ids=lambda path: path.stem)
def test_the_page_shows_what_was_measured(path: Path):
    result = json.loads(path.read_text())
    assert result["size"] == ("paper" if path.stem.endswith("_gpu") else "small")
    assert rows_table(result) in SPEED.with_suffix(".md").read_text()
