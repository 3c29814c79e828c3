"""Sums over the processes of a run."""

import torch
from torch import Tensor


def sum_over_ranks(counts_X: Tensor) -> Tensor:
    """The sum over all ranks; the tensor itself where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return counts_X
    total_X = counts_X.clone()
    torch.distributed.all_reduce(total_X)
    return total_X
