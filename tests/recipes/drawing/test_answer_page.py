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
"""The page whose words can be pointed at, in a browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from axe_playwright_python.sync_playwright import Axe
from testing_utils import picture

from recipes.answering.words import LookingAnswer, LookingPhrase, LookingRegion, LookingWord
from recipes.drawing.answer_page import answer_page, as_bytes, framed
from recipes.drawing.attention import colored


QUESTION, ANSWER = "Is there a red cup?", "Yes, a red cup."
LAYERS = ["layer 1", "layer 3"]


def looking(name: str = "", answer: str = ANSWER, seed: int = 0, cells: tuple[int, int] = (4, 6)) -> LookingAnswer:
    """Words of which each looks elsewhere."""
    rng, words = np.random.default_rng(seed), []
    for part, text in (("question", QUESTION), ("answer", answer)):
        for word in text.split():
            maps = rng.dirichlet(np.full(cells[0] * cells[1], 0.1), size=len(LAYERS)).reshape(-1, *cells)
            on_nothing = rng.random(len(LAYERS))
            maps = (maps * (1 - on_nothing[:, None, None])).astype(np.float32)
            words.append(LookingWord(word, " ", part, maps, on_nothing))
    phrases = [LookingPhrase("red cup", [3, 4, 7, 8], 0.756), LookingPhrase("cup", [4, 8])]
    return LookingAnswer(name, LAYERS, words, phrases if answer == ANSWER else [])


class Page:
    """A page in the browser, which has asked for nothing and complained of nothing by the end."""

    def __init__(self, browser: Any, path: Path, before: str = "", shows: str = "details", **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
        self.page, self.complaints, self.requests = self.context.new_page(), [], []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url[:40]))
        self.page.add_init_script(before)
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(shows)

    def word(self, number: int, model: int = 0) -> Any:
        return self.page.locator("article").nth(model).locator(f'[data-word="{number}"]')

    def chosen(self, model: int = 0) -> list[str]:
        return self.page.locator("article").nth(model).locator('[aria-selected="true"]').all_inner_texts()

    def said(self, model: int = 0) -> str:
        return self.page.locator("output").nth(model).inner_text()

    def pixels(self, model: int = 0) -> np.ndarray:
        """The picture as it is painted, `(height, width, 3)`."""
        script = "c => [c.height, c.width, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        height, width, *values = self.page.locator("canvas.picture").nth(model).evaluate(script)
        return np.array(values).reshape(height, width, 4)[..., :3]

    def faults(self) -> list[str]:
        """Serious ones of accessibility."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{fault['id']}: {fault['nodes'][0]['html']}"
            for fault in found
            if fault["impact"] in ("serious", "critical")
        ]


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Iterator[Any]:
    pages = []

    def show(*answers: LookingAnswer, image: PIL.Image.Image | None = None, **context: Any) -> Page:
        path = tmp_path / "answer.html"
        path.write_text(answer_page(image or picture(40, 60), answers), encoding="utf-8")
        pages.append(Page(browser, path, **context))
        return pages[-1]

    yield show
    for page in pages:
        assert page.complaints == [] and {url.split(":")[0] for url in page.requests} <= {"file", "data", "blob"}
        page.context.close()


def mean_map(answer: LookingAnswer, words: list[int], layers: list[int]) -> tuple[np.ndarray, float]:
    chosen = [answer.words[n] for n in words]
    maps = np.mean([word.maps[layers] for word in chosen], axis=(0, 1))
    return maps, np.mean([word.on_nothing[layers] for word in chosen])


def assert_painted(found: np.ndarray, plain: np.ndarray, attention: np.ndarray) -> None:
    """As the other drawings do, but for bytes, which are 4% of a value."""
    height, width = plain.shape[:2]
    density = PIL.Image.fromarray(attention.astype(np.float32) * attention.size).resize(
        (width, height), PIL.Image.Resampling.BILINEAR
    )
    overlay = colored(np.asarray(density))
    gray = (plain @ [0.299, 0.587, 0.114])[..., None]
    expected = (1 - overlay[..., 3:]) * gray + overlay[..., 3:] * 255 * overlay[..., :3]
    off = np.abs(found - expected)
    assert off.max() < 20 and off.mean() < 2


def test_a_byte_is_a_sixteenth_of_a_doubling():
    values = np.array([0, 1e-9, 1 / 64, 1, 2, 2 ** (1 / 16), 32, 1e9])
    assert as_bytes(values).tolist() == [0, 0, 1, 97, 113, 98, 177, 255]


@pytest.mark.parametrize("size", [(40, 60), (500, 300)])
def test_pointing_at_words_shows_where_they_look(shown, size: tuple[int, int]):
    """As drawings do, in picture and in numbers: a click, several words, one layer, and what only hovers."""
    answer = looking()
    page = shown(answer, image=picture(*size))
    plain = page.pixels()
    assert plain.shape[:2] == ((40, 60) if size == (40, 60) else (480, 288))
    assert page.said().startswith("Point at a word")

    def check(words: list[int], layers: list[int]) -> None:
        attention, on_nothing = mean_map(answer, words, layers)
        assert_painted(page.pixels(), plain, attention)
        said = " ".join(answer.words[n].text for n in words)
        assert page.said().startswith(f"\u201c{said}\u201d: {on_nothing:.0%} on nothing, half of the rest in ")

    page.word(4).hover()
    check([4], [0, 1])
    assert page.chosen() == []
    page.word(3).click()
    check([3], [0, 1])
    page.page.locator("h1").hover()
    check([3], [0, 1])
    assert page.chosen() == ["red"]
    page.page.get_by_label("Attention of").select_option("layer 3")
    check([3], [1])
    page.page.get_by_role("button", name="red cup (76% inside)").click()
    check([3, 4, 7, 8], [1])
    assert page.chosen() == ["red", "cup?", "red", "cup."]


def test_what_words_look_at_has_boxes(shown):
    """Of one word, and of a phrase's words together; of no other words, and not where one layer is shown."""
    answer = looking()
    cup = LookingRegion((0.25, 0.5, 0.75, 1.0), 0.914)
    answer.words[4] = answer.words[4]._replace(regions=[cup])
    both = [cup, LookingRegion((0.0, 0.0, 0.1, 0.2), 0.3)]
    answer.phrases[0] = answer.phrases[0]._replace(regions=both)
    page = shown(answer, image=picture(200, 300))
    outlines = {}
    for words in ([3], [4], [3, 4, 7, 8]):
        if len(words) == 1:
            page.word(*words).click()
        else:
            page.page.get_by_role("button", name="red cup (76% inside)").click()
        pixels = page.pixels()
        corners = [(100, 80), (100, 220), (0, 10), (39, 30)]  # along edges of either box
        outlines[tuple(words)] = [bool((pixels[place] == 255).all()) for place in corners], page.said()
    seen, said = zip(*outlines.values(), strict=True)
    assert list(seen) == [[False] * 4, [True, True, False, False], [True, True, True, True]]
    assert "boxed" not in said[0]
    assert said[1].endswith("; boxed, score 91%.") and said[2].endswith("; boxed, scores 91%, 30%.")
    page.page.get_by_label("Attention of").select_option("layer 3")
    assert "boxed" not in page.said() and not (page.pixels()[100, 80] == 255).all()


@pytest.mark.parametrize(
    "size, shown_size",
    [
        ((1600, 900), (540, 304)),  # not higher than 60% of the window
        ((900, 1600), (306, 544)),  # as wide as an answer gets
        ((40, 60), (160, 240)),  # four times as large
        ((1, 1), (24, 24)),
        ((3000, 10), (540, 24)),
        ((10, 3000), (24, 544)),
    ],
)
def test_pictures_of_all_sizes_are_seen_with_the_words(shown, size: tuple[int, int], shown_size: tuple[int, int]):
    page = shown(looking(), image=picture(*size))
    box = page.page.locator("canvas.picture").bounding_box()
    assert np.abs(np.subtract((box["height"], box["width"]), shown_size)).max() < 2
    last = page.word(8).bounding_box()
    assert last["y"] + last["height"] <= 900
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_dragging_over_words_chooses_them(shown):
    page = shown(looking())
    for first, last, words in ((2, 4, ["a", "red", "cup?"]), (8, 7, ["red", "cup."])):
        start, end = page.word(first).bounding_box(), page.word(last).bounding_box()
        page.page.mouse.move(start["x"] + 2, start["y"] + 5)
        page.page.mouse.down()
        page.page.mouse.move(end["x"] + 4, end["y"] + 5, steps=5)
        page.page.mouse.up()
        page.page.mouse.move(5, 5)
        assert page.chosen() == words
    page.word(3).click()
    page.word(6).click(modifiers=["Shift"])
    assert page.chosen() == ["red", "cup?", "Yes,", "a"]


def test_words_can_be_copied(shown):
    page = shown(looking())
    page.word(3).click()
    page.page.keyboard.press("Control+a")
    marked = page.page.evaluate("getSelection().toString()")
    assert QUESTION in marked and ANSWER in marked
    start, end = page.word(2).bounding_box(), page.word(4).bounding_box()
    page.page.mouse.move(start["x"] + 2, start["y"] + 5)
    page.page.mouse.down()
    page.page.mouse.move(end["x"] + 4, end["y"] + 5, steps=5)
    page.page.mouse.up()
    assert page.chosen() == ["a", "red", "cup?"] and page.page.evaluate("getSelection().toString()") == ""


def test_only_the_left_button_drags_and_only_while_it_is_pressed(shown):
    page = shown(looking())
    mouse = page.page.mouse

    def move(word: int, **options: int) -> tuple[float, float]:
        box = page.word(word).bounding_box()
        place = box["x"] + 4, box["y"] + 5
        mouse.move(*place, **options)
        return place

    for button in ("right", "middle"):
        move(1)
        mouse.down(button=button)
        move(3, steps=3)
        mouse.up(button=button)
        assert page.chosen() == []
    move(1)
    mouse.down()
    move(6, steps=5)
    across = ["there", "a", "red", "cup?", "Yes,", "a"]
    assert page.chosen() == across
    # It was released where the page could not see it.
    x, y = move(6)
    session = page.context.new_cdp_session(page.page)
    for dx in (0, 40):
        session.send("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + dx, "y": y, "buttons": 0})
    page.word(2).hover()
    assert page.chosen() == across
    mouse.up()


def test_a_release_outside_of_the_frame_ends_the_drag(browser: Any, tmp_path: Path):
    path = tmp_path / "framed.html"
    path.write_text(framed(answer_page(picture(40, 60), [looking()])), encoding="utf-8")
    context = browser.new_context(viewport={"width": 1200, "height": 1200})
    page = context.new_page()
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    places = [frame.locator(f'[data-word="{n}"]').bounding_box() for n in (1, 3)]
    page.mouse.move(places[0]["x"] + 4, places[0]["y"] + 5)
    page.mouse.down()
    page.mouse.move(300, 1150, steps=3)
    page.mouse.up()
    page.mouse.move(places[1]["x"] + 4, places[1]["y"] + 5, steps=3)
    assert frame.locator('[aria-selected="true"]').all_inner_texts() == ["there"]
    context.close()


def test_a_finger_drags_over_words_and_scrolls(shown):
    page = shown(looking(), has_touch=True, viewport={"width": 360, "height": 400})
    session = page.context.new_cdp_session(page.page)

    def drag(start: int, dx: float, dy: float) -> None:
        box = page.word(start).bounding_box()
        x, y = box["x"] + 4, box["y"] + 8
        session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 11):
            point = {"x": x + step * dx / 10, "y": y + step * dy / 10}
            session.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [point]})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def scrolled() -> float:
        return page.page.evaluate("scrollY")

    page.page.evaluate("document.querySelector('.words').scrollIntoView({block: 'center'})")
    page.word(0).tap()
    page.page.evaluate("document.querySelector('.words').scrollIntoView({block: 'center'})")
    before = scrolled()
    drag(2, 5, -150)
    page.page.wait_for_function("before => scrollY > before + 50", arg=before)
    assert page.chosen() == ["Is"]
    rests = "() => new Promise(done => { const at = scrollY; setTimeout(() => done(scrollY === at), 300); })"
    page.page.wait_for_function(rests)  # a scroll runs on behind the finger
    page.page.evaluate("document.querySelector('.words').scrollIntoView({block: 'center'})")
    before = scrolled()
    drag(2, page.word(4).bounding_box()["x"] - page.word(2).bounding_box()["x"], 3)
    assert page.chosen() == ["a", "red", "cup?"] and scrolled() == before


def test_the_keyboard_goes_from_word_to_word(shown):
    page = shown(looking())
    keys = page.page.keyboard
    keys.press("Tab")
    for key, words in (
        ("Enter", ["Is"]),
        ("ArrowRight", ["there"]),
        ("Shift+ArrowRight", ["there", "a"]),
        ("Shift+ArrowDown", ["there", "a", "red"]),
        ("ArrowLeft", ["a"]),
        ("End", ["cup?"]),
        ("ArrowRight", ["cup?"]),
        ("Escape", []),
    ):
        keys.press(key)
        assert page.chosen() == words
    assert page.said().startswith("Point at a word")
    keys.press("Tab")  # a list is one stop
    keys.press("ArrowRight")
    assert page.chosen() == ["a"] and page.page.evaluate("document.activeElement.dataset.word") == "6"


def test_the_tab_key_comes_back_to_the_word_that_was_left(shown):
    page = shown(looking())

    def assert_focused(word: str) -> None:
        assert page.page.evaluate("document.activeElement.dataset.word") == word
        assert page.page.locator('[role=option][tabindex="0"]').count() == 2

    page.page.keyboard.press("Tab")
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Tab")
    assert_focused("5")
    page.page.keyboard.press("Shift+Tab")
    assert_focused("1")
    page.word(3).click()
    page.page.keyboard.press("Tab")
    assert_focused("5")
    page.page.get_by_role("button", name="red cup").click()
    page.word(4).focus()
    page.page.keyboard.press("Tab")
    assert_focused("7")


def test_writing_from_right_to_left(shown):
    """An answer in Hebrew to a question in English."""
    page = shown(looking(answer="\u05db\u05df, \u05db\u05d5\u05e1 \u05d0\u05d3\u05d5\u05de\u05d4"))
    first, second = page.word(5).bounding_box(), page.word(6).bounding_box()
    assert first["x"] > second["x"] > 300
    page.word(5).focus()
    page.page.keyboard.press("ArrowLeft")
    assert page.page.evaluate("document.activeElement.dataset.word") == "6"
    page.page.keyboard.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.dataset.word") == "5"
    page.word(0).focus()
    page.page.keyboard.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.dataset.word") == "1"


def test_keys_of_the_browser_stay_its_own(shown):
    page = shown(looking())
    page.page.evaluate("addEventListener('keydown', event => (window.isTaken = event.defaultPrevented))")
    page.word(2).click()
    for key, is_taken in (
        ("Alt+ArrowLeft", False),
        ("Control+Home", False),
        ("Meta+ArrowRight", False),
        ("Home", True),
    ):
        page.page.keyboard.press(key)
        assert page.page.evaluate("window.isTaken") == is_taken
        assert page.chosen() == (["Is"] if is_taken else ["a"])


def test_word_by_word_plays_the_answer(shown):
    page = shown(looking())
    page.page.get_by_role("button", name="Word by word").click()
    seen = [page.chosen()]
    while seen[-1] != ["cup."]:
        page.page.wait_for_function(
            "w => document.querySelector('[aria-selected=true]').textContent !== w", arg=seen[-1][0]
        )
        seen.append(page.chosen())
    assert seen == [["Yes,"], ["a"], ["red"], ["cup."]]
    assert page.page.get_by_role("button", name="Word by word").count() == 1


def test_what_plays_stops(shown):
    """By its button, or by whatever is chosen, be it the word that is being played."""
    page = shown(looking())
    page.page.clock.install()
    for stop in (page.page.get_by_role("button", name="Stop"), page.word(6), page.word(1)):
        page.page.get_by_role("button", name="Word by word").click()
        page.page.clock.run_for(510)
        assert page.chosen() == ["a"]
        stop.click()
        chosen = page.chosen()
        page.page.clock.run_for(2000)
        assert page.chosen() == chosen and page.page.get_by_role("button", name="Word by word").count() == 1


def test_two_models_side_by_side(shown):
    """The question's words are chosen in both, an answer's in its own."""
    answers = looking("guided"), looking("not guided", "No.", seed=1)
    page = shown(*answers)
    plain = page.pixels(1)
    assert page.page.locator("h2").all_inner_texts() == ["guided", "not guided"]
    left, right = (page.page.locator("article").nth(n).bounding_box() for n in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    page.word(4).click()
    assert page.chosen() == page.chosen(1) == ["cup?"]
    assert_painted(page.pixels(1), plain, mean_map(answers[1], [4], [0, 1])[0])
    page.word(5, 1).click()
    assert (page.chosen(), page.chosen(1)) == ([], ["No."])


def test_words_stay_words(shown):
    """Whatever a model or whoever asks says, or what a checkpoint is called: nothing of it runs or becomes markup."""
    evil = '</script><script>document.title="run"</script><img src=x onerror=alert(1)><b>\u2028{{ 7*7 }}'
    answer = looking(evil, evil)
    answer = answer._replace(phrases=[LookingPhrase(evil, [5])], layers=[evil, "layer 3"])
    answer = answer._replace(words=[answer.words[0]._replace(text=evil, space=evil), *answer.words[1:]])
    page = shown(answer)
    page.word(0).click()
    assert page.page.title().startswith(evil[:30]) and page.page.locator("b, img").count() == 0
    assert page.page.locator("h2").text_content() == evil
    assert page.word(0).text_content() == evil and page.word(5).text_content() == evil.split()[0]
    assert page.page.locator("script").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_everybody_can_use_it(shown, scheme: str, width: int):
    """axe finds nothing serious, chosen or not; nothing runs over the edge of a phone; the numbers are there as text."""
    answers = looking("a", seed=1), looking("b", "")
    page = shown(*answers, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert page.faults() == []
    page.word(1).click()
    page.page.locator("summary").first.click()
    assert page.faults() == []
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    rows = page.page.locator("article").first.locator("tr")
    assert rows.count() == 9
    assert (
        rows.nth(1).inner_text().startswith(f"there\t{mean_map(answers[0], [1], [0, 1])[1]:.0%} on nothing, half of")
    )


def test_chosen_words_are_told_apart_in_forced_colors(shown):
    page = shown(looking(), forced_colors="active")
    page.word(1).click()
    page.page.locator("h1").hover()
    colors = "word => [getComputedStyle(word).backgroundColor, getComputedStyle(word).color]"
    chosen, other = page.word(1).evaluate(colors), page.word(3).evaluate(colors)
    assert chosen[0] != other[0] and chosen[0] != chosen[1]
    system = """() => {
        const element = document.createElement("i");
        element.style = "forced-color-adjust: none; background: Highlight; color: HighlightText";
        document.body.append(element);
        return [getComputedStyle(element).backgroundColor, getComputedStyle(element).color];
    }"""
    assert chosen == page.page.evaluate(system)


def test_of_many_words_the_first_and_last_are_said(shown):
    page = shown(looking(answer=" ".join(f"word{n}" for n in range(60))))
    page.word(3).click()
    page.word(64).click(modifiers=["Shift"])
    assert len(page.chosen()) == 62
    quote = "\u201cred cup? word0 word1 \u2026 word56 word57 word58 word59\u201d (62 words)"
    assert page.said().startswith(f"{quote}: ")
    assert page.page.locator("canvas.picture").get_attribute("aria-label") == f"the picture, and where {quote} looks"


def test_touching_a_word_shows_it(shown):
    page = shown(looking(), has_touch=True, viewport={"width": 360, "height": 800})
    page.word(3).tap()
    assert page.chosen() == ["red"]


@pytest.mark.parametrize(
    "before, shows",
    [
        ("delete window.DecompressionStream", "[role=alert]"),
        ("HTMLImageElement.prototype.decode = () => Promise.reject(new Error('no picture'))", "[role=alert]"),
        ("", "noscript"),
    ],
)
def test_answers_can_be_read_where_a_browser_lacks_something(shown, before: str, shows: str):
    page = shown(looking("model"), before=before, shows=shows, java_script_enabled=bool(before))
    assert page.page.locator("h1").inner_text() == QUESTION
    assert f"model {ANSWER}" in page.page.locator("main").inner_text()
    assert page.page.locator(shows).inner_text().startswith("Where the words look")


def test_it_is_small():
    """An answer of fifty words of a real model, of 24 x 24 visual tokens and 8 layers: 400 KB beside the picture."""
    many = looking("", " ".join(["word"] * 50), cells=(24, 24))
    many = many._replace(
        layers=[f"layer {n}" for n in range(8)],
        words=[
            word._replace(
                maps=np.tile(word.maps, (4, 1, 1)) * np.random.default_rng(n).uniform(0.5, 2, (8, 24, 24)),
                on_nothing=np.tile(word.on_nothing, 4),
            )
            for n, word in enumerate(many.words)
        ],
    )
    page = answer_page(picture(400, 600), [many])
    data = json.loads(page.split('<script type="application/json">')[1].split("</script>")[0])
    assert len(page.encode()) - len(data["picture"]) < 400_000
