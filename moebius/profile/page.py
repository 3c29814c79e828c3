"""A profile as one self-contained HTML page: the chart, the table, what is wrong."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from moebius.profile.findings import Finding
from moebius.profile.profile import Verified
from moebius.profile.report import Profile, chart, headings, summary, values
from moebius.profile.wording import bound, prediction

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1e; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin-top: 2rem }
img { max-width: 100% } code { background: #f1f3f5; padding: .1rem .3rem; border-radius: 3px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid #e5e5ea; font-weight: normal }
th { color: #6b6b70 } td:first-child, th:first-child { text-align: left }
dt { font-weight: 600; margin-top: 1rem } dd { margin: .2rem 0 0 } dl.facts { display: grid; grid-template-columns: 7rem 1fr }
dl.facts dt, dl.facts dd { margin: 0; font-weight: normal } dl.facts dt { color: #6b6b70 }
"""


def page(profile: Profile, found: Sequence[Finding], verified: Sequence[Verified] = ()) -> str:
    """HTML without anything that would have to be loaded from elsewhere."""
    config = profile.config
    tokens = config.train.batch_size * config.train.seq_len
    title = f"{profile.measured.seconds * 1e3:,.1f} ms a step, {profile.tokens_per_second:,.0f} tokens/s"
    picture = io.BytesIO()
    chart(profile, picture)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in summary(profile))
    return "\n".join(
        (
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
            f"<h1>{title}</h1><p>{config.model.num_layers} layers of {config.model.dim}, {tokens:,} tokens a step, on "
            f"{escape(profile.device)}</p>",
            f'<img alt="each component\'s time" src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">',
            "<h2>What is wrong</h2>",
            *(_findings(profile, found) if found else [f"<p>Nothing; {escape(bound(profile))}.</p>"]),
            *(f"<p>{escape(str(each))}</p>" for each in verified),
            "<h2>Components</h2>",
            f"<table>{_cells('th', headings(profile))}",
            *(_cells("td", values(profile, row)) for row in profile.rows),
            "</table>",
            f"<dl class=facts>{facts}</dl></html>",
        )
    )


def _findings(profile: Profile, found: Sequence[Finding]) -> Iterable[str]:
    yield "<dl>"
    for each in found:
        yield (
            f"<dt>{escape(each.title)}</dt><dd>{escape(each.evidence)}</dd><dd><code>{escape(' '.join(each.flags))}</code></dd>"
            f"<dd>{escape(prediction(profile, each))}</dd>"
        )
    yield "</dl>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"
