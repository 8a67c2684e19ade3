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
"""The app: to ask a picture in a browser, here or as a Space on the Hub."""

from pathlib import Path


QUESTIONS = {
    "kitchen.jpg": "Is there a cup in the image?",
    "safari.jpg": "Describe the image.",
    "street.jpg": "Is there a dog in the image?",
}
PICTURES = (
    Path(__file__).parents[2] / "tests" / "data"
)  # not there where the project was installed without its sources


def examples(folder: Path = PICTURES) -> list[tuple[str, str]]:
    """Picture files of a folder that are there, each with a question."""
    return [(str(folder / name), question) for name, question in QUESTIONS.items() if (folder / name).exists()]
