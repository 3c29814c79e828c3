"""A curve drawn with braille characters, each of which has two columns of four dots."""

import math
from collections.abc import Sequence

import numpy as np

MARK = "◆"
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
"""The bit of each dot of a character, by row and column (Unicode, block Braille Patterns)."""
_FIRST = 0x2800


def plot(
    places: Sequence[float],
    values: Sequence[float],
    marks: Sequence[tuple[float, float]],
    width: int,
    height: int,
) -> tuple[list[str], float, float]:
    """Return a curve as rows of characters, with its lowest and highest value.

    places: where each value is along the horizontal axis, in ascending order. marks: single
    points, place and value, that stand for themselves. What is not finite is left out; without
    anything finite, the rows are empty and the values NaN.
    """
    x, y = np.asarray(places, float), np.asarray(values, float)
    is_known = np.isfinite(y)
    x, y = x[is_known], y[is_known]
    marks = [(at, value) for at, value in marks if math.isfinite(value)]
    every = [*y, *(value for _, value in marks)]
    if not every or not len(y):
        return [" " * width] * height, math.nan, math.nan
    low, high = min(every), max(every)
    cells = _characters(_line(x, y, low, high, 2 * width, 4 * height))
    rows = [list(row) for row in cells]
    span = x[-1] - x[0] or 1
    for at, value in marks:
        if x[0] <= at <= x[-1]:
            column = int((width - 1) * (at - x[0]) / span)
            rows[int(_row(value, low, high, height))][column] = MARK
    return ["".join(row) for row in rows], low, high


def _line(
    x: np.ndarray, y: np.ndarray, low: float, high: float, columns: int, rows: int
) -> np.ndarray:
    """Return which dots (rows, columns) a line through the points has, without gaps."""
    used = columns if len(x) > 1 else 1
    at = np.interp(np.linspace(x[0], x[-1], used), x, y)
    row = _row(at, low, high, rows).astype(int)
    dots = np.zeros((rows, columns), bool)
    every = np.arange(rows)[:, None]
    dots[:, :used] = every == row
    # Neighbors meet half of the way between them.
    middle = (row[1:] + row[:-1]) // 2
    for side, part in ((row[1:], slice(1, used)), (row[:-1], slice(0, used - 1))):
        dots[:, part] |= (every >= np.minimum(side, middle)) & (every <= np.maximum(side, middle))
    return dots


def _row(value: np.ndarray | float, low: float, high: float, rows: int) -> np.ndarray:
    """Return the row of a value, counted from the top. An even curve is in the middle."""
    if high == low:
        return np.full(np.shape(value), rows // 2)
    return np.rint((rows - 1) * (high - np.asarray(value)) / (high - low))


def _characters(dots: np.ndarray) -> list[str]:
    """Return dots as rows of characters."""
    rows, columns = dots.shape
    blocks = dots.reshape(rows // 4, 4, columns // 2, 2).transpose(0, 2, 1, 3)
    codes = (blocks * _DOTS).sum(axis=(2, 3))
    return ["".join(chr(_FIRST + code) if code else " " for code in row) for row in codes.tolist()]
