"""What each expert takes, as `moebius evaluate` has counted it in the run's evaluations/."""

import math
from collections.abc import Iterator
from typing import Any

from moebius.observe.page import table
from moebius.report.curves import number
from moebius.report.run import Run

MOST_TOKENS = 12
"""Number of tokens that are shown of each expert."""
MOST_ROWS = 2_000
"""Number of experts that are shown of a model."""


def experts_section(run: Run) -> Iterator[str]:
    """Yield a table with a row for each expert, if an evaluation says what experts take."""
    known = [row for layer in _list(run.evaluation, "experts") for row in _rows(layer)]
    if not known:
        return
    yield "<h2>What each expert takes</h2>"
    heads = ("layer", "expert", "share of the load", "most frequent tokens", "sources")
    yield table(heads, known[:MOST_ROWS], is_words=True)
    if len(known) > MOST_ROWS:
        yield f"<p class=note>{len(known) - MOST_ROWS:,} more are in evaluations/.</p>"


def _rows(layer: Any) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield the cells of each expert of a layer. What is not of its kind leaves cells empty."""
    sources = layer.get("sources") if isinstance(layer, dict) else None
    loads = {
        name: [number(load) for load in _list(figures, "tokens_per_expert")]
        for name, figures in (sources.items() if isinstance(sources, dict) else ())
    }
    tokens = _list(layer, "top_tokens")
    total = sum(load for column in loads.values() for load in column)
    for expert in range(max([len(tokens), *map(len, loads.values())])):
        own = {name: column[expert] for name, column in loads.items() if expert < len(column)}
        load = sum(own.values())
        yield (
            str(layer.get("layer", "")),
            str(expert),
            _percent(load, total),
            _tokens(tokens[expert] if expert < len(tokens) else None),
            ", ".join(
                f"{name} {_percent(part, load)}" for name, part in _by_size(own) if part > 0
            ),
        )


def _list(values: Any, name: str) -> list[Any]:
    """Return a list of that name in a JSON object, or an empty one."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, list) else []


def _by_size(shares: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: -pair[1])


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole and math.isfinite(part / whole) else ""


def _tokens(tokens: Any) -> str:
    """Return tokens in quotes, so that spaces can be seen."""
    known = tokens if isinstance(tokens, list) else []
    texts = [token.get("text") for token in known if isinstance(token, dict)]
    return " ".join(repr(text) for text in texts[:MOST_TOKENS] if isinstance(text, str))
