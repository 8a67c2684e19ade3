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
Builds an AGE-VLM checkpoint folder from a pretrained ConvNeXt and a pretrained LLaMA.

    python recipes/init.py --output_dir runs/init \\
        --vision convnext_large_mlp.clip_laion2b_ft_soup_320 --text meta-llama/Llama-3.2-1B-Instruct

Stage 1 does the same by itself when it is given `--vision` and `--text` instead of a checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, HfArgumentParser

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmImageProcessor, AgeVlmProcessor
from modeling_agevlm.modeling_agevlm import timm_pretrained_config
from trainers import parameter_table


# Tokens of an LLM's vocabulary that no text has trained and that can stand for an image, best first.
PLACEHOLDERS = ("<|image|>", "<|reserved_special_token_0|>")


@dataclass
class PartsArguments:
    """What an AGE-VLM is built from."""

    vision: str | None = field(
        default=None, metadata={"help": "A timm ConvNeXt: name with a pretrained tag, `hf-hub:` id or local folder."}
    )
    text: str | None = field(
        default=None, metadata={"help": "A LLaMA-architecture checkpoint: Hub id or local folder."}
    )
    image_size: int = field(default=768, metadata={"help": "Height and width of the images in pixels."})
    do_pad: bool = field(default=False, metadata={"help": "Pad pictures to a square instead of stretching them."})
    do_center_crop: bool = field(
        default=False, metadata={"help": "Crop pictures to a square instead of stretching them."}
    )
    cross_attention_layers: list[int] | None = field(
        default=None, metadata={"help": "Indices in the combined stack. Default: every fifth layer from layer 2 on."}
    )
    cross_attention_intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the cross-attention layers' MLP, 0 for none. Default: the LLM's."}
    )
    use_visual_positions: bool = field(default=False, metadata={"help": "Add a 2-D position code to the keys' input."})


def build(parts: PartsArguments) -> tuple[AgeVlmForConditionalGeneration, AgeVlmProcessor]:
    """
    An AGE-VLM around pretrained parts that still answers as its LLM does, and its processor.

    Raises:
        ValueError: If a part is not given, or the LLM is not of LLaMA architecture.
    """
    if parts.vision is None or parts.text is None:
        raise ValueError("Building a model needs both `--vision` (a timm ConvNeXt) and `--text` (a LLaMA checkpoint).")
    vision = f"local-dir:{parts.vision}" if Path(parts.vision).is_dir() else parts.vision
    model = AgeVlmForConditionalGeneration.from_vision_text_pretrained(
        vision,
        parts.text,
        image_size=parts.image_size,
        cross_attention_layers=parts.cross_attention_layers,
        cross_attention_intermediate_size=parts.cross_attention_intermediate_size,
        use_visual_positions=parts.use_visual_positions,
    )
    tokenizer = AutoTokenizer.from_pretrained(parts.text)
    vocabulary = tokenizer.get_vocab()
    image_token = next((token for token in PLACEHOLDERS if token in vocabulary), None)
    if image_token is None:
        image_token = PLACEHOLDERS[0]
        tokenizer.add_special_tokens({"additional_special_tokens": [image_token]})
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
    model.generation_config.suppress_tokens = [model.config.image_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    data_config, _, _ = timm_pretrained_config(vision)
    image_processor = AgeVlmImageProcessor(
        size={"height": parts.image_size, "width": parts.image_size},
        patch_size=model.config.vision_config.patch_size,
        image_mean=list(data_config["mean"]),
        image_std=list(data_config["std"]),
        do_pad=parts.do_pad,
        do_center_crop=parts.do_center_crop,
    )
    return model, AgeVlmProcessor(image_processor, tokenizer, image_token=image_token)


@dataclass
class OutputArguments:
    """Where the checkpoint goes."""

    output_dir: str = field(metadata={"help": "Folder to write the checkpoint to."})


def main() -> None:
    parts, output = HfArgumentParser((PartsArguments, OutputArguments)).parse_args_into_dataclasses()
    model, processor = build(parts)
    model.save_pretrained(output.output_dir)
    processor.save_pretrained(output.output_dir)
    print(parameter_table(model))


if __name__ == "__main__":
    main()
