"""Reasons why the figures of a profile cannot be trusted."""

import statistics
from collections.abc import Iterator

from moebius.profile.result import Profile

STEADY = 1.2
"""How much longer the slow rounds of a measurement may take than the fast ones: the third quartile
divided by the first."""
GAP = 0.1
"""How far the sum of the components may be from the step, as a share of the step."""


def doubts(profile: Profile) -> str:
    """Return in words why the figures cannot be trusted. Empty if nothing speaks against them."""
    reasons = list(_reasons(profile))
    return f"these figures cannot be trusted: {'; '.join(reasons)}" if reasons else ""


def _reasons(profile: Profile) -> Iterator[str]:
    measured = profile.measured
    if measured.crowding:
        yield f"{measured.crowding}, so every time is too long by an unknown factor"
    fast, _, slow = statistics.quantiles(measured.rounds, n=4, method="inclusive")
    if slow > STEADY * fast:
        yield (
            f"the speed of the machine changed: a quarter of the rounds took more than "
            f"{slow / fast:.2f} times as long as another quarter"
        )
    if abs(measured.covered - 1) > GAP:
        yield (
            f"the components add up to {measured.covered:.0%} of the step, because the steps that "
            "were cut into components ran at another speed"
        )
