"""All rules that look for problems in a profiled step, and the order of their findings."""

from collections.abc import Callable, Iterator
from contextlib import suppress

from moebius.errors import ConfigError
from moebius.profile.case import Case
from moebius.profile.finding import Finding
from moebius.profile.result import Profile
from moebius.profile.rules_architecture import (
    base_mlp,
    dropped_tokens,
    more_than_one_expert,
    multi_token_prediction,
    router_without_gradient,
)
from moebius.profile.rules_device import (
    all_logits,
    copied_heads,
    data_bound,
    recomputation,
    small_batch,
    waiting_device,
)
from moebius.profile.rules_shapes import (
    expert_width,
    padded_rows,
    small_heads,
    uneven_load,
    vocabulary,
)
from moebius.profile.steps import Steps

WORTH_SAYING = 0.02  # share of the step's time
ORDER = ("harm", "waste", "choice")

RULES: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    router_without_gradient,
    dropped_tokens,
    base_mlp,
    more_than_one_expert,
    multi_token_prediction,
    small_heads,
    copied_heads,
    vocabulary,
    expert_width,
    padded_rows,
    uneven_load,
    waiting_device,
    data_bound,
    recomputation,
    all_logits,
    small_batch,
)


def findings(profile: Profile, steps: Steps) -> list[Finding]:
    """Return what is wrong: harm first, then waste, then choices, each sorted by predicted gain.

    A finding with a predicted gain of less than 2% of the step, and none of memory, is left out
    unless it is harm. Rules may time other shapes on the device, which takes a few seconds at
    most.
    """
    every: list[Finding] = []
    for rule in RULES:
        with suppress(ConfigError):  # the change does not fit the rest of the configuration
            every += rule(Case(profile, steps))
    longest = (1 - WORTH_SAYING) * profile.measured.seconds
    worth_saying = [
        finding
        for finding in every
        if finding.kind == "harm" or finding.bytes or finding.seconds < longest
    ]
    return sorted(worth_saying, key=lambda finding: (ORDER.index(finding.kind), finding.seconds))
