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
"""Tasks that run side by side in processes of their own, each after the one that it needs."""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from recipes.terminal import progress


class Task(NamedTuple):
    """A call to make in another process, and the name of the task that has to be done before."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    after: str | None = None


def start_process(lock: Any, number: Any) -> None:
    """Sets up a process of the pool, whose bars have a line of the terminal of their own."""
    progress.show_own_bars_only()
    warnings.simplefilter("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tqdm.set_lock(lock)
    with number.get_lock():
        progress.line, number.value = number.value, number.value + 1


def run_tasks(tasks: dict[str, Task], processes: int) -> Iterator[tuple[str, Any]]:
    """
    Runs the tasks, several at a time and earlier ones first, and yields the name and the result of each that is done. One
    whose `after` is not among the tasks waits for nothing. The processes share this one's threads.
    """
    # Of the processes: torch's threads and those of NumPy's matrix products, which would wait for each other's cores.
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // processes))
    context = multiprocessing.get_context("spawn")
    waiting, done, running = dict(tasks), set(), {}
    setup = (context.RLock(), context.Value("i", 0))
    with ProcessPoolExecutor(processes, mp_context=context, initializer=start_process, initargs=setup) as pool:
        while waiting or running:
            for name, task in list(waiting.items()):
                if len(running) < processes and (task.after not in tasks or task.after in done):
                    running[pool.submit(task.function, *task.arguments)] = name
                    del waiting[name]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                done.add(name)
                yield name, future.result()
