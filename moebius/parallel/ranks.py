"""Sums and means over the processes of a run.

Losses, gradients and counts are global by definition: what a step reports does not depend on the
number of processes that computed it. With one process every function returns its argument.
"""

import torch
from torch import Tensor, nn


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes. Every process gets the sum."""
    if not _has_peers():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes. Every process gets the mean."""
    return sum_over_ranks(values) / torch.distributed.get_world_size() if _has_peers() else values


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient with its mean over all processes, in place."""
    if not _has_peers():
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()


def _has_peers() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
