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
"""What is pushed to the Hub, by `recipes/push.py` and by the trainer, is whole, and loads back bit for bit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import jinja2.meta
import pytest
import safetensors.torch
import torch
import yaml
from hub_server import TOKEN, Commit, HubServer
from huggingface_hub import HfApi, ModelCard, parse_eval_result_entries
from peft import get_peft_model
from test_guided_sft_trainer import CPU, dataset
from test_remote_code import CODE_FILES, PROLOGUE
from testing_utils import picture, tiny_model, tiny_processor
from transformers import TrainerCallback
from vlm_families import FAMILIES

from modeling_agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from recipes import push as command
from recipes.evaluation.journal import identity_of
from recipes.evaluation.records import write_records
from recipes.publishing import checkpoint as publishing
from recipes.publishing.checkpoint import find_metrics, load_problems, make_card, push
from recipes.training.arguments import DataArguments, ModelArguments
from recipes.training.record import card_template, code_version, public_command, read_record, run_record
from recipes.training.stage import run_stage
from trainers import GuidedSFTConfig, GuidedSFTTrainer, apply_stage, get_stage, lora_config
from trainers.hub import checkpoint_files
from trainers.model_card import model_card, other_vlm_card
from trainers.stages import count_parameters


RECIPES = Path(__file__).parents[3] / "recipes"
WHOLE = {*CODE_FILES, "config.json", "generation_config.json", "processor_config.json", "tokenizer.json"}
WHOLE |= {"tokenizer_config.json", "chat_template.jinja", "model.safetensors"}
PUSHED = WHOLE | {"README.md", ".gitattributes"}
JUNK = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json", "token", ".env"]
JUNK += ["curves.png", "events.out.tfevents.1", "modeling.py", "checkpoint-5/model.safetensors"]
METRICS = {"other": {"count_accuracy": 0.125}, "model": {"count_accuracy": 0.375, "in_mask_mass": 0.4321}}
LOG = [{"loss": 2.5, "step": 1}, {"loss": 1.75, "guidance_loss": 0.625, "step": 2}, {"train_runtime": 3.0, "step": 2}]
RECORD = [
    {
        "stage": 1,
        "variant": "age-vlm",
        "dataset": "`captions` (train)",
        "dataset_id": "someone/captions",
        "hyperparameters": {"learning_rate": 1e-5},
        "command": "python recipes/stage1.py --text meta-llama/Llama-3.2-1B-Instruct",
        "code": "0123abc",
        "vision": "convnext_large_mlp.clip_laion2b_ft_soup_320",
        "text": "meta-llama/Llama-3.2-1B-Instruct",
        "base_models": ["meta-llama/Llama-3.2-1B-Instruct", "timm/convnext_large_mlp.clip_laion2b_ft_soup_320"],
    }
]
LOAD = (
    PROLOGUE
    + """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor
found = {}
for name, revision in json.loads(checkpoint):
    try:
        arguments = {"revision": revision, "trust_remote_code": True}
        processor = AutoProcessor.from_pretrained(name, **arguments)
        model = AutoModelForImageTextToText.from_pretrained(name, **arguments).eval()
    except Exception as error:
        found[name, revision] = f"{type(error).__name__}: {error}"
        continue
    assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
    content = [{"type": "image", "image": Image.open(f"{work}/picture.png")}]
    content.append({"type": "text", "text": "Is there a cup?"})
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True,
                                           tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        found[name, revision] = model(**inputs).logits
torch.save(found, f"{work}/found.pt")
"""
)


def save(folder: Path, seed: int | None = None, **over: Any) -> AgeVlmForConditionalGeneration:
    """A whole checkpoint; with another `seed`, other weights."""
    model = tiny_model()
    model.config.training_stage = 4
    if seed is not None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.mul_(1 + 0.1 * torch.rand_like(parameter))
    model.save_pretrained(folder, **over)
    tiny_processor().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that load: `model`, among all that a training leaves, and others."""
    root = tmp_path_factory.mktemp("folders")
    save(root / "model")
    for name in JUNK:
        (root / "model" / name).parent.mkdir(exist_ok=True)
        (root / "model" / name).write_text(TOKEN)
    (root / "model/trainer_state.json").write_text(json.dumps({"log_history": LOG}))
    (root / "metrics.json").write_text(json.dumps({"seconds": 3.0, "command": "python measure.py", **METRICS}))
    save(root / "other", seed=1)
    save(root / "sharded", seed=2, max_shard_size="50KB")
    model = tiny_model().bfloat16()
    model.save_pretrained(root / "bfloat16")
    tiny_processor().save_pretrained(root / "bfloat16")
    model = tiny_model()
    adapted = get_peft_model(model, lora_config(model, get_stage(4, "age-vlm-lm"), r=4))
    adapted.save_pretrained(root / "adapter")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    adapted.merge_and_unload().save_pretrained(root / "merged")
    tiny_processor().save_pretrained(root / "merged")
    return root


def logits(folder: Path) -> torch.Tensor:
    model, processor = AgeVlmForConditionalGeneration.from_pretrained(folder), AgeVlmProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "Is there a cup?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(**inputs).logits


def without_load_check(*arguments: Any, **keywords: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "load_problems", lambda folders: [None])
        return push(*arguments, **keywords)


@pytest.fixture(scope="module")
def pushed(hub: HubServer, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Commit]:
    """`me/age-vlm` after two pushes: the first by the command line, into a new private repository."""
    work = tmp_path_factory.mktemp("push")
    command = [sys.executable, str(RECIPES / "push.py"), "--checkpoint", str(folders / "model")]
    command += ["--repo_id", "me/age-vlm", "--private", "--commit_message", "First"]
    environment = os.environ | hub.environment(str(work / "home"))
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert hub.repos["me/age-vlm"].pushed[0].oid in result.stdout
    without_load_check(folders / "other", "me/age-vlm", private=True)
    return hub.repos["me/age-vlm"].pushed


class Hold(TrainerCallback):
    """Lets no request through from the beginning of the training to its end, and keeps what is saved meanwhile."""

    def __init__(self, hub: HubServer, keep: Path) -> None:
        self.hub, self.keep = hub, keep

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.hub.lock.acquire()

    def on_save(self, args: GuidedSFTConfig, state: Any, control: Any, **kwargs: Any) -> None:
        name = f"checkpoint-{state.global_step}"
        shutil.copytree(Path(args.output_dir, name), self.keep / name)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.hub.lock.release()


def trainer_of(out: Path, repo_id: str, **over: Any) -> GuidedSFTTrainer:
    arguments = {**CPU, "learning_rate": 1e-2, "warmup_steps": 0, "max_steps": 1, "per_device_train_batch_size": 2}
    arguments |= {"push_to_hub": True, "hub_model_id": repo_id, "hub_token": TOKEN, "hub_always_push": True}
    arguments |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1, **over}
    model = tiny_model()
    apply_stage(model, get_stage(4))
    model.config.training_stage = 4
    args = GuidedSFTConfig(output_dir=str(out), **arguments)
    return GuidedSFTTrainer(
        model,
        args,
        train_dataset=dataset(),
        processing_class=tiny_processor(),
        card_template=card_template(),
        record=[dict(RECORD[0], stage=4)],
    )


@pytest.fixture(scope="module")
def trained(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of trainings that pushed: `end` and `checkpoint` after one step, `every_save` after each of two."""
    root = tmp_path_factory.mktemp("trained")
    for strategy, steps in (("end", 1), ("every_save", 2), ("checkpoint", 1)):
        trainer = trainer_of(root / strategy, f"me/{strategy}", hub_strategy=strategy, max_steps=steps)
        if strategy == "every_save":
            trainer.add_callback(Hold(hub, root / "kept"))
        (root / strategy / "curves.png").write_text("not of the model")
        trainer.train()
        trainer.push_to_hub()
    return root


MISSING = ("me/age-vlm", "no-such-revision")


@pytest.fixture(scope="module")
def loaded(hub: HubServer, folders: Path, pushed: list[Commit], trained: Path, tmp_path_factory) -> dict[tuple, Any]:
    """Logits per repository and revision, in a process that has nothing of this project and an empty cache."""
    for name in ("model", "sharded"):
        without_load_check(folders / name, "me/sharded")
    wanted = [("me/age-vlm", commit.oid) for commit in pushed]
    wanted += [("me/every_save", commit.oid) for commit in hub.repos["me/every_save"].pushed]
    wanted += [("me/age-vlm", "main"), ("me/end", "main"), ("me/checkpoint", "main"), ("me/sharded", "main"), MISSING]
    work = tmp_path_factory.mktemp("elsewhere")
    picture().save(work / "picture.png")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= hub.environment(str(work / "home"))
    command = [sys.executable, "-I", "-c", LOAD, json.dumps(wanted), str(work)]
    result = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr + result.stdout
    return torch.load(work / "found.pt")


def test_both_pushes_load_back_bit_for_bit(loaded: dict, folders: Path, pushed: list[Commit]):
    first, second = (loaded["me/age-vlm", commit.oid] for commit in pushed)
    assert torch.equal(first, logits(folders / "model"))
    assert torch.equal(second, logits(folders / "other"))
    assert torch.equal(loaded["me/age-vlm", "main"], second) and not torch.equal(first, second)


def test_a_revision_that_does_not_exist_is_named(loaded: dict):
    assert re.search("no-such-revision is not a valid|Revision Not Found", str(loaded[MISSING]))


def test_only_what_belongs_arrives(hub: HubServer, pushed: list[Commit]):
    assert [commit.message for commit in pushed] == ["First", "Push other"]
    assert [set(commit.files) for commit in pushed] == [PUSHED, PUSHED]
    assert hub.repos["me/age-vlm"].private
    assert not any(TOKEN.encode() in content for commit in pushed for content in commit.files.values())


def test_trainer_pushes_at_the_end(hub: HubServer, trained: Path, loaded: dict):
    (commit,) = hub.repos["me/end"].pushed
    assert commit.message == "End of training" and set(commit.files) == PUSHED | {"training.json"}
    assert torch.equal(loaded["me/end", "main"], logits(trained / "end"))


def test_trainer_pushes_at_every_save(hub: HubServer, trained: Path, loaded: dict):
    """All commits are whole, also that of a checkpoint which `save_total_limit` took away before its upload began."""
    commits = hub.repos["me/every_save"].pushed
    assert [commit.message for commit in commits] == ["Training in progress, step 1", "Training in progress, step 2"]
    assert not (trained / "every_save/checkpoint-1").exists() and not (trained / "every_save/_pushed").exists()
    for commit, folder in zip(commits, ("kept/checkpoint-1", "every_save"), strict=True):
        assert set(commit.files) == PUSHED | {"training.json"}
        assert torch.equal(loaded["me/every_save", commit.oid], logits(trained / folder))
    assert not torch.equal(*(loaded["me/every_save", commit.oid] for commit in commits))
    assert [json.loads(commit.files["training.json"])[-1]["steps"] for commit in commits] == [1, 2]


def test_trainer_also_pushes_what_to_resume_from(hub: HubServer, trained: Path, loaded: dict):
    """Into a folder of its own, as transformers does, but without the token."""
    commits = hub.repos["me/checkpoint"].pushed
    assert set(commits[0].files) == PUSHED | {"training.json"}
    extra = {name.removeprefix("last-checkpoint/") for name in set(commits[-1].files) - set(commits[0].files)}
    saved = {path.name for path in (trained / "checkpoint/checkpoint-1").iterdir()}
    assert {"optimizer.pt", "trainer_state.json", "training_args.bin"} <= saved
    assert extra == saved - {"training_args.bin"}
    assert torch.equal(loaded["me/checkpoint", "main"], logits(trained / "checkpoint"))


def test_the_token_stays_here(hub: HubServer, trained: Path):
    assert TOKEN.encode() in (trained / "checkpoint/checkpoint-1/training_args.bin").read_bytes()
    contents = [content for repo in hub.repos.values() for c in repo.commits for content in c.files.values()]
    assert not any(TOKEN.encode() in content for content in [*contents, *hub.objects.values()])


def test_trainer_writes_our_card(hub: HubServer, trained: Path):
    card = hub.repos["me/every_save"].pushed[0].files["README.md"].decode()
    assert "# me/every_save" in card and "`convnext_large_mlp.clip_laion2b_ft_soup_320`" in card
    assert "| steps | 1 |" in card and "| `guidance_loss` |" in card and "{{" not in card
    assert "| steps | 2 |" in (trained / "every_save/README.md").read_text()


def test_a_failed_push_does_not_end_the_training_but_is_told(hub: HubServer, tmp_path: Path, monkeypatch):
    trainer = trainer_of(tmp_path, "me/failed", hub_strategy="every_save")
    del hub.repos["me/failed"]
    warnings = []
    monkeypatch.setattr("trainers.hub.logger.warning", warnings.append)
    trainer.train()
    assert len(warnings) == 1 and "A push during training failed" in warnings[0] and "me/failed" in warnings[0]
    assert trainer.state.global_step == 1


def test_adapters_are_not_pushed_by_the_trainer(hub: HubServer, tmp_path: Path):
    model = tiny_model()
    args = GuidedSFTConfig(output_dir=str(tmp_path), push_to_hub=True, hub_model_id="me/lora", **CPU)
    peft_config = lora_config(model, get_stage(4, "age-vlm-lm"))
    with pytest.raises(ValueError, match=r"push the merged model with `recipes/push.py`"):
        GuidedSFTTrainer(
            model, args, train_dataset=dataset(), processing_class=tiny_processor(), peft_config=peft_config
        )
    assert "me/lora" not in hub.repos


def test_shards_replace_a_single_file_and_nothing_else_goes(hub: HubServer, loaded: dict, folders: Path):
    """`from_pretrained` would go on loading the single file."""
    before, after = hub.repos["me/sharded"].pushed
    assert "model.safetensors" in before.files and "model.safetensors" not in after.files
    assert sum(name.startswith("model-") for name in after.files) > 1
    assert torch.equal(loaded["me/sharded", "main"], logits(folders / "sharded"))


def test_what_else_the_repository_holds_stays(hub: HubServer, folders: Path):
    repo = hub.create("me/full")
    others = {
        "notes.md": b"mine",
        "gguf/model.safetensors": b"other",
        "README.md": b"old",
        "pytorch_model.bin": b"old",
    }
    repo.add("main", "mine", others)
    without_load_check(folders / "model", "me/full")
    files = repo.branches["main"].files
    assert set(files) == WHOLE | others.keys()
    assert all(files[name] == content for name, content in others.items() if name != "README.md")
    assert files["README.md"] != b"old"


def test_a_branch_is_made_and_main_stays(hub: HubServer, folders: Path):
    repo = hub.create("me/branched")
    for name in ("model", "other"):
        without_load_check(folders / name, "me/branched", revision="trial")
    assert set(repo.branches["trial"].files) == PUSHED and len(repo.pushed) == 2
    assert repo.branches["main"] is repo.commits[0]


def test_an_evaluation_is_shown_beside_the_model(hub: HubServer, folders: Path, tmp_path: Path):
    """Every metric in the card's header; what stands for a task whose data are on the Hub in a file of its own."""
    settings = {"model": "/elsewhere/model", "identity": identity_of(str(folders / "model")), "dtype": "auto"}
    settings |= {"limit": None, "data": "0123", "split": None, "lmms_eval": "0.7.3"}
    local = {"settings": settings, "lmms_eval": {}, "tasks": {}}
    # What stands here of metrics is for readers
    pope = local | {
        "metrics": {"accuracy": float("nan")},
        "tasks": {"pope": {"dataset": "a/POPE", "metric": "accuracy"}},
    }
    results = {"pope": {"none": pope, "real": pope}, "realworldqa": {"real": local}, "mme": {"none": local}}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))

    def save_records(name: str, answers: list[tuple[str, str]]) -> None:
        records = [
            {"benchmark": name, "id": str(n), "question": "Is it?", "answer": answer, "prediction": said}
            for n, (answer, said) in enumerate(answers)
        ]
        write_records(tmp_path / f"{name}-real.jsonl", records)

    save_records("pope", [("yes", "Yes."), ("no", "no"), ("yes", "yes"), ("no", "Yes")])
    save_records("realworldqa", [("left", "Left."), ("two", "3")])
    copy = shutil.copytree(folders / "model", tmp_path / "copy")
    os.utime(copy / "model.safetensors", ns=(0, 0))
    without_load_check(copy, "me/evaluated", evaluation=tmp_path)
    files = hub.repos["me/evaluated"].branches["main"].files
    shown = ModelCard(files["README.md"].decode()).data
    found = [(result.dataset_type, result.metric_type, result.metric_value) for result in shown.eval_results]
    assert found == [
        ("a/POPE", "accuracy", 0.75),
        ("a/POPE", "precision", pytest.approx(2 / 3)),
        ("a/POPE", "recall", 1.0),
        ("a/POPE", "f1", 0.8),
        ("a/POPE", "yes_ratio", 0.75),
        ("a/POPE", "accuracy_exact", 0.5),
        ("realworldqa", "accuracy", 0.5),
    ]
    assert shown.eval_results[-1].dataset_name == "realworldqa (2 questions from local files)"
    assert shown.model_name == "evaluated" and shown.pipeline_tag == "image-text-to-text"
    assert {name for name in files if name.startswith(".eval")} == {".eval_results/pope.yaml"}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/pope.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("a/POPE", "pope", 0.75)
    assert entry.notes == "accuracy; 4 questions; 95% interval 0.25 to 1; lmms-eval 0.7.3"

    (tmp_path / "older").mkdir()
    old = {
        "settings": {"model": "model", "weights": "1 2", "limit": None},
        "questions": 4,
        "metrics": {"accuracy": 1.0},
    }
    (tmp_path / "older/results.json").write_text(json.dumps({"pope": {"real": old}}))
    with pytest.raises(ValueError, match="older/results.json is damaged, or of an older version .*: evaluate again"):
        without_load_check(folders / "model", "me/not-evaluated", evaluation=tmp_path / "older")
    file.write_text(json.dumps({"pope": {"none": pope}}))
    with pytest.raises(ValueError, match="has no answers to questions with their own pictures"):
        without_load_check(folders / "model", "me/not-evaluated", evaluation=tmp_path)
    settings["limit"] = 20
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="only 20 questions of pope's tasks"):
        without_load_check(folders / "model", "me/not-evaluated", evaluation=tmp_path)
    with pytest.raises(ValueError, match="The evaluation of pope in .* is not of .*other as it is now"):
        without_load_check(folders / "other", "me/not-evaluated", evaluation=tmp_path)
    assert "me/not-evaluated" not in hub.repos


def test_a_private_push_to_a_public_repository_is_refused(hub: HubServer, folders: Path):
    repo = hub.create("me/public")
    with pytest.raises(ValueError, match="me/public exists and is public"):
        without_load_check(folders / "model", "me/public", private=True)
    assert repo.pushed == []
    without_load_check(folders / "model", "me/new")
    assert not hub.repos["me/new"].private


def test_without_a_token_nothing_is_pushed(hub: HubServer, folders: Path):
    with pytest.raises(OSError, match="401"):
        without_load_check(folders / "model", "me/nobody", api=HfApi(endpoint=hub.url, token=False))
    assert "me/nobody" not in hub.repos


# Refusals


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def with_pickle(name: str):
    return lambda folder: torch.save({}, folder / name)


UNREADABLE = {
    "no-code": (remove("processing_agevlm.py"), r"lacks processing_agevlm.py: save .* again"),
    "no-weights": (remove("model.safetensors"), "lacks model.safetensors"),
    "no-config": (remove("config.json"), "lacks config.json"),
    "no-processor": (remove("processor_config.json"), "lacks processor_config.json"),
    "no-tokenizer": (remove("tokenizer.json"), "lacks tokenizer.json"),
    "pickled-weights": (with_pickle("pytorch_model.bin"), r"pickle files \(pytorch_model.bin\), which run code"),
    "some-pickle": (with_pickle("extra.pt"), r"pickle files \(extra.pt\)"),
    "adapter-beside": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "merge it first"),
}


def lead_out(name: str):
    def damage(folder: Path) -> None:
        (folder.parent / "private").write_text("{}")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("../private")

    return damage


UNREADABLE |= {
    f"{name}-elsewhere": (lead_out(name), rf"holds links that lead out of it \({name}\), .*`cp -rL`")
    for name in ("config.json", "LICENSE.txt", "other_agevlm.py", "tokenizer.json", "training.json", "metrics.json")
}


def with_index(text: str):
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(text)

    return damage


UNREADABLE |= {
    "index-cut-off": (with_index('{"weight_map"'), r"index.json cannot be read as JSON \(Expecting ':'"),
    "index-list": (with_index("[]"), "index.json is no JSON object"),
    "index-without-map": (with_index("{}"), "index.json has no `weight_map` of files"),
    "index-of-numbers": (with_index('{"weight_map": {"a": 1}}'), "index.json has no `weight_map` of files"),
    "shard-elsewhere": (with_index('{"weight_map": {"a": "../x.safetensors"}}'), "lacks ../x.safetensors"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_whole_is_refused(name: str, hub: HubServer, folders: Path, tmp_path: Path):
    damage, sentence = UNREADABLE[name]
    shutil.copytree(folders / "model", tmp_path / name)
    damage(tmp_path / name)
    requests = list(hub.requests)
    with pytest.raises(ValueError, match=sentence) as error:
        without_load_check(tmp_path / name, "me/refused")
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert hub.requests == requests


def test_links_inside_of_the_folder_are_followed(hub: HubServer, folders: Path, tmp_path: Path):
    shutil.copytree(folders / "model", tmp_path / "model")
    (tmp_path / "model" / "LICENSE").write_text("text")
    (tmp_path / "model" / "LICENSE.txt").symlink_to("LICENSE")
    without_load_check(tmp_path / "model", "me/linked")
    assert hub.repos["me/linked"].pushed[-1].files["LICENSE.txt"] == b"text"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("trainer_state.json", "[]", "trainer_state.json is no JSON object"),
        ("trainer_state.json", '{"log_history": [1]}', "trainer_state.json has no `log_history` of entries"),
        ("metrics.json", '{"a"', "metrics.json cannot be read as JSON"),
        ("training.json", "{", "its training.json is no JSON"),
        ("training.json", "{}", r"its training.json is no list .* \(look at stage, variant, dataset, "),
        ("training.json", "[1]", r"its training.json is no list .* \(look at stage, variant, dataset, "),
        ("training.json", json.dumps([RECORD[0] | {"stage": "1"}]), r"\(look at stage\)"),
        ("training.json", json.dumps([RECORD[0] | {"base_models": [1]}]), r"\(look at base_models\)"),
    ],
)
def test_what_the_card_cannot_tell_gets_a_sentence(name: str, text: str, sentence: str, folders: Path, tmp_path: Path):
    shutil.copytree(folders / "model", tmp_path / "model")
    (tmp_path / "model" / name).write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        make_card(tmp_path / "model", "me/x", card_template())
    assert str(tmp_path / "model") in str(error.value) and "\n" not in str(error.value)


def test_a_lost_shard_an_adapter_and_no_folder_are_refused(hub: HubServer, folders: Path, tmp_path: Path):
    shutil.copytree(folders / "sharded", tmp_path / "sharded")
    shard = sorted((tmp_path / "sharded").glob("model-*"))[1]
    shard.unlink()
    requests = list(hub.requests)
    sentences = {
        tmp_path / "sharded": f"lacks {shard.name}",
        folders / "adapter": "LoRA adapter, not a whole model: merge it first",
        tmp_path / "nowhere": "is not a folder",
    }
    for folder, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence):
            without_load_check(folder, "me/refused")
    assert hub.requests == requests


def change_weights(change: Any):
    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def put_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NORM][3] = float("nan")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def import_the_project(folder: Path) -> None:
    file = folder / "processing_agevlm.py"
    file.write_text(file.read_text() + "\nimport trainers\n")


NORM = "model.language_model.norm.weight"
UNLOADABLE = {
    "missing": (change_weights(lambda t: t.pop(NORM)), rf"1 missing \({NORM}\)"),
    "left-over": (change_weights(lambda t: t.update(extra=torch.ones(2))), r"1 left over \(extra\)"),
    "misshapen": (change_weights(lambda t: t.update({NORM: torch.ones(7)})), "1 of another shape .*norm.weight"),
    "nan": (change_weights(put_nan), rf"1 of its weights hold NaN or infinity \({NORM}\)"),
    "huge": (change_weights(lambda t: t[NORM].fill_(3e38)), "answers a picture with NaN or infinity"),
    "truncated": (truncate, "loading it raises SafetensorError"),
    "not-alone": (import_the_project, "requires the following packages.*trainers|No module named 'trainers'"),
}
LOADABLE = ("model", "sharded", "bfloat16", "merged")


@pytest.fixture(scope="module")
def problems(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What the process that loads checkpoints says to each."""
    root = tmp_path_factory.mktemp("damaged")
    for name, (damage, _) in UNLOADABLE.items():
        shutil.copytree(folders / "model", root / name)
        damage(root / name)
    paths = [*(folders / name for name in LOADABLE), *(root / name for name in UNLOADABLE)]
    return dict(zip((*LOADABLE, *UNLOADABLE), load_problems(paths), strict=True))


@pytest.mark.parametrize("name", LOADABLE)
def test_what_loads_back_is_accepted(name: str, problems: dict):
    assert problems[name] is None


@pytest.mark.parametrize("name", UNLOADABLE)
def test_what_does_not_load_back_is_refused(name: str, problems: dict, hub: HubServer, folders: Path, monkeypatch):
    assert re.search(UNLOADABLE[name][1], problems[name])
    monkeypatch.setattr(publishing, "load_problems", lambda folders: [problems[name]])
    requests = list(hub.requests)
    with pytest.raises(ValueError, match="does not load back: ") as error:
        push(folders / "model", "me/refused")
    assert "\n" not in str(error.value)
    assert hub.requests == requests


def test_just_what_goes_up_is_loaded(hub: HubServer, folders: Path, monkeypatch):
    seen = []

    def look(paths: list[Path]) -> list[str]:
        seen.extend(path.name for path in paths[0].iterdir())
        return ["stop"]

    monkeypatch.setattr(publishing, "load_problems", look)
    with pytest.raises(ValueError, match="stop"):
        push(folders / "model", "me/refused")
    assert set(seen) == WHOLE


# The card and the record


def test_the_template_asks_for_what_is_filled_in():
    environment = jinja2.Environment()
    asked = jinja2.meta.find_undeclared_variables(environment.parse(card_template()))
    filled = {"name", "license", "base_model", "parts_table", "stage", "stages_table", "commands", "log_table"}
    assert asked == filled | {"evaluation_table", "llama_notice", "code", "guidance"}


def test_the_card_tells_what_was_measured_and_says_what_is_not_known(pushed: list[Commit]):
    first, second = (commit.files["README.md"].decode() for commit in pushed)
    assert "{{" not in first + second
    data = yaml.safe_load(first.split("---\n")[1])
    assert (data["library_name"], data["pipeline_tag"], data["license"]) == (
        "transformers",
        "image-text-to-text",
        "other",
    )
    assert "base_model" not in data
    assert "| `count_accuracy` | 0.3750 |\n| `in_mask_mass` | 0.4321 |" in first and "by `python measure.py`" in first
    assert "0.125" not in first, "that was measured on another checkpoint"
    assert "| `loss` | 1.75 |\n| `guidance_loss` | 0.625 |" in first
    assert "layers 1, 3 of the combined 5, with an MLP of width 48" in first and "96 x 96 pixels to 9 visual" in first
    assert "stages 1 to 4" in first and code_version().removesuffix("-dirty") in first
    assert "How this checkpoint was trained is not recorded with it." in first
    assert "| `count_accuracy` | 0.1250 |" in second and "0.3750" not in second
    assert "The log of its training is not recorded with this checkpoint." in second


def test_the_card_counts_all_parameters(pushed: list[Commit]):
    model = tiny_model()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"| total |  | {total:,} |" in pushed[0].files["README.md"].decode()
    counts = count_parameters(((n, p.numel()) for n, p in model.named_parameters()), [1, 3])
    assert counts["vision_tower"] == sum(p.numel() for p in model.model.vision_tower.parameters())
    assert counts["projector"] == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    layers = model.model.language_model.layers
    assert counts["cross_attention"] == sum(p.numel() for i in (1, 3) for p in layers[i].parameters())
    assert sum(counts.values()) == total


def test_the_card_of_a_llama_says_so():
    model = tiny_model()
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 1)
    text = model_card(card_template(), "me/Llama-age-vlm", model.config.to_dict(), counts, record=RECORD)
    data = yaml.safe_load(text.split("---\n")[1])
    assert data["license"] == "llama3.2" and data["base_model"] == RECORD[0]["base_models"]
    assert data["datasets"] == ["someone/captions"]
    assert "No evaluation of this checkpoint was recorded." in text
    assert "**Built with Llama.** Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright" in text
    assert "| learning rate | 1e-05 |" in text and RECORD[0]["command"] in text and "Code: 0123abc." in text


FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
BREAKOUT = 'x"\ninference: false\nlicense: mit\n---\n<script>alert(1)</script>```\n# `Heading` | y'


def test_no_name_of_the_record_becomes_yaml_or_markup():
    """Every field that is a string holds what would end the header, a line, a cell, a code block, and begin a tag."""
    hostile = {key: BREAKOUT if isinstance(value, str) else value for key, value in RECORD[0].items()}
    hostile |= {"base_models": [BREAKOUT, "me/base"], "hyperparameters": {BREAKOUT: BREAKOUT}}
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 1)
    config = tiny_model().config.to_dict()
    told = {"log_history": [{"loss": 1.0, BREAKOUT: 2.0}], "metrics": {BREAKOUT: 1.0}, "metrics_command": BREAKOUT}
    card = model_card(card_template(), BREAKOUT, config, counts, record=[hostile], **told)
    plain = model_card(card_template(), "me/x", config, counts, record=RECORD)
    data, expected = (yaml.safe_load(text.split("---\n")[1]) for text in (card, plain))
    changed = {"base_model", "datasets", "license", "license_name"}
    assert {k: v for k, v in data.items() if k not in changed} == {
        k: v for k, v in expected.items() if k not in changed
    }
    assert (data["base_model"], data["license"], data.get("datasets")) == (["me/base"], "other", None)
    pages = [FENCED.split(text.split("---\n", 2)[2]) for text in (card, plain)]
    assert len(pages[0]) == len(pages[1])  # as many blocks of code
    words, expected_words = ("\n".join(page) for page in pages)
    assert re.findall("^#+ .*", words, re.MULTILINE)[1:] == re.findall("^#+ .*", expected_words, re.MULTILINE)[1:]
    assert "<script" not in re.sub("`[^`\n]*`", "", words) and "&lt;script" in words


def test_what_is_not_on_the_hub_is_not_in_the_header():
    """A model of stages on scenes, and one of stages on scenes first and on a data set of the Hub then."""
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 1)
    local = RECORD[0] | {"dataset_id": None}
    for record, expected in (([local], None), ([local, RECORD[0]], ["someone/captions"])):
        card = model_card(card_template(), "me/x", tiny_model().config.to_dict(), counts, record=record)
        data = yaml.safe_load(card.split("---\n")[1])
        assert data.get("datasets") == expected and ("datasets" in data) == (expected is not None)


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({3: "age-vlm"}, "; guided: heads 0 of layers 1 |"),
        ({3: "ca-baseline-frozen", 4: "ca-baseline"}, "; not guided, but looked at: heads 0 of layers 1 |"),
        ({3: "age-vlm", 4: "ca-baseline"}, "; guided: heads 0 of layers 1 |"),
        ({}, "; guided: heads 0 of layers 1 |"),
    ],
    ids=str,
)
def test_the_card_says_no_head_of_a_baseline_is_guided(variants: dict[int, str], words: str):
    """The head that a baseline's maps are of is chosen so that it can be compared with the guided one."""
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 1)
    config = tiny_model(text_config={"guidance_heads": [0], "guidance_layers": [1]}).config.to_dict()
    record = [RECORD[0] | {"stage": stage, "variant": variant} for stage, variant in variants.items()]
    assert words in model_card(card_template(), "me/x", config, counts, record=record)


@pytest.mark.parametrize(
    ("stage", "variants", "words"),
    [
        (2, {1: "age-vlm", 2: "age-vlm"}, "so far, none has."),
        (3, {3: "age-vlm"}, "masks guided the attention"),
        (4, {3: "age-vlm", 4: "ca-baseline"}, "masks guided the attention"),
        (4, {3: "ca-baseline-frozen", 4: "ca-baseline"}, "no segmentation masks guided the attention"),
        (4, {}, "is not recorded with it."),
    ],
    ids=str,
)
def test_the_card_opens_with_whether_masks_guided_the_attention(stage: int, variants: dict[int, str], words: str):
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 1)
    record = [RECORD[0] | {"stage": number, "variant": variant} for number, variant in variants.items()]
    config = tiny_model(training_stage=stage).config.to_dict()
    card = model_card(card_template(), "me/x", config, counts, record=record)
    assert words in card.split("## Use")[0]


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "llama3.2"),
        ("unsloth/Llama-3.1-8B", "llama3.1"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("HuggingFaceTB/SmolLM2-135M", "other"),
        ("recipes/backbones/llama", "apache-2.0"),  # where it was
        ("recipes/scenes/backbones/llama", "apache-2.0"),
    ],
)
def test_the_license_follows_the_llm(text: str, license: str):
    record = [dict(RECORD[0], text=text, vision="recipes/backbones/convnext", base_models=[])]
    counts = dict.fromkeys(("vision_tower", "projector", "cross_attention", "language_model"), 1)
    card = model_card(card_template(), "me/x", tiny_model().config.to_dict(), counts, record=record)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == license
    assert ("**Built with Llama.**" in card) == license.startswith("llama")


def test_metrics_of_other_checkpoints_are_not_taken(folders: Path, tmp_path: Path):
    assert find_metrics(folders / "model") == (METRICS["model"], "python measure.py")
    assert find_metrics(folders / "sharded") == ({}, None)
    (tmp_path / "metrics.json").write_text('{"f1": 0.5, "note": "x"}')
    assert find_metrics(tmp_path) == ({"f1": 0.5}, None)


def test_commands_are_told_without_tokens_and_folders():
    arguments = [str(RECIPES / "stage1.py"), "--hub_token", "secret", "--wandb_key=secret", f"--x={TOKEN}", TOKEN]
    arguments += ["--output_dir", "/home/somebody/runs/stage1", "--text=/data/llama", "--note", "two words"]
    assert public_command(arguments) == (
        "python recipes/stage1.py --hub_token ... --wandb_key=... --x=... ... --output_dir stage1 --text=llama "
        "--note 'two words'"
    )


def test_a_stage_records_itself_after_those_before(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/stage1.py", "--hub_token", TOKEN])
    parts = {"vision": str(RECIPES / "scenes/backbones/convnext"), "text": str(RECIPES / "scenes/backbones/llama")}
    arguments = ModelArguments(**parts, image_size=64, cross_attention_layers=[2])
    training = GuidedSFTConfig(output_dir=str(tmp_path / "s1"), max_steps=1, per_device_train_batch_size=2, **CPU)
    run_stage(1, arguments, DataArguments(num_scenes=2), training)
    (first,) = read_record(str(tmp_path / "s1"))
    assert (first["stage"], first["steps"], first["text"]) == (1, 1, "recipes/scenes/backbones/llama")
    assert first["command"] == "python recipes/stage1.py --hub_token ..." and first["base_models"] == []
    assert first["hyperparameters"]["guidance_weight"] == 0.0 and first["hyperparameters"]["rows_per_step"] == 2
    assert "training.json" in [file.name for file in checkpoint_files(tmp_path / "s1")]

    data = DataArguments(dataset_name="someone/captions")
    start = ModelArguments(model_name_or_path=str(tmp_path / "s1"))
    record = run_record(2, start, data, training, [first])
    assert record[0] == first and record[1]["stage"] == 2 and record[1]["dataset_id"] == "someone/captions"
    assert "text" not in record[1]
    again = run_record(1, start, data, training, [first])
    assert [run["stage"] for run in again] == [1, 1]  # trained on in the same stage


OTHER = {"stage": 0, "variant": "another VLM", "dataset": "rows", "code": "abc", "model": "llava-hf/llava"}
OTHER |= {"hyperparameters": {"guidance_weight": 1.0}, "base_models": ["llava-hf/llava"], "guided_heads": {"1": [2]}}


def test_other_vlms_go_up_with_a_card_of_their_own(hub: HubServer, tmp_path: Path):
    """What guide.py and the concatenation variants save: no code, and no record where there is none."""
    model, processor = FAMILIES["LLaVA, SigLIP"]()
    processor.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] or '<image>' }}{% endfor %}{% endfor %}"
    )
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    push(tmp_path / "llava", "me/llava")
    files = hub.repos["me/llava"].branches["main"].files
    assert set(files) == PUSHED - {*CODE_FILES} and b"Made from not recorded by" in files["README.md"]
    (tmp_path / "llava/training.json").write_text(json.dumps([OTHER]))
    without_load_check(tmp_path / "llava", "me/llava")
    card = ModelCard(hub.repos["me/llava"].branches["main"].files["README.md"].decode())
    assert card.data.base_model == ["llava-hf/llava"] and "Made from `llava-hf/llava` by" in card.text
    (tmp_path / "llava/model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors: save"):
        push(tmp_path / "llava", "me/llava")


def test_the_card_of_another_vlm_tells_of_all_its_runs():
    """Of the last one that guided; whatever a stranger's record holds."""
    last = OTHER | {
        "hyperparameters": {"guidance_weight": 0.0},
        "model": "out",
        "base_models": [],
        "guided_heads": None,
    }
    text = other_vlm_card("me/model", [OTHER, last])
    assert "its words were guided" in text and "by layer: {'1': [2]}." in text and "`llava-hf/llava`" in text
    odd = OTHER | {"hyperparameters": {"guidance_weight": "much"}, "guided_heads": {"<b>": 1}}
    assert "none of its words was guided" in other_vlm_card("me/model", [odd])
    assert "<b>" not in other_vlm_card("me/model", [odd | {"hyperparameters": {"guidance_weight": 2}}])


def test_a_concatenation_model_around_llama_says_so():
    built = OTHER | {"vision": "convnext", "text": "meta-llama/Llama-3.2-1B-Instruct", "model": None}
    tuned = OTHER | {"base_models": ["meta-llama/Llama-3.2-11B-Vision-Instruct"]}
    for record in ([built], [tuned]):
        card = ModelCard(other_vlm_card("me/model", record))
        assert card.data.license == "llama3.2" and "Built with Llama" in card.text
    assert "license" not in ModelCard(other_vlm_card("me/model", [OTHER])).data.to_dict()


def test_the_name_that_llamas_license_asks_for(tmp_path: Path, monkeypatch, recwarn):
    (tmp_path / "training.json").write_text(json.dumps(RECORD))
    monkeypatch.setattr(publishing, "push", lambda *arguments: SimpleNamespace(commit_url="url", oid="oid"))
    for name in ("me/Llama-age-vlm", "me/age-vlm"):
        monkeypatch.setattr(sys, "argv", ["push.py", "--checkpoint", str(tmp_path), "--repo_id", name])
        command.main()
    (warning,) = (str(warning.message) for warning in recwarn if "Llama" in str(warning.message))
    assert warning.endswith("name begin with 'Llama'; me/age-vlm does not.")
