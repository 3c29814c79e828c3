"""Tests of the table of what each expert takes."""

import pytest

from moebius.report.experts import MOST_ROWS, experts_section
from moebius.report.run import Run


def html_of(tmp_path, evaluation):
    """Return the section of a run with this evaluation."""
    return "".join(experts_section(Run(tmp_path, evaluation=evaluation)))


def test_tokens_and_sources_are_shown_and_escaped(tmp_path):
    expert = {
        "layer": 1,
        "expert": 3,
        "share": 0.125,
        "tokens": [[" <b>", 9], ["\n", 4], "the"],
        "sources": {"code": 0.25, "<i>": 0.75},
    }
    html = html_of(tmp_path, {"experts": [expert]})
    assert "12.5%" in html
    assert "&#x27; &lt;b&gt;&#x27; &#x27;\\n&#x27; &#x27;the&#x27;" in html
    assert "&lt;i&gt; 75%, code 25%" in html
    assert "<b>" not in html and "<i>" not in html


@pytest.mark.parametrize(
    "evaluation", [None, {}, {"experts": 5}, {"experts": []}, {"experts": [3, "a"]}]
)
def test_without_experts_there_is_no_section(tmp_path, evaluation):
    assert html_of(tmp_path, evaluation) == ""


def test_odd_values_leave_cells_empty(tmp_path):
    odd = {"layer": None, "tokens": 3, "sources": [1], "share": "much"}
    assert html_of(tmp_path, {"experts": [odd, {"tokens": [None, [], [5]]}]}).count("<tr>") == 3


def test_thousands_of_experts_are_cut(tmp_path):
    html = html_of(tmp_path, {"experts": [{"layer": 0}] * (MOST_ROWS + 5)})
    assert html.count("<tr>") == MOST_ROWS + 1 and "5 more" in html
