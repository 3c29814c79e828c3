"""Up and gate with SwiGLU: each way of running them against the plain one, on a GPU."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is for Linux")

from moebius.kernels import forward, tune
from moebius.kernels.activation import Between
from moebius.kernels.order import sort_by_expert
from moebius.kernels.rows import gather
from moebius.kernels.tiles import Tile


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("T", "K", "E", "D", "F", "share_without_expert"),
    [
        (33, 1, 5, 24, 40, 0.0),
        (1, 1, 5, 64, 64, 0.0),
        (777, 2, 5, 136, 200, 0.3),
        (50, 1, 5, 896, 3136, 0.99),
        (40, 1, 5, 24, 64, 1.0),
        (4000, 1, 8, 896, 3136, 0.1),  # several tiles a program: both groups take turns
        (4000, 8, 64, 2048, 1024, 0.0),
    ],
)
@pytest.mark.parametrize("tile", tune.CANDIDATES["swiglu"])
def test_every_way_makes_the_same(tile, T, K, E, D, F, share_without_expert):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU")
    torch.manual_seed(0)
    expert_TK = torch.rand(T, E, device="cuda").argsort(dim=1)[:, :K]
    expert_TK = torch.where(torch.rand(T, K, device="cuda") < share_without_expert, E, expert_TK)
    order = sort_by_expert(expert_TK, E)
    rows = int(order.start[E])
    x_RD = gather(torch.randn(T, D, device="cuda").bfloat16(), order)
    w_gate_EDF, w_up_EDF = (torch.randn(2, E, D, F, device="cuda") / D**0.5).bfloat16()
    between = Between("swiglu", 0.0, order.start)
    expected = forward.up(x_RD, w_gate_EDF, w_up_EDF, order, between, Tile(64, 64, 32, 4, 2))
    for _ in range(3):
        found = forward.up(x_RD, w_gate_EDF, w_up_EDF, order, between, tile)
        for ours, theirs in zip(found, expected, strict=True):
            ours_R, theirs_R = ours[..., :rows, :].float(), theirs[..., :rows, :].float()
            assert ours_R.isfinite().all()
            assert (ours_R - theirs_R).norm() <= 1e-4 * theirs_R.norm()
