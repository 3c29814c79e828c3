"""Compare the counts with calculations by hand and with torch's own FLOP counter."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moebius.config import ModelConfig, ParallelConfig
from moebius.config.known_models import KNOWN_MODELS
from moebius.config.presets import PRESETS, preset
from moebius.cost import counts as cost
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import Transformer, lookahead

KNOWN = {function.__name__ for function in KNOWN_MODELS}
"""Presets whose layers are too large to be run here."""
D, V, N, G, H, E, S = 32, 101, 4, 2, 6, 3, 10
WIDTHS = (64, 128)  # 2 * 32 and 4 * 32
ATTENTION = D * N * H + 2 * D * G * H + N * H * D  # query; key and value; output
NORMS = 2 * 2 * D + D  # two in each of two layers, and the final one
EXPERTS = tuple(3 * D * width for width in WIDTHS)  # one expert of each layer: gate, up, down
PLAIN = {
    "embedding": V * D,
    "attention": 2 * ATTENTION,
    "base_mlp": 0,
    "router": 2 * D * E,
    "experts": E * sum(EXPERTS),
    "norms": NORMS,
    "mtp": 0,
    "lm_head": V * D,
}
ACTIVE = 2 * ATTENTION + 2 * D * E + NORMS + V * D  # without the routed experts


def small(**changes: Any) -> ModelConfig:
    """Return a model of two layers in which every letter has its own size."""
    shape: dict[str, Any] = {
        "vocab_size": V,
        "dim": D,
        "num_layers": 2,
        "num_heads": N,
        "num_kv_heads": G,
        "head_dim": H,
        "num_experts": E,
    }
    shape |= {"moe_min_expansion": 2.0, "moe_max_expansion": 4.0}
    return ModelConfig(**(shape | changes))


BASE = 3 * D * 64  # base_expansion 2
VARIANTS: list[tuple[dict[str, Any], dict[str, int], int]] = [
    ({}, {}, ACTIVE + sum(EXPERTS)),
    ({"router_top_k": 2}, {}, ACTIVE + 2 * sum(EXPERTS)),
    ({"router_type": "switch"}, {}, ACTIVE + sum(EXPERTS)),
    ({"qk_norm": True}, {"norms": NORMS + 2 * 2 * H}, ACTIVE + sum(EXPERTS) + 2 * 2 * H),
    ({"tie_embeddings": True}, {"lm_head": 0}, ACTIVE + sum(EXPERTS)),
    ({"base_expansion": 2.0}, {"base_mlp": 2 * BASE}, ACTIVE + 2 * BASE + sum(EXPERTS)),
    (
        {"base_expansion": 2.0, "router_type": "sigmoid"},
        {"base_mlp": 2 * BASE},
        ACTIVE + 2 * BASE + E * sum(EXPERTS),
    ),
    (
        {"base_expansion": 2.0, "residual_mix": "learned"},
        {"base_mlp": 2 * (BASE + 2 * D)},
        ACTIVE + 2 * (BASE + 2 * D) + sum(EXPERTS),
    ),
    (
        {"activation": "relu2"},
        {"experts": E * 2 * D * (64 + 128)},
        ACTIVE + 2 * D * (64 + 128),
    ),
    (
        {"num_experts": (2, 5)},
        {"router": 7 * D, "experts": 2 * EXPERTS[0] + 5 * EXPERTS[1]},
        ACTIVE + D + sum(EXPERTS),
    ),
    (  # a layer without experts has no mix
        {"num_experts": (0, 5), "base_expansion": 2.0, "residual_mix": "learned"},
        {"base_mlp": 2 * BASE + 2 * D, "router": 5 * D, "experts": 5 * EXPERTS[1]},
        ACTIVE - D + 2 * BASE + 2 * D + EXPERTS[1],
    ),
    (
        {"use_mtp": True},  # the last layer's shape, a norm, a bias per offset
        {"mtp": D * E + E * EXPERTS[1] + 3 * V, "norms": NORMS + D},
        ACTIVE + sum(EXPERTS) + D + D * E + EXPERTS[1],
    ),
    (
        {"use_mtp": True, "base_expansion": 2.0, "num_experts": (3, 0)},
        {
            "mtp": BASE + 3 * V,
            "norms": NORMS + D,
            "base_mlp": 2 * BASE,
            "router": D * E,
            "experts": E * EXPERTS[0],
        },
        ACTIVE - D * E + 2 * BASE + EXPERTS[0] + D + BASE,
    ),
    (
        {"num_experts": 0, "base_expansion": 2.0},
        {"base_mlp": 2 * BASE, "router": 0, "experts": 0},
        ACTIVE - 2 * D * E + 2 * BASE,
    ),
]


@pytest.mark.parametrize(("changes", "expected", "active"), VARIANTS, ids=lambda value: str(value))
def test_parameters_by_hand(changes, expected, active):
    model = small(**changes)
    assert cost.parameters(model) == PLAIN | expected
    assert cost.active_parameters(model) == active


def test_active_parameters_with_a_measured_number_of_experts():
    model = small(base_expansion=2.0, router_type="sigmoid", use_mtp=True)
    shared = ACTIVE + 2 * BASE + D + BASE + D * E
    assert cost.active_parameters(model, [0.0, 0.0, 0.0]) == shared
    # 1.5 experts in the first layer, 0.5 in the second, 6 in the three passes of the MTP layer
    expected = shared + 1.5 * EXPERTS[0] + 0.5 * EXPERTS[1] + 2 * EXPERTS[1]
    assert cost.active_parameters(model, [1.5, 0.5, 6.0]) == expected
    assert cost.active_parameters(model, [E, E, 3.0 * E]) == cost.active_parameters(model)


FLOPS = {
    "attention_projections": 2 * 2 * ATTENTION,
    # two layers; 2 * S * N * H for scores and as much for values, of which the mask hides half
    "attention_core": 2 * (2 * S * N * H),
    "base_mlp": 0,
    "router": 2 * 2 * D * E,
    "experts": 2 * sum(EXPERTS),
    "mtp": 0,
    "lm_head": 2 * V * D,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"tie_embeddings": True, "qk_norm": True}, {}),
        ({"router_top_k": 2}, {"experts": 2 * 2 * sum(EXPERTS)}),
        ({"base_expansion": 2.0, "residual_mix": "learned"}, {"base_mlp": 2 * 2 * (BASE + 2 * D)}),
        (
            {"base_expansion": 2.0, "router_type": "sigmoid"},
            {"base_mlp": 2 * 2 * BASE, "experts": 2 * E * sum(EXPERTS)},
        ),
        (
            {"num_experts": (0, 5), "base_expansion": 2.0},
            {"base_mlp": 4 * BASE, "router": 10 * D, "experts": 2 * EXPERTS[1]},
        ),
        ({"activation": "gelu"}, {"experts": 2 * 2 * D * (64 + 128)}),
        (
            {"use_mtp": True},
            {"mtp": 3 * (2 * D * E + 2 * EXPERTS[1] + 2 * V * D)},  # each pass has the LM head
        ),
    ],
    ids=str,
)
def test_flops_by_hand(changes, expected):
    flops = cost.forward_flops_per_token(small(**changes), S)
    assert flops == FLOPS | expected
    assert cost.training_flops_per_token(small(**changes), S) == 3 * sum(flops.values())


def test_flops_with_a_measured_number_of_experts():
    model = small(base_expansion=2.0, router_type="sigmoid", use_mtp=True)
    flops = cost.forward_flops_per_token(model, S, [1.5, 0.0, 2.0])
    assert flops["experts"] == 2 * 1.5 * EXPERTS[0]
    assert flops["mtp"] == 3 * 2 * (BASE + D * E + V * D) + 2 * 2 * EXPERTS[1]


def test_the_experts_of_a_token_before_the_router_has_learned_anything():
    model = small(num_experts=(3, 5), base_expansion=2.0, router_type="sigmoid", use_mtp=True)
    assert cost.expected_experts_per_token(model) == [1.5, 2.5, 3 * 2.5]
    assert cost.most_experts_per_token(model) == [3, 5]
    permissive = replace(model, router_threshold=0.1)
    assert cost.expected_experts_per_token(permissive) == [3, 5, 3 * 5]
    assert cost.expected_experts_per_token(small(router_top_k=2)) == [2, 2]
    dense_first = small(num_experts=(0, 5), base_expansion=2.0, router_top_k=2)
    assert cost.expected_experts_per_token(dense_first) == [0, 2]
    assert cost.most_experts_per_token(dense_first) == [0, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation": "relu2"},
        {"num_experts": (0, 5), "base_expansion": 2.0, "residual_mix": "learned"},
    ],
    ids=str,
)
def test_weights_by_layer_add_up(changes):
    model = small(**changes)
    assert sum(cost.expert_weights(model)) == cost.parameters(model)["experts"]
    # The residual mix (2 * D per layer with experts) counts as base MLP, but is not hidden.
    mix = 2 * D if "residual_mix" in changes else 0
    counts = cost.parameters(model)
    hidden = counts["attention"] + counts["base_mlp"] - mix + counts["experts"]
    assert cost.hidden_weights(model) == hidden


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 0, "base_expansion": 2.0},
        {"router_top_k": 2},
        {
            "base_expansion": 2.0,
            "residual_mix": "learned",
            "num_experts": (0, 5),
            "activation": "gelu",
        },
        {"base_expansion": 2.0, "router_type": "sigmoid", "use_mtp": True},
        {"router_type": "switch", "capacity_factor": 0.5},
    ],
    ids=str,
)
def test_flops_against_torchs_counter(changes):
    """This covers forward and backward of the loss, with the rows that the router really chose."""
    counted, ours = flops_per_token(small(**changes), batch_size=3, seq_len=24)
    assert counted == pytest.approx(ours, rel=0.01)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in KNOWN])
def test_flops_of_every_preset_against_torchs_counter(name):
    """The model has only its narrowest and widest layer and a tenth of its vocabulary."""
    model = preset(name).model
    counts = model.experts_per_layer
    shorter = replace(
        model, num_layers=2, num_experts=(counts[0], counts[-1]), vocab_size=model.vocab_size // 10
    )
    counted, ours = flops_per_token(shorter, batch_size=2, seq_len=32)
    assert counted == pytest.approx(ours, rel=0.01)


def flops_per_token(model: ModelConfig, batch_size: int, seq_len: int) -> tuple[float, float]:
    """Return the FLOPs per token of a training step as torch counts them, and as we do.

    torch also counts the scores that the causal mask hides, so they are added to ours.
    """
    torch.manual_seed(0)
    transformer = Transformer(model, choose_backends(ParallelConfig(expert_backend="loop")))
    tokens_BL = torch.randint(1, model.vocab_size, (batch_size, seq_len + lookahead(model)))
    # torch does not count its fused attention on CPUs, only attention that uses plain products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = transformer.loss(tokens_BL)
        loss.total.backward()
    rows = iter(
        [stats.tokens_per_expert_E.sum().item() / (batch_size * seq_len) for stats in loss.stats]
    )
    counts = [*model.experts_per_layer, *([model.experts_per_layer[-1]] if model.use_mtp else [])]
    used = [float(next(rows)) if count else 0.0 for count in counts]
    forward = cost.forward_flops_per_token(model, seq_len, used)
    hidden_by_mask = forward["attention_core"]  # the mask hides half of the scores
    counted = counter.get_total_flops() / (batch_size * seq_len)
    return counted, 3 * (sum(forward.values()) + hidden_by_mask)
