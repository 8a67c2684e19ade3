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
"""The heads that already localize: planted ones are found, by definitions that are checked by hand."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from testing_utils import box_mask, picture, region, row, tiny_model, tiny_processor
from transformers import PreTrainedModel
from vlm_families import FAMILIES, Made

from trainers import GuidedSFTConfig, GuidedSFTTrainer, collator_for, localizing_heads
from trainers.head_choice import knee, spatial_entropy, vote


CPU = {"use_cpu": True, "report_to": "none", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
ROWS = [
    row(regions=[region(text="red cup"), region(box_mask(rows=(30, 64)))], images=[picture(seed=n)]) for n in range(4)
]
BROKEN = {"id": "broken", "images": ["nowhere.png"], "messages": ROWS[0]["messages"], "regions": ROWS[0]["regions"]}


TEMPLATE = (
    "{% for m in messages %}{% for p in m['content'] %}{{ '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{{ '<|eot_id|>' }}{% endfor %}"
)


@torch.no_grad()
def planted(layer: int, head: int) -> Made:
    """A LLaVA of which one head looks at some of the picture's tokens, and at nothing else; the others look evenly."""
    torch.manual_seed(0)
    model, processor = FAMILIES["LLaVA, SigLIP"]()
    processor.chat_template = TEMPLATE
    text = model.model.language_model
    for block in text.layers:
        block.self_attn.q_proj.weight.zero_()
        block.self_attn.k_proj.weight.zero_()
        for part in (block.self_attn.o_proj, block.mlp.down_proj):  # all layers see what the first one does
            part.weight.zero_()
    model.model.multi_modal_projector.linear_2.weight.mul_(10)
    model.model.multi_modal_projector.linear_2.bias[0] = 2  # visual tokens have this, more or less of it
    text.embed_tokens.weight[:, 1] = 2  # and words this
    chosen = text.layers[layer].self_attn
    chosen.k_proj.weight[8 * (head // 2) + 3, 0] = 5  # what the positions turn least
    chosen.q_proj.weight[8 * head + 3, 1] = 5
    return model, processor


@pytest.mark.parametrize(("layer", "head"), [(1, 2), (2, 0)])
def test_a_planted_head_is_found(layer: int, head: int):
    """It alone has its attention on the picture, and in few places there."""
    model, processor = planted(layer, head)
    collate = collator_for(model.config, processor)
    assert localizing_heads(model, collate, [BROKEN, *ROWS], num_heads=1) == {layer: [head]}
    assert model.training  # as it was


def test_spatial_entropy_by_hand():
    """One place, two of 3 to 1 (which touch in neither corner nor side), and two that touch in a corner."""
    maps = torch.zeros(3, 4, 5)
    maps[0, 1:3, 1:3] = 1
    maps[1, 0, 0], maps[1, 3, 3:] = 1, 1.5
    maps[2, 0, 0], maps[2, 1, 1] = 1, 3
    expected = [0, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)), 0]
    torch.testing.assert_close(spatial_entropy(maps), torch.tensor(expected))
    assert spatial_entropy(torch.full((1, 4, 5), 0.05)).item() == math.inf


def test_components_that_wind_are_one():
    winding = torch.tensor([[1, 0, 1, 1, 1], [1, 0, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1.0]])
    torch.testing.assert_close(spatial_entropy(winding[None]), torch.zeros(1))


def test_heads_that_do_not_look_at_the_picture_get_no_vote():
    """The knee of what most heads have, and of the few that have more."""
    on_picture = torch.tensor([0.05, 0.06, 0.9, 0.05, 0.8, 0.04])
    assert knee(on_picture) == 0.06
    maps = torch.zeros(6, 4, 4)
    maps[:, 0, 0] = 1  # all in one place
    maps[4, 3, 3] = 1
    assert vote(on_picture, maps, 2).tolist() == [0, 1, 1, 0, 0, 0]
    assert vote(on_picture, maps, 6).tolist() == [0, 1, 1, 0, 1, 0]


def test_the_trainer_guides_what_it_finds(tmp_path: Path):
    model, processor = planted(1, 2)
    args = GuidedSFTConfig(str(tmp_path), guidance_heads="auto", max_steps=1, **CPU)
    trainer = GuidedSFTTrainer(model, args, processing_class=processor, train_dataset=Dataset.from_list(ROWS))
    found = localizing_heads(planted(1, 2)[0], collator_for(model.config, processor), ROWS)
    assert trainer.guided_heads == found and 2 in found[1] and sum(map(len, found.values())) == 3
    trainer.train()
    assert trainer.state.log_history[0]["guidance_loss"] > 0


def refused(model: PreTrainedModel, rows: list | None, tmp_path: Path, message: str, **options) -> None:
    with pytest.raises(ValueError, match=message):
        args = GuidedSFTConfig(str(tmp_path), **CPU | options)
        processor = tiny_processor() if model.config.model_type == "agevlm" else planted(1, 2)[1]
        GuidedSFTTrainer(model, args, processing_class=processor, train_dataset=rows and Dataset.from_list(rows))


def test_refusals(tmp_path: Path):
    model = planted(1, 2)[0]
    refused(tiny_model(), ROWS, tmp_path, "which those of an AGE-VLM only learn", guidance_heads=["auto"])
    refused(model, ROWS, tmp_path, "chooses among all layers", guidance_heads="auto", guidance_layers=[1])
    refused(model, [row(regions=[])], tmp_path, "no row of the data set has a region", guidance_heads="auto")
    args = GuidedSFTConfig(str(tmp_path), guidance_heads="auto", **CPU)
    with pytest.raises(ValueError, match="leave `data_collator` out"):
        GuidedSFTTrainer(model, args, dict, Dataset.from_list(ROWS), processing_class=planted(1, 2)[1])


@pytest.mark.parametrize("name", ["guidance_heads", "guidance_layers"])
def test_numbers_of_heads_and_layers(name: str, tmp_path: Path):
    for value in (["0", "3"], (0, 3), [0.0, 3]):
        assert getattr(GuidedSFTConfig(str(tmp_path), **CPU | {name: value}), name) == [0, 3]
    assert getattr(GuidedSFTConfig(str(tmp_path), **CPU | {name: 12}), name) == [12]
    assert getattr(GuidedSFTConfig(str(tmp_path), **CPU | {name: "12"}), name) == [12]
    for value in (["first"], [0.5], "1 2", [[1]], 1.5, [float("inf")]):
        with pytest.raises(ValueError, match=rf"`{name}` has to be .*the numbers of .*, but is "):
            GuidedSFTConfig(str(tmp_path), **CPU | {name: value})


def test_heads_are_chosen_by_the_words_that_train(tmp_path: Path):
    """The trainer's own options say which words guide, and what is wrong with rows is said."""
    model, processor = planted(1, 2)
    whole = [one | {"regions": one["regions"][1:]} for one in ROWS]  # of the answer as a whole, no phrase
    options = {"guidance_heads": "auto", **CPU}
    args = GuidedSFTConfig(str(tmp_path), guidance_level="phrase", **options)
    with pytest.raises(ValueError, match="None of the first 4 rows, 4 of which have regions, has one that shows"):
        GuidedSFTTrainer(model, args, processing_class=processor, train_dataset=Dataset.from_list(whole))
    args = GuidedSFTConfig(str(tmp_path), max_length=5, **options)
    with pytest.raises(ValueError, match=r"4 rows are broken, the first one being row 0: `max_length` \(5\) cuts"):
        GuidedSFTTrainer(model, args, processing_class=processor, train_dataset=Dataset.from_list(whole))
    collate = collator_for(model.config, processor)
    processor.chat_template = "{{ raise_exception('no chats today') }}"
    with pytest.raises(ValueError, match="the first one being row 0: no chats today"):
        localizing_heads(model, collate, ROWS)


def test_rows_without_regions_are_walked_past():
    model, processor = planted(1, 2)
    collate = collator_for(model.config, processor)
    many = [row(regions=[])] * 2_000
    assert localizing_heads(model, collate, [*many, *ROWS], 1) == localizing_heads(model, collate, ROWS, 1)
