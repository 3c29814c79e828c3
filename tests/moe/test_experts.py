"""The expert backends: compare `loop` with one token at a time, and `grouped` with `loop`.

Outputs and the gradient of every input are compared.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from moebius.config import Activation
from moebius.moe.experts import Experts, ExpertsFunction, ExpertWeights, grouped, loop
from moebius.moe.router import Routing
from tests.model.tiny import tiny, waiting_is_an_error

D, F, E = 24, 40, 5
ACTIVATIONS: list[Activation] = ["swiglu", "relu2", "gelu"]


def some_weights(
    activation: str, seed: int = 0, device: str = "cpu", dropout: float = 0.0
) -> ExpertWeights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        weight = torch.randn(*shape, generator=generator) / shape[1] ** 0.5
        return weight.to(device).requires_grad_()

    gate = draw(E, D, F) if activation == "swiglu" else None
    return ExpertWeights(
        gate,
        draw(E, D, F),
        draw(E, F, D),
        activation,  # pyright: ignore[reportArgumentType]
        dropout,
    )


def routing_of(expert_TK: Tensor, seed: int = 1, dtype: torch.dtype = torch.float32) -> Routing:
    """Return a routing with random gates.

    Gates of assignments without an expert are not zero, because backends must ignore them.
    """
    generator = torch.Generator().manual_seed(seed)
    gate_TK = torch.rand(expert_TK.shape, generator=generator).to(expert_TK.device, dtype)
    nothing = torch.full((len(expert_TK), E), math.nan)
    return Routing(gate_TK.requires_grad_(), expert_TK, nothing, nothing)


def distinct(T: int, k: int, seed: int = 2) -> Tensor:
    """Return expert_TK with k different experts for every token."""
    return torch.rand(T, E, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)[:, :k]


CASES = {
    **{f"top-{k} of 33": distinct(33, k) for k in range(1, E + 1)},
    "one token": torch.tensor([[3]]),
    "one token of every expert": distinct(1, E),
    "16 tokens": distinct(16, 2),
    "all on one expert": torch.full((21, 1), 2),
    "empty experts": torch.tensor([[1, 4]] * 9),
    "dropped tokens": torch.where(torch.arange(19)[:, None] % 3 == 0, E, distinct(19, 1)),
    "some slots empty": torch.where(
        torch.rand(19, 3, generator=torch.Generator().manual_seed(3)) < 0.5, E, distinct(19, 3)
    ),
    # Every expert has its own slot, as with the sigmoid router.
    "by threshold": torch.where(distinct(19, E) < 3, torch.arange(E), E),
    "no token has an expert": torch.full((7, 2), E),
}


@contextmanager
def unwritten_memory_is_nan() -> Iterator[None]:
    """Let torch fill new memory with NaN, so that reading unwritten memory is noticed."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def results(
    run: ExpertsFunction, x_TD: Tensor, routing: Routing, weights: ExpertWeights, upstream: Tensor
) -> list[Tensor]:
    """Return the output, and the gradients of x, of the gates and of each matrix."""
    inputs = [x_TD, routing.gate_TK, *(w for w in weights[:3] if w is not None)]
    with unwritten_memory_is_nan():
        out_TD = run(x_TD, routing, weights)
        gradients = torch.autograd.grad(out_TD, inputs, upstream, allow_unused=True)
    pairs = zip(gradients, inputs, strict=True)
    return [out_TD, *(torch.zeros_like(x) if grad is None else grad for grad, x in pairs)]


def one_token_at_a_time(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD from its definition, with the formulas of the activations."""
    rows = []
    for token, chosen in enumerate(routing.expert_TK.tolist()):
        row_D = torch.zeros_like(x_TD[token])
        for slot, expert in enumerate(chosen):
            if expert == E:
                continue
            up_F = x_TD[token] @ weights.w_up_EDF[expert]
            if weights.w_gate_EDF is not None:
                gate_F = x_TD[token] @ weights.w_gate_EDF[expert]
                hidden_F = gate_F / (1 + (-gate_F).exp()) * up_F
            elif weights.activation == "relu2":
                hidden_F = up_F.clamp(min=0) ** 2
            else:
                hidden_F = up_F * (1 + (up_F / math.sqrt(2)).erf()) / 2
            row_D = row_D + routing.gate_TK[token, slot] * (hidden_F @ weights.w_down_EFD[expert])
        rows.append(row_D)
    return torch.stack(rows) + 0 * x_TD


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_loop_is_one_token_at_a_time(case, activation):
    routing = routing_of(CASES[case], dtype=torch.float64)
    weights = some_weights(activation).to(torch.float64)
    x_TD = torch.randn(len(CASES[case]), D, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x_TD)
    expected = results(one_token_at_a_time, x_TD, routing, weights, upstream)
    ours = results(loop, x_TD, routing, weights, upstream)
    for values, expected_values in zip(ours, expected, strict=True):
        torch.testing.assert_close(values, expected_values, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_grouped_is_loop(case, activation):
    """This uses float32, because torch's grouped product does not take float64."""
    routing, weights = routing_of(CASES[case]), some_weights(activation)
    x_TD = torch.randn(len(CASES[case]), D, requires_grad=True)
    upstream = torch.randn_like(x_TD)
    expected = results(loop, x_TD, routing, weights, upstream)
    ours = results(grouped, x_TD, routing, weights, upstream)
    for values, expected_values in zip(ours, expected, strict=True):
        torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("run", [loop, grouped])
def test_tokens_without_an_expert_get_zero(run):
    out_TD = run(torch.randn(19, D), routing_of(CASES["dropped tokens"]), some_weights("swiglu"))
    assert torch.equal(out_TD[::3], torch.zeros(7, D))
    assert (out_TD[1::3] != 0).any(dim=1).all()


@pytest.mark.parametrize("run", [loop, grouped])
def test_dropout_keeps_the_mean(run):
    weights, routing = some_weights("swiglu", dropout=0.3), routing_of(CASES["top-2 of 33"])
    x_TD = torch.randn(33, D)
    with torch.no_grad():
        without = run(x_TD, routing, weights._replace(dropout=0.0))
        draws = torch.stack([run(x_TD, routing, weights) for _ in range(300)])
    assert not torch.equal(draws[0], draws[1])
    standard_error = draws.std(dim=0) / 300**0.5
    assert ((draws.mean(dim=0) - without).abs() < 5 * standard_error + 1e-6).all()


@pytest.mark.parametrize("run", [loop, grouped])
def test_dropout_is_on_the_hidden_activations(run):
    """The down projection copies the first D hidden activations, which makes dropout visible."""
    identity_EFD = torch.eye(F, D).expand(E, F, D).contiguous()
    weights = some_weights("gelu", dropout=0.3)._replace(w_down_EFD=identity_EFD)
    x_TD, expert_TK = torch.randn(400, D), distinct(400, 1)
    routing = routing_of(expert_TK)._replace(gate_TK=torch.ones(400, 1))
    with torch.no_grad():
        hidden_TD, out_TD = (run(x_TD, routing, weights._replace(dropout=p)) for p in (0.0, 0.3))
    is_dropped = out_TD == 0
    torch.testing.assert_close(out_TD, torch.where(is_dropped, 0.0, hidden_TD / 0.7))
    assert is_dropped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    # Every activation is drawn independently, so tokens lose different numbers of them.
    share_T = is_dropped.float().mean(dim=1)
    assert share_T.min() < 0.2 < 0.4 < share_T.max() < 0.8


@pytest.mark.parametrize("run", [loop, grouped])
def test_dropout_is_off_in_evaluation(run):
    experts = some_experts(run, expert_dropout=0.9)
    x_TD, routing = torch.randn(33, D), routing_of(CASES["top-2 of 33"])
    assert not torch.equal(experts(x_TD, routing), experts(x_TD, routing))
    experts.eval()
    torch.testing.assert_close(experts(x_TD, routing), some_experts(run).train()(x_TD, routing))


@pytest.mark.parametrize("run", [loop, grouped])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_under_autocast_the_products_are_bfloat16_and_the_gradients_float32(activation, run):
    experts = some_experts(run, activation=activation)
    exact = some_experts(loop, activation=activation)
    x_TD, routing = torch.randn(33, D), routing_of(CASES["top-2 of 33"])
    expected_TD = exact(x_TD, routing)
    with torch.autocast("cpu", torch.bfloat16):
        out_TD = experts(x_TD, routing)
    assert out_TD.dtype == torch.bfloat16
    assert (out_TD - expected_TD).norm() < 0.02 * expected_TD.norm()
    out_TD.float().square().sum().backward()
    expected_TD.square().sum().backward()
    pairs = zip(experts.named_parameters(), exact.parameters(), strict=True)
    for (name, parameter), reference in pairs:
        assert parameter.grad is not None and reference.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - reference.grad).norm() < 0.03 * reference.grad.norm(), name


def some_experts(run: ExpertsFunction, **changes) -> Experts:
    torch.manual_seed(0)
    experts = Experts(tiny(**changes), E, F, run)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return experts


def bfloat16(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    return grouped(x_TD.bfloat16(), routing, weights.to(torch.bfloat16)).float()


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", CASES)
def test_grouped_on_the_gpu_is_loop_in_float32(case, activation):
    expert_TK = CASES[case].cuda()
    routing, weights = routing_of(expert_TK), some_weights(activation, device="cuda")
    x_TD = torch.randn(len(expert_TK), D, device="cuda", requires_grad=True)
    upstream = torch.randn_like(x_TD)
    expected = results(loop, x_TD, routing, weights, upstream)
    ours = results(bfloat16, x_TD, routing, weights, upstream)
    for values, expected_values in zip(ours, expected, strict=True):
        assert values.isfinite().all()
        assert (values - expected_values).norm() <= 2e-2 * expected_values.norm()


@pytest.mark.gpu
def test_grouped_gives_the_same_bits_each_time():
    expert_TK = distinct(5000, 3).cuda()
    routing, weights = routing_of(expert_TK), some_weights("swiglu", device="cuda")
    x_TD = torch.randn(5000, D, device="cuda", requires_grad=True)
    upstream = torch.randn_like(x_TD)
    inputs = [x_TD, routing.gate_TK, *(w for w in weights[:3] if w is not None)]
    first, second = (
        torch.autograd.grad(bfloat16(x_TD, routing, weights), inputs, upstream) for _ in range(2)
    )
    for gradient, repeated in zip(first, second, strict=True):
        assert torch.equal(gradient, repeated)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["top-2 of 33", "some slots empty"])
def test_grouped_never_waits_for_the_device(case):
    routing = routing_of(CASES[case].cuda())
    weights = some_weights("swiglu", device="cuda").to(torch.bfloat16)
    x_TD = torch.randn(
        len(CASES[case]), D, device="cuda", dtype=torch.bfloat16, requires_grad=True
    )
    grouped(x_TD, routing, weights).sum().backward()
    with waiting_is_an_error():
        grouped(x_TD, routing, weights).sum().backward()
