"""Numbers and sizes as people read them."""

import pytest

from moebius.cost.units import byte_size, counted, itemized, short


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7.6, "8"),
        (999, "999"),
        (1000, "1.0k"),
        (51_200, "51.2k"),
        (947_700_000, "947.7M"),
        (3.35e9, "3.4G"),
        (776.365e12, "776.4T"),
        (4.2e15, "4200.0T"),
    ],
)
def test_a_number_has_a_metric_prefix(number, text):
    assert short(number) == text


def test_the_number_of_decimals_can_be_chosen():
    assert short(1_234_567, decimals=2) == "1.23M"
    assert byte_size(84.9e9, decimals=0) == "85 GB"


def test_a_noun_is_in_the_plural_unless_there_is_one_of_it():
    words = [counted(number, "core") for number in (0, 1, 2, 1024)]
    assert words == ["0 cores", "1 core", "2 cores", "1,024 cores"]


@pytest.mark.parametrize(
    ("size", "decimals", "text"),
    [
        (1.26e9, 1, "1.3 GB"),
        (3.352e12, 0, "3,352 GB"),
        (0.1e9, 1, "0.1 GB"),
        (99e6, 1, "99.0 MB"),
        (10e6, 2, "0.01 GB"),
        (9.87e6, 2, "9.87 MB"),
        (900e6, 0, "900 MB"),
        (40e3, 1, "0.0 MB"),
        (0, 1, "0.0 MB"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_shows_a_digit_of_them(size, decimals, text):
    assert byte_size(size, decimals) == text


def test_parts_have_the_unit_of_the_whole():
    assert itemized(1.51e9, {"weights": 12e6, "activations": 1.5e9}) == (
        "1.5 GB: weights 0.01, activations 1.50"
    )
    assert (
        itemized(8.4e6, {"weights": 0.4e6, "logits": 8e6}) == "8.4 MB: weights 0.40, logits 8.00"
    )
