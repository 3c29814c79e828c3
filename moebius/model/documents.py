"""Attention inside documents with memory that is linear in the length of a sequence.

Torch's attention takes a mask as a matrix of queries and keys, makes it a matrix of floats in most
kernels, and keeps it for backward: 3.9 S² bytes a layer. Here queries attend in blocks, one after
another. Each has a mask of its own, which exists only while the block is computed; backward
computes the block again. The keys of earlier documents are not read at all where that costs no
host synchronization.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

from moebius.config.attention import MASK_BLOCK


def attend_in_blocks(
    q_BNSH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, document_BS: Tensor
) -> Tensor:
    """Return out_BNSH. A token sees itself and the earlier tokens of its own document.

    It is what torch's attention returns with `moebius.model.attention.dense_mask`.
    """
    if torch.compiler.is_compiling():  # the compiler decides itself what it computes again
        blocks = _blocks(document_BS)
        parts = [_attend(q_BNSH, k_BNSH, v_BNSH, document_BS, *block) for block in blocks]
        return torch.cat(parts, dim=2)
    out_BNSH = _InBlocks.apply(q_BNSH, k_BNSH, v_BNSH, document_BS)
    assert isinstance(out_BNSH, Tensor)
    return out_BNSH


class _InBlocks(torch.autograd.Function):
    """Attention whose backward pass computes one block after another again."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, q_BNSH: Tensor, k_BNSH: Tensor, v_BNSH: Tensor, document_BS: Tensor
    ) -> Tensor:
        ctx.save_for_backward(q_BNSH, k_BNSH, v_BNSH, document_BS)
        blocks = _blocks(document_BS)
        parts = [_attend(q_BNSH, k_BNSH, v_BNSH, document_BS, *block) for block in blocks]
        return torch.cat(parts, dim=2)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: FunctionCtx, upstream_BNSH: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        *inputs, document_BS = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
        q_BNSH, k_BNSH, v_BNSH = inputs
        dq_BNSH, dk_BNSH, dv_BNSH = (torch.zeros_like(tensor) for tensor in inputs)
        for first, start, end in _blocks(document_BS):
            spans = ((start, end), (first, end), (first, end))
            q, k, v = parts = [
                tensor[:, :, span[0] : span[1]].detach().requires_grad_()
                for tensor, span in zip((q_BNSH, k_BNSH, v_BNSH), spans, strict=True)
            ]
            with torch.enable_grad():
                out = _attend_block(q, k, v, _mask(document_BS, first, start, end))
            gradients = torch.autograd.grad(out, parts, upstream_BNSH[:, :, start:end])
            for total, part, span in zip(
                (dq_BNSH, dk_BNSH, dv_BNSH), gradients, spans, strict=True
            ):
                total[:, :, span[0] : span[1]] += part
        return dq_BNSH, dk_BNSH, dv_BNSH, None


def _blocks(document_BS: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield the first key, the first query and the end of the queries of each block.

    On a GPU, and in compiled code, every block reads all earlier keys: the host does not know
    where documents begin.
    """
    S = document_BS.shape[1]
    starts = range(0, S, MASK_BLOCK)
    firsts = [0] * len(starts)
    if document_BS.device.type == "cpu" and not torch.compiler.is_compiling():
        index_S = torch.arange(S)
        begins_BS = F.pad(document_BS[:, 1:] != document_BS[:, :-1], (1, 0), value=True)
        begin_BS = torch.where(begins_BS, index_S, 0).cummax(dim=1).values
        if (document_BS[:, 1:] >= document_BS[:, :-1]).all():  # no document comes back
            firsts = begin_BS[:, ::MASK_BLOCK].amin(dim=0).tolist()
    for first, start in zip(firsts, starts, strict=True):
        yield first, start, min(start + MASK_BLOCK, S)


def _attend(
    q_BNSH: Tensor,
    k_BNSH: Tensor,
    v_BNSH: Tensor,
    document_BS: Tensor,
    first: int,
    start: int,
    end: int,
) -> Tensor:
    """Return the part of out_BNSH that belongs to the queries from `start` to `end`."""
    return _attend_block(
        q_BNSH[:, :, start:end],
        k_BNSH[:, :, first:end],
        v_BNSH[:, :, first:end],
        _mask(document_BS, first, start, end),
    )


def _attend_block(q_BNQH: Tensor, k_BNKH: Tensor, v_BNKH: Tensor, mask_B1QK: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q_BNQH, k_BNKH, v_BNKH, attn_mask=mask_B1QK)


def _mask(document_BS: Tensor, first: int, start: int, end: int) -> Tensor:
    """Return mask_B1QK, which is true where a query may see a key."""
    same = document_BS[:, start:end, None] == document_BS[:, None, first:end]
    index_S = torch.arange(first, end, device=document_BS.device)
    return (same & (index_S[start - first :, None] >= index_S[None]))[:, None]
