"""`loop` against one token at a time, `grouped` against `loop`: outputs and every gradient."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from moebius.config import ModelConfig
from moebius.model.experts import Experts, ExpertWeights, grouped, loop
from moebius.model.router import Routing

D, F, E = 24, 40, 5
ACTIVATIONS = ["swiglu", "relu2", "gelu"]


def some_weights(activation: str, seed: int = 0, device: str = "cpu", dropout: float = 0.0) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[1] ** 0.5).to(device).requires_grad_()

    gate = draw(E, D, F) if activation == "swiglu" else None
    return ExpertWeights(gate, draw(E, D, F), draw(E, F, D), activation, dropout)  # pyright: ignore[reportArgumentType]


def routing_of(expert_TK: Tensor, seed: int = 1) -> Routing:
    gate_TK = torch.rand(expert_TK.shape, generator=torch.Generator().manual_seed(seed)).to(expert_TK.device)
    gate_TK = torch.where(expert_TK < E, gate_TK, 0.0).requires_grad_()
    nothing = torch.empty(len(expert_TK), E)
    return Routing(gate_TK, expert_TK, nothing, nothing)


def distinct(T: int, k: int, seed: int = 2) -> Tensor:
    return torch.rand(T, E, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :k]


CASES = {
    **{f"top-{k} of {T}": distinct(T, k) for k in range(1, E + 1) for T in (33,)},
    "one token": torch.tensor([[3]]),
    "16 tokens": distinct(16, 2),
    "all on one expert": torch.full((21, 1), 2),
    "empty experts": torch.tensor([[1, 4]] * 9),
    "dropped tokens": torch.where(torch.arange(19)[:, None] % 3 == 0, E, distinct(19, 1)),
    "some slots empty": torch.where(torch.rand(19, 3, generator=torch.Generator().manual_seed(3)) < 0.5, E, distinct(19, 3)),
    "no token has an expert": torch.full((7, 2), E),
}  # fmt: skip


def results(backend, x_TD: Tensor, routing: Routing, weights: ExpertWeights, upstream: Tensor) -> list[Tensor]:
    poison()
    out_TD = backend(x_TD, routing, weights)
    inputs = [x_TD, routing.gate_TK, *(w for w in weights[:3] if w is not None)]
    poison()
    gradients = torch.autograd.grad(out_TD, inputs, upstream, allow_unused=True)
    return [out_TD, *(torch.zeros_like(i) if g is None else g for g, i in zip(gradients, inputs, strict=True))]


def poison() -> None:
    """Leave NaN in the memory that is handed out next: what is read without being written shows."""
    kept = [torch.full((rows, columns), torch.nan) for rows in range(1, 170, 7) for columns in (D, F)]
    del kept


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_grouped_is_loop(case, activation):
    routing, weights = routing_of(CASES[case]), some_weights(activation)
    x_TD = torch.randn(len(CASES[case]), D, requires_grad=True)
    upstream = torch.randn_like(x_TD)
    expected = results(loop, x_TD, routing, weights, upstream)
    for ours, theirs in zip(results(grouped, x_TD, routing, weights, upstream), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", ["top-2 of 33", "some slots empty"])
def test_loop_is_one_token_at_a_time(case, activation):
    expert_TK = CASES[case]
    routing = routing_of(expert_TK)
    weights = some_weights(activation).to(torch.float64)
    x_TD = torch.randn(len(expert_TK), D, dtype=torch.float64)
    expected = torch.zeros_like(x_TD)
    for token, chosen in enumerate(expert_TK.tolist()):
        for slot, expert in enumerate(chosen):
            if expert == E:
                continue
            up = weights.w_up_EDF[expert].T @ x_TD[token]
            if weights.w_gate_EDF is not None:
                hidden = silu(weights.w_gate_EDF[expert].T @ x_TD[token]) * up
            else:
                hidden = relu(up) ** 2 if activation == "relu2" else gelu(up)
            expected[token] += routing.gate_TK[token, slot] * (weights.w_down_EFD[expert].T @ hidden)
    torch.testing.assert_close(loop(x_TD, routing, weights), expected)


@pytest.mark.parametrize("backend", [loop, grouped])
def test_tokens_without_an_expert_get_zero(backend):
    out_TD = backend(torch.randn(19, D), routing_of(CASES["dropped tokens"]), some_weights("swiglu"))
    assert torch.equal(out_TD[::3], torch.zeros(7, D))
    assert (out_TD[1::3] != 0).any(dim=1).all()


@pytest.mark.parametrize("backend", [loop, grouped])
def test_dropout_is_inside_and_keeps_the_mean(backend):
    weights, routing = some_weights("swiglu", dropout=0.3), routing_of(CASES["top-2 of 33"])
    x_TD = torch.randn(33, D)
    with torch.no_grad():
        without = backend(x_TD, routing, weights._replace(dropout=0.0))
        draws = torch.stack([backend(x_TD, routing, weights) for _ in range(600)])
    assert not torch.equal(draws[0], draws[1])
    standard_error = draws.std(dim=0) / 600**0.5
    assert ((draws.mean(dim=0) - without).abs() < 5 * standard_error + 1e-6).all()


@pytest.mark.parametrize("backend", [loop, grouped])
def test_dropout_is_off_in_evaluation(backend):
    experts = Experts(ModelConfig(dim=D, num_heads=2, num_kv_heads=1, expert_dropout=0.9), E, F, backend).eval()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter)
    x_TD, routing = torch.randn(33, D), routing_of(CASES["top-2 of 33"])
    assert torch.equal(experts(x_TD, routing), experts(x_TD, routing))


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_grouped_on_the_gpu_is_loop_in_float32(case, activation):
    expert_TK = CASES[case].cuda()
    routing, weights = routing_of(expert_TK), some_weights(activation, device="cuda")
    x_TD = torch.randn(len(expert_TK), D, device="cuda", requires_grad=True)
    upstream = torch.randn_like(x_TD)
    expected = results(loop, x_TD, routing, weights, upstream)

    def bfloat16(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        return grouped(x_TD.bfloat16(), routing, weights.to(torch.bfloat16)).float()

    for ours, theirs in zip(results(bfloat16, x_TD, routing, weights, upstream), expected, strict=True):
        assert torch.isfinite(ours).all()
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm()


@pytest.mark.gpu
@gpu
def test_grouped_never_waits_for_the_device():
    routing, weights = routing_of(CASES["top-2 of 33"].cuda()), some_weights("swiglu", device="cuda").to(torch.bfloat16)
    x_TD = torch.randn(33, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grouped(x_TD, routing, weights).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        grouped(x_TD, routing, weights).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
