"""Our weights from the tensors of a stock checkpoint, with proof that they are the same model.

Each stock tensor is computed again from what was made of it. Where it differs, the checkpoint has
something that our model has no place for, such as biases.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from moebius.errors import CheckpointError
from moebius.infer.stock_files import StockTensors
from moebius.infer.stock_shape import StockShape
from moebius.infer.stock_tensors import Part, parts

ROUNDING = 1e-6
"""Largest difference, relative to the tensor's largest value, that is due to float32: a factor
and its inverse were applied."""
COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Tensors that old checkpoints have, although they follow from the configuration."""

Prepare = Callable[[str, Tensor], Tensor]


def own_tensors(
    stock: StockTensors,
    shape: StockShape,
    vocab_size: int,
    prepare: Prepare = lambda name, tensor: tensor,
) -> dict[str, Tensor]:
    """Return our tensors by name.

    prepare: takes the name and the tensor of every stock tensor, and returns it in the shape's
    sizes.

    Raises CheckpointError, with the tensor's name, if one is missing, has the wrong shape, or
    says what our model cannot; also for tensors that are left over.
    """
    own: dict[str, Tensor] = {}
    used = set[str]()
    for part in parts(shape, vocab_size):
        if not part.own and _may_be_missing(part) and part.stock[0] not in stock:
            continue
        given = [prepare(name, stock.read(name)) for name in part.stock]
        try:
            tensor = part.to_own(given)
            again = part.to_stock(tensor)
        except (RuntimeError, IndexError) as error:
            shapes = ", ".join(str(list(one.shape)) for one in given[:3])
            raise CheckpointError(
                f"tensor {part.stock[0]}: has shape {shapes}, which does not fit config.json "
                f"({' '.join(str(error).split())[:80]})"
            ) from None
        for name, one, other in zip(part.stock, given, again, strict=True):
            _compare(name, one, other, is_fixed=not part.own)
        used.update(part.stock)
        if part.own:
            own[part.own] = tensor.contiguous()
    for name in stock:
        is_tied = shape.model.tie_embeddings and name == "lm_head.weight"
        if name not in used and not is_tied and not COMPUTED.fullmatch(name):
            raise CheckpointError(f"tensor {name}: the model has no place for it")
    return own


def _may_be_missing(part: Part) -> bool:
    """Return whether a tensor that is the same in every model is not needed: an absent bias is 0,
    and an MLP may have no width."""
    return part.stock[0].endswith(".bias") or not part.to_stock(torch.empty(0))[0].numel()


def _compare(name: str, given: Tensor, again: Tensor, is_fixed: bool) -> None:
    """Raise CheckpointError if a tensor is not what comes out of the tensor made from it."""
    if given.shape != again.shape:
        raise CheckpointError(
            f"tensor {name}: has shape {list(given.shape)}, not {list(again.shape)}"
        )
    if not given.numel():
        return
    if not torch.isfinite(given).all():
        raise CheckpointError(f"tensor {name}: has values that are not finite")
    difference = (given - again).abs().max()
    if difference > ROUNDING * given.abs().max():
        kind = "must be 0 everywhere" if is_fixed else "has parts that must be 0 or equal"
        raise CheckpointError(
            f"tensor {name}: {kind} for the model to be the same; it differs by {difference:.2g}"
        )
