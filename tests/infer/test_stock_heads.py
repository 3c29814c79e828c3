"""Where the dimensions of heads lie in stock architectures, and how they are rotated."""

import math

import pytest
import torch

from moebius.cost.exports import ERNIE, GLM4_MOE, LLAMA
from moebius.infer.stock_heads import NO_ROTATION, Heads
from tests.infer.stock import model_config

ROTARIES = [LLAMA, ERNIE, GLM4_MOE]
SHAPES = [
    {"rope_fraction": 0.75},
    {"rope_fraction": 1.0},
    {"rope_fraction": 0.0},
    {"rope_scope": "heads", "rope_fraction": 0.5},
    {"head_dim": 14, "rope_fraction": 0.4},
]


@pytest.mark.parametrize("width", range(2, 258, 2))
def test_no_partial_rotation_loses_a_pair_to_rounding(width):
    for dims in range(0, width + 1, 2):
        config = model_config(head_dim=width, rope_fraction=dims / width)
        heads = Heads(config, GLM4_MOE)
        assert heads.rotary_dims == dims
        factor = heads.rotation(seq_len=8)["partial_rotary_factor"]
        assert int(width * factor) == dims and factor <= 1


def test_plain_shares_would_lose_pairs():
    shares = [(dims, width) for width in range(2, 258, 2) for dims in range(2, width, 2)]
    assert any(int(width * (dims / width)) != dims for dims, width in shares)


@pytest.mark.parametrize("architecture", ROTARIES, ids=lambda architecture: architecture.name)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_every_dimension_has_a_place_of_its_own(architecture, changes):
    heads = Heads(model_config(**changes), architecture)
    H = heads.model.head_width
    for is_rotated in (True, False) if heads.is_mixed else (True,):
        place_H = heads.place_H(is_rotated)
        assert len(place_H) == len(set(place_H.tolist())) == H
        assert place_H.min() >= 0 and place_H.max() < heads.width
    if heads.is_mixed:
        assert not set(heads.place_H(True).tolist()) & set(heads.place_H(False).tolist())


@pytest.mark.parametrize("architecture", ROTARIES, ids=lambda architecture: architecture.name)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_what_is_spread_is_gathered_again(architecture, changes):
    heads = Heads(model_config(**changes), architecture)
    weight = torch.randn(4 * heads.model.head_width, 5)
    assert torch.equal(heads.gather(heads.spread(weight)), weight)
    assert torch.equal(heads.narrow(heads.widen(weight)), weight)
    norm_H = torch.randn(heads.model.head_width)
    assert torch.equal(heads.gather_norm(heads.spread_norm(norm_H)), norm_H)


def test_pairs_that_are_not_rotated_have_no_angle_at_any_position():
    rotation = Heads(model_config(rope_fraction=0.5), LLAMA).rotation(seq_len=2048)
    divisors, theta = rotation["rope_scaling"]["long_factor"], rotation["rope_theta"]
    width = 16
    frequencies = [
        1 / (divisor * theta ** (2 * pair / width)) for pair, divisor in enumerate(divisors)
    ]
    ours = [theta ** (-2 * pair / 8) for pair in range(4)]
    assert frequencies[:4] == pytest.approx(ours, rel=1e-12)
    assert divisors[4:] == [NO_ROTATION] * 4
    angle = torch.tensor(1e7 * max(frequencies[4:]))
    assert angle.cos() == 1 and 1 + angle.sin() == 1


def test_both_generations_find_the_rotation():
    full = Heads(model_config(rope_fraction=1.0, rope_theta=5000.0), LLAMA).rotation(64)
    assert full["rope_theta"] == full["rope_parameters"]["rope_theta"] == 5000.0
    assert full["rope_scaling"] is None
    part = Heads(model_config(rope_fraction=0.5), LLAMA).rotation(64)
    for name, value in part["rope_scaling"].items():
        assert part["rope_parameters"][name] == value
    glm = Heads(model_config(rope_fraction=0.5), GLM4_MOE).rotation(64)
    factor = glm["partial_rotary_factor"]
    assert glm["rope_parameters"]["partial_rotary_factor"] == factor


def test_mixed_heads_are_twice_as_wide():
    heads = Heads(model_config(rope_scope="heads", rope_fraction=0.5), LLAMA)
    assert heads.is_mixed and heads.width == 32
    assert heads.query_factor == pytest.approx(math.sqrt(2))
