"""Activation checkpointing, then compilation: applied to a finished model, which knows of neither."""

import warnings

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from moebius.config import ParallelConfig
from moebius.model.backends import is_compiled
from moebius.model.transformer import Transformer


def lay_out(model: Transformer, parallel: ParallelConfig, device: torch.device) -> list[str]:
    """Apply the layout in place. Returns one line for each choice made.

    Order: checkpointing inside compilation, so that the compiler sees what is recomputed.
    """
    if parallel.activation_checkpointing != "none":
        for layer in model.layers:
            _recompute_in_backward(layer, selective=parallel.activation_checkpointing == "selective")
    compiled = is_compiled(parallel, device)
    if compiled:
        _compile(model)
    why = "asked for" if parallel.compile != "auto" else "a GPU" if compiled else "a CPU gains less than compiling costs"
    return [
        f"checkpointing: {parallel.activation_checkpointing}",
        f"compile: {'each block and the loss head' if compiled else 'off'} ({why})",
    ]


def _compile(model: Transformer) -> None:
    """Each block by itself: blocks of one shape share their code.

    A pyramid's differ in the width of their experts. Compiled one by one they would take many minutes; with the width left
    symbolic the first block is compiled as it is and the second for all others. dynamo takes parameters' shapes for
    constants unless told not to.
    """
    import torch._dynamo

    if len(set(model.config.expert_widths)) > 1:
        torch._dynamo.config.force_parameter_static_shapes = False
    limit = 4 * len(model.layers)  # past its limit dynamo would leave the rest of the blocks eager
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    warnings.filterwarnings("ignore", message="(?s).*Online softmax is disabled")  # says nothing a user could act on
    for layer in model.layers:
        layer.compile()
    if model.mtp is not None:
        model.mtp.compile()
    if model.backends.loss_chunks == 1:
        model.head_loss = torch.compile(model.head_loss)
    else:
        model.loss_part = torch.compile(model.loss_part)


def _recompute_in_backward(block: nn.Module, selective: bool) -> None:
    """Replace the block's forward by one that keeps less. Names of parameters stay as they are."""
    forward = block.forward

    def whole(*args: object) -> object:
        return checkpoint(forward, *args, use_reentrant=False)

    def all_but_expensive(*args: object) -> object:
        # dynamo takes the context function by its global name alone, not as a variable of this closure
        return checkpoint(forward, *args, use_reentrant=False, context_fn=_keep_expensive_results)

    block.forward = all_but_expensive if selective else whole


def _keep_expensive_results():
    return create_selective_checkpoint_contexts(_policy)


def _policy(ctx: object, operator: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    is_expensive = str(operator).removesuffix(".default") in _EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if is_expensive else CheckpointPolicy.PREFER_RECOMPUTE


_EXPENSIVE = {  # matrix products and attention: dear to compute, small to keep; the rest is cheap to do again
    "aten.mm",
    "aten.addmm",
    "aten.bmm",
    "aten._grouped_mm",
    "moebius.float8_product",
    "moebius.experts_forward",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "flex_attention",
}
