"""Products of SwiGLU experts on a GPU: every candidate tile, compared with a small plain tile."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is for Linux")

from moebius.kernels import backward, forward, tune
from moebius.kernels.activation import Between
from moebius.kernels.order import Order, sort_by_expert
from moebius.kernels.rows import gather
from moebius.kernels.tiles import Tile
from moebius.kernels.weight_gradient import weight_gradients

SIZES = [
    (33, 1, 5, 24, 40, 0.0),
    (1, 1, 5, 64, 128, 0.0),
    (777, 2, 5, 136, 200, 0.3),
    (50, 1, 5, 896, 3136, 0.99),
    (40, 1, 5, 24, 64, 1.0),
    # Every program computes several tiles, and begins the next before the last epilogue is done.
    (4000, 1, 8, 896, 3136, 0.1),
    (4000, 8, 64, 2048, 1024, 0.0),
    (4000, 4, 32, 896, 192, 0.1),
    (3000, 2, 5, 520, 384, 0.0),
]
PLAIN = Tile(64, 64, 32, 4, 2)
# The input and the results of an epilogue are both rounded to bfloat16.
ROUNDED = 5e-3


class Case(NamedTuple):
    """The routing of a test, and what its experts compute between their products."""

    order: Order

    rows: int
    """Number of rows that have an expert."""

    gate_TK: Tensor
    """The router's gates."""

    between: Between


@pytest.fixture(autouse=True)
def a_hopper_gpu_whose_memory_is_not_a_number() -> Iterator[None]:
    """Fill new memory with NaN, so that values that no kernel has written are noticed."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "E", "D", "F", "share_without_expert"), SIZES)
@pytest.mark.parametrize("tile", tune.CANDIDATES["swiglu of slots"])
def test_up(tile, T, K, E, D, F, share_without_expert):
    case = make_case(T, K, E, share_without_expert)
    x_TD = torch.randn(T, D, device="cuda").bfloat16()
    x_RD = gather(x_TD, case.order)
    w_gate_EDF, w_up_EDF = (torch.randn(2, E, D, F, device="cuda") / D**0.5).bfloat16()

    def run(tile: Tile) -> tuple[Tensor, Tensor]:
        x = x_TD if tile.gathers else x_RD
        return forward.up(x, w_gate_EDF, w_up_EDF, case.order, case.between, tile)

    expected_pre, expected_hidden = run(PLAIN)
    for _ in range(3):
        pre, hidden = run(tile)
        compare(pre[:, : case.rows], expected_pre[:, : case.rows], 1e-4)
        compare(hidden[: case.rows], expected_hidden[: case.rows], ROUNDED)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "E", "D", "F", "share_without_expert"), SIZES)
@pytest.mark.parametrize("tile", tune.CANDIDATES["swiglu_backward of slots"])
def test_down_backward(tile, T, K, E, D, F, share_without_expert):
    case = make_case(T, K, E, share_without_expert)
    grad_TD = torch.randn(T, D, device="cuda").bfloat16()
    grad_RD = gather(grad_TD, case.order)
    w_down_EFD = (torch.randn(E, F, D, device="cuda") / F**0.5).bfloat16()
    pre_PRF = torch.randn(2, T * K, F, device="cuda").bfloat16()

    def run(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        grad = grad_TD if tile.gathers else grad_RD
        return backward.down_backward(
            grad, w_down_EFD, pre_PRF, case.gate_TK, case.order, case.between, tile
        )

    expected_pre_grad, expected_hidden, expected_gate_grad = run(PLAIN)
    for _ in range(3):
        pre_grad, hidden, gate_grad = run(tile)
        compare(pre_grad[:, : case.rows], expected_pre_grad[:, : case.rows], ROUNDED)
        compare(hidden[: case.rows], expected_hidden[: case.rows], 1e-4)
        compare(gate_grad, expected_gate_grad, ROUNDED)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "E", "D", "F", "share_without_expert"), SIZES)
@pytest.mark.parametrize("tile", tune.CANDIDATES["down of slots"])
def test_down_and_up_backward_of_slots(tile, T, K, E, D, F, share_without_expert):
    if K == 1:
        pytest.skip("tokens with one slot need no sum over rows")
    case = make_case(T, K, E, share_without_expert)
    w_gate_EDF, w_up_EDF = (torch.randn(2, E, D, F, device="cuda") / F**0.5).bfloat16()
    w_down_EFD = (torch.randn(E, F, D, device="cuda") / F**0.5).bfloat16()
    rows_PRF = torch.randn(2, T * K, F, device="cuda").bfloat16()

    def run(tile: Tile) -> list[Tensor]:
        return [
            forward.down(rows_PRF[0], w_down_EFD, case.gate_TK, case.order, tile),
            backward.up_backward(rows_PRF, w_gate_EDF, w_up_EDF, case.order, tile),
            backward.up_backward(rows_PRF[:1], None, w_up_EDF, case.order, tile),
        ]

    expected = run(PLAIN)
    for _ in range(3):
        for actual_RD, expected_RD in zip(run(tile), expected, strict=True):
            compare(actual_RD[: case.rows], expected_RD[: case.rows], ROUNDED)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "E", "D", "F", "share_without_expert"), SIZES)
@pytest.mark.parametrize("tile", tune.CANDIDATES["swiglu_weights of slots"])
def test_weight_gradients(tile, T, K, E, D, F, share_without_expert):
    case = make_case(T, K, E, share_without_expert)
    x_TD, grad_TD = torch.randn(2, T, D, device="cuda").bfloat16()
    x_RD, grad_RD = gather(x_TD, case.order), gather(grad_TD, case.order)
    pre_grad_PRF = torch.randn(2, T * K, F, device="cuda").bfloat16()
    hidden_RF = torch.randn(T * K, F, device="cuda").bfloat16()

    def run(tile: Tile) -> tuple[Tensor | None, ...]:
        x, grad = (x_TD, grad_TD) if tile.gathers else (x_RD, grad_RD)
        return weight_gradients(x, pre_grad_PRF, hidden_RF, grad, case.order, E, tile)

    expected = run(PLAIN)
    for _ in range(3):
        for actual_EDF, expected_EDF in zip(run(tile), expected, strict=True):
            assert actual_EDF is not None and expected_EDF is not None
            compare(actual_EDF, expected_EDF, ROUNDED)


def make_case(T: int, K: int, E: int, share_without_expert: float) -> Case:
    """Return a random routing, in which about this share of the assignments has no expert."""
    torch.manual_seed(0)
    expert_TK = torch.rand(T, E, device="cuda").argsort(dim=1)[:, :K]
    expert_TK = torch.where(torch.rand(T, K, device="cuda") < share_without_expert, E, expert_TK)
    order = sort_by_expert(expert_TK, E)
    gate_TK = torch.rand(T, K, device="cuda")
    return Case(order, int(order.start[E]), gate_TK, Between("swiglu", 0.0, order.start))


def compare(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert that the norm of the difference is at most `tolerance` times that of `expected`."""
    assert actual.isfinite().all()
    assert (actual.float() - expected.float()).norm() <= tolerance * expected.float().norm()
