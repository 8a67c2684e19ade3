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
"""How bad input ends on the command line: in one sentence."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError


ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / name for name in ("modeling_agevlm", "trainers", "recipes")]


@contextmanager
def one_sentence() -> Iterator[None]:
    """
    Exits with the sentence of a `ValueError` or `OSError` that this project raises, instead of a traceback. What other
    code raises was not foreseen, and keeps its traceback.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if not any(raised_in.is_relative_to(package) for package in PACKAGES):
            raise
        sys.exit(f"error: {error}")
    except StrictDataclassError as error:  # of a configuration; the sentence is in its cause
        sys.exit(f"error: {error.__cause__ or error}")
