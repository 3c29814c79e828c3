"""Compile a model with torch.compile, part by part."""

import warnings

from moebius.model.transformer import Transformer


def compile_parts(model: Transformer) -> None:
    """Compile each block, the MTP layer and the loss of the LM head separately, in place.

    Blocks of one shape share their compiled code. The blocks of a pyramid differ in the width of
    their experts, and compiling each of them would take many minutes. The width is therefore left
    symbolic: the first block is compiled for its own width, and the second one for any width,
    which serves all other blocks.
    """
    import torch._dynamo

    if len(set(model.config.expert_widths)) > 1:
        # Otherwise, dynamo treats the shapes of parameters as constants.
        torch._dynamo.config.force_parameter_static_shapes = False
    # Past its limit, dynamo would leave the rest of the blocks uncompiled.
    limit = 4 * len(model.layers)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    # A user could not act on this warning.
    warnings.filterwarnings("ignore", message="(?s).*Online softmax is disabled")
    for layer in model.layers:
        layer.compile()
    if model.mtp is not None:
        model.mtp.compile()
    if model.backends.loss_chunks == 1:
        model.head_loss = torch.compile(model.head_loss)
    else:
        model.loss_part = torch.compile(model.loss_part)
