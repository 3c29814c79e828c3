"""The components of a step as bars on a page, each with the least time that it could take."""

from collections.abc import Sequence

from moebius.observe.charts import Charts
from moebius.profile.result import Row


def bars(charts: Charts, rows: Sequence[Row]) -> str:
    """Add the bars to the charts of a page, in the order of the rows, and return their HTML."""
    longest = sum(row.seconds for row in rows)
    unit, scale = ("ms of a step", 1e3) if longest < 10 else ("s of a step", 1.0)
    parts = [
        ("forward", [row.forward * scale for row in rows], 0),
        ("backward", [row.backward * scale for row in rows], 6),
    ]
    if any(row.waiting for row in rows):
        parts.append(("waiting for the host", [row.waiting * scale for row in rows], -1))
    return charts.bars(
        "Time of each component",
        unit,
        [row.component.replace("_", " ") for row in rows],
        parts,
        [f"{row.share:.1%}" for row in rows],
        ("floor on this device", [row.floor * scale for row in rows]),
    )
