"""Measuring the rates of matrix products and copies."""

import time

import pytest
import torch

from moebius.hardware.rates import copy_ceiling, matmul_ceiling

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rate_of_products_is_measured_in_about_the_time_that_it_may_take(dtype):
    start = time.perf_counter()
    rate = matmul_ceiling(CPU, dtype, seconds=0.05)
    assert 1e7 < rate < 1e15
    assert time.perf_counter() - start < 20


def test_a_rate_of_copies_is_measured():
    assert 1e7 < copy_ceiling(CPU, seconds=0.05) < 1e14


def test_torchs_global_random_state_is_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    matmul_ceiling(CPU, torch.float32, seconds=0.01)
    assert torch.equal(before, torch.get_rng_state())
