"""Experts in FP8: their numbers, against e4m3 written out; their products, against those of the numbers; rows of padding."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.errors import ConfigError
from moebius.model import float8 as module
from moebius.model.backends import choose_backends
from moebius.model.experts import Experts, ExpertWeights, loop, sort_by_expert
from moebius.model.float8 import aligned, float8, padding, quantise
from moebius.model.mlp import activate
from moebius.model.router import Routing
from moebius.model.transformer import seeded
from moebius.parallel import layout
from tests.model.test_experts import ACTIVATIONS, CASES, E, results, routing_of
from tests.model.tiny import random_tokens, tiny, waiting_is_an_error

D, F = 32, 48
EXACT = 2.0**-8  # a product is rounded to bfloat16
# That rounding, by 2**-10 on average, puts one number in 128 on the other side of a step of e4m3, which is 2**-3: 0.8% of
# the norm (a step over a mantissa from 1 to 2, root mean square), for up to four roundings behind a result; twice that for
# few rows.
SAME = 0.03
# A rounding to e4m3 is off by 2.6% of the value (root mean square, 2**-4 / sqrt(3) over a mantissa from 1 to 2). Between an
# input and a gradient lie at most eight of them (x, w, w, hidden, grad, w, grad, w), most sums taking two: sqrt(8) * 2.6%,
# and half as much again for the products of few rows.
NEAR = 0.11
HARD = {
    **CASES,
    "16 rows an expert": torch.arange(E).repeat(16)[:, None],
    "15, 16, 17, 0 and 32 rows": torch.repeat_interleave(torch.tensor([15, 16, 17, 0, 32]))[:, None],
}


def e4m3(x_D: Tensor) -> Tensor:
    """The row rounded to e4m3's three bits of mantissa, under the smallest power of two that keeps it within 448."""
    largest = x_D.abs().max().item()
    if largest == 0:
        return x_D
    scale = 2.0 ** math.ceil(math.log2(largest / 448))
    scaled_D = x_D.double() / scale
    step_D = 2.0 ** (scaled_D.abs().log2().floor().clamp(min=-6) - 3)
    return (scaled_D / step_D).round() * step_D * scale


def rows_in_e4m3(x: Tensor) -> Tensor:
    """Of a matrix, or of each of several."""
    return torch.stack([e4m3(row) for row in x.flatten(0, -2).double()]).view(x.shape)


class ByHand(torch.autograd.Function):
    """One expert's product in float64, of what FP8 leaves of its operands."""

    @staticmethod
    def forward(ctx, x_RD, w_DF):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x_RD, w_DF)
        return rows_in_e4m3(x_RD) @ rows_in_e4m3(w_DF.T).T

    @staticmethod
    def backward(ctx, grad_RF):  # pyright: ignore[reportIncompatibleMethodOverride]
        x_RD, w_DF = ctx.saved_tensors
        return rows_in_e4m3(grad_RF) @ rows_in_e4m3(w_DF).T, x_RD.bfloat16().double().T @ grad_RF.bfloat16().double()


def by_hand(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """`loop` with these products."""
    x_TD, gate_TK = x_TD.double(), routing.gate_TK.double()
    out_TD = 0 * x_TD
    for expert in range(E):
        token_R, slot_R = (routing.expert_TK == expert).nonzero(as_tuple=True)
        if len(token_R) == 0:
            continue
        w_gate, w_up, w_down = (None if w is None else w[expert].double() for w in weights[:3])
        up_RF = ByHand.apply(x_TD[token_R], w_up)
        gate_RF = None if w_gate is None else ByHand.apply(x_TD[token_R], w_gate)
        y_RD = ByHand.apply(activate(up_RF, gate_RF, weights.activation), w_down)
        out_TD = out_TD.index_add(0, token_R, y_RD * gate_TK[token_R, slot_R, None])
    return out_TD.float()


def some_weights(activation: str, device: str = "cpu", dropout: float = 0.0) -> ExpertWeights:
    generator = torch.Generator().manual_seed(0)
    shapes = [(E, D, F)] * 2 + [(E, F, D)]
    gate, up, down = (
        (torch.randn(shape, generator=generator) / shape[1] ** 0.5).to(device).requires_grad_() for shape in shapes
    )
    return ExpertWeights(gate if activation == "swiglu" else None, up, down, activation, dropout)  # pyright: ignore[reportArgumentType]


def inputs_of(case: str, activation: str = "swiglu", device: str = "cpu") -> tuple[Tensor, Routing, ExpertWeights, Tensor]:
    """x, routing, weights, and a gradient of the output."""
    expert_TK = HARD[case].to(device)
    x_TD = torch.randn(len(expert_TK), D, generator=torch.Generator().manual_seed(5)).to(device).requires_grad_()
    upstream = torch.randn(len(expert_TK), D, generator=torch.Generator().manual_seed(6)).to(device)
    return x_TD, routing_of(expert_TK), some_weights(activation, device), upstream


def assert_near(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """By the norm of each. A single gate's gradient has no size to go by: it is one sum, whose terms may cancel."""
    for mine, right in zip(ours, theirs, strict=True):
        assert mine.isfinite().all()
        assert right.numel() == 1 or (mine - right).norm() <= tolerance * right.norm()


# numbers


def test_powers_of_two_are_kept_exactly():
    """Over all of what a row can hold: 448 down to 2**-9, times any scale."""
    for scale in (2.0**-60, 1.0, 2.0**60):
        x = scale * 2.0 ** torch.arange(-9.0, 9.0)
        values, factor = quantise(torch.stack([x, -x, x.flip(0)]))
        assert values.dtype == torch.float8_e4m3fn and factor.dtype == torch.float32
        assert torch.equal(values.float() * factor, torch.stack([x, -x, x.flip(0)]))


def test_the_scale_is_the_smallest_power_of_two_for_the_rows_maximum():
    largest = torch.tensor([448.0, 448.1, 1.75, 1.76, 0.0, 3e38, 1e-44])
    _, scale = quantise(torch.stack([torch.zeros(7), -largest], dim=1))
    assert scale[:4, 0].tolist() == [1.0, 2.0, 2.0**-8, 2.0**-7]
    assert scale.isfinite().all() and (scale > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_is_what_e4m3_makes_of_it(dtype):
    x = (torch.randn(3, 20, D) * 10.0 ** torch.arange(-10.0, 10.0)[:, None]).to(dtype)
    values, scale = quantise(x)
    assert scale.shape == (3, 20, 1)
    assert torch.equal((values.float() * scale).double(), rows_in_e4m3(x))


def test_zeros_stay_zeros_and_no_infinity_is_made():
    x = torch.stack([torch.zeros(D), torch.full((D,), 3e38), torch.full((D,), 1e-45), torch.linspace(-1.0, 1.0, D) * 3e38])
    values, scale = quantise(x)
    assert torch.equal(values[0].float(), torch.zeros(D))
    assert values.float().isfinite().all() and (values.float() * scale).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(value):
    """Else the step that has it would not be skipped. Other rows do not see it."""
    x_TD, routing, weights, _ = inputs_of("top-2 of 33")
    with torch.no_grad():
        x_TD[7, 3] = value
        out_TD = float8(x_TD, routing, weights)
    assert not out_TD[7].isfinite().all()
    assert torch.cat([out_TD[:7], out_TD[8:]]).isfinite().all()


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
        expected_x, expected_w = torch.autograd.grad(expected, [x, w], upstream[rows].to(expected.dtype))
        for ours, theirs in ((out_RF[rows], expected), (x_grad[rows], expected_x), (w_grad[expert], expected_w)):
            assert (ours - theirs).norm() <= EXACT * theirs.norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", ["top-2 of 33", "one token", "some slots empty", "15, 16, 17, 0 and 32 rows"])
def test_the_layer_is_made_of_these_products(case, activation):
    expected = results(by_hand, *inputs_of(case, activation))
    ours, exact = (results(run, *inputs_of(case, activation)) for run in (float8, loop))
    assert_near(ours, expected, SAME)
    assert (ours[2] - expected[2]).norm() <= SAME * expected[2].norm()
    assert (expected[0] - exact[0]).norm() > SAME * exact[0].norm()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("case", HARD)
def test_the_layer_is_loop_but_for_rounding(case, activation):
    inputs = inputs_of(case, activation)
    assert_near(results(float8, *inputs), results(loop, *inputs), NEAR)


def test_tokens_without_an_expert_get_zero():
    x_TD, routing, weights, _ = inputs_of("dropped tokens")
    out_TD = float8(x_TD, routing, weights)
    assert torch.equal(out_TD[::3], torch.zeros(7, D))
    assert (out_TD[1::3] != 0).any(dim=1).all()


def test_gradients_too_small_for_one_scale_keep_their_precision():
    """Rows 2**40 apart, as no e5m2 could hold under one scale, are each as exact as the other."""
    x_TD, routing, weights, upstream = inputs_of("16 tokens")
    upstream[::2] *= 2.0**-40
    ours, theirs = (results(run, x_TD, routing, weights, upstream)[1] for run in (float8, loop))
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        assert (ours[rows] - theirs[rows]).norm() <= NEAR * theirs[rows].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_out_has_the_inputs_types(dtype):
    x_TD, routing, weights, upstream = inputs_of("top-2 of 33")
    x_TD, weights = x_TD.detach().to(dtype).requires_grad_(), weights.to(dtype)
    out_TD, x_grad, gate_grad, *w_grads = results(float8, x_TD, routing, weights, upstream.to(dtype))
    assert {each.dtype for each in (out_TD, x_grad, *w_grads)} == {dtype} and gate_grad.dtype == torch.float32


def test_dropout_keeps_the_mean():
    x_TD, routing, weights, _ = inputs_of("top-2 of 33")
    with torch.no_grad():
        without = loop(x_TD, routing, weights)
        mean = torch.stack([float8(x_TD, routing, weights._replace(dropout=0.3)) for _ in range(200)]).mean(dim=0)
    assert 0 < (mean - without).norm() < NEAR * without.norm()


# rows of padding


def test_rows_of_padding():
    assert padding(torch.tensor([0, 1, 15, 16, 17, 32])).tolist() == [0, 15, 1, 0, 15, 0]


@pytest.mark.parametrize("case", HARD)
def test_each_experts_rows_start_at_a_multiple_of_16(case):
    expert_TK = HARD[case]
    order = aligned(sort_by_expert(expert_TK, E), expert_TK)
    count_E = expert_TK.flatten().bincount(minlength=E + 1)[:E]
    size_E = order.end_E.diff(prepend=order.end_E.new_zeros(1))
    assert order.end_E.dtype == torch.int32 and torch.equal(size_E, count_E + padding(count_E))
    rows = len(order.assignment_R)
    assert rows % 16 == 0 and expert_TK.numel() + 15 * E <= rows < expert_TK.numel() + 15 * E + 16
    assert order.row_TK.unique().numel() == expert_TK.numel() and order.row_TK.max() < rows
    assert torch.equal(order.assignment_R[order.row_TK], torch.arange(expert_TK.numel()).view(expert_TK.shape))
    expert_R = torch.searchsorted(order.end_E, order.row_TK.int(), right=True)
    assert torch.equal(expert_R, expert_TK)
    assert order.taken_R1.sum() == count_E.sum() and torch.equal(order.taken_R1[order.row_TK, 0], expert_TK < E)


# training


def losses(expert_dtype: str, dtype: torch.dtype) -> list[float]:
    """Of a small model that learns one batch by heart."""
    config = tiny(dim=48, router_top_k=2, activation="swiglu")
    model = seeded(0, config, choose_backends(dtype=dtype, expert_dtype=expert_dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens_BL, found = random_tokens(config, batch=4, seq_len=16), []
    for _ in range(25):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model.loss(tokens_BL, end_of_text=None).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_learns_as_in_float32(dtype):
    ours, exact = losses("float8", dtype), losses("auto", torch.float32)
    assert exact[-1] < 0.6 * exact[0]
    assert ours != exact
    assert ours == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiles_without_a_break(activation):
    experts = Experts(tiny(dim=D, head_dim=4, activation=activation), E, F, float8)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x_TD, routing, *_ = inputs_of("some slots empty")
    found = []
    for run in (experts, torch.compile(experts, backend="aot_eager", fullgraph=True)):
        out_TD = run(x_TD, routing)
        found.append([out_TD, *torch.autograd.grad(out_TD.square().sum(), [x_TD, *experts.parameters()])])
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)


def test_selective_checkpointing_keeps_the_products(monkeypatch):
    calls = []
    monkeypatch.setattr(
        module, "_dequantised_product", lambda *args, run=module._dequantised_product: calls.append(1) or run(*args)
    )
    x_TD, routing, weights, upstream = inputs_of("top-2 of 33")
    expected = results(float8, x_TD, routing, weights, upstream)
    plain = len(calls)

    def kept(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        contexts = lambda: create_selective_checkpoint_contexts(layout._policy)  # noqa: E731
        return checkpoint(float8, x_TD, routing, weights, use_reentrant=False, context_fn=contexts)  # pyright: ignore[reportReturnType]

    for ours, theirs in zip(results(kept, x_TD, routing, weights, upstream), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert len(calls) == 2 * plain == 12


# configuration


def test_a_width_that_16_does_not_divide_is_refused():
    train = TrainConfig(expert_dtype="float8")
    with pytest.raises(ConfigError, match=r"^train\.expert_dtype='float8': .*model\.dim \(24\) a multiple of 16$"):
        Config(model=tiny(), train=train)
    Config(model=tiny(dim=48), train=train)
    Config(model=tiny(num_experts=0, base_expansion=1.0), train=train)  # has no experts


@pytest.mark.parametrize(
    ("device", "capability", "asked", "reason"),
    [
        ("cpu", (9, 0), "auto", "float8 (emulated, and slow: its products need a Hopper GPU)"),
        ("cuda", (8, 0), "auto", "float8 (emulated, and slow: its products need a Hopper GPU)"),
        ("cuda", (9, 0), "auto", "float8 (train.expert_dtype; weight gradients in bfloat16)"),
        ("cuda", (9, 0), "triton", "float8 (train.expert_dtype; weight gradients in bfloat16; triton was asked for)"),
    ],
)
def test_what_is_chosen_is_said(monkeypatch, device, capability, asked, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    backends = choose_backends(ParallelConfig(expert_backend=asked), device, torch.bfloat16, expert_dtype="float8")
    assert backends.run_experts is float8 and backends.reasons[0] == f"experts: {reason}"


# the GPU's own products


def on_a_gpu(run, inputs) -> list[Tensor]:
    """In bfloat16, as a run has them."""
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
    real = on_a_gpu(float8, inputs)
    monkeypatch.setattr(module, "is_emulated", lambda device: True)
    assert_near(real, on_a_gpu(float8, inputs), SAME)
    monkeypatch.undo()
    assert_near(real, results(loop, *inputs), NEAR)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4096, 896, 2688, 4), (1000, 64, 192, 3), (300, 512, 512, 64)])
def test_one_product_of_the_gpu_at_real_sizes(hopper, shape):
    T, dim, width, count = shape
    expert_TK = torch.randint(count + 1, (T, 2), device="cuda")
    order = aligned(sort_by_expert(expert_TK, count), expert_TK)
    x, x_scale = quantise(torch.randn(len(order.assignment_R), dim, device="cuda", dtype=torch.bfloat16))
    w, w_scale = quantise(torch.randn(count, width, dim, device="cuda", dtype=torch.bfloat16))
    arguments = (x, w, x_scale.squeeze(-1), w_scale.squeeze(-1), order.end_E)
    end = int(order.end_E[-1])
    ours, theirs = (run(*arguments)[:end].float() for run in (module._product, module._dequantised_product))
    assert (ours - theirs).norm() <= EXACT * theirs.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_compiled_on_the_gpu_it_is_the_same(hopper, activation):
    import torch._inductor.config as inductor

    inputs = inputs_of("some slots empty", activation, "cuda")
    compiled = torch.compile(float8, fullgraph=True)
    with inductor.patch(emulate_precision_casts=True):  # rounds where eager code does
        assert_near(on_a_gpu(compiled, inputs), on_a_gpu(float8, inputs), SAME)


@pytest.mark.gpu
def test_it_never_waits_for_the_device(hopper):
    x_TD, routing, weights, _ = inputs_of("some slots empty", device="cuda")
    x_TD, weights = x_TD.detach().bfloat16().requires_grad_(), weights.to(torch.bfloat16)
    float8(x_TD, routing, weights).sum().backward()
    with waiting_is_an_error():
        float8(x_TD, routing, weights).sum().backward()
