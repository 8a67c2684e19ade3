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
"""The paper's figures of a model's inside, for AGE-VLMs and concatenation VLMs alike."""

import json
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.drawing import plt
from recipes.drawing.attention import draw_attention, draw_legend, in_numbers
from recipes.inside.hallucination import answer_questions, draw_aucs, draw_curves, score, tell
from recipes.inside.measures import auc, concentration, derangement, interval, overlap
from recipes.inside.vlm import LAYERS, AgeVlm, Vlm, by_layers, labels, read_rows
from recipes.scenes.classes import POPE_KINDS
from recipes.scenes.questions import load_questions
from recipes.training.arguments import RowsArguments
from recipes.training.data_sets import load_dataset_of
from trainers import get_stage


SCENE_SIZE = 256
SIMILARITY_IN_PAPER = (
    "Fig. 2 of the paper (last self-attention layer): ConvLLaVA's matching pairs lie around 0.5, mismatching ones around "
    "0.2 to 0.3; MobileVLM-v2's both at 0.96 to 0.98."
)


def existence_questions(num_images: int) -> list[dict[str, Any]]:
    return [q for q in load_questions("test", num_images, SCENE_SIZE) if q["kind"] in POPE_KINDS]


def as_placed(image: PIL.Image.Image, box: tuple[int, int, int, int]) -> PIL.Image.Image:
    """The picture as a model gets it: cropped to the box, and white where that is padding."""
    left, top, right, bottom = box
    canvas = PIL.Image.new("RGB", (right - left, bottom - top), "white")
    canvas.paste(image, (-left, -top))
    return canvas


def save(figure: plt.Figure, out: Path, numbers: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, bbox_inches="tight")
    plt.close(figure)
    out.with_suffix(".json").write_text(json.dumps(numbers, indent=2, default=float) + "\n")
    print(f"{out}, {out.with_suffix('.json')}")


# Attention over pictures: Tables 4 and 6


def attention(vlms: list[Vlm], rows: list[dict[str, Any]], out: Path) -> dict[str, Any]:
    """
    One line per row (`image`, `question`, `words`: a phrase of the question, or None for all of it), and of every model
    two panels. Beneath a panel is the picture as the model gets it, cropped or padded.
    """
    names = labels(vlms)
    num_columns = 1 + 2 * len(vlms)
    spaces = {"wspace": 0.08, "hspace": 0.5}
    figure, grid = plt.subplots(
        len(rows), num_columns, figsize=(2.3 * num_columns, 3.4 * len(rows)), squeeze=False, gridspec_kw=spaces
    )
    numbers: dict[str, Any] = {"rows": []}
    maps = {}
    for n, (line, row) in enumerate(zip(grid, rows, strict=True)):
        image, words = row["image"], row["words"] or row["question"]
        line[0].imshow(image)
        line[0].set_axis_off()
        title = f"{textwrap.fill(row['question'], 27)}\nwords: {row['words'] or 'all'}"
        line[0].set_title(title, fontsize=9, loc="left", parse_math=False)
        entry: dict[str, Any] = {"question": row["question"], "words": words, "models": {}}
        for vlm, name, panels in zip(vlms, names, line[1:].reshape(-1, 2), strict=True):
            inputs, _ = vlm.encode(image, row["question"])
            look = vlm.look(inputs, vlm.find(inputs, words)[None])
            seen = as_placed(image, vlm.placement(image, look.maps.shape[-2:])[0])
            shares, cells = by_layers(look.image_share[0]), by_layers(look.maps[0])
            on_nothing = {layer: share.item() for layer, share in by_layers(look.on_nothing[0]).items()}
            answer = vlm.decode(vlm.generate([image], [row["question"]])[0])
            below = {"first": textwrap.shorten(answer, 80, placeholder=" ...") or "(no answer)", "mean": ""}
            titles = LAYERS | {"first": vlm.first_layer}
            if vlm.layer_names is not LAYERS:
                titles = {layer: textwrap.fill(title, 24) for layer, title in vlm.layer_names.items()}
            for axes, layer in zip(panels, LAYERS, strict=True):
                if layer == "mean" and titles["mean"] == titles["first"]:
                    axes.set_axis_off()
                    continue
                attention = cells[layer].numpy()
                draw_attention(axes, seen, attention)
                title = f"{name}\n{titles[layer]}\n{in_numbers(attention, on_nothing[layer])}"
                axes.set_title(title, fontsize=9, loc="left", parse_math=False)
                text = textwrap.fill(below[layer], 36)
                if not isinstance(vlm, AgeVlm):
                    text = f"{shares[layer]:.0%} of all attention\n{text}"
                axes.text(0, -0.04, text, transform=axes.transAxes, fontsize=8, va="top", parse_math=False)
            maps[f"{n} {name}"] = look.maps[0].numpy()
            entry["models"][name] = {
                "answer": answer,
                "image_share": {layer: shares[layer].item() for layer in LAYERS},
                "entropy": {layer: concentration(cells[layer], on_nothing[layer])["entropy"] for layer in LAYERS},
            }
            if vlm.layer_names is not LAYERS:
                entry["models"][name]["layers"] = vlm.layer_names
        numbers["rows"].append(entry)
    figure.text(grid[0, 0].get_position().x0, 0.03, "Below the panels: what the model answers.", fontsize=8, va="top")
    draw_legend(figure)
    save(figure, out, numbers)
    np.savez_compressed(out.with_suffix(".npz"), **maps)
    return numbers


# Similarity of text and image states: Fig. 2


def read_captions(name: str, split: str, num_rows: int) -> list[tuple[PIL.Image.Image, str]]:
    """
    Pictures and captions: of a JSONL file (`image`, relative to it, and `caption`), of test scenes, or of a data set with
    these columns or with the stages' (`images`, and `messages`, of which the last is the caption).

    Raises:
        ValueError: If a row has no picture or no caption, or there are fewer than two.
    """
    if name.endswith(".jsonl"):
        rows = read_rows(Path(name), {"image": str, "caption": str})[:num_rows]
    else:
        data = RowsArguments(dataset_split="test" if name == "scenes" else split, num_scenes=num_rows)
        try:
            rows = load_dataset_of(name, data, get_stage(3), SCENE_SIZE)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(f"{name} cannot be loaded as a data set: {reason}.") from error
        rows = rows.select(range(min(num_rows, len(rows))))
    pairs = []
    for n, row in enumerate(rows):
        try:
            image = row["image"] if "image" in row else row["images"][0]
            caption = row["caption"] if "caption" in row else row["messages"][-1]["content"]
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"Row {n} of {name} has no picture and caption. It needs `image` and `caption`, or `images` and `messages`."
            ) from None
        pairs.append((read_image(image), caption.strip()))
    if len(pairs) < 2:
        raise ValueError(f"{name} has {len(pairs)} rows, but to mismatch captions takes at least two.")
    return pairs


def similarity(vlms: list[Vlm], pairs: list[tuple[PIL.Image.Image, str]], out: Path, seed: int = 0) -> dict[str, Any]:
    """
    Every picture is read once with its caption and once with another one's (not the same words), as the user's message.
    The paper's figure is of concatenation VLMs. What stands for the image states of ours is said above each panel.
    """
    partners = derangement(len(pairs), seed)
    kept = [n for n, partner in enumerate(partners) if pairs[partner][1] != pairs[n][1]]
    numbers: dict[str, Any] = {"paper": SIMILARITY_IN_PAPER, "num_pairs": len(kept), "models": {}}
    panels = []
    for vlm, name in zip(vlms, labels(vlms), strict=True):
        found: dict[str, tuple[list[float], list[float]]] = {}
        for n in kept:
            for group, caption in enumerate((pairs[n][1], pairs[partners[n]][1])):
                inputs, _ = vlm.encode(pairs[n][0], caption)
                for states, value in vlm.similarities(inputs, vlm.find(inputs, caption)).items():
                    found.setdefault(states, ([], []))[group].append(value)
        numbers["models"][name] = {}
        for states, groups in found.items():
            matching, mismatching = map(np.array, groups)

            def drawn_auc(rows: np.ndarray, first: np.ndarray = matching, second: np.ndarray = mismatching) -> float:
                scores = np.concatenate([first[rows], second[rows]])
                return auc(scores, np.arange(len(scores)) < len(rows))

            entry = {
                "overlap": overlap(matching, mismatching),
                "auc": drawn_auc(np.arange(len(matching))),
                "auc_interval": interval(drawn_auc, len(matching)),
                "matching": matching.tolist(),
                "mismatching": mismatching.tolist(),
            }
            numbers["models"][name][states] = entry
            panels.append((f"{name}\nimage states: {states}", entry))
    num_columns = min(3, len(panels))
    num_lines = math.ceil(len(panels) / num_columns)
    figure, grid = plt.subplots(num_lines, num_columns, figsize=(4.2 * num_columns, 3.6 * num_lines), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, entry) in zip(grid.flat, panels, strict=False):
        edges = np.histogram_bin_edges(entry["matching"] + entry["mismatching"], 20)
        for group, color in (("matching", "tab:blue"), ("mismatching", "tab:orange")):
            axes.hist(entry[group], edges, alpha=0.55, color=color, label=f"{group} pairs")
        low, high = entry["auc_interval"]
        title += f"\noverlap {entry['overlap']:.2f}, AUC {entry['auc']:.2f} [{low:.2f}, {high:.2f}]"
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        axes.set_xlabel("cosine similarity of text and image states", fontsize=8)
        axes.set_ylabel("pairs", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=8)
    figure.tight_layout()
    text = textwrap.fill(f"{len(kept)} pairs of each kind. {SIMILARITY_IN_PAPER}", 62 * num_columns)
    figure.text(0.01, -0.01, text, fontsize=8, va="top")
    save(figure, out, numbers)
    return numbers


# Attention on padding: appendix D


def halves_of_scenes(num_pictures: int) -> list[PIL.Image.Image]:
    """Pictures that are not square: the middle of every scene, by turns half as high and half as wide."""
    quarter, whole = SCENE_SIZE // 4, SCENE_SIZE
    boxes = [(0, quarter, whole, whole - quarter), (quarter, 0, whole - quarter, whole)]
    return [image.crop(boxes[n % 2]) for n, (image, _) in enumerate(read_captions("scenes", "test", num_pictures))]


def padding(vlms: list[Vlm], images: list[PIL.Image.Image], question: str, out: Path) -> dict[str, Any]:
    """
    Our models get the pictures with `do_pad`, once as they are, with padded cells masked, and once with all cells open.
    Other models cannot mask their padding; those whose processor does not pad are left out. A cell counts as padding if
    it holds nothing else.

    Raises:
        ValueError: If no model has such a cell in any of the pictures.
    """
    numbers: dict[str, Any] = {"question": question, "models": {}}
    examples = {}
    for vlm, name in zip(vlms, labels(vlms), strict=True):
        if isinstance(vlm, AgeVlm):
            vlm.processor.image_processor.do_pad = True
        shares: dict[str, list[float]] = {"area": []}
        for image in images:
            inputs, _ = vlm.encode(image, question)
            words = vlm.find(inputs, question)[None]
            versions = {"open": inputs}
            if isinstance(vlm, AgeVlm):
                everything = torch.ones_like(inputs["pixel_attention_mask"])
                versions = {"open": inputs | {"pixel_attention_mask": everything}, "masked": inputs}
            looks = {version: vlm.look(version_inputs, words) for version, version_inputs in versions.items()}
            box, padded = vlm.placement(image, looks["open"].maps.shape[-2:])
            if not padded.any():
                continue
            shares["area"].append(padded.float().mean().item())
            for version, look in looks.items():
                for layer, cells in by_layers(look.maps[0]).items():
                    shares.setdefault(f"{version}, {LAYERS[layer]}", []).append(cells[padded].sum().item())
            examples.setdefault(name, (vlm, as_placed(image, box), looks))
        if shares["area"]:
            means = {key: float(np.mean(values)) for key, values in shares.items()}
            numbers["models"][name] = {"num_pictures": len(shares["area"]), **means, "each": shares}
        else:
            print(f"{vlm.name} has no cell of nothing but padding in any of the pictures: left out")
    if not examples:
        raise ValueError(
            "No model has a cell of nothing but padding in any of the pictures. Pass pictures that are far from square."
        )

    shape = {"figsize": (10.5, 3.5 * len(examples)), "gridspec_kw": {"width_ratios": [1, 1, 1.3]}}
    figure, grid = plt.subplots(len(examples), 3, squeeze=False, **shape)
    for line, (name, (vlm, seen, looks)) in zip(grid, examples.items(), strict=True):
        for axes, version, title in zip(line, ("open", "masked"), ("padding open", "padding masked"), strict=False):
            axes.set_axis_off()
            if version in looks:
                on_nothing = looks[version].on_nothing[0, 0].item()
                attention = looks[version].maps[0, 0].numpy()
                draw_attention(axes, seen, attention)
                title = f"{name}\n{title}, {vlm.layer_names['first']}\n{in_numbers(attention, on_nothing)}"
                axes.set_title(title, fontsize=9, loc="left", parse_math=False)
            else:
                axes.text(0.5, 0.5, "this model has no mask\nfor padding", ha="center", va="center", fontsize=9)
        bars = {key: v for key, v in numbers["models"][name].items() if key not in ("num_pictures", "each")}
        titles = {"area": "padding's share\nof the area"} | {
            key: key.replace(", ", " padding,\n") for key in list(bars)[1:]
        }
        drawn = line[2].barh(
            list(titles.values()), list(bars.values()), color=["gray"] + ["tab:red"] * (len(bars) - 1)
        )
        line[2].bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
        line[2].invert_yaxis()
        line[2].set_xlim(0, 1)
        line[2].tick_params(labelsize=8)
        line[2].set_title(
            f"share of attention on padding, {numbers['models'][name]['num_pictures']} pictures",
            fontsize=9,
            loc="left",
        )
    figure.tight_layout()
    draw_legend(figure)
    save(figure, out, numbers)
    return numbers


# Does attention tell when the model hallucinates?


def hallucination(vlms: list[Vlm], rows: list[dict[str, Any]], layers: str, out: Path) -> dict[str, Any]:
    """
    Rows with a `prediction` are a model's answers already; others are asked. An AUC of 0.5 means that a score tells
    nothing; the directions are fixed beforehand, so below 0.5 it points the wrong way.

    Raises:
        ValueError: If there is no question, or none has an answer.
    """
    if not rows:
        raise ValueError("There is no question for existence about so few scenes: take more (`--num_scenes`).")
    numbers: dict[str, Any] = {"layers": layers, "models": {}}
    figure, grid = plt.subplots(len(vlms), 2, figsize=(12, 4.8 * len(vlms)), squeeze=False)
    for (curve, chart), vlm, name in zip(grid, vlms, labels(vlms), strict=True):
        answered = rows if "prediction" in rows[0] else answer_questions(vlm, rows)
        spoken = [row for row in answered if row["prediction"].strip()]
        if not spoken:
            raise ValueError(f"{vlm.name} answers none of the questions: there is no word whose attention could tell.")
        cases = [score(vlm, row, layers) for row in spoken]
        told = tell(cases)
        numbers["models"][name] = {"num_without_answer": len(answered) - len(spoken), **told}
        draw_curves(curve, cases)
        accuracy = 1 - told["wrong"]["num_positive"] / len(cases)
        title = f"{name}: {len(cases)} answers, {accuracy:.2f} right"
        if vlm.layer_names is not LAYERS:
            title += f"\nattention: {vlm.layer_names[layers]}"
        curve.set_title(title, fontsize=9, loc="left", parse_math=False)
        draw_aucs(chart, told)
    figure.tight_layout()
    save(figure, out, numbers)
    return numbers


def attention_rows(images: list[str], questions: list[str], words: list[str] | None, num_scenes: int) -> list[dict]:
    """What the command line says, or the first test scenes that show what they are asked about, with its mask."""
    if not images:
        shown = [q for q in existence_questions(num_images=max(20, num_scenes)) if q["answer"] == "yes"]
        names = {"image": "image", "question": "question", "words": "object", "mask": "mask"}
        return [{name: question[of] for name, of in names.items()} for question in shown[:num_scenes]]
    if len(questions) not in (1, len(images)) or len(words or [None]) not in (1, len(images)):
        raise ValueError(
            f"There are {len(images)} pictures, {len(questions)} questions and {len(words or [])} phrases. Pass one question "
            "for all pictures or one for each, and the same of `--words`, if any."
        )
    questions = questions * (len(images) // len(questions))
    words = (words or [None]) * (len(images) // len(words or [None]))
    return [
        {"image": read_image(image), "question": question, "words": phrase, "mask": None}
        for image, question, phrase in zip(images, questions, words, strict=True)
    ]
