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
Plants one bug at a time into a copy of the project and shows that the tests turn red.

The whole of `make test` runs on every mutant, the tests that ought to notice first, and stops at the first failure.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


ROOT = Path(__file__).resolve().parents[1]
MODEL = "modeling_agevlm/modeling_agevlm.py"
CONVERSION = "modeling_agevlm/conversion.py"
COLLATOR = "trainers/data_collator.py"
TRAINER = "trainers/guided_sft_trainer.py"
REGION_ATTENTION = "trainers/region_attention.py"
VISUAL_TOKENS = "trainers/visual_tokens.py"
ANY_VLM_COLLATOR = "trainers/any_vlm_collator.py"
HEAD_CHOICE = "trainers/head_choice.py"
CHECKPOINTING = "trainers/checkpointing.py"
LOOKING = "recipes/guiding/looking.py"


class Mutant(NamedTuple):
    name: str
    path: str
    edits: dict[str, str]
    """Text of the file, which occurs there once, to what replaces it."""
    tests: str
    """The file whose tests run first."""


MUTANTS = [
    Mutant(
        "causal cross-attention",
        MODEL,
        {
            "        sees_image = mask.any(dim=-1, keepdim=True)\n": (
                "        mask = mask & torch.ones(mask.shape[-2:], dtype=torch.bool).tril()\n"
                "        sees_image = mask.any(dim=-1, keepdim=True)\n"
            )
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "is_causal left to its default",
        MODEL,
        {
            "        self.is_causal = False  # without it SDPA would mask the visual tokens causally\n": "",
            "            is_causal=False,\n": "",
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "visual keys cut to the text's length",
        MODEL,
        {
            "        if cache is None:\n            return key_states, value_states\n": "        length = cross_attention_states.shape[1] // 2\n"
            "        value_states = value_states * (torch.arange(2 * length + 1)[: value_states.shape[2], None] < length)\n"
            "        if cache is None:\n            return key_states, value_states\n"
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "query masks ignored",
        MODEL,
        {
            "(query_masks & sees_image.transpose(1, 2)).float()": "(query_masks | True & sees_image.transpose(1, 2)).float()"
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "padded cells not masked",
        MODEL,
        {"return (cells > 0).flatten(1)": "return (cells >= 0).flatten(1)"},
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "stale visual keys: a later image is not appended",
        MODEL,
        {
            "            key_states = torch.cat([self.keys, key_states], dim=-2)\n": "            return self.keys, self.values\n"
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "cropping the text's cache trims the visual keys",
        MODEL,
        {
            "        self.is_cropped = True  # how long the text is now is seen with the next call\n": (
                "        self.keys, self.values = self.keys[:, :, :-1], self.values[:, :, :-1]\n"
                "        self.visible_from = self.visible_from[:, :-1]\n"
            )
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "a later turn gets the wrong image",
        MODEL,
        {
            "(counts <= torch.arange(num_images, device=counts.device))": "(counts <= torch.arange(num_images, device=counts.device).flip(0))"
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "two layers of the LLM swapped",
        CONVERSION,
        {
            "    layers = config.text_config.self_attention_layers\n": "    layers = config.text_config.self_attention_layers\n"
            "    layers[0], layers[1] = layers[1], layers[0]\n"
        },
        "test_init.py",
    ),
    Mutant(
        "the crop not applied to masks",
        "modeling_agevlm/image_processing_agevlm.py",
        {
            "height, width, self.size, self.do_pad, self.do_center_crop\n": "height, width, self.size, self.do_pad, False\n"
        },
        "test_image_processing_agevlm.py",
    ),
    Mutant(
        "a phrase's span off by one token",
        COLLATOR,
        {"            query &= ~special\n": "            query = np.roll(query, 1) & ~special\n"},
        "test_data_collator.py",
    ),
    Mutant(
        "labels on user turns",
        COLLATOR,
        {
            "        is_label &= input_ids != self": "        is_label = ~special\n        is_label &= input_ids != self"
        },
        "test_data_collator.py",
    ),
    Mutant(
        "the LLM unfrozen in stage 2",
        "trainers/stages.py",
        {'2: Stage(2, vision="last_stage")': '2: Stage(2, vision="last_stage", language_model=True)'},
        "test_stages.py",
    ),
    Mutant(
        "a region counted per process instead of over all",
        TRAINER,
        {
            'self.accelerator.reduce(torch.tensor(float(num_regions), device=device), reduction="sum")': "torch.tensor(float(num_regions), device=device) * self.accelerator.num_processes"
        },
        "test_distributed.py",
    ),
    Mutant(
        "accumulation counted twice",
        TRAINER,
        {
            "share = self.accelerator.num_processes * local_regions / self._num_regions.clamp(min=1)\n": "share = self.accelerator.num_processes * local_regions / self._num_regions.clamp(min=1)\n"
            "                    share = share / self.current_gradient_accumulation_steps\n"
        },
        "test_guided_sft_trainer.py",
    ),
    Mutant(
        "an eps that hides an empty mask",
        "trainers/guidance.py",
        {
            "    guided = (masks > 0).any(dim=-1) & (maps > 0).any(dim=-1).all(dim=0)\n": "    guided = (maps > 0).any(dim=-1).all(dim=0)\n",
            "    return -dice.clamp(min=torch.finfo(dice.dtype).tiny).log()\n": "    return -(dice + 1e-6).log()\n",
        },
        "test_guidance_loss.py",
    ),
    Mutant(
        "a region's attention under another query",
        MODEL,
        {
            'torch.einsum("bkt,bthk->bhk", query_weights, inside': 'torch.einsum("bkt,bthk->bhk", query_weights.roll(1, 1), inside'
        },
        "test_region_attention.py",
    ),
    Mutant(
        "unguided heads count as guided ones",
        MODEL,
        {
            "        if heads is not None:\n            query_states, key_states": "        if False:\n            query_states, key_states"
        },
        "test_guided_heads.py",
    ),
    Mutant(
        "the sink has a value",
        MODEL,
        {"nn.functional.pad(value_states, (0, 0, 0, 1))": "nn.functional.pad(value_states, (0, 0, 0, 1), value=1)"},
        "test_attention_sink.py",
    ),
    Mutant(
        "a region that is nowhere is one everywhere",
        COLLATOR,
        {"region_masks[row, k, image] = 0 if cells is None": "region_masks[row, k, image] = 1 if cells is None"},
        "test_trainer_reference.py",
    ),
    Mutant(
        "a padded picture is taken for a whole one",
        MODEL,
        {
            "            if pixel_values.shape[1] > 1 or pixel_attention_mask is not None:\n": "            if pixel_values.shape[1] > 1:\n"
        },
        "test_modeling_agevlm.py",
    ),
    Mutant(
        "a row sees what fills the place of a picture that it does not have",
        MODEL,
        {"return first.masked_fill(first == is_placeholder.shape[1], NEVER)": "return first"},
        "test_generation.py",
    ),
    Mutant(
        "a chat that goes on is shown its first picture again",
        MODEL,
        {"num_cached.unsqueeze(1) + torch.arange(": "0 * num_cached.unsqueeze(1) + torch.arange("},
        "test_caches.py",
    ),
    Mutant(
        "a picture stays where its turn was taken back",
        MODEL,
        {"elif layer.is_cropped and layer.is_initialized:": "elif False:"},
        "test_caches.py",
    ),
    Mutant(
        "a picture that is turned by EXIF is not",
        "modeling_agevlm/image_reading_agevlm.py",
        {"    if turn is not None:\n": "    if False:\n"},
        "test_image_reading_agevlm.py",
    ),
    Mutant(
        "sum and max swapped",
        "trainers/guidance.py",
        {'if normalization == "sum" else maps.amax(dim=-1)': 'if normalization == "max" else maps.amax(dim=-1)'},
        "test_guidance_loss.py",
    ),
    Mutant(
        "answers outlive their clients",
        "recipes/serving/generation.py",
        {"is_over = self.is_cancelled or self.text.is_stopped": "is_over = self.text.is_stopped"},
        "test_app.py",
    ),
    Mutant(
        "a checked host is looked up again",
        "recipes/serving/addresses.py",
        {"connect_tcp(addresses[-1], port": "connect_tcp(host, port"},
        "test_addresses.py",
    ),
    Mutant(
        "redirects lead anywhere",
        "recipes/serving/addresses.py",
        {"url = urljoin(url, location)\n": "self.domains |= {urlsplit(url := urljoin(url, location)).hostname}\n"},
        "test_addresses.py",
    ),
    Mutant(
        "quoted special tokens are tokens",
        "recipes/serving/prompts.py",
        {"sanitize_control_tokens=True": "sanitize_control_tokens=False"},
        "test_app.py",
    ),
    Mutant(
        "the old model goes before the new one is complete",
        "trainers/checkpointing.py",
        {
            "    write_through(aside)\n    move(aside, folder)\n": "    (folder / CONFIG_NAME).unlink(missing_ok=True)\n    write_through(aside)\n    move(aside, folder)\n"
        },
        "test_saving.py",
    ),
    Mutant(
        "weights of the old model stay",
        "trainers/checkpointing.py",
        {"                path.unlink()\n": "                pass\n"},
        "test_saving.py",
    ),
    Mutant(
        "no rehearsal of the saving",
        "trainers/checkpointing.py",
        {"        self.rehearse_saving()\n": ""},
        "test_saving.py",
    ),
    Mutant(
        "a half-removed checkpoint counts",
        "trainers/checkpointing.py",
        {"is_file() and not (checkpoint / INCOMPLETE).exists()": "is_file()"},
        "test_resume.py",
    ),
    Mutant(
        "a stream's place by today's max_steps",
        "trainers/checkpointing.py",
        {"* before.max_steps)": "* max_steps)"},
        "test_resume.py",
    ),
    Mutant(
        "the schedule begins anew without states",
        "trainers/checkpointing.py",
        {"                    for _ in range(self.state.global_step):\n": "                    for _ in range(0):\n"},
        "test_resume.py",
    ),
    Mutant(
        "workers end by SIGTERM",
        "trainers/preemption.py",
        {"    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    if start": "    if start"},
        "test_preemption.py",
    ),
    Mutant(
        "a preempted training removes its last checkpoint",
        "trainers/checkpointing.py",
        {
            "        if self.is_preempted:\n            self.state.best": "        if False:\n            self.state.best"
        },
        "test_preemption.py",
    ),
    Mutant(
        "a preempted stage saves its model",
        "recipes/training/stage.py",
        {"    if trainer.is_preempted:\n": "    if False:\n"},
        "test_resuming.py",
    ),
    Mutant(
        "any checkpoint is one's own",
        "recipes/training/resuming.py",
        {"    if differing:\n": "    if False:\n"},
        "test_resuming.py",
    ),
    Mutant(
        "false is a path",
        "recipes/training/resuming.py",
        {
            'word = Path(output_dir), str(resume or "false").lower()': 'word = Path(output_dir), str(resume or "none").lower()'
        },
        "test_resuming.py",
    ),
    Mutant(
        "the next stage takes the model of another run",
        "recipes/training/resuming.py",
        {
            "    checkpoint = last_checkpoint(folder)\n    if checkpoint is None:\n": "    checkpoint = None\n    if checkpoint is None:\n"
        },
        "test_resuming.py",
    ),
    Mutant(
        "a row without labels is no row's error",
        "trainers/data_collator.py",
        {"        if (labels[1:] == -100).all():\n": "        if False:\n"},
        "test_data_collator.py",
    ),
    Mutant(
        "a batch of broken rows stops",
        "trainers/data_collator.py",
        {" or [self._nothing()]": ""},
        "test_data_collator.py",
    ),
    Mutant(
        "a region that cannot be used takes its row along",
        "trainers/data_collator.py",
        {'                if self.broken_rows == "stop":\n                    raise\n': "                raise\n"},
        "test_data_collator.py",
    ),
    Mutant(
        "one exception is nobody's",
        "trainers/data_collator.py",
        {
            "            yield\n        except Exception as error:\n": "            yield\n        except (ValueError, OSError, LookupError) as error:\n"
        },
        "test_data_collator.py",
    ),
    Mutant(
        "a generation config is saved as it came",
        "recipes/training/parts.py",
        {"    mend_generation_config(model.generation_config, parts.text)\n": ""},
        "test_generation_config.py",
    ),
    Mutant(
        "checkpointing is looked at once",
        "trainers/guided_sft_trainer.py",
        {"        args.check_checkpointing(self.unwrapped_model())\n": ""},
        "test_lora.py",
    ),
    Mutant(
        "words inside other words are found",
        "modeling_agevlm/processing_agevlm.py",
        {
            "if not is_split and is_word_edge(text, starts[first]) and is_word_edge(text, ends[last]):": "if not is_split:"
        },
        "test_processing_agevlm.py",
    ),
    Mutant(
        "a chat begins twice",
        "modeling_agevlm/processing_agevlm.py",
        {'kwargs = {"add_special_tokens": False, **kwargs}': "kwargs = {**kwargs}"},
        "test_processing_agevlm.py",
    ),
    Mutant(
        "a text without its beginning",
        "modeling_agevlm/processing_agevlm.py",
        {'            else "{{- bos_token }}" + template\n': "            else template\n"},
        "test_chat_formats.py",
    ),
    Mutant(
        "the first of several chat templates",
        "modeling_agevlm/processing_agevlm.py",
        {'    return templates["default"]\n': "    return next(iter(templates.values()))\n"},
        "test_chat_formats.py",
    ),
    Mutant(
        "tags stay words", "trainers/data_collator.py", {'split_tags(part["text"])': "[part]"}, "test_data_collator.py"
    ),
    Mutant(
        "a phrase before its picture",
        "trainers/data_collator.py",
        {"(start < image_start, ": "(False, "},
        "test_data_collator.py",
    ),
    Mutant(
        "generation goes on behind the end of turn",
        "trainers/turns.py",
        {"    if end not in ends:\n": "    if False:\n"},
        "test_chat_formats.py",
    ),
    Mutant(
        "no check of the best metric",
        "trainers/guided_sft_trainer.py",
        {"        self.check_best_metric()\n": ""},
        "test_evaluation.py",
    ),
    Mutant(
        "a stage trains any checkpoint on",
        "recipes/training/stage.py",
        {"not in (stage.number - 1, stage.number):": "not in (stage.number - 1, stage.number, 0, 1, 2, 3, 4):"},
        "test_train_on.py",
    ),
    Mutant(
        "scores of widened queries scaled by their width",
        REGION_ATTENTION,
        {
            '        if kwargs.get("scaling") is None:\n            kwargs["scaling"] = query.shape[-1] ** -0.5\n': (
                '        kwargs["scaling"] = (query.shape[-1] + channels.shape[-1]) ** -0.5\n'
            )
        },
        "test_guidance_of_others.py",
    ),
    Mutant(
        "attention in a region by all attention",
        REGION_ATTENTION,
        {"            present = in_region / on_picture.clamp(min=least)\n": "            present = in_region\n"},
        "test_guidance_of_others.py",
    ),
    Mutant(
        "absent things guided onto the picture",
        REGION_ATTENTION,
        {"            absent = (off_picture + in_region) / ": "            absent = on_picture / "},
        "test_guidance_of_others.py",
    ),
    Mutant(
        "heads of other VLMs read beside the chosen",
        REGION_ATTENTION,
        {"found if heads is None else found[:, :, list(heads)]": "found"},
        "test_guidance_of_others.py",
    ),
    Mutant(
        "regions lost where layers are computed twice",
        REGION_ATTENTION,
        {
            "        self.found.setdefault(layer, torch.cat([overall, own[None]]).to(self.weights.device))\n": (
                "        if layer not in self.found:\n            self.found[layer] = torch.cat([overall, own[None]])\n"
            ),
            "        with exactly_on(inside.device):\n": (
                "        if layer in self.found:\n            return\n        with exactly_on(inside.device):\n"
            ),
        },
        "test_guidance_of_others.py",
    ),
    Mutant(
        "rows and columns of another VLM's tiles exchanged",
        VISUAL_TOKENS,
        {
            "    return nn.functional.avg_pool2d(patches, config.scale_factor).flatten()\n": (
                "    return nn.functional.avg_pool2d(patches.transpose(-1, -2), config.scale_factor).flatten()\n"
            )
        },
        "test_visual_tokens.py",
    ),
    Mutant(
        "a class token that shows the last patch",
        VISUAL_TOKENS,
        {
            "    return nn.functional.pad(patches.flatten(1), (1, 0)).flatten()": "    return nn.functional.pad(patches.flatten(1), (0, 1)).flatten()"
        },
        "test_visual_tokens.py",
    ),
    Mutant(
        "a mask drawn into the first picture of its row",
        VISUAL_TOKENS,
        {"rows[k // COLORS][index][..., k % COLORS]": "rows[k // COLORS][0][..., k % COLORS]"},
        "test_visual_tokens.py",
    ),
    Mutant(
        "layers that cannot see a region count",
        REGION_ATTENTION,
        {"torch.where(self.is_absent, means[0] > 0, means[2] > 0)": "(means[0] >= 0)"},
        "test_guidance_of_others.py",
    ),
    Mutant(
        "colors of patches exchanged",
        VISUAL_TOKENS,
        {"for color in colors]).float()": "for color in reversed(colors)]).float()"},
        "test_visual_tokens.py",
    ),
    Mutant(
        "what is behind a picture's tiles taken for tiles",
        VISUAL_TOKENS,
        {"[of_picture[:count] for of_picture, count": "[of_picture[-count:] for of_picture, count"},
        "test_visual_tokens.py",
    ),
    Mutant(
        "the same token kinds for all models but Gemma 3",
        ANY_VLM_COLLATOR,
        {'is_gemma = self.config.model_type == "gemma3"': "is_gemma = False"},
        "test_any_vlm.py",
    ),
    Mutant(
        "accumulated batches divided by what the model says",
        TRAINER,
        {"        self.model_accepts_loss_kwargs = True\n": ""},
        "test_any_vlm.py",
    ),
    Mutant(
        "the tokenizer's first token left out",
        ANY_VLM_COLLATOR,
        {"else [self.processor.tokenizer.bos_token_id]\n": "else []\n"},
        "test_any_vlm.py",
    ),
    Mutant(
        "words sought where they stand without visual tokens",
        ANY_VLM_COLLATOR,
        {"            starts[behind] -= grown\n": "            starts[behind] -= 0 * grown\n"},
        "test_any_vlm.py",
    ),
    Mutant(
        "masks of a row exchanged",
        ANY_VLM_COLLATOR,
        {
            "iter(self.visual_tokens.coverage(images, shown))": "iter(self.visual_tokens.coverage(images, shown).flip(0))"
        },
        "test_any_vlm.py",
    ),
    Mutant(
        "footprints with rows for columns",
        VISUAL_TOKENS,
        {'torch.einsum("rs,cs->src", *shares)': 'torch.einsum("rs,cs->scr", *shares)'},
        "test_visual_tokens.py",
    ),
    Mutant(
        "heads chosen that do not look at the picture",
        HEAD_CHOICE,
        {".masked_fill(on_picture < knee(on_picture), torch.inf)": ""},
        "test_head_choice.py",
    ),
    Mutant(
        "maps in one place are in many",
        HEAD_CHOICE,
        {"nn.functional.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0]": "labels"},
        "test_head_choice.py",
    ),
    Mutant(
        "weights of a checkpoint with other names not loaded",
        CHECKPOINTING,
        {"    return names <= model.state_dict().keys()\n": "    return True\n"},
        "test_any_vlm.py",
    ),
    Mutant(
        "maps of another layer's heads",
        REGION_ATTENTION,
        {"slice(None) if self.heads[layer] is None else list(self.heads[layer])": "slice(None)"},
        "test_concatenation.py",
    ),
    Mutant(
        "what is measured is of the picture's even attention",
        LOOKING,
        {"(on_tokens * seen.cells[0, k]).sum().item() if is_shown": "seen.cells[0, k].mean().item() if is_shown"},
        "test_guide.py",
    ),
    Mutant(
        "even attention on pictures that come behind the words",
        LOOKING,
        {"seen.cells[0, k, :num_before]": "seen.cells[0, k]"},
        "test_guide.py",
    ),
    Mutant(
        "a stream shuffled before rows are held out",
        "recipes/guiding/tuning.py",
        {
            "rows = load_rows(data, TUNING, SCENE_SIZE, skip_broken)": "rows = shuffled(load_rows(data, TUNING, SCENE_SIZE, "
            "skip_broken), data, training)",
        },
        "test_guide.py",
    ),
    Mutant(
        "heads chosen by other words than those that train",
        HEAD_CHOICE,
        {
            "example = collate.read_row(row)": "example = type(collate)(collate.processor, config=collate.config).read_row(row)"
        },
        "test_head_choice.py",
    ),
]


def copy_project(target: Path) -> None:
    """The files that git knows or would add."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in files.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def run_tests(project: Path, *tests: str) -> tuple[int, str]:
    """Exit status of pytest and what it printed, up to the first failure."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line"]
    process = subprocess.run(
        [*command, *tests],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},  # before the installed project
        capture_output=True,
        text=True,
    )
    return process.returncode, process.stdout + process.stderr


def judge(mutant: Mutant) -> tuple[str | None, str]:
    """The test that notices the mutant if there is one, and what pytest printed."""
    paths = sorted(ROOT.glob("tests/**/test_*.py"), key=lambda path: path.name != mutant.tests)
    files = [str(path.relative_to(ROOT)) for path in paths if "upstream" not in path.parts]
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        copy_project(project)
        path = project / mutant.path
        text = path.read_text()
        for old, new in mutant.edits.items():
            if text.count(old) != 1:
                raise ValueError(
                    f"The mutant {mutant.name!r} replaces {old!r}, which {mutant.path} holds {text.count(old)} times. "
                    "Bring the mutant up to date with the code."
                )
            text = text.replace(old, new)
        path.write_text(text)
        status, output = run_tests(project, *files)
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, flags=re.MULTILINE)
    # An error is a test's fixture's. A mutant that cannot even be imported (another status) shows nothing of the tests.
    return failed[1] if status == 1 and failed else None, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants to plant, by a part of their name; all of them by default")
    names = parser.parse_args().names
    mutants = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    reds = []
    for number, mutant in enumerate(mutants, start=1):
        start = time.monotonic()
        red, output = judge(mutant)
        if red:
            reds.append(red)
        verdict = f"red          {red}" if red else f"NOT NOTICED  {output.strip()[-300:]}"
        print(
            f"{number:>2}/{len(mutants)}  {mutant.name:<52} {time.monotonic() - start:>4.0f} s  {verdict}", flush=True
        )
    if len(reds) < len(mutants):
        sys.exit(f"{len(mutants) - len(reds)} of {len(mutants)} mutants were not noticed.")
    with tempfile.TemporaryDirectory() as folder:
        copy_project(Path(folder))
        status, output = run_tests(Path(folder), *dict.fromkeys(reds))
    if status != 0:
        sys.exit(f"A test that turned red is red without a mutant, too:\n{output}")
    print(f"All {len(mutants)} mutants turn a test red that is green without them.")


if __name__ == "__main__":
    main()
