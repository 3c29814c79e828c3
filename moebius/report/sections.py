"""The text and the tables of a report: the HTML around its charts."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moebius.config import Config
from moebius.config.fields import settings, shown
from moebius.config.files import to_toml
from moebius.config.resuming import value_of
from moebius.cost.counts import active_parameters, parameters
from moebius.cost.units import short
from moebius.observe.charts import Charts
from moebius.observe.page import facts, prose, table, text
from moebius.profile.bars import bars
from moebius.profile.result import Row
from moebius.report.curves import number
from moebius.report.differences import differences
from moebius.report.happenings import Happenings
from moebius.report.pictures import training_flops
from moebius.report.run import Run
from moebius.report.verdict import Verdict

LISTED = 10
"""Number of happenings that are listed at once; the others, up to `MOST_LATEST`, unfold."""
SCALE = (
    ("dead", "dead: less than 1% of the load, and less than a tenth of the even share"),
    ("0", "less than a quarter of it"),
    ("1", "less than half"),
    ("2", "less than 0.8"),
    ("3", "even: 0.8 to 1.25"),
    ("4", "up to twice"),
    ("5", "up to four times"),
    ("6", "more"),
)
"""The colors of a heat map in words; page.js has the same limits."""


def verdict_box(verdict: Verdict, name: str = "") -> str:
    """Return the verdict on a run, with the name of the run if there are several."""
    who = f"<strong>{text(name)}</strong> " if name else ""
    sentence = prose(f"{verdict.why[:1].upper()}{verdict.why[1:]}; {verdict.todo}.")
    return (
        f'<div class="verdict {verdict.level}"><p>{who}<span class="badge {verdict.level}">'
        f"{text(verdict.word)}</span>{sentence}</p></div>"
    )


def key_figures(run: Run) -> list[tuple[str, str]]:
    """Return the most important figures of a run, each with its name."""
    curves = run.curves
    rows: list[tuple[str, str]] = []
    if run.config:
        counts = parameters(run.config.model)
        total, active = sum(counts.values()), active_parameters(run.config.model)
        rows.append(("parameters", f"{short(total)}, {short(active)} active"))
    if curves.num_lines:
        last = curves.last
        of = f" of {run.config.train.steps:,}" if run.config else ""
        rows += [
            ("step", f"{curves.last_step:,}{of}"),
            ("tokens", short(number(last.get("tokens")))),
            ("training time", duration(curves.seconds)),
            ("loss", figure(number(last.get("loss")), 3)),
        ]
        if run.config:
            flops = training_flops(run.config, np.array([number(last.get("tokens"))]))
            rows.insert(3, ("FLOPs", f"{flops[0]:.3g}"))
        for name, title in (("val_loss", "held-out loss"), ("val_bpb", "bits per byte")):
            values = curves.evaluated(name)
            known = values[[math.isfinite(value) for value in values]]
            if len(known):
                rows.append((title, figure(known[-1], 3)))
        rows += [
            ("tokens per second", short(number(last.get("tokens_per_second")))),
            ("MFU", f"{number(last.get('mfu')):.1%}"),
            ("memory", f"{figure(number(last.get('memory_gb')), 2)} GB"),
        ]
    return [(name, value) for name, value in rows if "nan" not in value]


def cards(rows: Sequence[tuple[str, str]]) -> str:
    """Return figures with their names as a row of cards."""
    items = "".join(f"<div><dt>{text(n)}</dt><dd>{text(value)}</dd></div>" for n, value in rows)
    return f"<dl class=figures>{items}</dl>"


def compared(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the differences in the settings of several runs, and their figures side by side."""
    names = [run.name for run in runs]
    rows = differences([run.config for run in runs])
    yield "<h2>Differences in the configuration</h2>"
    if rows:
        yield table(["setting", *names], [[name, *values] for name, values in rows], True)
    else:
        yield "<p>None, except for their names.</p>"
    yield "<h2>Figures</h2>"
    figures = [dict(key_figures(run)) for run in runs]
    titles = list(dict.fromkeys(name for known in figures for name in known))
    yield table(
        ["", *names], [[title, *(known.get(title, "") for known in figures)] for title in titles]
    )


def happenings_section(happenings: Happenings) -> Iterator[str]:
    """Yield how often each alarm fired, whether it is still on, and what happened last."""
    if not happenings.series:
        yield "<p>None.</p>"
        return
    open_rules = {rule for rule, _ in happenings.open}
    rows = [
        (
            rule.replace("_", " "),
            kind,
            f"{series.number:,}",
            f"{series.first:,} to {series.last:,}" if series.number > 1 else f"{series.first:,}",
            "yes" if rule in open_rules and kind in ("alarm", "action") else "",
        )
        for (kind, rule), series in happenings.series.items()
    ]
    yield table(("what", "kind", "times", "steps", "still on"), rows, is_words=True)
    rows = [
        (f"{each.step:,}", each.rule.replace("_", " "), each.kind, each.text)
        for each in reversed(happenings.latest)
    ]
    heads = ("step", "what", "kind", "in words")
    yield "<h3>The latest</h3>"
    yield table(heads, rows[:LISTED], is_words=True)
    if rows[LISTED:]:
        yield f"<details><summary>{len(rows) - LISTED:,} before them</summary>"
        yield table(heads, rows[LISTED:], is_words=True)
        yield "</details>"


def heat_scale() -> str:
    """Return the legend of the heat maps."""
    items = "".join(
        f'<span><i style="background:var(--heat-{name})"></i>{text(words)}</span>'
        for name, words in SCALE
    )
    return f"<div class=scale>{items}</div>"


def time_section(run: Run, charts: Charts) -> Iterator[str]:
    """Yield where the time of a step goes, if the run has a profile."""
    rows = _profile_rows(run)
    if not rows:
        return
    assert run.profile is not None
    yield "<h2>Where the time goes</h2>"
    yield f"<p>Measured by <code>moebius profile</code> on {text(run.profile.get('device'))}.</p>"
    yield f"<div class=charts>{bars(charts, rows)}</div>"
    findings = run.profile.get("findings")
    for finding in findings if isinstance(findings, list) else ():
        if isinstance(finding, dict):
            flags = finding.get("flags")
            words = " ".join(map(str, flags)) if isinstance(flags, list) else ""
            yield (
                f"<h3>{text(finding.get('title', ''))}</h3><p>{text(finding.get('evidence', ''))}"
                f"<br><code>{text(words)}</code></p>"
            )


def samples_section(run: Run) -> Iterator[str]:
    """Yield the samples that were generated as training went on."""
    if not run.samples:
        return
    yield "<h2>Samples</h2>"
    for sample in run.samples:
        prompt = sample.get("prompt")
        after = f", after {prompt!r}" if isinstance(prompt, str) and prompt else ""
        yield f"<h3>Step {sample['step']:,}{text(after)}</h3><pre>{text(sample['text'])}</pre>"


def configuration_section(run: Run) -> Iterator[str]:
    """Yield the settings that differ from the defaults, all settings, machines and the text."""
    if run.config is not None:
        yield "<h2>Configuration</h2>"
        yield "<p>Settings that differ from the defaults:</p>"
        yield facts(_changed(run.config))
        yield f"<details><summary>all settings</summary><pre>{text(to_toml(run.config))}</pre>"
        yield "</details>"
    if run.environments:
        yield "<h2>Environment</h2>"
        for line in run.environments:
            yield f"<h3>From step {line['step'] + 1:,} on</h3>"
            yield facts((name, str(value)) for name, value in line.items() if name != "step")
    if run.text:
        yield "<h2>Text</h2>"
        yield "".join(f"<p>{text(line[0].upper() + line[1:])}.</p>" for line in run.text)


def problems_section(run: Run) -> Iterator[str]:
    """Yield what could not be read."""
    if run.problems:
        yield "<h2>Not shown</h2>"
        yield f"<ul>{''.join(f'<li>{text(line)}</li>' for line in run.problems)}</ul>"


def duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def figure(value: float, decimals: int) -> str:
    """Return a figure, with a power of ten if it is too large to be read otherwise."""
    return f"{value:.{decimals}f}" if abs(value) < 1e4 else f"{value:.2e}"


def _changed(config: Config) -> Iterator[tuple[str, str]]:
    """Yield the settings that differ from the defaults."""
    defaults = Config()
    for name in settings(Config):
        if (value := value_of(config, name)) != value_of(defaults, name):
            yield name, shown(value)


def _profile_rows(run: Run) -> list[Row]:
    """Return the components of a run's profile, without those that are damaged."""
    components = (run.profile or {}).get("components")
    rows: list[Row] = []
    for values in components if isinstance(components, list) else ():
        known: dict[str, Any] = dict(values) if isinstance(values, dict) else {}
        known.pop("efficiency", None)
        figures = {name: number(value) for name, value in known.items() if name != "component"}
        if isinstance(known.get("component"), str) and all(map(math.isfinite, figures.values())):
            try:
                rows.append(Row(component=known["component"], **figures))  # pyright: ignore
            except TypeError:  # other figures than this version has
                continue
    return rows
