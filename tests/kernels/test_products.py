"""The products around SwiGLU: each way of running them against the plain one, on a GPU."""

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

SIZES = [
    (33, 1, 5, 24, 40, 0.0),
    (1, 1, 5, 64, 64, 0.0),
    (777, 2, 5, 136, 200, 0.3),
    (50, 1, 5, 896, 3136, 0.99),
    (40, 1, 5, 24, 64, 1.0),
    (4000, 1, 8, 896, 3136, 0.1),  # several tiles a program: each begins before its epilogue is done with the one before
    (4000, 8, 64, 2048, 1024, 0.0),
]
ROUNDED = 5e-3  # two roundings to bfloat16: of what an epilogue is given, and of what it makes


class Case(NamedTuple):
    order: Order
    rows: int
    gate_TK: Tensor
    between: Between


@pytest.fixture(autouse=True)
def a_hopper_gpu_whose_memory_is_not_a_number() -> Iterator[None]:
    """What no kernel has written shows."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "E", "D", "F", "share_without_expert"), SIZES)
@pytest.mark.parametrize("tile", tune.CANDIDATES["swiglu"])
def test_up(tile, T, K, E, D, F, share_without_expert):
    case = make(T, K, E, share_without_expert)
    x_RD = gather(torch.randn(T, D, device="cuda").bfloat16(), case.order)
    w_gate_EDF, w_up_EDF = (torch.randn(2, E, D, F, device="cuda") / D**0.5).bfloat16()
    pre, hidden = forward.up(x_RD, w_gate_EDF, w_up_EDF, case.order, case.between, Tile(64, 64, 32, 4, 2))
    for _ in range(3):
        our_pre, our_hidden = forward.up(x_RD, w_gate_EDF, w_up_EDF, case.order, case.between, tile)
        compare(our_pre[:, : case.rows], pre[:, : case.rows], 1e-4)
        compare(our_hidden[: case.rows], hidden[: case.rows], ROUNDED)


@pytest.mark.gpu
@pytest.mark.parametrize(("T", "K", "E", "D", "F", "share_without_expert"), SIZES)
@pytest.mark.parametrize("tile", tune.CANDIDATES["swiglu_backward"])
def test_down_backward(tile, T, K, E, D, F, share_without_expert):
    case = make(T, K, E, share_without_expert)
    grad_RD = gather(torch.randn(T, D, device="cuda").bfloat16(), case.order)
    w_down_EFD = (torch.randn(E, F, D, device="cuda") / F**0.5).bfloat16()
    pre_PRF = torch.randn(2, T * K, F, device="cuda").bfloat16()

    def run(tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        return backward.down_backward(grad_RD, w_down_EFD, pre_PRF, case.gate_TK, case.order, case.between, tile)

    pre_grad, hidden, gate_grad = run(Tile(64, 64, 32, 4, 2))
    for _ in range(3):
        our_pre_grad, our_hidden, our_gate_grad = run(tile)
        compare(our_pre_grad[:, : case.rows], pre_grad[:, : case.rows], ROUNDED)
        compare(our_hidden[: case.rows], hidden[: case.rows], 1e-4)
        compare(our_gate_grad, gate_grad, ROUNDED)


def make(T: int, K: int, E: int, share_without_expert: float) -> Case:
    torch.manual_seed(0)
    expert_TK = torch.rand(T, E, device="cuda").argsort(dim=1)[:, :K]
    expert_TK = torch.where(torch.rand(T, K, device="cuda") < share_without_expert, E, expert_TK)
    order = sort_by_expert(expert_TK, E)
    return Case(order, int(order.start[E]), torch.rand(T, K, device="cuda"), Between("swiglu", 0.0, order.start))


def compare(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.isfinite().all()
    assert (ours.float() - theirs.float()).norm() <= tolerance * theirs.float().norm()
