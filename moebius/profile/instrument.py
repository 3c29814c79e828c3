"""Put marks around the parts of a model from outside, so that its code does not know of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from moebius.model import attention, transformer
from moebius.model.transformer import Transformer
from moebius.moe import experts, layer
from moebius.profile.timeline import Place, Timeline

# (where, name, component) of functions that are looked up by name whenever they are called
IN_EVERY_STEP = (
    (transformer, "total_loss", "router"),
    (torch.nn.utils, "clip_grad_norm_", "optimizer"),
)
IN_EAGER_BLOCKS = (
    (attention, "rotate", "rotary"),
    (experts, "sort_by_expert", "dispatch"),
    (experts, "dispatch", "dispatch"),
    (experts, "activate", "activation"),
    (experts, "combine", "combine"),
    (layer.MoE, "_join", "combine"),
    (layer, "layer_stats", "router"),
)
# Functions that our own expert kernels consist of, inside operators that the compiler does not
# enter.
IN_OWN_KERNELS = (
    ("sort_by_expert", "dispatch"),
    ("gather", "dispatch"),
    ("combine", "combine"),
)
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
"""Component of each module, by the name of its attribute."""


@contextmanager
def marked_calls(timeline: Timeline, compiled: bool, own_kernels: bool) -> Iterator[None]:
    """Put marks around functions while the context is active.

    compiled: whether the blocks are compiled. own_kernels: whether the experts run in Moebius's
    own Triton kernels.
    """
    with ExitStack() as stack:
        for place, name, component in IN_EVERY_STEP + (() if compiled else IN_EAGER_BLOCKS):
            marked = timeline.around(component, getattr(place, name))
            stack.enter_context(patch.object(place, name, marked))
        if own_kernels:
            from moebius.kernels import experts as kernels

            for name, component in IN_OWN_KERNELS:
                marked = timeline.part(component, "expert_gemms", getattr(kernels, name))
                stack.enter_context(patch.object(kernels, name, marked))
        yield


def instrument(
    model: Transformer, optimizers: list[torch.optim.Optimizer], timeline: Timeline, compiled: bool
) -> None:
    """Put permanent marks around the modules of a model that was laid out on the device."""
    if compiled:
        _mark_eager_experts(model, timeline)
    else:
        for name, module in model.named_modules():
            if component := MODULES.get(name.rpartition(".")[2]):
                _wrap(module, "forward", component, timeline)
            if isinstance(module, attention.Attention):
                _wrap(module, "attend", "attention_core", timeline)
            if isinstance(module, transformer.Block):
                # What remains of a block's own time are the additions to the residual stream.
                _wrap(module, "forward", "norms", timeline)
    _wrap(model, "embed", "embedding", timeline)
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda *_: timeline.mark(Place("optimizer")))
        optimizer.register_step_post_hook(lambda *_: timeline.mark(Place()))
    _mark_head(model, timeline)


def _mark_head(model: Transformer, timeline: Timeline) -> None:
    """Mark the LM head. A call with a bias on the logits belongs to multi-token prediction."""
    next_token = timeline.around("lm_head", model.head_loss)
    ahead = timeline.around("mtp", model.head_loss)

    def head_loss(
        hidden_BSD: Tensor,
        target_BS: Tensor,
        bias_V: Tensor | None = None,
        num_targets: Tensor | None = None,
    ) -> Tensor:
        marked = next_token if bias_V is None else ahead
        return marked(hidden_BSD, target_BS, bias_V, num_targets)

    model.head_loss = head_loss


def _mark_eager_experts(model: Transformer, timeline: Timeline) -> None:
    """Mark experts that stay outside of the compiled blocks.

    Their backend has shapes that depend on the routing, and the compiler does not compile such
    code. It does compile the functions that this code calls, marked or not, but never the marks.
    """
    if model.backends.expert_record.has_static_rows:
        return
    for name, module in model.named_modules():
        if isinstance(module, experts.Experts):
            component = "mtp" if name.startswith("mtp.") else "expert_gemms"
            marked = timeline.around(component, torch.compile(module.run))
            unseen: Any = torch._dynamo.disable(marked)
            module.run = unseen


def _wrap(owner: nn.Module, name: str, component: str, timeline: Timeline) -> None:
    function: Any = getattr(owner, name)
    setattr(owner, name, timeline.around(component, function))
