"""Describe findings in words, for the terminal and for the HTML page."""

from collections.abc import Sequence

from moebius.cost.units import gigabytes
from moebius.profile.finding import Finding
from moebius.profile.result import Profile


def describe(profile: Profile, findings: Sequence[Finding]) -> list[str]:
    """Return the findings as lines for the terminal, each with its change and its prediction."""
    if not findings:
        return [f"findings   nothing wrong; {bound(profile)}"]
    lines = ["findings"]
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
    saved = f", and {gigabytes(finding.bytes)} less memory" if finding.bytes else ""
    return (
        f"predicted {before / after:.2f}x as fast: "
        f"{before * 1e3:.1f} -> {after * 1e3:.1f} ms{saved}"
    )


def bound(profile: Profile) -> str:
    """Return what the step's time is spent on, for a configuration without findings."""
    seconds, waiting = profile.measured.seconds, profile.measured.waiting
    if waiting / seconds > 0.05:
        return (
            "the step is bound by the host, for which the device waits in "
            f"{waiting / seconds:.0%} of it"
        )
    flops, bytes_ = profile.limits
    in_products = sum(
        row.seconds for row in profile.rows if row.flops / flops > row.bytes / bytes_
    )
    what = "matrix products" if in_products > 0.5 * seconds else "moving bytes"
    longest = max(profile.rows, key=lambda row: row.seconds)
    name = longest.component.replace("_", " ")
    return f"the step is bound by {what}, most of all by {name} ({longest.share:.0%} of the step)"
