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
Adds language-grounded masks to a data set: rows of `images` and `messages` become the same rows with `regions`.

    accelerate launch recipes/masks.py --dataset_name data/captions --out data/captions_with_masks

As in the paper (appendix B): Florence-2 outlines what a text refers to, the box around each outline prompts SAM, and the
union of SAM's masks is the text's mask. Where SAM's mask and the outline disagree, the outline itself is kept, and the
region says so (`outlines_kept`). `--level phrase` asks Florence-2 for the boxes of every phrase in the text instead, and
gives each phrase a mask of its own.

Runs on any number of processes and goes on where it was stopped: what is written are parquet files of `--rows_per_file`
rows each, which appear when they are complete.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Dataset, Features, Image, List, Value
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModelForMaskGeneration, AutoProcessor, Florence2ForConditionalGeneration, SamProcessor
from trl import TrlParser

from modeling_agevlm.convert_agevlm import loading
from modeling_agevlm.image_processing_agevlm import as_shown
from recipes.common import DataArguments, load_rows
from recipes.data import write_parquet
from recipes.errors import one_sentence
from trainers import displayed_size
from trainers.data_collator import load_image, message_text, with_placeholders
from trainers.stages import get_stage


TASKS = {"message": "<REFERRING_EXPRESSION_SEGMENTATION>", "phrase": "<CAPTION_TO_PHRASE_GROUNDING>"}
REGION = {
    "mask": {"size": List(Value("int32")), "counts": Value("string")},
    "image": Value("int32"),
    "text": Value("string"),
    "span": List(Value("int32")),
    "message": Value("int32"),
    "score": Value("float32"),  # SAM's own estimate of its masks' IoU, the lowest one
    "outlines_kept": Value("int32"),  # instances whose mask is Florence-2's outline
}
SETTINGS_NAME = "masks.json"


@dataclass
class MaskArguments:
    """How masks are made."""

    out: str = field(metadata={"help": "Folder to write the rows with their regions to."})
    florence: str = field(
        default="florence-community/Florence-2-large", metadata={"help": "Florence-2: Hub id or folder."}
    )
    sam: str = field(default="facebook/sam-vit-huge", metadata={"help": "SAM or SAM 2: Hub id or folder."})
    level: str = field(
        default="message",
        metadata={"help": "One mask for a whole text, or one per phrase in it.", "choices": list(TASKS)},
    )
    query: str = field(
        default="answer",
        metadata={
            "help": "The text: what the user says, what the assistant answers, or both as one.",
            "choices": ["question", "answer", "both"],
        },
    )
    batch_size: int = field(default=16, metadata={"help": "Texts for Florence-2, and images for SAM, at a time."})
    num_beams: int = field(default=3, metadata={"help": "Beams of Florence-2."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest outline in tokens, two per point."})
    min_iou: float = field(default=0.5, metadata={"help": "Below this IoU of mask and outline, the outline is kept."})
    min_area: float = field(default=0.0005, metadata={"help": "Smaller masks are dropped, as a share of the picture."})
    max_area: float = field(default=0.95, metadata={"help": "Larger masks are dropped, as a share of the picture."})
    rows_per_file: int = field(default=1000, metadata={"help": "Rows of a file; what a stop can cost per process."})
    num_workers: int = field(default=4, metadata={"help": "Processes that read images, per process with networks."})

    def __post_init__(self):
        for name in ("level", "query"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` has to be one of {choices}, but is {getattr(self, name)!r}.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the masks depend on."""
        same = ("out", "batch_size", "num_workers")
        return {name: value for name, value in asdict(self).items() if name not in same}


# From rows to texts


@dataclass
class Query:
    """A text about a picture. `message` is the one whose words will look at the mask, and in which phrases are found."""

    image: int
    message: int
    text: str


@dataclass
class Prepared:
    """A row with its pictures read, as they are shown and in RGB, and the texts to look for. Or what is wrong with it."""

    row: dict[str, Any]
    pictures: list[PIL.Image.Image]
    queries: list[Query]
    failure: str | None = None


def find_queries(messages: list[dict[str, Any]], num_images: int, query: str) -> list[Query]:
    """
    The texts of a row, each with the last picture that its words can see.

    Args:
        messages (`list[dict]`): Messages of any kind that the trainer takes.
        num_images (`int`): Pictures of the row.
        query (`str`): `"question"`, `"answer"` or `"both"`; both together are the question's.
    """
    messages, queries, seen = with_placeholders(messages, num_images), [], 0
    for n, message in enumerate(messages):
        seen += sum(part["type"] == "image" for part in message["content"])
        words = message_text(message).strip()
        answer = messages[n + 1] if n + 1 < len(messages) and messages[n + 1]["role"] == "assistant" else None
        if query == "both" and message["role"] == "user" and answer is not None:
            words = f"{words} {message_text(answer).strip()}"
        wanted = "assistant" if query == "answer" else "user"
        if seen and words and message["role"] == wanted:
            queries.append(Query(seen - 1, n, words))
    return queries


def prepare(row: dict[str, Any], query: str) -> Prepared:
    """Reads the pictures of a row. What is wrong with it is told, not raised."""
    try:
        pictures = [as_shown(load_image(image)).convert("RGB") for image in row["images"] or []]
        return Prepared(row, pictures, find_queries(row["messages"], len(pictures), query))
    except Exception as error:  # Pillow's plugins raise anything on damaged files
        return Prepared(row, [], [], f"{type(error).__name__}: {error}"[:200])


# The two networks


@dataclass
class Instance:
    """One thing that a text refers to, in the picture's pixels."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    outline: list[list[float]] = field(default_factory=list)  # polygons, [x0, y0, x1, y1, ...] each


@dataclass
class Finding:
    """What was found for a query: the instances of the whole text, or of one phrase of it."""

    query: Query
    instances: list[Instance]
    phrase: str | None = None


class Locator:
    """Florence-2. From texts and pictures to boxes and outlines."""

    def __init__(self, arguments: MaskArguments, device: torch.device, dtype: torch.dtype) -> None:
        with loading(arguments.florence):
            self.processor = AutoProcessor.from_pretrained(arguments.florence)
            self.model = Florence2ForConditionalGeneration.from_pretrained(arguments.florence, dtype=dtype)
        self.model = self.model.to(device).eval()
        self.task, self.device, self.dtype = TASKS[arguments.level], device, dtype
        self.generation = {"num_beams": arguments.num_beams, "max_new_tokens": arguments.max_new_tokens}

    @torch.inference_mode()
    def generate(self, texts: list[str], pictures: list[PIL.Image.Image]) -> list[str]:
        """What the network writes about each text, with its location tokens."""
        prompts = [f"{self.task}{text}" for text in texts]
        inputs = self.processor(
            text=prompts, images=pictures, padding=True, truncation=True, max_length=1024, return_tensors="pt"
        ).to(self.device, self.dtype)
        output = self.model.generate(**inputs, do_sample=False, **self.generation)
        return self.processor.batch_decode(output, skip_special_tokens=False)

    def read(self, query: Query, written: str, picture: PIL.Image.Image) -> list[Finding]:
        """What was written as boxes and outlines."""
        found = self.processor.post_process_generation(written, task=self.task, image_size=picture.size)[self.task]
        if "polygons" in found:
            instances = [[polygon for polygon in parts if len(polygon) >= 6] for parts in found["polygons"]]
            return [Finding(query, [Instance(box_around(parts), parts) for parts in instances if parts])]
        boxes: dict[str, list[Instance]] = {}
        for phrase, box in zip(found["labels"], found["bboxes"], strict=True):
            boxes.setdefault(phrase, []).append(Instance(tuple(box)))
        return [Finding(query, instances, phrase) for phrase, instances in boxes.items()]


def box_around(polygons: list[list[float]]) -> tuple[float, float, float, float]:
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


class Segmenter:
    """SAM or SAM 2. From boxes to masks."""

    @property
    def pads(self) -> bool:
        """Whether pictures are padded to a square (SAM) or stretched (SAM 2)."""
        return isinstance(self.processor, SamProcessor)

    def __init__(self, arguments: MaskArguments, device: torch.device, dtype: torch.dtype) -> None:
        with loading(arguments.sam):
            self.processor = AutoProcessor.from_pretrained(arguments.sam)
            self.model = AutoModelForMaskGeneration.from_pretrained(arguments.sam, dtype=dtype).to(device).eval()
        self.device, self.dtype = device, dtype

    def encode(self, pictures: list[PIL.Image.Image]) -> list["Encoded"]:
        """What the decoder needs of each picture."""
        inputs = self.processor(images=pictures, return_tensors="pt")
        original = inputs["original_sizes"]
        fed = torch.tensor(inputs["pixel_values"].shape[-2:]).expand(len(pictures), 2)
        if self.pads:
            fed = inputs["reshaped_input_sizes"]
        return [Encoded(*parts) for parts in zip(self.embed(inputs["pixel_values"]), original, fed, strict=True)]

    def masks(self, raw: "RawMasks") -> Iterator[tuple[np.ndarray, float]]:
        """The mask in each box, `(height, width)` of the picture, and its score."""
        sizes = [raw.original_size[None]]
        if self.pads:
            sizes.append(raw.fed_size[None])
        for logits, score in zip(raw.logits, raw.scores.tolist(), strict=True):  # one by one: they are large
            yield self.processor.post_process_masks([logits[None, None]], *sizes)[0][0, 0].numpy(), score

    def prompt(self, encoded: "Encoded", boxes: Sequence[tuple]) -> "RawMasks":
        """What the network makes of boxes in the picture's pixels."""
        scale = (encoded.fed_size / encoded.original_size).flip(0).repeat(2)  # of x, y, x, y
        logits, scores = self.decode(encoded.features, torch.tensor(boxes)[None] * scale)
        return RawMasks(logits, scores, encoded.original_size, encoded.fed_size)

    @torch.inference_mode()
    def embed(self, pixel_values: torch.Tensor) -> list[Any]:
        """The features of each picture."""
        features = self.model.get_image_embeddings(pixel_values.to(self.device, self.dtype))
        if isinstance(features, torch.Tensor):
            return list(features.split(1))
        return [[level[n : n + 1] for level in features] for n in range(len(pixel_values))]  # SAM 2

    @torch.inference_mode()
    def decode(self, features: Any, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the masks in boxes `(1, num_boxes, 4)`, `(num_boxes, height, width)`, and their scores `(num_boxes,)`."""
        outputs = self.model(
            image_embeddings=features, input_boxes=boxes.to(self.device, self.dtype), multimask_output=False
        )
        return outputs.pred_masks[0, :, 0].float().cpu(), outputs.iou_scores[0, :, 0].float().cpu()


class Encoded(NamedTuple):
    """A picture as SAM keeps it. Sizes are `(height, width)`, tensors."""

    features: Any
    original_size: torch.Tensor
    fed_size: torch.Tensor  # of the picture inside of SAM's square


class RawMasks(NamedTuple):
    """SAM's own output for the boxes of one picture."""

    logits: torch.Tensor  # (num_boxes, height, width), of its own size
    scores: torch.Tensor  # (num_boxes,)
    original_size: torch.Tensor
    fed_size: torch.Tensor


# From what they found to regions


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def make_region(
    finding: Finding, masks: list[tuple[np.ndarray, float]], size: tuple[int, int], arguments: MaskArguments
) -> tuple[dict[str, Any] | None, str | None]:
    """
    The region of a finding, or why there is none.

    Args:
        finding ([`Finding`]): The query and its instances.
        masks (`list[tuple[np.ndarray, float]]`): SAM's mask and score of each instance.
        size (`tuple[int, int]`): Height and width of the picture.
        arguments ([`MaskArguments`]): What is dropped.
    """
    codes, kept = [], 0
    for instance, (mask, _) in zip(finding.instances, masks, strict=True):
        code = encode_mask(mask)
        if instance.outline:
            outline = coco_mask.merge(coco_mask.frPyObjects(instance.outline, *size))
            if coco_mask.iou([code], [outline], [0])[0, 0] < arguments.min_iou:
                code, kept = outline, kept + 1
        codes.append(code)
    union = coco_mask.merge(codes)
    share = coco_mask.area(union) / (size[0] * size[1])
    if share < arguments.min_area:
        return None, "too small"
    if share > arguments.max_area:
        return None, "whole image"
    region = {
        "mask": {"size": list(size), "counts": union["counts"].decode("ascii")},
        "image": finding.query.image,
        "text": None,
        "span": None,
        "message": finding.query.message,
        "score": min(score for _, score in masks),
        "outlines_kept": kept,
    }
    if finding.phrase is not None:
        # Florence-2 writes phrases in plain ASCII, and may change their case.
        start = finding.query.text.lower().find(finding.phrase.lower())
        if start < 0 or not finding.phrase:
            return None, "phrase not in the text"
        region["text"] = finding.query.text[start : start + len(finding.phrase)]
    return region, None


Place = tuple[int, int]  # of a row in its batch, and of a picture in its row


class MaskMaker:
    """Both networks, and what lies before, between and behind them."""

    def __init__(self, arguments: MaskArguments, locator: Locator, segmenter: Segmenter) -> None:
        self.arguments, self.locator, self.segmenter = arguments, locator, segmenter

    def __call__(self, rows: list[Prepared]) -> list[dict[str, Any]]:
        """The rows with `regions`, and with `mask_problems`: why something has none."""
        return self.finish(rows, *self.run_networks(rows))

    def run_networks(self, rows: list[Prepared]) -> tuple[list[list[Finding]], dict[Place, RawMasks]]:
        """What Florence-2 finds in each row, and SAM's masks of all instances in a picture. Each is encoded once."""
        findings: list[list[Finding]] = [[] for _ in rows]
        queries = [(n, query) for n, row in enumerate(rows) for query in row.queries]
        for batch in batched(queries, self.arguments.batch_size):
            pictures = [rows[n].pictures[query.image] for n, query in batch]
            written = self.locator.generate([query.text for _, query in batch], pictures)
            for (n, query), text, picture in zip(batch, written, pictures, strict=True):
                findings[n] += self.locator.read(query, text, picture) or [Finding(query, [])]
        boxes: dict[Place, list[tuple]] = {}
        for n, row_findings in enumerate(findings):
            for finding in row_findings:
                if finding.instances:
                    boxes.setdefault((n, finding.query.image), []).extend(i.box for i in finding.instances)
        raw = {}
        for batch in batched(list(boxes), self.arguments.batch_size):
            pictures = [rows[n].pictures[image] for n, image in batch]
            for place, encoded in zip(batch, self.segmenter.encode(pictures), strict=True):
                raw[place] = self.segmenter.prompt(encoded, boxes[place])
        return findings, raw

    def finish(
        self, rows: list[Prepared], findings: list[list[Finding]], raw: dict[Place, RawMasks]
    ) -> list[dict[str, Any]]:
        """From the networks' output to the rows with their regions."""
        results, masks = [], {place: self.segmenter.masks(found) for place, found in raw.items()}
        for n, (row, row_findings) in enumerate(zip(rows, findings, strict=True)):
            regions, problems = [], [] if row.failure is None else [f"failed: {row.failure}"]
            for finding in row_findings:
                if not finding.instances:
                    problems.append("empty")
                    continue
                of_instances = [next(masks[n, finding.query.image]) for _ in finding.instances]
                size = displayed_size(row.pictures[finding.query.image])
                region, problem = make_region(finding, of_instances, size, self.arguments)
                if problem is None:
                    regions.append(region)
                else:
                    problems.append(problem)
            results.append({**row.row, "regions": regions, "mask_problems": problems})
        return results


def batched(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# All rows, on all processes


def file_names(num_rows: int, rows_per_file: int) -> dict[str, range]:
    """Which rows each file holds."""
    starts = range(0, num_rows, rows_per_file)
    return {
        f"train-{n:05d}-of-{len(starts):05d}.parquet": range(start, min(start + rows_per_file, num_rows))
        for n, start in enumerate(starts)
    }


def start_folder(out: Path, settings: dict[str, Any]) -> None:
    """
    Makes the folder, or makes it ready to go on.

    Raises:
        ValueError: If other masks are in it.
    """
    out.mkdir(parents=True, exist_ok=True)
    note = out / SETTINGS_NAME
    before = json.loads(note.read_text()) if note.exists() else settings
    different = sorted(name for name in settings | before if settings.get(name) != before.get(name))
    if different:
        raise ValueError(
            f"{out} holds masks made with another {', '.join(different)}. Choose another `--out`, or remove the folder."
        )
    note.write_text(json.dumps(settings, indent=2) + "\n")
    for file in out.glob("_*.parquet.*"):  # of a process that was killed
        file.unlink()


def make_masks(rows: Dataset, maker: MaskMaker, out: Path, state: PartialState) -> None:
    """Writes those files that are not there yet, in turns with the other processes."""
    arguments = maker.arguments
    features = Features({**rows.features, "regions": List(REGION), "mask_problems": List(Value("string"))})
    missing = [(name, part) for name, part in file_names(len(rows), arguments.rows_per_file).items()]
    missing = [(name, part) for name, part in missing if not (out / name).exists()]
    state.wait_for_everyone()  # all have to see the same ones missing
    own = missing[state.process_index :: state.num_processes]
    with tqdm(
        total=sum(len(part) for _, part in own),
        desc=f"masks, process 1 of {state.num_processes}",
        unit=" rows",
        disable=not state.is_main_process,
    ) as bar:
        for name, part in own:
            loader = DataLoader(
                Preparing(rows, part, arguments.query),
                batch_size=arguments.batch_size,
                num_workers=min(arguments.num_workers, len(part)),
                collate_fn=list,
            )
            with ThreadPoolExecutor(1) as finisher:  # while the networks have the next batch
                jobs = []
                for batch in loader:
                    jobs.append(finisher.submit(maker.finish, batch, *maker.run_networks(batch)))
                    bar.update(len(batch))
            write_parquet(out / name, [row for job in jobs for row in job.result()], features)


@dataclass
class Preparing:
    """Rows that are prepared when they are asked for, by the workers of a data loader."""

    rows: Dataset
    part: range
    query: str

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, n: int) -> Prepared:
        return prepare(self.rows[self.part[n]], self.query)


def summary(out: Path) -> str:
    """A table of what the files in a folder hold."""
    num_rows, num_masked, kept, regions, problems, first = 0, 0, 0, 0, Counter(), {}
    for file in sorted(out.glob("train-*.parquet")):
        columns = [name for name in ("id", "regions", "mask_problems") if name in pq.read_schema(file).names]
        for row in pq.read_table(file, columns=columns).to_pylist():
            num_rows += 1
            num_masked += bool(row["regions"])
            regions += len(row["regions"])
            kept += sum(region["outlines_kept"] > 0 for region in row["regions"])
            for problem in row["mask_problems"]:
                kind, _, detail = problem.partition(": ")
                kind = f"{kind}: {detail.partition(':')[0]}" if detail else kind
                problems[kind] += 1
                first.setdefault(kind, f"   {row['id']}: {detail}" if detail and "id" in row else "")
    lines = [f"{num_rows:>12,} rows", f"{num_masked:>12,} with masks", f"{regions:>12,} masks"]
    lines += [f"{kept:>12,} of them with an outline of Florence-2 that SAM's mask disagreed with"]
    lines += [f"{n:>12,} {problem}{first[problem]}" for problem, n in problems.most_common()]
    return "\n".join(lines)


def main() -> None:
    parser = TrlParser((DataArguments, MaskArguments))
    with one_sentence():
        data, arguments = parser.parse_args_and_config()
        state = PartialState()
        rows = load_rows(data, get_stage(3), image_size=1024)
        if not isinstance(rows, Dataset):
            raise ValueError("Masks are made for a data set that can be counted: leave `--streaming` out.")
        if not {"images", "messages"} <= set(rows.column_names):
            raise ValueError(
                f"{data.dataset_name} has the columns {rows.column_names}, but needs images and messages."
            )
        columns = [name for name in ("regions", "mask_problems") if name in rows.column_names]
        rows = rows.remove_columns(columns).cast_column("images", List(Image(decode=False)))
        out = Path(arguments.out)
        with state.main_process_first():
            if state.is_main_process:
                start_folder(out, {**arguments.settings, "data": asdict(data)})
        dtype = torch.bfloat16 if state.device.type == "cuda" else torch.float32
        maker = MaskMaker(
            arguments, Locator(arguments, state.device, dtype), Segmenter(arguments, state.device, dtype)
        )
    make_masks(rows, maker, out, state)
    state.wait_for_everyone()
    if state.is_main_process:
        print(summary(out))


if __name__ == "__main__":
    main()
