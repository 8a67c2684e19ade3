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
"""Arguments of [`GuidedSFTTrainer`]."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from trl import SFTConfig


# What TRL and transformers have for other data or other models, and why it would do nothing here
UNUSED = dict.fromkeys(
    ("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "label_names"),
    "rows are read as they are when they are needed",
)
UNUSED |= dict.fromkeys(("packing", "packing_strategy", "eval_packing", "padding_free"), "rows are not packed")
UNUSED |= {
    "shuffle_dataset": "data sets are shuffled in every epoch; a stream shuffles itself (`shuffle` of `datasets`)",
    "truncation_mode": "rows are cut at the end",
    "completion_only_loss": "only the assistant's words are labels",
    "pad_token": "the processor's tokenizer has one, or takes its `eos_token`",
    "model_init_kwargs": "load the model before",
    "use_liger_kernel": "Liger has no kernels for this model",
    "liger_kernel_config": "Liger has no kernels for this model",
    "router_aux_loss_coef": "the model has no experts",
}


AUTO = "auto"


def as_indices(name: str, value: Any, meant: str) -> list[int] | None:
    """A number, or numbers, also in words as of a command line, as a list. Raises `ValueError` for anything else."""
    if value is None:
        return None
    values = [value] if isinstance(value, (int, str)) else value
    try:
        numbers = [int(one) for one in values]
        if any(one != number for one, number in zip(values, numbers, strict=True) if not isinstance(one, str)):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"`{name}` has to be {meant}, but is {value!r}.") from None
    return numbers


@dataclass
class GuidedSFTConfig(SFTConfig):
    """
    [`trl.SFTConfig`] with the guidance loss. The defaults are the paper's (appendix C): AdamW at 1e-5 with weight
    decay 0.1 and beta2 0.95, warm-up over 3% of the steps, a cosine, one epoch, 16 pictures per device.

    > Parameters that control the guidance

    guidance_weight (`float`, *optional*, defaults to `1.0`):
        Weight of the guidance loss beside the language modeling loss. At 0 it is logged, but not added.
    guidance_normalization (`str`, *optional*, defaults to `"sum"`):
        What Eq. 3 divides the attention by: its `"sum"` or its `"max"`.
    guidance_query (`str`, *optional*, defaults to `"answer"`):
        Which words a region without a message guides: those of the `"question"` (all user turns), of the `"answer"`
        (all assistant turns; a caption is one) or `"both"`.
    guidance_level (`str`, *optional*, defaults to `"all"`):
        Which regions guide: those of whole `"message"`s (as in the paper), those of `"phrase"`s, or `"all"`.
    guidance_layers (`list[int]`, *optional*):
        Which cross-attention layers are guided, by their indices in the combined stack. Kept in the model's config.
        Defaults to what that says, which is all of them unless a training before chose some. Of another VLM, layers of its
        language model; kept in the trainer's `record`.
    guidance_heads (`list[int]` or `"auto"`, *optional*):
        Which attention heads of these layers are guided. Kept in the model's config, and defaults to what that says: all
        of them unless a training before chose some. Of another VLM, heads of all those layers, or `"auto"` for the few of all
        layers that already localize, as the trained model's attention tells ([`localizing_heads`]).
    mask_downsampling (`str`, *optional*, defaults to `"any"`):
        When a visual token's cell belongs to a mask: if `"any"` of it is covered (small objects survive), or if more
        than half of its `"area"` is.

    > Parameters that control the data

    broken_rows (`str`, *optional*, defaults to `"stop"`):
        What a row with an unreadable image, a damaged mask or the like does: `"stop"` the training, or `"skip"` it
        and count it in the log.

    > Parameters that control the evaluation

    early_stopping_patience (`int`, *optional*):
        After how many evaluations in a row without a better `metric_for_best_model` the training ends. It takes
        `load_best_model_at_end`, so that what is saved in the end is the best.
    early_stopping_threshold (`float`, *optional*, defaults to `0.0`):
        By how much the metric has to be better to count.

    > [!NOTE]
    > These parameters have default values different from [`trl.SFTConfig`]:
    > - `learning_rate`: Defaults to `1e-5` instead of `2e-5`.
    > - `weight_decay`: Defaults to `0.1` instead of `0.0`.
    > - `adam_beta2`: Defaults to `0.95` instead of `0.999`.
    > - `warmup_steps`: Defaults to `0.03` (of all steps) instead of `0`.
    > - `lr_scheduler_type`: Defaults to `"cosine"` instead of `"linear"`.
    > - `num_train_epochs`: Defaults to `1` instead of `3`.
    > - `per_device_train_batch_size`: Defaults to `16` instead of `8`.
    > - `max_length`: Defaults to `2048` instead of `1024`.
    > - `bf16`: Defaults to `True` only where there is a GPU: on CPUs float32 is faster.
    > - `assistant_only_loss`: Defaults to `True`, and is always so: user turns and placeholders are never labels.
    """

    learning_rate: float = field(default=1e-5, metadata={"help": "The initial learning rate for AdamW."})
    weight_decay: float = field(
        default=0.1, metadata={"help": "Weight decay of all weights but norms, biases and layer scales."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of AdamW."})
    warmup_steps: float = field(
        default=0.03, metadata={"help": "Steps of linear warm-up; a number below 1 is a share of all steps."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate schedule."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Total number of training epochs."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Rows per device and forward pass."})
    max_length: int | None = field(
        default=2048, metadata={"help": "Tokens per row; longer rows are cut at the end. `None` cuts nothing."}
    )
    assistant_only_loss: bool = field(
        default=True, metadata={"help": "Only the assistant's words are labels. There is no other way here."}
    )
    guidance_weight: float = field(
        default=1.0, metadata={"help": "Weight of the guidance loss; at 0 it is logged, but not added."}
    )
    guidance_normalization: str = field(
        default="sum",
        metadata={"help": "What Eq. 3 divides the attention by.", "choices": ["sum", "max"]},
    )
    guidance_query: str = field(
        default="answer",
        metadata={
            "help": "Which words a region without a message guides: the user's, the assistant's or both.",
            "choices": ["question", "answer", "both"],
        },
    )
    guidance_level: str = field(
        default="all",
        metadata={
            "help": "Which regions guide: those of whole messages (as in the paper), those of phrases, or all.",
            "choices": ["message", "phrase", "all"],
        },
    )
    guidance_layers: list[int] | None = field(
        default=None, metadata={"help": "Cross-attention layers that are guided; default: the checkpoint's, or all."}
    )
    guidance_heads: list[str] | None = field(  # numbers; of words, a command line can only have a list
        default=None,
        metadata={
            "help": "Attention heads of them that are guided; default: the checkpoint's, or all. Of a VLM that is no AGE-VLM "
            "also `auto`: the few of all layers that already localize."
        },
    )
    mask_downsampling: str = field(
        default="any",
        metadata={
            "help": "A cell belongs to a mask if any of it is covered, or if more than half of its area is.",
            "choices": ["any", "area"],
        },
    )
    broken_rows: str = field(
        default="stop",
        metadata={"help": "Whether a broken row stops the training or is skipped.", "choices": ["stop", "skip"]},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Evaluations in a row without a better `--metric_for_best_model` that end the training."},
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "By how much the metric has to be better to count."}
    )

    def __post_init__(self):
        if self.bf16 is None and not self.fp16:
            self.bf16 = torch.cuda.is_available()
        # TRL (1.16) turns it on by its old name, of which transformers (5.24) warns.
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing
        for name, reason in UNUSED.items():
            if getattr(self, name) != self.__dataclass_fields__[name].default:
                raise ValueError(f"`{name}` does nothing here: {reason}. Leave it out.")
        super().__post_init__()
        for name in ("guidance_normalization", "guidance_query", "guidance_level", "mask_downsampling", "broken_rows"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` has to be one of {choices}, but is {getattr(self, name)!r}.")
        if self.guidance_heads in (AUTO, [AUTO]):
            self.guidance_heads = AUTO
            if self.guidance_layers is not None:
                raise ValueError("`guidance_heads='auto'` chooses among all layers: leave `guidance_layers` out.")
        else:
            self.guidance_heads = as_indices("guidance_heads", self.guidance_heads, "'auto', or the numbers of heads")
        self.guidance_layers = as_indices("guidance_layers", self.guidance_layers, "the numbers of layers")
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                "`early_stopping_patience` needs `load_best_model_at_end=True`, with evaluations (`eval_strategy`) that fall "
                "on the checkpoints (`save_strategy`): what is saved in the end is then the best, not the last."
            )
        if self.early_stopping_threshold != 0.0 and self.early_stopping_patience is None:
            raise ValueError("`early_stopping_threshold` does nothing without `early_stopping_patience`.")
        if self.guidance_weight < 0:
            raise ValueError(f"`guidance_weight` must not be negative, but is {self.guidance_weight}.")
        if not self.assistant_only_loss:
            raise ValueError("`assistant_only_loss=False` is not supported: only the assistant's words are labels.")
        if self.activation_checkpointing_kwargs:  # where it is left out, PyTorch (2.14) takes it for true
            self.activation_checkpointing_kwargs = {"use_reentrant": False, **self.activation_checkpointing_kwargs}
        self.check_checkpointing()

    def check_checkpointing(self, model: nn.Module | None = None) -> None:
        """
        Raises `ValueError` for reentrant activation checkpointing. The trainer looks again, at its model too: TRL (1.16) turns it on
        for PEFT under ZeRO-3, by the old name of the argument (https://github.com/huggingface/trl/issues/2514), and one can by hand.
        """
        both = (self.activation_checkpointing_kwargs or {}) | (self.gradient_checkpointing_kwargs or {})
        by_hand = () if model is None or self.activation_checkpointing else model.modules()
        functions = [m._gradient_checkpointing_func for m in by_hand if getattr(m, "gradient_checkpointing", False)]
        if (self.activation_checkpointing and both.get("use_reentrant")) or any(
            getattr(function, "keywords", {}).get("use_reentrant") for function in functions
        ):
            raise ValueError(
                "Reentrant activation checkpointing silently drops the gradient of the guidance loss. Leave "
                "`use_reentrant` out of `activation_checkpointing_kwargs` and of the model's own `gradient_checkpointing_enable`, or "
                "set it to False; with PEFT under ZeRO-3, which "
                "needs it, set `activation_checkpointing` to False or launch without ZeRO-3."
            )
