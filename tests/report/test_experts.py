"""Tests of the table of what each expert takes."""

import pytest

from moebius.report.experts import MOST_ROWS, experts_section
from moebius.report.run import Run


def html_of(tmp_path, evaluation):
    """Return the section of a run with this evaluation."""
    return "".join(experts_section(Run(tmp_path, evaluation=evaluation)))


def test_tokens_and_sources_are_shown_and_escaped(tmp_path):
    layer = {
        "layer": 1,
        "sources": {
            "code": {"tokens_per_expert": [5, 1], "cv": 0.2},
            "<i>": {"tokens_per_expert": [7, 3]},
        },
        "top_tokens": [[], [{"text": " <b>", "id": 3}, {"text": "\n"}, {"text": "the"}]],
    }
    html = html_of(tmp_path, {"experts": [layer]})
    assert "75.0%" in html and "25.0%" in html  # 12 and 4 of 16
    assert "&#x27; &lt;b&gt;&#x27; &#x27;\\n&#x27; &#x27;the&#x27;" in html
    assert "&lt;i&gt; 75.0%, code 25.0%" in html and "&lt;i&gt; 58.3%, code 41.7%" in html
    assert "<b>" not in html and "<i>" not in html


@pytest.mark.parametrize(
    "evaluation", [None, {}, {"experts": 5}, {"experts": []}, {"experts": [3, "a"]}]
)
def test_without_experts_there_is_no_section(tmp_path, evaluation):
    assert html_of(tmp_path, evaluation) == ""


@pytest.mark.parametrize(
    "layer",
    [
        {"layer": None, "top_tokens": [3, [None, {}, {"text": 5}]]},
        {"sources": {"a": {"tokens_per_expert": ["much", None]}, "b": 3}},
        {"sources": [1], "top_tokens": [[], []]},
    ],
)
def test_odd_values_leave_cells_empty(layer, tmp_path):
    assert html_of(tmp_path, {"experts": [layer]}).count("<tr>") == 3


def test_thousands_of_experts_are_cut(tmp_path):
    layer = {"layer": 0, "top_tokens": [[]] * (MOST_ROWS + 5)}
    html = html_of(tmp_path, {"experts": [layer]})
    assert html.count("<tr>") == MOST_ROWS + 1 and "5 more" in html
