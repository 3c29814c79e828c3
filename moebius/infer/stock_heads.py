"""Where the dimensions of attention heads lie in a stock architecture.

A stock architecture rotates the same dimensions of every head, and most rotate all of them. Our
dimensions are moved to where its rotation looks for them, and those that we do not rotate to where
it is told to rotate by no angle. If we rotate some heads only, the stock heads are twice as wide:
a head has its dimensions in the half that is rotated or in the half that is not, and zeros in the
other.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.cost.exports import Architecture

NO_ROTATION = 1e20
"""Divisor of the frequency of a pair that is not rotated. At any position, the angle is then too
small to change a float32 number; with a larger divisor, its product with a power of rope_theta
might not be finite."""


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model as a stock architecture stores them."""

    model: ModelConfig
    architecture: Architecture

    @property
    def is_mixed(self) -> bool:
        """Whether some heads are rotated and others are not."""
        return 0 < self.model.rotary_kv_heads < self.model.num_kv_heads

    @property
    def width(self) -> int:
        """Width of a stock head."""
        return self.model.head_width * (2 if self.is_mixed else 1)

    @property
    def rotary_dims(self) -> int:
        """Number of dimensions of a stock head that are rotated."""
        return self.model.rotary_dims if self.model.rotary_kv_heads else 0

    def place_H(self, is_rotated: bool) -> Tensor:
        """Return the place in a stock head of each dimension of our head."""
        half, width = self.rotary_dims // 2, self.width
        if self.architecture.rotary == "interleaved":
            first, second = torch.arange(half) * 2, torch.arange(half) * 2 + 1
        else:
            step = half if self.architecture.rotary == "partial" else width // 2
            first, second = torch.arange(half), torch.arange(half) + step
        rotated = torch.cat([first, second])
        is_free = torch.ones(width, dtype=torch.bool)
        is_free[rotated] = False
        rest = is_free.nonzero()[:, 0]
        places = torch.cat([rotated, rest]) if is_rotated else rest
        return places[: self.model.head_width]

    def spread(self, weight: Tensor) -> Tensor:
        """Return the rows of a query or key projection (heads * H, ...) in their stock places."""
        heads = weight.view(-1, self.model.head_width, *weight.shape[1:])
        wide = heads.new_zeros(len(heads), self.width, *weight.shape[1:])
        wide.scatter_(1, self._index(heads), heads)
        return wide.flatten(0, 1)

    def gather(self, wide: Tensor) -> Tensor:
        """Return the rows of a stock projection in our places: the inverse of `spread`."""
        heads = wide.view(-1, self.width, *wide.shape[1:])
        shape = heads.new_empty(len(heads), self.model.head_width, *wide.shape[1:])
        return heads.gather(1, self._index(shape)).flatten(0, 1)

    def spread_norm(self, weight_H: Tensor) -> Tensor:
        """Return the weights of a norm of queries or keys in their stock places.

        With mixed heads they are in both halves, because all heads share them.
        """
        wide = weight_H.new_ones(self.width)
        for is_rotated in (True, False) if self.is_mixed else (True,):
            wide[self.place_H(is_rotated)] = weight_H
        return wide

    def gather_norm(self, wide: Tensor) -> Tensor:
        """Return the weights of a stock norm in our places."""
        return wide[self.place_H(is_rotated=True)]

    def widen(self, weight: Tensor) -> Tensor:
        """Return the rows of a value projection (heads * H, ...) with zeros after each head."""
        heads = weight.view(-1, self.model.head_width, *weight.shape[1:])
        wide = heads.new_zeros(len(heads), self.width, *weight.shape[1:])
        wide[:, : self.model.head_width] = heads
        return wide.flatten(0, 1)

    def narrow(self, wide: Tensor) -> Tensor:
        """Return the rows of a stock projection without those after each head of ours."""
        heads = wide.view(-1, self.width, *wide.shape[1:])
        return heads[:, : self.model.head_width].flatten(0, 1)

    @property
    def query_factor(self) -> float:
        """Factor on queries, because stock attention divides by the root of a wider head."""
        return math.sqrt(self.width / self.model.head_width)

    def rotation(self, seq_len: int) -> dict[str, Any]:
        """Return the settings of config.json that rotate our dimensions by our angles.

        Newer versions of transformers read `rope_parameters`, older ones `rope_theta` and
        `rope_scaling`; each ignores the other's. "longrope" divides every pair's frequency by a
        number of its own, which both versions and the common inference engines support.
        """
        theta, dims, width = self.model.rope_theta, self.rotary_dims, self.width
        default: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
        if self.architecture.rotary == "partial":
            # With dims / width, rounding could leave out the last pair, because
            # int(width * (dims / width)) is not always dims.
            factor = (dims + 0.5) / width if dims < width else 1.0
            return {
                "rope_theta": theta,
                "rope_scaling": None,
                "partial_rotary_factor": factor,
                "rope_parameters": default | {"partial_rotary_factor": factor},
            }
        if dims == width:
            return {"rope_theta": theta, "rope_scaling": None, "rope_parameters": default}
        divisors = [theta ** (2 * pair / dims - 2 * pair / width) for pair in range(dims // 2)]
        divisors += [NO_ROTATION] * (width // 2 - dims // 2)
        scaling = {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "factor": 1.0,
            "attention_factor": 1.0,
            "original_max_position_embeddings": seq_len,
        }
        return {
            "rope_theta": theta,
            "rope_scaling": scaling,
            "rope_parameters": scaling | {"rope_theta": theta},
        }

    def _index(self, heads: Tensor) -> Tensor:
        """Return the stock place of every entry of heads (number of heads, H, ...)."""
        rotated, still = self.place_H(is_rotated=True), self.place_H(is_rotated=False)
        share = self.model.rotary_kv_heads / self.model.num_kv_heads if self.is_mixed else 1.0
        num_rotated = round(share * len(heads))
        rows = [rotated] * num_rotated + [still] * (len(heads) - num_rotated)
        index = torch.stack(rows).to(heads.device)
        return index.view(*index.shape, *[1] * (heads.dim() - 2)).expand_as(heads)
