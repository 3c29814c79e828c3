"""Numbers and sizes as people read them."""

import pytest

from moebius.cost.units import counted, gigabytes, gigabytes_by_name, short


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
    assert gigabytes(84.9e9, decimals=0) == "85 GB"


def test_a_noun_is_in_the_plural_unless_there_is_one_of_it():
    words = [counted(number, "core") for number in (0, 1, 2, 1024)]
    assert words == ["0 cores", "1 core", "2 cores", "1,024 cores"]


def test_bytes_are_shown_in_units_of_a_billion():
    assert gigabytes(1.26e9) == "1.3 GB"
    assert gigabytes_by_name({"weights": 12e6, "activations": 1.5e9}) == (
        "weights 0.01, activations 1.50"
    )
    assert gigabytes_by_name({}) == ""
