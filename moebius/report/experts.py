"""What each expert takes, as an evaluation of the run has counted it.

evaluation.json may have a list `experts`, with an object for each expert:

    {"layer": 0, "expert": 3, "share": 0.12, "tokens": [[" the", 120], ...],
     "sources": {"books": 0.7, "code": 0.3}}

`tokens` are the most frequent tokens that the expert took, each with its number, and `sources` the
shares of its tokens by the source that they come from.
"""

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
    experts = (run.evaluation or {}).get("experts")
    known = (
        [each for each in experts if isinstance(each, dict)] if isinstance(experts, list) else []
    )
    if not known:
        return
    yield "<h2>What each expert takes</h2>"
    rows = [
        (
            str(each.get("layer", "")),
            str(each.get("expert", "")),
            _percent(each.get("share")),
            _tokens(each.get("tokens")),
            _sources(each.get("sources")),
        )
        for each in known[:MOST_ROWS]
    ]
    heads = ("layer", "expert", "share of the load", "most frequent tokens", "sources")
    yield table(heads, rows, is_words=True)
    if len(known) > MOST_ROWS:
        yield f"<p class=note>{len(known) - MOST_ROWS:,} more are in evaluation.json.</p>"


def _percent(value: Any) -> str:
    share = number(value)
    return f"{share:.1%}" if math.isfinite(share) else ""


def _tokens(tokens: Any) -> str:
    """Return tokens in quotes, so that spaces can be seen."""
    if not isinstance(tokens, list):
        return ""
    names = [item[0] if isinstance(item, list) and item else item for item in tokens]
    return " ".join(repr(name) for name in names[:MOST_TOKENS] if isinstance(name, str))


def _sources(sources: Any) -> str:
    if not isinstance(sources, dict):
        return ""
    shares = [(name, number(share)) for name, share in sources.items()]
    known = sorted((pair for pair in shares if math.isfinite(pair[1])), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in known)
