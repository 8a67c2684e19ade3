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
Writes the tables of numbers in README.md and docs/ anew, from committed data.

    python docs/write_tables.py         # all of them
    python docs/write_tables.py demo    # one of them, after `cp runs/demo/metrics.json docs/demo/`

A table stands below the line `<!-- made by: python docs/write_tables.py NAME -->`.
"""

import argparse
import functools
import json
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recipes import scale_plan
from recipes.benchmarks import scale
from recipes.benchmarks.exported import exported_table
from recipes.benchmarks.timing import rows_table
from recipes.grounding.tables import abstaining_tables, probe_table, readout_tables, told_table, zoom_table
from recipes.guiding.looking import table as before_and_after
from recipes.scenes import TRAINED_MODEL, UNGUIDED_MODEL
from recipes.scenes.classes import POPE_KINDS
from recipes.study.report import interval_of, load_results, of_seeds
from recipes.study.settings import ABLATIONS, BASELINE, HEADS
from recipes.terminal.tables import markdown


DOCS = Path(__file__).parent
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
MARKED = re.compile(r"(?<=<!-- made by: python docs/write_tables\.py )(\w+)( -->\n\n)((?:\|.*\n)+)")
POPE = [f"pope_{kind}_accuracy" for kind in POPE_KINDS]


def in_words(table: str) -> str:
    """A table whose cells are words, aligned as such."""
    return table.replace(" ---: |", " --- |")


# --- The demo and the model that comes along ---


def numbers(metrics: Mapping[str, float], *names: str) -> str:
    """Several metrics in one cell."""
    return " / ".join(f"{metrics[name]:.3f}" for name in names)


def demo() -> str:
    metrics = json.loads((DOCS / "demo" / "metrics.json").read_text())
    header = [
        f"on test scenes, after {metrics['seconds']:.0f} s of `make demo`",
        "with guidance (`age-vlm-lm`)",
        "without (`ca-baseline`)",
    ]
    lines = {
        "object words' attention inside their masks (`in_mask_mass`)": ["in_mask_mass"],
        "the same for even attention (`uniform_mass`)": ["uniform_mass"],
        "the attention's maximum inside the mask (`pointing_accuracy`)": ["pointing_accuracy"],
        "words for what is not there: attention on nothing (`absent_sink_mass`)": ["absent_sink_mass"],
        "what is not there, told by that alone (`absence_auc`)": ["absence_auc"],
        "existence, random / popular / adversarial (POPE's rule)": POPE,
        "counting": ["count_accuracy"],
        "relations": ["relation_accuracy"],
    }
    models = [metrics[name] for name in ("age-vlm-lm", "ca-baseline")]
    return markdown(header, [[title, *(numbers(model, *names) for model in models)] for title, names in lines.items()])


def scenes_model() -> str:
    guided, unguided = (json.loads((model / "metrics.json").read_text()) for model in (TRAINED_MODEL, UNGUIDED_MODEL))
    lines = {
        "existence (POPE's rule)": ["pope_accuracy"],
        "existence without the picture": ["pope_accuracy_blind"],
        "existence with another picture": ["pope_accuracy_swapped"],
        "existence, random / popular / adversarial": POPE,
        "same question on a picture and its edit, both right": ["pairs_qAcc"],
        "an object of another color, both right": ["recolored_qAcc"],
        "the same answer about it": ["recolored_consistency"],
        "counting": ["count_accuracy"],
        "relations": ["relation_accuracy"],
        "named objects that are not there (CHAIR i) / objects named": ["chair_i", "chair_recall"],
        "object words' attention inside their masks / even attention": ["in_mask_mass", "uniform_mass"],
        "the attention's maximum inside the mask": ["pointing_accuracy"],
        "what is not there, told by the attention on nothing (AUC)": ["absence_auc"],
    }
    header = [f"on {guided['num_test_images']} scenes"]
    header += [f"{split} split, {kind}" for split in ("test", "transfer") for kind in ("guided", "unguided")]
    rows = [
        [
            title,
            *(
                numbers(metrics, *(prefix + name for name in names))
                for prefix in ("", "transfer_")
                for metrics in (guided, unguided)
            ),
        ]
        for title, names in lines.items()
    ]
    return markdown(header, rows)


# --- Does guidance help? ---


@functools.cache
def study() -> dict[str, dict[str, Any]]:
    return load_results(DOCS / "claim")


def claim() -> str:
    names = [BASELINE, "all heads", "one head", "one head, denied words to the sink"]
    lines = {
        "pope_accuracy": "existence (POPE)",
        "pope_accuracy_blind": "POPE without the picture",
        "pairs_qAcc": "same question before and after an edit, both right",
        "count_accuracy": "counting",
        "relation_accuracy": "relations",
        "chair_i": "named objects that are not there (CHAIR i)",
        "chair_recall": "objects that are named",
        "in_mask_mass": "attention inside the mask",
        "pointing_accuracy": "its maximum inside the mask",
        "absence_auc": "what is not there, told by the attention on nothing (AUC)",
        "lm_loss": "LM loss",
        "text_perplexity": "perplexity of chats without their pictures",
    }
    found = [of_seeds(study(), HEADS[name]) for name in names]
    rows = [[title, *(interval_of(results, key) for results in found)] for key, title in lines.items()]
    return markdown(["", *names], rows)


def open_points() -> str:
    scores = {
        name: f"{study()[setting.folder(4)]['metrics']['pope_accuracy']:.3f}" for name, setting in ABLATIONS.items()
    }
    base, half = scores["base (age-vlm-lm)"], scores["a cell counts from half of its area on"]
    message, phrase = scores["query: whole messages (the paper's)"], scores["query: phrases"]
    shares = ", ".join(f"{n}%: {scores[f'{n} % of the rows have masks']}" for n in (1, 3, 10, 30))
    rows = [
        [
            "Eq. 3 divides by the sum or the maximum",
            f"sum {base}, maximum {scores['maps divided by their maximum']}",
            "sum",
        ],
        [
            "query words",
            f"whole messages, the paper's, {message}; phrases {phrase}; both {base}",
            "both; make phrase masks (`--level phrase`)",
        ],
        ["a cell belongs to a mask", f"if any of it is covered {base}, half of its area {half}", "any"],
        [
            "weight",
            f"0.1: {scores['weight 0.1']}, 0.3: {scores['weight 0.3']}, 1: {base}, 3: {scores['weight 3']}",
            "1, the paper's",
        ],
        ["share of rows with masks", f"none {scores['no guidance']}, {shares}, all {base}", "as many as there are"],
        [
            "guided stages",
            f"3: {scores['guidance in stage 3 only']}, 4: {scores['guidance in stage 4 only']}, both {base}",
            "3 suffices for existence",
        ],
        ["stage 2", f"with it {base}, without {scores['without stage 2']}: not needed here", "the paper's"],
        [
            "resolution of stage 1",
            f"256 pixels {base}, 128 pixels {scores['stage 1 at 128 pixels']}",
            "the same in all stages",
        ],
        [
            "cross-attention layers",
            f"first only {scores['cross-attention: first layer only']}, "
            f"last only {scores['cross-attention: last layer only']}, three {base}, "
            f"four {scores['cross-attention: before every layer']}",
            "the paper's",
        ],
        [
            "their MLP",
            f"none {scores['cross-attention without MLP']}, half {scores['cross-attention with half the MLP']}, "
            f"the LLM's width {base}",
            "the LLM's",
        ],
        [
            "wide pictures (8 to 5)",
            f"stretched {scores['wide pictures, stretched']}, "
            f"padded and masked {scores['wide pictures, padding masked']}, "
            f"padding seen {scores['wide pictures, padding seen']}",
            "stretched",
        ],
    ]
    return in_words(markdown(["point", "POPE", "default"], rows))


# --- Speed ---


class Target(NamedTuple):
    what: str
    compare: Callable[[float, float], bool]
    bound: float | None
    """`None` for the limit that bytes set."""
    rows: dict[str, tuple[str, str]]
    """File in `docs/speed` and row there, by what to call it."""


def both_stages(row: str, *files: str) -> dict[str, tuple[str, str]]:
    """A row of stage 3 and of stage 4, in the file of 144 visual tokens and in that of 576."""
    return {
        f"stage {number}{', 576 visual tokens' * file.endswith('768')}": (file, f"{prefix}: {row}")
        for file in files
        for number, prefix in ((3, "stage 3"), (4, "stage 4, LLM trained"))
    }


def targets() -> list[Target]:
    low, high = operator.le, operator.ge
    found = []
    for what, kind, memory in (
        ("guided / unguided step", "sum, K=1", 1.01),
        ("with 16 regions", "sum, K=16", 1.03),
        ('with "max"', "max, K=1", 1.03),
        ('with "max" and 16 regions', "max, K=16", 1.03),
    ):
        found.append(Target(f"{what}, time", low, 1.03, both_stages(f"{kind} / unguided, time", "train")))
        found.append(Target(f"{what}, memory", low, memory, both_stages(f"{kind} / unguided, memory", "train")))
    files = ("architectures", "architectures768")
    for what in ("time", "memory"):
        rows = both_stages(f"step / Mllama, {what}", *files)
        found.append(Target(f"unguided step / Mllama's cross-attention, {what}", low, 1.0, rows))
    tokens = {"576 visual tokens": "architectures768", "144 visual tokens": "architectures"}
    rows = {name: (file, "prefill, batch 16, LLM part / LLaVA") for name, file in tokens.items()}
    found.append(Target("prefill / LLaVA-style, LLM part, batch 16", low, 0.2, rows))
    for length in (64, 512):
        rows = {name: (file, f"cache, {length} tokens / LLaVA") for name, file in tokens.items()}
        found.append(Target(f"cache / LLaVA-style, {length} text tokens", low, None, rows))
    rows = {"": ("decode", "tokens/s, compiled: AGE-VLM / LLaMA")}
    found.append(Target("decoding, batch 1, compiled / plain LLaMA", high, 0.8, rows))
    rows = {"": ("decode", "of the bandwidth's bound, compiled: AGE-VLM")}
    found.append(Target("decoding, of its own bandwidth bound", high, 0.95, rows))
    for what, bound in (("time", 1.0), ("memory", 0.2)):
        rows = {"": ("loss", f"all words are labels: TRL's head / full logits, {what}")}
        found.append(Target(f"LM loss at 128k, 2 x 512 / full logits, {what}", low, bound, rows))
    for length, bound in ((64, 0.5), (512, 0.62)):
        rows = {"": ("stages", f"{length} tokens: stage 3 / stage 4, LLM trained, time")}
        found.append(Target(f"stage 3 / stage 4, step of {length} tokens", low, bound, rows))
    return found


@functools.cache
def measured(file: str) -> dict[str, Any]:
    return json.loads((DOCS / "speed" / f"{file}.json").read_text())


def speed_targets() -> str:
    lines = []
    for target in targets():
        cells, limits, missed = [], [], []
        for name, (file, what) in target.rows.items():
            row = next(row for row in measured(file)["rows"] if row["what"] == what)
            bound = row["limit"] if target.bound is None else target.bound
            cells.append(f"{row['value']:.3f}{f' ({name})' * bool(name)}")
            limits.append("" if row["limit"] is None else f"{row['limit']:.3f}")
            if not target.compare(round(row["value"], 3), round(bound, 3)):
                missed.append(name)
        sign = "<=" if target.compare is operator.le else ">="
        shown = "the limit" if target.bound is None else f"{sign} {target.bound:.2f}"
        limit = limits[0] if len(set(limits)) == 1 else "; ".join(limits)
        verdict = "met" if not missed else ": ".join(filter(None, ["missed", "; ".join(missed)]))
        lines.append([target.what, shown, "; ".join(cells), limit, verdict])
    return in_words(markdown(["what", "target", "measured", "limit", ""], lines))


def speed(file: str) -> str:
    return rows_table(measured(file)).partition("\n\n")[0]


# --- Boxes, points and masks ---


def readout() -> dict[str, str]:
    return readout_tables(json.loads((DOCS / "readout.json").read_text()))


def abstaining() -> dict[str, str]:
    return abstaining_tables(json.loads((DOCS / "abstain.json").read_text()))


# --- Other VLMs ---


def guided() -> str:
    results = json.loads((DOCS / "guided.json").read_text())
    return before_and_after(results["before"], results["after"])


# --- The scale plan ---


@functools.cache
def scale_tables() -> dict[str, str]:
    args = scale_plan.make_parser().parse_args([])
    return scale.tables(dict(args.seconds), args.gpus, args.pictures_per_second)


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "scenes_model": scenes_model,
    "claim": claim,
    "open_points": open_points,
    "guidance": lambda: rows_table(json.loads((DOCS / "guidance.json").read_text())).partition("\n\n")[0],
    "guided": guided,
    "onnx": lambda: exported_table(json.loads((DOCS / "onnx.json").read_text())),
    "readout": lambda: readout()["readout"],
    "reliability": lambda: readout()["reliability"],
    "detection": lambda: abstaining()["detection"],
    "abstaining": lambda: abstaining()["abstaining"],
    "told": lambda: told_table(json.loads((DOCS / "told.json").read_text())),
    "probe": lambda: probe_table(json.loads((DOCS / "probe.json").read_text())),
    "zoom": lambda: zoom_table(json.loads((DOCS / "zoom.json").read_text())),
    "speed_targets": speed_targets,
    **{path.stem: functools.partial(speed, path.stem) for path in sorted((DOCS / "speed").glob("*.json"))},
    "scale_time": lambda: scale_tables()["Time"],
    "scale_memory": lambda: scale_tables()["Memory of weights, gradients and optimizer"],
    "scale_network": lambda: scale_tables()["Gradients over the network"],
    "scale_data": lambda: scale_tables()["Data"],
    "scale_masks": lambda: scale_tables()["Masks"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default, of: {', '.join(TABLES)}")
    names = parser.parse_args().names or TABLES
    for page in PAGES:
        text = page.read_text()
        made = MARKED.sub(lambda m: m[1] + m[2] + (TABLES[m[1]]() + "\n" if m[1] in names else m[3]), text)
        if made != text:
            page.write_text(made)


if __name__ == "__main__":
    main()
