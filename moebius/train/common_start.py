"""Keep the experts of a layer equal for the first part of a run (`train.common_start`).

A top-1 expert sees one token in E, behind a gate that starts near 1/E. In the first part of a run,
it learns far more slowly than the dense MLP that it replaces, and the mixture lags behind its
dense twin. Experts that start equal and share their gradients stay equal, and get the whole early
training of a dense MLP. They diverge once they no longer share gradients. Sparse upcycling does
the same with a dense model that is already trained (Komatsuzaki et al. 2022, arXiv 2212.05055).
"""

import math
from collections.abc import Iterator

import torch
from torch import nn

from moebius.config import TrainConfig


def has_equal_experts(step: int, config: TrainConfig) -> bool:
    """Return whether the experts of a layer are still equal in the update after step `step`."""
    return step < config.common_start * config.steps


@torch.no_grad()
def tie_experts(model: nn.Module) -> None:
    """Copy each layer's first expert into the others, in place."""
    for weight in _expert_weights(model):
        weight.copy_(weight[:1].clone().expand_as(weight))


@torch.no_grad()
def share_expert_gradients(model: nn.Module) -> None:
    """Give every expert of a layer the same gradient, in place.

    It is the sum of their gradients, which one MLP in their place would have had, divided by the
    square root of their number. The global gradient norm is then the same as with that MLP.
    """
    for weight in _expert_weights(model):
        if weight.grad is not None:
            shared = weight.grad.sum(dim=0, keepdim=True) / math.sqrt(weight.shape[0])
            weight.grad.copy_(shared.expand_as(weight))


def _expert_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of shape (E, rows, columns) that hold all experts of a layer."""
    for name, parameter in model.named_parameters():
        if "experts." in name and parameter.ndim == 3:
            yield parameter
