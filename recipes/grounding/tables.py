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
"""Tables of how good regions are."""

from typing import Any

from recipes.grounding.abstaining import DOUBTS
from recipes.grounding.zooming import KINDS, WAYS
from recipes.terminal.tables import markdown


COLUMNS = {
    "pointing": "point on the object",
    "iou": "IoU of boxes",
    "acc_50": "boxes with IoU >= 0.5",
    "mask_iou": "IoU of masks",
    "absence_auc": "absence by the best score, AUC",
}


def with_interval(entry: dict[str, float] | None) -> str:
    return "" if entry is None else f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def readout_tables(result: dict[str, Any]) -> dict[str, str]:
    """By name: how good the regions are, with 95 % intervals over the pictures; and how far their scores can be believed."""
    measured = result["measured"]
    rows = [[name, *(with_interval(found.get(key)) for key in COLUMNS)] for name, found in measured.items()]
    scored = {name: found for name, found in measured.items() if "reliability" in found}
    header = [f"{name}, {what}" for name in scored for what in ("score", "hits")]
    bins = [
        [text for entry in entries for text in (f"{entry['score']:.3f}", f"{entry['hits']:.3f}")]
        for entries in zip(*(found["reliability"] for found in scored.values()), strict=True)
    ]
    errors = [text for found in scored.values() for text in (f"{found['calibration_error']:.3f}", "")]
    tenths = [[f"tenth {n} of the regions", *line] for n, line in enumerate(bins, start=1)]
    return {
        "readout": markdown(["", *COLUMNS.values()], rows),
        "reliability": markdown(["", *header], [*tenths, ["mean distance", *errors]]),
    }


def told_table(result: dict[str, Any]) -> str:
    """How often a model speaks of the object that it is told to look at, by what tells it and strength."""
    rows = [
        [entry["by"] if entry["strength"] else "nothing", f"{entry['strength']:g}", with_interval(entry)]
        for entry in result["measured"]
    ]
    return markdown(["told by", "strength", f"side of the one that is pointed at, of {result['num_pointed']}"], rows)


def abstaining_tables(result: dict[str, Any]) -> dict[str, str]:
    """By name: how well false answers and mentions are told, and what is left of the others by threshold."""
    told = result["detection"]
    rows = [
        [title, *(with_interval(told[of][name]) for of in ("answers", "mentions"))] for name, title in DOUBTS.items()
    ]
    counts = [f"{of}, {told[of]['num_false']} of {told[of]['num_claims']} false" for of in ("answers", "mentions")]
    left = [
        [
            f"{answers['most']:g}",
            *(with_interval(answers[name]) for name in ("answered", "accuracy")),
            *(with_interval(captions[name]) for name in ("chair_i", "chair_recall")),
        ]
        for answers, captions in zip(result["answers"], result["captions"], strict=True)
    ]
    header = ["most on nothing", "questions answered", "of these right", "CHAIR i", "objects named"]
    return {"detection": markdown(["told by (AUC)", *counts], rows), "abstaining": markdown(header, left)}


def zoom_table(result: dict[str, Any]) -> str:
    """How many answers are right by how small the scene is and how it is looked at."""
    rows = [
        [
            f"1/{entry['shrunk']} of {entry['side']}",
            title,
            *(with_interval(entry["ways"][way][kind]) for kind in KINDS),
        ]
        + [f"{entry['cost']['times']:.1f}" if way == "zoom" else ""]
        for entry in result["measured"]
        for way, title in WAYS.items()
    ]
    return markdown(["side of the scene", "what is read", *KINDS, "times the seconds of one pass"], rows)


def probe_table(result: dict[str, Any]) -> str:
    """How often a number and a side is there to be read, by checkpoint, with 95 % intervals over the scenes."""
    kinds = {"count": "counting", "relation": "relations"}
    columns = [(name, kind) for name in result for kind in kinds]
    places = [entry["read"] for entry in result[columns[0][0]]["count"]]
    rows = [
        [place, *(with_interval(result[name][kind][n]) for name, kind in columns)] for n, place in enumerate(places)
    ]
    return markdown(["read from", *(f"{kinds[kind]}, {name}" for name, kind in columns)], rows)
