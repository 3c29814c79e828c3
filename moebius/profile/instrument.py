"""Marks put around the parts of a model, from outside: the model knows nothing of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from moebius.model import attention, experts, moe, transformer
from moebius.model.transformer import Transformer
from moebius.profile.timeline import Place, Timeline

# functions that the model calls by these names; those of a block only where it is not compiled
OF_STEPS = (
    (transformer, "total_loss", "router"),
    (torch.nn.utils, "clip_grad_norm_", "optimizer"),
)
OF_BLOCKS = (
    (attention, "rotate", "rotary"),
    (experts, "sort_by_expert", "dispatch"),
    (experts, "dispatch", "dispatch"),
    (experts, "activate", "activation"),
    (experts, "combine", "combine"),
    (moe.MoE, "_join", "combine"),
    (moe, "layer_stats", "router"),
)
# functions inside the operators that are the experts' own kernels, compiled around or not
OF_KERNELS = (("sort_by_expert", "dispatch"), ("gather", "dispatch"), ("combine", "combine"))
MODULES = {
    "query": "attention_projections",
    "key": "attention_projections",
    "value": "attention_projections",
    "output": "attention_projections",
    "query_norm": "norms",
    "key_norm": "norms",
    "attention_norm": "norms",
    "moe_norm": "norms",
    "router": "router",
    "experts": "expert_gemms",
    "base": "base_mlp",
    "mtp": "mtp",
}


@contextmanager
def marked_calls(timeline: Timeline, compiled: bool, own_kernels: bool) -> Iterator[None]:
    """Marks around the functions, for as long as the context lasts. own_kernels: the experts'."""
    with ExitStack() as stack:
        for place, name, component in OF_STEPS + (() if compiled else OF_BLOCKS):
            stack.enter_context(patch.object(place, name, timeline.around(component, getattr(place, name))))
        if own_kernels:
            from moebius.kernels import experts as kernels

            for name, component in OF_KERNELS:
                marked = timeline.part(component, "expert_gemms", getattr(kernels, name))
                stack.enter_context(patch.object(kernels, name, marked))
        yield


def instrument(model: Transformer, optimizers: list[torch.optim.Optimizer], timeline: Timeline, compiled: bool) -> None:
    """Marks around the modules, for good: after the model is laid out."""
    if compiled:
        _mark_what_stays_eager(model, timeline)
    else:
        for name, module in model.named_modules():
            if component := MODULES.get(name.rpartition(".")[2]):
                _wrap(module, "forward", component, timeline)
            if isinstance(module, attention.Attention):
                _wrap(module, "attend", "attention_core", timeline)
            if isinstance(module, transformer.Block):
                _wrap(module, "forward", "norms", timeline)  # its own: the sums into the residual stream
    _wrap(model, "embed", "embedding", timeline)
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda *_: timeline.mark(Place("optimizer")))
        optimizer.register_step_post_hook(lambda *_: timeline.mark(Place()))
    next_token = timeline.around("lm_head", model.head_loss)
    ahead = timeline.around("mtp", model.head_loss)

    def head_loss(hidden_BSD: torch.Tensor, target_BS: torch.Tensor, bias_V: torch.Tensor | None = None) -> torch.Tensor:
        return next_token(hidden_BSD, target_BS) if bias_V is None else ahead(hidden_BSD, target_BS, bias_V)

    model.head_loss = head_loss


def _mark_what_stays_eager(model: Transformer, timeline: Timeline) -> None:
    """Experts one by one take as many tokens as the router says, which the compiler leaves alone. It compiles what they call,
    marked or not, and never the marks."""
    for name, module in model.named_modules():
        if isinstance(module, experts.Experts) and module.run is experts.loop:
            component = "mtp" if name.startswith("mtp.") else "expert_gemms"
            marked: Any = torch._dynamo.disable(timeline.around(component, torch.compile(module.run)))
            module.run = marked


def _wrap(owner: nn.Module, name: str, component: str, timeline: Timeline) -> None:
    function: Any = getattr(owner, name)
    setattr(owner, name, timeline.around(component, function))
