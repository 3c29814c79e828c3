"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) with causal and document masks.

Each key-value head serves a group of query heads. It is never copied with repeat_interleave, whose
backward pass would accumulate the gradients by index. Some backends read it in place; where none
can, it is expanded, and its gradient is a plain sum over the copies.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import ModelConfig
from moebius.config.attention import MASK_BLOCK
from moebius.model.cache import LayerCache
from moebius.model.documents import attend_in_blocks
from moebius.model.rope import Rotation, rotate

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
"""(q_BNSH, k_BGSH, v_BGSH, mask) -> out_BNSH. The mask comes from the same backend."""
MaskFunction = Callable[[Tensor | None], Any]
"""document_BS -> the mask that the backend's attention takes. None stands for one document."""


class AttentionBackend(NamedTuple):
    """One implementation of attention."""

    attend: AttentionFunction
    """Computes the attention."""
    mask: MaskFunction
    """Builds the mask for `attend` from the number of each token's document."""


_PLACES = {  # imported only when used: flex imports a compiler, which takes seconds
    "sdpa_native": ("moebius.model.attention", "SDPA_NATIVE"),
    "sdpa_expanded": ("moebius.model.attention", "SDPA_EXPANDED"),
    "flex": ("moebius.model.flex", "FLEX"),
}


def attention_backend(name: str) -> AttentionBackend:
    """Return the attention backend of that name, a key of moebius/config/attention.py's records.

    Raises KeyError for an unknown name.
    """
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


class Attention(nn.Module):
    """The attention of a block: projections, rotary embedding, attention, output projection."""

    def __init__(self, config: ModelConfig, attend: AttentionFunction):
        """Build uninitialized projections around a backend's attention function."""
        super().__init__()
        self.config = config
        self.attend = attend
        N, G, H = config.num_heads, config.num_kv_heads, config.head_width
        self.query = nn.Linear(config.dim, N * H, bias=False)
        self.key = nn.Linear(config.dim, G * H, bias=False)
        self.value = nn.Linear(config.dim, G * H, bias=False)
        self.output = nn.Linear(N * H, config.dim, bias=False)
        self.query_norm = nn.RMSNorm(H, config.norm_eps) if config.qk_norm else None
        self.key_norm = nn.RMSNorm(H, config.norm_eps) if config.qk_norm else None

    def forward(
        self, x_BSD: Tensor, rotation: Rotation, mask: Any, cache: LayerCache | None = None
    ) -> Tensor:
        """Return out_BSD. The mask, in the backend's form, says which tokens a token may see.

        With a cache, the tokens' keys and values are stored in it. A cache that is also read has
        the keys and values of all tokens that may be seen, and the mask is mask_B1SW.
        """
        B, S, _ = x_BSD.shape
        config = self.config
        q_BSNH = self.query(x_BSD).view(B, S, config.num_heads, config.head_width)
        k_BSGH = self.key(x_BSD).view(B, S, config.num_kv_heads, config.head_width)
        v_BSGH = self.value(x_BSD).view(B, S, config.num_kv_heads, config.head_width)
        if self.query_norm is not None and self.key_norm is not None:
            q_BSNH = _normalized(q_BSNH, self.query_norm)
            k_BSGH = _normalized(k_BSGH, self.key_norm)
        group = config.num_heads // config.num_kv_heads
        q_BSNH = rotate(q_BSNH, rotation, config.rotary_kv_heads * group)
        k_BSGH = rotate(k_BSGH, rotation, config.rotary_kv_heads)
        q_BNSH, k_BGSH, v_BGSH = (x.transpose(1, 2) for x in (q_BSNH, k_BSGH, v_BSGH))
        if cache is not None:
            cache.store(k_BGSH, v_BGSH)
        if cache is not None and cache.is_read:
            out_BNSH = attend_cached(q_BNSH, cache.key_BGWH, cache.value_BGWH, mask)
        else:
            out_BNSH = self.attend(q_BNSH, k_BGSH, v_BGSH, mask)
        return self.output(out_BNSH.transpose(1, 2).reshape(B, S, -1))


def _normalized(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Return x normalized in the weight's dtype, usually float32.

    torch has no fused norm for inputs of another dtype than the weight.
    """
    return norm(x.to(norm.weight.dtype)).type_as(x)


def attend_native(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask: Tensor | None) -> Tensor:
    """Return out_BNSH by torch's attention, which reads each KV head in place for its group.

    With documents in place of a mask, each KV head is expanded nevertheless.
    """
    if mask is not None and mask.ndim == 2:
        return attend_expanded(q_BNSH, k_BGSH, v_BGSH, mask)
    return F.scaled_dot_product_attention(
        q_BNSH, k_BGSH, v_BGSH, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )


def attend_expanded(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask: Tensor | None) -> Tensor:
    """Return out_BNSH by torch's attention, with each KV head expanded over its group.

    This is for kernels without native grouped-query attention. The mask may be document_BS itself.
    """
    k_BNSH, v_BNSH = _expand(k_BGSH, q_BNSH.shape[1]), _expand(v_BGSH, q_BNSH.shape[1])
    if mask is not None and mask.ndim == 2:
        return attend_in_blocks(q_BNSH, k_BNSH, v_BNSH, mask)
    return F.scaled_dot_product_attention(
        q_BNSH, k_BNSH, v_BNSH, attn_mask=mask, is_causal=mask is None
    )


def attend_cached(q_BNSH: Tensor, k_BGWH: Tensor, v_BGWH: Tensor, mask_B1SW: Tensor) -> Tensor:
    """Return out_BNSH, the attention of a few tokens to the keys and values of a cache.

    The query heads of a group become further queries of their KV head, so the cache, which is
    far larger than the queries, is read in place by any kernel.
    """
    B, N, S, H = q_BNSH.shape
    G, W = k_BGWH.shape[1], k_BGWH.shape[2]
    rows = N // G * S
    mask_B1RW = mask_B1SW[:, :, None].expand(B, 1, N // G, S, W).reshape(B, 1, rows, W)
    out_BGRH = F.scaled_dot_product_attention(
        q_BNSH.reshape(B, G, rows, H), k_BGWH, v_BGWH, attn_mask=mask_B1RW
    )
    return out_BGRH.reshape(B, N, S, H)


def _expand(x_BGSH: Tensor, num_heads: int) -> Tensor:
    """Return x_BNSH, in which each of the query heads of a group has a copy of their KV head."""
    B, G, S, H = x_BGSH.shape
    return x_BGSH[:, :, None].expand(B, G, num_heads // G, S, H).reshape(B, num_heads, S, H)


def documents_or_mask(document_BS: Tensor | None) -> Tensor | None:
    """Return the mask for torch's attention: None for plain causal attention, or the dense mask.

    The dense mask of a long sequence would be much larger than everything else. In its place come
    the documents, from which the masks of blocks are made.
    """
    if document_BS is None or document_BS.shape[1] > MASK_BLOCK:
        return document_BS
    return dense_mask(document_BS)


def dense_mask(document_BS: Tensor) -> Tensor:
    """Return mask_B1SS, which is true where a query (first S) may see a key (second S).

    A token sees itself and the earlier tokens of its own document.
    """
    S = document_BS.shape[1]
    same = document_BS[:, :, None] == document_BS[:, None, :]
    return (same & torch.ones(S, S, dtype=torch.bool, device=document_BS.device).tril())[:, None]


SDPA_NATIVE = AttentionBackend(attend_native, documents_or_mask)
SDPA_EXPANDED = AttentionBackend(attend_expanded, documents_or_mask)
