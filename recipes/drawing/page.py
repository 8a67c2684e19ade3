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
"""A page to browse: pictures with words, in one file that holds its pictures."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2
import PIL.Image

from recipes.terminal.tables import Table


class Block(NamedTuple):
    """
    Some words on a card: what they are, the words, whether they are the right or the wrong ones, and a picture of
    theirs.
    """

    heading: str
    text: str
    verdict: Literal["right", "wrong"] | None = None
    picture: PIL.Image.Image | None = None


class Card(NamedTuple):
    """A picture, or the words that stand in its place, and what is to be read beside it."""

    picture: PIL.Image.Image | str
    blocks: Sequence[Block]


class Bar(NamedTuple):
    """A share from 0 to 1 with its interval."""

    name: str
    share: float
    low: float
    high: float


class Bars(NamedTuple):
    """A line of a chart: shares of the same thing, and the one that is to be passed, if there is any."""

    heading: str
    bars: Sequence[Bar]
    floor: float | None = None
    floor_name: str = ""


class Section(NamedTuple):
    heading: str
    cards: Sequence[Card]
    tables: Sequence[Table] = ()
    chart: Sequence[Bars] = ()


def data_url(picture: PIL.Image.Image) -> str:
    """A picture as a JPEG in an address."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def save_page(
    path: Path, title: str, sections: Sequence[Section], wide: bool = False, legend: PIL.Image.Image | None = None
) -> None:
    """
    Writes a page. Whatever the words are, they stay words: nothing of them becomes markup, and the page itself forbids
    scripts and whatever comes from elsewhere.

    Args:
        path (`Path`): HTML file.
        title (`str`): Of the page.
        sections (`Sequence[Section]`): In order; several get links at the top.
        wide (`bool`, *optional*, defaults to `False`): Whether a card takes a whole line, its blocks side by side.
        legend (`PIL.Image.Image`, *optional*): Of the colors of attention, where there are any.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["data_url"] = data_url
    template = environment.from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8"))
    page = template.render(title=title, sections=sections, wide=wide, legend=legend)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="replace")  # JSON can hold half a character
