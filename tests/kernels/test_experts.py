"""The kernels' expert layer against `loop`: outputs and every gradient, in Triton's interpreter and on a GPU."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.kernels.interpreter import DEVICES

from moebius.kernels import experts, tune  # isort: skip
from moebius.kernels.tiles import Tile  # isort: skip
from moebius.model.experts import ExpertWeights, loop, triton  # isort: skip
from moebius.model.router import Routing  # isort: skip
from tests.model.test_experts import ACTIVATIONS, CASES, D, E, F, distinct, results, routing_of, some_weights  # isort: skip
from tests.model.tiny import waiting_is_an_error  # isort: skip

OF_OTHERS = ("up", "down_backward")  # kinds of product that SwiGLU has of its own
HARD = ["top-2 of 33", "one token", "all on one expert", "dropped tokens", "some slots empty", "no token has an expert"]


@pytest.fixture(autouse=True)
def tiles_that_fit_nothing(monkeypatch):
    """Smaller than the matrices, and no divisor of their sizes. A device of the interpreter has three programs."""
    monkeypatch.setattr(tune, "SMALL", Tile(16, 32, 16, 4, 2))
    torch.manual_seed(0)


def compare(expert_TK: Tensor, activation: str, device: str, dtype: torch.dtype, tolerance: float) -> None:
    def run(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        return triton(x_TD.to(dtype), routing, weights.to(dtype)).float()

    routing, weights = routing_of(expert_TK.to(device)), some_weights(activation, device=device)
    x_TD = torch.randn(len(expert_TK), D, device=device, requires_grad=True)
    upstream = torch.randn_like(x_TD)
    expected = results(loop, x_TD, routing, weights, upstream)
    for ours, theirs in zip(results(run, x_TD, routing, weights, upstream), expected, strict=True):
        assert ours.isfinite().all()
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("case", "activation"), [*((case, "swiglu") for case in CASES), *((case, a) for case in HARD for a in ACTIVATIONS[1:])]
)
def test_it_is_loop_in_float32(case, activation, device):
    compare(CASES[case], activation, device, torch.float32, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", HARD)
def test_it_is_loop_with_the_activations_gradient_by_itself(case, device, monkeypatch):
    monkeypatch.setattr(tune, "SMALL", tune.SMALL._replace(epilogue="split"))
    compare(CASES[case], "swiglu", device, torch.float32, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_it_is_loop_in_float32(case, activation):
    compare(CASES[case], activation, "cuda", torch.bfloat16, 2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "activation"),
    [*((kind, "swiglu") for kind in tune.CANDIDATES if kind not in OF_OTHERS), *((kind, "relu2") for kind in OF_OTHERS)],
)
@pytest.mark.parametrize("k", [1, 2])
def test_with_every_tile_it_is_loop(kind, activation, k, monkeypatch):
    """More tiles than programs, and rows past a tile's: what one tile leaves behind must not show in the next."""
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
def test_dropout_is_on_the_hidden_activations_and_the_same_in_backward(epilogue, device, monkeypatch):
    """Seen through a down projection that hands the first D of them on."""
    monkeypatch.setattr(tune, "SMALL", tune.SMALL._replace(epilogue=epilogue))
    down_EFD = torch.eye(F, D, device=device).expand(E, F, D).contiguous()
    weights = some_weights("gelu", device=device, dropout=0.3)._replace(w_down_EFD=down_EFD)
    x_TD, expert_TK = torch.randn(200, D, device=device, requires_grad=True), distinct(200, 1).to(device)
    routing = routing_of(expert_TK)._replace(gate_TK=torch.ones(200, 1, device=device))
    hidden_TD = loop(x_TD, routing, weights._replace(dropout=0.0))
    out_TD = triton(x_TD, routing, weights)
    kept_TD = out_TD.detach() != 0
    torch.testing.assert_close(out_TD, torch.where(kept_TD, hidden_TD / 0.7, 0.0), rtol=1e-4, atol=1e-5)
    assert kept_TD.float().mean().item() == pytest.approx(0.7, abs=0.03)  # of 4800
    upstream = torch.randn_like(out_TD)
    inputs = [x_TD, weights.w_up_EDF]
    ours = torch.autograd.grad(out_TD, inputs, upstream)
    theirs = torch.autograd.grad(hidden_TD, inputs, upstream * kept_TD / 0.7)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_it_compiles_whole(device):
    routing, weights = routing_of(CASES["some slots empty"].to(device)), some_weights("swiglu", device=device)
    x_TD = torch.randn(19, D, device=device, requires_grad=True)
    compiled = torch.compile(lambda x, *given: 3 * triton(2 * x, *given), fullgraph=True, backend="aot_eager")
    inputs = [x_TD, routing.gate_TK, *weights[:3]]
    ours = torch.autograd.grad(compiled(x_TD, routing, weights).square().sum(), inputs)
    theirs = torch.autograd.grad((3 * loop(2 * x_TD, routing, weights)).square().sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_full_recomputation_computes_the_pre_activations_again(device, monkeypatch):
    """They are the largest of what would be kept, and the compiler sees into an operator's gradient, not a function's."""
    calls, up = [], experts.forward_kernels.up
    monkeypatch.setattr(experts.forward_kernels, "up", lambda *given: calls.append(given) or up(*given))
    routing, weights = routing_of(distinct(19, 2).to(device)), some_weights("swiglu", device=device)
    x_TD = torch.randn(19, D, device=device, requires_grad=True)

    def layer(x_TD: Tensor) -> Tensor:
        return checkpoint(lambda x: 3 * triton(2 * x, routing, weights), x_TD, use_reentrant=False)  # pyright: ignore[reportReturnType]

    out_TD = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")(x_TD)
    assert len(calls) == 1
    inputs = [x_TD, routing.gate_TK, *weights[:3]]
    ours = torch.autograd.grad(out_TD.square().sum(), inputs)
    assert len(calls) == 2
    theirs = torch.autograd.grad((3 * loop(2 * x_TD, routing, weights)).square().sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_tell_the_compiler_the_truth(device):
    """Of the shapes and types they return, and that they change nothing."""
    routing, weights = routing_of(distinct(19, 2).to(device)), some_weights("swiglu", device=device)
    x_TD = torch.randn(19, D, device=device)
    gate_TK, given = routing.gate_TK.detach(), [None if w is None else w.detach() for w in weights[:3]]
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    call = (x_TD, gate_TK, routing.expert_TK, *given, seed, "swiglu", 0.0)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(experts._forward_operator, call, test_utils=checks)
    _, _, pre_PRF, *order = experts._forward(*call)  # pyright: ignore[reportCallIssue]
    call = (torch.randn_like(x_TD), x_TD, gate_TK, *given, seed, pre_PRF, *order, "swiglu", 0.0)
    torch.library.opcheck(experts._backward_operator, call, test_utils=checks)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_may_lie_anywhere_in_memory(device):
    """As views into a flat buffer do."""
    routing, weights = routing_of(distinct(19, 1).to(device)), some_weights("relu2", device=device)
    flat = torch.zeros(weights.w_up_EDF.numel() + 1, device=device)
    shifted_EDF = flat[1:].view_as(weights.w_up_EDF).copy_(weights.w_up_EDF.detach())
    x_TD = torch.randn(19, D, device=device)
    out_TD = triton(x_TD, routing, weights._replace(w_up_EDF=shifted_EDF))
    torch.testing.assert_close(out_TD, loop(x_TD, routing, weights), rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
def test_it_gives_the_same_bits_each_time():
    routing, weights = routing_of(distinct(5000, 3).cuda()), some_weights("swiglu", device="cuda")
    x_TD = torch.randn(5000, D, device="cuda", requires_grad=True)
    inputs, upstream = [x_TD, routing.gate_TK, *weights[:3]], torch.randn(5000, D, device="cuda").bfloat16()

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(triton(x_TD.bfloat16(), routing, weights.to(torch.bfloat16)), inputs, upstream)

    for one, other in zip(gradients(), gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["top-2 of 33", "dropped tokens"])
def test_it_never_waits_for_the_device(case, dtype):
    routing, weights = routing_of(CASES[case].cuda()), some_weights("swiglu", device="cuda").to(dtype)
    x_TD = torch.randn(len(CASES[case]), D, device="cuda", dtype=dtype, requires_grad=True)
    triton(x_TD, routing, weights).sum().backward()
    with waiting_is_an_error():
        triton(x_TD, routing, weights).sum().backward()
