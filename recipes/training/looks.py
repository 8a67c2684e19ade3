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

"""Pictures of where words look, beside the curves of a training."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.attention import split_sink
from recipes.answering.rows import looking_inputs
from recipes.drawing.attention import save_attention_lines
from trainers import DataCollatorForGuidedVisionLanguageModeling, GuidedSFTTrainer
from trainers.data_collator import BrokenRowError, as_parts, message_text
from trainers.rows import as_row


TITLE = "where words look"
NUM_ROWS, NUM_REGIONS = 4, 3  # of a picture: rows, and regions of each
NUM_LOOKS = 8
MOST_READ = 100  # rows, to find those with masks


class Looks(TrainerCallback):
    """
    Draws, `NUM_LOOKS` times while a model trains and after its first step, where the words of the first rows with a picture
    and masks look: as `looks/step-<number>.png` in the run's folder, and in TensorBoard, trackio and Weights & Biases where
    the run reports to them. Every process computes the maps, for the model may be shared out among them.

    Args:
        trainer ([`GuidedSFTTrainer`]): The trainer that it is added to. What of its rows cannot be used is passed over here;
            training tells of it.
    """

    def __init__(self, trainer: GuidedSFTTrainer) -> None:
        self.trainer, self.rows = trainer, []
        collate = DataCollatorForGuidedVisionLanguageModeling(trainer.processing_class)
        for row in map(as_row, itertools.islice(trainer.train_dataset, MOST_READ)):
            regions = [region for region in row.get("regions") or () if region["mask"] is not None]
            # Each phrase once, and before whole messages, which look at all that they are about
            regions = list({region["text"] or region["message"]: region for region in regions}.values())
            regions = sorted(regions, key=lambda region: region["text"] is None)[:NUM_REGIONS]
            try:
                batch = collate([{**row, "regions": regions}])
            except BrokenRowError:
                continue
            if regions and len(row["images"]) == 1 and not batch["dropped_regions"].any():
                words = [
                    region["text"] or message_text(as_parts(0, row["messages"][region["message"]]))
                    for region in regions
                ]
                image = row["images"][0]
                self.rows.append((read_image(Path(image) if isinstance(image, str) else image), words, batch))
            if len(self.rows) == NUM_ROWS:
                break

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step
        if not self.rows or step not in (1, state.max_steps) and step % max(1, state.max_steps // NUM_LOOKS):
            return
        model = self.trainer.model_wrapped
        training = model.training
        model.eval()
        lines = [(picture, self.panels(model, picture, words, batch)) for picture, words, batch in self.rows]
        model.train(training)
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / "looks" / f"step-{step:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_attention_lines(path, lines)
        for callback in self.trainer.callback_handler.callbacks:
            report(callback, path, step)

    @torch.no_grad()
    def panels(
        self, model: torch.nn.Module, picture: PIL.Image.Image, words: list[str], batch: dict[str, torch.Tensor]
    ) -> dict[str, tuple[np.ndarray, float]]:
        """By title, the attention of each region's words over the picture and the share that lies on the sink."""
        outputs = model(**looking_inputs(batch, self.trainer.args.device), logits_to_keep=1)
        cells = batch["region_masks"][0]
        on_cells, sinks = (part[0].mean(dim=1) for part in split_sink(outputs.grounding_maps, cells.shape[-1]))
        inside = (on_cells * cells).sum(dim=-1).tolist()
        size = (picture.height, picture.width)
        maps = self.trainer.processing_class.post_process_grounding(outputs, [size], smooth=True)[0][0].numpy()
        return {
            f"{text} ({share:.0%} inside)": (attention, sink)
            for text, share, attention, sink in zip(words, inside, maps, sinks.tolist(), strict=True)
        }


def report(callback: TrainerCallback, picture: Path, step: int) -> None:
    """Gives a picture to a tracker, if it is one that takes pictures."""
    if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        with PIL.Image.open(picture) as file:
            callback.tb_writer.add_image(TITLE, np.asarray(file.convert("RGB")), step, dataformats="HWC")
    elif isinstance(callback, TrackioCallback):
        callback._trackio.log({TITLE: callback._trackio.Image(str(picture)), "train/global_step": step})
    elif isinstance(callback, WandbCallback):
        callback._wandb.log({TITLE: callback._wandb.Image(str(picture)), "train/global_step": step})
