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
"""What only a GPU can tell: its kernels give what a CPU gives in float64, and the fast ones take the guided step."""

from collections.abc import Iterator

import pytest
import torch
from test_grounding_maps import guided_batch, region_masks
from testing_utils import IMAGE, PAD, tiny_batch, tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_agevlm import AgeVlmForConditionalGeneration
from trainers import guidance_loss_from_mass


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
Batch = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Convolutions in float32, not in TF32, which keeps 10 bits of it."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(batch: Batch, dtype: torch.dtype = torch.float32) -> Batch:
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    return batch | {"pixel_values": batch["pixel_values"].to(dtype)}


def one_picture_each() -> Batch:
    """A batch whose words all see the whole picture, so that there is no mask, with two regions a row."""
    batch = tiny_batch(placeholders=((0,), (0,)), length=12)
    batch["query_masks"] = torch.zeros(2, 2, 12, dtype=torch.bool)
    batch["query_masks"][:, 0, 3:5] = batch["query_masks"][:, 1, 6:] = True
    return batch


def guided_step(model: AgeVlmForConditionalGeneration, batch: Batch) -> tuple[torch.Tensor, Batch]:
    """Both losses together, and the gradients of all weights, in float64 on the CPU."""
    masks = region_masks(batch).to(batch["input_ids"].device)
    outputs = model.train()(**batch, labels=batch["input_ids"], region_masks=masks, use_cache=False)
    guidance = guidance_loss_from_mass(outputs.region_attention, masks, outputs.uniform_region_attention)
    loss = outputs.loss + guidance.loss
    loss.backward()
    gradients = {n: p.grad.double().cpu() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach().double().cpu(), gradients


@pytest.mark.parametrize("rows", [one_picture_each, guided_batch])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_losses_and_gradients_are_those_of_float64(rows, backend: str, dtype: torch.dtype, limit: float):
    exact = tiny_model(attn_implementation="eager").double()
    expected, wanted = guided_step(exact, rows() | {"pixel_values": rows()["pixel_values"].double()})
    model = tiny_model(attn_implementation=backend).to("cuda", dtype)
    found, gradients = guided_step(model, on_gpu(rows(), dtype))
    assert abs(found - expected) <= limit * expected
    assert gradients.keys() == wanted.keys()
    # of all gradients together, for where one is near zero half precision has nothing right
    error = sum(((gradients[name] - wanted[name]) ** 2).sum() for name in wanted) ** 0.5
    assert error <= limit * sum((gradient**2).sum() for gradient in wanted.values()) ** 0.5


@pytest.mark.parametrize(
    ("rows", "kernel"),
    [(one_picture_each, SDPBackend.FLASH_ATTENTION), (guided_batch, SDPBackend.EFFICIENT_ATTENTION)],
)
def test_the_cross_attention_keeps_to_kernels_that_write_no_map(rows, kernel: SDPBackend):
    """Flash attention where there is no mask. SDPA raises where a kernel may not take what it gets."""
    model = tiny_model().to("cuda", torch.bfloat16).train()
    layers = [layer.cross_attn for layer in model.model.language_model.layers if hasattr(layer, "cross_attn")]
    assert len(layers) == 2
    for layer in layers:
        forward = layer.forward

        def with_kernel(*args, forward=forward, **kwargs):
            with sdpa_kernel(kernel):
                return forward(*args, **kwargs)

        layer.forward = with_kernel
    loss, gradients = guided_step(model, on_gpu(rows(), torch.bfloat16))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("compiled", [False, True])
def test_generation_writes_what_the_cpu_writes(compiled: bool):
    model, batch = tiny_model(), tiny_batch(placeholders=((0,), (2,)), length=8)
    settings = {"min_new_tokens": 8, "max_new_tokens": 8, "pad_token_id": PAD, "do_sample": False}
    settings["suppress_tokens"] = [IMAGE]
    expected = model.generate(**batch, **settings)
    if compiled:
        settings["cache_implementation"] = "static"  # which transformers compiles by itself on a GPU
    assert torch.equal(model.cuda().generate(**on_gpu(batch), **settings).cpu(), expected)
