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
"""The arguments of the stages: the parts that a model is built from, the model that a stage starts from, and its rows."""

from dataclasses import dataclass, field

from trainers.stages import Variant


@dataclass
class PartsArguments:
    """What an AGE-VLM is built from."""

    vision: str = field(
        default="convnext_large_mlp.clip_laion2b_ft_soup_320",
        metadata={
            "help": "A timm ConvNeXt: name with a pretrained tag, `hf-hub:` id, or a local folder (or the weight file in it) "
            "as timm's `save_for_hf` writes it. The default is the CLIP ConvNeXt-L of the highest resolution that was not "
            "fine-tuned to ImageNet's classes."
        },
    )
    text: str = field(
        default="meta-llama/Llama-3.2-1B-Instruct",
        metadata={
            "help": "A LLaMA-architecture checkpoint: Hub id or local folder of safetensors, or a GGUF file (a path, or "
            "`repo:file.gguf`)."
        },
    )
    text_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of `--text` on the Hub."})
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
    use_visual_positions: bool = field(
        default=False, metadata={"help": "Add a 2-D position code to the visual tokens."}
    )
    attention_sink: bool = field(
        default=False, metadata={"help": "Give the cross-attention a place for nothing beside the visual tokens."}
    )


@dataclass
class OutputArguments:
    """Where the checkpoint goes."""

    output_dir: str = field(metadata={"help": "Folder to write the checkpoint to."})


@dataclass
class ModelArguments(PartsArguments):
    """The model that a stage starts from. Stage 1 builds it from `--vision` and `--text` when given no checkpoint."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint of the stage before, or of the same stage to train it on (folder or Hub id)."},
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a Hub id."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Clear away another run's checkpoints in `--output_dir`, and begin."},
    )
    attn_implementation: str = field(default="sdpa", metadata={"help": "Attention of the LLM's own layers."})
    variant: Variant | None = field(
        default=None,
        metadata={
            "help": "Which of the final models is made: one of the paper's four, or a concatenation model, whose visual tokens "
            "stand among the words. Default: the checkpoint's, or age-vlm."
        },
    )
    vision_training: str | None = field(
        default=None,
        metadata={
            "help": "What of the vision tower trains, if not what the stage says.",
            "choices": ["none", "last_block", "last_stage", "all"],
        },
    )
    use_peft: bool = field(
        default=False,
        metadata={
            "help": "Where the LLM trains, train low-rank adapters (LoRA) on its self-attention instead. They are merged "
            "into the model that is saved in the end."
        },
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapters are scaled by `lora_alpha / lora_r`."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout before the adapters."})


@dataclass
class RowsArguments:
    """Rows, and which of them."""

    dataset_name: str = field(
        default="scenes",
        metadata={
            "help": "`scenes` (made on the spot), a JSON or JSONL file, a folder of such files or of parquet files, a "
            "folder written by `datasets`' `save_to_disk`, or a Hub id; rows of `images`, `messages` and `regions`, or as "
            "LLaVA, ShareGPT or TRL have them."
        },
    )
    image_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder that the images' paths start from. Default: the folder of the file that holds them."
        },
    )
    masks_name: str | None = field(
        default=None,
        metadata={
            "help": "Rows with masks, as `recipes/masks.py` writes them. They stand in for those of the same `id`."
        },
    )
    masked_share: float | None = field(
        default=None,
        metadata={"help": "Share of the rows that are to come from `--masks_name`. Default: as many as there are."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    streaming: bool = field(default=False, metadata={"help": "Read rows as they come. Needs `--max_steps`."})
    num_scenes: int = field(default=10000, metadata={"help": "Rows to make of `scenes`."})
    scenes_seed: int = field(default=0, metadata={"help": "Seed of `scenes`."})


@dataclass
class DataArguments(RowsArguments):
    """The rows that a stage trains on, and those that it is evaluated on."""

    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "Rows of a stream that the next one is drawn from, by the seed; 0 keeps the stream's order."
        },
    )
    eval_dataset_name: list[str] | None = field(
        default=None,
        metadata={
            "help": "One or several data sets to evaluate on, each as `--dataset_name` or as NAME=DATASET with the name that "
            "it has in the logs. It is done in the end, or as `--eval_strategy` says."
        },
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on, of `--dataset_name` if no other set is named. Default: test, where there are splits."
        },
    )
