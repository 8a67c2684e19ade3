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
"""Small copies of the pictures that questions are about, for sheets and pages."""

import hashlib
from pathlib import Path
from typing import Any

from modeling_agevlm.image_reading_agevlm import read_image


def fingerprint(image: Any) -> bytes:
    """A hash of what a picture (PIL, path or URL) shows, whatever file it comes from."""
    image = read_image(image)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def save(image: Any, folder: Path) -> str:
    """Saves a picture, at most 512 pixels wide and high, once; returns its path from the folder's own."""
    image = read_image(image)
    path = Path(folder.name, f"{fingerprint(image).hex()[:16]}.jpg")
    if not (folder.parent / path).exists():
        folder.mkdir(parents=True, exist_ok=True)
        image.thumbnail((512, 512))
        image.save(folder.parent / path, quality=90)
    return str(path)
