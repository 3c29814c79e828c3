"""The number of parameters of every variant, counted by hand."""

import pytest
import torch

from moebius.config import ModelConfig
from moebius.model.transformer import Transformer
from tests.config.founding import MAXIMUM_SPEED, STABILITY
from tests.model.tiny import D, E, G, H, N, V, count_parameters, tiny

ATTENTION = D * N * H + 2 * D * G * H + N * H * D  # query, key and value, output
BLOCK = 2 * D + ATTENTION  # with its two norms
EXPERTS = (E * D + E * 3 * D * 64, E * D + E * 3 * D * 128)
"""Parameters of each layer's router and experts, which have three matrices each."""
PLAIN = 2 * V * D + D + 2 * BLOCK + sum(EXPERTS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, PLAIN),
        ({"router_type": "switch"}, PLAIN),
        ({"router_top_k": 3}, PLAIN),
        ({"tie_embeddings": True}, PLAIN - V * D),
        ({"qk_norm": True}, PLAIN + 2 * 2 * H),
        ({"head_dim": 10}, PLAIN + 2 * (10 - H) * (2 * D * N + 2 * D * G)),
        ({"num_kv_heads": 1}, PLAIN - 2 * 2 * D * (G - 1) * H),
        ({"rope_scope": "heads"}, PLAIN),
        ({"activation": "relu2"}, PLAIN - E * D * (64 + 128)),
        (
            {"activation": "gelu", "base_expansion": 3.0},
            PLAIN - E * D * (64 + 128) + 2 * 2 * D * 64,
        ),
        # 0.5 * 24 is 12, which is rounded up to the smallest width, and 6 * 24 is 144.
        ({"base_expansion": 0.5}, PLAIN + 2 * 3 * D * 64),
        ({"base_expansion": 6.0, "router_type": "sigmoid"}, PLAIN + 2 * 3 * D * 128),
        ({"base_expansion": 3.0, "residual_mix": "learned"}, PLAIN + 2 * (3 * D * 64 + 2 * D)),
        ({"num_experts": 0, "base_expansion": 3.0}, PLAIN - sum(EXPERTS) + 2 * 3 * D * 64),
        (
            {"num_experts": (2, 7)},
            2 * V * D + D + 2 * BLOCK + 2 * (D + 3 * D * 64) + 7 * (D + 3 * D * 128),
        ),
        ({"num_experts": (0, 5), "base_expansion": 3.0}, PLAIN - EXPERTS[0] + 2 * 3 * D * 64),
        ({"num_layers": 1}, PLAIN - BLOCK - EXPERTS[1]),
        ({"use_mtp": True}, PLAIN + D + EXPERTS[1] + 3 * V),
        (
            {"use_mtp": True, "base_expansion": 3.0},
            PLAIN + D + EXPERTS[1] + 3 * V + 3 * 3 * D * 64,
        ),
    ],
)
def test_parameters_counted_by_hand(changes, expected):
    assert count_parameters(Transformer(tiny(**changes))) == expected


def large_by_hand(base: int, widths: list[int], num_experts: int) -> int:
    """Return the parameters of 24 layers of width 896 with untied embeddings of 50,304 tokens.

    There are 28 query heads and 7 KV heads of 32 dimensions.
    """
    attention = 896 * 896 + 2 * 896 * 224 + 896 * 896
    experts = sum(num_experts * (896 + 3 * 896 * width) for width in widths)
    return 2 * 50_304 * 896 + 896 + 24 * (2 * 896 + attention + 3 * 896 * base) + experts


@pytest.mark.parametrize(
    ("config", "base", "lowest", "highest"),
    [(MAXIMUM_SPEED, 0, 3.0, 4.0), (STABILITY, 448, 2.0, 3.0)],
    ids=["maximum speed", "stability"],
)
def test_both_recommendations_are_built_as_written(
    config: ModelConfig, base: int, lowest: float, highest: float
):
    with torch.device("meta"):
        model = Transformer(config)
    slope = (highest - lowest) / 23
    widths = [64 * round((lowest + slope * layer) * 896 / 64) for layer in range(24)]
    assert (widths[0], widths[-1]) == (lowest * 896, highest * 896)
    assert count_parameters(model) == large_by_hand(base, widths, num_experts=4)
