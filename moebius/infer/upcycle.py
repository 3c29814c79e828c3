"""Turn a dense model into a mixture of experts that computes the same at first.

Every expert is a copy of the dense MLP (Komatsuzaki et al. 2022, arXiv 2212.05055). With a
granularity G, the hidden dimensions of each copy are split over G narrower experts, whose rows in
the router are equal: a token then has all G parts of the copies that it chooses, and their sum is
the dense MLP again (He et al. 2024, arXiv 2410.07524, virtual groups). The gates of a token sum to
1, and are multiplied by G.
"""

from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebius.config import ModelConfig, hidden_width
from moebius.errors import ConfigError
from moebius.model.init import SHRINK

OPTION = "--upcycle"


class Upcycling(NamedTuple):
    """How a dense model becomes a mixture of experts."""

    num_experts: int
    """Number of copies of the dense MLP in each layer."""
    granularity: int = 1
    """Number of experts that each copy is split into (G)."""
    top_k: int = 0
    """Number of experts per token. 0 means two copies if they are whole, and else one copy."""

    @classmethod
    def parse(cls, text: str) -> "Upcycling":
        """Return what `num_experts=8,granularity=2` says. Raises ConfigError."""
        values: dict[str, int] = {}
        for item in text.split(","):
            name, _, number = item.partition("=")
            if name not in cls._fields or not number.isdecimal() or name in values:
                raise ConfigError(
                    f"{OPTION} {text}: must be num_experts=N, and may go on with granularity=N "
                    "and top_k=N, separated by commas"
                )
            values[name] = int(number)
        if "num_experts" not in values:
            raise ConfigError(f"{OPTION} {text}: num_experts=N is missing")
        upcycling = cls(**values)
        upcycling._check(text)
        return upcycling

    @property
    def experts_per_token(self) -> int:
        """Number of experts per token."""
        return self.top_k or max(2, self.granularity)

    def _check(self, text: str) -> None:
        total, k = self.num_experts * self.granularity, self.experts_per_token
        if min(self.num_experts, self.granularity) < 1:
            raise ConfigError(f"{OPTION} {text}: every number must be at least 1")
        if k % self.granularity or k > total:
            raise ConfigError(
                f"{OPTION} {text}: top_k must be a multiple of the granularity "
                f"({self.granularity}) and at most {total}, so that a token has whole copies"
            )
        if k == 1:
            raise ConfigError(
                f"{OPTION} {text}: top_k must be at least 2, because the gate of a single expert "
                "is its probability, which would make the layer's output smaller"
            )


def upcycled_config(dense: ModelConfig, upcycling: Upcycling) -> ModelConfig:
    """Return the configuration of the mixture. Raises ConfigError if it cannot be built."""
    if any(dense.experts_per_layer):
        raise ConfigError(f"{OPTION}: the checkpoint has experts already; it must be dense")
    width, rest = divmod(dense.base_width, upcycling.granularity)
    if rest or hidden_width(width / dense.dim, dense.dim) != width:
        raise ConfigError(
            f"{OPTION}: granularity {upcycling.granularity} divides the MLP's width of "
            f"{dense.base_width} into parts of {dense.base_width / upcycling.granularity:g}, "
            "which is no multiple of 64"
        )
    return replace(
        dense,
        base_expansion=0.0,
        num_experts=upcycling.num_experts * upcycling.granularity,
        moe_min_expansion=width / dense.dim,
        moe_max_expansion=width / dense.dim,
        router_type="softmax_topk",
        router_top_k=upcycling.experts_per_token,
        router_score="softmax",
        renormalize_gates=True,
        gate_scale=float(upcycling.granularity),
        **_unset(dense),
    )


def upcycled(
    tensors: dict[str, Tensor], mixture: ModelConfig, upcycling: Upcycling, seed: int
) -> dict[str, Tensor]:
    """Return the mixture's weights, made from those of the dense model.

    The routers are new; only they depend on the seed.
    """
    generator = torch.Generator().manual_seed(seed)
    G, copies = upcycling.granularity, upcycling.num_experts
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix, found, matrix = name.partition(".moe.base.")
        if not found:
            result[name] = tensor
            continue
        kind = matrix.removesuffix(".weight")
        expert = f"{prefix}.moe.experts.w_{kind}_{'EFD' if kind == 'down' else 'EDF'}"
        # The hidden dimension is the first of up and gate, and the last of down.
        parts = tensor.chunk(G, dim=1 if kind == "down" else 0)
        result[expert] = torch.stack([part.T for part in parts]).repeat(copies, 1, 1)
        if kind == "down":
            weight = torch.randn(copies, mixture.dim, generator=generator) * SHRINK
            # the parts of a copy follow each other
            result[f"{prefix}.moe.router.weight_ED"] = weight.repeat_interleave(G, dim=0)
            result[f"{prefix}.moe.router.bias_E"] = torch.zeros(copies * G)
    return result


def _unset(dense: ModelConfig) -> dict[str, Any]:
    """Return the defaults of settings that only matter with experts."""
    defaults = {field.name: field.default for field in fields(dense)}
    return {name: defaults[name] for name in ("residual_mix", "router_jitter", "expert_dropout")}
