"""The rows of the live view that show how each layer's load is spread over its experts."""

from collections.abc import Iterator

from rich.segment import Segment

from moebius.observe.glance import Balance
from moebius.observe.heat_strip import DEAD, EVEN, GLYPHS, WIDEST_EXPERT, strip
from moebius.observe.paint import LEVELS, Row, fitted, styled

FIGURES = 12
"""Columns of a layer's CV and dead experts."""
LEGEND = 58
"""Columns that explain the strips, for layers with few experts."""


def layer_rows(
    layers: dict[int, Balance],
    num_steps: int,
    limit: float,
    width: int,
    columns: int,
    height: int,
) -> Iterator[Row]:
    """Yield a row for each layer or, where there are more layers, for several neighbors.

    num_steps: number of logged steps that the balances are from. limit: CV above which a load is
    uneven. columns: how many layers are beside each other. height: number of rows, of which the
    first one explains the others.
    """
    num_rows = height - 1
    groups = list(_folded(list(layers), num_rows * columns))
    labels = [_label(group, layers) for group in groups]
    label_width = max(5, *map(len, labels))
    room = (width - 2 * (columns - 1)) // columns - label_width - 1 - FIGURES
    most = max(len(balance.shares_E) for balance in layers.values())
    strip_width = max(1, min(room, max(WIDEST_EXPERT * most, LEGEND)))
    head = _scale(strip_width, label_width, num_steps, is_sorted=most > strip_width)
    each = label_width + 1 + strip_width + FIGURES
    gap, blank = [styled("  ")], [styled(" " * each)]
    rest = [styled(" " * max(0, width - columns * each - 2 * (columns - 1)))]
    yield fitted([part for n in range(columns) for part in (gap if n else []) + head], width)
    used = -(-len(groups) // columns)
    for row in range(num_rows):
        parts: Row = []
        for column in range(columns):
            at = column * used + row
            parts += gap if column else []
            if row < used and at < len(groups):
                label = f"{labels[at]:<{label_width}} "
                parts += _layer(label, groups[at], layers, strip_width, limit)
            else:
                parts += blank
        parts += rest
        yield parts if width >= each else fitted(parts, width)


def _folded(layers: list[int], most: int) -> Iterator[list[int]]:
    """Yield groups of neighboring layers, at most so many and of about the same size."""
    most = min(most, len(layers))
    for group in range(most):
        yield layers[group * len(layers) // most : (group + 1) * len(layers) // most]


def _worst(group: list[int], layers: dict[int, Balance]) -> int:
    return max(group, key=lambda layer: (layers[layer].dead, layers[layer].cv))


def _label(group: list[int], layers: dict[int, Balance]) -> str:
    """Return the numbers of the layers of a row, and which one is shown if there are several."""
    if len(group) == 1:
        return f"{group[0]:>3}"
    return f"{group[0]}-{group[-1]}▸{_worst(group, layers)}"


def _scale(width: int, label_width: int, num_steps: int, is_sorted: bool) -> Row:
    """Return the line above the layers, which explains as much of the strips as has room."""
    title = "experts by their share" if is_sorted else "share of each expert"
    title += f" over {num_steps} logged steps" if num_steps > 1 else ""
    glyphs = {level: Segment(glyph, LEVELS[level]) for level, glyph in GLYPHS.items()}
    little = [glyphs[level] for level in range(EVEN)]
    much = [glyphs[level] for level in range(EVEN + 1, max(GLYPHS) + 1)]
    parts: list[Row] = [
        [styled(title[:width], "quiet")],
        [styled("  "), glyphs[DEAD], styled(" dead", "quiet")],
        [styled("  "), *little, styled(" little", "quiet")],
        [styled("  "), glyphs[EVEN], styled(" even", "quiet")],
        [styled("  "), *much, styled(" much", "quiet")],
    ]
    legend: Row = []
    for part in parts:
        if Segment.get_line_length([*legend, *part]) > width:
            break
        legend += part
    names = styled(f"{'CV':>6}{'dead':>6}")
    return [styled(f"{'layer':<{label_width}} "), *fitted(legend, width), names]


def _layer(
    label: str, group: list[int], layers: dict[int, Balance], width: int, limit: float
) -> Row:
    """Return the row of one layer, or of the worst of several. `width` is that of the strip."""
    worst = layers[_worst(group, layers)]
    cv = max(layers[layer].cv for layer in group)
    dead = sum(layers[layer].dead for layer in group)
    runs = strip(worst.shares_E, width)
    return [
        styled(label),
        *(Segment(GLYPHS[level] * number, LEVELS[level]) for level, number in runs),
        styled(" " * (width - sum(number for _, number in runs))),
        styled(f"{cv:>6.2f}", "warn" if cv > limit else ""),
        styled(f"{dead:>6,}", "bad" if dead else ""),
    ]
