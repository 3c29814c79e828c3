"""The charts of a page, as the data from which page.js draws them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

import numpy as np

from moebius.config.printable import printable

DIGITS = 6
"""Significant digits of a value. A screen shows three or four, and each digit is a byte."""
BAR_HEIGHT, LEGEND_HEIGHT = 40, 78  # pixels of a row, and of the legend and the axis together

Column = Sequence[float] | np.ndarray
Places = Mapping[str, Column]
"""The places of points along each axis that they have: `step`, `tokens`, `seconds`, `flops`."""


@dataclass(frozen=True)
class Line:
    """A series of a chart with lines."""

    name: str
    axes: int
    """The set of places of its points, as `Charts.places` returned it."""
    y: Column
    """The value of each point. One that is not finite leaves a gap."""
    color: int = 0
    style: Literal["line", "dashed", "points", "faint"] = "line"
    """A faint line has no place in the legend."""
    low: Column | None = None
    high: Column | None = None
    """With `low`, the range of the values that a point stands for."""


@dataclass(frozen=True)
class Marks:
    """A series of events."""

    name: str
    axes: int
    rows: Sequence[int]
    """The row that each event is in."""
    texts: Sequence[str]
    """What happened, in words. The page shows them as text, whatever they contain."""
    color: int
    symbol: str


@dataclass
class Charts:
    """The charts of one page. Each method that adds a chart returns the HTML of its place."""

    _axes: list[dict[str, list[float | None]]] = field(default_factory=list)
    _charts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return all charts as page.js expects them."""
        return {"axes": self._axes, "charts": self._charts}

    def places(self, values: Places) -> int:
        """Add a set of places, and return its number."""
        self._axes.append({name: numbers(column) for name, column in values.items()})
        return len(self._axes) - 1

    def lines(
        self,
        title: str,
        unit: str,
        lines: Sequence[Line],
        limits: Sequence[tuple[float, str]] = (),
        *,
        is_wide: bool = False,
        is_share: bool = False,
        from_zero: bool = False,
    ) -> str:
        """Add a chart with lines.

        limits: values with a name, each drawn as a horizontal line. is_share: whether values are
        shown as percentages.
        """
        series = [
            {
                "name": line.name,
                "axes": line.axes,
                "y": numbers(line.y),
                "color": line.color,
                "style": line.style,
            }
            | (
                {"low": numbers(line.low), "high": numbers(line.high)}
                if line.low is not None and line.high is not None
                else {}
            )
            for line in lines
        ]
        chart = {
            "kind": "lines",
            "series": series,
            "limits": [{"value": value, "name": name} for value, name in limits],
            "percent": is_share,
            "zero": from_zero,
            "log": not from_zero and _is_logarithmic(lines),
        }
        return self._add(chart, title, unit, 340 if is_wide else 260, is_wide)

    def marks(
        self, title: str, unit: str, rows: Sequence[str], marks: Sequence[Marks], span: Places
    ) -> str:
        """Add a chart of events in named rows. `span` has both ends of each axis."""
        series = [
            {
                "name": each.name,
                "axes": each.axes,
                "y": list(each.rows),
                "texts": list(each.texts),
                "color": each.color,
                "symbol": each.symbol,
            }
            for each in marks
        ]
        chart = {
            "kind": "marks",
            "rows": list(rows),
            "series": series,
            "span": {name: numbers(ends) for name, ends in span.items()},
        }
        return self._add(chart, title, unit, LEGEND_HEIGHT + BAR_HEIGHT * len(rows), True)

    def heat(
        self, title: str, unit: str, axes: int, num_experts: int, dead: float, cells: str
    ) -> str:
        """Add a heat map of the shares of experts (rows) over time (columns).

        dead: share below which an expert is dead. cells: the shares times 65,535 as little-endian
        integers of two bytes, all experts of the first column first, in base64.
        """
        chart = {
            "kind": "heat",
            "axes": axes,
            "experts": num_experts,
            "dead": dead,
            "cells": cells,
        }
        return self._add(chart, title, unit, 48 + min(max(100, 3 * num_experts), 400), False)

    def bars(
        self,
        title: str,
        unit: str,
        names: Sequence[str],
        parts: Sequence[tuple[str, Sequence[float], int]],
        labels: Sequence[str],
        floors: tuple[str, Sequence[float]] | None = None,
    ) -> str:
        """Add horizontal bars, a row for each name.

        parts: name, values and color of each part of the bars; the color -1 is gray. labels: the
        text at the end of each bar. floors: a name, and a value for each bar, which is marked.
        """
        chart = {
            "kind": "bars",
            "names": list(names),
            "unit": unit,
            "series": [
                {"name": name, "values": numbers(values), "color": color}
                for name, values, color in parts
            ],
            "labels": list(labels),
            "floors": numbers(floors[1]) if floors else None,
            "floor_name": floors[0] if floors else "",
        }
        return self._add(chart, title, "", LEGEND_HEIGHT + BAR_HEIGHT * len(names), True)

    def _add(
        self, chart: dict[str, Any], title: str, unit: str, height: int, is_wide: bool
    ) -> str:
        name = f"chart-{len(self._charts)}"
        self._charts[name] = chart
        title, unit = escape(printable(title)), escape(printable(unit))
        return (
            f"<figure{' class=wide' if is_wide else ''}><figcaption>{title} <span>{unit}</span>"
            f'</figcaption><div class=plot id={name} role=img aria-label="{title}" '
            f'style="height:{height}px"></div></figure>'
        )


def numbers(values: Column) -> list[float | None]:
    """Return values with `DIGITS` digits, and None for those that are not finite."""
    return [_short(float(value)) if math.isfinite(value) else None for value in values]


def _short(value: float) -> float:
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{DIGITS}g}")


def _is_logarithmic(lines: Sequence[Line]) -> bool:
    """Return whether the values differ so much that a linear axis would hide the small ones."""
    values = [float(value) for line in lines for value in line.y if math.isfinite(value)]
    return bool(values and min(values) > 0 and max(values) > 20 * min(values))
