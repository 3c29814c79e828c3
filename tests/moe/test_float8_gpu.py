"""The FP8 products of a Hopper GPU, compared with the emulated ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.moe import float8 as module
from moebius.moe.experts import ExpertWeights, loop, sort_by_expert
from moebius.moe.float8 import aligned, float8, quantize
from moebius.moe.router import Routing
from tests.model.tiny import waiting_is_an_error
from tests.moe.e4m3 import EXACT, HARD, NEAR, SAME, assert_near, inputs_of
from tests.moe.test_experts import ACTIVATIONS, results

Inputs = tuple[Tensor, Routing, ExpertWeights, Tensor]


def in_bfloat16(run: Callable[..., Any], inputs: Inputs) -> list[Tensor]:
    """Return the results of a backend with bfloat16 operands, as in training on a GPU."""
    x_TD, routing, weights, upstream = inputs

    def cast(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        return run(x_TD.bfloat16(), routing, weights.to(torch.bfloat16)).float()

    return results(cast, x_TD, routing, weights, upstream)


@pytest.fixture
def hopper() -> None:
    if module.is_emulated(torch.device("cuda")):
        pytest.skip("needs a Hopper GPU")


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", HARD)
def test_the_gpus_products_are_the_emulated_ones(monkeypatch, hopper, case, activation):
    inputs = inputs_of(case, activation, "cuda")
    real = in_bfloat16(float8, inputs)
    monkeypatch.setattr(module, "is_emulated", lambda device: True)
    assert_near(real, in_bfloat16(float8, inputs), SAME)
    monkeypatch.undo()
    assert_near(real, results(loop, *inputs), NEAR)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4096, 896, 2688, 4), (1000, 64, 192, 3), (300, 512, 512, 64)])
def test_one_product_of_the_gpu_at_real_sizes(hopper, shape):
    tokens, dim, width, num_experts = shape
    expert_TK = torch.randint(num_experts + 1, (tokens, 2), device="cuda")
    order = aligned(sort_by_expert(expert_TK, num_experts), expert_TK)
    rows = len(order.assignment_R)
    x, x_scale = quantize(torch.randn(rows, dim, device="cuda", dtype=torch.bfloat16))
    w, w_scale = quantize(
        torch.randn(num_experts, width, dim, device="cuda", dtype=torch.bfloat16)
    )
    arguments = (x, w, x_scale.squeeze(-1), w_scale.squeeze(-1), order.end_E)
    end = int(order.end_E[-1])
    ours, expected = (
        run(*arguments)[:end].float() for run in (module._product, module._dequantized_product)
    )
    assert (ours - expected).norm() <= EXACT * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_on_the_gpu_it_is_the_same(hopper, activation):
    import torch._inductor.config as inductor

    inputs = inputs_of("some slots empty", activation, "cuda")
    compiled = torch.compile(float8, fullgraph=True)
    with inductor.patch(emulate_precision_casts=True):  # rounds where eager code does
        assert_near(in_bfloat16(compiled, inputs), in_bfloat16(float8, inputs), SAME)


@pytest.mark.gpu
def test_it_never_waits_for_the_device(hopper):
    x_TD, routing, weights, _ = inputs_of("some slots empty", device="cuda")
    x_TD, weights = x_TD.detach().bfloat16().requires_grad_(), weights.to(torch.bfloat16)
    float8(x_TD, routing, weights).sum().backward()
    with waiting_is_an_error():
        float8(x_TD, routing, weights).sum().backward()
