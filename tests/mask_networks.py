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
"""Tiny Florence-2, SAM and SAM 2 checkpoints, and stand-ins whose raw outputs are exact."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from testing_utils import tiny_tokenizer
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BertConfig,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Florence2VisionConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2ImageProcessor,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2Processor,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3Model,
    Sam3Processor,
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQProcessor,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamProcessor,
    SamPromptEncoderConfig,
    SamVisionConfig,
    SwinConfig,
)

from recipes.segmentation.arguments import TASKS, MaskArguments
from recipes.segmentation.florence import Locator
from recipes.segmentation.sam import Encoded, Segmenter


def save_florence(folder: Path) -> Path:
    """Florence-2's classes and location tokens around a few random weights."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer()._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        image_token="<image>",
    )
    tokenizer.add_tokens([*(f"<loc_{n}>" for n in range(1000)), "<poly>", "</poly>", "<sep>", "<and>"])
    vision = Florence2VisionConfig(
        embed_dim=[8, 8, 16, 16],
        num_heads=[1, 1, 2, 2],
        num_groups=[1, 1, 2, 2],
        depths=[1, 1, 1, 1],
        projection_dim=16,
        window_size=4,
    )
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=1100,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
    )
    config = Florence2Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_id=tokenizer.image_token_id
    )
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    image_processor.image_seq_length = 5  # 2 x 2 and their mean
    parsing = {"polygons": {}, "phrase_grounding": {"banned_grounding_tokens": ["it", "the image"]}}
    Florence2Processor(image_processor, tokenizer, post_processor_config=parsing).save_pretrained(folder)
    return folder


def configs(vision: Any, prompt: Any, decoder: Any) -> dict[str, dict]:
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    return {name: config.to_dict() for name, config in parts.items()}


def save_sam(folder: Path, hq: bool = False) -> Path:
    """SAM, or SAM-HQ."""
    torch.manual_seed(0)
    vision = (SamHQVisionConfig if hq else SamVisionConfig)(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        output_channels=8,
        global_attn_indexes=[0],
        window_size=2,
        mlp_dim=16,
        num_pos_feats=4,
    )
    prompts = SamHQPromptEncoderConfig if hq else SamPromptEncoderConfig
    prompt = prompts(hidden_size=8, image_size=64, mask_input_channels=4, image_embedding_size=4)
    decoder = (functools.partial(SamHQMaskDecoderConfig, vit_dim=16) if hq else SamMaskDecoderConfig)(
        hidden_size=8,
        mlp_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        iou_head_hidden_dim=8,
        attention_downsample_rate=1,
    )
    config = (SamHQConfig if hq else SamConfig)(**configs(vision, prompt, decoder))
    (SamHQModel if hq else SamModel)(config).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    (SamHQProcessor if hq else SamProcessor)(
        SamImageProcessor(size={"longest_edge": 64}, pad_size=size)
    ).save_pretrained(folder)
    return folder


def save_sam2(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 1, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1],
        "window_size_per_stage": [2, 2, 2, 2],
        "global_attention_blocks": [],
        "window_positional_embedding_background_size": [2, 2],
    }
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=16, image_size=64, mask_input_channels=4)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=16, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=8
    )
    Sam2Model(Sam2Config(**configs(vision, prompt, decoder))).save_pretrained(folder)
    size = {"height": 64, "width": 64}
    Sam2Processor(Sam2ImageProcessor(size=size, mask_size={"height": 16, "width": 16})).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    size = {"shortest_edge": 64, "longest_edge": 64}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=2,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=6,
        num_feature_levels=4,
        encoder_n_points=2,
        decoder_n_points=2,
    )
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder


def save_sam3(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer()._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 56,
        "pretrain_image_size": 28,
        "window_size": 2,
        "global_attn_indexes": [0],
    }
    vision = {"backbone_config": backbone, "fpn_hidden_size": 16, "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    part = {"hidden_size": 16, "num_attention_heads": 2}
    layers = part | {"num_layers": 1, "intermediate_size": 16}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    config = Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 5},
        mask_decoder_config=part,
    )
    Sam3Model(config).save_pretrained(folder)
    size, mask_size = {"height": 56, "width": 56}, {"height": 16, "width": 16}
    Sam3Processor(Sam3ImageProcessor(size=size, mask_size=mask_size), tokenizer).save_pretrained(folder)
    return folder


class ExactLocator(Locator):
    """Florence-2's processor behind a network that writes what `answers` gives for a text and a picture."""

    def __init__(self, arguments: MaskArguments, folder: Path, answers: Callable[[str, PIL.Image.Image], str]) -> None:
        self.processor, self.task = Florence2Processor.from_pretrained(folder), TASKS[arguments.level]
        self.answers = answers

    def generate(self, texts: list[str], pictures: list[PIL.Image.Image]) -> list[str]:
        return [self.answers(text, picture) for text, picture in zip(texts, pictures, strict=True)]

    def write(self, numbers: np.ndarray, picture: PIL.Image.Image) -> str:
        """Location tokens of points `(n, 2)` or boxes `(n, 4)` in the picture's pixels."""
        bins = self.processor.post_processor.quantize(torch.as_tensor(numbers, dtype=torch.float), picture.size)
        return "".join(f"<loc_{n}>" for n in bins.flatten().tolist())


class ExactSegmenter(Segmenter):
    """
    SAM's processor, at its real sizes, behind a network that draws the exact mask that fills a box best.

    Args:
        masks (`Callable`): The masks of the things in a picture, `(height, width)` each, by the picture's size.
    """

    SIDE = 256  # of the logits

    def __init__(self, masks: Callable[[PIL.Image.Image], list[np.ndarray]], sam2: bool = False) -> None:
        self.processor = Sam2Processor(Sam2ImageProcessor()) if sam2 else SamProcessor(SamImageProcessor())
        self.masks_of, self.sam2, self.encoded = masks, sam2, 0

    def encode(self, pictures: list[PIL.Image.Image]) -> list[Encoded]:
        self.encoded += len(pictures)
        return [e._replace(features=picture) for e, picture in zip(super().encode(pictures), pictures, strict=True)]

    def embed(self, pixel_values: torch.Tensor) -> list[None]:
        return [None] * len(pixel_values)

    def decode(self, features: PIL.Image.Image, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = []
        for left, top, right, bottom in boxes[0].tolist():
            frames = [self.frame(mask) for mask in self.masks_of(features)]
            overlaps = [overlap((left, top, right, bottom), frame[0] > 0.5) for frame in frames]
            logits.append(F.avg_pool2d(frames[int(np.argmax(overlaps))], 4)[0] - 0.5)
        return torch.stack(logits), torch.full((len(logits),), 0.9)

    def frame(self, mask: np.ndarray) -> torch.Tensor:
        """A mask as the network sees its picture: `(1, 1024, 1024)`, padded (SAM) or stretched (SAM 2)."""
        height, width = mask.shape
        scale = 1024 / max(height, width)
        size = (1024, 1024) if self.sam2 else (round(height * scale), round(width * scale))
        mask = torch.from_numpy(mask.copy())[None, None].float()
        resized = F.interpolate(mask, size, mode="bilinear", antialias=True)[0]
        return F.pad(resized, (0, 1024 - size[1], 0, 1024 - size[0]))


def overlap(box: tuple[float, ...], mask: torch.Tensor) -> float:
    """IoU of a box and the box around a mask."""
    rows, columns = torch.nonzero(mask.any(dim=1)).flatten(), torch.nonzero(mask.any(dim=0)).flatten()
    if not len(rows):
        return 0.0
    other = (columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1)
    inner = max(0.0, min(box[2], other[2]) - max(box[0], other[0])) * max(
        0.0, min(box[3], other[3]) - max(box[1], other[1])
    )
    areas = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return inner / (areas - inner)
