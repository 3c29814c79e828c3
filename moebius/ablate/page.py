"""Format an ablation as a self-contained HTML page, without torch."""

from collections.abc import Iterator, Sequence

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import Outcome, speed
from moebius.ablate.doubts import doubts
from moebius.ablate.notes import notes
from moebius.ablate.verdict import comparable, verdict
from moebius.cost.counts import active_parameters, parameters, training_flops_per_token
from moebius.cost.units import byte_size, counted, short
from moebius.observe.charts import Charts, Line
from moebius.observe.page import axis_switch, prose, table, text
from moebius.observe.page import page as html_page

ALONG = {"tokens": "tokens", "seconds": "training time", "flops": "FLOPs"}


def page(ablation: Ablation) -> str:
    """Return the page as HTML that loads no other file: verdict, speed, learning and notes."""
    charts = Charts()
    title = f"{counted(len(ablation.outcomes), 'variant')} compared"
    sentences = [*(("WARNING", doubt) for doubt in doubts(ablation)), *verdict(ablation)]
    body = [
        f"<h1>{title}</h1>",
        "<dl class=list>",
        *(f"<dt>{text(name)}</dt><dd>{prose(words)}</dd>" for name, words in sentences),
        "</dl>",
        *_speed(ablation, charts),
        *_learning(comparable(ablation), charts),
        *(f"<p class=note>{text(note)}</p>" for note in notes(ablation)),
    ]
    return html_page(title, body, charts)


def _speed(ablation: Ablation, charts: Charts) -> Iterator[str]:
    """Yield the speed and the sizes of all variants, as bars and as a table."""
    yield "<h2>Speed and size</h2>"
    sound = ablation.sound
    if sound:
        yield charts.bars(
            "Speed of each variant",
            "tokens per second",
            [outcome.variant.name for outcome in sound],
            [("tokens per second", [outcome.tokens_per_second for outcome in sound], 0)],
            [f"{speed(outcome, sound[0]).middle:.2f}x" for outcome in sound],
        )
    heads = ("variant", "active", "total", "ms/step", "tokens/s", "to the first", "memory")
    yield table(heads, [_row(ablation, outcome) for outcome in ablation.outcomes])
    for device in sorted({outcome.device for outcome in sound}):
        yield (
            f"<p class=note>{len(sound[0].rounds)} rounds in turns on {text(device)}; lowest and "
            "highest ratio in parentheses.</p>"
        )


def _row(ablation: Ablation, outcome: Outcome) -> Sequence[str]:
    """Return the cells of a variant."""
    name = outcome.variant.name
    if outcome.problem:
        return (name, outcome.problem, "", "", "", "", "")
    model, ratio = outcome.variant.model, speed(outcome, ablation.sound[0])
    return (
        name,
        short(active_parameters(model)),
        short(sum(parameters(model).values())),
        f"{outcome.seconds * 1e3:.1f}",
        f"{outcome.tokens_per_second:,.0f}",
        f"{ratio.middle:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})",
        byte_size(outcome.peak_bytes, 2),
    )


def _learning(learned: list[Outcome], charts: Charts) -> Iterator[str]:
    """Yield the learning curves of the variants that were trained, as means over their seeds."""
    if not learned:
        return
    yield "<h2>Learning</h2>"
    yield from axis_switch(ALONG)
    lines = []
    for number, outcome in enumerate(learned):
        config = outcome.variant.config
        flops = training_flops_per_token(config.model, config.train.seq_len)
        tokens = [place for place, _ in outcome.mean_curve("tokens")]
        seconds = [place for place, _ in outcome.mean_curve("seconds")]
        places = {"tokens": tokens, "seconds": seconds, "flops": [n * flops for n in tokens]}
        bits = [value for _, value in outcome.mean_curve("tokens")]
        axes = charts.places(places)
        lines.append(Line(outcome.variant.name, axes, bits, number, "points"))
    seeds = len(learned[0].curves)
    of = f", mean of {seeds} seeds" if seeds > 1 else ""
    yield charts.lines("Held-out text", f"bits per byte{of}", lines, is_wide=True)
