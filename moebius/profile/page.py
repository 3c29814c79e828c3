"""Format a profile as a self-contained HTML page: the chart, the findings and the table."""

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from moebius.profile.chart import chart
from moebius.profile.finding import Finding
from moebius.profile.result import Profile
from moebius.profile.table import headings, summary, values
from moebius.profile.verify import Verified
from moebius.profile.wording import prediction, without_findings

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; color: #1c1c1e; background: #fff }
h1 { font-size: 1.5rem; margin-bottom: 0 }
h2 { font-size: 1.1rem; margin-top: 2rem }
img { max-width: 100% }
code { background: #f1f3f5; padding: .1rem .3rem; border-radius: 3px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid #e5e5ea;
  font-weight: normal }
th { color: #6b6b70 }
td:first-child, th:first-child { text-align: left }
dt { font-weight: 600; margin-top: 1rem }
dd { margin: .2rem 0 0 }
dl.facts { display: grid; grid-template-columns: 7rem 1fr }
dl.facts dt, dl.facts dd { margin: 0; font-weight: normal }
dl.facts dt { color: #6b6b70 }
"""


def page(profile: Profile, findings: Sequence[Finding], verified: Sequence[Verified] = ()) -> str:
    """Return the page as HTML that loads no other file."""
    return "\n".join(
        [
            *_head(profile),
            "<h2>What is wrong</h2>",
            *_findings(profile, findings),
            *(f"<p>{escape(str(change))}</p>" for change in verified),
            "<h2>Components</h2>",
            f"<table>{_cells('th', headings(profile))}",
            *(_cells("td", values(profile, row)) for row in profile.rows),
            "</table>",
            *_facts(profile),
            "</html>",
        ]
    )


def _head(profile: Profile) -> Iterator[str]:
    """Yield the title, the configuration in one line, and the chart."""
    train, model = profile.config.train, profile.config.model
    milliseconds = profile.measured.seconds * 1e3
    title = f"{milliseconds:,.1f} ms per step, {profile.tokens_per_second:,.0f} tokens/s"
    picture = io.BytesIO()
    chart(profile, picture)
    png = base64.b64encode(picture.getvalue()).decode()
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    yield f"<style>{STYLE}</style><h1>{title}</h1>"
    yield (
        f"<p>{model.num_layers} layers of width {model.dim}, "
        f"{train.batch_size * train.seq_len:,} tokens per step, on {escape(profile.device)}</p>"
    )
    yield f'<img alt="time of each component" src="data:image/png;base64,{png}">'


def _findings(profile: Profile, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the findings with changes and predictions or, without any, what bounds the step."""
    if not findings:
        text = without_findings(profile)
        yield f"<p>{escape(text[0].upper() + text[1:])}.</p>"
        return
    yield "<dl>"
    for finding in findings:
        yield f"<dt>{escape(finding.title)}</dt><dd>{escape(finding.evidence)}</dd>"
        yield f"<dd><code>{escape(' '.join(finding.flags))}</code></dd>"
        yield f"<dd>{escape(prediction(profile, finding))}</dd>"
    yield "</dl>"


def _facts(profile: Profile) -> Iterator[str]:
    """Yield the facts about the whole step."""
    yield "<dl class=facts>"
    for name, text in summary(profile):
        yield f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
    yield "</dl>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    """Return a row of the table."""
    return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"
