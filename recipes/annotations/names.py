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
"""What people call the categories of a data set."""

import re
from typing import Any

from recipes.annotations.annotated import brief, check_words
from recipes.rows.records import Fault


IRREGULAR = {"person": "people", "man": "men", "woman": "women", "snowman": "snowmen", "child": "children"}
IRREGULAR |= {"mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth", "sheep": "sheep", "deer": "deer"}
IRREGULAR |= {
    "fish": "fish",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "shelf": "shelves",
    "calf": "calves",
}
IRREGULAR |= {"wolf": "wolves", "scarf": "scarves", "potato": "potatoes", "tomato": "tomatoes"}
ENDINGS = ((r"(s|x|z|ch|sh)$", r"\1es"), (r"([^aeiou])y$", r"\1ies"), (r"$", "s"))
# Which end in "s", and are one; any other that does and that these endings do not tell is a plural
SINGULAR = re.compile(r"(ss|us|(?<!\bsk)is|\b(lens|canvas|gas|atlas))$", re.IGNORECASE)
UNCOUNTED = re.compile(
    r"\b(grass|snow|sand|gravel|dirt|water|food|paper|cardboard|sky|fruit|bread|rice|furniture|clothing|broccoli)$",
    re.IGNORECASE,
)
VOWEL = re.compile(r"(?!uni|use|ute|uku|eu|one)[aeiou]", re.IGNORECASE)
# COCO's names of what has no shape of its own: "floor-wood", "sky-other-merged"
STUFF = re.compile(r"(-(merged|other|stuff|wood|brick|stone|tile|concrete|panel|plastic|metal|marble))+$")


def read_name(category: Any, stuff: bool = False) -> str:
    """
    A category's name as people say it: "wine glass", "bow" of LVIS's "bow_(weapon)", with `stuff` "floor" of "floor-wood".

    Raises:
        Fault: If it has none.
    """
    name = category.get("name") if isinstance(category, dict) else None
    if not isinstance(name, str):
        raise Fault("category without a name", brief(category))
    name = re.sub(r"\(.*?\)", "", name.replace("_", " "))
    name = " ".join((STUFF.sub("", name) if stuff else name).split())
    check_words(name)
    return name


def is_plural(name: str) -> bool:
    return name.endswith("s") and not SINGULAR.search(name)


def plural(name: str) -> str:
    """What several are called; the same for names that are plurals ("scissors"), or of what is not counted."""
    if is_plural(name) or UNCOUNTED.search(name):
        return name
    *words, last = name.split(" ")
    if last not in IRREGULAR:
        last = next(re.sub(end, other, last, count=1) for end, other in ENDINGS if re.search(end, last))
    else:
        last = IRREGULAR[last]
    return " ".join([*words, last])


def with_article(name: str) -> str:
    if is_plural(name) or UNCOUNTED.search(name):
        return name
    return ("an " if VOWEL.match(name) else "a ") + name
