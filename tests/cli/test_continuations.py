"""The line about speed."""

from types import SimpleNamespace
from typing import Any

import pytest

from moebius.cli.continuations import speed_line


@pytest.mark.parametrize(
    ("drafted", "passes", "accepted", "line"),
    [
        (0, 0, 0, "1,200 tokens in 0.50 s: 2,400.0 tokens/s"),
        (
            3,
            100,
            75,
            "1,200 tokens in 0.50 s: 2,400.0 tokens/s; 25% of 300 drafted tokens accepted",
        ),
        (3, 0, 0, "1,200 tokens in 0.50 s: 2,400.0 tokens/s; 0% of 0 drafted tokens accepted"),
    ],
)
def test_speed_and_acceptance(drafted, passes, accepted, line):
    decoder: Any = SimpleNamespace(num_drafted=drafted, num_passes=passes, num_accepted=accepted)
    assert speed_line(1200, 0.5, decoder) == line
