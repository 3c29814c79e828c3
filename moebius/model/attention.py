"""Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245) with causal and document masks.

Key-value heads are never copied with repeat_interleave: the backends take them as they are, and where none does they are
expanded, which autograd sums back without an index.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moebius.config import ModelConfig
from moebius.model.rope import Rotation, rotate

# (q_BNSH, k_BGSH, v_BGSH, mask) -> out_BNSH; the mask is what the backend's own mask function made, None for plain causal.
AttentionFunction = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


class Attention(nn.Module):
    """x_BSD -> out_BSD."""

    def __init__(self, config: ModelConfig, attend: AttentionFunction):
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

    def forward(self, x_BSD: Tensor, rotation: Rotation, mask: Any) -> Tensor:
        B, S, _ = x_BSD.shape
        config = self.config
        q_BSNH = self.query(x_BSD).view(B, S, config.num_heads, config.head_width)
        k_BSGH = self.key(x_BSD).view(B, S, config.num_kv_heads, config.head_width)
        v_BSGH = self.value(x_BSD).view(B, S, config.num_kv_heads, config.head_width)
        if self.query_norm is not None and self.key_norm is not None:
            q_BSNH, k_BSGH = _normalised(q_BSNH, self.query_norm), _normalised(k_BSGH, self.key_norm)
        group = config.num_heads // config.num_kv_heads
        q_BSNH = rotate(q_BSNH, rotation, config.rotary_kv_heads * group)
        k_BSGH = rotate(k_BSGH, rotation, config.rotary_kv_heads)
        out_BNSH = self.attend(q_BSNH.transpose(1, 2), k_BSGH.transpose(1, 2), v_BSGH.transpose(1, 2), mask)
        return self.output(out_BNSH.transpose(1, 2).reshape(B, S, -1))


def _normalised(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    # in the weight's float32: torch has no fused norm of mixed types
    return norm(x.to(norm.weight.dtype)).type_as(x)


def attend_native(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask_B1SS: Tensor | None) -> Tensor:
    """scaled_dot_product_attention reading each KV head where it lies, for all its query heads."""
    return F.scaled_dot_product_attention(
        q_BNSH, k_BGSH, v_BGSH, attn_mask=mask_B1SS, is_causal=mask_B1SS is None, enable_gqa=True
    )


def attend_expanded(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask_B1SS: Tensor | None) -> Tensor:
    """The same for kernels without native GQA: each KV head is expanded over its query heads."""
    k_BNSH, v_BNSH = _expand(k_BGSH, q_BNSH.shape[1]), _expand(v_BGSH, q_BNSH.shape[1])
    return F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, attn_mask=mask_B1SS, is_causal=mask_B1SS is None)


def _expand(x_BGSH: Tensor, num_heads: int) -> Tensor:
    B, G, S, H = x_BGSH.shape
    return x_BGSH[:, :, None].expand(B, G, num_heads // G, S, H).reshape(B, num_heads, S, H)


def dense_mask(document_BS: Tensor) -> Tensor:
    """mask_B1SS, True where a token may look: not ahead, not into another document."""
    S = document_BS.shape[1]
    same = document_BS[:, :, None] == document_BS[:, None, :]
    return (same & torch.ones(S, S, dtype=torch.bool, device=document_BS.device).tril())[:, None]
