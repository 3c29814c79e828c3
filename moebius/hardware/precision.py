"""The number format of a run's matrix products."""

from contextlib import AbstractContextManager

import torch

from moebius.config import TrainConfig


def matmul_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: on `auto`, bfloat16 on a GPU and float32 elsewhere.

    Most CPUs emulate bfloat16, slowly.
    """
    is_automatic = config.dtype == "auto" and device.type == "cuda"
    return torch.bfloat16 if config.dtype == "bfloat16" or is_automatic else torch.float32


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products run in the run's dtype."""
    is_enabled = matmul_dtype(config, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=is_enabled)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Return x in float32 or, if its dtype is wider, unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dtype_name(dtype: torch.dtype) -> str:
    """Return "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
