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
"""Measures subjects in turns, and says what was found in rows of a table."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity

from recipes.terminal.tables import markdown


def seconds_in_turns(subjects: dict[str, Callable[[], Any]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds per call of every subject, one per round; every second round goes the other way round."""
    seconds: dict[str, list[float]] = {name: [] for name in subjects}
    for n in range(warmup + rounds):
        for name in list(subjects)[:: -1 if n % 2 else 1]:
            start = time.perf_counter()
            subjects[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if n >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], of: list[float]) -> dict[str, float]:
    """Median and range, over the rounds, of one subject's seconds by another's."""
    ratios = sorted(a / b for a, b in zip(seconds, of, strict=True))
    return {"median": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
# bf16 without sparsity, from NVIDIA's data sheets
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def peak_bytes(call: Callable[[], Any]) -> int:
    """
    Bytes of tensors that a call holds at its peak beyond what was held before: by CUDA's allocator, on CPUs by the
    profiler's record of every allocation. The latter is exact for tensors, and leaves out scratch space inside of
    library kernels.
    """
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@dataclass(frozen=True)
class Machine:
    """How fast this machine multiplies and copies at its best, measured."""

    flops_per_s: float
    bytes_per_s: float

    def seconds(self, flops: float, num_bytes: float) -> float:
        """The least time for so much work: the longer of the two."""
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


def median_seconds(call: Callable[[], Any], rounds: int = 5) -> float:
    seconds = []
    for _ in range(rounds + 1):
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def measure_machine() -> Machine:
    """By a large product, and by a large copy, which reads and writes every byte."""
    side, num_bytes = (8192, 2**30) if DEVICE.type == "cuda" else (2048, 2**28)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=DTYPE) for _ in range(2))
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    flops = 2 * side**3 / median_seconds(lambda: torch.matmul(a, b))
    return Machine(flops, 2 * num_bytes / median_seconds(lambda: target.copy_(source)))


def peak_flops(machine: Machine) -> tuple[float, str]:
    """What utilization is counted by: the data sheet's number where it is known, else the measured product."""
    if DEVICE.type == "cuda":
        name = torch.cuda.get_device_name()
        for part, flops in PEAK_FLOPS.items():
            if part in name:
                return flops, f"{flops / 1e12:.0f} TFLOP/s of the {part}'s data sheet"
    return machine.flops_per_s, f"{machine.flops_per_s / 1e12:.3f} TFLOP/s of a large product here"


@dataclass
class Row:
    """One line of a rows_table: a ratio (or a number), its range, what it is to be, and what bytes and operations allow."""

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    target: str = ""
    limit: float | None = None
    sides: str = ""
    """What was divided by what."""

    def cells(self) -> list[str]:
        measured = f"{self.value:.3f}"
        if self.low is not None:
            measured += f" ({self.low:.3f}-{self.high:.3f})"
        return [self.what, measured, self.target, "" if self.limit is None else f"{self.limit:.3f}", self.sides]


def time_row(what: str, a: list[float], b: list[float], target: str = "", limit: float | None = None) -> Row:
    r, a_s, b_s = ratio(a, b), float(np.median(a)), float(np.median(b))
    unit, scale = ("ms", 1e3) if min(a_s, b_s) < 1 else ("s", 1)
    sides = f"{a_s * scale:.4g} / {b_s * scale:.4g} {unit}"
    return Row(what, r["median"], r["low"], r["high"], target, limit, sides)


def bytes_row(what: str, a: int, b: int, target: str = "", limit: float | None = None) -> Row:
    unit, scale = ("GB", 1e9) if max(a, b) >= 1e9 else ("MB", 1e6)
    return Row(what, a / b, None, None, target, limit, f"{a / scale:.4g} / {b / scale:.4g} {unit}")


def rows_table(result: dict[str, Any]) -> str:
    """The rows for people."""
    header = [result["title"], "measured (range)", "target", "limit", "of"]
    lines = markdown(header, [Row(**row).cells() for row in result["rows"]])
    return "\n".join([lines, *(f"\n{note}" for note in result["notes"])])


def make_result(title: str, rows: list[Row], *notes: str) -> dict[str, Any]:
    return {"title": title, "rows": [asdict(row) for row in rows], "notes": list(notes)}


def profile(subjects: dict[str, Callable[[], Any]], folder: Path) -> None:
    """Writes a trace and a rows_table of each subject's 20 longest operations."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE.type == "cuda")
    folder.mkdir(parents=True, exist_ok=True)
    for name, subject in subjects.items():
        subject()
        with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
            subject()
        path = folder / name.replace(" ", "_").replace(",", "")
        profiler.export_chrome_trace(f"{path}.trace.json")
        longest = profiler.key_averages().table(sort_by=f"self_{DEVICE.type}_time_total", row_limit=20)
        Path(f"{path}.txt").write_text(longest)
        print(f"{path}.trace.json, .txt")
