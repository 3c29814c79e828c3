"""Format a profile as a table for the terminal. The HTML page uses the same cells."""

from moebius.config.width import folded
from moebius.cost.units import byte_size, short
from moebius.profile.doubts import doubts
from moebius.profile.result import Profile, Row

INDENT = 11
"""Width of the column of names below the table."""


def table(profile: Profile) -> list[str]:
    """Return the components and the whole step as lines for the terminal."""
    widths = [*(9 for _ in headings(profile)[1:-2]), 7, 10]
    lines = []
    for name, *cells in (headings(profile), *(values(profile, row) for row in profile.rows)):
        aligned = (f"{text:>{width}}" for text, width in zip(cells, widths, strict=True))
        lines.append(f"{name:<22}" + "".join(aligned).rstrip())
    facts = (f"{name:<{INDENT}}{text}" for name, text in summary(profile))
    return [*lines, "", *folded(facts, INDENT)]


def headings(profile: Profile) -> list[str]:
    """Return the titles of the columns. Only a GPU has a column for the time that it waits."""
    waiting = ["waiting"] if profile.measured.waiting else []
    return [
        *("component", "params", "FLOPs", "bytes", "floor", "forward", "backward"),
        *waiting,
        *("share", "of floor"),
    ]


def values(profile: Profile, row: Row) -> list[str]:
    """Return a row's cells, in the order of `headings`. Cells that do not apply are empty."""
    _, scale = _unit(profile)
    sizes = [short(size) if size else "" for size in (row.parameters, row.flops, row.bytes)]
    seconds = [row.forward, row.backward, *([row.waiting] if profile.measured.waiting else [])]
    return [
        row.component.replace("_", " "),
        *sizes,
        f"{row.floor * scale:.2f}" if row.floor else "",
        *(f"{value * scale:.2f}" for value in seconds),
        f"{row.share:.1%}",
        f"{row.efficiency:.0%}" if row.floor else "",
    ]


def summary(profile: Profile) -> list[tuple[str, str]]:
    """Return the facts about the whole step, as pairs of a name and a text."""
    measured, (unit, scale) = profile.measured, _unit(profile)
    tokens = profile.config.train.batch_size * profile.config.train.seq_len
    low, high = min(measured.rounds) * scale, max(measured.rounds) * scale
    floor = sum(row.floor for row in profile.rows)
    peak = measured.gpu.peak_bytes
    memory = f", {byte_size(peak)} of memory at the peak" if peak else ""
    waiting = (
        f" ({measured.waiting / measured.seconds:.1%} of it waiting for the host)"
        if measured.waiting
        else ""
    )
    doubt = doubts(profile)
    rates = f"{short(profile.ceilings.flops)}FLOP/s, {short(profile.ceilings.bytes)}B/s"
    return [
        (
            "step",
            f"{measured.seconds * scale:.2f} {unit} ({low:.2f} to {high:.2f}) for {tokens:,} "
            f"tokens: {profile.tokens_per_second:,.0f} tokens/s, MFU {profile.mfu:.1%}{memory}",
        ),
        (
            "floor",
            f"{floor * scale:.2f} {unit}, {floor / measured.seconds:.0%} of the step; "
            f"all times are in {unit}",
        ),
        (
            "covered",
            f"the components add up to {measured.covered:.1%} of the step{waiting}; "
            f"measuring them made it {measured.slowdown:.3f} times as long",
        ),
        *([("host", _host(profile))] if measured.host else []),
        ("text", profile.text),
        *(("", note) for note in profile.notes),
        ("ceilings", f"{rates}, measured on {profile.device}"),
        *([("WARNING", doubt)] if doubt else []),
    ]


def _host(profile: Profile) -> str:
    """Return how long the host takes to launch a step, in words."""
    measured, (unit, scale) = profile.measured, _unit(profile)
    share = measured.host / measured.seconds
    return (
        f"takes about {measured.host * scale:.2f} {unit} to launch a step, {share:.0%} of its "
        "time: no step can be shorter than that"
    )


def _unit(profile: Profile) -> tuple[str, float]:
    """Return the unit of all times, and the number of these units in a second."""
    return ("ms", 1e3) if profile.measured.seconds < 10 else ("s", 1.0)
