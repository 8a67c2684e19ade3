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
"""Perplexity on a text without pictures, of VLMs and of the model that they were trained from."""

import math
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from modeling_agevlm import AgeVlmConfig
from modeling_agevlm.conversion import loading, split_gguf
from recipes.answering.answers import Chat
from recipes.answering.checkpoint import load_any, read_entries


VLMS = {AgeVlmConfig.model_type, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
TEXT = Path(__file__).parent / "perplexity_text.txt"


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    A VLM or a plain LLM, and its tokenizer.

    Raises:
        ValueError: If it cannot be loaded.
    """
    checkpoint, gguf_file = split_gguf(name)
    with loading(name, "`--base` and the models are whole checkpoints of VLMs or LLMs."):
        if gguf_file is None and read_entries(checkpoint).get("model_type") in VLMS:
            model, processor = load_any(checkpoint)
            return model, processor.tokenizer
        arguments = {"gguf_file": gguf_file, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, **arguments)
        return AutoModelForCausalLM.from_pretrained(checkpoint, **arguments).eval(), tokenizer


def read_documents(text: str | list[Chat], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """
    The documents of a text: of a file, one; of chats, each as the base's tokenizer writes it.

    Raises:
        ValueError: If the tokenizer has no chat template for the chats, or the file is no text.
        OSError: If the file cannot be read.
    """
    if not isinstance(text, str):
        if tokenizer.chat_template is None:
            raise ValueError(
                "The tokenizer of the base has no chat template, which `--text scenes` needs: pass a file of text."
            )
        return tokenizer.apply_chat_template(text, tokenize=False)
    try:
        return [Path(text).read_text(encoding="utf-8")]
    except UnicodeDecodeError:
        raise ValueError(f"{text} is no text in UTF-8.") from None
    except OSError as error:
        raise OSError(f"{text} cannot be read: {error.strerror}. `--text` is a file or scenes.") from None


@torch.inference_mode()
def negative_log_likelihood(
    model: PreTrainedModel, documents: list[list[int]], vocab_size: int, window: int = 1024
) -> float:
    """
    The negative log-likelihood, in nats, of all tokens but each document's first.

    Args:
        model ([`PreTrainedModel`]): A causal language model, or a VLM, which sees no picture.
        documents (`list[list[int]]`): Token ids.
        vocab_size (`int`): Probabilities are taken over the first so many tokens of the model's vocabulary.
        window (`int`, *optional*, defaults to 1024): Tokens that the model reads at a time. Windows overlap by half, and
            a token is scored in the first that holds it.
    """
    total = 0.0
    for tokens in documents:
        scored = 1
        for start in range(0, max(1, len(tokens) - window // 2), window // 2):
            ids = torch.tensor([tokens[start : start + window]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, scored - start - 1 : -1, :vocab_size]
            targets = ids[0, scored - start :]
            total += F.cross_entropy(logits, targets, reduction="none").double().sum().item()
            scored = start + ids.shape[1]
    return total


def perplexities(
    base: str, models: list[str], text: str | list[Chat], window: int = 1024
) -> dict[str, dict[str, float]]:
    """
    The scores on a text file or on chats of the base and of every model, by name: `tokens`, `nll_per_token` (nats), `perplexity`, `bits_per_byte` and
    `change`, by how much the perplexity is above the base's (0.01 is 1%).

    Raises:
        ValueError: If a checkpoint cannot be loaded, or splits the text into other tokens than the base.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first, tokenizer = load(base)
    words = read_documents(text, tokenizer)
    is_begun = tokenizer.bos_token is not None and words[0].startswith(tokenizer.bos_token)  # as most chats are
    settings = {"add_special_tokens": not is_begun, "verbose": False}  # windows are cut below
    documents = tokenizer(words, **settings)["input_ids"]
    config = first.config.get_text_config()
    vocab_size, window = config.vocab_size, min(window, config.max_position_embeddings)
    number = sum(len(tokens) - 1 for tokens in documents)
    if number < 1:
        raise ValueError(f"{text} holds no text to score.")
    texts = tokenizer.batch_decode([tokens[1:] for tokens in documents], skip_special_tokens=True)
    num_bytes = sum(len(part.encode()) for part in texts)
    scores = {}
    for name in (base, *models):
        model, own_tokenizer = (first, tokenizer) if name == base else load(name)
        if own_tokenizer(words, **settings)["input_ids"] != documents:
            raise ValueError(
                f"{name} has another tokenizer than {base}: pass the model that it was trained from as --base."
            )
        # the same arithmetic for all, whatever they are stored in
        nll = negative_log_likelihood(model.to(device, torch.float32), documents, vocab_size, window) / number
        scores[name] = {
            "tokens": number,
            "nll_per_token": nll,
            "perplexity": math.exp(nll),
            "bits_per_byte": nll * number / num_bytes / math.log(2),
            "change": math.expm1(nll - scores[base]["nll_per_token"]) if scores else 0.0,
        }
    return scores


def scores_table(scores: dict[str, dict[str, float]]) -> str:
    """A Markdown table of the scores."""
    lines = [
        "| model | tokens | nats per token | perplexity | bits per byte | above the base |",
        "|---|" + "---:|" * 5,
    ]
    for name, s in scores.items():
        shown = f"{s['tokens']} | {s['nll_per_token']:.4f} | {s['perplexity']:.3f} | {s['bits_per_byte']:.4f}"
        lines.append(f"| {name} | {shown} | {s['change']:+.2%} |")
    return "\n".join(lines)
