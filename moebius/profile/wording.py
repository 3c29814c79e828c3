"""Describe findings in words, for the terminal and for the HTML page."""

from collections.abc import Sequence

from moebius.cost.units import byte_size
from moebius.profile.doubts import doubts
from moebius.profile.finding import Finding
from moebius.profile.result import Profile

EXPLAINED = 0.2
"""Share of the step from which its floor explains where the time goes. Below it, the step would
take about as long if all matrix products and all copies were free."""
NEAR = 0.5
"""Share of the step from which its floor binds it. Below it, most of the time is lost in kernels
that do not reach the speed of the device's products and copies."""


def describe(profile: Profile, findings: Sequence[Finding]) -> list[str]:
    """Return the findings as lines for the terminal, each with its change and its prediction."""
    if not findings:
        return [f"findings   {without_findings(profile)}"]
    on = "   on figures that cannot be trusted (see WARNING)" if doubts(profile) else ""
    lines = [f"findings{on}"]
    for number, finding in enumerate(findings, start=1):
        lines += [
            f"{number:>3}. {finding.title}: {finding.evidence}",
            f"     {' '.join(finding.flags)}",
            f"     {prediction(profile, finding)}",
        ]
    return lines


def prediction(profile: Profile, finding: Finding) -> str:
    """Return the predicted improvement from a finding's change, in words."""
    before, after = profile.measured.seconds, finding.seconds
    saved = f", and {byte_size(finding.bytes)} less memory" if finding.bytes else ""
    return (
        f"predicted {before / after:.2f}x as fast: "
        f"{before * 1e3:.1f} -> {after * 1e3:.1f} ms{saved}"
    )


def without_findings(profile: Profile) -> str:
    """Return what a profile without findings says: what bounds the step, if its figures do say.

    Figures that cannot be trusted say neither that nothing is wrong nor what bounds the step.
    """
    if doubts(profile):
        return "none, and no verdict, because these figures cannot be trusted (see WARNING)"
    return f"nothing wrong; {bound(profile)}"


def bound(profile: Profile) -> str:
    """Return what the step's time is spent on, for a configuration without findings."""
    seconds, waiting = profile.measured.seconds, profile.measured.waiting
    if waiting / seconds > 0.05:
        return (
            "the step is bound by the host, for which the device waits in "
            f"{waiting / seconds:.0%} of it"
        )
    longest = max(profile.rows, key=lambda row: row.seconds)
    name = f"{longest.component.replace('_', ' ')} ({longest.share:.0%} of the step)"
    floor = sum(row.floor for row in profile.rows)
    if floor < EXPLAINED * seconds:
        return (
            f"neither matrix products nor moving bytes bind the step, because their floor is "
            f"{floor / seconds:.0%} of it; the rest is overhead, such as launches, Python and "
            f"threads, most of all in {name}"
        )
    if floor < NEAR * seconds:
        lost = max(profile.rows, key=lambda row: row.seconds - row.floor)
        times = f", {lost.seconds / lost.floor:.1f} times its floor" if lost.floor else ""
        return (
            f"the step is bound by kernels that do not reach the speed of the device: it takes "
            f"{seconds / floor:.1f} times its floor, and most of that is lost in "
            f"{lost.component.replace('_', ' ')} ({lost.share:.0%} of the step{times})"
        )
    flops, bytes_ = profile.limits
    in_products = sum(row.floor for row in profile.rows if row.flops / flops > row.bytes / bytes_)
    what = "matrix products" if in_products > 0.5 * floor else "moving bytes"
    return f"the step is bound by {what}, most of all by {name}"
