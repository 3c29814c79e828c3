"""An ablation for people and for programs: tables with the verdict under them, JSON. No torch."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from moebius.cost import active_parameters, parameters
from moebius.profile.ablate.comparison import Axis, Outcome, Spread, break_even, common_end, difference, speed
from moebius.profile.ablate.run import Ablation
from moebius.profile.ablate.verdict import active_change, comparable, notes, verdict


def lines(ablation: Ablation) -> list[str]:
    """For the terminal."""
    text = [*_speed_table(ablation), *_sizes(ablation)]
    if learned := comparable(ablation):
        text += ["", *_learning_table(learned, "tokens"), "", *_learning_table(learned, "seconds")]
    said = [*verdict(ablation), *(("note", note) for note in notes(ablation))]
    return [*text, "", *(f"{title:<13}{sentence}" for title, sentence in said)]


def as_json(ablation: Ablation) -> str:
    """Everything in the tables and the measurements behind it, in seconds and bytes."""
    values = {
        "plan": asdict(ablation.plan),
        "variants": [_values(ablation, outcome) for outcome in ablation.outcomes],
        "verdict": [{"title": title, "text": sentence} for title, sentence in verdict(ablation)],
        "notes": notes(ablation),
    }
    return json.dumps(values, indent=1)


def _speed_table(ablation: Ablation) -> Iterator[str]:
    width = _width(ablation.outcomes)
    memory = "RSS" if all(outcome.device.startswith("CPU") for outcome in ablation.sound) else "memory"
    yield f"{'variant':<{width}}{'active':>8}{'total':>8}{'ms/step':>10}{'tokens/s':>11}  {'to the first':<21}{memory:>8}"
    for outcome in ablation.outcomes:
        name = f"{outcome.variant.name:<{width}}"
        if outcome.problem:
            yield name + outcome.problem
            continue
        model = outcome.variant.model
        sizes = f"{_short(active_parameters(model)):>8}{_short(sum(parameters(model).values())):>8}"
        times = f"{outcome.seconds * 1e3:10.1f}{outcome.tokens_per_second:11,.0f}"
        ratio = speed(outcome, ablation.sound[0])
        paired = f"{ratio.middle:.2f} ({ratio.lowest:.2f} to {ratio.highest:.2f})"
        yield f"{name}{sizes}{times}  {paired if outcome is not ablation.sound[0] else '1':<21}{_gigabytes(outcome):>8}"


def _sizes(ablation: Ablation) -> Iterator[str]:
    """How near those that are to be of equal compute come to it, and what all ran on."""
    given = ablation.outcomes[0]
    for outcome in ablation.sound:
        if outcome.variant.is_resized or outcome.variant.is_twin:
            widths = sorted(set(outcome.variant.model.expert_widths))
            span = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
            what = f"experts {span} wide" if outcome.variant.is_resized else f"MLPs {outcome.variant.model.base_width} wide"
            yield f"{outcome.variant.name}: {what}, {active_change(outcome, given):+.1%} active parameters against those given"
    for device in sorted({outcome.device for outcome in ablation.sound}):
        rounds = len(ablation.sound[0].rounds)
        yield f"{rounds} rounds in turns on {device}; in brackets the lowest and the highest of them"


def _learning_table(learned: list[Outcome], axis: Axis) -> Iterator[str]:
    """Mean over the seeds at the places where the first was evaluated, and at the last that all reached."""
    width, end = _width(learned), common_end(learned, axis)
    places = [x for x, _ in learned[0].mean_curve(axis) if x < 0.98 * end] + [end]
    unit = "so many tokens" if axis == "tokens" else "so many seconds of training"
    seeds = len(learned[0].curves)
    yield f"held-out bits per byte after {unit}{f', mean of {seeds} seeds' if seeds > 1 else ''}"
    heads = [_short(x) if axis == "tokens" else f"{x:.3g}" for x in places]
    yield " " * width + "".join(f"{head:>8}" for head in heads) + f"{'loss':>9}  against the first"
    for outcome in learned:
        values = [f"{statistics.fmean(found):.4f}" if (found := outcome.at(axis, x)) else "-" for x in places]
        loss = [f"{statistics.fmean(found):.4f}" if (found := outcome.at(axis, end, "loss")) else "-"]
        row = f"{outcome.variant.name:<{width}}" + "".join(f"{value:>8}" for value in values) + f"{loss[0]:>9}"
        gap = _gap(outcome, learned[0], axis, end)
        if outcome is learned[0] or gap is None:
            yield row
        else:
            spread = f" ({gap.lowest:+.4f} to {gap.highest:+.4f})" if seeds > 1 else ""
            yield f"{row}  {gap.middle:+.4f}{spread}"


def _values(ablation: Ablation, outcome: Outcome) -> dict[str, Any]:
    """Of a variant, for JSON. What was not measured is not there."""
    variant = outcome.variant
    values: dict[str, Any] = {"name": variant.name, "flags": variant.flags, "problem": outcome.problem}
    values |= {"is_twin": variant.is_twin, "is_resized": variant.is_resized}
    if variant.made is not None:
        values |= {
            "active_parameters": active_parameters(variant.model),
            "active_change": active_change(outcome, ablation.outcomes[0]),
            "total_parameters": sum(parameters(variant.model).values()),
            "tokens_per_step": variant.tokens,
        }
    if outcome.problem:
        return values
    values |= {
        "device": outcome.device,
        "seconds_per_step": outcome.seconds,
        "rounds": outcome.rounds,
        "tokens_per_second": outcome.tokens_per_second,
        "ratio": asdict(speed(outcome, ablation.sound[0])),
        "peak_bytes": outcome.peak_bytes,
    }
    learned = comparable(ablation)
    if outcome.curves:
        values["learning_seconds_per_step"] = outcome.learning_seconds
        values["curves"] = [[asdict(point) for point in curve] for curve in outcome.curves]
    if outcome in learned:
        values["equal_tokens"] = _equal(outcome, learned, "tokens")
        values["equal_time"] = _equal(outcome, learned, "seconds")
    twin = next((each for each in learned if each.variant.is_twin), None)
    if twin and outcome in learned and variant.is_mixture:
        axes: tuple[Axis, ...] = ("tokens", "seconds")
        values["break_even"] = {axis: break_even(outcome.mean_curve(axis), twin.mean_curve(axis)) for axis in axes}
    return values


def _equal(outcome: Outcome, learned: list[Outcome], axis: Axis) -> dict[str, Any]:
    """At the last place that all reached: one number a seed, and the difference to the first."""
    end = common_end(learned, axis)
    gap = _gap(outcome, learned[0], axis, end)
    return {
        axis: end,
        "loss": outcome.at(axis, end, "loss"),
        "bits_per_byte": outcome.at(axis, end),
        "against_the_first": gap and asdict(gap),
    }


def _gap(outcome: Outcome, other: Outcome, axis: Axis, end: float) -> Spread | None:
    values = outcome.at(axis, end), other.at(axis, end)
    return difference(*values) if all(values) else None


def _width(outcomes: list[Outcome]) -> int:
    return max(len(outcome.variant.name) for outcome in outcomes) + 2


def _gigabytes(outcome: Outcome) -> str:
    return f"{outcome.peak_bytes / 1e9:.2f} GB"


def _short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"
