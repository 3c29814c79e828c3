"""Parameters and FLOPs of a model, counted from its configuration.

The product of a (T, I) matrix with an (I, O) matrix counts as 2 * T * I * O FLOPs. A training step
counts as three forward passes, because backward has two products for each one in forward. Causal
attention counts half of the S * S scores. Norms, rotations and other elementwise work count as 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moebius.config import MTP_OFFSETS, ModelConfig
from moebius.config.routers import ROUTERS


def parameters(model: ModelConfig) -> dict[str, int]:
    """Return the number of parameters of each component.

    Tied embeddings count once, as `embedding`. The final norm and the MTP layer's norm are part of
    `norms`.
    """
    D, H = model.dim, model.head_width
    layers = _layers(model)
    num_norms = 2 * model.num_layers + 1 + model.use_mtp
    head_norms = 2 * H * model.num_layers if model.qk_norm else 0
    mtp = 0
    if model.use_mtp:  # a layer like the last one, and a bias of the LM head for each offset
        mtp = sum(layers[-1].parameters.values()) + len(MTP_OFFSETS) * model.vocab_size
    return {
        "embedding": model.vocab_size * D,
        "attention": _attention_weights(model) * model.num_layers,
        **{
            name: sum(layer.parameters[name] for layer in layers)
            for name in ("base_mlp", "router", "experts")
        },
        "norms": num_norms * D + head_norms,
        "mtp": mtp,
        "lm_head": 0 if model.tie_embeddings else model.vocab_size * D,
    }


def active_parameters(model: ModelConfig, experts_per_token: Sequence[float] | None = None) -> int:
    """Return the number of parameters that take part in computing one token.

    Only the experts that the token uses count. The embedding counts only if it is also the LM
    head, because otherwise it is a look-up. The MTP layer counts once, with the mean number of
    experts over its passes. experts_per_token is as in `forward_flops_per_token`.
    """
    counts = parameters(model)
    head = model.vocab_size * model.dim
    layers = _layers(model)
    routed = sum(
        layer.weights_per_expert * used
        for layer, used in zip(layers, _experts_used(model, experts_per_token), strict=True)
    )
    mtp = 0.0
    if model.use_mtp:
        last = layers[-1]
        used_in_mtp = _experts_used_in_mtp(model, experts_per_token) / len(MTP_OFFSETS)
        dense_in_mtp = last.parameters["base_mlp"] + last.parameters["router"]
        mtp = dense_in_mtp + last.weights_per_expert * used_in_mtp
    shared = counts["attention"] + counts["base_mlp"] + counts["router"] + counts["norms"]
    return round(shared + routed + mtp + head)


def forward_flops_per_token(
    model: ModelConfig, seq_len: int, experts_per_token: Sequence[float] | None = None
) -> dict[str, float]:
    """Return the FLOPs per token of each component in one forward pass.

    experts_per_token is the mean number of experts that a token has in each layer, 0 for a dense
    layer. With MTP, one more number follows: the MTP layer's, summed over its passes. By default
    every token has as many experts as the router may choose.
    """
    layers = _layers(model)
    used = _experts_used(model, experts_per_token)
    head = 2.0 * model.vocab_size * model.dim
    mtp = 0.0
    if model.use_mtp:
        last = layers[-1]
        dense = 2 * (last.parameters["base_mlp"] + last.parameters["router"]) + head
        used_in_mtp = _experts_used_in_mtp(model, experts_per_token)
        mtp = len(MTP_OFFSETS) * dense + 2 * last.weights_per_expert * used_in_mtp
    return {
        "attention_projections": 2.0 * _attention_weights(model) * model.num_layers,
        "attention_core": 2.0 * seq_len * model.num_heads * model.head_width * model.num_layers,
        "base_mlp": 2.0 * sum(layer.parameters["base_mlp"] for layer in layers),
        "router": 2.0 * sum(layer.parameters["router"] for layer in layers),
        "experts": 2.0
        * sum(layer.weights_per_expert * count for layer, count in zip(layers, used, strict=True)),
        "mtp": mtp,
        "lm_head": head,
    }


def training_flops_per_token(
    model: ModelConfig, seq_len: int, experts_per_token: Sequence[float] | None = None
) -> float:
    """Return the FLOPs per token of forward and backward, without recomputation."""
    return 3 * sum(forward_flops_per_token(model, seq_len, experts_per_token).values())


def most_experts_per_token(model: ModelConfig) -> list[float]:
    """Return the largest number of experts that a token can have in each layer."""
    return [float(model.experts_per_token(count)) for count in model.experts_per_layer]


def expected_experts_per_token(model: ModelConfig) -> list[float]:
    """Return how many experts a token has in each layer before the router has learned anything.

    With MTP, one more number follows: the MTP layer's, summed over its passes.
    """
    used = [expected_experts(model, layer) for layer in range(model.num_layers)]
    return used + ([len(MTP_OFFSETS) * used[-1]] if model.use_mtp else [])


def expected_experts(model: ModelConfig, layer: int) -> float:
    """Return one layer's value of `expected_experts_per_token`."""
    return ROUTERS[model.router_type].expected_experts(
        model.experts_per_layer[layer], model.router_top_k, model.router_threshold
    )


def expert_weights(model: ModelConfig) -> list[int]:
    """Return the number of parameters of all experts together, layer by layer."""
    return [layer_expert_weights(model, layer) for layer in range(model.num_layers)]


def layer_expert_weights(model: ModelConfig, layer: int) -> int:
    """Return the number of parameters of one layer's experts together."""
    count, width = model.experts_per_layer[layer], model.expert_widths[layer]
    return count * model.matrices_per_mlp * model.dim * width


def hidden_weights(model: ModelConfig) -> int:
    """Return the number of parameters in hidden matrices: attention, MLPs and experts.

    These are the ones that Muon updates.
    """
    layers = _layers(model)
    layers += layers[-1:] if model.use_mtp else []
    mlps = sum(
        layer.parameters["base_mlp"] - layer.mix_weights + layer.parameters["experts"]
        for layer in layers
    )
    return _attention_weights(model) * model.num_layers + mlps


@dataclass(frozen=True)
class _Layer:
    """Numbers of parameters in the feed-forward half of a block."""

    parameters: dict[str, int]
    """Parameters of `base_mlp`, `router` and `experts`."""
    weights_per_expert: int
    mix_weights: int
    """The part of `base_mlp` that mixes its output with the experts' (`residual_mix="learned"`);
    0 without it."""


def _layers(model: ModelConfig) -> list[_Layer]:
    layers = []
    for count, width in zip(model.experts_per_layer, model.expert_widths, strict=True):
        expert = model.matrices_per_mlp * model.dim * width if count else 0
        has_mix = model.residual_mix == "learned" and model.base_width and count
        mix = 2 * model.dim if has_mix else 0
        base = model.matrices_per_mlp * model.dim * model.base_width + mix
        counts = {"base_mlp": base, "router": count * model.dim, "experts": count * expert}
        layers.append(_Layer(counts, expert, mix))
    return layers


def _experts_used(model: ModelConfig, experts_per_token: Sequence[float] | None) -> list[float]:
    """Return the number of experts that a token has in each layer, without the MTP layer."""
    if experts_per_token is not None:
        return list(experts_per_token[: model.num_layers])
    return most_experts_per_token(model)


def _experts_used_in_mtp(model: ModelConfig, experts_per_token: Sequence[float] | None) -> float:
    """Return the number of experts that a token has in the MTP layer, summed over its passes."""
    if experts_per_token is not None:
        return experts_per_token[model.num_layers]
    return most_experts_per_token(model)[-1] * len(MTP_OFFSETS)


def _attention_weights(model: ModelConfig) -> int:
    """Return the number of parameters of one layer's attention projections."""
    return model.dim * model.head_width * (2 * model.num_heads + 2 * model.num_kv_heads)
