"""Format an ablation as tables for the terminal, with verdict and notes below, without torch."""

import statistics
from collections.abc import Iterator

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import Axis, Outcome, Spread, common_end, difference, speed
from moebius.ablate.doubts import doubts
from moebius.ablate.notes import notes
from moebius.ablate.variants import SAME_COMPUTE
from moebius.ablate.verdict import active_change, comparable, verdict
from moebius.config.width import folded
from moebius.cost.counts import active_parameters, parameters
from moebius.cost.units import byte_size, short

INDENT = 13
"""Width of the column of titles below the tables."""


def lines(ablation: Ablation) -> list[str]:
    """Return an ablation as lines for the terminal."""
    text = [*_speed_table(ablation), *_sizes(ablation)]
    if learned := comparable(ablation):
        text += ["", *_learning_table(learned, "tokens"), "", *_learning_table(learned, "seconds")]
    warnings = [("WARNING", doubt) for doubt in doubts(ablation)]
    sentences = [*warnings, *verdict(ablation), *(("note", note) for note in notes(ablation))]
    named = (f"{title:<{INDENT}}{sentence}" for title, sentence in sentences)
    return [*text, "", *folded(named, INDENT)]


def gap_to(outcome: Outcome, reference: Outcome, axis: Axis, end: float) -> Spread | None:
    """Return a variant's bits per byte minus those of the reference, at the place `end`.

    Return None if one of them was not evaluated around that place.
    """
    values = outcome.at(axis, end), reference.at(axis, end)
    return difference(*values) if all(values) else None


def _speed_table(ablation: Ablation) -> Iterator[str]:
    width = _width(ablation.outcomes)
    on_cpu = all(outcome.device.startswith("CPU") for outcome in ablation.sound)
    memory = "RSS" if on_cpu else "memory"  # resident set size: the memory of the process
    yield (
        f"{'variant':<{width}}{'active':>8}{'total':>8}{'ms/step':>10}{'tokens/s':>11}  "
        f"{'to the first':<21}{memory:>8}"
    )
    for outcome in ablation.outcomes:
        name = f"{outcome.variant.name:<{width}}"
        if outcome.problem:
            yield name + outcome.problem
            continue
        model, first = outcome.variant.model, ablation.sound[0]
        active, total = short(active_parameters(model)), short(sum(parameters(model).values()))
        ratio = speed(outcome, first)
        paired = f"{ratio.middle:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
        yield (
            f"{name}{active:>8}{total:>8}"
            f"{outcome.seconds * 1e3:10.1f}{outcome.tokens_per_second:11,.0f}  "
            f"{'1' if outcome is first else paired:<21}{byte_size(outcome.peak_bytes, 2):>8}"
        )


def _sizes(ablation: Ablation) -> Iterator[str]:
    """Yield how close the compute of resized variants is to that of the first, and the device."""
    first = ablation.outcomes[0]
    for outcome in ablation.sound:
        variant = outcome.variant
        if not (variant.is_resized or variant.is_twin):
            continue
        widths = sorted(set(variant.model.expert_widths))
        span = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
        what = f"experts of width {span}"
        if not variant.is_resized:
            what = f"MLPs of width {variant.model.base_width}"
        change = active_change(outcome, first)
        why = "" if abs(change) <= SAME_COMPUTE else " (widths are multiples of 64)"
        yield (
            f"{variant.name}: {what}, {change:+.1%} active parameters compared with the first{why}"
        )
    for device in sorted({outcome.device for outcome in ablation.sound}):
        rounds = len(ablation.sound[0].rounds)
        yield f"{rounds} rounds in turns on {device}; lowest and highest ratio in parentheses"


def _learning_table(learned: list[Outcome], axis: Axis) -> Iterator[str]:
    """Yield the means over the seeds, in bits per byte.

    The columns are the places where the first variant was evaluated. The last column is the last
    place that all variants have reached.
    """
    first = learned[0]
    width, end = _width(learned), common_end(learned, axis)
    places = [x for x, _ in first.mean_curve(axis) if x < 0.98 * end] + [end]
    unit = "so many tokens" if axis == "tokens" else "so many seconds of training"
    seeds = len(first.curves)
    yield f"held-out bits per byte after {unit}{f', mean of {seeds} seeds' if seeds > 1 else ''}"
    heads = [short(x) if axis == "tokens" else f"{x:.3g}" for x in places]
    columns = "".join(f"{head:>8}" for head in heads)
    yield f"{'':<{width}}{columns}{'loss':>9}  compared with the first"
    for outcome in learned:
        values = "".join(f"{_mean(outcome.at(axis, x)):>8}" for x in places)
        loss = _mean(outcome.at(axis, end, "loss"))
        row = f"{outcome.variant.name:<{width}}{values}{loss:>9}"
        gap = gap_to(outcome, first, axis, end)
        if outcome is first or gap is None:
            yield row
        else:
            spread = f" ({gap.lowest:+.4f} to {gap.highest:+.4f})" if seeds > 1 else ""
            yield f"{row}  {gap.middle:+.4f}{spread}"


def _mean(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f}" if values else "-"


def _width(outcomes: list[Outcome]) -> int:
    """Return the width of the column of names."""
    return max(len(outcome.variant.name) for outcome in outcomes) + 2
