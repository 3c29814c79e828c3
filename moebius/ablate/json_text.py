"""Format an ablation as JSON for programs, without torch."""

import json
from dataclasses import asdict
from typing import Any

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import Axis, Outcome, break_even, common_end, speed
from moebius.ablate.doubts import doubts
from moebius.ablate.notes import notes
from moebius.ablate.tables import gap_to
from moebius.ablate.verdict import active_change, comparable, verdict
from moebius.cost.counts import active_parameters, parameters

AXES: tuple[Axis, ...] = ("tokens", "seconds")


def as_json(ablation: Ablation) -> str:
    """Return everything in the tables, and the measurements behind it, in seconds and bytes."""
    values = {
        "plan": asdict(ablation.options),
        "variants": [_variant(ablation, outcome) for outcome in ablation.outcomes],
        "verdict": [{"title": title, "text": sentence} for title, sentence in verdict(ablation)],
        "doubts": doubts(ablation),
        "notes": notes(ablation),
    }
    return json.dumps(values, indent=1)


def _variant(ablation: Ablation, outcome: Outcome) -> dict[str, Any]:
    """Return a variant's figures. What was not measured is left out."""
    variant = outcome.variant
    values: dict[str, Any] = {
        "name": variant.name,
        "flags": variant.flags,
        "problem": outcome.problem,
        "is_twin": variant.is_twin,
        "is_resized": variant.is_resized,
    }
    if variant.resolved is not None:
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
    return values | _learned(ablation, outcome)


def _learned(ablation: Ablation, outcome: Outcome) -> dict[str, Any]:
    """Return the learning results of a variant, or {} if it was not trained."""
    values: dict[str, Any] = {}
    learned = comparable(ablation)
    if outcome.curves:
        values["learning_seconds_per_step"] = outcome.learning_seconds
        values["curves"] = [[asdict(point) for point in curve] for curve in outcome.curves]
    if outcome in learned:
        values["equal_tokens"] = _equal(outcome, learned, "tokens")
        values["equal_time"] = _equal(outcome, learned, "seconds")
    twin = next((each for each in learned if each.variant.is_twin), None)
    if twin and outcome in learned and outcome.variant.is_mixture:
        values["break_even"] = {
            axis: break_even(outcome.mean_curve(axis), twin.mean_curve(axis)) for axis in AXES
        }
    return values


def _equal(outcome: Outcome, learned: list[Outcome], axis: Axis) -> dict[str, Any]:
    """Return a variant's figures at the last place that all variants have reached, by seed."""
    end = common_end(learned, axis)
    gap = gap_to(outcome, learned[0], axis, end)
    return {
        axis: end,
        "loss": outcome.at(axis, end, "loss"),
        "bits_per_byte": outcome.at(axis, end),
        "against_the_first": gap and asdict(gap),
    }
