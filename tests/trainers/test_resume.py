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
"""A training that stopped, wherever, goes on as if it never had: to the bit."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from datasets import Dataset, IterableDataset
from test_guided_sft_trainer import dataset, logs_of, make_trainer, parameters_of
from testing_utils import box_mask, picture, region, row, tiny_model
from transformers import TrainerCallback

from recipes.training.arguments import ModelArguments
from recipes.training.stage import load_model
from trainers import GuidedSFTTrainer, get_stage
from trainers.checkpointing import UNFINISHED, last_checkpoint


NUM_STEPS = 6
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def eight_rows(num_rows: int = 8) -> Dataset:
    rows = []
    for n in range(num_rows):
        images = [] if n % 4 == 3 else [picture(seed=n)]
        regions = [region(box_mask(columns=(8 * n, 8 * n + 24)))] if n % 4 < 2 else []
        rows.append(row(f"What is in picture {n}?", "A cup. " * (1 + n % 3), images=images, regions=regions))
    return dataset(rows)


DATA = {
    "map-style": eight_rows,
    "map-style with a remainder": lambda: eight_rows(7),
    "streaming": lambda: eight_rows().to_iterable_dataset(num_shards=2),
    "shuffled streaming": lambda: eight_rows().to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=4),
}


def trainer_of(out: Path, train_dataset: Dataset | IterableDataset, **arguments: Any) -> GuidedSFTTrainer:
    """Of six steps of two batches of one row: one and a half times through eight rows, in a shuffled order."""
    arguments = {"save_strategy": "steps", "save_steps": 1} | arguments
    return make_trainer(
        out,
        tiny_model(),
        train_dataset,
        max_steps=NUM_STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        **arguments,
    )


def log_of(trainer: GuidedSFTTrainer) -> list[dict[str, float]]:
    """Everything logged but for times, and TRL's count of tokens, which starts anew."""
    left_out = {*TIMES, "num_tokens", "train_loss", "total_flos"}
    entries = [{k: v for k, v in entry.items() if k not in left_out} for entry in trainer.state.log_history]
    return [entry for entry in entries if "loss" in entry]


def equal(found: Any, expected: Any) -> bool:
    """Whether two optimizer states or the like are equal to the bit."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(found, expected)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[key], value) for key, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(equal, found, expected))
    return found == expected


def assert_same_training(found: GuidedSFTTrainer, expected: GuidedSFTTrainer) -> None:
    parameters = parameters_of(found.model)
    differing = [n for n, p in parameters_of(expected.model).items() if not torch.equal(parameters[n], p)]
    assert not differing
    assert equal(found.optimizer.state_dict(), expected.optimizer.state_dict())
    assert equal(found.lr_scheduler.state_dict(), expected.lr_scheduler.state_dict())
    assert log_of(found) == log_of(expected)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GuidedSFTTrainer]:
    @cache
    def train(kind: str) -> GuidedSFTTrainer:
        trainer = trainer_of(tmp_path_factory.mktemp("whole"), DATA[kind]())
        trainer.train()
        return trainer

    return train


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
@pytest.mark.parametrize(
    "kind",
    [
        "map-style",
        pytest.param("map-style with a remainder", marks=pytest.mark.slow),
        pytest.param("streaming", marks=pytest.mark.slow),
        "shuffled streaming",
    ],
)
def test_resumed_training_is_uninterrupted_training(
    tmp_path: Path, uninterrupted: Callable[[str], GuidedSFTTrainer], kind: str, step: int
):
    whole = uninterrupted(kind)
    log = log_of(whole)
    assert len(log) == NUM_STEPS and {"loss", "learning_rate", "grad_norm", "lm_loss"} <= log[-1].keys()
    assert sum("in_mask_mass" in entry and "guidance_loss" in entry for entry in log) > 2
    resumed = trainer_of(tmp_path, DATA[kind](), save_strategy="no")
    steps = []
    resumed.model.model.register_forward_pre_hook(lambda *_: steps.append(resumed.state.global_step))
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
    assert sorted(set(steps)) == list(range(step, NUM_STEPS))
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("kind", ["map-style", "streaming"])
def test_second_pass_counts_like_the_first(uninterrupted: Callable[[str], GuidedSFTTrainer], kind: str):
    log = log_of(uninterrupted(kind))
    assert [entry["epoch"] > 1 for entry in log] == [False] * 4 + [True] * 2
    guided = [entry["guided_rows"] for entry in log]
    assert sum(guided[:4]) == 4  # of the eight rows
    assert kind == "map-style" or guided[4:] == guided[:2]


def test_completed_training_is_complete(tmp_path: Path, uninterrupted: Callable[[str], GuidedSFTTrainer]):
    whole = uninterrupted("map-style")
    last = Path(whole.args.output_dir) / f"checkpoint-{NUM_STEPS}"
    again = trainer_of(tmp_path, eight_rows(), save_strategy="no")
    assert again.train(resume_from_checkpoint=str(last)).global_step == NUM_STEPS
    assert_same_training(again, whole)


# With other steps, without states, from what is no checkpoint


def numbers_seen(out: Path, max_steps: int, resume: bool, accumulation: int, stop: int | None = None) -> list[int]:
    """Which rows of a stream of 40, each a number, a training sees; two rows a step."""
    rows = [row(f"Number {n}?", "Yes.", images=[]) for n in range(40)]
    trainer = make_trainer(
        out,
        tiny_model(),
        dataset(rows).to_iterable_dataset(),
        max_steps=max_steps,
        per_device_train_batch_size=2 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    seen, compute_loss = [], trainer.compute_loss

    def note(model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        for ids in inputs["input_ids"]:
            seen.append(int(trainer.processing_class.tokenizer.decode(ids).split("Number ")[1].split("?")[0]))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = note
    trainer.add_callback(StopAt(stop))
    trainer.train(resume_from_checkpoint=resume)
    return seen


class StopAt(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_training_stop = (
            state.global_step == self.step or control.should_training_stop
        )


@pytest.mark.parametrize(
    ("first", "then", "stop", "accumulation"),  # the last of each run: the same rows a step
    [(10, 10, 4, (1, 1)), (10, 25, 9, (2, 1)), (25, 12, 4, (1, 2))],
)
def test_a_stream_goes_on_at_its_row_with_other_steps(
    tmp_path: Path, first: int, then: int, stop: int, accumulation: tuple[int, int]
):
    assert numbers_seen(tmp_path, first, False, accumulation[0], stop) == [*range(2 * stop)]
    expected = [n % 40 for n in range(2 * stop, 2 * then)]  # the second pass begins where the first has ended
    seen = numbers_seen(tmp_path, then, True, accumulation[1], then - 1)
    assert seen == expected[:-2]
    assert numbers_seen(tmp_path, then, True, 1) == expected[-2:]


def test_without_states_the_schedule_goes_on_and_it_is_said(
    tmp_path: Path, uninterrupted: Callable[[str], GuidedSFTTrainer], caplog: pytest.LogCaptureFixture
):
    trainer_of(tmp_path, eight_rows(), save_only_model=True).train()
    resumed = trainer_of(tmp_path / "resumed", eight_rows(), save_strategy="no")
    with logs_of(caplog, "trainers"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert "has no states of the optimizer (`save_only_model`)" in caplog.text
    rates = [entry["learning_rate"] for entry in log_of(uninterrupted("map-style"))]
    assert [entry["learning_rate"] for entry in log_of(resumed)] == rates[-len(log_of(resumed)) :]
    caplog.clear()
    with logs_of(caplog, "trainers"):
        whole = uninterrupted("map-style")
        again = trainer_of(tmp_path / "again", eight_rows(), save_strategy="no")
        again.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-4"))
    assert "states of the optimizer" not in caplog.text


def test_what_is_not_complete_is_no_checkpoint(tmp_path: Path):
    trainer_of(tmp_path, eight_rows(), save_steps=2).train()
    (tmp_path / "checkpoint-6/trainer_state.json").unlink()
    (tmp_path / "checkpoint-4/checkpoint-is-incomplete.txt").touch()  # transformers' mark
    (tmp_path / "checkpoint-8.zip").touch()
    (tmp_path / "checkpoint-last").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    again = trainer_of(tmp_path, eight_rows(), save_strategy="no")
    for name in ("checkpoint-4", "checkpoint-6", "checkpoint-7"):
        with pytest.raises(ValueError, match=f"{name} is no checkpoint to go on from"):
            again.train(resume_from_checkpoint=str(tmp_path / name))
    again.train(resume_from_checkpoint=True)
    assert len(log_of(again)) == NUM_STEPS
    with pytest.raises(ValueError, match="There is no complete checkpoint in"):
        trainer_of(tmp_path / "new", eight_rows()).train(resume_from_checkpoint=True)


# A checkpoint appears when it is complete


@pytest.mark.parametrize("best", [1, 3])
def test_best_checkpoint_is_known_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: int):
    trainer = trainer_of(
        tmp_path,
        eight_rows(),
        eval_dataset=eight_rows(2),
        eval_strategy="steps",
        eval_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    evaluate = GuidedSFTTrainer.evaluate
    monkeypatch.setattr(
        GuidedSFTTrainer,
        "evaluate",
        lambda self, *args, **kwargs: (
            evaluate(self, *args, **kwargs) | {"eval_loss": abs(self.state.global_step - best)}
        ),
    )
    trainer.train()
    place = tmp_path / f"checkpoint-{best}"
    assert trainer.state.best_model_checkpoint == str(place)
    assert json.loads((place / "trainer_state.json").read_text())["best_model_checkpoint"] == str(place)
    assert not (tmp_path / UNFINISHED).exists()
    saved = safetensors.torch.load_file(place / "model.safetensors")
    assert all(torch.equal(saved[name], p) for name, p in parameters_of(trainer.model).items())


def test_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1/of-an-earlier-run").touch()
    trainer_of(tmp_path, eight_rows(), save_steps=1, save_total_limit=None).train()
    names = {path.name for path in (tmp_path / "checkpoint-1").iterdir()}
    assert "trainer_state.json" in names and "of-an-earlier-run" not in names


def test_checkpoints_over_the_limit_go_when_nothing_is_left_to_do(tmp_path: Path):
    """As a kill leaves them between the last checkpoint and the removal of those before."""
    trainer_of(tmp_path, eight_rows(), save_steps=3).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    trainer_of(tmp_path, eight_rows(), save_steps=3, save_total_limit=1).train(resume_from_checkpoint=True)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-6"}


# Killed while it writes


def train_and_save(out: str, resume: bool, save_total_limit: int | None) -> None:
    """What a training process does. (That of a recipe but for the model and the rows.)"""
    trainer = trainer_of(Path(out), eight_rows(), save_total_limit=save_total_limit, enable_jit_checkpoint=True)
    trainer.train(resume_from_checkpoint=resume)
    if not trainer.is_preempted:
        trainer.save_final_model()


def start(out: Path, resume: bool = False, save_total_limit: int | None = None) -> BaseProcess:
    """A process of its own, from a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=train_and_save, args=(str(out), resume, save_total_limit))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(map(str, Path(__file__).parents[:2]))
        )  # the server of Python 3.11 is not told `sys.path`
        process.start()
    return process


def finish(process: BaseProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def wait_for(process: BaseProcess, condition: Callable[[], bool]) -> None:
    while not condition():
        assert process.is_alive()
        time.sleep(0.0002)


def is_writing(out: Path, step: int) -> bool:
    """Whether the process is past all that it does before it writes that checkpoint; the last one is the model."""
    if step > NUM_STEPS:
        return (out / f"checkpoint-{NUM_STEPS}").exists() and (out / UNFINISHED).exists()
    return (out / UNFINISHED / f"checkpoint-{step}").exists()


def kill_while_it_writes(process: BaseProcess, out: Path, step: int, delay: float) -> None:
    wait_for(process, lambda: is_writing(out, step))
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # Nothing follows the model: that process may be at its end already.
    assert process.exitcode == -signal.SIGKILL or (process.exitcode == 0 and step > NUM_STEPS)


def phase(out: Path, step: int) -> str:
    """Where in a checkpoint the kill hit, by what it left."""
    if not (out / UNFINISHED / f"checkpoint-{step}").exists():
        assert (out / f"checkpoint-{step}").exists()
        return "after it"
    written = {path.name for path in (out / UNFINISHED / f"checkpoint-{step}").iterdir()}
    for last in ("trainer_state.json", "rng_state.pth", "optimizer.pt", "training_args.bin", "model.safetensors"):
        if last in written:
            return f"half-written, up to {last}"
    return "half-written, up to the configuration"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict], float]:
    """Parameters and log of a process that nobody kills, and how long it takes to write a checkpoint."""
    out = tmp_path_factory.mktemp("expected")
    process, times = start(out), []
    for step in range(1, NUM_STEPS + 1):
        wait_for(process, lambda step=step: is_writing(out, step))
        begin = time.perf_counter()
        wait_for(process, lambda step=step: (out / f"checkpoint-{step}").exists())
        times.append(time.perf_counter() - begin)
    finish(process)
    return *result_of(out), sorted(times)[NUM_STEPS // 2]


def result_of(out: Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return safetensors.torch.load_file(out / "model.safetensors"), [entry for entry in log if "loss" in entry]


def assert_resumes(out: Path, step: int, limit: int | None, expected: tuple) -> None:
    """After a kill in checkpoint `step`: it goes on from a complete one and ends as if nothing had been."""
    last = last_checkpoint(out)
    assert last.name in (f"checkpoint-{step - 1}", f"checkpoint-{step}")
    assert (last / "trainer_state.json").exists()
    finish(start(out, resume=True, save_total_limit=limit))
    parameters, log = result_of(out)
    differing = [name for name, value in expected[0].items() if not torch.equal(parameters[name], value)]
    assert not differing
    own = [{k: v for k, v in entry.items() if k != "num_tokens"} for entry in expected[1]]
    assert [{k: v for k, v in entry.items() if k != "num_tokens"} for entry in log] == own
    assert not (out / UNFINISHED).exists()
    left = {path.name for path in out.glob("checkpoint-*")}
    assert left == {f"checkpoint-{n}" for n in range(NUM_STEPS + 1 - (limit or NUM_STEPS), NUM_STEPS + 1)}


def kills(tmp_path: Path, number: int, expected: tuple) -> Counter:
    """Kills that many trainings at moments spread evenly over the writing of a checkpoint."""
    rng, phases = random.Random(0), Counter()
    for n in range(number):
        out, limit = tmp_path / str(n), (None, 1, 2)[n % 3]
        step = rng.randint(2, NUM_STEPS)
        process = start(out, save_total_limit=limit)
        kill_while_it_writes(process, out, step, delay=(n + rng.random()) / number * expected[2])
        phases[phase(out, step)] += 1
        assert_resumes(out, step, limit, expected)
    return phases


def test_killed_in_a_checkpoint_resumes_from_the_one_before(tmp_path: Path, expected: tuple):
    assert sum(kills(tmp_path, 2, expected).values()) == 2


@pytest.mark.parametrize("delay", [0.0, 0.5])  # of the writing
def test_killed_in_the_checkpoint_of_a_preemption(tmp_path: Path, expected: tuple, delay: float):
    """As a scheduler does that grants too little time: from then on the one checkpoint is written, and no further step is done."""
    process = start(tmp_path)
    wait_for(process, lambda: is_writing(tmp_path, 3))
    os.kill(process.pid, signal.SIGTERM)
    wait_for(process, lambda: is_writing(tmp_path, 4))
    time.sleep(delay * expected[2])
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "checkpoint-5").exists()
    assert_resumes(tmp_path, 4, None, expected)


def test_after_a_preemption_there_is_no_model(tmp_path: Path, expected: tuple):
    process = start(tmp_path)
    wait_for(process, lambda: is_writing(tmp_path, 3))
    os.kill(process.pid, signal.SIGTERM)
    finish(process)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert not (tmp_path / "config.json").exists()
    assert_resumes(tmp_path, 4, None, expected)


@pytest.mark.slow
def test_killed_twenty_times_in_a_checkpoint(tmp_path: Path, expected: tuple):
    phases = kills(tmp_path, 20, expected)
    print(f"\nwriting a checkpoint takes {1000 * expected[2]:.0f} ms; killed {dict(phases)}")  # noqa: T201
    half_written = {name: count for name, count in phases.items() if name.startswith("half-written")}
    assert sum(half_written.values()) >= 10 and len(half_written) >= 3, phases


def kills_in_the_model(tmp_path: Path, number: int, expected: tuple) -> Counter:
    """Kills that many trainings while they write the final model."""
    rng, states = random.Random(1), Counter()
    for n in range(number):
        out = tmp_path / str(n)
        kill_while_it_writes(start(out), out, NUM_STEPS + 1, delay=(n + rng.random()) / number * expected[2] / 2)
        complete = (out / "config.json").exists()
        states["complete" if complete else "half-written"] += 1
        if complete:
            assert result_of(out)[0].keys() == expected[0].keys()
        else:
            with pytest.raises(ValueError, match="is not a checkpoint folder"):
                load_model(ModelArguments(model_name_or_path=str(out)), get_stage(2))
        assert_resumes(out, NUM_STEPS + 1, None, expected)
    return states


def test_killed_in_the_final_model_leaves_none(tmp_path: Path, expected: tuple):
    assert kills_in_the_model(tmp_path, 1, expected)["half-written"] == 1


@pytest.mark.slow
def test_killed_eight_times_in_the_final_model(tmp_path: Path, expected: tuple):
    states = kills_in_the_model(tmp_path, 8, expected)
    print(f"\nthe final model was {dict(states)}")  # noqa: T201
    assert states["half-written"] >= 3
