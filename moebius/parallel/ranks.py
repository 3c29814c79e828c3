"""Sums over the processes of a run.

Each process divides its sums by counts of the whole step, so that its losses and gradients are
parts of the step's, which only have to be added up. What a step reports therefore does not depend
on the number of processes that computed it. With one process every function returns its argument.
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


def sum_gradients(model: nn.Module) -> None:
    """Replace every gradient with its sum over all processes, in place."""
    if not _has_peers():
        return
    for parameter in model.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)


def _has_peers() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
