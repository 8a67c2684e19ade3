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
"""Trains and scores the models of the study, several at a time, each result written as it comes."""

import functools
import json
import shutil
import time
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import torch
from datasets import Dataset
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.answering.answers import one_question, prompts
from recipes.rows.appearing import appearing
from recipes.scenes import BACKBONES
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.evaluation import evaluate_all, judge, language_modeling_loss, summarize
from recipes.study import settings
from recipes.study.plans import IMAGE_SIZE, llm_checkpoint
from recipes.study.report import report, text_perplexity
from recipes.study.rows import dialogs, reshaped, test_questions, training_rows
from recipes.study.settings import (
    ABLATIONS,
    CONCATENATION_MODELS,
    HEAD_ABLATIONS,
    HEADS,
    LONG_MODELS,
    MODELS,
    SMOLLM2_MODELS,
    Setting,
)
from recipes.study.side_by_side import Task, run_tasks
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.record import read_record
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig, RegionAttention
from trainers.guided_sft_config import AUTO
from trainers.guided_sft_trainer import heads_before


# --- One stage, one evaluation ---


class Curve(TrainerCallback):
    """Notes a few times in a stage how well the model does on test scenes; the shares of right answers are of the likelier
    of "Yes" and "No" as the first word. The notes are kept in `file`, where a stage that is taken up again finds them."""

    def __init__(
        self, processor: ProcessorMixin, questions: list[dict], rows: Dataset, points: int, file: Path
    ) -> None:
        self.processor, self.questions, self.points, self.file, self.rows = processor, questions, points, file, rows

    def on_step_end(
        self, args: GuidedSFTConfig, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs
    ) -> None:
        if state.global_step % max(1, state.max_steps // self.points) == 0:
            model.eval()
            loss = language_modeling_loss(model, self.processor, list(self.rows))
            entry = {"pope_accuracy": self.existence(model), "lm_loss": loss}
            before = json.loads(self.file.read_text()) if self.file.exists() else []
            entries = [point for point in before if point["step"] < state.global_step]
            entries.append({"step": state.global_step, **entry})
            self.file.write_text(json.dumps(entries) + "\n")
            model.train()

    @torch.no_grad()
    def existence(self, model: PreTrainedModel, batch_size: int = 100) -> float:
        first = [self.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No")]
        right = 0
        for n in range(0, len(self.questions), batch_size):
            questions = self.questions[n : n + batch_size]
            chats = [one_question(q["question"], q["image"]) for q in questions]
            inputs = prompts(self.processor, chats).to(model.device)
            yes, no = model(**inputs, logits_to_keep=1).logits[:, -1, first].unbind(-1)
            right += sum((yes > no).tolist()[i] == (q["answer"] == "yes") for i, q in enumerate(questions))
        return right / len(self.questions)


class Fading(Curve):
    """The guidance loss loses its weight, evenly over the steps."""

    def on_step_begin(self, args: GuidedSFTConfig, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        if state.global_step == 0:
            self.weight = args.guidance_weight
        args.guidance_weight = self.weight * (1 - state.global_step / state.max_steps)


def edit(source: Path, out: Path, stage: int, image_size: int) -> None:
    """Copies a checkpoint as one of another stage that takes pictures of `image_size` pixels."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    model = AgeVlmForConditionalGeneration.from_pretrained(source)
    processor = AgeVlmProcessor.from_pretrained(source)
    model.config.training_stage = stage
    model.config.vision_config.image_size = image_size
    processor.image_processor.size = {"height": image_size, "width": image_size}
    processor.save_pretrained(out)
    model.save_pretrained(out)


def train(out: Path, setting: Setting, number: int) -> None:
    """Runs one stage."""
    folder, previous = out / setting.folder(number), None
    if number > 1:
        previous = out / setting.folder(number - 1)
    if number == 2 and not setting.stage2:
        edit(previous, folder, 2, IMAGE_SIZE)
        return
    if number == 2 and setting.first_image_size != IMAGE_SIZE:
        edit(previous, folder / "start", 1, IMAGE_SIZE)
        previous = folder / "start"
    arguments = ModelArguments(
        model_name_or_path=previous and str(previous),
        variant=setting.variant(number),
        vision=str(BACKBONES / "convnext"),
        text=llm_checkpoint(setting.text),
        image_size=setting.first_image_size,
        do_pad=setting.pictures == "padded",
        cross_attention_layers=list(setting.cross_attention_layers),
        cross_attention_intermediate_size=setting.mlp_width,
        attention_sink=setting.attention_sink,
        use_visual_positions=setting.positions,
    )
    training = GuidedSFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.BATCH_SIZE,
        max_steps=setting.steps(number),
        learning_rate=settings.LEARNING_RATE[setting.text][number],
        train_sampling_strategy="group_by_length",  # a quarter of a mixed batch would be padding
        guidance_weight=setting.weight,
        guidance_layers=setting.guidance_layers and list(setting.guidance_layers),
        guidance_heads=list(heads) if isinstance(heads := setting.guidance_heads, tuple) else heads,
        guidance_normalization=setting.normalization,
        guidance_level=setting.level,
        guidance_query="question" if number == 4 else "answer",
        mask_downsampling=setting.downsampling,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_steps=100,
        save_total_limit=1,
        resume_from_checkpoint="true" if any(folder.glob("checkpoint-*")) else None,
        disable_tqdm=True,
        report_to="none",
        seed=10 * setting.seed + number,
    )
    rows = training_rows(setting, number)
    callback = TrainerCallback()
    if number == 4:
        processor = AutoProcessor.from_pretrained(previous)
        questions = [q for q in test_questions(setting, 100) if q["kind"] in POPE_KINDS]
        held_out = dialogs("test", 80, settings.SHARES)
        if setting.pictures != "square":
            held_out = held_out.map(functools.partial(reshaped, kind=setting.pictures))
        folder.mkdir(parents=True, exist_ok=True)
        points = settings.CURVE_POINTS * setting.length
        kind = Fading if setting.fades else Curve
        callback = kind(processor, questions, held_out, points, folder / "curve.json")
    trainer = run_stage(number, arguments, DataArguments(), training, progress=callback, rows=rows)
    trainer.accelerator.free_memory()


def result_file(results: Path, setting: Setting) -> Path:
    return results / "results" / f"{setting.folder(4)}.json"


def evaluate(out: Path, results: Path, setting: Setting) -> None:
    """Scores a model and writes what it scored."""
    folder = out / setting.folder(4)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    if torch.cuda.is_available():
        model = model.cuda()
    attention = None
    if setting.architecture == "concatenation":
        heads = setting.guidance_heads
        if heads == AUTO:
            heads = heads_before(read_record(str(folder)))
        attention = RegionAttention(model, setting.guidance_layers, heads)
    by_picture = {}
    if setting.pictures == "square":
        metrics, _, by_picture = evaluate_all(
            model, processor, num_images=settings.TEST_IMAGES, image_size=IMAGE_SIZE, attention=attention
        )
    else:
        metrics = summarize(judge(model, processor, test_questions(setting, settings.TEST_IMAGES)))
        metrics["pope_accuracy"] = mean(metrics[f"pope_{kind}_accuracy"] for kind in POPE_KINDS)
    metrics["text_perplexity"] = text_perplexity(str(folder), settings.TEST_IMAGES)
    curve = json.loads((folder / "curve.json").read_text())
    path = result_file(results, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"setting": asdict(setting), "metrics": metrics, "curve": curve}
    result["by_picture"] = {name: " ".join(f"{n}/{of}" for n, of in counts) for name, counts in by_picture.items()}
    with appearing(path) as aside:
        aside.write_text(json.dumps(result, indent=2) + "\n")


# --- All of them ---


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def planned(only: str | None, seeds: int) -> list[tuple[str, Setting]]:
    """The models to train, by name and setting."""
    models = []
    if only in (None, "heads"):
        models += [(name, replace(setting, seed=seed)) for seed in range(seeds) for name, setting in HEADS.items()]
    if only in (None, "head ablations"):
        models += HEAD_ABLATIONS.items()
    if only in (None, "2x2"):
        models += [(name, replace(setting, seed=seed)) for seed in range(seeds) for name, setting in MODELS.items()]
    if only in (None, "ablations"):
        models += ABLATIONS.items()
    if only in (None, "concatenation"):
        models += [
            (name, replace(setting, seed=seed))
            for seed in range(seeds)
            for name, setting in CONCATENATION_MODELS.items()
        ]
    if only in (None, "long"):
        models += LONG_MODELS.items()
    if only == "smollm2":  # needs a package that nothing else does
        models += SMOLLM2_MODELS.items()
    return models


def work(out: Path, results: Path, name: str, setting: Setting, number: int) -> float:
    """Runs stage `number`, or the evaluation as number 5, and returns the seconds that it took."""
    start = time.time()
    log = out / "logs" / f"{slug(name)}-seed{setting.seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, redirect_stdout(file):
        train(out, setting, number) if number <= 4 else evaluate(out, results, setting)
    return time.time() - start


def run(out: Path, results: Path, models: list[tuple[str, Setting]], processes: int) -> None:
    """Trains and scores the models, several at a time, and reports whenever one is done."""
    missing = [(name, setting) for name, setting in models if not result_file(results, setting).exists()]
    tasks, labels = {}, {}  # by the file that shows that they are done
    for name, setting in missing:
        previous = None
        for number in range(1, 6):
            file = out / setting.folder(number) / "config.json" if number <= 4 else result_file(results, setting)
            if not file.exists():
                tasks.setdefault(str(file), Task(work, (out, results, name, setting, number), previous))
                labels.setdefault(str(file), (name, setting.seed, f"stage {number}" if number <= 4 else "scored"))
            previous = str(file)
    start = time.time()
    print(
        f"{len(models) - len(missing)} of {len(models)} results are there; {len(tasks)} stages and evaluations to go",
        flush=True,
    )
    for count, (file, seconds) in enumerate(run_tasks(tasks, processes), start=1):
        name, seed, what = labels[file]
        minutes = (time.time() - start) / 60
        print(f"[{count}/{len(tasks)}, {minutes:.0f} min] {name}, seed {seed}: {what} ({seconds:.0f} s)", flush=True)
        if what == "scored":
            report(results)
