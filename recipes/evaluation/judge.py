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
"""A local instruct model as a second opinion on answers in free words."""

from collections.abc import Sequence

from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import JUDGED, Record
from recipes.evaluation.rules import HALLUSION_ANSWERS, parse_yes_no


def judge_prompt(record: Record) -> str:
    """What the judge is asked."""
    answer = record["answer"]
    if record["benchmark"] == "hallusionbench":
        answer = HALLUSION_ANSWERS[answer]
    elif record["benchmark"] == "cvbench":
        answer = f"{answer} {record['choices'][ord(answer.strip('()')) - ord('A')]}"
    options = "".join(f"\n({chr(ord('A') + n)}) {choice}" for n, choice in enumerate(record.get("choices") or ()))
    return (
        "You mark the answer of a pupil. Decide only whether the pupil chose the right answer, however it is worded. A pupil "
        "who chose another answer, several or none is wrong.\n\n"
        f"Question: {record['question']}{options}\n\nRight answer: {answer}\n\n"
        f"The pupil's answer: {record['prediction']}\n\nDid the pupil choose the right answer? Reply with yes or no."
    )


def judge(records: Sequence[Record], name: str, batch_size: int = 16) -> None:
    """
    Asks an instruct model whether each prediction is right, and stores its verdicts in the field `judged`.

    Args:
        records (`Sequence[dict]`): Those of the benchmarks in `JUDGED` are judged; an empty prediction is wrong unasked.
        name (`str`): Folder or Hub id of any causal language model with a chat template.
        batch_size (`int`, *optional*, defaults to 16): Questions at a time.

    Raises:
        ValueError: If the model cannot be loaded, or has no chat template.
    """
    import torch  # Only the judge needs them, and they take seconds.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from modeling_agevlm.conversion import loading
    from recipes.answering.answers import generate

    with loading(name, "`--judge` is an instruct model."):
        tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(f"{name} has no chat template: the judge must be an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with loading(name, "`--judge` is an instruct model."):
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto" if device == "cuda" else torch.float32)
    model = model.to(device).eval()
    chosen = [record for record in records if record["benchmark"] in JUDGED]
    for record in chosen:
        record["judged"] = False
    asked = sorted((r for r in chosen if r["prediction"].strip()), key=lambda r: len(judge_prompt(r)))
    for first in range(0, len(asked), batch_size):
        batch = asked[first : first + batch_size]
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": judge_prompt(record)}] for record in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            enable_thinking=False,  # of templates that know it, as Qwen3's
        )
        output = generate(model, inputs, max_new_tokens=8, pad_token_id=tokenizer.pad_token_id)
        replies = tokenizer.batch_decode(output, skip_special_tokens=True)
        for record, reply in zip(batch, replies, strict=True):
            record["judged"] = parse_yes_no(reply) == "yes"


def judged_summary(records: Sequence[Record]) -> dict[str, float]:
    """The metrics as the judge sees them; empty unless it has seen every record."""
    if not all("judged" in record for record in records):
        return {}
    metrics = summarize([{**record, "correct": record["judged"]} for record in records])
    return {f"{name} (judged)": value for name, value in metrics.items()}
