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
"""AGE-VLM and its training beside plain training, LLaMA, Mllama's decoder and a LLaVA-style LLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, StaticCache

from recipes.benchmarks.costs import Work, cache_bytes, guidance_work, text_work, total, tower_work, weight_bytes
from recipes.benchmarks.subjects import (
    Decoding,
    LlavaStyle,
    MllamaStyle,
    Ours,
    Size,
    Trained,
    bytes_of,
    eager_loss,
    llama_config,
    make_batch,
    make_model,
    make_size,
    make_trainer,
    one_head_loss,
    trainer_loss,
    with_regions,
    without_guidance,
)
from recipes.benchmarks.timing import (
    DEVICE,
    DTYPE,
    Machine,
    Row,
    bytes_row,
    make_result,
    measure_machine,
    profile,
    seconds_in_turns,
    time_row,
)
from trainers import Stage, apply_stage, get_stage


STAGES = {"stage 3": get_stage(3), "stage 4, LLM trained": get_stage(4, "age-vlm-lm")}


# Training with guidance


def train(size: Size, rounds: int, profiles: Path | None = None) -> dict[str, Any]:
    """Every row guided, every word a query; the same weights, rows and shapes for all subjects."""
    config, rows = size.config, []
    model = make_model(config)
    trainer = make_trainer(model)
    batch = make_batch(config, size.batch_size, size.text_tokens)
    visual = config.vision_config.num_image_tokens
    losses = {"unguided": lambda: trainer_loss(trainer, without_guidance(batch))}
    for num_regions in (1, 16):
        guided = with_regions(batch, num_regions)
        for by in ("sum", "max"):
            name = f"{by}, K={num_regions}"
            losses[name] = lambda guided=guided, by=by: trainer_loss(trainer, guided, normalization=by)
        losses[f"sum, one head, K={num_regions}"] = lambda guided=guided: one_head_loss(trainer, guided)
    losses["eager weights, K=1"] = lambda: eager_loss(trainer, batch)
    targets = dict.fromkeys(("sum, K=1", "sum, one head, K=1"), ("<= 1.01 GPU, 1.03 small", "<= 1.01"))
    for stage_name, stage in STAGES.items():
        trained = Trained(model, lambda stage=stage: apply_stage(model, stage))
        steps = {n: lambda f=f, trained=trained: trained.step(f) for n, f in losses.items()}
        labels = size.batch_size * (size.text_tokens - 1)
        works = tower_work(config, size.batch_size, stage)
        works += text_work(config, size.batch_size, size.text_tokens, visual, labels, stage)
        if profiles:
            profile({f"train {stage_name} {n}": steps[n] for n in ("unguided", "sum, K=1", "max, K=1")}, profiles)
            continue
        seconds = seconds_in_turns(steps, rounds)
        memory = {name: trained.peak_bytes(f) for name, f in losses.items()}
        for name in list(losses)[1:]:
            time_target, memory_target = targets.get(name, ("<= 1.03", "<= 1.03"))
            extra = guidance_work(
                config, size.batch_size, size.text_tokens, visual, int(name.split("=")[1]), name[:3] != "sum"
            )
            limit = 1 + total(extra, step=True) / total(works, step=True)
            if name.startswith("eager"):
                time_target = memory_target = "report"
                limit = 1.0  # its maps come of what it computes anyway
            what = f"{stage_name}: {name} / unguided"
            rows.append(time_row(f"{what}, time", seconds[name], seconds["unguided"], time_target, limit))
            rows.append(bytes_row(f"{what}, memory", memory[name], memory["unguided"], memory_target, 1.0))
        fast, eager = seconds["sum, K=1"], seconds["eager weights, K=1"]
        rows.append(time_row(f"{stage_name}: sum, K=1 / eager weights, K=1, time", fast, eager, "report"))
        del trained, steps  # the optimizer's state
    shape = f"{size.batch_size} x {size.text_tokens} tokens, {visual} visual tokens"
    return make_result(f"training step, {shape}", rows)


# Architectures


def architectures(size: Size, rounds: int, profiles: Path | None = None) -> dict[str, Any]:
    """The same tower, projector, loss and trainable parts before three decoders."""
    config, rows, notes = size.config, [], []
    visual = config.vision_config.num_image_tokens
    subjects = {"AGE-VLM": Ours(config), "Mllama": MllamaStyle(config), "LLaVA": LlavaStyle(config)}
    batch = make_batch(config, size.batch_size, size.text_tokens)

    for stage_name, stage in STAGES.items():
        trained = {n: Trained(s, lambda s=s, stage=stage: s.apply_stage(stage)) for n, s in subjects.items()}
        losses = {name: lambda s=s: s.loss(batch) for name, s in subjects.items()}
        steps = {name: lambda t=t, f=losses[name]: t.step(f) for name, t in trained.items()}
        if profiles:
            profile({f"architectures {stage_name} {name}": step for name, step in steps.items()}, profiles)
            continue
        seconds = seconds_in_turns(steps, rounds)
        memory = {name: t.peak_bytes(losses[name]) for name, t in trained.items()}
        labels = size.batch_size * (size.text_tokens - 1)
        tower = total(tower_work(config, size.batch_size, stage), step=True)
        flops = {
            name: tower + total(decoder_work(size, name, size.batch_size, labels, stage), step=True)
            for name in subjects
        }
        for name, target in (("Mllama", "<= 1.00"), ("LLaVA", "report")):
            what, limit = f"{stage_name}: step / {name}", flops["AGE-VLM"] / flops[name]
            rows.append(time_row(f"{what}, time", seconds["AGE-VLM"], seconds[name], target, limit))
            limit = 1.0 if name == "Mllama" else None
            rows.append(bytes_row(f"{what}, memory", memory["AGE-VLM"], memory[name], target, limit))
        counts = {name: sum(p.numel() for p in t.parameters) for name, t in trained.items()}
        notes.append(f"Trainable, {stage_name}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))
        del trained, steps
    if profiles:
        return make_result("profiled", [])
    for subject in subjects.values():
        subject.eval()
    machine = measure_machine()
    for batch_size in dict.fromkeys((1, size.prefill_batch_size)):
        rows += prefill_rows(size, rounds, subjects, machine, batch_size)
    rows += decoding_rows(size, rounds, subjects) + cache_rows(size, subjects)
    return make_result(f"architectures, {size.text_tokens} text and {visual} visual tokens", rows, *notes)


def cuda_graph(call: Callable[[], Any]) -> Callable[[], None]:
    """Records what a call does on the GPU; returns what does it again."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def decoder_work(size: Size, name: str, batch_size: int, labels: int, stage: Stage) -> list[Work]:
    """What stands behind the tower. The LLaVA-style LLM has the visual tokens before the text."""
    visual, interleaved = size.config.vision_config.num_image_tokens, name != "LLaVA"
    tokens = size.text_tokens + (0 if interleaved else visual)
    return text_work(size.config, batch_size, tokens, visual, labels, stage, interleaved)


def decoder_bytes(size: Size, name: str) -> int:
    return weight_bytes(size.config, DTYPE.itemsize, name != "LLaVA")


@torch.no_grad()
def prefill_rows(size: Size, rounds: int, subjects: dict[str, Any], machine: Machine, batch_size: int) -> list[Row]:
    """The LLM's part with the visual tokens ready, and all from the pictures to the first token."""
    batch, stage = make_batch(size.config, batch_size, size.text_tokens), STAGES["stage 3"]
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    tokens = {name: s.image_tokens(pixels) for name, s in subjects.items()}
    llm = {
        name: total(decoder_work(size, name, batch_size, batch_size, stage), parts=("text", "head"))
        for name in subjects
    }
    least = {name: machine.seconds(llm[name], decoder_bytes(size, name)) for name in subjects}
    tower = total(tower_work(size.config, batch_size, stage))
    whole_flops = {name: tower + flops for name, flops in llm.items()}
    alone = {name: lambda n=name, s=s: s.prefill(ids, tokens[n]) for name, s in subjects.items()}
    whole = {
        name: lambda s=s: s.prefill(ids, s.image_tokens(pixels))[0].argmax(-1).tolist() for name, s in subjects.items()
    }
    kinds = [
        (f"prefill, batch {batch_size}, LLM part", alone, least, "<= 0.20 (CPU, batch 16)"),
        (f"first token, batch {batch_size}", whole, whole_flops, "report"),
    ]
    if DEVICE.type == "cuda":
        graphs = {name: cuda_graph(call) for name, call in alone.items()}
        kinds.append((f"prefill, batch {batch_size}, LLM part, CUDA graph", graphs, least, "<= 0.5 (batch 1)"))
    rows = []
    for what, calls, costs, llava_target in kinds:
        seconds = seconds_in_turns(calls, rounds)
        for name, target in (("Mllama", "report"), ("LLaVA", llava_target)):
            limit = costs["AGE-VLM"] / costs[name]
            rows.append(time_row(f"{what} / {name}", seconds["AGE-VLM"], seconds[name], target, limit))
    return rows


@torch.no_grad()
def decoding_rows(size: Size, rounds: int, subjects: dict[str, Any]) -> list[Row]:
    batch, visual = make_batch(size.config, 1, size.text_tokens), size.config.vision_config.num_image_tokens
    decoding, reads, rows = {}, {}, []
    for name, s in subjects.items():
        logits, cache = s.prefill(batch["input_ids"], s.image_tokens(batch["pixel_values"]))
        decoding[name] = Decoding(s.decode, logits, cache, size.new_tokens)
        cached = cache_bytes(size.config, size.text_tokens, visual, DTYPE.itemsize, name != "LLaVA")
        reads[name] = decoder_bytes(size, name) + cached
    seconds = seconds_in_turns(decoding, rounds)
    for name in ("Mllama", "LLaVA"):
        limit = reads["AGE-VLM"] / reads[name]
        row = time_row(f"decode, s per token / {name}", seconds["AGE-VLM"], seconds[name], "report", limit)
        rates = [size.new_tokens / float(np.median(seconds[n])) for n in ("AGE-VLM", name)]
        row.sides = f"{rates[0]:.4g} / {rates[1]:.4g} tokens/s"
        rows.append(row)
    return rows


@torch.no_grad()
def cache_rows(size: Size, subjects: dict[str, Any]) -> list[Row]:
    """Bytes of the keys and values after a prefill, and the same computed at the paper's size."""
    rows, paper = [], make_size("paper").config
    for tokens in (size.text_tokens, size.long_text_tokens):
        batch, found = make_batch(size.config, 1, tokens), {}
        for name in ("AGE-VLM", "LLaVA"):
            _, cache = subjects[name].prefill(batch["input_ids"], subjects[name].image_tokens(batch["pixel_values"]))
            found[name] = bytes_of(cache)
        visual = size.config.vision_config.num_image_tokens
        formula = [cache_bytes(size.config, tokens, visual, 1, interleaved) for interleaved in (True, False)]
        what = f"cache, {tokens} tokens / LLaVA"
        rows.append(bytes_row(what, found["AGE-VLM"], found["LLaVA"], "report", formula[0] / formula[1]))
    for tokens, target in ((64, "0.325"), (512, "0.603")):
        visual = paper.vision_config.num_image_tokens
        ours, llava = (cache_bytes(paper, tokens, visual, 2, interleaved) for interleaved in (True, False))
        rows.append(bytes_row(f"cache, {tokens} tokens / LLaVA, by the formula, paper's size", ours, llava, target))
    return rows


# Decoding


@torch.no_grad()
def decode(size: Size, rounds: int) -> dict[str, Any]:
    """One row, token by token after a prefill, by a plain LLaMA without image: eager and compiled."""
    config, rows, machine = size.config, [], measure_machine()
    visual, text_tokens = config.vision_config.num_image_tokens, size.text_tokens
    vlm = make_model(config).eval()
    llama = LlamaForCausalLM._from_config(llama_config(config), dtype=DTYPE).to(DEVICE, DTYPE).eval()
    batch = make_batch(config, 1, text_tokens)
    inputs = {
        "AGE-VLM": (vlm, {"input_ids": batch["input_ids"], "pixel_values": batch["pixel_values"]}),
        "LLaMA": (llama, {"input_ids": batch["input_ids"]}),
    }
    modes = {"dynamic cache": None, "static cache": None, "compiled": "default"}
    if DEVICE.type == "cuda":
        modes["CUDA graphs"] = "reduce-overhead"
    subjects, reads = {}, {}
    for name, (model, prompt) in inputs.items():
        for mode, compile_mode in modes.items():
            cache = None
            if mode != "dynamic cache":
                cache = StaticCache(config=model.config, max_cache_len=text_tokens + size.new_tokens)
            outputs = model(**prompt, cache=cache, use_cache=True, logits_to_keep=1)
            forward = model.forward
            if compile_mode is not None:
                forward = torch.compile(forward, fullgraph=True, mode=compile_mode)

            def step(input_ids: torch.Tensor, cache: Any, forward: Callable = forward) -> torch.Tensor:
                torch.compiler.cudagraph_mark_step_begin()
                return forward(input_ids=input_ids, cache=cache, use_cache=True).logits[:, -1]

            decoding = Decoding(step, outputs.logits[:, -1], outputs.cache, size.new_tokens)
            subjects[f"{name}, {mode}"] = decoding
        cached = cache_bytes(
            config, text_tokens + size.new_tokens // 2, visual if name == "AGE-VLM" else 0, DTYPE.itemsize
        )
        reads[name] = weight_bytes(config, DTYPE.itemsize, name == "AGE-VLM") + cached
    seconds = seconds_in_turns(subjects, rounds)
    limit = reads["LLaMA"] / reads["AGE-VLM"]
    for mode in modes:
        target = ">= 0.80" if mode in ("compiled", "CUDA graphs") else "report"
        ours, plain = seconds[f"AGE-VLM, {mode}"], seconds[f"LLaMA, {mode}"]
        row = time_row(f"tokens/s, {mode}: AGE-VLM / LLaMA", plain, ours, target, limit)
        row.sides = " / ".join(f"{size.new_tokens / float(np.median(s)):.4g}" for s in (ours, plain)) + " tokens/s"
        rows.append(row)
        least = machine.seconds(0, reads["AGE-VLM"]) * size.new_tokens
        target = ">= 0.95" if mode in ("compiled", "CUDA graphs") else "report"
        row = time_row(f"of the bandwidth's bound, {mode}: AGE-VLM", [least] * len(ours), ours, target, 1.0)
        rows.append(row)
    for mode in list(modes)[1:]:
        base = seconds["AGE-VLM, dynamic cache"]
        rows.append(
            time_row(f"AGE-VLM, {mode} / dynamic cache, s per token", seconds[f"AGE-VLM, {mode}"], base, "report")
        )
    answers = {name: subject() for name, subject in subjects.items()}
    alike = all(answers[f"AGE-VLM, {mode}"] == answers["AGE-VLM, dynamic cache"] for mode in modes)
    notes = [
        f"A token reads {reads['AGE-VLM'] / 1e6:.1f} MB (LLaMA {reads['LLaMA'] / 1e6:.1f} MB); a copy moves "
        f"{machine.bytes_per_s / 1e9:.1f} GB/s. All modes write the same tokens: {alike}."
    ]
    return make_result(f"decoding, batch 1, after {text_tokens} text and {visual} visual tokens", rows, *notes)
