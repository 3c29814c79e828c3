"""What a configuration costs, counted from the configuration alone: parameters, FLOPs. No torch here.

A product of a (T, I) with an (I, O) matrix counts 2 * T * I * O FLOPs; a training step is three forward passes (backward
counts twice). Causal attention counts half of the S * S scores. Norms, rotations and other elementwise work count nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moebius.config import MTP_OFFSETS, ModelConfig


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters by component. Tied embeddings count once, under `embedding`."""
    D, H = model.dim, model.head_width
    mtp_layers = 1 if model.use_mtp else 0
    norms = (2 * model.num_layers + 1 + mtp_layers) * D + (2 * H * model.num_layers if model.qk_norm else 0)
    attention = _attention_weights(model) * model.num_layers
    layers = _layers(model)
    mtp = sum(layers[-1].parameters.values()) + len(MTP_OFFSETS) * model.vocab_size if model.use_mtp else 0
    return {
        "embedding": model.vocab_size * D,
        "attention": attention,
        **{name: sum(layer.parameters[name] for layer in layers) for name in ("base_mlp", "router", "experts")},
        "norms": norms,
        "mtp": mtp,
        "lm_head": 0 if model.tie_embeddings else model.vocab_size * D,
    }


def active_parameters(model: ModelConfig, experts_per_token: Sequence[float] | None = None) -> int:
    """Parameters a token is multiplied with: not the embedding (a look-up) unless it is also the head, and of the experts
    only the token's own. experts_per_token: as in `forward_flops_per_token`; the MTP layer's is over its three passes."""
    counts = parameters(model)
    head = model.vocab_size * model.dim
    layers = _layers(model)
    routed = sum(layer.expert_weights * used for layer, used in zip(layers, _used(model, experts_per_token), strict=True))
    mtp = 0.0
    if model.use_mtp:
        last = layers[-1]
        used_in_mtp = _used_in_mtp(model, experts_per_token) / len(MTP_OFFSETS)
        mtp = last.parameters["base_mlp"] + last.parameters["router"] + last.expert_weights * used_in_mtp
    shared = counts["attention"] + counts["base_mlp"] + counts["router"] + counts["norms"]
    return round(shared + routed + mtp + head)


def forward_flops_per_token(
    model: ModelConfig, seq_len: int, experts_per_token: Sequence[float] | None = None
) -> dict[str, float]:
    """FLOPs of one forward pass per token, by component. experts_per_token: measured, one number per layer with experts
    or without (0), the MTP layer's last when there is one; default: as many as the router may choose."""
    layers = _layers(model)
    used = _used(model, experts_per_token)
    head = 2.0 * model.vocab_size * model.dim
    mtp = 0.0
    if model.use_mtp:
        last = layers[-1]
        dense = 2 * (last.parameters["base_mlp"] + last.parameters["router"]) + head
        mtp = len(MTP_OFFSETS) * dense + 2 * last.expert_weights * _used_in_mtp(model, experts_per_token)
    return {
        "attention_projections": 2.0 * _attention_weights(model) * model.num_layers,
        "attention_core": 2.0 * seq_len * model.num_heads * model.head_width * model.num_layers,
        "base_mlp": 2.0 * sum(layer.parameters["base_mlp"] for layer in layers),
        "router": 2.0 * sum(layer.parameters["router"] for layer in layers),
        "experts": 2.0 * sum(layer.expert_weights * share for layer, share in zip(layers, used, strict=True)),
        "mtp": mtp,
        "lm_head": head,
    }


def training_flops_per_token(model: ModelConfig, seq_len: int, experts_per_token: Sequence[float] | None = None) -> float:
    """Forward and backward, without recomputation."""
    return 3 * sum(forward_flops_per_token(model, seq_len, experts_per_token).values())


def hidden_weights(model: ModelConfig) -> int:
    """Parameters of the matrices that Muon keeps one moment of, where AdamW keeps two."""
    layers = _layers(model)
    layers += layers[-1:] if model.use_mtp else []
    mlps = sum(layer.parameters["base_mlp"] - layer.mix_weights + layer.parameters["experts"] for layer in layers)
    return _attention_weights(model) * model.num_layers + mlps


@dataclass(frozen=True)
class _Layer:
    """A block's feed-forward half: its parameters, those of one of its experts, and what of the base MLP's is the mix."""

    parameters: dict[str, int]
    expert_weights: int
    mix_weights: int


def _layers(model: ModelConfig) -> list[_Layer]:
    layers = []
    for count, width in zip(model.experts_per_layer, model.expert_widths, strict=True):
        expert = model.matrices_per_mlp * model.dim * width if count else 0
        mix = 2 * model.dim if model.residual_mix == "learned" and model.base_width and count else 0
        base = model.matrices_per_mlp * model.dim * model.base_width + mix
        layers.append(_Layer({"base_mlp": base, "router": count * model.dim, "experts": count * expert}, expert, mix))
    return layers


def _used(model: ModelConfig, experts_per_token: Sequence[float] | None) -> list[float]:
    if experts_per_token is not None:
        return list(experts_per_token[: model.num_layers])
    return [float(model.experts_per_token(count)) for count in model.experts_per_layer]


def _used_in_mtp(model: ModelConfig, experts_per_token: Sequence[float] | None) -> float:
    """Experts a token has in the MTP layer, over all its passes."""
    if experts_per_token is not None:
        return experts_per_token[model.num_layers]
    return _used(model, None)[-1] * len(MTP_OFFSETS)


def _attention_weights(model: ModelConfig) -> int:
    return model.dim * model.head_width * (2 * model.num_heads + 2 * model.num_kv_heads)
