"""The dtype of matrix products."""

import pytest
import torch

from moebius.config import TrainConfig
from moebius.hardware.precision import autocast, dtype_name, matmul_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        ("auto", CPU, torch.float32),
        ("auto", GPU, torch.bfloat16),
        ("bfloat16", CPU, torch.bfloat16),
        ("bfloat16", GPU, torch.bfloat16),
        ("float32", CPU, torch.float32),
        ("float32", GPU, torch.float32),
    ],
)
def test_the_dtype_of_products(asked, device, expected):
    assert matmul_dtype(TrainConfig(dtype=asked), device) == expected


@pytest.mark.parametrize("asked", ["auto", "bfloat16", "float32"])
def test_products_run_in_that_dtype(asked):
    config = TrainConfig(dtype=asked)
    with autocast(config, CPU):
        result = torch.ones(2, 3) @ torch.ones(3, 5)
    assert result.dtype == matmul_dtype(config, CPU)


def test_the_name_of_a_dtype():
    assert [dtype_name(dtype) for dtype in (torch.bfloat16, torch.float32)] == [
        "bfloat16",
        "float32",
    ]
