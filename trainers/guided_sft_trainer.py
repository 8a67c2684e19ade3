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
"""TRL's `SFTTrainer` with the guidance loss of AGE-VLM (https://huggingface.co/papers/2511.17793)."""

import contextlib
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    EarlyStoppingCallback,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging
from trl import SFTTrainer

from .any_vlm_collator import collator_for
from .checkpointing import CheckpointMixin
from .evaluation import EvaluationMixin, likeliest_tokens
from .guidance import GuidanceLoss, guidance_loss, guidance_loss_from_mass
from .guided_sft_config import AUTO, GuidedSFTConfig, as_indices
from .head_choice import localizing_heads
from .hub import HubMixin
from .region_attention import RegionAttention
from .rows import COLUMNS, check_columns, check_regions, has_transform, undecoded, with_lengths
from .stages import count_parameters
from .turns import end_generation_with_turns, set_template, words_after_answer


logger = logging.get_logger(__name__)

# What the logged means are made of: sums over the batches since the last log, on all processes
SUMS = (
    "lm_loss",
    "labels",
    "guidance_loss",
    "in_mask_mass",
    "uniform_mass",
    "sink_mass",
    "shown_regions",
    "absent_regions",
    "guided_rows",
    "dropped_regions",
    "skipped_rows",
)

BY_LENGTH = ("group_by_length", "batch_rebalance")  # of `train_sampling_strategy`


class GuidedSFTTrainer(CheckpointMixin, EvaluationMixin, HubMixin, SFTTrainer):
    """
    Trains an [`AgeVlmForConditionalGeneration`], or any VLM of transformers whose visual tokens stand among its words, with the
    language modeling loss plus `guidance_weight` times the guidance loss. The attention of the latter is read by
    [`RegionAttention`], its rows are collated by [`DataCollatorForAnyVisionLanguageModel`].

    The changes with respect to [`trl.SFTTrainer`] are the collator, which keeps the rows' regions, and `compute_loss`,
    which adds the guidance loss; besides, checkpoints are complete ([`CheckpointMixin`]), and so is what goes to the Hub
    ([`HubMixin`]). Both losses are means over everything that one optimizer step sees, on all processes and over all
    accumulated batches: the language modeling loss over label tokens, the guidance loss over regions (and guided layers), of which
    those that no guided layer's window reaches count as 0.

    Logged besides TRL's metrics: `lm_loss` and `guidance_loss` in nats, `in_mask_mass` (share of the guided heads' attention
    inside the masks), `uniform_mass` (that share for even attention), `sink_mass` (of words for what is not in the picture:
    the share that lies on the sink, or on other pictures), and per optimizer step `guided_rows`, `dropped_regions` and
    `skipped_rows`.

    Args:
        model (`str` or [`AgeVlmForConditionalGeneration`]):
            The model to train, with `requires_grad` set by `apply_stage`. The folder or Hub id of a checkpoint is loaded
            in float32 and trains whole; where `modeling_agevlm` is not imported, by its own code if
            `args.trust_remote_code`. For any other way to load it, load it before.
        args ([`GuidedSFTConfig`]): The arguments.
        data_collator (`Callable`, *optional*):
            Makes batches as [`DataCollatorForGuidedVisionLanguageModeling`] does, which is the default. Besides that, one
            is given the rows as they come from the data set; the default reads the pictures itself.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`): Rows of `images`, `messages`, `regions`.
        eval_dataset (`datasets.Dataset`, `datasets.IterableDataset` or `dict`, *optional*): The like, or several by name.
        processing_class ([`AgeVlmProcessor`], *optional*): The processor, if not that of the model's checkpoint.
        card_template (`str`, *optional*): Text of `model_card.md`, for the README.md. Without it, TRL's.
        record (`list[dict]`, *optional*): What each stage up to this one was; saved with every checkpoint.
        kwargs:
            Passed to [`trl.SFTTrainer`]. Without `preprocess_logits_for_metrics`, the `predictions` that `predict` returns and
            `compute_metrics` gets are the likeliest tokens ([`likeliest_tokens`]) instead of the logits.
    """

    _tag_names = ["trl", "sft", "age-vlm"]
    _name = "AGE-VLM"
    _paper = {
        "title": "Attention Guided Alignment in Efficient Vision-Language Models",
        "id": "2511.17793",
        "citation": textwrap.dedent("""\
            @article{mahajan2025attention,
                title   = {Attention Guided Alignment in Efficient Vision-Language Models},
                author  = {Mahajan and Le and Park and Farhadzadeh and Hayat and Porikli},
                journal = {arXiv preprint arXiv:2511.17793},
                year    = {2025}
            }"""),
    }

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: GuidedSFTConfig,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: ProcessorMixin | None = None,
        card_template: str | None = None,
        record: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        has_adapters = kwargs.get("peft_config") is not None or isinstance(model, PeftModel)
        if args.push_to_hub and has_adapters:
            raise ValueError(
                "`push_to_hub` would put up adapters that do not load by themselves. Train without it, and push the merged "
                "model with `recipes/push.py`."
            )
        self._card_template, self._record = card_template, record
        trust = args.trust_remote_code
        if isinstance(model, str):
            model = AutoModelForImageTextToText.from_pretrained(model, dtype="float32", trust_remote_code=trust)
        if processing_class is None:
            if not model.config._name_or_path:
                raise ValueError(
                    "The model comes from no checkpoint that has a processor: pass one as `processing_class`."
                )
            processing_class = AutoProcessor.from_pretrained(model.config._name_or_path, trust_remote_code=trust)
        set_template(processing_class, args.chat_template_path, args.eos_token)
        if args.guidance_weight > 0 and (args.fp16 or model.dtype == torch.float16):
            raise ValueError(
                "Neither small shares of attention nor the gradients of their logarithms fit float16: guide a model that is loaded "
                "with `dtype` bfloat16 or float32, and train it with `bf16=True` or without `fp16`."
            )
        # Where a template of another VLM ends turns with nothing (LLaVA-1.5), the collator ends them as generation does.
        if model.config.model_type == "agevlm" or words_after_answer(processing_class):
            end_generation_with_turns(model.generation_config, processing_class)
        text_config = model.config.get_text_config()
        self._region_attention: RegionAttention | None = None
        # CODEPATH: an AGE-VLM reads its regions itself, and keeps in its config what guides; other VLMs do neither
        if model.config.model_type == "agevlm":
            if args.guidance_heads == AUTO:
                raise ValueError(
                    "`guidance_heads='auto'` finds heads that localize already, which those of an AGE-VLM only learn: name them, "
                    "or leave it out."
                )
            for name in ("guidance_layers", "guidance_heads"):
                if getattr(args, name) is not None:
                    setattr(text_config, name, getattr(args, name))
            text_config.validate()
            sizes = ((n, p.numel()) for n, p in model.named_parameters())
            self._parameter_counts = count_parameters(sizes, text_config.cross_attention_layers)
        elif args.guidance_normalization != "sum":
            raise ValueError(
                f"`guidance_normalization={args.guidance_normalization!r}` needs maps, which only an AGE-VLM gives: take 'sum'."
            )
        elif args.guidance_heads != AUTO or args.guidance_weight == 0:
            heads = None if args.guidance_heads == AUTO else args.guidance_heads  # where none is guided, all are read
            if heads is args.guidance_layers is None and (heads := heads_before(record or [])) is not None:
                guided = "Guided" if args.guidance_weight > 0 else "Read"
                logger.warning(f"{guided} heads, by layer, as in the training before: {heads}.")
            self._region_attention = RegionAttention(model, args.guidance_layers, heads)
        self._tells_absent = model.config.model_type != "agevlm" or text_config.attention_sink
        self._reads_rows = data_collator is None
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}
        if data_collator is None:
            data_collator = collator_for(
                model.config,
                processing_class,
                max_length=args.max_length,
                guidance_query=args.guidance_query,
                guidance_level=args.guidance_level,
                mask_downsampling=args.mask_downsampling,
                broken_rows=args.broken_rows,
                pad_to_multiple_of=args.pad_to_multiple_of,
            )
            for dataset in (train_dataset, *evaluated.values()):
                if dataset is not None:
                    check_columns(dataset)
            if train_dataset is not None:
                train_dataset = undecoded(train_dataset)  # TRL looks at its first row
        if isinstance(train_dataset, Dataset):  # of a stream, TRL asks for the first row
            check_not_empty(train_dataset, "data set to train on")
        if self._reads_rows and train_dataset is not None:
            check_regions(train_dataset, args.guidance_weight, self._tells_absent)
        for name, part in evaluated.items():
            check_not_empty(part, f"data set {name!r} to evaluate on" if name else "data set to evaluate on")
        if args.early_stopping_patience is not None:
            early = EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold)
            kwargs["callbacks"] = [*(kwargs.get("callbacks") or []), early]
            args.restore_callback_states_from_checkpoint = True  # a resumed training has as little patience left
        if args.train_sampling_strategy in BY_LENGTH and (
            not isinstance(train_dataset, Dataset) or has_transform(train_dataset)
        ):
            raise ValueError(
                f"`train_sampling_strategy={args.train_sampling_strategy!r}` needs rows whose lengths are known before: a data "
                "set that is neither a stream nor made by a transform."
            )
        # The collator makes the labels. TRL would want `{% generation %}` in the chat template, which few LLMs' have.
        args.assistant_only_loss = False
        try:
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                **{"preprocess_logits_for_metrics": likeliest_tokens} | kwargs,
            )
        except StopIteration:  # TRL looks at the first row
            raise ValueError("The data set to train on has no rows.") from None
        finally:
            args.assistant_only_loss = True
        # TRL's loss is divided by the labels of the whole step whatever the model's own takes: Qwen2.5-VL and others say that theirs
        # does not, and each accumulated batch would be divided once more.
        self.model_accepts_loss_kwargs = True
        if args.guidance_heads == AUTO and args.guidance_weight > 0:
            known = heads_before(record[-1:]) if record else None  # of the run that goes on
            model = self.unwrapped_model()  # which is where it runs now
            self._region_attention = RegionAttention(model, heads=known or self._find_heads(train_dataset))
            logger.warning(f"Guided heads, by layer: {self.guided_heads}.")
        if record and self._region_attention is not None and args.guidance_weight > 0:
            record[-1]["guided_heads"] = {str(layer): heads for layer, heads in self.guided_heads.items()}
        args.check_checkpointing(self.unwrapped_model())
        self.check_best_metric()
        self._heed_preemption()
        self._num_regions: torch.Tensor | None = None
        self._sums = {mode: torch.zeros(len(SUMS), device=self.accelerator.device) for mode in ("train", "eval")}
        self._num_steps = 0

    def _find_heads(self, rows: Dataset | IterableDataset | None) -> dict[int, list[int]]:
        """The heads that already localize, by the first process's count."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "`guidance_heads='auto'` finds heads in a whole model: name them, as a run on one process finds them, or launch with "
                "plain data parallelism instead of FSDP or DeepSpeed."
            )
        if rows is None or not self._reads_rows:
            raise ValueError(
                "`guidance_heads='auto'` finds heads by the words of rows: pass a `train_dataset`, and leave `data_collator` out."
            )
        with self.accelerator.autocast():
            found = localizing_heads(self.unwrapped_model(), self.data_collator, rows)
        return broadcast_object_list([found])[0]

    @property
    def guided_heads(self) -> dict[int, list[int] | None] | None:
        """Of a VLM that is no AGE-VLM, the heads that are guided by layer, None for all; of an AGE-VLM its config tells."""
        attention = self._region_attention
        return None if attention is None else {n: h and list(h) for n, h in sorted(attention.heads.items())}

    def unwrapped_model(self) -> PreTrainedModel:
        """The model as it was loaded: without what trains it in parallel, and what wraps it for adapters."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model  # peft

    def _base_model(self) -> nn.Module:
        return self.unwrapped_model().base_model

    def _unshard_head(self, *_: Any) -> None:
        """
        Gathers the head's weight as FSDP2 does where a module runs. TRL's head reads the weight without running the
        module, and gathers one that it finds sharded by `full_tensor()`, whose backward pass keeps the gradient of one
        process only (TRL 1.16, https://github.com/huggingface/trl/pull/6077).
        """
        head = self.model.get_output_embeddings()
        if isinstance(head, FSDPModule):
            head.unshard()

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            columns = [*self._signature_columns, *COLUMNS, self.args.length_column_name]
            self._signature_columns = list(dict.fromkeys(columns))

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: ProcessorMixin,
        args: GuidedSFTConfig,
        packing: bool,
        formatting_func: Callable[[dict], str] | None,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """As it is: the collator reads rows without pictures, too, which TRL would tokenize."""
        return dataset

    def _get_dataloader(
        self,
        dataset: Dataset | IterableDataset,
        description: str,
        batch_size: int,
        sampler_fn: Callable[[Dataset], Sampler] | None = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        """Also leaves the pictures to the collator, whichever data set it is."""
        if self._reads_rows:
            check_columns(dataset)
            dataset = undecoded(dataset)
        return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return super()._get_train_sampler(self._with_lengths(dataset))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        return super()._get_eval_sampler(self._with_lengths(eval_dataset))

    def _with_lengths(self, dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
        """What a sampler that goes by length looks at. transformers (5.24) finds lengths in a column, or of tokenized rows."""
        if self.args.train_sampling_strategy not in BY_LENGTH or not isinstance(dataset, Dataset):
            return dataset
        return with_lengths(dataset, self.args.length_column_name)

    def _remove_unused_columns(
        self, dataset: Dataset | IterableDataset, description: str | None = None
    ) -> Dataset | IterableDataset:
        """Leaves the columns that a transform reads, whatever they are called."""
        return dataset if has_transform(dataset) else super()._remove_unused_columns(dataset, description)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Every weight but norms, biases and timm's layer scales."""
        return [name for name in super().get_decay_parameter_names(model) if not name.endswith(".gamma")]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """Also counts the regions of all batches of one optimizer step, on all processes."""
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_regions = sum(count_regions(batch) for batch in batches)
        self._num_regions = self.accelerator.reduce(torch.tensor(float(num_regions), device=device), reduction="sum")
        if batches:  # at the end of a stream, transformers asks for more in vain
            self._num_steps += 1
        return batches, num_items_in_batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ):
        mode = "train" if self.model.training else "eval"
        region_masks = inputs.pop("region_masks", None)
        sums = {name: inputs.pop(name).sum() for name in ("dropped_regions", "skipped_rows") if name in inputs}
        num_labels = (inputs["labels"][:, 1:] != -100).sum().float()
        # Eq. 3 over the attention's sum needs no map, only the attention inside each region.
        # At weight 0 the model runs as without guidance, to the bit.
        by_mass = (
            region_masks is not None and self.args.guidance_normalization == "sum" and self.args.guidance_weight > 0
        )
        reading: contextlib.AbstractContextManager = contextlib.nullcontext()
        if region_masks is not None and self._region_attention is not None:
            visual_tokens = inputs["input_ids"] == self.unwrapped_model().config.image_token_id
            reading = self._region_attention.reading(inputs.pop("query_masks"), region_masks, visual_tokens)
        elif by_mass:
            inputs["region_masks"] = region_masks
        base_outputs = []
        base_model = self._base_model()
        # TRL's fused language modeling head runs the base model and drops what else it returns.
        with (
            base_model.register_forward_hook(lambda module, args, output: base_outputs.append(output)),
            base_model.register_forward_hook(self._unshard_head),
            reading as read,
        ):
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)

        # What TRL multiplied this batch's share of the step's mean by, so that DDP's mean over processes is right
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        sums["lm_loss"] = loss.detach() * (num_labels if num_items_in_batch is None else num_items_in_batch / scale)
        sums["labels"] = num_labels
        if region_masks is not None:
            # With label smoothing, TRL runs the model a second time, without gradients.
            if read is not None:
                guidance = guidance_loss_from_mass(read.masses, region_masks, read.uniform_mass, read.sees)
            else:
                guidance = self._guidance(base_outputs[0] if base_outputs else None, region_masks, by_mass)
            is_absent = (region_masks[..., -1] > 0) & self._tells_absent
            shown, absent = guidance.is_guided & ~is_absent, guidance.is_guided & is_absent
            local_regions = guidance.is_guided.sum().float()
            sums["guidance_loss"] = guidance.loss.detach() * local_regions
            sums["in_mask_mass"] = (guidance.in_mask_mass * shown).sum()
            sums["uniform_mass"] = (guidance.uniform_mass * shown).sum()
            sums["sink_mass"] = (guidance.in_mask_mass * absent).sum()
            sums["shown_regions"], sums["absent_regions"] = shown.sum(), absent.sum()
            sums["guided_rows"] = (region_masks > 0).flatten(1).any(dim=1).sum()
            if self.args.guidance_weight > 0:
                share = 1.0
                if mode == "train":
                    # DDP averages over processes: their shares have to add up to the mean over all regions
                    share = self.accelerator.num_processes * local_regions / self._num_regions.clamp(min=1)
                loss = loss + self.args.guidance_weight * (share * guidance.loss).to(loss.device)
        self._add(mode, sums)
        return (loss, outputs) if return_outputs else loss

    def _guidance(self, outputs: Any, region_masks: torch.Tensor, by_mass: bool) -> GuidanceLoss:
        """The guidance loss of a batch, from what the base model returned of its attention."""
        if outputs is None or (outputs.region_attention if by_mass else outputs.grounding_maps) is None:
            raise RuntimeError(
                "The batch has regions, but the model returned nothing of its attention: its base model was run without "
                "`query_masks`, or not through its `forward`."
            )
        if by_mass:
            return guidance_loss_from_mass(outputs.region_attention, region_masks, outputs.uniform_region_attention)
        return guidance_loss(outputs.grounding_maps, region_masks, self.args.guidance_normalization)

    def _add(self, mode: str, sums: dict[str, torch.Tensor]) -> None:
        """Adds a batch to what is logged next. Every process calls it for each of its batches."""
        zero = torch.zeros((), device=self.accelerator.device)
        local = torch.stack([sums.get(name, zero).to(zero) for name in SUMS])
        self._sums[mode] += self.accelerator.reduce(local, reduction="sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self._means("train"))
        super().log(logs, start_time)

    def _means(self, mode: str) -> dict[str, float]:
        """Means over everything since the last time, on all processes."""
        total = dict(zip(SUMS, self._sums[mode].tolist(), strict=True))
        self._sums[mode].zero_()
        steps = 1
        if mode == "train":
            steps, self._num_steps = max(self._num_steps, 1), 0
        if total["labels"] == total["skipped_rows"] == 0:  # the summary at the end of training
            return {}
        if total["labels"] == 0:
            logger.warning(
                f"All {total['skipped_rows']:.0f} rows since the last log were broken: nothing was trained."
            )
        if total["guided_rows"] > 0 and total["shown_regions"] == total["absent_regions"] == 0:
            logger.warning(
                "No words since the last log could see their regions, so that none was guided: the windows of the guided layers do "
                "not reach them. Guide others by `guidance_layers`."
            )
        logs = {"lm_loss": total["lm_loss"] / total["labels"]} if total["labels"] > 0 else {}
        counts = {"in_mask_mass": total["shown_regions"], "uniform_mass": total["shown_regions"]}
        counts |= {
            "sink_mass": total["absent_regions"],
            "guidance_loss": total["shown_regions"] + total["absent_regions"],
        }
        logs |= {name: total[name] / count for name, count in counts.items() if count > 0}
        for name in ("guided_rows", "dropped_regions", "skipped_rows"):
            logs[name] = total[name] / steps
        return logs


def heads_before(record: list[dict[str, Any]]) -> dict[int, list[int] | None] | None:
    """
    The heads that were guided last, by layer, of a VLM whose config cannot keep them; None if none were.

    Raises:
        ValueError: If the record says something else.
    """
    known = next((run["guided_heads"] for run in reversed(record) if run.get("guided_heads")), None)
    if known is None:
        return None
    try:
        return {int(layer): as_indices("guided_heads", heads, "numbers of heads") for layer, heads in known.items()}
    except (AttributeError, ValueError):
        raise ValueError(
            f"The record of what the model went through tells of guided heads {known!r}, which are none: name those to be guided by "
            "`guidance_layers` and `guidance_heads`."
        ) from None


def count_regions(batch: dict[str, torch.Tensor]) -> int:
    """The regions of a batch that guide: those with a mask (the collator drops those without a query)."""
    return int((batch["region_masks"] > 0).any(dim=-1).sum()) if "region_masks" in batch else 0


def check_not_empty(dataset: Dataset | IterableDataset | None, name: str) -> None:
    """Raises `ValueError` if a data set has no row."""
    if dataset is None:
        return
    is_empty = next(iter(dataset), None) is None if isinstance(dataset, IterableDataset) else len(dataset) == 0
    if is_empty:
        raise ValueError(f"The {name} has no rows.")
