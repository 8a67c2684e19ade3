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
"""Fills the template of the model card (`model_card.md`) with what is known of a checkpoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id


UNKNOWN = "not recorded"
# Base model (part of its id) -> license as the Hub names it, and as Meta asks for it to be named
LLAMA_LICENSES = {
    "llama-3.2": ("llama3.2", "Llama 3.2"),
    "llama-3.1": ("llama3.1", "Llama 3.1"),
    "llama-3-": ("llama3", "Meta Llama 3"),
    "llama-2-": ("llama2", "Llama 2"),
}
OWN_PARTS = "recipes/"  # made by this project, under its own license


def model_card(
    template: str,
    name: str,
    config: Mapping[str, Any],
    parameters: Mapping[str, int],
    log_history: Sequence[Mapping[str, float]] = (),
    record: Sequence[Mapping[str, Any]] = (),
    metrics: Mapping[str, float] | None = None,
    metrics_command: str | None = None,
    code: str | None = None,
) -> str:
    """
    The text of a checkpoint's model card. What is not known is said not to be, rather than left out or made up.

    Args:
        template (`str`): The text of `model_card.md`, with `{{ placeholders }}`.
        name (`str`): Id of the repository, or name of the folder.
        config (`Mapping`): The model's configuration.
        parameters (`Mapping[str, int]`): As `count_parameters` counts them.
        log_history (`Sequence[Mapping]`, *optional*): The trainer's log.
        record (`Sequence[Mapping]`, *optional*): One entry per stage that the weights went through (`training.json`).
        metrics (`Mapping[str, float]`, *optional*): Measured on this checkpoint.
        metrics_command (`str`, *optional*): What printed them.
        code (`str`, *optional*): Commit or version of the code that writes the card, for want of a record.
    """
    parts = next(({"vision": run["vision"], "text": run["text"]} for run in record if run.get("text")), {})
    base_models = list(filter(is_hub_id, next((run["base_models"] for run in record if run.get("base_models")), [])))
    llama = llama_license(parts.get("text"))
    card = ModelCard.from_template(
        ModelCardData(),
        template_str=template,
        name=one_line(name),
        license=llama[0] if llama else "other",
        base_model=", ".join(base_models),
        parts_table=parts_table(config, parameters, parts, was_guided(record)),
        guidance=guidance_sentence(config, record),
        stage=stage_sentence(config, record),
        stages_table=stages_table(record),
        commands=commands(record),
        log_table=log_table(log_history),
        evaluation_table=evaluation_table(metrics, metrics_command),
        llama_notice=llama_notice(parts.get("text"), llama),
        code=one_line(record[-1]["code"]) if record else f"{code or UNKNOWN} (when this card was written)",
    )
    # What YAML cannot hold as a placeholder
    card.data.base_model = base_models or None
    if llama is None:
        own = all(part.startswith(OWN_PARTS) for part in parts.values()) if parts else False
        card.data.license = "apache-2.0" if own else "other"
        card.data.license_name = None if own else "those-of-its-parts"
    datasets = sorted({run["dataset_id"] for run in record if is_hub_id(run.get("dataset_id"))})
    card.data.datasets = datasets or None
    return str(card)


OTHER_VLM = """
# {name}

{opening}

{llama_notice}

```python
from transformers import pipeline

answer = pipeline("image-text-to-text", model="{name}")
content = [{{"type": "image", "path": "picture.jpg"}}, {{"type": "text", "text": "Is there a cup?"}}]
print(answer(text=[{{"role": "user", "content": content}}], return_full_text=False)[0]["generated_text"])
```

## How it was trained

{stages}

```bash
{commands}
```

Code: {code}.

{log}
"""


def other_vlm_card(
    name: str,
    record: Sequence[Mapping[str, Any]],
    log_history: Sequence[Mapping[str, float]] = (),
    code: str | None = None,
) -> str:
    """
    The text of the model card of a VLM that is no AGE-VLM: tuned with guidance, or a concatenation model.

    Args:
        name (`str`): Id of the repository, or name of the folder.
        record (`Sequence[Mapping]`): One entry per run that the weights went through (`training.json`).
        log_history (`Sequence[Mapping]`, *optional*): The trainer's log.
        code (`str`, *optional*): Commit or version of the code that writes the card, for want of a record.
    """
    base_models = next((run["base_models"] for run in record if run.get("base_models")), [])
    first = record[0] if record else {}
    names = [first[part] for part in ("vision", "text", "model") if first.get(part)]
    origin = " and ".join(map(as_code, names)) or UNKNOWN
    weights = [run["hyperparameters"].get("guidance_weight") for run in record]
    guided = [
        run for run, weight in zip(record, weights, strict=True) if isinstance(weight, int | float) and weight > 0
    ]
    text_part = next((name for name in (first.get("text"), *map(str, base_models)) if llama_license(name)), None)
    llama = llama_license(text_part)
    opening = f"Made from {origin} by `age-vlm`; {'its words were' if guided else 'none of its words was'} guided to look at what they mean."
    if guided and guided[-1].get("guided_heads"):
        opening += f" Guided heads, by layer: {one_line(guided[-1]['guided_heads'])}."
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["age-vlm", "trl", "sft"],
        base_model=list(filter(is_hub_id, base_models)) or None,
        license=llama[0] if llama else None,
    )
    text = OTHER_VLM.format(
        llama_notice=llama_notice(text_part, llama) if llama else "",
        name=one_line(name),
        opening=opening,
        stages=stages_table(record),
        commands=commands(record),
        code=one_line(record[-1]["code"]) if record else f"{code or UNKNOWN} (when this card was written)",
        log=log_table(log_history),
    )
    return f"---\n{data.to_yaml()}\n---\n{text}"


def is_hub_id(name: Any) -> bool:
    """Whether the Hub could have a repository of this name: such a name is nothing else in YAML either. None is no name."""
    if name is None:  # to the Hub's own check, a repository that nobody asks for
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def one_line(value: Any) -> str:
    """Words that stay words of their line: a page takes none of them for markup."""
    return " ".join(str(value).split()).replace("<", "&lt;")


def as_code(value: Any) -> str:
    """Inline code that ends where it should."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39))}`"


def llama_license(text: str | None) -> tuple[str, str] | None:
    """The license of the LLaMA that an id or a path names, if it is one of Meta's."""
    name = (text or "").lower().replace("_", "-").replace("meta-llama-3", "llama-3")
    return next((license for key, license in LLAMA_LICENSES.items() if key in name.rsplit("/", 1)[-1]), None)


def llama_notice(text: str | None, license: tuple[str, str] | None) -> str:
    if license is not None:
        return (
            f"**Built with Llama.** {license[1]} is licensed under the {license[1]} Community License, Copyright © Meta "
            "Platforms, Inc. All Rights Reserved."
        )
    if text is None:
        return f"Which LLM this checkpoint was built from is {UNKNOWN} with it."
    return f"This checkpoint was built from {as_code(text)}."


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        f"| {' | '.join(one_line(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def was_guided(record: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a stage has guided the attention, as far as is known: the first two and the baselines' never do."""
    runs = [run for run in record if run.get("stage") in (3, 4)]
    return not runs or any(str(run.get("variant")).startswith("age-vlm") for run in runs)


def parts_table(
    config: Mapping[str, Any], parameters: Mapping[str, int], parts: Mapping[str, str], guided: bool
) -> str:
    text, vision = config["text_config"], config["vision_config"]
    layers = text["cross_attention_layers"]
    side, width = vision["image_size"], text["cross_attention_intermediate_size"]
    what = {
        "vision_tower": f"{as_code(parts.get('vision', UNKNOWN))}: timm's `{vision['architecture']}`, {side} x {side} pixels to "
        f"{(side // vision['patch_size']) ** 2} visual tokens of {vision['hidden_size']} channels",
        "projector": "two linear layers",
        "cross_attention": f"layers {', '.join(map(str, layers))} of the combined {text['num_hidden_layers']}, "
        + (f"with an MLP of width {width}" if width else "without an MLP")
        + (", with an attention sink" if text.get("attention_sink") else "")
        + guided_heads(text, guided),
        "language_model": f"{as_code(parts.get('text', UNKNOWN))}: {text['num_hidden_layers'] - len(layers)} layers of width "
        f"{text['hidden_size']}, {text['vocab_size']} tokens",
    }
    rows = [(part.replace("_", " "), words, f"{parameters[part]:,}") for part, words in what.items()]
    return markdown_table(
        ("part", "what it is", "parameters"), [*rows, ("total", "", f"{sum(parameters.values()):,}")]
    )


def guided_heads(text_config: Mapping[str, Any], guided: bool) -> str:
    """Which heads of which layers were chosen to be guided, or, in a baseline, to be looked at, in words."""
    chosen = {name: text_config.get(f"guidance_{name}") for name in ("heads", "layers")}
    if not any(chosen.values()):
        return ""
    words = (
        f"{name} {', '.join(map(str, indices))}" if indices else f"all {name}" for name, indices in chosen.items()
    )
    return f"; {'guided' if guided else 'not guided, but looked at'}: {' of '.join(words)}"


def guidance_sentence(config: Mapping[str, Any], record: Sequence[Mapping[str, Any]]) -> str:
    if config.get("training_stage", 0) < 3:
        return "Segmentation masks are to guide the attention of those layers in later stages; so far, none has."
    if not any(run.get("stage") in (3, 4) for run in record):
        return f"Whether segmentation masks guided the attention of those layers in training is {UNKNOWN} with it."
    if not was_guided(record):
        return "It is a baseline: no segmentation masks guided the attention of those layers in training."
    return "Segmentation masks guided the attention of those layers in training to the regions that words talk about."


def stage_sentence(config: Mapping[str, Any], record: Sequence[Mapping[str, Any]]) -> str:
    stage = config.get("training_stage", 0)
    if stage == 0:
        return "These weights have been through no stage: projector and cross-attention layers are as they were drawn."
    variant = as_code(record[-1]["variant"]) if record else UNKNOWN
    return f"These weights have been through stages 1 to {stage}, the last one whole or in part. Variant: {variant}."


def stages_table(record: Sequence[Mapping[str, Any]]) -> str:
    """One row per stage, one column per hyperparameter of any stage."""
    if not record:
        return f"How this checkpoint was trained is {UNKNOWN} with it."
    names = list(dict.fromkeys(name for run in record for name in run["hyperparameters"]))
    rows = [
        (run["stage"], run["dataset"], run.get("steps", UNKNOWN), *(run["hyperparameters"].get(n, "") for n in names))
        for run in record
    ]
    # Lying down: there are more hyperparameters than a page is wide.
    header, *columns = zip(("stage", "data", "steps", *(name.replace("_", " ") for name in names)), *rows, strict=True)
    return markdown_table(header, columns)


def commands(record: Sequence[Mapping[str, Any]]) -> str:
    # They stand in a fenced block: three backticks, which no command needs, would end it.
    known = [run["command"].replace("```", "") for run in record if run.get("command")]
    return "\n".join(dict.fromkeys(known)) if known else f"({UNKNOWN})"


def log_table(log_history: Sequence[Mapping[str, float]]) -> str:
    """The last entry of the log that a training step wrote."""
    last = next((entry for entry in reversed(log_history) if "loss" in entry), None)
    if last is None:
        return f"The log of its training is {UNKNOWN} with this checkpoint."
    rows = [(as_code(name), f"{value:.6g}") for name, value in last.items() if isinstance(value, int | float)]
    return markdown_table(("last logged", "value"), rows)


def evaluation_table(metrics: Mapping[str, float] | None, command: str | None) -> str:
    if not metrics:
        return "No evaluation of this checkpoint was recorded."
    printed = f"by {as_code(command)}" if command else f"(the command is {UNKNOWN})"
    rows = [(as_code(name), f"{value:.4f}") for name, value in metrics.items()]
    return f"Measured {printed}:\n\n{markdown_table(('metric', 'value'), rows)}"
