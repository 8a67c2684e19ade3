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
"""Does guidance help? The paper's claim and its open points, tested on scenes with the demo's tiny model.

    python recipes/claim.py [--out runs/claim] [--results docs/claim] [--only 2x2 | ablations | long] [--processes 2]

`2x2`: guidance or none, LLM frozen or trained in stage 4, and the control whose masks belong to other pictures, each with
several seeds. `ablations`: one thing changed at a time, one seed. `long`: guidance or none until the baseline is good.
All models go through the recipes of the four stages; stages that models share run once. A run that was stopped goes on where it
stopped; of a model whose result is there, nothing runs. `results.csv`, `page.md` and its plots are written anew whenever a model
is done.
"""

import argparse
import csv
import functools
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from PIL import Image as PILImage
from pycocotools import mask as coco_mask
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, TrainerControl, TrainerState
from transformers.utils.logging import disable_progress_bar

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.common import DataArguments, ModelArguments, run_stage
from recipes.demo import BACKBONES, IMAGE_SIZE
from recipes.pictures import plt
from recipes.scenes import FEATURES, POPE_KINDS, load_questions, load_scenes
from recipes.scenes_evaluation import evaluate_all, judge, summarize
from recipes.tables import markdown
from trainers import DataCollatorForGuidedVisionLanguageModeling, GuidedSFTConfig, Variant
from trainers.data_collator import decode_rle


LEARNING_RATE = {1: 3e-3, 2: 3e-3, 3: 2e-3, 4: 5e-4}
STEPS = {1: 100, 2: 100, 3: 1500, 4: 2000}
SHARES = {"existence": 0.7, "caption": 0.15, "instruction": 0.15}  # of the rows of stage 4
LONG = 4  # times the steps of stage 4
BATCH_SIZE = 4
TEST_IMAGES = 200
CURVE_POINTS = 6


@dataclass(frozen=True)
class Setting:
    """What a model is trained with. The defaults are the paper's AGE-VLM as this project reads it."""

    seed: int = 0
    language_model: bool = False
    """Whether the LLM trains in stage 4."""
    guided: tuple[int, ...] = (3,)
    """The stages that add the guidance loss."""
    normalization: str = "sum"
    level: str = "all"
    downsampling: str = "any"
    weight: float = 1.0
    masked_share: float = 1.0
    """Share of the rows that have masks."""
    masks: Literal["own", "other"] = "own"
    """Whether a row has its own masks, or those of another row."""
    cross_attention_layers: tuple[int, ...] = (1, 3, 5)
    mlp_width: int | None = None
    """Of the cross-attention layers; None for the LLM's."""
    stage2: bool = True
    first_image_size: int = IMAGE_SIZE
    """Pixels in stage 1; `IMAGE_SIZE` from stage 2 on."""
    pictures: Literal["square", "stretched", "padded", "padded in the picture"] = "square"
    """Square scenes, or scenes of 8 to 5 that are stretched, or padded with or without masking the padded cells."""
    length: int = 1
    """Stage 4 has so many times its steps."""

    def choices(self, number: int) -> dict[str, Any]:
        """What of the setting stage `number` and those before it depend on."""
        names = ["seed", "cross_attention_layers", "mlp_width", "first_image_size", "pictures"]
        names += ["stage2"] * (number >= 2) + ["language_model", "length"] * (number == 4)
        guided = [stage for stage in self.guided if stage <= number]
        if guided:
            names += ["normalization", "level", "downsampling", "weight", "masked_share", "masks"]
        return {"guided": guided, **{name: getattr(self, name) for name in names}}

    def folder(self, number: int) -> str:
        """Name of the folder of stage `number`: the same for all settings that agree on it."""
        digest = hashlib.sha256(json.dumps(self.choices(number)).encode()).hexdigest()
        return f"stage{number}-{digest[:10]}"

    def variant(self, number: int) -> Variant:
        """The variant that runs stage `number`."""
        if number < 4:
            return "age-vlm" if number in self.guided else "ca-baseline-frozen"
        if self.language_model:
            return "age-vlm-lm" if 4 in self.guided else "ca-baseline"
        if 4 in self.guided:
            raise ValueError("There is no variant that guides stage 4 while its LLM is frozen.")
        return "age-vlm" if self.guided else "ca-baseline-frozen"


LM = Setting(language_model=True, guided=(3, 4))
MODELS = {
    "age-vlm": Setting(),
    "ca-baseline-frozen": Setting(guided=()),
    "age-vlm-lm": LM,
    "age-vlm-lm, weight 0.1": replace(LM, weight=0.1),
    "ca-baseline": replace(LM, guided=()),
    "age-vlm-lm, other masks": replace(LM, masks="other"),
}
# One thing at a time is changed of age-vlm-lm, which is guided in both stages.
ABLATIONS = {
    "base (age-vlm-lm)": LM,
    "no guidance": replace(LM, guided=()),
    "guidance in stage 3 only": replace(LM, guided=(3,)),
    "guidance in stage 4 only": replace(LM, guided=(4,)),
    "maps divided by their maximum": replace(LM, normalization="max"),
    "query: whole messages (the paper's)": replace(LM, level="message"),
    "query: phrases": replace(LM, level="phrase"),
    "a cell counts from half of its area on": replace(LM, downsampling="area"),
    "weight 0.1": replace(LM, weight=0.1),
    "weight 0.3": replace(LM, weight=0.3),
    "weight 3": replace(LM, weight=3.0),
    "1 % of the rows have masks": replace(LM, masked_share=0.01),
    "3 % of the rows have masks": replace(LM, masked_share=0.03),
    "10 % of the rows have masks": replace(LM, masked_share=0.1),
    "30 % of the rows have masks": replace(LM, masked_share=0.3),
    "without stage 2": replace(LM, stage2=False),
    "stage 1 at 128 pixels": replace(LM, first_image_size=IMAGE_SIZE // 2),
    "cross-attention: first layer only": replace(LM, cross_attention_layers=(1,)),
    "cross-attention: last layer only": replace(LM, cross_attention_layers=(5,)),
    "cross-attention: before every layer": replace(LM, cross_attention_layers=(1, 3, 5, 7)),
    "cross-attention without MLP": replace(LM, mlp_width=0),
    "cross-attention with half the MLP": replace(LM, mlp_width=160),
    "wide pictures, stretched": replace(LM, pictures="stretched"),
    "wide pictures, padding masked": replace(LM, pictures="padded"),
    "wide pictures, padding seen": replace(LM, pictures="padded in the picture"),
}
PAIRS = (("age-vlm", "ca-baseline-frozen"), ("age-vlm-lm", "ca-baseline"), ("age-vlm-lm, weight 0.1", "ca-baseline"))
LONG_MODELS = {
    "age-vlm-lm, long": replace(LM, length=LONG),
    "ca-baseline, long": replace(LM, guided=(), length=LONG),
}


# --- Rows ---


def reshape(picture: PILImage.Image, kind: str) -> PILImage.Image:
    """A square picture as one of 8 to 5, or that on a square canvas of its mean color."""
    if kind == "square":
        return picture
    wide = picture.resize((picture.width, picture.height * 5 // 8), PILImage.Resampling.BILINEAR)
    if kind != "padded in the picture":
        return wide
    canvas = PILImage.new("RGB", picture.size, tuple(int(c) for c in np.asarray(wide).mean((0, 1))))
    canvas.paste(wide, (0, (canvas.height - wide.height) // 2))
    return canvas


def reshape_mask(rle: dict[str, Any], kind: str) -> dict[str, Any]:
    """The mask of the reshaped picture."""
    picture = PILImage.fromarray(decode_rle(rle).astype(np.uint8) * 255)
    if kind != "square":
        wide = picture.resize((picture.width, picture.height * 5 // 8), PILImage.Resampling.BILINEAR)
        picture = wide
    if kind == "padded in the picture":
        picture = PILImage.new("L", (wide.width, wide.width))
        picture.paste(wide, (0, (wide.width - wide.height) // 2))
    code = coco_mask.encode(np.asfortranarray(np.asarray(picture) > 127, dtype=np.uint8))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def reshaped(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """A row of the data set with its picture reshaped."""
    regions = [{**region, "mask": reshape_mask(region["mask"], kind)} for region in row["regions"]]
    return {"images": [reshape(image, kind) for image in row["images"]], "regions": regions}


def dialogs(split: str, num_rows: int) -> Dataset:
    """Rows of stage 4: questions of existence that one word answers, and captions and all kinds of questions beside them."""
    parts = [
        load_scenes(split, task, int(share * num_rows), IMAGE_SIZE, seed=seed)  # every kind is about other scenes
        for seed, (task, share) in enumerate(SHARES.items(), start=1)
    ]
    return concatenate_datasets(parts)


def training_rows(setting: Setting, number: int) -> Dataset:
    """The rows of a stage: its scenes, with the masks and the pictures that the setting asks for."""
    if number == 4:
        rows = dialogs("train", BATCH_SIZE * STEPS[4] * setting.length)
    else:
        rows = load_scenes("train", "caption", BATCH_SIZE * max(STEPS[n] for n in (1, 2, 3)), IMAGE_SIZE)
    if setting.pictures != "square":
        rows = rows.map(functools.partial(reshaped, kind=setting.pictures))
    if number in setting.guided and (setting.masks == "other" or setting.masked_share < 1):
        regions = rows["regions"][:]
        if setting.masks == "other":
            regions = exchange_masks(regions)
        keep = np.random.default_rng(0).permutation(len(rows)) < setting.masked_share * len(rows)
        regions = [row if kept else [] for row, kept in zip(regions, keep, strict=True)]
        rows = rows.remove_columns("regions").add_column("regions", regions, feature=FEATURES["regions"])
    lengths = [sum(len(message["content"]) for message in messages) for messages in rows["messages"]]
    return rows.add_column("length", lengths)


def exchange_masks(regions: Sequence[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Every row's words with the masks of the next row that has any."""
    exchanged = []
    for n, row in enumerate(regions):
        others = next(
            other
            for k in range(1, len(regions) + 1)
            if (other := regions[(n + k) % len(regions)]) and other is not row
        )
        exchanged.append([{**region, "mask": others[i % len(others)]["mask"]} for i, region in enumerate(row)])
    return exchanged


# --- One stage, one evaluation ---


class Curve(TrainerCallback):
    """Notes a few times in a stage how well the model does on test scenes; the shares of right answers are of the likelier
    of "Yes" and "No" as the first word."""

    def __init__(self, processor: ProcessorMixin, questions: list[dict], rows: Dataset, points: int) -> None:
        self.processor, self.questions, self.points = processor, questions, points
        collator = DataCollatorForGuidedVisionLanguageModeling(processor)
        self.batches = [collator([rows[i] for i in range(n, n + 16)]) for n in range(0, len(rows), 16)]
        self.entries: list[dict[str, float]] = []

    def on_step_end(
        self, args: GuidedSFTConfig, state: TrainerState, control: TrainerControl, model: PreTrainedModel, **kwargs
    ) -> None:
        if state.global_step % max(1, state.max_steps // self.points) == 0:
            model.eval()
            entry = {"pope_accuracy": self.existence(model), "lm_loss": self.loss(model)}
            self.entries.append({"step": state.global_step, **entry})
            model.train()

    @torch.no_grad()
    def loss(self, model: PreTrainedModel) -> float:
        total, count = 0.0, 0
        for batch in self.batches:
            names = ("input_ids", "attention_mask", "pixel_values", "labels", "pixel_attention_mask")
            tokens = int((batch["labels"][:, 1:] != -100).sum())
            inputs = {name: batch[name].to(model.device) for name in names if name in batch}
            total, count = total + model(**inputs).loss.item() * tokens, count + tokens
        return total / count

    @torch.no_grad()
    def existence(self, model: PreTrainedModel, batch_size: int = 100) -> float:
        first = [self.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No")]
        right = 0
        for n in range(0, len(self.questions), batch_size):
            questions = self.questions[n : n + batch_size]
            chats = [
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": q["image"]}, {"type": "text", "text": q["question"]}],
                    }
                ]
                for q in questions
            ]
            inputs = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            ).to(model.device)
            yes, no = model(**inputs, logits_to_keep=1).logits[:, -1, first].unbind(-1)
            right += sum((yes > no).tolist()[i] == (q["answer"] == "yes") for i, q in enumerate(questions))
        return right / len(self.questions)


def test_questions(setting: Setting, num_images: int) -> list[dict[str, Any]]:
    """The questions about test scenes in the shape that the setting trains on."""
    questions = load_questions("test", num_images=num_images, image_size=IMAGE_SIZE)
    kind = setting.pictures
    if kind == "square":
        return questions
    return [
        {
            **question,
            "image": reshape(question["image"], kind),
            "mask": question["mask"] and reshape_mask(question["mask"], kind),
            "phrases": [{**phrase, "mask": reshape_mask(phrase["mask"], kind)} for phrase in question["phrases"]],
        }
        for question in questions
    ]


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
        text=str(BACKBONES / "llama"),
        image_size=setting.first_image_size,
        do_pad=setting.pictures == "padded",
        cross_attention_layers=list(setting.cross_attention_layers),
        cross_attention_intermediate_size=setting.mlp_width,
    )
    length = setting.length if number == 4 else 1
    training = GuidedSFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=STEPS[number] * length,
        learning_rate=LEARNING_RATE[number],
        train_sampling_strategy="group_by_length",  # a quarter of a mixed batch would be padding
        guidance_weight=setting.weight,
        guidance_normalization=setting.normalization,
        guidance_level=setting.level,
        guidance_query="question" if number == 4 else "answer",
        mask_downsampling=setting.downsampling,
        gradient_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=10 * setting.seed + number,
    )
    rows = training_rows(setting, number)
    curve = TrainerCallback()
    if number == 4:
        processor = AgeVlmProcessor.from_pretrained(previous)
        questions = [q for q in test_questions(setting, 100) if q["kind"] in POPE_KINDS]
        held_out = dialogs("test", 80)
        if setting.pictures != "square":
            held_out = held_out.map(functools.partial(reshaped, kind=setting.pictures))
        curve = Curve(processor, questions, held_out, CURVE_POINTS * length)
    trainer = run_stage(number, arguments, DataArguments(), training, progress=curve, rows=rows)
    if number == 4:
        (folder / "curve.json").write_text(json.dumps(curve.entries) + "\n")
    trainer.accelerator.free_memory()


def result_file(results: Path, setting: Setting) -> Path:
    return results / "results" / f"{setting.folder(4)}.json"


def evaluate(out: Path, results: Path, setting: Setting) -> None:
    """Scores a model and writes what it scored."""
    folder = out / setting.folder(4)
    model = AgeVlmForConditionalGeneration.from_pretrained(folder).eval()
    processor = AgeVlmProcessor.from_pretrained(folder)
    if torch.cuda.is_available():
        model = model.cuda()
    if setting.pictures == "square":
        metrics, _ = evaluate_all(model, processor, num_images=TEST_IMAGES, image_size=IMAGE_SIZE)
    else:
        metrics = summarize(judge(model, processor, test_questions(setting, TEST_IMAGES)))
        metrics["pope_accuracy"] = mean(metrics[f"pope_{kind}_accuracy"] for kind in POPE_KINDS)
    curve = json.loads((folder / "curve.json").read_text())
    path = result_file(results, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"setting": asdict(setting), "metrics": metrics, "curve": curve}, indent=2) + "\n")
    aside.replace(path)


# --- All of them ---


def slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def planned(only: str | None, seeds: int) -> list[tuple[str, Setting]]:
    """The models to train, by name and setting."""
    models = []
    if only in (None, "2x2"):
        models += [(name, replace(setting, seed=seed)) for seed in range(seeds) for name, setting in MODELS.items()]
    if only in (None, "ablations"):
        models += ABLATIONS.items()
    if only in (None, "long"):
        models += LONG_MODELS.items()
    return models


def prepare() -> None:
    """Sets up a worker process."""
    warnings.simplefilter("ignore")
    disable_progress_bar()
    disable_progress_bars()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


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
    tasks: dict[Path, tuple[str, Setting, int, Path | None]] = {}  # its file: model, stage, file that it waits for
    missing = [(name, setting) for name, setting in models if not result_file(results, setting).exists()]
    for name, setting in missing:
        previous = None
        for number in range(1, 5):
            file = out / setting.folder(number) / "config.json"
            tasks.setdefault(file, (name, setting, number, previous))
            previous = file
        tasks[result_file(results, setting)] = (name, setting, 5, previous)
    waiting = {file: task for file, task in tasks.items() if not file.exists()}
    total, start = len(waiting), time.time()
    print(
        f"{len(models) - len(missing)} of {len(models)} results are there; {total} stages and evaluations to go",
        flush=True,
    )
    context = multiprocessing.get_context("spawn")
    running: dict[Any, Path] = {}
    with ProcessPoolExecutor(processes, mp_context=context, initializer=prepare) as pool:
        while waiting or running:
            for file, (name, setting, number, previous) in list(waiting.items()):
                if len(running) < processes and (previous is None or previous.exists()):
                    running[pool.submit(work, out, results, name, setting, number)] = file
                    del waiting[file]
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                file = running.pop(future)
                name, setting, number, _ = tasks[file]
                what = f"stage {number}" if number <= 4 else "scored"
                count = total - len(waiting) - len(running)
                print(
                    f"[{count}/{total}, {(time.time() - start) / 60:.0f} min] {name}, seed {setting.seed}: {what} "
                    f"({future.result():.0f} s)",
                    flush=True,
                )
                if number == 5:
                    report(results)


# --- The report ---

COLUMNS = {
    "pope_accuracy": "POPE",
    "pope_accuracy_blind": "POPE, blind",
    "pope_accuracy_swapped": "POPE, other picture",
    "count_accuracy": "counting",
    "relation_accuracy": "relations",
    "pairs_aAcc": "pairs aAcc",
    "pairs_qAcc": "pairs qAcc",
    "chair_i": "CHAIR i",
    "chair_s": "CHAIR s",
    "chair_recall": "caption recall",
    "in_mask_mass": "mass in mask",
    "pointing_accuracy": "pointing",
    "lm_loss": "LM loss",
}
# two-sided 95 % quantiles of Student's t by degrees of freedom
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


def interval(values: Sequence[float]) -> str:
    """Mean and half of the 95 % interval of the mean."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ± {STUDENT.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values)):.3f}"


def at_loss(curve: list[dict[str, float]], loss: float) -> float:
    """The accuracy on existence where the curve first comes down to an LM loss, interpolated between its points."""
    for before, after in zip(curve, curve[1:], strict=False):
        if after["lm_loss"] <= loss <= before["lm_loss"]:
            share = (before["lm_loss"] - loss) / max(before["lm_loss"] - after["lm_loss"], 1e-9)
            return before["pope_accuracy"] + share * (after["pope_accuracy"] - before["pope_accuracy"])
    return math.nan


def reached(curve: list[dict[str, float]], accuracy: float = 0.75) -> int | None:
    """The first step of a curve's points at which the accuracy on existence is at least `accuracy`."""
    return next((int(point["step"]) for point in curve if point["pope_accuracy"] >= accuracy), None)


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results so far by the folder of their model's last stage."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}


def of_seeds(results: dict[str, dict[str, Any]], setting: Setting) -> dict[int, dict[str, Any]]:
    """The results of a setting by seed."""
    found = {seed: results.get(replace(setting, seed=seed).folder(4)) for seed in range(len(results))}
    return {seed: result for seed, result in found.items() if result}


def differences(guided: dict[int, dict[str, Any]], unguided: dict[int, dict[str, Any]], key: str) -> str:
    """What guidance adds to a metric, over the seeds that both have."""
    return interval(
        [guided[seed]["metrics"][key] - unguided[seed]["metrics"][key] for seed in guided if seed in unguided]
    )


def report(folder: Path) -> None:
    """Writes `results.csv`, the plots and `page.md` from all results so far."""
    results = load_results(folder)
    write_csv(folder / "results.csv", results)
    models = {name: found for name, setting in MODELS.items() if (found := of_seeds(results, setting))}
    sections = [
        "# Does guidance help?",
        "Made by `python recipes/claim.py`; every model is a row of [results.csv](results.csv).",
    ]
    if models:
        sections += [
            "## Guidance or none, LLM frozen or trained",
            "Mean and 95 % interval over the seeds, whose number the titles tell.",
        ]
        rows = [
            [title, *(interval([r["metrics"][key] for r in found.values()]) for found in models.values())]
            for key, title in COLUMNS.items()
        ]
        sections.append(markdown(["", *(f"{name} ({len(found)})" for name, found in models.items())], rows))
        plot_curves(folder / "curves.png", models)
        sections.append("![existence over steps and LM loss](curves.png)")
    pairs = [pair for pair in PAIRS if all(name in models for name in pair)]
    if pairs:
        sections += ["## What guidance adds", "Guided minus unguided of the same seed, mean and 95 % interval."]
        rows = [[title, *(differences(models[a], models[b], key) for a, b in pairs)] for key, title in COLUMNS.items()]
        sections.append(markdown(["", *(f"{a} - {b}" for a, b in pairs)], rows))
        sections += [
            "## Existence at the same LM loss",
            "The lowest that both come down to; and the step at which 0.75 is reached.",
        ]
        header = ["", "seed", "LM loss", "POPE, guided", "POPE, unguided", "step, guided", "step, unguided"]
        sections.append(markdown(header, [row for a, b in pairs for row in matched_rows(a, b, models[a], models[b])]))
    long = {name: found for name, setting in LONG_MODELS.items() if (found := of_seeds(results, setting))}
    if long:
        sections += ["## Trained longer", f"{LONG} times the steps of stage 4, one seed."]
        rows = [
            [title, *(f"{found[0]['metrics'][key]:.3f}" for found in long.values())] for key, title in COLUMNS.items()
        ]
        rows.append(["first step at 0.75", *(str(reached(found[0]["curve"]) or "never") for found in long.values())])
        plot_curves(folder / "long.png", long)
        sections += [markdown(["", *long], rows), "![the same for the long runs](long.png)"]
    ablations = {name: found for name, setting in ABLATIONS.items() if (found := results.get(setting.folder(4)))}
    if ablations:
        sections += [
            "## One thing changed at a time",
            "One seed, which moves POPE by a few hundredths by itself: see the intervals above.",
        ]
        rows = [
            [name, *(f"{found['metrics'][key]:.3f}" if key in found["metrics"] else "-" for key in COLUMNS)]
            for name, found in ablations.items()
        ]
        plot_ablations(folder / "ablations.png", {name: found["metrics"] for name, found in ablations.items()})
        sections += [markdown(["", *COLUMNS.values()], rows), "![the ablations as bars](ablations.png)"]
    (folder / "page.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def matched_rows(
    guided: str, unguided: str, guided_results: dict[int, dict[str, Any]], unguided_results: dict[int, dict[str, Any]]
) -> list[list[str]]:
    """For every seed, the two models' accuracies on existence at the lowest LM loss that both came down to."""
    rows = []
    for seed in sorted(set(guided_results) & set(unguided_results)):
        curves = [guided_results[seed]["curve"], unguided_results[seed]["curve"]]
        loss = max(min(point["lm_loss"] for point in curve) for curve in curves)
        accuracies = [f"{at_loss(curve, loss):.3f}" for curve in curves]
        steps = [str(reached(curve) or "never") for curve in curves]
        rows.append([f"{guided} / {unguided}", str(seed), f"{loss:.3f}", *accuracies, *steps])
    return rows


def write_csv(path: Path, results: dict[str, dict[str, Any]]) -> None:
    """One row for every model: its name, its last stage's folder, its setting and what it scored."""
    names = {
        replace(setting, seed=seed).folder(4): name
        for name, setting in {**ABLATIONS, **LONG_MODELS, **MODELS}.items()
        for seed in range(len(results))
    }
    metrics = list(dict.fromkeys(name for result in results.values() for name in result["metrics"]))
    settings = [field.name for field in fields(Setting)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "checkpoint", *settings, *metrics])
        for checkpoint, result in results.items():
            chosen = [result["setting"][name] for name in settings]
            scored = [result["metrics"].get(name, "") for name in metrics]
            writer.writerow([names[checkpoint], checkpoint, *chosen, *scored])


def plot_curves(path: Path, models: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Accuracy on existence over the steps of stage 4, and over the LM loss: better, or the same sooner?"""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    for color, (name, found) in enumerate(models.items()):
        for n, result in enumerate(found.values()):
            accuracy = [point["pope_accuracy"] for point in result["curve"]]
            style = {"color": f"C{color}", "linewidth": 1.2, "label": None if n else name}
            left.plot([point["step"] for point in result["curve"]], accuracy, **style)
            right.plot([point["lm_loss"] for point in result["curve"]], accuracy, marker=".", **style)
    for ax, title in ((left, "step of stage 4"), (right, "LM loss on test scenes (nats per token)")):
        ax.axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
        ax.set_xlabel(title)
    right.invert_xaxis()
    left.set_ylabel("existence, share of right answers")
    left.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_ablations(path: Path, metrics: dict[str, dict[str, float]]) -> None:
    """What every change does to existence, attention and LM loss, the base as a line."""
    names, base = list(metrics), next(iter(metrics))
    panels = {"pope_accuracy": "POPE", "chair_i": "CHAIR i", "in_mask_mass": "mass in mask", "lm_loss": "LM loss"}
    figure, grid = plt.subplots(1, len(panels), figsize=(13, 0.32 * len(names) + 1.2), sharey=True)
    for ax, (key, title) in zip(grid, panels.items(), strict=True):
        values = [metrics[name].get(key, math.nan) for name in names]
        ax.barh(names, values, color=["C1" if name == base else "C0" for name in names])
        ax.axvline(values[0], color="C1", linewidth=0.8)
        ax.set_title(title, fontsize=10)
    grid[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/claim"), help="folder of the stages")
    parser.add_argument("--results", type=Path, help="folder of the results and their page; default: that of --out")
    parser.add_argument("--only", choices=("2x2", "ablations", "long"), help="part of the study; default: all of it")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="models trained at the same time")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the 2x2")
    args = parser.parse_args()
    results = args.results or args.out
    # Of the processes: torch's threads and those of NumPy's matrix products, which would wait for each other's cores.
    os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // args.processes))
    run(args.out, results, planned(args.only, args.seeds), args.processes)
    report(results)
    print(f"see {results}/page.md and results.csv")


if __name__ == "__main__":
    main()
