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
"""The graphs of a checkpoint in ONNX, beside the model."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from testing_utils import IMAGE, picture, tiny_model, tiny_processor

from recipes import export_onnx
from recipes.answering.answers import one_question, prompts
from recipes.benchmarks.exported import exported as benchmark
from recipes.benchmarks.exported import exported_table
from recipes.exporting import checking, folders, graphs
from recipes.exporting.checking import differences
from recipes.exporting.folders import export
from recipes.exporting.graphs import file_bytes, write_graph
from recipes.exporting.running import OnnxModel


MODELS = {
    "the paper's": {},
    "with a sink, positions and one guided head": {
        "text_config": {"attention_sink": True, "guidance_heads": [1], "guidance_layers": [3]},
        "use_visual_positions": True,
    },
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Model, processor, and the folder of their graphs."""
    torch.manual_seed(0)
    model, processor = tiny_model(attn_implementation="eager", **MODELS[request.param]), tiny_processor()
    model.generation_config.suppress_tokens = [IMAGE]
    folder = tmp_path_factory.mktemp("onnx")
    export(model, processor, folder, int8=True)
    return model, processor, folder


def test_the_folder_says_what_the_graphs_are(exported: tuple[Any, Any, Path]):
    model, processor, folder = exported
    written = json.loads((folder / "export.json").read_text())
    assert max(written["differences"].values()) < 1e-5
    assert written["bytes"] == {file.name: file.stat().st_size for file in folder.glob("*.onnx")}
    for name in ("vision", "text"):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        for side, found in {"inputs": session.get_inputs(), "outputs": session.get_outputs()}.items():
            said = written[name][side]
            assert {tensor.name for tensor in found} == said.keys()
            for tensor in found:
                kind = {"float32": "float"}.get(said[tensor.name]["type"], said[tensor.name]["type"])
                assert tensor.type == f"tensor({kind})"
                fixed = [length for length in said[tensor.name]["shape"] if isinstance(length, int)]
                assert [length for length in tensor.shape if isinstance(length, int)] == fixed
    chat = written["chat"][0] + "A cup?" + written["chat"][1]
    expected = prompts(processor, [one_question("A cup?", picture())])["input_ids"][0].tolist()
    assert processor.tokenizer(chat, add_special_tokens=False)["input_ids"] == expected
    assert {"tokenizer.json", "processor_config.json", "chat_template.jinja"} <= {
        file.name for file in folder.iterdir()
    }


def test_a_text_without_pictures_has_a_visual_token_that_nothing_sees(exported: tuple[Any, Any, Path]):
    """As `export.json` says: whatever that token is, it changes nothing."""
    _, _, folder = exported
    onnx_model, tokens, mask = OnnxModel(folder), np.array([[7, 8, 9]]), np.ones((1, 3), np.int64)
    visual, hidden = onnx_model.encode(np.zeros((1, 0, 3, 96, 96), np.float32)), onnx_model.visible_from(tokens, 0)
    assert {tensor.shape[2] for tensor in visual} == {1} and hidden.shape == (1, 1)
    logits, _, _ = onnx_model(tokens, mask, visual, hidden)
    others = [tensor + 5 for tensor in visual]
    assert np.array_equal(onnx_model(tokens, mask, others, hidden)[0], logits)
    assert not np.allclose(onnx_model(tokens, mask, others, np.zeros((1, 1), np.int64))[0], logits)


def test_an_answer_is_the_models(exported: tuple[Any, Any, Path]):
    model, processor, folder = exported
    inputs = prompts(processor, [one_question("Is there a cup?", picture())])
    length = inputs["input_ids"].shape[1]
    expected = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, length:].tolist()
    ends = model.generation_config.eos_token_id
    found = OnnxModel(folder, threads=1).generate(inputs["input_ids"].numpy(), inputs["pixel_values"].numpy(), 12)
    assert found == [token for token in expected if token != ends] and len(found) > 3


def test_int8_is_smaller_and_near(exported: tuple[Any, Any, Path]):
    _, _, folder = exported
    written = json.loads((folder / "export.json").read_text())
    for name in ("vision", "text"):
        assert written["bytes"][f"{name}_int8.onnx"] < written["bytes"][f"{name}.onnx"]
        nodes = {node.op_type for node in onnx.load(folder / f"{name}_int8.onnx").graph.node}
        assert "MatMulInteger" in nodes
    assert 1e-4 < written["differences_int8"]["logits"] < 0.5 and written["differences_int8"]["maps"] < 0.5


def test_another_models_graphs_are_found_out(
    exported: tuple[Any, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever is wrong in a graph: the check sees a changed weight of either, and then there is no export.json."""
    model, processor, folder = exported
    written = json.loads((folder / "export.json").read_text())
    for name, part in {"vision": model.model.vision_tower, "text": model.model.language_model.layers[4]}.items():
        weight = next(parameter for parameter in part.parameters() if parameter.dim() > 1)
        kept = weight.detach().clone()
        weight.data.mul_(1.1)
        assert differences(model, written, folder)["logits"] > 1e-4, name
        weight.data.copy_(kept)
    assert max(differences(model, written, folder).values()) < 1e-5

    target = tmp_path / "onnx"
    shutil.copytree(folder, target)
    monkeypatch.setattr(folders, "TOLERANCE", 0.0)
    monkeypatch.setattr(
        folders, "export_graphs", lambda *_: [shutil.copy(folder / name, target) for name in graphs.INT8]
    )
    with pytest.raises(ValueError, match="something else than the model: they differ by .*e-0"):
        export(model, processor, target)
    assert {file.name for file in target.iterdir() if file.suffix == ".onnx"} == set(graphs.INT8)
    assert not (target / "export.json").exists()


def test_the_check_covers_rows_pictures_and_padding():
    model, seen = tiny_model(attn_implementation="eager"), set()
    for seed, num_images in enumerate(checking.BATCHES):
        batch = checking.random_batch(model, (96, 96), num_images, 6, seed)
        assert (batch["input_ids"] == IMAGE).sum(dim=1).tolist() == num_images
        assert batch["attention_mask"].sum(dim=1).tolist() == [6 - row for row in range(len(num_images))]
        seen |= {(len(num_images), count) for count in num_images}
    assert {(1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2), (2, 0)} == seen


def test_a_large_graph_keeps_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As ONNX wants it from 2 GiB on, and in int8 too."""
    monkeypatch.setattr(graphs, "MOST_IN_ONE_FILE", 10_000)
    for name in (graphs.VISION, graphs.TEXT):
        linear = torch.nn.Linear(64, 64)
        write_graph(linear, (torch.ones(2, 64),), ({0: torch.export.Dim.DYNAMIC},), ["x"], ["y"], tmp_path / name)
    graphs.quantize_graphs(tmp_path)
    x = torch.randn(3, 64)
    for name, tolerance in ((graphs.TEXT, 1e-5), (graphs.INT8[graphs.TEXT], 0.1)):
        assert (tmp_path / f"{name}.data").stat().st_size < file_bytes(tmp_path)[name]
        (found,) = onnxruntime.InferenceSession(tmp_path / name).run(None, {"x": x.numpy()})
        assert (linear(x) - torch.from_numpy(found)).abs().max() < tolerance


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    plain = tiny_model(redrawn=False, text_config={"cross_attention_layers": [], "num_hidden_layers": 2})
    plain.save_pretrained(tmp_path / "llm")
    tiny_processor().save_pretrained(tmp_path / "llm")
    for name, sentence in {
        str(tmp_path / "llm"): "cannot be exported: it has no cross-attention layers, which would read pictures.",
        str(tmp_path): "cannot be loaded as an AGE-VLM checkpoint: it has no config.json.",
    }.items():
        monkeypatch.setattr(sys, "argv", ["export_onnx.py", "--model", name, "--out", str(tmp_path / "onnx")])
        with pytest.raises(SystemExit, match=sentence):
            export_onnx.main()
    assert not (tmp_path / "onnx").exists()
    model = tiny_model(redrawn=False, attn_implementation="eager")
    model.config.quantization_config = {"quant_method": "torchao"}
    with pytest.raises(ValueError, match="its weights are quantized"):
        export(model, tiny_processor(), tmp_path / "onnx")
    with pytest.raises(ValueError, match=r"holds no export\.json\. Write it with"):
        OnnxModel(tmp_path)


def test_the_benchmark_compares_all_three(
    exported: tuple[Any, Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, processor, folder = exported
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def copied(model: Any, processor: Any, target: Path, int8: bool) -> dict[str, Any]:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        return json.loads((folder / "export.json").read_text())

    monkeypatch.setattr(folders, "export", copied)
    result = benchmark(str(tmp_path), rounds=1, num_scenes=1)
    names = ["PyTorch", "ONNX", "ONNX, int8"]
    for key in ("megabytes", "seconds_to_first_token", "tokens_per_second"):
        assert list(result[key]) == names and min(result[key].values()) > 0
    assert result["same_answers"]["ONNX"] == 1 and result["questions"] > 0
    assert exported_table(result).splitlines()[0] == "| on one core | PyTorch | ONNX | ONNX, int8 |"
