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

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer
from testing_utils import picture

from recipes.rows import hub as rows_hub
from recipes.training.arguments import DataArguments
from recipes.training.data_sets import load_rows
from trainers import get_stage


ROOT = Path(__file__).parents[3]


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)


def test_rows_are_put_up_with_their_pictures(hub: HubServer, tmp_path: Path):
    picture().save(tmp_path / "0.png")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cup."}]
    (tmp_path / "own.jsonl").write_text(json.dumps({"id": "a", "image": "0.png", "conversations": turns}))
    command = [str(ROOT / "recipes/data.py"), "--json", str(tmp_path / "own.jsonl"), "--images", str(tmp_path)]
    command += ["--out", str(tmp_path / "rows"), "--push_to_hub", "me/own"]
    environment = hub.environment(str(tmp_path / "home"))

    refused = run(command, environment | {"HF_TOKEN": "hf_wrong"})
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert f"The rows are in {tmp_path / 'rows'}, but not on the Hub" in refused.stderr.splitlines()[-1]
    done = run(command, environment)
    assert done.returncode == 0, done.stderr
    assert hub.repos["me/own"].private
    files = hub.repos["me/own"].branches["main"].files
    (name,) = [name for name in files if name.endswith(".parquet")]
    (tmp_path / "0.png").unlink()
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/train.parquet").write_bytes(files[name])
    (row,) = load_rows(DataArguments(dataset_name=str(tmp_path / "fetched")), get_stage(3), 64)
    assert row["id"] == "a" and row["images"][0].size == picture().size


@pytest.mark.parametrize("repo_id", ["own", "me/my own", "a/b/c"])
def test_what_is_no_id_is_said_before_the_work(repo_id: str):
    with pytest.raises(ValueError, match="`--push_to_hub` is an id such as me/captions, not '"):
        rows_hub.check_id(repo_id)
