"""FP8 numbers, compared with a definition of e4m3, and the padding rows that products need."""

import math

import pytest
import torch

from moebius.moe.experts import sort_by_expert
from moebius.moe.float8 import aligned, float8, padding, quantize
from tests.moe.e4m3 import HARD, D, inputs_of, rows_in_e4m3
from tests.moe.test_experts import E


def test_powers_of_two_are_kept_exactly():
    """This covers the whole range that a row can hold: 448 down to 2**-9, times any scale."""
    for scale in (2.0**-60, 1.0, 2.0**60):
        x = scale * 2.0 ** torch.arange(-9.0, 9.0)
        values, factor = quantize(torch.stack([x, -x, x.flip(0)]))
        assert values.dtype == torch.float8_e4m3fn and factor.dtype == torch.float32
        assert torch.equal(values.float() * factor, torch.stack([x, -x, x.flip(0)]))


def test_the_scale_is_the_smallest_power_of_two_for_the_rows_maximum():
    largest = torch.tensor([448.0, 448.1, 1.75, 1.76, 0.0, 3e38, 1e-44])
    _, scale = quantize(torch.stack([torch.zeros(7), -largest], dim=1))
    assert scale[:4, 0].tolist() == [1.0, 2.0, 2.0**-8, 2.0**-7]
    assert scale.isfinite().all() and (scale > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_is_rounded_to_e4m3(dtype):
    x = (torch.randn(3, 20, D) * 10.0 ** torch.arange(-10.0, 10.0)[:, None]).to(dtype)
    values, scale = quantize(x)
    assert scale.shape == (3, 20, 1)
    assert torch.equal((values.float() * scale).double(), rows_in_e4m3(x))


def test_zeros_stay_zeros_and_nothing_becomes_infinite():
    x = torch.stack(
        [
            torch.zeros(D),
            torch.full((D,), 3e38),
            torch.full((D,), 1e-45),
            torch.linspace(-1.0, 1.0, D) * 3e38,
        ]
    )
    values, scale = quantize(x)
    assert torch.equal(values[0].float(), torch.zeros(D))
    assert values.float().isfinite().all() and (values.float() * scale).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_hidden(value):
    """Otherwise, a step with such numbers would not be skipped. Other rows are not affected."""
    x_TD, routing, weights, _ = inputs_of("top-2 of 33")
    with torch.no_grad():
        x_TD[7, 3] = value
        out_TD = float8(x_TD, routing, weights)
    assert not out_TD[7].isfinite().all()
    assert torch.cat([out_TD[:7], out_TD[8:]]).isfinite().all()


def test_rows_of_padding():
    assert padding(torch.tensor([0, 1, 15, 16, 17, 32])).tolist() == [0, 15, 1, 0, 15, 0]


@pytest.mark.parametrize("case", HARD)
def test_each_experts_rows_start_at_a_multiple_of_16(case):
    expert_TK = HARD[case]
    order = aligned(sort_by_expert(expert_TK, E), expert_TK)
    count_E = expert_TK.flatten().bincount(minlength=E + 1)[:E]
    size_E = order.end_E.diff(prepend=order.end_E.new_zeros(1))
    assert order.end_E.dtype == torch.int32 and torch.equal(size_E, count_E + padding(count_E))
    rows = len(order.assignment_R)
    assert rows % 16 == 0 and expert_TK.numel() + 15 * E <= rows < expert_TK.numel() + 15 * E + 16
    assert order.row_TK.unique().numel() == expert_TK.numel() and order.row_TK.max() < rows
    assignments_TK = torch.arange(expert_TK.numel()).view(expert_TK.shape)
    assert torch.equal(order.assignment_R[order.row_TK], assignments_TK)
    expert_of_row_TK = torch.searchsorted(order.end_E, order.row_TK.int(), right=True)
    assert torch.equal(expert_of_row_TK, expert_TK)
    assert order.taken_R1.sum() == count_E.sum()
    assert torch.equal(order.taken_R1[order.row_TK, 0], expert_TK < E)
