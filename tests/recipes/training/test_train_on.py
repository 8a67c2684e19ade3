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
"""A finished model is trained on, and evaluated on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_data_sets import CHAT, SHAPES, write
from testing_utils import picture, tiny_model, tiny_processor

from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.idle import check_parts
from recipes.training.record import read_record
from recipes.training.stage import chosen_variant, run_stage
from trainers import GuidedSFTConfig, GuidedSFTTrainer


CPU = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has been through all stages, without a record, and rows with their pictures."""
    folder = tmp_path_factory.mktemp("start")
    model = tiny_model()
    model.config.training_stage = 4
    model.save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    (folder / "rows/pictures").mkdir(parents=True)
    for n in range(3):
        picture(seed=n).save(folder / f"rows/pictures/{n}.png")
    for name in ("train", "test", "hard"):
        write(folder / f"rows/{name}.jsonl", [SHAPES["messages"] | {"id": str(n)} for n in range(4)])
    return folder


def run(start: Path, out: Path, number: int = 4, given: tuple[str, ...] = (), **arguments: Any) -> GuidedSFTTrainer:
    chosen = [
        {name: value for name, value in arguments.items() if name in kind.__dataclass_fields__}
        for kind in (ModelArguments, DataArguments, GuidedSFTConfig)
    ]
    model, data, training = chosen
    assert sum(map(len, chosen)) == len(arguments)
    return run_stage(
        number,
        ModelArguments(**{"model_name_or_path": str(start / "model")} | model),
        DataArguments(**{"dataset_name": str(start / "rows")} | data),
        GuidedSFTConfig(
            str(out),
            **{"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.01, "warmup_steps": 0, **CPU}
            | training,
        ),
        given=given,
    )


def test_a_finished_model_is_trained_on_twice(start: Path, tmp_path: Path):
    run(start, tmp_path / "once", variant="ca-baseline")
    trainer = run(start, tmp_path / "twice", model_name_or_path=str(tmp_path / "once"))
    assert [(entry["stage"], entry["variant"]) for entry in read_record(str(tmp_path / "twice"))] == [
        (4, "ca-baseline"),
        (4, "ca-baseline"),  # as its record says
    ]
    assert trainer.model.config.training_stage == 4 and trainer.args.guidance_weight == 0
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    (changed,) = {
        torch.equal(before[name], after[name]) for name in before if name.endswith("layers.0.mlp.up_proj.weight")
    }
    assert not changed


def test_adapters_train_a_finished_model_on(start: Path, tmp_path: Path):
    run(start, tmp_path / "out", variant="ca-baseline", use_peft=True)
    before, after = (load_file(folder / "model.safetensors") for folder in (start / "model", tmp_path / "out"))
    assert before.keys() == after.keys()
    changes = {name: not torch.equal(before[name], after[name]) for name in before}
    assert any(changed for name, changed in changes.items() if "layers.0.self_attn.q_proj" in name)
    assert not any(changed for name, changed in changes.items() if "layers.0.mlp" in name)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_there_is_no_way_back(start: Path, tmp_path: Path, number: int):
    with pytest.raises(ValueError, match=f"or trains one of stage {number} on, but .*model is one of stage 4"):
        run(start, tmp_path, number)


@pytest.mark.parametrize(
    ("record", "variant", "chosen", "said"),
    [
        ([], None, "age-vlm", None),
        ([(3, "ca-baseline")], None, "ca-baseline", None),
        ([(2, "ca-baseline")], "age-vlm", "age-vlm", None),
        ([(3, "age-vlm")], "age-vlm-lm", "age-vlm-lm", None),
        (
            [(3, "ca-baseline")],
            "age-vlm-lm",
            "age-vlm-lm",
            "went through stage 3 as ca-baseline, where age-vlm-lm trains",
        ),
        ([(3, "age-vlm"), (4, "age-vlm")], "age-vlm-lm", "age-vlm-lm", "went through stage 4 as age-vlm"),
        ([(4, "someone's own")], None, "age-vlm", None),
    ],
)
def test_a_variant_that_does_not_fit_is_said(
    record: list[tuple], variant: str | None, chosen: str, said: str | None, monkeypatch: pytest.MonkeyPatch
):
    warnings: list[str] = []
    monkeypatch.setattr("recipes.training.stage.logger.warning", warnings.append)
    entries = [{"stage": stage, "variant": name} for stage, name in record]
    assert chosen_variant(4, ModelArguments(model_name_or_path="it", variant=variant), entries) == chosen
    assert (said is None) == (not warnings) and (said or "") in "".join(warnings)


def test_parts_that_the_checkpoint_has_may_be_said(tmp_path: Path):
    model, processor = tiny_model(), tiny_processor()
    same = {"image_size": 96, "cross_attention_layers": [1, 3], "do_pad": False, "vision": str(tmp_path / "convnext")}
    arguments = ModelArguments(model_name_or_path="it", **same)
    check_parts({*same}, arguments, model, processor, {"vision": "convnext"})
    with pytest.raises(ValueError, match="`--vision .*convnext` is for building a model, .*: it, which has another"):
        check_parts({*same}, arguments, model, processor, {"vision": "another"})
    with pytest.raises(ValueError, match="`--text .*` is for building a model, but this one is there: it. Leave"):
        check_parts({*same, "text"}, arguments, model, processor, {"vision": "convnext"})


# Evaluation


def logs_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def test_it_is_evaluated_in_the_end_unless_it_is_said_when(start: Path, tmp_path: Path):
    run(start, tmp_path / "end", variant="ca-baseline", eval_split="test", max_steps=2)
    steps = [log["step"] for log in logs_of(tmp_path / "end") if "eval_lm_loss" in log]
    assert steps == [2]
    names = [f"own={start / 'rows'}", str(start / "rows/hard.jsonl")]
    often = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run(
        start,
        tmp_path / "often",
        variant="ca-baseline",
        eval_dataset_name=names,
        max_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="hard_lm_loss",
        greater_is_better=True,
        **often,
    )
    logs = logs_of(tmp_path / "often")
    for name in ("own", "hard"):
        assert [log["step"] for log in logs if f"eval_{name}_lm_loss" in log] == [1, 2]
    state = json.loads((tmp_path / "often/trainer_state.json").read_text())
    best = max((log for log in logs if "eval_hard_lm_loss" in log), key=lambda log: log["eval_hard_lm_loss"])
    assert state["best_global_step"] == best["step"] and state["best_metric"] == best["eval_hard_lm_loss"]


def test_an_evaluation_needs_rows(start: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match="`--eval_strategy` does nothing here: there are no rows to evaluate on: name them"
    ):
        run(start, tmp_path, eval_strategy="steps", eval_steps=1)


def test_a_guided_stage_on_rows_without_regions_says_how(start: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no row of the data set has a region.*`guidance_weight=0`"):
        run(start, tmp_path, variant="age-vlm-lm")
    run(start, tmp_path, variant="age-vlm-lm", guidance_weight=0.0)


def test_rows_in_a_list_are_what_they_were(start: Path, tmp_path: Path):
    """A JSON list is as good as lines."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"images": [], "messages": CHAT}] * 2))
    trainer = run(start, tmp_path / "out", variant="ca-baseline", dataset_name=str(file))
    assert trainer.state.global_step == 1
