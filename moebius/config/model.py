"""The `model` section: settings, which of them fit together, and the shapes that follow."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from moebius.config.fields import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    at_least,
    between,
    check_fields,
    divisors,
    inside,
)
from moebius.config.routers import ROUTERS
from moebius.errors import ConfigError

WIDTH_MULTIPLE = 64
"""Hidden widths are rounded to a multiple of this, because tensor cores work on whole tiles."""
MTP_OFFSETS = (2, 3, 4)
"""Multi-token prediction: the hidden state of token t also predicts the tokens t+2, t+3, t+4."""

WIDEST = 1_000_000
"""Largest hidden width as a multiple of dim, far above every real one."""

Expansion = Annotated[float, inside(0, WIDEST)]
RouterType = Literal["sigmoid", "softmax_topk", "switch"]
Activation = Literal["swiglu", "relu2", "gelu"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture.

    The defaults are those of the preset `standard`: no base MLP, and one of four large experts
    per token. Raises ConfigError, naming the setting, for a combination that cannot be built.
    """

    vocab_size: PositiveInt = 50_304
    """Number of rows of the embedding and of the LM head (V)."""
    dim: PositiveInt = 896
    """Width of the residual stream (D)."""
    num_layers: Annotated[int, between(1, 10_000)] = 24
    """Number of transformer blocks."""

    num_heads: PositiveInt = 28
    """Number of query heads (N)."""
    num_kv_heads: PositiveInt = 7
    """Number of key-value heads (G). Each is shared by num_heads / num_kv_heads query heads."""
    head_dim: NonNegativeInt = 0
    """Width of a head (H). 0 means dim / num_heads."""
    qk_norm: bool = False
    """Apply RMSNorm to each head's query and key before the rotary embedding."""
    rope_theta: PositiveFloat = 10_000.0
    """Base of the rotary frequencies."""
    rope_fraction: Fraction = 0.75
    """Share of each head's dimensions that is rotated, or share of the heads (see rope_scope)."""
    rope_scope: Literal["dims", "heads"] = "dims"
    """dims rotates the first part of every head. heads rotates whole heads: a rounded number of
    KV heads and the query heads that share them."""

    activation: Activation = "swiglu"
    """Activation of the base MLP and the experts. swiglu has three matrices per MLP, relu2
    (squared ReLU) and gelu have two."""
    base_expansion: Annotated[float, between(0, WIDEST)] = 0.0
    """Hidden width of the base MLP, which every token passes through, as a multiple of dim. 0
    removes the base MLP."""
    residual_mix: Literal["add", "learned"] = "add"
    """How the base MLP's and the experts' outputs are combined: add sums them, learned weights
    them by a softmax that each token computes (PR-MoE)."""
    moe_min_expansion: Expansion = 3.0
    """Hidden width of the first layer's experts as a multiple of dim. The width changes linearly
    with depth up to the last layer's."""
    moe_max_expansion: Expansion = 4.0
    """Hidden width of the last layer's experts as a multiple of dim."""
    num_experts: Annotated[int | tuple[int, ...], at_least(0)] = 4
    """Number of experts (E): one number for all layers, or one per layer, such as 4,4,8,8. A
    layer with 0 experts is dense and has the base MLP alone."""
    expert_dropout: Annotated[float, between(0, 0.99)] = 0.0
    """Dropout on the hidden activations inside the experts (Switch Transformer, section 2.4)."""

    router_type: RouterType = "softmax_topk"
    """How a token's experts are chosen. softmax_topk: exactly router_top_k experts. switch: one
    expert, which takes no more tokens than its capacity. sigmoid: every expert whose probability
    is above router_threshold; this needs a base MLP."""
    router_top_k: PositiveInt = 1
    """Experts per token (K) with the softmax_topk router."""
    router_threshold: Fraction = 0.5
    """Probability above which an expert is active with the sigmoid router."""
    router_score: Literal["softmax", "sigmoid"] = "softmax"
    """Scores by which the softmax_topk router ranks and weighs the experts: softmax over all
    experts, or each expert's own sigmoid, as in DeepSeek-V3."""
    renormalize_gates: bool = True
    """Scale each token's gates to sum to 1. This is never done for one expert per token, where it
    would leave the router without a gradient."""
    gate_scale: NonNegativeFloat = 1.0
    """Factor on every gate (DeepSeek's routed_scaling_factor). 0 means the factor that makes the
    gate of an untrained router 1 if a token has one expert, and 1 otherwise."""
    capacity_factor: PositiveFloat = 1.25
    """Capacity of an expert with the switch router, as a multiple of its even share of the tokens
    in one forward pass. Tokens over capacity pass through on the residual stream. A forward pass
    is a micro-batch, so which tokens are dropped depends on train.micro_batch_size."""
    eval_capacity_factor: NonNegativeFloat = 0.0
    """The capacity factor outside of training. 0 means capacity_factor; with the number of
    experts, no token is ever dropped."""
    router_jitter: Annotated[float, between(0, 0.99)] = 0.0
    """Noise on the router in training: its input is multiplied by random factors between
    1 - router_jitter and 1 + router_jitter (Switch Transformer: 0.01)."""

    aux_loss_coeff: NonNegativeFloat = 0.01
    """Weight of each layer's load-balancing loss (Switch Transformer)."""
    aux_loss_scope: Literal["sequence", "micro_batch", "global_batch"] = "micro_batch"
    """Tokens over which the load-balancing loss wants the load to be even. global_batch counts
    all devices and those micro-batches of the step that have been computed so far. Only with
    sequence, a step's gradient does not depend on train.micro_batch_size."""
    router_z_loss_coeff: NonNegativeFloat = 0.0
    """Weight of each layer's router z-loss, which keeps the logits small (ST-MoE)."""
    router_bias_rate: NonNegativeFloat = 0.0
    """Change per step of the choice bias that balances the load without a loss (DeepSeek-V3:
    0.001). 0 means no such bias."""

    use_mtp: bool = False
    """Also predict the tokens t+2, t+3 and t+4 (multi-token prediction). Without it, nothing of
    it is built."""
    mtp_loss_coeff: NonNegativeFloat = 0.3
    """Weight of the mean of the three losses of multi-token prediction."""
    tie_embeddings: bool = False
    """Use the embedding's matrix as the LM head."""
    norm_eps: PositiveFloat = 1e-5
    """Epsilon of every RMSNorm."""

    def __post_init__(self) -> None:
        check_fields("model", self)
        self._check_heads()
        self._check_experts()

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_kv_heads={self.num_kv_heads}: must divide num_heads "
                f"({self.num_heads}); one of {divisors(self.num_heads)}"
            )
        if not self.head_dim and self.dim % self.num_heads:
            fitting = divisors(self.dim, self.num_kv_heads)
            raise ConfigError(
                f"model.num_heads={self.num_heads}: must divide dim ({self.dim}), "
                f"or set --model.head_dim; one of {fitting or 'none; change num_kv_heads too'}"
            )
        if self.head_width % 2:
            raise ConfigError(
                f"model.head_dim={self.head_width}: must be even, because the rotary embedding "
                "rotates pairs of dimensions"
            )

    def _check_experts(self) -> None:
        count = list(self.num_experts) if isinstance(self.num_experts, tuple) else self.num_experts
        if isinstance(self.num_experts, tuple) and len(self.num_experts) != self.num_layers:
            raise ConfigError(
                f"model.num_experts={count}: must be one number, or one for each of the "
                f"{self.num_layers} layers, not {len(self.num_experts)}"
            )
        if self.base_expansion == 0 and 0 in self.experts_per_layer:
            raise ConfigError(
                f"model.num_experts={count}: a layer without experts needs a base MLP; "
                "set --model.base_expansion above 0"
            )
        if not any(self.experts_per_layer):
            return
        router = ROUTERS[self.router_type]
        if router.chooses_by_threshold and self.base_expansion == 0:
            raise ConfigError(
                f"model.base_expansion=0: the {self.router_type} router may leave a token without "
                "any expert and needs a base MLP; set --model.base_expansion above 0, "
                "or --model.router_type softmax_topk"
            )
        fewest = min(count for count in self.experts_per_layer if count)
        if router.is_top_1 and self.router_top_k != 1:
            raise ConfigError(
                f"model.router_top_k={self.router_top_k}: the {self.router_type} router is top-1; "
                "use softmax_topk for more"
            )
        if not router.chooses_by_threshold and self.router_top_k > fewest:
            raise ConfigError(
                f"model.router_top_k={self.router_top_k}: must be at most num_experts ({fewest})"
            )

    @property
    def head_width(self) -> int:
        """Width of one head: head_dim, or dim / num_heads."""
        return self.head_dim or self.dim // self.num_heads

    @cached_property  # estimates ask for it once per layer, which would be quadratic
    def experts_per_layer(self) -> tuple[int, ...]:
        """Number of experts of each layer; 0 for a dense layer."""
        if isinstance(self.num_experts, tuple):
            return self.num_experts
        return (self.num_experts,) * self.num_layers

    @cached_property
    def expert_widths(self) -> tuple[int, ...]:
        """Hidden width of each layer's experts: linear in depth, rounded to a multiple of 64."""
        steps = max(self.num_layers - 1, 1)
        slope = (self.moe_max_expansion - self.moe_min_expansion) / steps
        expansions = [self.moe_min_expansion + slope * layer for layer in range(self.num_layers)]
        return tuple(hidden_width(expansion, self.dim) for expansion in expansions)

    @property
    def base_width(self) -> int:
        """Hidden width of the base MLP; 0 without one."""
        return hidden_width(self.base_expansion, self.dim) if self.base_expansion else 0

    @property
    def matrices_per_mlp(self) -> int:
        """Number of matrices of an MLP: 3 with a gate matrix (swiglu), else 2."""
        return 3 if self.activation == "swiglu" else 2

    @property
    def rotary_dims(self) -> int:
        """Number of dimensions that are rotated in a rotated head; always even."""
        if self.rope_scope == "heads":
            return self.head_width
        return 2 * round(self.rope_fraction * self.head_width / 2)

    @property
    def rotary_kv_heads(self) -> int:
        """Number of KV heads that are rotated, with the query heads that share them."""
        if self.rope_scope == "dims":
            return self.num_kv_heads
        return round(self.rope_fraction * self.num_kv_heads)

    @property
    def has_sigmoid_scores(self) -> bool:
        """Whether an expert's score is the sigmoid of its own logit, and not from a softmax."""
        if ROUTERS[self.router_type].chooses_by_threshold:
            return True
        return self.router_type == "softmax_topk" and self.router_score == "sigmoid"

    def gate_factor(self, num_experts: int) -> float:
        """Return the factor that `gate_scale` means for a layer of `num_experts` experts.

        With gate_scale 0 and one expert per token, it is the inverse of an untrained router's
        gate, whose logits are all 0: num_experts for softmax scores and 2 for sigmoid scores.
        """
        if self.gate_scale:
            return self.gate_scale
        if ROUTERS[self.router_type].chooses_by_threshold:
            return 1.0
        if self.experts_per_token(num_experts) > 1:
            return 1.0
        return 2.0 if self.has_sigmoid_scores else float(num_experts)

    def experts_per_token(self, num_experts: int) -> int:
        """Return the largest number of experts that a token can have in this layer (K)."""
        return ROUTERS[self.router_type].most_experts(num_experts, self.router_top_k)


def hidden_width(expansion: float, dim: int) -> int:
    """Return `expansion * dim` rounded to the nearest multiple of 64, and at least 64."""
    return max(WIDTH_MULTIPLE, WIDTH_MULTIPLE * math.floor(expansion * dim / WIDTH_MULTIPLE + 0.5))
