"""A machine without any pitfall, and a configuration for the CPU."""

from dataclasses import replace
from typing import Any

import torch

from moebius.config import Config, TrainConfig
from moebius.doctor.machine import Gpu, Machine
from moebius.hardware.processor import Usage

CPU = torch.device("cpu")
CONFIG = Config(train=TrainConfig(device="cpu"))
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 79 << 30, (9, 0))
FINE = Machine(
    python="3.12",
    system="Linux",
    torch="2.11.0",
    cuda="13.0",
    driver="580",
    triton="3.6.0",
    gpus=[H100],
    processor="CPU",
    cores=16,
    quota=16.0,
    threads=16,
    usage=Usage(own=1.0, others=0.2, cores=16),
    memory=128 << 30,
    free_disk={"data.cache": 10**12, "train.out": 10**12},
    shared_memory=64 << 30,
    packages={},
)


def with_gpu(**changes: Any) -> Machine:
    """Return the fine machine with some fields of its GPU replaced."""
    return replace(FINE, gpus=[replace(H100, **changes)])
