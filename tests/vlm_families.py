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
"""Tiny VLMs of all families whose visual tokens are followed, with random weights and their own processors."""

from collections.abc import Callable
from typing import Any

import pytest
from testing_utils import tiny_tokenizer
from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GemmaConfig,
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    TimmWrapperConfig,
)
from transformers.models.smolvlm import processing_smolvlm


Made = tuple[PreTrainedModel, ProcessorMixin]
TEXT = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SQUARE = {"height": 32, "width": 32}


def with_tokens(*tokens: str) -> tuple[PreTrainedTokenizerFast, int]:
    """A tokenizer with the special tokens of a family, and the number of the first of them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens], special_tokens=True)
    return tokenizer, tokenizer.convert_tokens_to_ids(tokens[0])


def llava(tower: str = "clip", strategy: str = "default", do_pad: bool = False) -> Made:
    tokenizer, image = with_tokens("<image>")
    vision = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower](**VISION)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=image,
        vision_feature_select_strategy=strategy,
    )
    if do_pad:
        image_processor = LlavaImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE, do_pad=True)
    elif tower == "clip":
        image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    else:
        image_processor = SiglipImageProcessor(size=SQUARE)
    processor = LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
    )
    return LlavaForConditionalGeneration(config), processor


def fast_vlm(do_center_crop: bool = False) -> Made:
    """Behind a ConvNeXt whose last feature map has a cell for each 8 x 8 pixels."""
    tokenizer, image = with_tokens("<image>")
    config = FastVlmConfig(
        vision_config=TimmWrapperConfig(
            architecture="convnext_atto",
            model_args={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "patch_size": 1},
            hidden_size=16,
            do_pooling=False,
        ),
        text_config=LlamaConfig(**TEXT),
        image_token_index=image,
    )
    size = {"shortest_edge": 36} if do_center_crop else SQUARE
    image_processor = CLIPImageProcessor(size=size, crop_size=SQUARE, do_center_crop=do_center_crop)
    processor = LlavaProcessor(image_processor, tokenizer, patch_size=8, vision_feature_select_strategy="full")
    return FastVlmForConditionalGeneration(config), processor


PINPOINTS = [[32, 32], [32, 64], [64, 32], [64, 64], [96, 96]]


def llava_onevision() -> Made:
    """Of 96 x 96 pixels it makes 12 x 12 patches, which `anyres_max_4` shrinks to 8 x 8."""
    tokenizer, image = with_tokens("<image>", "<video>")
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=Qwen2Config(**TEXT),
        image_token_index=image,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_4",
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def llava_next(tower: str = "clip", strategy: str = "default") -> Made:
    tokenizer, image = with_tokens("<image>")
    config = LlavaNextConfig(
        vision_config={"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}[tower](**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=image,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy=strategy,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS, do_center_crop=True
        ),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(tower == "clip"),
    )
    return LlavaNextForConditionalGeneration(config), processor


def gemma3() -> Made:
    """Two layers of three see a window of the last words only."""
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer, image = with_tokens(*names.values())
    tokenizer._set_model_specific_special_tokens(names)
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=Gemma3TextConfig(**TEXT, sliding_window=512, sliding_window_pattern=3),
        mm_tokens_per_image=4,
        image_token_index=image,
        boi_token_index=image + 1,
        eoi_token_index=image + 2,
    )
    processor = Gemma3Processor(Gemma3ImageProcessor(size=SQUARE), tokenizer, image_seq_length=4)
    return Gemma3ForConditionalGeneration(config), processor


def gemma4() -> Made:
    """70 visual tokens of 3 x 3 patches at most. The last layer has the keys and values of that before it."""
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    names |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    tokenizer, _ = with_tokens(*names.values(), "<|video|>")
    tokenizer._set_model_specific_special_tokens(names)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "num_kv_shared_layers": 1}
    text |= {"vocab_size_per_layer_input": TEXT["vocab_size"], "hidden_size_per_layer_input": 8, "global_head_dim": 16}
    config = Gemma4Config(
        text_config=TEXT | text,
        vision_config=VISION | {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 100},
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
        audio_token_id=ids["audio_token"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
    )
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(patch_size=8, max_soft_tokens=70),
        tokenizer,
        Gemma4VideoProcessor(),
    )
    return Gemma4ForConditionalGeneration(config), processor


def internvl() -> Made:
    names = {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>"}
    names["video_token"] = "<video>"
    tokenizer, image = with_tokens(*names.values())
    tokenizer._set_model_specific_special_tokens(names)
    config = InternVLConfig(
        vision_config=VISION, text_config=Qwen2Config(**TEXT), image_token_id=image, image_seq_length=4
    )
    image_processor = GotOcr2ImageProcessor(size=SQUARE, min_patches=1, max_patches=6)
    processor = InternVLProcessor(image_processor, tokenizer, InternVLVideoProcessor(), image_seq_length=4)
    return InternVLForConditionalGeneration(config), processor


def idefics3(split: bool = True) -> Made:
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]
    tokenizer, image = with_tokens(
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles
    )
    config = Idefics3Config(
        vision_config=VISION, text_config=LlamaConfig(**TEXT), image_token_id=image, scale_factor=2
    )
    image_processor = Idefics3ImageProcessor(
        size={"longest_edge": 96}, max_image_size={"longest_edge": 32}, do_image_splitting=split
    )
    return Idefics3ForConditionalGeneration(config), Idefics3Processor(image_processor, tokenizer, image_seq_len=4)


def smolvlm() -> Made:
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 4) for j in range(1, 4)]
    tokenizer, image = with_tokens(
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles
    )
    config = SmolVLMConfig(vision_config=VISION, text_config=LlamaConfig(**TEXT), image_token_id=image, scale_factor=2)
    image_processor = SmolVLMImageProcessor(size={"longest_edge": 96}, max_image_size={"longest_edge": 32})
    with pytest.MonkeyPatch.context() as patch:  # it spells out the number of frames of a video
        patch.setattr(processing_smolvlm, "num2words", str)
        processor = SmolVLMProcessor(image_processor, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4)
    return SmolVLMForConditionalGeneration(config), processor


def qwen(
    config: type,
    model: type,
    processor: type,
    video_processor: type,
    text: dict[str, Any] | None = None,
    **vision: int | list[int],
) -> Made:
    tokenizer, image = with_tokens("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
    made = model(
        config(
            text_config=TEXT | {"rope_parameters": rope} | (text or {}),
            vision_config={"depth": 2, "num_heads": 2, "patch_size": 8, "intermediate_size": 16} | vision,
            image_token_id=image,
            video_token_id=image + 1,
            vision_start_token_id=image + 2,
            vision_end_token_id=image + 3,
        )
    )
    image_processor = Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 80})
    return made, processor(image_processor, tokenizer, video_processor())


def qwen2_vl() -> Made:
    classes = (Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor)
    return qwen(*classes, embed_dim=16, hidden_size=32, mlp_ratio=1)


def qwen2_5_vl() -> Made:
    """Windows of 2 x 2 tokens, into whose order the model brings its patches for a while."""
    classes = (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)
    return qwen(*classes, hidden_size=16, out_hidden_size=32, window_size=32, fullatt_block_indexes=[1])


def qwen3_vl() -> Made:
    classes = (Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor)
    return qwen(*classes, hidden_size=16, out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0])


def qwen3_5() -> Made:
    """Two layers of three have no attention."""
    classes = (Qwen3_5Config, Qwen3_5ForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor)
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    layers = {"layer_types": ["full_attention", "linear_attention", "full_attention"]}
    return qwen(*classes, linear | layers, hidden_size=16, out_hidden_size=32, num_position_embeddings=16)


def paligemma() -> Made:
    tokenizer, image = with_tokens("<image>")
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION),
        text_config=GemmaConfig(**TEXT),
        image_token_index=image,
        projection_dim=32,
    )
    image_processor = SiglipImageProcessor(size=SQUARE)
    image_processor.image_seq_length = 16
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(image_processor, tokenizer)


def lfm2_vl() -> Made:
    tiles = [f"<|img_row_{i}_col_{j}|>" for i in range(1, 4) for j in range(1, 4)]
    tokenizer, image = with_tokens("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles)
    config = Lfm2VlConfig(
        vision_config={**VISION, "model_type": "siglip2_vision_model", "num_patches": 16},
        text_config=Lfm2Config(**TEXT, layer_types=["conv", "full_attention", "full_attention"]),
        image_token_id=image,
    )
    image_processor = Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=32, min_image_tokens=2, max_image_tokens=8, max_tiles=6
    )
    return Lfm2VlForConditionalGeneration(config), Lfm2VlProcessor(image_processor, tokenizer)


def mllama() -> Made:
    tokenizer, image = with_tokens("<|image|>", "<|python_tag|>")
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    vision = VISION | {"vision_output_dim": 32, "num_global_layers": 1, "intermediate_layers_indices": [0]}
    config = MllamaConfig(
        vision_config=vision | {"attention_heads": 2, "supported_aspect_ratios": ratios, "max_num_tiles": 4},
        text_config=TEXT
        | {"cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        image_token_index=image,
    )
    return MllamaForConditionalGeneration(config), MllamaProcessor(MllamaImageProcessor(size=SQUARE), tokenizer)


FAMILIES: dict[str, Callable[[], Made]] = {
    "LLaVA": llava,
    "LLaVA, padded": lambda: llava(do_pad=True),
    "LLaVA, with class token": lambda: llava(strategy="full"),
    "LLaVA, SigLIP": lambda: llava("siglip", "full"),
    "LLaVA-OneVision": llava_onevision,
    "FastVLM": fast_vlm,
    "FastVLM, cut": lambda: fast_vlm(do_center_crop=True),
    "LLaVA-NeXT": llava_next,
    "LLaVA-NeXT, SigLIP": lambda: llava_next("siglip", "full"),
    "Gemma 3": gemma3,
    "Gemma 4": gemma4,
    "InternVL": internvl,
    "Idefics3": idefics3,
    "Idefics3, whole": lambda: idefics3(split=False),
    "SmolVLM": smolvlm,
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "Qwen3.5": qwen3_5,
    "PaliGemma": paligemma,
    "LFM2-VL": lfm2_vl,
    "Mllama": mllama,
}
