"""The measured matrix-product rate."""

import time

import pytest
import torch

from moebius.observe.ceiling import matmul_ceiling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_ceiling_is_a_rate_and_takes_the_time_it_is_given(dtype):
    start = time.perf_counter()
    rate = matmul_ceiling(torch.device("cpu"), dtype, seconds=0.05)
    assert 1e7 < rate < 1e15
    assert time.perf_counter() - start < 20


def test_the_runs_random_numbers_do_not_move():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    matmul_ceiling(torch.device("cpu"), torch.float32, seconds=0.01)
    assert torch.equal(before, torch.get_rng_state())
