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
"""Inputs one after another in a process that may die, hang or run out of memory, and what each of them ended in."""

import faulthandler
import importlib
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from huggingface_hub.errors import StrictDataclassError


ROOT = Path(__file__).resolve().parents[2]
OURS = [str(ROOT / name) for name in ("modeling_agevlm", "trainers", "recipes")]
# How much of the time each of them gets
KINDS = {
    "pictures": 4, "arrays": 1, "run_lengths": 2, "records": 4, "rows": 3, "configurations": 3, "checkpoint_files": 6,
    "weights": 2, "chat_requests": 4,
}  # fmt: skip
CPU_SECONDS = 10  # of one input
WAIT_SECONDS = 90  # for one input that does nothing, or on a busy machine
MEMORY = 3 * 2**30  # bytes above those at the start
NO_MEMORY = ("MemoryError", "not enough memory", "Cannot allocate memory")


class Outcome(NamedTuple):
    """`end` is "result", "sentence" or "failure"."""

    end: str
    text: str


@dataclass
class Tally:
    """What the inputs of a kind ended in."""

    number: int = 0
    ends: Counter = field(default_factory=Counter)
    texts: Counter = field(default_factory=Counter)  # of outcomes, as `grouped`
    failures: list[tuple[str, list[str]]] = field(default_factory=list)  # what is wrong, and the inputs saved for it
    memory: int = 0  # bytes, the most above those at the start


def kind_module(kind: str) -> ModuleType:
    return importlib.import_module(f"fuzz.{kind}")


def make_input(kind: ModuleType, seeds: list[bytes], seed: int, number: int) -> bytes:
    """The same for the same arguments, whatever came before."""
    return kind.mutated(random.Random(f"{kind.__name__} {seed} {number}"), seeds)


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and those that it was raised for."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def outcome(kind: ModuleType, data: bytes) -> Outcome:
    """
    Runs one input. A sentence is a `ValueError` or an `OSError` that a `raise` of this project raised, or what `@strict`
    makes of those of configurations; not for memory.
    """
    try:
        return Outcome("result", kind.run(data))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = f"{type(error).__name__}: {error}"
        is_raised = frame.filename.startswith(tuple(OURS)) and (frame.line or "").startswith("raise")
        is_ours = (isinstance(error, (ValueError, OSError)) and is_raised) or isinstance(error, StrictDataclassError)
        lacks = [e for e in chain(error) if any(word in f"{type(e).__name__} {e}" for word in NO_MEMORY)]
        if is_ours and not lacks:
            return Outcome("sentence", words)
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        words = " ".join(words[:300].split())
        return Outcome("failure", f"{words} ({where}{', out of memory' if lacks else ''})")


def grouped(text: str) -> str:
    """A message without what differs between two of its kind."""
    text = re.sub(r"/tmp/[\w./-]*", "FILE", " ".join(text.split()))
    text = re.sub(r"^BrokenRowError: Row .*? is broken: ", "BrokenRowError: ", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`(?= (is|can))", "'...'", text)
    return re.sub(r"\d[\dxa-f.,]*", "N", text)[:110]


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def work(
    kind: ModuleType, seeds: list[bytes], seed: int, numbers: range, deadline: float, pipe: Connection, log: str
) -> None:
    """What the process does: tells the number of each input, and then what became of it."""
    with open(log, "w") as out, tempfile.TemporaryDirectory() as folder:
        sys.stdout = sys.stderr = out
        faulthandler.enable(out)
        faulthandler.register(signal.SIGPROF, out, chain=True)  # tells where it was, and ends it
        tempfile.tempdir = folder
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        pipe.send(("start", outcome(kind, seeds[0])))  # imports, and loads what the kind needs
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY, -1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in numbers:
            if time.monotonic() > deadline:
                break
            data = make_input(kind, seeds, seed, number)
            pipe.send(("input", number))
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            ended = outcome(kind, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send(("ended", (ended, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)))


def fuzz(kind: ModuleType, seed: int, seconds: float, out: Path, most: int | None = None) -> Tally:
    """
    Runs inputs of a kind for some seconds.

    Args:
        kind (`ModuleType`): One of [`KINDS`].
        seed (`int`): Another one gives other inputs.
        seconds (`float`): For how long.
        out (`Path`): The folder that takes inputs that failed.
        most (`int`, *optional*): Inputs at the most.
    """
    tally, seeds, deadline = Tally(), kind.seeds(), time.monotonic() + seconds
    name, number, saved = kind.__name__.rpartition(".")[2], 0, {}
    out.mkdir(parents=True, exist_ok=True)

    def count(ended: Outcome) -> None:
        tally.number += 1
        tally.ends[ended.end] += 1
        group = re.sub(r":.*(?= \()", "", ended.text) if ended.end == "failure" else grouped(ended.text)
        tally.texts[ended.end, group] += 1
        if ended.end == "failure":
            files = saved.get(group)
            if files is None:
                files = saved[group] = []
                tally.failures.append((ended.text, files))
            if len(files) < 3:
                file = out / f"{name}-{seed}-{number}"
                file.write_bytes(make_input(kind, seeds, seed, number))
                files.append(os.path.relpath(file))

    most = sys.maxsize if most is None else most
    context = multiprocessing.get_context("fork")
    while time.monotonic() < deadline and number < most:
        log = tempfile.mkstemp(prefix=f"fuzz-{name}-")[1]
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(kind, seeds, seed, range(number, most), deadline, theirs, log))
        process.start()
        theirs.close()
        is_running, ending = False, ""
        while True:
            try:
                if not ours.poll(WAIT_SECONDS):
                    ending = f"no answer in {WAIT_SECONDS} s"
                    process.kill()
                    break
                what, value = ours.recv()
            except EOFError:
                break
            if what == "input":
                is_running, number = True, value
            elif what == "ended":
                count(value[0])
                is_running, tally.memory = False, max(tally.memory, value[1])
            elif value.end == "failure":
                raise RuntimeError(f"A valid input of kind {name} fails: {value.text}")
        process.join()
        told = Path(log).read_text(errors="replace")
        Path(log).unlink()
        if process.exitcode == 0:
            break
        frames = re.findall(r'File ".*?([^/"]+)", line (\d+)', told)
        signals = {-signal.SIGPROF: f"more than {CPU_SECONDS} s of CPU time", -signal.SIGSEGV: "segmentation fault"}
        ending = ending or signals.get(process.exitcode, f"the process ended with {process.exitcode}")
        after = "" if is_running else "after it, "
        count(Outcome("failure", f"{after}{ending} ({' < '.join(f'{file}:{line}' for file, line in frames[:3])})"))
        number += 1
    return tally
