"""Tests of the memory and the host waits of a step on a GPU."""

import pytest
import torch

from moebius.profile.usage import usage


@pytest.mark.gpu
def test_bytes_and_waits_are_counted():
    def step() -> None:
        x = torch.ones(1 << 20, device="cuda")
        x.sum().item()
        x.max().item()

    measured = usage(step, torch.device("cuda"))
    assert measured.peak_bytes >= 4 << 20
    assert measured.host_waits == 2
