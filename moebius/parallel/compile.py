"""Compilation of a model by torch.compile, part by part."""

import warnings

from moebius.model.transformer import Transformer


def compile_parts(model: Transformer) -> None:
    """Compile each block, the MTP layer and the loss of the LM head by themselves, in place.

    Blocks of one shape share their compiled code. The blocks of a pyramid differ in the width of
    their experts, and compiled one by one they would take many minutes. So the width is left
    symbolic: the first block is compiled as it is, and the second for all others.
    """
    import torch._dynamo

    if len(set(model.config.expert_widths)) > 1:
        # otherwise dynamo takes the shapes of parameters for constants
        torch._dynamo.config.force_parameter_static_shapes = False
    # past its limit dynamo would leave the rest of the blocks uncompiled
    limit = 4 * len(model.layers)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    # this warning says nothing that a user could act on
    warnings.filterwarnings("ignore", message="(?s).*Online softmax is disabled")
    for layer in model.layers:
        layer.compile()
    if model.mtp is not None:
        model.mtp.compile()
    if model.backends.loss_chunks == 1:
        model.head_loss = torch.compile(model.head_loss)
    else:
        model.loss_part = torch.compile(model.loss_part)
