"""A common start for a layer's experts.

A top-1 expert sees one token in E, behind a gate that starts near 1/E: in the first part of a run it learns E times slower
than the dense MLP it stands for, and the mixture lags its dense twin. Experts that start equal and are updated together
have the dense MLP's whole early training each, and part when the router has something to choose between. It is sparse
upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055) without a dense run before.
"""

from collections.abc import Iterator

import torch
from torch import nn

from moebius.model.experts import Experts


@torch.no_grad()
def tie_experts(model: nn.Module) -> None:
    """Copy each layer's first expert into the others."""
    for weight in _expert_weights(model):
        weight.copy_(weight[:1].expand_as(weight))


@torch.no_grad()
def average_expert_gradients(model: nn.Module) -> None:
    """Give every expert the sum of its layer's gradients, which is what one dense MLP in their place would have got."""
    for weight in _expert_weights(model):
        if weight.grad is not None:
            weight.grad.copy_(weight.grad.sum(dim=0, keepdim=True).expand_as(weight))


def _expert_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, Experts):
            yield from module.parameters()
