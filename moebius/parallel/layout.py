"""Lay a model out on the hardware by changing the finished model, whose code is unaware of it."""

import torch

from moebius.config import ParallelConfig
from moebius.hardware.backends import is_compiled
from moebius.model.transformer import Transformer
from moebius.parallel.compile import compile_parts
from moebius.parallel.recompute import recompute_in_backward


def lay_out(model: Transformer, parallel: ParallelConfig, device: torch.device) -> list[str]:
    """Apply the layout to the model in place, and return one line for each choice.

    The order matters: checkpointing comes before compilation, so that the compiler sees what
    backward computes again.
    """
    recompute_in_backward(model, parallel.activation_checkpointing)
    lines = [f"checkpointing: {parallel.activation_checkpointing}"]
    if is_compiled(parallel, device):
        compile_parts(model)
        reason = "a GPU" if parallel.compile == "auto" else "asked for"
        lines.append(f"compile: each block and the loss head ({reason})")
    else:
        is_automatic = parallel.compile == "auto"
        reason = "a CPU gains less than compiling costs" if is_automatic else "asked for"
        lines.append(f"compile: off ({reason})")
    return lines
