"""Tests of the page of an ablation."""

import json
import re

from moebius.ablate.comparison import Outcome
from moebius.ablate.page import page
from moebius.ablate.variants import Variant
from tests.ablate.configurations import TWIN, ablation, outcome


def data_of(html: str):
    """Return the data of a page's charts."""
    found = re.search(r"id=data>(.*?)</script>", html)
    assert found
    return json.loads(found[1])


def test_speed_and_learning_are_drawn():
    first = outcome(
        "a", [0.5, 0.5], turns=[1.0], curves=[((2, 1.5), (8, 1.0)), ((2, 1.3), (8, 1))]
    )
    twin = outcome("", [0.25, 0.125], [2.0], [[(2, 1.75), (8, 1.25)]] * 2, TWIN)
    html = page(ablation(first, twin))
    data = data_of(html)
    bars, curves = data["charts"].values()
    assert bars["names"] == ["a", "dense twin"] and bars["labels"] == ["1.00x", "3.00x"]
    assert [line["y"] for line in curves["series"]] == [[1.4, 1.0], [1.75, 1.25]]
    assert data["axes"][1]["tokens"] == [400, 1600] and data["axes"][1]["seconds"] == [4, 16]
    assert data["axes"][0]["flops"][0] > 0
    assert "<dt>break-even</dt>" in html and "mean of 2 seeds" in html
    assert '<input type=radio name=along value="seconds">' in html


def test_a_variant_that_failed_says_why():
    broken = Outcome(Variant("<broken>", (), None, problem="model.dim=3: odd"), problem="odd <b>")
    html = page(ablation(broken, outcome("a")))
    assert "&lt;broken&gt;" in html and "odd &lt;b&gt;" in html and "<broken>" not in html
    (bars,) = data_of(html)["charts"].values()
    assert bars["names"] == ["a"]


def test_without_any_sound_variant_there_is_still_a_page():
    broken = Outcome(Variant("broken", (), None, problem="odd"), problem="odd")
    assert "1 variants compared" not in (html := page(ablation(broken)))
    assert data_of(html)["charts"] == {}
