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
Asks a checkpoint about a picture, and draws where the words of the question and of the answer look.

    python recipes/ask.py --image kitchen.png --question "Is there a cup in the image?" [--phrases cup "left lion"]

Prints the answer and writes two files. The PNG holds the picture, and over it the attention of the whole question, of the
whole answer and of every phrase of theirs, averaged over the cross-attention layers. The .npz beside it holds the same in
float32: `question`, `answer`, `question: cup` and so on of the picture's height and width, summing to 1; and as `cells of
question` and so on what each layer gave, of shape (layers, rows, columns).

Without `--phrases` the phrases are guessed: the longest runs of words between punctuation marks and function words (a
fixed list). That needs no parser, but verbs and adverbs come along ("man riding").
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from modeling_agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, AgeVlmProcessor
from modeling_agevlm.image_processing_agevlm import as_shown
from recipes.pictures import save_attention
from trainers.data_collator import load_image


SHIPPED = Path(__file__).parent / "scenes_model"
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any no every each all both either neither another other such own same
    i me my mine you your yours he him his she her hers it its we us our ours they them their theirs one ones
    myself yourself himself herself itself ourselves yourselves themselves someone anyone everyone nobody
    something anything everything nothing somewhere anywhere everywhere nowhere
    who whom whose which what where when why how whether here there then than
    not yes only just also too very so more most less least much many few several please
    and or but nor yet if because as while although though until unless since
    of in on at to from by for with without about into onto over under above below between among through across along
    around behind beside besides beyond before after during inside outside near off out up down upon within toward
    towards against
    am is are was were be been being do does did done doing have has had having
    can could will would shall should may might must
    isn't aren't wasn't weren't don't doesn't didn't can't cannot couldn't won't it's there's that's what's i'm
    """.split()
)


def guess_phrases(text: str) -> list[str]:
    """The longest runs of words that are no function words and have only spaces in between, each once."""
    phrases, end = [], None
    for word in re.finditer(r"\w+(?:['\u2019-]\w+)*", text):
        if word[0].lower().replace("\u2019", "'") in FUNCTION_WORDS:
            end = None
            continue
        if end is not None and text[end : word.start()].isspace():
            phrases[-1] += f" {word[0]}"
        else:
            phrases.append(word[0])
        end = word.end()
    return list({phrase.lower(): phrase for phrase in phrases}.values())


def load_checkpoint(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    The model and the processor of a checkpoint folder or Hub id.

    Raises:
        ValueError: If it is no whole checkpoint of an AGE-VLM.
        OSError: If it cannot be found or read.
    """
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise ValueError("it has no config.json")
    config, _ = AgeVlmConfig.get_config_dict(name)
    if config.get("model_type") != AgeVlmConfig.model_type:
        raise ValueError(f"its config.json is of model type {config.get('model_type')!r}")
    model, report = AgeVlmForConditionalGeneration.from_pretrained(name, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{len(report['missing_keys'])} of its tensors are missing ({min(report['missing_keys'])})")
    return model.eval(), AgeVlmProcessor.from_pretrained(name)


@torch.inference_mode()
def ask(
    model: PreTrainedModel, processor: ProcessorMixin, image: PIL.Image.Image, question: str, max_new_tokens: int
) -> tuple[str, dict[str, torch.Tensor], int]:
    """The greedy answer; the model's inputs with the answer's words after the prompt; and the prompt's length in tokens."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    prompt_length = inputs["input_ids"].shape[1]
    is_word = ~torch.isin(output, output.new_tensor(processor.tokenizer.all_special_ids))
    is_word[:, :prompt_length] = True
    input_ids = output[is_word][None]  # without the end of turn
    answer = processor.decode(input_ids[0, prompt_length:]).strip()
    return answer, {**inputs, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}, prompt_length


def find_queries(
    processor: ProcessorMixin, input_ids: torch.LongTensor, prompt_length: int, question: str, phrases: list[str]
) -> dict[str, torch.BoolTensor]:
    """
    The tokens `(sequence_length,)` of the question, the answer (unless it is empty) and the phrases in either, by name.

    Raises:
        ValueError: If a phrase stands in neither.
    """
    question_mask, *phrase_masks = processor.get_query_masks(input_ids, [question, *phrases])[0]
    is_answer = torch.arange(input_ids.shape[1], device=input_ids.device) >= prompt_length
    parts = {"question": question_mask & ~is_answer, "answer": is_answer}
    found = dict(parts)
    for phrase, phrase_mask in zip(phrases, phrase_masks, strict=True):
        found |= {f"{part}: {phrase}": phrase_mask & part_mask for part, part_mask in parts.items()}
    return {name: mask for name, mask in found.items() if mask.any()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="a picture file")
    parser.add_argument("--question", required=True, help="what to ask")
    parser.add_argument("--phrases", nargs="+", help="words of the question or the answer; guessed by default")
    parser.add_argument(
        "--model", default=str(SHIPPED), help="checkpoint folder or Hub id; default: the tiny model of this repository"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/ask.png"), help="PNG file to draw to; the .npz goes beside it"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64, help="longest answer in tokens")
    args = parser.parse_args()
    if args.out.suffix != ".png":
        sys.exit(f"error: `--out` has to end in .png, but is {args.out}.")
    if not args.question.strip():
        sys.exit("error: `--question` is empty.")
    try:
        picture = as_shown(load_image(args.image)).convert("RGB")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        sys.exit(f"error: {args.image} cannot be read as a picture ({error}). Pass a PNG, JPEG or WebP file.")
    try:
        model, processor = load_checkpoint(args.model)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        sys.exit(f"error: {args.model} cannot be loaded as an AGE-VLM checkpoint: {reason}.")

    try:
        answer, inputs, prompt_length = ask(model, processor, picture, args.question, args.max_new_tokens)
        print(answer)
        phrases = args.phrases or guess_phrases(f"{args.question} . {answer}")
        masks = find_queries(processor, inputs["input_ids"], prompt_length, args.question, phrases)
    except ValueError as error:
        sys.exit(f"error: {error}")
    with torch.inference_mode():
        outputs = model(**inputs, query_masks=torch.stack(list(masks.values()))[None])
    maps = processor.post_process_grounding(outputs, target_sizes=[(picture.height, picture.width)])[0][0].numpy()
    size, patch_size = processor.image_processor.size, processor.image_processor.patch_size
    cells = torch.cat(outputs.grounding_maps).unflatten(-1, (size.height // patch_size, size.width // patch_size))
    arrays = dict(zip(masks, maps, strict=True))
    arrays |= {f"cells of {name}": cells[:, n].cpu().numpy() for n, name in enumerate(masks)}
    titles = {"question": f"question: {args.question}", "answer": f"answer: {answer}"}
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        save_attention(args.out, picture, {titles.get(name, name): arrays[name] for name in masks})
        np.savez_compressed(args.out.with_suffix(".npz"), **arrays)
    except OSError as error:
        sys.exit(f"error: {args.out} cannot be written ({error}).")
    print(f"where it looked: {args.out}, {args.out.with_suffix('.npz')}")


if __name__ == "__main__":
    main()
