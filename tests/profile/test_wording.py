"""Tests of findings as people read them."""

from dataclasses import replace

import pytest

from moebius.profile.finding import Finding
from moebius.profile.page import page
from moebius.profile.wording import bound, describe, prediction
from tests.profile.made_up import made_up, small_config


def test_each_finding_has_its_evidence_its_flags_and_its_gain():
    profile = made_up(small_config())
    step = profile.measured.seconds
    first = Finding("first", "because", ("--model.base_expansion=0", "--model.dim=1"), step / 2)
    second = Finding(
        "second", "of that", ("--parallel.loss_chunks=8",), step, "choice", bytes=1.5e9
    )
    lines = describe(profile, [first, second])
    assert (lines[0], lines[1], lines[4]) == (
        "findings",
        "  1. first: because",
        "  2. second: of that",
    )
    assert lines[2].split() == list(first.flags)
    assert "2.00x as fast" in lines[3] and lines[3].strip() == prediction(profile, first)
    assert "1.00x as fast" in lines[6] and lines[6].endswith("and 1.5 GB less memory")


def test_with_nothing_wrong_it_says_what_bounds_the_step():
    profile = made_up(small_config())
    (line,) = describe(profile, [])
    assert line == f"findings   nothing wrong; {bound(profile)}"
    longest = max(profile.rows, key=lambda row: row.seconds).component.replace("_", " ")
    assert longest in line
    waiting = made_up(small_config(), waiting=0.3)
    assert bound(waiting) == (
        "the step is bound by the host, for which the device waits in 30% of it"
    )


@pytest.mark.parametrize(
    "measured", [{"rounds": [1.0, 1.0, 2.0, 2.0]}, {"crowding": "another process used 1 core"}]
)
def test_figures_that_cannot_be_trusted_get_no_verdict(measured):
    profile = made_up(small_config(), **measured)
    (line,) = describe(profile, [])
    for text in (line, page(profile, [])):
        assert "o verdict, because these figures cannot be trusted" in text
        assert "bound by" not in text and "nothing wrong" not in text.lower()
    finding = Finding("first", "because", ("--model.dim=1",), 1.0)
    assert describe(profile, [finding])[0] == (
        "findings   on figures that cannot be trusted (see WARNING)"
    )


@pytest.mark.parametrize(
    ("share", "says"),
    [(0.01, "floor is 1% of it"), (0.05, "floor is 5% of it"), (0.19, "floor is 19% of it")],
)
def test_a_floor_that_explains_little_of_the_step_does_not_bind_it(share, says):
    """A made-up step takes four times its floor; here the floors are lower still."""
    profile = made_up(small_config())
    rows = [replace(row, floor=row.floor * 4 * share) for row in profile.rows]
    text = bound(replace(profile, rows=rows))
    assert says in text and "overhead, such as launches, Python and threads" in text
    assert "bound by" not in text


@pytest.mark.parametrize(
    ("share", "says"), [(0.22, "it takes 4.5 times its floor"), (0.28, "3.6 times its floor")]
)
def test_far_from_its_floor_a_step_loses_its_time_in_a_component(share, says):
    profile = made_up(small_config())
    rows = [replace(row, floor=row.floor * 4 * share) for row in profile.rows]
    text = bound(replace(profile, rows=rows))
    lost = max(rows, key=lambda row: row.seconds - row.floor)
    own = f"{lost.share:.0%} of the step, {lost.seconds / lost.floor:.1f} times its floor)"
    assert says in text and f"lost in {lost.component.replace('_', ' ')} ({own}" in text
    assert "bound by matrix products" not in text and "bound by moving bytes" not in text


@pytest.mark.parametrize(
    ("rates", "what"), [((1e9, 1e15), "matrix products"), ((1e15, 1e9), "moving bytes")]
)
def test_the_longer_floors_bind_a_step_near_its_floor(rates, what):
    profile = made_up(small_config())
    flops, bytes_ = rates
    ceilings = replace(profile.ceilings, flops=flops, bytes=bytes_)
    rows = [
        replace(row, floor=max(row.flops / flops, row.bytes / bytes_), forward=1.0)
        for row in profile.rows
    ]
    measured = replace(profile.measured, rounds=[sum(row.floor for row in rows)])
    assert f"bound by {what}" in bound(
        replace(profile, ceilings=ceilings, rows=rows, measured=measured)
    )
