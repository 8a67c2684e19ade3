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
What learning to see cost in language: the perplexity of VLMs on a text without pictures, against that of their LLM.

    python recipes/perplexity.py runs/age-vlm runs/age-vlm-lm --base meta-llama/Llama-3.2-1B-Instruct [--text FILE | scenes]
    python recipes/perplexity.py runs/guided --base HuggingFaceTB/SmolVLM-256M-Instruct

Without a picture an AGE-VLM skips its cross-attention layers, so one whose LLM was frozen has exactly its LLM's perplexity. The base
of a VLM that was tuned (recipes/guide.py) is the VLM as it was before.
All models score the same tokens, those of the base's tokenizer, each with at least half a window of text before it (where the
text has so much), and share out the probability among the base's vocabulary only.

The default text, `recipes/evaluation/perplexity_text.txt`, holds the openings of "Alice's Adventures in Wonderland" (1865) and of "Pride
and Prejudice" (1813) and the Gettysburg Address (1863), all in the public domain. Every large LLM knows them by heart: pass a
text of your own with `--text` to measure on what it has not read. `--text scenes` takes chats about scenes of the test split,
the only language that the demo's LLM knows.
"""

import argparse
import json
from pathlib import Path

from recipes.terminal.errors import one_sentence


NUM_CHATS = 200  # of `--text scenes`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints of VLMs (folders or Hub ids)")
    parser.add_argument(
        "--base", required=True, help="the LLM or VLM that they were trained from: folder, Hub id or GGUF file"
    )
    parser.add_argument("--text", help="text file, or scenes; default: the one that comes along")
    parser.add_argument("--out", type=Path, help="JSON file for the scores")
    args = parser.parse_args()

    from recipes.evaluation.perplexity import TEXT, perplexities, scores_table
    from recipes.scenes.texts import scene_texts

    text = args.text or str(TEXT)
    with one_sentence():
        chats = list(scene_texts("test", NUM_CHATS)) if text == "scenes" else None
        scores = perplexities(args.base, args.models, chats or text)
    print(scores_table(scores))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
