"""Attention by torch's flex_attention, which is compiled and runs on GPUs only.

It is a separate file because importing the compiler takes seconds.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from moebius.model.attention import AttentionBackend, attend_expanded, attend_native, dense_mask

BLOCK = 128
"""Number of queries and of keys in one block of the mask."""
_compiled_flex = torch.compile(flex_attention, dynamic=False)
_compiled_block_mask = torch.compile(create_block_mask, dynamic=False)


def attend_flex(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask: Any) -> Tensor:
    """Return out_BNSH without computing the blocks that the mask hides completely.

    Without a mask this is plain causal attention, which needs no flex.
    """
    if mask is None:
        return attend_native(q_BNSH, k_BGSH, v_BGSH, None)
    if isinstance(mask, Tensor):
        return attend_expanded(q_BNSH, k_BGSH, v_BGSH, mask)
    return _compiled_flex(  # pyright: ignore[reportReturnType]
        q_BNSH, k_BGSH, v_BGSH, block_mask=mask, enable_gqa=True
    )


def block_mask(document_BS: Tensor | None) -> Any:
    """Return the mask of `moebius.model.attention.dense_mask` in blocks; None for one document.

    For sequences shorter than a block it is the dense mask itself, because torch 2.11 finds no
    kernel for them.
    """
    if document_BS is None:
        return None
    B, S = document_BS.shape
    if S < BLOCK:
        return dense_mask(document_BS)

    def may_look(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (document_BS[b, q] == document_BS[b, k])

    return _compiled_block_mask(may_look, B, None, S, S, device=document_BS.device)


FLEX = AttentionBackend(attend_flex, block_mask)
