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
"""
Two processes are one: the same numbers and the same parameters, with DDP and with FSDP2.

Run as a script (`accelerate launch ... test_distributed.py folder ddp quick`), this file is what each process does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from test_guided_sft_trainer import CPU, SCALARS, dataset, logged
from testing_utils import (
    GRADIENT_LENGTH,
    assert_close,
    box_mask,
    picture,
    region,
    row,
    tiny_model,
    tiny_processor,
    tolerance,
    up_to_rounding,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from vlm_families import FAMILIES

from modeling_agevlm import AgeVlmForConditionalGeneration
from trainers import GuidedSFTConfig, GuidedSFTTrainer, apply_stage, get_stage


CONFIGS = Path(__file__).parents[2] / "recipes/accelerate_configs"
STAGES = {"stage 3": get_stage(3), "stage 4-LM": get_stage(4, "age-vlm-lm")}
TIME_LIMIT = 240  # seconds; a collective that one process waits for in vain would take half an hour


def guided(seed: int, text: str | None = None) -> dict[str, Any]:
    columns = (10 * (seed % 4), 40 + 10 * (seed % 4))
    return row(images=[picture(seed=seed)], regions=[region(box_mask(columns=columns), text=text), region()])


def unguided(seed: int) -> dict[str, Any]:
    return row("Is there a dog?", "No, none. " * (1 + seed % 3), images=[picture(seed=seed)])


def textual(seed: int) -> dict[str, Any]:
    return row("A?", "B " * (2 + seed), images=[])


def two_pictures(seed: int) -> dict[str, Any]:
    regions = [region(box_mask(rows=(30, 64)), image=1), region()]
    return row("Same?", "No, these differ.", images=[picture(seed=seed), picture(seed=seed + 1)], regions=regions)


class Case(NamedTuple):
    """
    Rows in the order of training. With one row per process and batch, rank 0 sees rows 0, 2, ... and rank 1 the others;
    `wrapped` are the rows that fill up a last batch: accelerate takes them from the start.
    """

    rows: Callable[[], list[dict[str, Any]]]
    batch_size: int = 1
    accumulation: int = 1
    wrapped: int = 0
    streaming: bool = False
    max_steps: int = -1
    tied: bool = True
    evaluates: bool = False


CASES = {
    "guided on rank 0 only": Case(lambda: [guided(0), unguided(1), guided(2, "red cup"), unguided(3)]),
    "guided on rank 1 only": Case(lambda: [unguided(1), guided(0), textual(3), guided(2, "red cup")]),
    "nothing guided": Case(lambda: [unguided(0), unguided(1), textual(2), unguided(3)]),
    "other numbers of pictures": Case(
        lambda: [two_pictures(0), unguided(1), guided(2), textual(1), two_pictures(4), two_pictures(6)]
    ),
    "no picture on one rank": Case(lambda: [textual(0), guided(1), unguided(2), textual(3)]),
    "no picture on any rank": Case(lambda: [textual(0), textual(4), guided(1), unguided(2)]),
    "uneven rows at the end": Case(
        lambda: [guided(0), unguided(1), textual(2), two_pictures(3), guided(5)], batch_size=2, wrapped=3
    ),
    "accumulation": Case(lambda: [guided(0), textual(1), unguided(2), two_pictures(3)] * 2, accumulation=2),
    "accumulation with a remainder": Case(
        lambda: [guided(0), textual(1), unguided(2), two_pictures(3), textual(4), guided(5)],
        accumulation=2,
        evaluates=True,
    ),
    "streaming": Case(lambda: [guided(0), textual(1), unguided(2), two_pictures(3)], streaming=True, max_steps=2),
    "a head of its own": Case(
        lambda: [guided(0), unguided(1), textual(2), two_pictures(3)] * 2, accumulation=2, tied=False
    ),
}
QUICK = {  # (wrapper, stage): what is tried without `-m slow`
    ("ddp", "stage 4-LM"): [
        "guided on rank 0 only",
        "other numbers of pictures",
        "no picture on any rank",
        "uneven rows at the end",
        "accumulation with a remainder",
        "streaming",
    ],
    ("ddp", "LLaVA"): ["guided on rank 0 only", "no picture on any rank", "accumulation with a remainder"],
    ("fsdp2", "stage 4-LM"): ["guided on rank 0 only", "no picture on one rank", "a head of its own"],
}
RUNS = [(wrapper, stage, name) for wrapper in ("ddp", "fsdp2") for stage in STAGES for name in CASES]
RUNS += [("ddp", "LLaVA", name) for name in QUICK["ddp", "LLaVA"]]
TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{{ '<|eot_id|>' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
)
LOGGED = ("loss", "grad_norm", "guided_rows", "dropped_regions", "skipped_rows", *SCALARS)


def is_quick(wrapper: str, stage: str, name: str) -> bool:
    return name in QUICK.get((wrapper, stage), [])


class Preempted(TrainerCallback):
    """A scheduler that tells one process of two to end, in the middle of the first step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == 1 and state.global_step == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def make(case: Case, stage: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """What is trained in a stage: an AGE-VLM, or the LLM of another VLM."""
    if stage != "LLaVA":
        model = tiny_model(tie_word_embeddings=case.tied, text_config={"tie_word_embeddings": case.tied})
        apply_stage(model, STAGES[stage])
        return model, tiny_processor()
    torch.manual_seed(0)
    model, processor = FAMILIES["LLaVA, SigLIP"]()
    processor.chat_template = TEMPLATE
    model.model.vision_tower.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(False)
    return model, processor


def train(
    out: Path,
    case: Case,
    stage: str,
    processes: int,
    resume: bool | str = False,
    callback: type[TrainerCallback] | None = None,
    **arguments: Any,
):
    """Trains as one of so many processes, or alone on what they see together."""
    model, processor = make(case, stage)
    rows = case.rows()
    train_dataset = dataset(rows if processes > 1 else rows + rows[: case.wrapped])
    if case.streaming:
        train_dataset = train_dataset.to_iterable_dataset()
    arguments = {
        "optim": "sgd",  # Adam would make the last bit of a small gradient a whole step
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_steps": case.max_steps,
        "per_device_train_batch_size": case.batch_size * 2 // processes,
        "per_device_eval_batch_size": case.batch_size * 2 // processes,
        "gradient_accumulation_steps": case.accumulation,
        "train_sampling_strategy": "sequential",
        **CPU,
    } | arguments
    trainer = GuidedSFTTrainer(
        model=model,
        args=GuidedSFTConfig(output_dir=str(out), **arguments),
        processing_class=processor,
        train_dataset=train_dataset,
        eval_dataset=dataset(rows) if case.evaluates else None,
        callbacks=[callback] if callback else None,
    )
    trainer.train(resume_from_checkpoint=resume)
    if case.evaluates:
        trainer.evaluate()
    return trainer


def whole_parameters(trainer: GuidedSFTTrainer) -> dict[str, torch.Tensor]:
    parameters = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    return {name: p.full_tensor() if isinstance(p, DTensor) else p.clone() for name, p in parameters.items()}


def main(out: Path, wrapper: str, speed: str) -> None:
    """What each process does: all runs of that speed, with a file for each that is through."""
    arguments = {}
    if wrapper == "fsdp2":
        # accelerate 1.15 shards on accelerators only; this has it take the CPU for one.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
        PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
        arguments["use_cpu"] = False

    def keep(trainer: GuidedSFTTrainer, name: str) -> None:
        assert trainer.accelerator.num_processes == torch.distributed.get_world_size() == 2
        assert isinstance(trainer.model_wrapped, FSDPModule if wrapper == "fsdp2" else DistributedDataParallel)
        parameters = whole_parameters(trainer)
        if trainer.is_world_process_zero():
            torch.save((parameters, trainer.state.log_history), out / f"{name}.pt")
            trainer.log({"note": 1.0})  # of one process only, which has to wait for no other

    for run in RUNS:
        if run[0] == wrapper and is_quick(*run) == (speed == "quick"):
            keep(train(out / "run", CASES[run[2]], run[1], 2, **arguments), f"{run[1]}, {run[2]}")
    if speed == "quick":
        arguments |= {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"}
        case = CASES["guided on rank 0 only"]
        keep(train(out / "saved", case, "stage 4-LM", 2, **arguments), "uninterrupted")
        first = str(out / "saved/checkpoint-1")
        keep(train(out / "resumed", case, "stage 4-LM", 2, resume=first, **arguments), "resumed")
        arguments |= {"save_strategy": "no", "enable_jit_checkpoint": True}
        trainer = train(out / "preempted", case, "stage 4-LM", 2, callback=Preempted, **arguments)
        assert trainer.is_preempted and trainer.state.global_step == 1
        trainer = train(out / "preempted", case, "stage 4-LM", 2, resume=True, **arguments)
        keep(trainer, "preempted")
        if wrapper == "fsdp2":  # as many have it, and of which no model could be made
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("SHARDED_STATE_DICT")
        trainer.save_final_model()
    torch.distributed.barrier()
    os._exit(0)  # with the results written: gloo's threads now and then abort an interpreter that winds up


def run_limited(command: list[str], limit: float) -> None:
    """Runs a command to its end. Fails if that is not success; past the limit, ends it and all that it started."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "ACCELERATE_USE_CPU": "false"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = "hangs"
            # Not by process group: the launcher gives each of its processes a session of its own.
            for victim in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
            process.wait()
        output.seek(0)
        assert code == 0, f"{code}: {output.read()[-6000:]}"


def two_processes(tmp: Path, wrapper: str, speed: str) -> Path:
    """Where the results of two processes are. They run at the first call."""
    out = tmp / f"{wrapper}-{speed}"
    if not out.exists():
        out.mkdir()
        config = {"ddp": "two_cpu_processes.yaml", "fsdp2": "fsdp2.yaml"}[wrapper]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
        if wrapper == "fsdp2":  # the file is for eight GPUs
            launch += ["--num_processes", "2", "--mixed_precision", "no"]
        run_limited([*launch, "--main_process_port", "0", __file__, str(out), wrapper, speed], TIME_LIMIT)
        (out / "complete").touch()
    assert (out / "complete").exists(), "The two processes failed: see the first of these tests."
    return out


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two-processes")


@pytest.mark.parametrize(
    ("wrapper", "stage", "name"),
    [pytest.param(*run, marks=() if is_quick(*run) else pytest.mark.slow, id=", ".join(run)) for run in RUNS],
)
def test_two_processes_are_one(tmp: Path, tmp_path: Path, wrapper: str, stage: str, name: str):
    out = two_processes(tmp, wrapper, "quick" if is_quick(wrapper, stage, name) else "slow")
    found, logs = torch.load(out / f"{stage}, {name}.pt")
    trainer = train(tmp_path, CASES[name], stage, 1)
    expected = whole_parameters(trainer)
    assert set(found) == set(expected)
    initial, _ = make(CASES[name], stage)
    for parameter, value in expected.items():
        start = initial.get_parameter(parameter).detach()
        kept = tolerance(start.dtype, 1) * start.abs().max().item()  # of a parameter, at each step
        atol = trainer.state.global_step * kept
        assert_close(found[parameter] - start, value - start, GRADIENT_LENGTH, parameter, atol)
    assert max((value - initial.get_parameter(n)).abs().max() for n, value in expected.items()) > 1e-3
    for metric in LOGGED:
        values = logged(trainer, metric)
        assert len(values) >= 2 or (metric in SCALARS[1:])
        assert [entry[metric] for entry in logs if metric in entry] == up_to_rounding(values, GRADIENT_LENGTH), metric
    for metric in [f"eval_{metric}" for metric in SCALARS if CASES[name].evaluates]:
        values = logged(trainer, metric)
        assert values and [entry[metric] for entry in logs if metric in entry] == up_to_rounding(values)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_checkpoint_of_two_processes_is_a_whole_model(tmp: Path, wrapper: str):
    out = two_processes(tmp, wrapper, "quick")
    expected, _ = torch.load(out / "uninterrupted.pt")
    model = AgeVlmForConditionalGeneration.from_pretrained(out / "saved/checkpoint-2")
    assert set(expected) == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(expected[name], parameter) for name, parameter in model.named_parameters())
    assert sorted(path.name for path in (out / "saved").iterdir()) == ["README.md", "checkpoint-1", "checkpoint-2"]


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_final_model_of_two_processes_is_a_whole_model(tmp: Path, wrapper: str):
    out = two_processes(tmp, wrapper, "quick")
    expected, _ = torch.load(out / "preempted.pt")
    model = AgeVlmForConditionalGeneration.from_pretrained(out / "preempted")
    assert all(torch.equal(expected[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("name", ["resumed", "preempted"])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_processes_resume(tmp: Path, wrapper: str, name: str):
    """Also after one of them alone was told to end: both stop at the same step."""
    out = two_processes(tmp, wrapper, "quick")
    expected, expected_logs = torch.load(out / "uninterrupted.pt")
    found, logs = torch.load(out / f"{name}.pt")
    assert all(torch.equal(found[name], parameter) for name, parameter in expected.items())
    own = [{name: entry[name] for name in LOGGED if name in entry} for entry in expected_logs]
    assert [{name: entry[name] for name in LOGGED if name in entry} for entry in logs] == own


def test_a_hang_is_a_failure_and_leaves_nothing(tmp_path: Path):
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'], start_new_session=True)"
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(AssertionError, match="hangs"):
        run_limited([sys.executable, "-c", parent], limit=1)
    assert set(psutil.Process().children(recursive=True)) <= before


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
