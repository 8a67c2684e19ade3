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

import re
from collections.abc import Sequence

from recipes.evaluation.metrics import summarize
from recipes.evaluation.records import JUDGED, Record, letter_of, mark
from recipes.evaluation.rules import HALLUSION_ANSWERS, parse_yes_no, said


def judge_prompt(record: Record) -> str:
    """What the judge is asked."""
    answer, prediction = record["answer"], said(record["prediction"])
    if record["benchmark"] == "mmhal":
        return (
            "You rate an answer to a question about a picture that you cannot see. Rely on what the picture holds and "
            "on the right answer: what goes against them or adds things to the picture is a hallucination; knowledge "
            "of the world is none. Rate 6 if it informs very well with good reasoning, 5 very well, 4 somewhat, 3 not, "
            "all without a hallucination; with a hallucination, 2 if it informs very well, 1 somewhat, 0 not.\n\n"
            f"The picture holds: {record.get('image_content', '')}\n\nQuestion: {record['question']}\n\n"
            f"Right answer: {answer}\n\nThe answer to rate: {prediction}\n\nReply with the number alone."
        )
    options = ""
    if record["benchmark"] == "hallusionbench":
        answer = HALLUSION_ANSWERS[answer.strip()]
    elif record["benchmark"] in ("cvbench", "mmvp"):
        listed = [f"({chr(ord('A') + n)}) {choice}" for n, choice in enumerate(record["choices"])]
        answer = listed[ord(letter_of(record)) - ord("A")]
        options = "".join(f"\n{option}" for option in listed)
    return (
        "You mark the answer of a pupil. Decide only whether the pupil chose the right answer, however it is worded. "
        "A pupil who chose another answer, several or none is wrong.\n\n"
        f"Question: {record['question']}{options}\n\nRight answer: {answer}\n\n"
        f"The pupil's answer: {prediction}\n\nDid the pupil choose the right answer? Reply with yes or no."
    )


def judge(records: Sequence[Record], name: str, batch_size: int = 16) -> None:
    """
    Asks an instruct model whether each prediction is right, and stores its verdicts in the field `judged`; for a
    rating of MMHal-Bench's answers, in the field `rating`.

    Args:
        records (`Sequence[dict]`): Those of the benchmarks in `JUDGED` are judged; an empty prediction is wrong
            unasked.
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
        record.pop("rating", None)
        record |= verdict(record, "") | {"correct": mark(record)}
    rated = [record for record in chosen if said(record["prediction"]) or record["benchmark"] == "mmhal"]
    asked = sorted(rated, key=lambda record: len(judge_prompt(record)))
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
            record |= verdict(record, reply)
            record["correct"] = mark(record)


def verdict(record: Record, reply: str) -> Record:
    """
    What a reply of the judge's adds to a record: whether it is `judged` right; of MMHal-Bench the `rating`, a number
    alone or, as the benchmark's own script reads it, the only one after "Rating: ". Nothing where there is none.
    """
    if record["benchmark"] != "mmhal":
        return {"judged": parse_yes_no(reply) == "yes"}
    text = said(reply).lower()
    found = set(re.findall(r"^([0-6])\.?$", text) or re.findall(r"rating: ([0-6])\b(?!\.\d)", text))
    return {"rating": int(found.pop())} if len(found) == 1 else {}


def judged_summary(records: Sequence[Record]) -> dict[str, float]:
    """The metrics as the judge sees them; empty unless it has seen every record."""
    if not all("judged" in record for record in records):
        return {}
    metrics = summarize([{**record, "correct": record["judged"]} for record in records])
    return {f"{name} (judged)": value for name, value in metrics.items() if name != "unread"}
