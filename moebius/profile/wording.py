"""Findings in words, for the terminal and for the page."""

from moebius.profile.findings import Finding
from moebius.profile.report import Profile


def describe(profile: Profile, found: list[Finding]) -> list[str]:
    """Lines for the terminal."""
    if not found:
        return [f"findings   nothing wrong; {bound(profile)}"]
    text = ["findings"]
    for number, each in enumerate(found, start=1):
        text += [
            f"{number:>3}. {each.title}: {each.evidence}",
            f"     {' '.join(each.flags)}",
            f"     {prediction(profile, each)}",
        ]
    return text


def prediction(profile: Profile, finding: Finding) -> str:
    """What the change should bring, in words."""
    step, saved = profile.measured.seconds, f", and {finding.bytes / 1e9:.1f} GB less" if finding.bytes else ""
    return f"predicted {step / finding.seconds:.2f}x as fast: {step * 1e3:.1f} -> {finding.seconds * 1e3:.1f} ms{saved}"


def bound(profile: Profile) -> str:
    """What the step is spent on, for a configuration with nothing wrong."""
    rows = profile.rows
    top = max(rows, key=lambda row: row.seconds)
    products = sum(row.seconds for row in rows if row.flops / profile.ceilings.flops > row.bytes / profile.ceilings.bytes)
    waiting = profile.measured.waiting / profile.measured.seconds
    if waiting > 0.05:
        return f"it is bound by the host, for which the device waits in {waiting:.0%} of the step"
    what = "matrix products" if products > 0.5 * profile.measured.seconds else "moving bytes"
    return f"it is bound by {what}, most of all {top.component.replace('_', ' ')} ({top.share:.0%} of the step)"
