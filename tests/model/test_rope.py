"""The rotary embedding, compared with its formula in complex numbers, in float64."""

import pytest
import torch
from torch import Tensor

from moebius.config import ModelConfig
from moebius.model.rope import rotate, rotation
from tests.model.tiny import B, G, S, tiny

H = 8
CPU = torch.device("cpu")


def rotated(x_SH: Tensor, dims: int, theta: float) -> Tensor:
    """Return the rotated vectors by the formula.

    Dimensions i and i + dims/2 form a complex number. At position p it is rotated by the angle
    p * theta^(-2i/dims).
    """
    half = dims // 2
    position_S1 = torch.arange(x_SH.shape[0], dtype=torch.float64)[:, None]
    angle = position_S1 * theta ** (-2 * torch.arange(half, dtype=torch.float64) / max(dims, 1))
    rotation = torch.polar(torch.ones_like(angle), angle)
    numbers = torch.complex(x_SH[:, :half], x_SH[:, half:dims]) * rotation
    return torch.cat([numbers.real, numbers.imag, x_SH[:, dims:]], dim=-1)


@pytest.mark.parametrize(
    ("scope", "fraction", "dims", "kv_heads"),
    [
        ("dims", 1.0, 8, 3),
        ("dims", 0.75, 6, 3),
        ("dims", 0.5, 4, 3),
        ("dims", 0.0, 0, 3),
        ("heads", 1.0, 8, 3),
        ("heads", 0.75, 8, 2),
        ("heads", 0.34, 8, 1),
        ("heads", 0.0, 8, 0),
    ],
)
def test_against_the_formula(scope, fraction, dims, kv_heads):
    config = tiny(head_dim=H, rope_scope=scope, rope_fraction=fraction, rope_theta=500.0)
    assert (config.rotary_dims, config.rotary_kv_heads) == (dims, kv_heads)
    x_BSGH = torch.randn(B, S, G, H, dtype=torch.float64)
    out_BSGH = rotate(x_BSGH, rotation(S, config, CPU), kv_heads)
    for b in range(B):
        for g in range(G):
            if g < kv_heads:
                expected_SH = rotated(x_BSGH[b, :, g], dims, 500.0)
                torch.testing.assert_close(out_BSGH[b, :, g], expected_SH, rtol=0, atol=1e-6)
                assert torch.equal(out_BSGH[b, :, g, dims:], x_BSGH[b, :, g, dims:])
            else:
                assert torch.equal(out_BSGH[b, :, g], x_BSGH[b, :, g])


@pytest.mark.parametrize("fraction", [0.5, 0.75, 1.0])
def test_dot_products_depend_on_the_distance_alone(fraction):
    config = tiny(head_dim=H, rope_fraction=fraction)
    q_BSGH, k_BSGH = torch.randn(2, H, dtype=torch.float64)[:, None, None, None, :].expand(
        2, 1, S, 1, H
    )
    angles = rotation(S, config, CPU)
    q_SH, k_SH = rotate(q_BSGH, angles, 1)[0, :, 0], rotate(k_BSGH, angles, 1)[0, :, 0]
    score_SS = q_SH @ k_SH.T
    torch.testing.assert_close(score_SS[1:, 1:], score_SS[:-1, :-1], rtol=0, atol=1e-5)
    assert (score_SS[1:, 0] - score_SS[0, 0]).abs().min() > 1e-3  # the distance does matter


def test_a_rotation_far_into_a_long_sequence_is_still_exact():
    length, config = 4096, tiny(head_dim=H, rope_fraction=1.0)
    x_SH = torch.randn(length, H)
    out_SH = rotate(x_SH[None, :, None], rotation(length, config, CPU), 1)[0, :, 0]
    expected_SH = rotated(x_SH.double(), H, config.rope_theta)
    torch.testing.assert_close(out_SH.double(), expected_SH, rtol=0, atol=2e-3)


def test_three_quarters_of_28_query_and_7_kv_heads_of_32_dimensions():
    by_dims = ModelConfig()
    assert (by_dims.head_width, by_dims.rotary_dims, by_dims.rotary_kv_heads) == (32, 24, 7)
    by_heads = ModelConfig(rope_scope="heads")
    assert (by_heads.head_width, by_heads.rotary_dims) == (32, 32)
    assert by_heads.rotary_kv_heads == 5  # 5.25, rounded


def test_the_dtype_is_kept():
    angles = rotation(S, tiny(head_dim=H), CPU)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert rotate(torch.randn(B, S, G, H, dtype=dtype), angles, G).dtype == dtype
