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
"""How much one request may ask of the server."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """
    The defaults are those of `recipes/serve.py`.

    Args:
        requests (`int`): Requests in work, waiting ones included; more are sent away with a 429.
        request_bytes (`int`): Bytes of a request's body.
        request_seconds (`float`): Until a request's body has to be there.
        images (`int`): Pictures in a request.
        image_pixels (`int`): Pixels of a request's pictures together, as their headers tell.
        image_bytes (`int`): Bytes of a picture that is fetched or read from a file.
        image_seconds (`float`): For fetching one picture, redirects included.
        tokens (`int`): The largest `max_tokens`.
        context (`int`, *optional*): Tokens of prompt and answer together. Defaults to what the model has.
        media_domains (`frozenset[str]`): Hosts that pictures may be fetched from.
        media_path (`Path`, *optional*): The folder that pictures may be read from.
    """

    requests: int = 32
    request_bytes: int = 20_000_000
    request_seconds: float = 60.0
    images: int = 8
    image_pixels: int = 89_478_485  # Pillow's own limit, at which it warns
    image_bytes: int = 20_000_000
    image_seconds: float = 5.0
    tokens: int = 4096
    context: int | None = None
    media_domains: frozenset[str] = field(default_factory=frozenset)
    media_path: Path | None = None
