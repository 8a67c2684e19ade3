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
"""A page that runs a model's graphs in a browser."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_utils import PILImageResampling

from recipes.answering.phrases import FUNCTION_WORDS
from recipes.answering.words import layer_names
from recipes.drawing.answer_page import HERE as DRAWING
from recipes.drawing.answer_page import base64_of
from recipes.drawing.attention import COLORS, MOST
from recipes.exporting.graphs import INT8, TEXT, VISION
from recipes.scenes.rows import load_scenes


STATIC = Path(__file__).parent / "page"
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")  # of onnxruntime-web, without WebGPU
FILTERS = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}
MOST_BYTES = 10**9  # of a graph; WebAssembly has 4 GB for it, several times over
MAX_NEW_TOKENS = 64
NUM_EXAMPLES = 4


def check_runtime(folder: Path) -> None:
    """Raises `ValueError` unless the folder holds what the page needs of onnxruntime-web."""
    missing = [name for name in RUNTIME if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"its page needs onnxruntime-web, but {folder} has no {missing[0]}. Run `npm install onnxruntime-web` and pass "
            "`--onnxruntime_web node_modules/onnxruntime-web/dist`"
        )


def image_of(processor: ProcessorMixin) -> dict[str, Any]:
    """What the page does with a picture. Raises `ValueError` where it cannot."""
    image_processor = processor.image_processor
    if image_processor.do_pad or image_processor.do_center_crop or not image_processor.do_resize:
        raise ValueError("its pictures are padded, cropped or kept in size, and the page can only stretch them")
    if image_processor.resample not in FILTERS:
        raise ValueError(f"its pictures are resized by another filter than {' and '.join(FILTERS.values())}")
    mean = np.array(image_processor.image_mean if image_processor.do_normalize else (0.0, 0.0, 0.0))
    std = np.array(image_processor.image_std if image_processor.do_normalize else (1.0, 1.0, 1.0))
    if len(mean) != 3:
        raise ValueError(f"its pictures have {len(mean)} channels, and the page has pictures of 3")
    factor = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    return {
        "height": image_processor.size.height,
        "width": image_processor.size.width,
        "filter": FILTERS[image_processor.resample],
        "scale": (factor / std).tolist(),
        "offset": (-mean / std).tolist(),
    }


def check_tokenizer(processor: ProcessorMixin) -> None:
    """Raises `ValueError` unless the page's tokenizer does what the processor's does."""
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    model, words = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    is_plain = model["type"] == "BPE" and not any(
        model.get(key)
        for key in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
    )
    is_plain &= words.get("type") == "ByteLevel" and words["use_regex"] and not words["add_prefix_space"]
    is_plain &= tokenizer["normalizer"] is None and (tokenizer["decoder"] or {}).get("type") == "ByteLevel"
    is_plain &= not any(
        token[key] for token in tokenizer["added_tokens"] for key in ("single_word", "lstrip", "rstrip")
    )
    is_plain &= all(token["special"] for token in tokenizer["added_tokens"])
    if not is_plain:
        raise ValueError("its tokenizer is not GPT-2's byte-level BPE, and the page knows no other")


def check_page(processor: ProcessorMixin, runtime: Path) -> None:
    """Raises `ValueError` unless there can be a page for such pictures and words, with the runtime of that folder."""
    check_runtime(runtime)
    image_of(processor)
    check_tokenizer(processor)


def about_page(
    model: PreTrainedModel, processor: ProcessorMixin, description: dict[str, Any], int8: bool
) -> dict[str, Any]:
    """What the page knows of a model. Raises `ValueError` if it is too large."""
    names = {"vision": VISION, "text": TEXT}
    files = {part: INT8[name] if int8 else name for part, name in names.items()}
    large = [name for name in files.values() if description["bytes"][name] > MOST_BYTES]
    if large:
        raise ValueError(f"its {large[0]} has more than {MOST_BYTES / 1e9:.0f} GB, which is too much for a browser")
    kept = ("num_image_tokens", "image_token_id", "patch_size", "end_token_ids", "suppressed_token_ids")
    inputs = description["text"]["inputs"]
    return {key: description[key] for key in (*kept, "special_token_ids", "chat")} | {
        "files": files,
        "past": {name: of["shape"] for name, of in inputs.items() if name.startswith("past.")},
        "image": image_of(processor),
        "layers": layer_names(model),
        "colors": base64_of((255 * COLORS).round().astype(np.uint8)),
        "most": MOST,
        "function_words": sorted(FUNCTION_WORDS),
        "context": model.config.text_config.max_position_embeddings,
        "max_new_tokens": MAX_NEW_TOKENS,
    }


def write_page(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    graphs: Path,
    description: dict[str, Any],
    runtime: Path,
    folder: Path,
    int8: bool = False,
) -> None:
    """
    Writes a folder that any server of files can serve, and that asks for nothing else.

    Args:
        model ([`AgeVlmForConditionalGeneration`]): The model.
        processor ([`AgeVlmProcessor`]): Its processor.
        graphs (`Path`): The folder of its graphs.
        description (`dict`): What [`export`] returned for them.
        runtime (`Path`): The `dist` folder of onnxruntime-web.
        folder (`Path`): Where the page goes.
        int8 (`bool`, *optional*, defaults to `False`): Whether it runs the graphs in int8.

    Raises:
        ValueError: If the page cannot show the model, or there is no runtime. The sentence is about "its" parts.
    """
    check_page(processor, runtime)
    about = about_page(model, processor, description, int8)
    folder.mkdir(parents=True, exist_ok=True)
    sources = [graphs / name for name in (*about["files"].values(), "tokenizer.json")]
    sources += [runtime / name for name in RUNTIME] + [
        DRAWING / "answer.js",
        DRAWING / "answer.css",
        *STATIC.iterdir(),
    ]
    for source in sources:
        shutil.copyfile(source, folder / source.name)
    about["examples"] = []
    scenes = load_scenes("test", "instruction", NUM_EXAMPLES, about["image"]["width"], streaming=True)
    for n, row in enumerate(scenes):
        row["images"][0].save(folder / f"example_{n + 1}.png")
        about["examples"].append({"file": f"example_{n + 1}.png", "question": row["messages"][0]["content"]})
    (folder / "page.json").write_text(json.dumps(about), encoding="utf-8")
