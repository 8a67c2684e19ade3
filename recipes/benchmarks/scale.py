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
"""What the paper's training costs in time, memory and data on GPUs."""

from collections.abc import Sequence

import torch

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration
from modeling_agevlm.configuration_agevlm import default_cross_attention_layers
from recipes.benchmarks.costs import text_work, total, tower_work
from recipes.terminal.tables import markdown
from trainers import Stage, apply_stage, get_stage


PEAK = 989e12  # bf16 operations per second of an H100 or H200 without sparsity
UTILIZATION = {64: 0.18, 512: 0.31}  # share of the peak by text length, measured: docs/speed/stages_gpu.json
ROWS_PER_GPU = 16  # appendix C
PICTURE_BYTES = 110e3  # assumed: a JPEG of 640 x 480
MASK_ROWS_PER_SECOND = 3.0  # assumed, of Florence-2 and SAM on one GPU
NVLINK, NETWORK = 450e9, 50e9  # bytes per second and GPU in a machine, and between machines (400 Gb/s)
# name: (stage, rows, text tokens of a row)
STAGES = {
    "1": (get_stage(1), 2.5e6, 64),
    "2": (get_stage(2), 2.5e6, 64),
    "3": (get_stage(3), 2.5e6, 64),
    "4": (get_stage(4), 10e6, 512),
    "4, LLM trained": (get_stage(4, "age-vlm-lm"), 10e6, 512),
}
# hidden size, layers, intermediate size, heads, key-value heads, tied embeddings
LLAMAS = {
    "1B": (2048, 16, 8192, 32, 8, True),
    "3B": (3072, 28, 8192, 24, 8, True),
    "8B": (4096, 32, 14336, 32, 8, False),
}
# Bytes for every weight and for every trained weight that each GPU holds whole, and those that the GPUs share. AdamW has two
# moments in float32; DDP and FSDP2 keep weights and gradients in float32, ZeRO-2 in bfloat16 with a float32 copy.
CONFIGS = {"ddp": (4, 12, 0, 0), "zero2": (2, 0, 0, 14), "fsdp2": (0, 0, 4, 12)}


def make_config(llama: str) -> AgeVlmConfig:
    """The paper's model around a LLaMA of another size."""
    hidden, layers, intermediate, heads, kv_heads, tied = LLAMAS[llama]
    places = default_cross_attention_layers(layers)
    text = AgeVlmConfig().text_config.to_dict() | {
        "hidden_size": hidden,
        "num_hidden_layers": layers + len(places),
        "cross_attention_layers": places,
        "intermediate_size": intermediate,
        "cross_attention_intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "tie_word_embeddings": tied,
    }
    return AgeVlmConfig(text_config=text, tie_word_embeddings=tied)


def parameters(config: AgeVlmConfig, stage: Stage) -> tuple[int, int]:
    """All parameters, and those that a stage trains."""
    with torch.device("meta"):
        model = AgeVlmForConditionalGeneration(config)
    apply_stage(model, stage)
    return tuple(
        sum(p.numel() for p in model.parameters() if p.requires_grad or not trained) for trained in (False, True)
    )


def state_bytes(all_parameters: int, trained: int, config: str, gpus: int) -> float:
    """Bytes on each GPU of weights, gradients and AdamW's moments under an accelerate config of `CONFIGS`."""
    whole, whole_trained, shared, shared_trained = CONFIGS[config]
    return all_parameters * (whole + shared / gpus) + trained * (whole_trained + shared_trained / gpus)


def step_seconds(config: AgeVlmConfig, stage: Stage, text_tokens: int) -> float:
    """Of `ROWS_PER_GPU` rows on one GPU, at the measured share of its peak."""
    return ROWS_PER_GPU * row_flops(config, stage, text_tokens) / (PEAK * UTILIZATION[text_tokens])


def row_flops(config: AgeVlmConfig, stage: Stage, text_tokens: int, parts: tuple[str, ...] = ()) -> int:
    """Operations of forward and backward pass for one row with one picture."""
    visual_tokens = config.vision_config.num_image_tokens
    works = tower_work(config, 1, stage) + text_work(config, 1, text_tokens, visual_tokens, text_tokens, stage)
    return total(works, step=True, parts=parts)


def reduce_seconds(trained: int, gpus: int, bandwidth: float) -> float:
    """A ring's all-reduce of float32 gradients: each GPU sends and receives nearly twice their bytes."""
    return 2 * (gpus - 1) / gpus * 4 * trained / bandwidth


def time_table(seconds: dict[str, float], gpus: Sequence[int]) -> str:
    config, rows, hours = make_config("1B"), [], 0.0
    for name, (stage, num_rows, text_tokens) in STAGES.items():
        step = seconds.get(name) or step_seconds(config, stage, text_tokens)
        stage_hours = num_rows / ROWS_PER_GPU * step / 3600
        hours += stage_hours if name != "4, LLM trained" else 0
        tower = row_flops(config, stage, text_tokens, ("tower",))
        all_flops = row_flops(config, stage, text_tokens)
        cells = [name, f"{num_rows / 1e6:.1f}M", str(text_tokens), f"{tower / 1e12:.2f}"]
        cells += [f"{(all_flops - tower) / 1e12:.2f}", f"{step:.2f}", f"{stage_hours:.0f}"]
        rows.append(cells + [f"{stage_hours / n:.1f} h" for n in gpus])
    rows.append(["1 to 4", "17.5M", "", "", "", "", f"{hours:.0f}", *(f"{hours / n:.1f} h" for n in gpus)])
    header = ["stage", "rows", "text tokens", "TFLOP/row, tower", "TFLOP/row, rest", "s/step", "GPU hours"]
    return markdown([*header, *(f"{n} GPUs" for n in gpus)], rows)


def memory_table(gpus: Sequence[int]) -> str:
    rows = []
    for llama in LLAMAS:
        config = make_config(llama)
        for name in ("3", "4, LLM trained"):
            every, trained = parameters(config, STAGES[name][0])
            cells = [llama, name, f"{every / 1e9:.2f}", f"{trained / 1e9:.2f}"]
            for accelerate_config in CONFIGS:
                sizes = dict.fromkeys(f"{state_bytes(every, trained, accelerate_config, n) / 1e9:.1f}" for n in gpus)
                cells.append(" / ".join(sizes))
            rows.append(cells)
    header = ["LLM", "stage", "parameters (1e9)", "trained (1e9)"]
    return markdown([*header, *(f"{name}, GB" for name in CONFIGS)], rows)


def network_table(seconds: dict[str, float], gpus: Sequence[int]) -> str:
    config, rows = make_config("1B"), []
    for name, (stage, _, text_tokens) in STAGES.items():
        step = seconds.get(name) or step_seconds(config, stage, text_tokens)
        _, trained = parameters(config, stage)
        times = (reduce_seconds(trained, n, NVLINK if n <= 8 else NETWORK) for n in gpus)
        rows.append(
            [name, f"{4 * trained / 1e9:.1f}", *(f"{1e3 * t:.0f} ms = {t / step:.0%} of the step" for t in times)]
        )
    return markdown(["stage", "gradients, GB", *(f"{n} GPUs" for n in gpus)], rows)


def data_table(seconds: dict[str, float], pictures_per_second: float) -> str:
    config, rows = make_config("1B"), []
    for name, (stage, num_rows, text_tokens) in STAGES.items():
        step = seconds.get(name) or step_seconds(config, stage, text_tokens)
        rate = ROWS_PER_GPU / step
        cells = [name, f"{num_rows * PICTURE_BYTES / 1e12:.2f}", f"{rate:.1f}", f"{rate * PICTURE_BYTES / 1e6:.1f}"]
        rows.append([*cells, f"{rate / pictures_per_second:.1f}"])
    return markdown(["stage", "pictures, TB", "rows/s and GPU", "MB/s and GPU", "cores per GPU"], rows)


def mask_table() -> str:
    rows = []
    for what, num_rows in (
        ("stage 3: the paper's 77K", 77e3),
        ("stage 3: all of 2.5M", 2.5e6),
        ("stage 4, LLM trained: the paper's 150K", 150e3),
        ("stage 4, LLM trained: all of 10M", 10e6),
    ):
        hours = num_rows / MASK_ROWS_PER_SECOND / 3600
        rows.append([what, f"{hours:.0f}", f"{hours / 8:.1f} h", f"{hours / 64:.1f} h"])
    return markdown(["rows with masks", "GPU hours", "8 GPUs", "64 GPUs"], rows)


def tables(seconds: dict[str, float], gpus: Sequence[int], pictures_per_second: float) -> dict[str, str]:
    """All tables by their titles."""
    return {
        "Time": time_table(seconds, gpus),
        "Memory of weights, gradients and optimizer": memory_table(gpus),
        "Gradients over the network": network_table(seconds, gpus),
        "Data": data_table(seconds, pictures_per_second),
        "Masks": mask_table(),
    }
