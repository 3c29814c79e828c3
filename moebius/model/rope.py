"""Partial rotary position embedding (Su et al. 2021, arXiv 2104.09864; partial as in GPT-NeoX)."""

from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import ModelConfig


class Rotation(NamedTuple):
    """The angles of all positions and rotated pairs.

    The shape is (S, rotary_dims / 2), or (B, S, rotary_dims / 2) if every sequence has positions
    of its own.
    """

    cos: Tensor
    """Cosine of each angle."""
    sin: Tensor
    """Sine of each angle."""


def rotation(
    seq_len: int,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Rotation:
    """Return the angles of the positions 0 to seq_len - 1, in `dtype` but at least in float32.

    Attention depends only on differences between positions, so positions need not restart at 0 in
    each of several packed documents.
    """
    return rotation_at(torch.arange(seq_len, device=device), config, dtype)


def rotation_at(
    position_BS: Tensor, config: ModelConfig, dtype: torch.dtype = torch.float32
) -> Rotation:
    """Return the angles of these positions, in `dtype` but at least in float32.

    position_BS: integers of any shape, such as one row of positions for each sequence.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(config.rotary_dims // 2, device=position_BS.device, dtype=dtype)
    frequencies = config.rope_theta ** (-2 * pairs / max(config.rotary_dims, 1))
    angles = position_BS.to(dtype)[..., None] * frequencies
    return Rotation(angles.cos(), angles.sin())


def rotate(x_BSNH: Tensor, rotation: Rotation, num_rotated_heads: int) -> Tensor:
    """Return x with the leading dimensions of its first `num_rotated_heads` heads rotated.

    Dimension i is paired with i + rotary_dims/2, the half-split convention of GPT-NeoX and Llama.
    Other dimensions and heads pass unchanged.
    """
    half = rotation.cos.shape[-1]
    heads = x_BSNH[:, :, :num_rotated_heads]
    cos = rotation.cos[..., None, :].to(x_BSNH.dtype)
    sin = rotation.sin[..., None, :].to(x_BSNH.dtype)
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)
    if num_rotated_heads == x_BSNH.shape[2]:
        return rotated
    return torch.cat([rotated, x_BSNH[:, :, num_rotated_heads:]], dim=2)
