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
Runs damaged inputs for some time, prints what they ended in, and exits with 1 if one of them failed.

    make fuzz SECONDS=300 [SEED=1] [KIND=pictures]
    make fuzz KIND=pictures INPUT=runs/fuzz/pictures-0-17      # an input that failed, again, with its traceback

The same seed gives the same inputs. Those that failed are in runs/fuzz.
"""

import argparse
import os
import sys
from pathlib import Path


os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}

from fuzz.runner import KINDS, ROOT, fuzz, kind_module  # noqa: E402


MOST_GROUPS = 12  # of messages that are shown of a kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="for all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="another one gives other inputs")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one; may be repeated")
    parser.add_argument("--input", type=Path, help="one input, with its traceback; needs --kind")
    args = parser.parse_args()
    kinds = args.kind or list(KINDS)
    if args.input is not None:
        print(kind_module(kinds[0]).run(args.input.read_bytes()))
        return
    each = args.seconds / sum(KINDS[name] for name in kinds)
    tallies = {name: fuzz(kind_module(name), args.seed, each * KINDS[name], ROOT / "runs/fuzz") for name in kinds}
    print(f"{'kind':18}{'inputs':>9}{'results':>9}{'sentences':>11}{'failures':>10}{'MB more':>9}")
    for name, tally in tallies.items():
        counts = [tally.ends[end] for end in ("result", "sentence", "failure")]
        print(f"{name:18}{tally.number:9,}{counts[0]:9,}{counts[1]:11,}{counts[2]:10,}{tally.memory // 2**20:9,}")
    for name, tally in tallies.items():
        print(f"\n{name}")
        groups = [(n, end, text) for (end, text), n in tally.texts.most_common() if end != "failure"]
        for n, end, text in groups[:MOST_GROUPS]:
            print(f"{n:9,} {end:9} {text}")
        if len(groups) > MOST_GROUPS:
            print(f"{sum(n for n, _, _ in groups[MOST_GROUPS:]):9,} of {len(groups) - MOST_GROUPS} more kinds")
        for text, files in tally.failures:
            print(f"  FAILURE {text}\n          make fuzz KIND={name} INPUT={files[0]}")
    sys.exit(any(tally.failures for tally in tallies.values()))


if __name__ == "__main__":
    main()
