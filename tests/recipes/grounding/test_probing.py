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
"""Linear probes: what they read, and that they find what is there and nothing else."""

import json
import sys
from pathlib import Path

import pytest
import torch

from recipes import probe as recipe
from recipes.answering.answers import prompts
from recipes.answering.checkpoint import load_checkpoint
from recipes.grounding import probing
from recipes.scenes import TRAINED_MODEL
from recipes.scenes.questions import load_questions
from trainers import decode_rle


def test_a_probe_finds_what_is_linear_and_nothing_else():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(400, 20, generator=draw) * 5 + 3
    labels = features[:, :3].argmax(-1)
    found = torch.tensor(probing.classify(features[:300], labels[:300], features[300:]))
    assert (found == labels[300:]).float().mean() > 0.85
    at_random = labels[torch.randperm(400, generator=draw)]
    found = torch.tensor(probing.classify(features[:300], at_random[:300], features[300:]))
    assert (found == at_random[300:]).float().mean() < 0.5


def test_what_is_read(monkeypatch: pytest.MonkeyPatch):
    """The visual tokens of the masks as the cross-attention layers get them, and states before the word that tells."""
    monkeypatch.setattr(probing, "BATCH_SIZE", 3)
    model, processor = load_checkpoint(str(TRAINED_MODEL))
    size = model.config.vision_config.image_size
    questions = [q for q in load_questions("test", 20, size) if q["kind"] == "relation"][:4]
    read = dict(probing.read(model, processor, questions))
    layers = [f"behind layer {n}" + " (cross-attention)" * (n in (1, 3, 5)) for n in range(1, 8)]
    assert list(read)[2:] == ["behind layer 0 (words alone)", *layers]
    question = questions[3]  # alone in its batch, unlike the others
    assert question["answer"] in ("left", "right", "above", "below")
    inputs = prompts(processor, [probing.one_question(question["question"], question["image"])])
    said = processor.tokenizer(f"The {question['object']} is", add_special_tokens=False, return_tensors="pt")
    ids = torch.cat([inputs["input_ids"], said["input_ids"]], dim=1)
    with torch.inference_mode():
        outputs = model(ids, pixel_values=inputs["pixel_values"], output_hidden_states=True)
        tokens = model.get_image_features(inputs["pixel_values"]).pooler_output[None]
        tokens = model.model._with_positions(inputs["pixel_values"], tokens)[0, 0]
    torch.testing.assert_close(read["behind layer 4"][3], outputs.hidden_states[5][0, -1], rtol=1e-4, atol=1e-4)
    for k, phrase in enumerate(question["phrases"]):
        inside = processor.image_processor.mask_coverage(decode_rle(phrase["mask"])).flatten() > 0
        width = slice(k * tokens.shape[-1], (k + 1) * tokens.shape[-1])
        for how, expected in (("mean", tokens[inside].mean(0)), ("sum", tokens[inside].sum(0))):
            found = read[f"visual tokens of the masks, {how}"][3, width]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_model_that_comes_along_is_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    few = ("--num_fitted", "60", "--num_images", "60", "--out", str(tmp_path / "probe.json"))
    monkeypatch.setattr(sys, "argv", ["probe.py", str(TRAINED_MODEL), *few])
    recipe.main()
    (found,) = json.loads((tmp_path / "probe.json").read_text()).values()
    sides = {entry["read"]: entry["value"] for entry in found["relation"]}
    assert sides["the model's answer"] > 0.6 and sides["commonest answer"] == 0.25
    assert "| the model's answer |" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["num_fitted", "num_images"])
def test_too_few_scenes_are_refused(option: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["probe.py", f"--{option}", "19"])
    with pytest.raises(SystemExit, match="error: `--num_fitted` and `--num_images` have to be 20 or more"):
        recipe.main()
