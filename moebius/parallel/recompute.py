"""Activation checkpointing: what the backward pass computes again instead of keeping it.

"full" keeps only the input of every block. "selective" also keeps the results that are expensive
to compute and small to keep: those of matrix products and attention.
"""

from itertools import chain

from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from moebius.config.attention import ATTENTION
from moebius.config.expert_backends import EXPERT_BACKENDS
from moebius.model.transformer import Transformer

MATRIX_PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm")
ROUTING = ("moebius.router_logits", "moebius.choose_experts", "moebius.routing_sums")
KEPT_OPERATORS = frozenset(MATRIX_PRODUCTS + ROUTING).union(
    *(record.kept_operators for record in chain(EXPERT_BACKENDS.values(), ATTENTION.values()))
)
"""Names of the operators whose results selective checkpointing keeps."""


def recompute_in_backward(model: Transformer, checkpointing: str) -> None:
    """Make every block keep less for its backward pass, in place.

    checkpointing: "none", "selective" or "full", as `parallel.activation_checkpointing`. Neither
    results nor the names of parameters change.
    """
    if checkpointing == "none":
        return
    for layer in model.layers:
        _recompute_block(layer, selective=checkpointing == "selective")


def _recompute_block(block: nn.Module, selective: bool) -> None:
    """Replace the block's forward function with a checkpointed one."""
    forward = block.forward

    def keep_input(*args: object) -> object:
        return checkpoint(forward, *args, use_reentrant=False)

    def keep_expensive(*args: object) -> object:
        # dynamo accepts the context function only by its global name, not as a closure's variable.
        return checkpoint(forward, *args, use_reentrant=False, context_fn=keep_expensive_results)

    block.forward = keep_expensive if selective else keep_input


def keep_expensive_results():
    """Return the contexts of a checkpointed call that keeps the results of `KEPT_OPERATORS`."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(ctx: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    is_kept = str(operator).removesuffix(".default") in KEPT_OPERATORS
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
