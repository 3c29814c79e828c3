"""Tests of the HTML page."""

from moebius.profile.finding import Finding
from moebius.profile.page import page
from moebius.profile.verify import Verified
from tests.profile.made_up import made_up, small_config


def test_the_page_has_everything_and_loads_nothing():
    profile = made_up(small_config(), waiting=0.1)
    step = profile.measured.seconds
    finding = Finding("a <title>", "some evidence", ("--model.dim=1",), 0.5 * step)
    text = page(profile, [finding], [Verified(finding, 2.0, [step], [step])])
    for row in profile.rows:
        assert f">{row.component.replace('_', ' ')}</td>" in text
    for part in ("a &lt;title&gt;", "some evidence", "--model.dim=1", "2.00x", "measured 1.00x"):
        assert part in text
    assert "a <title>" not in text and "default-src 'none'" in text
    assert "<img" not in text.split("<script")[0]


def test_a_page_without_findings_says_what_bounds_the_step():
    assert "Nothing wrong; the step is bound by" in page(made_up(small_config()), [])
