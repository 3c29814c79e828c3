"""Self-contained HTML pages: text, tables, and charts that Apache ECharts draws in the browser.

A page loads no other file, and its content security policy forbids it to try. Everything that
comes from a corpus, a model or a file's name must be escaped before it gets here.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from moebius.config.printable import printable
from moebius.observe.charts import Charts

_FILES = Path(__file__).parent
_LIBRARY = _FILES / "echarts"
_NO_ICON = "<link rel=icon href=data:,>"
"""What keeps a browser from asking the server for an icon that it does not have."""
_NOTICE = "Charts: Apache ECharts, Apache License 2.0. Its notice and license are in the source "


def page(title: str, body: Iterable[str], charts: Charts, version: str = "") -> str:
    """Return a page as HTML. `body` is HTML, and has the element of each chart.

    With a version, which is the page's ETag, the page asks its server for a newer one. Raises
    OSError if a file of the package is missing.
    """
    scripts = [(_LIBRARY / "echarts.min.js").read_text("utf-8"), _read("page.js")]
    if version:  # it chooses the axis before anything is drawn
        scripts.insert(1, _read("follow.js"))
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    policy += "; connect-src 'self'" if version else ""
    return "\n".join(
        [
            "<!doctype html>",
            "<html lang=en>",
            "<meta charset=utf-8>",
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name=viewport content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            *([f'<meta name=version content="{text(version)}">', _NO_ICON] if version else []),
            f"<title>{text(title)}</title>",
            f"<style>\n{_read('page.css')}</style>",
            *body,
            f"<footer>Made by Moebius. {_NOTICE}of this page.</footer>",
            "<noscript><p>The charts need JavaScript; the text and the tables do not.</noscript>",
            f"<!--\n{_license()}\n-->",
            f'<script type="application/json" id=data>{_json(charts.to_json())}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</html>\n",
        ]
    )


def text(value: object) -> str:
    """Return a value as escaped text, also without control characters."""
    return escape(printable(str(value)))


def prose(value: object) -> str:
    """Return a value as escaped text in which what is between backticks is code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", text(value))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], is_words: bool = False) -> str:
    """Return a table of texts, which are escaped here. A narrow screen shows rows as blocks.

    is_words: whether the columns hold words, which begin at the left, and not numbers.
    """
    head = "".join(f"<th>{text(name)}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-head="{text(name)}">{text(cell)}</td>' if name else f"<td>{text(cell)}</td>"
            for name, cell in zip(heads, row, strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    kind = " class=words" if is_words else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return pairs of a name and a text, which are escaped here, as a list of two columns."""
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
    return f"<dl class=facts>{items}</dl>"


def axis_switch(titles: Mapping[str, str]) -> Iterator[str]:
    """Yield the buttons that choose the horizontal axis of all charts. The first one is chosen."""
    yield "<form class=axes><fieldset><legend>Show by</legend>"
    for number, (name, title) in enumerate(titles.items()):
        checked = " checked" if number == 0 else ""
        yield (
            f'<label><input type=radio name=along value="{text(name)}"{checked}> '
            f"{text(title)}</label>"
        )
    yield "</fieldset></form>"


def _json(values: Any) -> str:
    """Return values as JSON that no text in them can end early, as `</script>` would."""
    encoded = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _license() -> str:
    """Return the notice and the licenses of the library, as the text of a comment."""
    names = ("NOTICE", "LICENSE", "LICENSE-d3")
    return "\n\n".join((_LIBRARY / name).read_text("utf-8") for name in names).replace("--", "- -")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _read(name: str) -> str:
    return (_FILES / name).read_text("utf-8")
