"""The results of an evaluation as tables for the terminal."""

from collections.abc import Callable, Iterator, Sequence

from moebius.config.printable import printable_line
from moebius.infer.evaluation import Estimate, HeldOut, TextFigures
from moebius.infer.expert_use import LayerUse
from moebius.infer.interval import CONFIDENCE
from moebius.infer.tasks import TaskResult

ALL = "all, by weight"
NO_ROUTED = "no layer has experts"


def text_table(result: HeldOut) -> list[str]:
    """Return the losses of each source, and how each layer's experts are used."""
    heads = ("source", "share", "tokens", "documents", "loss", "perplexity", "bits per byte")
    sources = [(printable_line(name), figures) for name, figures in result.sources.items()]
    if len(sources) > 1:
        sources.append((ALL, result.total))
    rows = [heads, *(_figures(name, figures) for name, figures in sources)]
    note = f"in parentheses: {CONFIDENCE:.0%} confidence intervals (jackknife over documents)"
    lines = [*_aligned(rows), "", note]
    if any(figures.loss.interval is None for _, figures in sources):
        lines.append("one document does not tell how documents vary, so there is no interval")
    if result.total.bits_per_byte is None:
        lines.append("the tokenizer loses text, so there are no bits per byte")
    return [*lines, "", *_experts(result.layers, [name for name, _ in sources])]


def tasks_table(results: dict[str, TaskResult]) -> list[str]:
    """Return each metric of each task."""
    rows = [("task", "few-shot", "questions", "metric", "value")]
    for name, result in results.items():
        for metric, figures in result.metrics.items():
            low, high = figures["low"], figures["high"]
            around = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
            asked = "" if result.samples is None else f"{result.samples:,}"
            shots = "" if result.num_fewshot is None else str(result.num_fewshot)
            rows.append((name, shots, asked, metric, f"{figures['value']:.4f}{around}"))
    note = (
        f"in parentheses: {CONFIDENCE:.0%} confidence intervals (normal, by the harness's error)"
    )
    return [*_aligned(rows), "", note]


def _figures(name: str, figures: TextFigures) -> tuple[str, ...]:
    return (
        name,
        f"{figures.share:.0%}",
        f"{figures.tokens:,}",
        f"{figures.documents:,}",
        _estimate(figures.loss, _decimals),
        _estimate(figures.perplexity, _short),
        _estimate(figures.bits_per_byte, _decimals) if figures.bits_per_byte else "-",
    )


def _estimate(estimate: Estimate, shown: Callable[[float], str]) -> str:
    if estimate.interval is None:
        return shown(estimate.value)
    low, high = map(shown, estimate.interval)
    return f"{shown(estimate.value)} ({low} to {high})"


def _decimals(value: float) -> str:
    return f"{value:.4f}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _experts(layers: list[LayerUse], sources: list[str]) -> Iterator[str]:
    """Yield a row for each layer and source: how much the experts take, as shares of the load."""
    if not layers:
        yield NO_ROUTED
        return
    rows = [("layer", "source", "experts", "least used", "most used", "cv", "dead")]
    for use in layers:
        for name, metrics in zip(sources, use.by_source, strict=False):
            counts = metrics.tokens_per_expert
            total = max(1, sum(counts))
            shares = (f"{min(counts) / total:.2%}", f"{max(counts) / total:.2%}")
            routing = (*shares, f"{metrics.cv:.2f}", str(metrics.dead_experts))
            rows.append((str(use.layer), name, str(len(counts)), *routing))
    yield from _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines. Columns of text are flush left, those of figures flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    is_text = [title in ("source", "task", "metric") for title in rows[0]]
    return [
        "  ".join(
            f"{cell:<{width}}" if left else f"{cell:>{width}}"
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in rows
    ]
