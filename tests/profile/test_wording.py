"""Tests of findings as people read them."""

from moebius.profile.finding import Finding
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
