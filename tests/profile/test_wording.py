"""Findings as people read them."""

from moebius.profile.findings import Finding
from moebius.profile.wording import bound, describe, prediction
from tests.profile.made_up import made_up, small_config


def test_each_finding_has_its_evidence_its_flags_and_its_gain():
    profile = made_up(small_config())
    step = profile.measured.seconds
    found = [
        Finding("one", "because", ("--model.base_expansion=0", "--model.use_mtp=false"), step / 2),
        Finding("two", "of that", ("--parallel.loss_chunks=8",), step, "choice", bytes=1.5e9),
    ]
    lines = describe(profile, found)
    assert lines[0] == "findings" and lines[1] == "  1. one: because" and lines[4] == "  2. two: of that"
    assert lines[2].split() == list(found[0].flags)
    assert "2.00x as fast" in lines[3] and lines[3].strip() == prediction(profile, found[0])
    assert "1.00x as fast" in lines[6] and lines[6].endswith("and 1.5 GB less")


def test_with_nothing_wrong_it_says_what_bounds_the_step():
    profile = made_up(small_config())
    (line,) = describe(profile, [])
    assert line == f"findings   nothing wrong; {bound(profile)}"
    assert max(profile.rows, key=lambda row: row.seconds).component.replace("_", " ") in line
