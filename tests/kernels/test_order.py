"""The counting sort, compared with torch's stable sort, and the table of tiles."""

import pytest
import torch

# This import comes first, because it skips the whole file where there is no triton.
from tests.kernels.interpreter import DEVICES

from moebius.kernels.order import TILE_ROWS, sort_by_expert  # isort: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("T", "K", "E"),
    [
        *[(1, 1, 1), (33, 2, 5), (1024, 1, 3), (2500, 1, 7), (700, 3, 70)],
        pytest.param(1, 1, 1100, marks=pytest.mark.heavy),
    ],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_it_is_a_stable_sort(T, K, E, dtype, device):
    generator = torch.Generator().manual_seed(0)
    expert_TK = torch.randint(E + 1, (T, K), generator=generator).to(device, dtype)
    order = sort_by_expert(expert_TK, E)
    sorted_R, assignment_R = expert_TK.flatten().sort(stable=True)
    assert torch.equal(order.assignment_R.long(), assignment_R)
    assignment_back_R = order.assignment_R[order.row_TK.flatten()].long()
    assert torch.equal(assignment_back_R, torch.arange(T * K, device=device))
    start = torch.searchsorted(sorted_R, torch.arange(E + 2, device=device, dtype=dtype))
    assert torch.equal(order.start.long(), start)


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_cover_every_experts_rows_and_no_others(device):
    count = [TILE_ROWS, 0, 3 * TILE_ROWS + 1, 5, 0]
    expert_T = torch.repeat_interleave(torch.arange(5), torch.tensor(count)).to(device)
    without_expert = expert_T.new_full((40,), 5)
    tiles = sort_by_expert(torch.cat([expert_T, without_expert])[:, None], 5).tiles.tolist()
    starts = [0, TILE_ROWS, TILE_ROWS, 4 * TILE_ROWS + 1, 4 * TILE_ROWS + 6]
    expected = [
        [expert, row, starts[expert] + count[expert]]
        for expert in range(5)
        for row in range(starts[expert], starts[expert] + count[expert], TILE_ROWS)
    ]
    assert tiles[0][0] == len(expected)
    assert [tile[:3] for tile in tiles[1 : 1 + len(expected)]] == expected
