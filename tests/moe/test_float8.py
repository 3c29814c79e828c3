"""The experts' products in FP8, compared with products of rounded numbers and with float32."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.errors import ConfigError
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import seeded
from moebius.moe import float8 as module
from moebius.moe.experts import Experts, ExpertWeights, loop
from moebius.moe.float8 import float8, padding
from moebius.moe.router import Routing
from moebius.parallel.recompute import keep_expensive_results
from tests.model.tiny import random_tokens, tiny
from tests.moe.e4m3 import EXACT, HARD, NEAR, SAME, ByHand, D, F, assert_near, by_hand, inputs_of
from tests.moe.test_experts import ACTIVATIONS, E, results

# products


@pytest.mark.parametrize("rows_E", [[3, 0, 16, 40, 1], [0, 0, 0, 0, 5], [16, 16, 32, 16, 0]])
def test_one_product_and_its_gradients_are_those_of_the_rounded_numbers(rows_E):
    padded_E = torch.tensor(rows_E) + padding(torch.tensor(rows_E))
    end_E = padded_E.cumsum(0, dtype=torch.int32)
    x_RD = torch.randn(int(end_E[-1]) + 16, D, requires_grad=True)
    w_EDF = torch.randn(E, D, F, requires_grad=True)
    upstream = torch.randn(len(x_RD), F)
    out_RF = module._Product.apply(x_RD, w_EDF, end_E)
    x_grad, w_grad = torch.autograd.grad(out_RF, [x_RD, w_EDF], upstream)
    for expert, (size, end) in enumerate(zip(padded_E.tolist(), end_E.tolist(), strict=True)):
        rows = slice(end - size, end)
        x, w = x_RD[rows].detach().requires_grad_(), w_EDF[expert].detach().requires_grad_()
        expected = ByHand.apply(x.double(), w.double()) if size else x @ w
        gradient = upstream[rows].to(expected.dtype)
        expected_x, expected_w = torch.autograd.grad(expected, [x, w], gradient)
        for values, expected_values in (
            (out_RF[rows], expected),
            (x_grad[rows], expected_x),
            (w_grad[expert], expected_w),
        ):
            assert (values - expected_values).norm() <= EXACT * expected_values.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "case", ["top-2 of 33", "one token", "some slots empty", "15, 16, 17, 0 and 32 rows"]
)
def test_the_layer_is_made_of_these_products(case, activation):
    expected = results(by_hand, *inputs_of(case, activation))
    ours, exact = (results(run, *inputs_of(case, activation)) for run in (float8, loop))
    assert_near(ours, expected, SAME)
    # the gates' gradient, which `assert_near` leaves out for a single gate
    assert (ours[2] - expected[2]).norm() <= SAME * expected[2].norm()
    assert (expected[0] - exact[0]).norm() > SAME * exact[0].norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", HARD)
def test_the_layer_is_loop_up_to_rounding(case, activation):
    inputs = inputs_of(case, activation)
    assert_near(results(float8, *inputs), results(loop, *inputs), NEAR)


def test_tokens_without_an_expert_get_zero():
    x_TD, routing, weights, _ = inputs_of("dropped tokens")
    out_TD = float8(x_TD, routing, weights)
    assert torch.equal(out_TD[::3], torch.zeros(7, D))
    assert (out_TD[1::3] != 0).any(dim=1).all()


def test_gradients_too_small_for_one_scale_keep_their_precision():
    """Rows that differ by 2**40 are equally exact. One scale could not hold both, even in e5m2."""
    x_TD, routing, weights, upstream = inputs_of("16 tokens")
    upstream[::2] *= 2.0**-40
    ours, exact = (results(run, x_TD, routing, weights, upstream)[1] for run in (float8, loop))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert (ours[rows] - exact[rows]).norm() <= NEAR * exact[rows].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_dtypes_of_the_inputs(dtype):
    x_TD, routing, weights, upstream = inputs_of("top-2 of 33")
    x_TD, weights = x_TD.detach().to(dtype).requires_grad_(), weights.to(dtype)
    ours = results(float8, x_TD, routing, weights, upstream.to(dtype))
    out_TD, x_grad, gate_grad, *w_grads = ours
    assert {values.dtype for values in (out_TD, x_grad, *w_grads)} == {dtype}
    assert gate_grad.dtype == torch.float32


def test_dropout_keeps_the_mean():
    x_TD, routing, weights, _ = inputs_of("top-2 of 33")
    with torch.no_grad():
        without = loop(x_TD, routing, weights)
        dropping = weights._replace(dropout=0.3)
        draws = torch.stack([float8(x_TD, routing, dropping) for _ in range(200)])
    assert 0 < (draws.mean(dim=0) - without).norm() < NEAR * without.norm()


# training


def losses(expert_dtype: str, dtype: torch.dtype) -> list[float]:
    """Return the losses of a small model that memorizes one batch."""
    config = tiny(dim=48, router_top_k=2, activation="swiglu")
    model = seeded(0, config, choose_backends(dtype=dtype, expert_dtype=expert_dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens_BL, history = random_tokens(config, batch=4, seq_len=16), []
    for _ in range(25):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(tokens_BL, end_of_text=None).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append(loss.item())
    return history


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_learns_as_in_float32(dtype):
    ours, exact = losses("float8", dtype), losses("auto", torch.float32)
    assert exact[-1] < 0.6 * exact[0]
    assert ours != exact
    assert ours == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_compiles_without_a_break(activation):
    experts = Experts(tiny(dim=D, head_dim=4, activation=activation), E, F, float8)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_TD, routing, *_ = inputs_of("some slots empty")
    inputs = [x_TD, *experts.parameters()]

    def results_of(run) -> list[Tensor]:
        out_TD = run(x_TD, routing)
        return [out_TD, *torch.autograd.grad(out_TD.square().sum(), inputs)]

    compiled = torch.compile(experts, backend="aot_eager", fullgraph=True)
    for values, expected in zip(results_of(compiled), results_of(experts), strict=True):
        assert torch.equal(values, expected)


def test_selective_checkpointing_keeps_the_products(monkeypatch):
    calls = []
    monkeypatch.setattr(
        module,
        "_dequantized_product",
        lambda *args, run=module._dequantized_product: calls.append(1) or run(*args),
    )
    x_TD, routing, weights, upstream = inputs_of("top-2 of 33")
    expected = results(float8, x_TD, routing, weights, upstream)
    plain = len(calls)

    def checkpointed(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        return checkpoint(  # pyright: ignore[reportReturnType]
            float8, x_TD, routing, weights, use_reentrant=False, context_fn=keep_expensive_results
        )

    ours = results(checkpointed, x_TD, routing, weights, upstream)
    for values, expected_values in zip(ours, expected, strict=True):
        assert torch.equal(values, expected_values)
    assert len(calls) == 2 * plain == 12


# configuration


def test_a_width_that_16_does_not_divide_is_refused():
    train = TrainConfig(expert_dtype="float8")
    with pytest.raises(
        ConfigError,
        match=r"^train\.expert_dtype='float8': .*model\.dim .* multiple of 16, not 24$",
    ):
        Config(model=tiny(), train=train)
    Config(model=tiny(dim=48), train=train)
    Config(model=tiny(num_experts=0, base_expansion=1.0), train=train)  # there are no experts


@pytest.mark.parametrize(
    ("device", "capability", "asked", "reason"),
    [
        ("cpu", (9, 0), "auto", "float8 (emulated, and slow: its products need a Hopper GPU)"),
        ("cuda", (8, 0), "auto", "float8 (emulated, and slow: its products need a Hopper GPU)"),
        ("cuda", (9, 0), "auto", "float8 (train.expert_dtype; weight gradients in bfloat16)"),
        (
            "cuda",
            (9, 0),
            "triton",
            "float8 (train.expert_dtype; weight gradients in bfloat16; triton was asked for)",
        ),
    ],
)
def test_the_choice_is_announced(monkeypatch, device, capability, asked, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backends = choose_backends(
        ParallelConfig(expert_backend=asked), device, torch.bfloat16, expert_dtype="float8"
    )
    assert backends.experts == "float8" and backends.reasons[0] == f"expert backend: {reason}"
