"""Write the report of one run, or of several runs that are compared, as one HTML page."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from moebius.errors import StorageError
from moebius.observe.charts import Charts
from moebius.observe.page import axis_switch, page, text
from moebius.report.experts import experts_section
from moebius.report.pictures import Pictures
from moebius.report.run import Run, read_run
from moebius.report.sections import (
    cards,
    compared,
    configuration_section,
    happenings_section,
    heat_scale,
    key_figures,
    problems_section,
    samples_section,
    time_section,
    verdict_box,
)
from moebius.report.verdict import Verdict, verdict

REPORT = "report.html"
ALONG = {"step": "steps", "tokens": "tokens", "seconds": "training time", "flops": "FLOPs"}


def write_report(
    folders: Sequence[Path], target: Path | None = None
) -> tuple[Path, list[Verdict]]:
    """Write the report of some runs, and return its path and the verdict on each run.

    By default it is RUN/report.html, or report.html in the working directory if there are several
    runs. An old report is replaced in one step. Raises CheckpointError for a folder that is no
    run, and StorageError if the report cannot be written.
    """
    runs = [read_run(folder, len(folders)) for folder in folders]
    verdicts = [verdict(run) for run in runs]
    path = target or (folders[0] / REPORT if len(folders) == 1 else Path(REPORT))
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(report(runs, verdicts), "utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from None
    finally:
        if partial.exists():
            partial.unlink()
    return path, verdicts


def report(runs: Sequence[Run], verdicts: Sequence[Verdict], version: str = "") -> str:
    """Return the report as HTML. With a version, it asks its server for a newer one."""
    charts = Charts()
    pictures = Pictures(runs, charts)
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs"
    body = [f"<h1>{text(title)}</h1>", *_body(runs, verdicts, pictures, charts)]
    return page(title, body, charts, version)


def _body(
    runs: Sequence[Run], verdicts: Sequence[Verdict], pictures: Pictures, charts: Charts
) -> Iterator[str]:
    """Yield everything below the title: what concerns all runs, and then each run by itself."""
    is_single = len(runs) == 1
    for run, judged in zip(runs, verdicts, strict=True):
        yield verdict_box(judged, "" if is_single else run.name)
    if is_single:
        yield cards(key_figures(runs[0]))
    else:
        yield from compared(runs)
    yield from axis_switch(ALONG)
    yield from _charts("Loss", pictures.loss(), *([pictures.timeline(0)] if is_single else []))
    yield from _charts("Speed and optimizer", pictures.speed())
    yield from _charts("Balance of the experts", pictures.balance())
    for number, run in enumerate(runs):
        if not is_single:
            yield f"<hr><h1>Run {text(run.name)}</h1>"
        yield from _of_run(run, number, pictures, charts)


def _of_run(run: Run, number: int, pictures: Pictures, charts: Charts) -> Iterator[str]:
    """Yield the sections about one run."""
    yield "<h2>Alarms and actions</h2>"
    timeline = [] if len(pictures.runs) == 1 else list(pictures.timeline(number))
    yield f"<div class=charts>{''.join(timeline)}</div>"
    yield from happenings_section(run.happenings)
    if heat := list(pictures.heat(number)):
        yield "<h2>Share of each expert</h2>"
        yield (
            "<p>A row is an expert, and a column the steps up to its place. Colors compare the "
            "expert's share of the layer's load with an even share.</p>"
        )
        yield heat_scale()
        yield f'<div class="charts{" many" if len(heat) > 2 else ""}">{"".join(heat)}</div>'
    yield from time_section(run, charts)
    yield from samples_section(run)
    yield from experts_section(run)
    yield from configuration_section(run)
    yield from problems_section(run)


def _charts(title: str, *charts: Iterator[str]) -> Iterator[str]:
    """Yield a section of charts, if there are any."""
    if drawn := list(chain(*charts)):
        yield f"<h2>{title}</h2>"
        yield f"<div class=charts>{''.join(drawn)}</div>"
