"""The expert backend that is estimated for a device, compared with the choice on that device."""

import pytest
import torch

from moebius.config import Config, ModelConfig, ParallelConfig, TrainConfig
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.cost.device import Device, expert_backend_on
from moebius.hardware.backends import backends_for


def device(is_hopper: bool) -> Device:
    return Device("a GPU", 1e15, 3e12, 80e9, 4e11, 4e10, "made up", is_hopper)


@pytest.mark.parametrize(("expert_dtype", "dim"), [("auto", 896), ("auto", 900), ("float8", 896)])
@pytest.mark.parametrize("asked", ["auto", "loop", "grouped", "triton"])
@pytest.mark.parametrize("is_hopper", [True, False])
def test_the_backend_is_the_one_that_a_run_on_the_device_chooses(
    monkeypatch, is_hopper, dim, asked, expert_dtype
):
    config = Config(
        model=ModelConfig(dim=dim, num_heads=4, num_kv_heads=2, head_dim=64),
        train=TrainConfig(expert_dtype=expert_dtype),
        parallel=ParallelConfig(expert_backend=asked),
    )
    capability = (9, 0) if is_hopper else (8, 0)
    monkeypatch.setattr("moebius.hardware.backends.HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    name = expert_backend_on(config, device(is_hopper))
    assert name in EXPERT_BACKENDS
    assert name == backends_for(config, torch.device("cuda")).experts
