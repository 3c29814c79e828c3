"""Reasons why the times of an ablation cannot be trusted. This does not import torch."""

from collections.abc import Iterator

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import quoted, speed

STEADY = 1.5
"""How much the ratio of two variants' speeds may change between rounds: highest over lowest."""


def doubts(ablation: Ablation) -> list[str]:
    """Return the reasons as sentences. There are none if nothing speaks against the times."""
    return [f"these times cannot be trusted: {reason}" for reason in _reasons(ablation)]


def _reasons(ablation: Ablation) -> Iterator[str]:
    sound = ablation.sound
    if crowding := next((outcome.crowding for outcome in sound if outcome.crowding), ""):
        yield f"{crowding} while they were measured"
    for outcome in sound[1:]:
        ratio = speed(outcome, sound[0])
        if ratio.highest > STEADY * ratio.lowest:
            yield (
                f"from round to round, {quoted(outcome)} had {ratio.lowest:.2f} to "
                f"{ratio.highest:.2f} times the tokens/s of {quoted(sound[0])}"
            )
