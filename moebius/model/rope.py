"""Partial rotary position embedding (Su et al. 2021, arXiv 2104.09864; partial as in GPT-NeoX)."""

from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import ModelConfig


class Rotation(NamedTuple):
    """Cosine and sine of every position and rotated pair, shape (S, rotary_dims / 2), float32."""

    cos: Tensor
    sin: Tensor


def rotation(seq_len: int, config: ModelConfig, device: torch.device) -> Rotation:
    """Angles of positions 0..S-1. Attention sees only differences, so packed documents need no positions of their own."""
    pairs = torch.arange(config.rotary_dims // 2, device=device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-2 * pairs / max(config.rotary_dims, 1))
    angles = torch.arange(seq_len, device=device, dtype=torch.float32)[:, None] * frequencies
    return Rotation(angles.cos(), angles.sin())


def rotate(x_BSNH: Tensor, rotation: Rotation, num_rotated_heads: int) -> Tensor:
    """Rotate the leading dimensions of the first `num_rotated_heads` heads; the rest pass unchanged.

    Dimension i is paired with i + rotary_dims/2 (the half-split convention of GPT-NeoX and Llama).
    """
    half = rotation.cos.shape[-1]
    turned = x_BSNH[:, :, :num_rotated_heads]
    cos, sin = rotation.cos[:, None].to(x_BSNH.dtype), rotation.sin[:, None].to(x_BSNH.dtype)
    first, second, rest = turned[..., :half], turned[..., half : 2 * half], turned[..., 2 * half :]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    if num_rotated_heads == x_BSNH.shape[2]:
        return turned
    return torch.cat([turned, x_BSNH[:, :, num_rotated_heads:]], dim=2)
