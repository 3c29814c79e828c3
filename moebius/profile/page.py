"""Format a profile as a self-contained HTML page: the chart, the findings and the table."""

from collections.abc import Iterator, Sequence
from html import escape

from moebius.observe.charts import Charts
from moebius.observe.page import facts, table
from moebius.observe.page import page as html_page
from moebius.profile.bars import bars
from moebius.profile.finding import Finding
from moebius.profile.result import Profile
from moebius.profile.table import headings, summary, values
from moebius.profile.verify import Verified
from moebius.profile.wording import prediction, without_findings


def page(profile: Profile, findings: Sequence[Finding], verified: Sequence[Verified] = ()) -> str:
    """Return the page as HTML that loads no other file."""
    milliseconds = profile.measured.seconds * 1e3
    title = f"{milliseconds:,.1f} ms per step, {profile.tokens_per_second:,.0f} tokens/s"
    charts = Charts()
    body = [
        *_head(profile, title),
        bars(charts, profile.rows),
        "<h2>What is wrong</h2>",
        *_findings(profile, findings),
        *(f"<p>{escape(str(change))}</p>" for change in verified),
        "<h2>Components</h2>",
        table(headings(profile), [values(profile, row) for row in profile.rows]),
        facts(summary(profile)),
    ]
    return html_page(title, body, charts)


def _head(profile: Profile, title: str) -> Iterator[str]:
    """Yield the title and the configuration in one line."""
    train, model = profile.config.train, profile.config.model
    yield f"<h1>{title}</h1>"
    yield (
        f"<p>{model.num_layers} layers of width {model.dim}, "
        f"{train.batch_size * train.seq_len:,} tokens per step, on {escape(profile.device)}</p>"
    )


def _findings(profile: Profile, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the findings with changes and predictions or, without any, what bounds the step."""
    if not findings:
        text = without_findings(profile)
        yield f"<p>{escape(text[0].upper() + text[1:])}.</p>"
        return
    yield "<dl class=list>"
    for finding in findings:
        yield f"<dt>{escape(finding.title)}</dt><dd>{escape(finding.evidence)}</dd>"
        yield f"<dd><code>{escape(' '.join(finding.flags))}</code></dd>"
        yield f"<dd>{escape(prediction(profile, finding))}</dd>"
    yield "</dl>"
