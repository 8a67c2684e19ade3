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
"""The app in a browser: a picture, a question, the answer word by word, and where its words look."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from modeling_agevlm.image_reading_agevlm import read_image
from recipes.answering.checkpoint import load_checkpoint, short_names
from recipes.answering.places import mask_of_place
from recipes.answering.speech import Speech
from recipes.answering.words import look_of_words
from recipes.drawing.answer_page import answer_page, framed


NOBODY = "none"
LONGEST_QUESTION = 2000  # characters
HEAD = """# Ask a picture, and see where the words look

The answer comes word by word. Then point at a word of the question or of the answer, click it, or drag over several.
Click into the picture before you ask to say what you ask about ("What is this?")."""
ANYWHERE = "The model looks anywhere."
Place = tuple[int, int]  # a point of the picture, across and down


class Asking:
    """
    Answers whoever looks at the app; of each visitor one question at a time.

    Args:
        checkpoints (`Mapping[str, tuple]`): Model and processor by the name that is shown.
        max_new_tokens (`int`): Longest answer in tokens.
    """

    def __init__(self, checkpoints: Mapping[str, tuple[Any, Any]], max_new_tokens: int) -> None:
        self.checkpoints, self.max_new_tokens = checkpoints, max_new_tokens
        self._speeches: dict[str, Speech] = {}  # by visitor
        self._stopped: set[str] = set()  # visitors who want no answer to what they asked

    def begin(self, request: gr.Request) -> None:
        """As soon as somebody asks: what was stopped before is over."""
        self._stopped.discard(request.session_hash)

    def ask(
        self, file: str | None, question: str, name: str, beside: str, place: Place | None, request: gr.Request
    ) -> Iterator[tuple[str, str]]:
        """
        What the answers' box and the page show, again and again until both answers are complete.

        Raises:
            gr.Error: In a sentence, what is wrong with picture or question, or with the model.
        """
        if file is None:
            raise gr.Error("There is no picture: choose one, take one or paste one.")
        if not question.strip():
            raise gr.Error("There is no question: write one.")
        if len(question) > LONGEST_QUESTION:
            raise gr.Error(f"The question has {len(question):,} characters: {LONGEST_QUESTION:,} are allowed.")
        try:
            picture = read_image(Path(file))
        except ValueError as error:
            raise gr.Error("The picture cannot be read: it is damaged, too large, or no picture.") from error
        try:
            look_at = None if place is None else mask_of_place(place, picture.height, picture.width)
        except ValueError as error:
            raise gr.Error(str(error)) from error
        question, visitor = question.strip(), request.session_hash
        names = [name] if beside in (NOBODY, name) else [name, beside]
        said, looks = dict.fromkeys(names, ""), []
        try:
            for label in names:
                model, processor = self.checkpoints[label]
                speech = self._speeches[visitor] = Speech(
                    model, processor, picture, question, self.max_new_tokens, look_at
                )
                if visitor in self._stopped:
                    speech.stop()
                for piece in speech:
                    said[label] += piece
                    yield self.text(said), ""
                said[label], inputs, prompt_length = speech.result()
                title = label if len(names) > 1 else ""
                looks.append(look_of_words(model, processor, inputs, prompt_length, picture, question, title))
        except (ValueError, RuntimeError) as error:  # the latter: there is too little memory, or the like
            raise gr.Error(f"{label}: {error}" if len(names) > 1 else str(error)) from error
        finally:  # also when the visitor has gone
            speech = self._speeches.pop(visitor, None)
            if speech is not None:
                speech.stop()
            self._stopped.discard(visitor)
        yield self.text(said), framed(answer_page(picture, looks), len(looks))

    @staticmethod
    def point(event: gr.SelectData) -> tuple[Place, str]:
        """Where somebody clicked into the picture, and that in words."""
        across, down = (int(side) for side in event.index)
        return (across, down), f"The model is told to look at {across}, {down}."

    @staticmethod
    def text(said: Mapping[str, str]) -> str:
        return (
            "\n".join(f"{name}: {words}" for name, words in said.items()) if len(said) > 1 else "".join(said.values())
        )

    def stop(self, request: gr.Request) -> None:
        """Ends the visitor's answer where it is, and those that would follow at once."""
        self._stopped.add(request.session_hash)
        speech = self._speeches.get(request.session_hash)
        if speech is not None:
            speech.stop()


def build(names: Sequence[str], examples: Sequence[tuple[str, str]], max_new_tokens: int = 64) -> gr.Blocks:
    """
    The app of some checkpoints.

    Args:
        names (`Sequence[str]`): Checkpoint folders or Hub ids.
        examples (`Sequence[tuple[str, str]]`): Picture files, each with a question.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest answer in tokens.

    Raises:
        ValueError: If one is no checkpoint of an AGE-VLM, as [`load_checkpoint`] says; its name comes first.
    """
    checkpoints = {}
    for label, name in zip(short_names(names), names, strict=True):
        try:
            checkpoints[label] = load_checkpoint(name)
        except ValueError as error:
            raise ValueError(f"{name} cannot be loaded as an AGE-VLM checkpoint: {str(error).rstrip('.')}.") from error
    asking, labels = Asking(checkpoints, max_new_tokens), list(checkpoints)
    with gr.Blocks(title="AGE-VLM", delete_cache=(3600, 3600)) as app:  # visitors' pictures, after an hour
        gr.Markdown(HEAD)
        with gr.Row():
            with gr.Column():
                webcam = gr.WebcamOptions(mirror=False)  # or left would be right
                sources = ["upload", "webcam", "clipboard"]
                image = gr.Image(type="filepath", sources=sources, webcam_options=webcam, label="Picture")
                # The file as it came: Gradio would decode it in a way of its own, and fail without a word where it cannot.
                image.preprocess = lambda file: None if file is None else file.path
                place, pointed = gr.State(None), gr.Markdown(ANYWHERE)
                anywhere = gr.Button("Look anywhere", size="sm")
                question = gr.Textbox(label="Question", max_length=LONGEST_QUESTION)
                one = len(labels) == 1
                name = gr.Dropdown(labels, value=labels[0], label="Model", visible=not one)
                beside = gr.Dropdown(
                    [NOBODY, *labels], value=NOBODY if one else labels[1], label="Beside it", visible=not one
                )
                with gr.Row():
                    ask, stop = gr.Button("Ask", variant="primary"), gr.Button("Stop")
            with gr.Column():
                said = gr.Textbox(label="Answer", lines=3, interactive=False)
        page = gr.HTML()
        gr.Examples([list(example) for example in examples], [image, question])
        given, shown = [image, question, name, beside, place], [said, page]
        image.select(asking.point, None, [place, pointed], queue=False, api_visibility="private")
        forget = {
            "fn": lambda: (None, ANYWHERE),
            "outputs": [place, pointed],
            "queue": False,
            "api_visibility": "private",
        }
        gr.on([anywhere.click, image.change], **forget)
        asked = gr.on([ask.click, question.submit], asking.begin, queue=False, api_visibility="private")
        # One function and one queue for both ways to ask, or a visitor could have two answers at once.
        asked.then(asking.ask, given, shown, trigger_mode="once", concurrency_limit=1, api_visibility="private")
        stop.click(asking.stop, queue=False, api_visibility="private")
    return app


def launch(app: gr.Blocks, **options: Any) -> None:
    """Serves the app until it is interrupted; `options` are those of Gradio's `launch`."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # none that has to be fetched
    # Gradio's own are too pale to be read by everybody.
    colors = {"button_primary_background_fill": "#1d4ed8", "button_primary_background_fill_hover": "#1e40af"}
    colors |= {
        "body_text_color_subdued": "#4b5563",
        "block_label_text_color": "#4b5563",
        "block_title_text_color": "#4b5563",
    }
    app.queue(max_size=16).launch(theme=theme.set(**colors), **options)
