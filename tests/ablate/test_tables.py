"""Tests of the tables on the terminal."""

from moebius.ablate.comparison import Outcome
from moebius.ablate.tables import lines
from moebius.ablate.variants import Variant
from tests.ablate.configurations import CONFIG, ablation, outcome

CURVE = ((2, 1.5), (8, 1.0))


def test_speed_is_compared_with_the_first_variant_that_ran():
    broken = Outcome(Variant("broken", (), None, problem="model.dim=3: odd"), problem="odd")
    text = lines(ablation(broken, outcome("a", [0.5, 0.5]), outcome("b", [0.25, 0.125])))
    assert text[0].split() == [
        *("variant", "active", "total", "ms/step", "tokens/s", "to", "the", "first", "RSS")
    ]
    assert text[1].split() == ["broken", "odd"]
    assert text[2].split()[3:] == ["500.0", "400", "1", "0.00", "MB"]
    assert text[3].split()[3:] == [
        *("187.5", "1,067", "3.00", "(2.00", "to", "4.00)", "0.00", "MB")
    ]
    assert "2 rounds in turns on CPU; lowest and highest ratio in parentheses" in text


def test_learning_is_compared_at_the_places_that_all_reached():
    a = outcome("a", turns=[1.0], curves=[CURVE])
    b = outcome("b", turns=[2.0], curves=[[(2, 1.75), (8, 1.25)]])
    text = lines(ablation(a, b))
    start = text.index("held-out bits per byte after so many tokens")
    assert text[start + 1].split() == ["400", "1.6k", "loss", "compared", "with", "the", "first"]
    assert text[start + 2].split() == ["a", "1.5000", "1.0000", "2.0000"]
    assert text[start + 3].split() == ["b", "1.7500", "1.2500", "2.5000", "+0.2500"]
    start = text.index("held-out bits per byte after so many seconds of training")
    assert text[start + 1].split()[:3] == ["2", "8", "loss"]
    assert text[start + 3].split()[:2] == ["b", "-"]


def test_variants_of_equal_compute_say_how_near_they_are():
    resized = Variant("resized", (), CONFIG, is_resized=True)
    text = lines(ablation(outcome("first"), outcome(variant=resized)))
    assert "resized: experts of width 512, +0.0% active parameters compared with the first" in text
