"""The expert layer of Triton kernels, compared with `loop`: its outputs and every gradient.

The tests run in Triton's interpreter and on a GPU.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# This import comes first, because it skips the whole file where there is no triton.
from tests.kernels.interpreter import DEVICES

from moebius.kernels import experts, tune  # isort: skip
from moebius.kernels.tiles import Tile  # isort: skip
from moebius.moe.experts import ExpertWeights, loop, triton  # isort: skip
from moebius.moe.router import Routing  # isort: skip
from tests.moe.test_experts import (
    ACTIVATIONS,
    CASES,
    D,
    E,
    F,
    distinct,
    results,
    routing_of,
    some_weights,
)  # isort: skip

from tests.model.tiny import waiting_is_an_error  # isort: skip

# The kinds of product of a layer, by its activation and the number of a token's slots.
KINDS = {
    ("swiglu", 1): ["swiglu", "down", "swiglu_backward", "up_backward", "weights"],
    ("swiglu", 2): [
        *("swiglu of slots", "down of slots", "swiglu_backward of slots"),
        *("up_backward of slots", "swiglu_weights of slots"),
    ],
    ("relu2", 1): ["up", "down", "down_backward", "up_backward", "weights"],
    ("relu2", 2): ["up", "down of slots", "down_backward", "up_backward of slots", "weights"],
}
HARD_CASES = [
    "top-2 of 33",
    "one token",
    "all on one expert",
    "dropped tokens",
    "some slots empty",
    "no token has an expert",
]


@pytest.fixture(autouse=True)
def tiles_that_fit_nothing(monkeypatch):
    """Use a tile that is smaller than the matrices and does not divide their sizes.

    Triton's interpreter runs three programs, so each program computes several such tiles.
    """
    monkeypatch.setattr(tune, "SMALL", Tile(16, 32, 16, 4, 2))
    torch.manual_seed(0)


def compare(
    expert_TK: Tensor, activation: str, device: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Assert that the kernels in `dtype` give the results of `loop` in float32.

    The tolerance is relative to the norm of each output or gradient.
    """

    def run(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        return triton(x_TD.to(dtype), routing, weights.to(dtype)).float()

    routing, weights = routing_of(expert_TK.to(device)), some_weights(activation, device=device)
    x_TD = torch.randn(len(expert_TK), D, device=device, requires_grad=True)
    upstream = torch.randn_like(x_TD)
    ours = results(run, x_TD, routing, weights, upstream)
    reference = results(loop, x_TD, routing, weights, upstream)
    for actual, expected in zip(ours, reference, strict=True):
        assert actual.isfinite().all()
        assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("case", "activation"),
    [
        *((case, "swiglu") for case in CASES),
        *((case, a) for case in HARD_CASES for a in ACTIVATIONS[1:]),
    ],
)
def test_in_float32_it_is_loop(case, activation, device):
    compare(CASES[case], activation, device, torch.float32, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", HARD_CASES)
def test_it_is_loop_with_the_activations_gradient_in_its_own_kernel(case, device, monkeypatch):
    monkeypatch.setattr(tune, "SMALL", tune.SMALL._replace(epilogue="split"))
    compare(CASES[case], "swiglu", device, torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_it_is_loop_in_float32(case, activation):
    compare(CASES[case], activation, "cuda", torch.bfloat16, 2e-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("activation", "k"), KINDS)
def test_a_layer_has_these_kinds_of_product(activation, k, device, monkeypatch):
    kinds = []

    def record(kind: str, *args: Any) -> Any:
        kinds.append(kind)
        return tune.with_best_tile(kind, *args)

    monkeypatch.setattr(experts, "with_best_tile", record)
    compare(distinct(16, k), activation, device, torch.float32, 1e-5)
    assert kinds == KINDS[activation, k]


def test_every_candidate_tile_is_for_a_kind_of_product():
    """Apart from these kinds there are only Muon's products."""
    assert {kind for kinds in KINDS.values() for kind in kinds} == (
        tune.CANDIDATES.keys() - {"gram", "polynomial"}
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "activation", "k"),
    [(kind, *layer) for layer, kinds in KINDS.items() for kind in kinds],
)
def test_with_every_tile_it_is_loop(kind, activation, k, monkeypatch):
    """Each program computes several tiles, and one tile must not affect the next.

    There are more tiles than programs, and experts whose last tile is not full.
    """
    candidates = tune.CANDIDATES[kind]
    for tile in candidates:
        monkeypatch.setattr(tune, "_chosen", {})
        monkeypatch.setitem(tune.CANDIDATES, kind, [tile])
        try:
            compare(distinct(40_000, k), activation, "cuda", torch.bfloat16, 2e-2)
        except tune.OutOfResources:
            assert k == 2 and tile != candidates[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("epilogue", ["fused", "split"])
def test_dropout_is_on_the_hidden_activations_and_the_same_in_backward(
    epilogue, device, monkeypatch
):
    """The down projection copies the first D hidden activations, which makes dropout visible."""
    monkeypatch.setattr(tune, "SMALL", tune.SMALL._replace(epilogue=epilogue))
    down_EFD = torch.eye(F, D, device=device).expand(E, F, D).contiguous()
    weights = some_weights("gelu", device=device, dropout=0.3)._replace(w_down_EFD=down_EFD)
    x_TD = torch.randn(200, D, device=device, requires_grad=True)
    expert_TK = distinct(200, 1).to(device)
    routing = routing_of(expert_TK)._replace(gate_TK=torch.ones(200, 1, device=device))
    hidden_TD = loop(x_TD, routing, weights._replace(dropout=0.0))
    out_TD = triton(x_TD, routing, weights)
    kept_TD = out_TD.detach() != 0
    torch.testing.assert_close(
        out_TD, torch.where(kept_TD, hidden_TD / 0.7, 0.0), rtol=1e-4, atol=1e-5
    )
    assert kept_TD.float().mean().item() == pytest.approx(0.7, abs=0.03)  # the mean of 4800 draws
    upstream = torch.randn_like(out_TD)
    inputs = [x_TD, weights.w_up_EDF]
    ours = torch.autograd.grad(out_TD, inputs, upstream)
    reference = torch.autograd.grad(hidden_TD, inputs, upstream * kept_TD / 0.7)
    for actual, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_it_compiles_without_graph_breaks(device):
    routing = routing_of(CASES["some slots empty"].to(device))
    weights = some_weights("swiglu", device=device)
    x_TD = torch.randn(19, D, device=device, requires_grad=True)
    compiled = torch.compile(
        lambda x, *others: 3 * triton(2 * x, *others), fullgraph=True, backend="aot_eager"
    )
    inputs = [x_TD, routing.gate_TK, *weights[:3]]
    ours = torch.autograd.grad(compiled(x_TD, routing, weights).square().sum(), inputs)
    reference = torch.autograd.grad((3 * loop(2 * x_TD, routing, weights)).square().sum(), inputs)
    for actual, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_full_recomputation_computes_the_pre_activations_again(device, monkeypatch):
    """The pre-activations are the largest tensors that the layer saves.

    Recomputation drops them only because the gradient is registered on an operator: the compiler
    cannot see what an autograd function saves.
    """
    calls, up = [], experts.forward_kernels.up

    def counted_up(*args):
        calls.append(args)
        return up(*args)

    monkeypatch.setattr(experts.forward_kernels, "up", counted_up)
    routing = routing_of(distinct(19, 2).to(device))
    weights = some_weights("swiglu", device=device)
    x_TD = torch.randn(19, D, device=device, requires_grad=True)

    def layer(x_TD: Tensor) -> Tensor:
        def run(x: Tensor) -> Tensor:
            return 3 * triton(2 * x, routing, weights)

        return checkpoint(run, x_TD, use_reentrant=False)  # pyright: ignore[reportReturnType]

    out_TD = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")(x_TD)
    assert len(calls) == 1
    inputs = [x_TD, routing.gate_TK, *weights[:3]]
    ours = torch.autograd.grad(out_TD.square().sum(), inputs)
    assert len(calls) == 2
    reference = torch.autograd.grad((3 * loop(2 * x_TD, routing, weights)).square().sum(), inputs)
    for actual, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_describe_themselves_correctly_to_the_compiler(device):
    """Their fake versions give the right shapes and dtypes, and no operator changes its inputs."""
    routing = routing_of(distinct(19, 2).to(device))
    weights = some_weights("swiglu", device=device)
    x_TD = torch.randn(19, D, device=device)
    gate_TK = routing.gate_TK.detach()
    matrices = [None if w is None else w.detach() for w in weights[:3]]
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    checks = ("test_schema", "test_faketensor")
    inputs = (x_TD, gate_TK, routing.expert_TK, *matrices, seed, "swiglu", 0.0)
    torch.library.opcheck(experts._forward_operator, inputs, test_utils=checks)
    _, _, pre_PRF, *order = experts._forward(*inputs)  # pyright: ignore[reportCallIssue]
    saved = (x_TD, gate_TK, *matrices, seed, pre_PRF, *order)
    inputs = (torch.randn_like(x_TD), *saved, "swiglu", 0.0)
    torch.library.opcheck(experts._backward_operator, inputs, test_utils=checks)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_may_start_at_any_address(device):
    """A view into a flat buffer, for example, need not start at a multiple of 16 bytes."""
    routing, weights = routing_of(distinct(19, 1).to(device)), some_weights("relu2", device=device)
    flat = torch.zeros(weights.w_up_EDF.numel() + 1, device=device)
    shifted_EDF = flat[1:].view_as(weights.w_up_EDF).copy_(weights.w_up_EDF.detach())
    x_TD = torch.randn(19, D, device=device)
    out_TD = triton(x_TD, routing, weights._replace(w_up_EDF=shifted_EDF))
    torch.testing.assert_close(out_TD, loop(x_TD, routing, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_it_gives_the_same_bits_every_time():
    routing, weights = routing_of(distinct(5000, 3).cuda()), some_weights("swiglu", device="cuda")
    x_TD = torch.randn(5000, D, device="cuda", requires_grad=True)
    inputs = [x_TD, routing.gate_TK, *weights[:3]]
    upstream = torch.randn(5000, D, device="cuda").bfloat16()

    def gradients() -> tuple[Tensor, ...]:
        out_TD = triton(x_TD.bfloat16(), routing, weights.to(torch.bfloat16))
        return torch.autograd.grad(out_TD, inputs, upstream)

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["top-2 of 33", "dropped tokens"])
def test_it_never_waits_for_the_device(case, dtype):
    routing = routing_of(CASES[case].cuda())
    weights = some_weights("swiglu", device="cuda").to(dtype)
    x_TD = torch.randn(len(CASES[case]), D, device="cuda", dtype=dtype, requires_grad=True)
    triton(x_TD, routing, weights).sum().backward()
    with waiting_is_an_error():
        triton(x_TD, routing, weights).sum().backward()
