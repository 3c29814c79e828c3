"""The dense twin's losses, and the mixture's beside them, if an ablation has measured them."""

import math
from typing import Any

from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.cost.counts import training_flops_per_token
from moebius.errors import ConfigError
from moebius.observe.charts import Charts, Line
from moebius.report.curves import number
from moebius.report.run import Run


def twin_lines(run: Run, charts: Charts, color: int, is_named: bool) -> list[Line]:
    """Return the held-out losses of the variants of a run's ablation, if one is the dense twin.

    The ablation trained its variants anew, side by side, on the same tokens. So the twin is
    compared with the line of the mixture in the ablation, and not with the run itself.
    is_named: whether the name of the run belongs to the name of a line.
    """
    variants = (run.ablation or {}).get("variants")
    if not isinstance(variants, list):
        return []
    known = [variant for variant in variants if isinstance(variant, dict)]
    twin = next((variant for variant in known if variant.get("is_twin")), None)
    if twin is None:
        return []
    lines = []
    for variant, shade in ((twin, color + 3), (known[0], color + 2)):
        places, losses = _points(run, variant)
        if losses:
            title = "dense twin" if variant is twin else "the same mixture"
            name = f"{title}, in the ablation"
            name = f"{run.name}: {name}" if is_named else name
            lines.append(Line(name, charts.places(places), losses, shade, "dashed"))
    return lines


def _points(run: Run, variant: dict[str, Any]) -> tuple[dict[str, list[float]], list[float]]:
    """Return the places and the losses of a variant's evaluations, averaged over its seeds."""
    curves = variant.get("curves")
    tokens = number(variant.get("tokens_per_step"))
    seconds = number(variant.get("learning_seconds_per_step"))
    if not isinstance(curves, list) or not math.isfinite(tokens):
        return {}, []
    losses: dict[float, list[float]] = {}
    for curve in curves:
        for point in curve if isinstance(curve, list) else ():
            if isinstance(point, dict) and math.isfinite(step := number(point.get("step"))):
                losses.setdefault(step, []).append(number(point.get("loss")))
    steps = sorted(losses)
    places = {"step": steps, "tokens": [step * tokens for step in steps]}
    if math.isfinite(seconds):
        places["seconds"] = [step * seconds for step in steps]
    if (flops := _flops_per_token(run, variant)) is not None:
        places["flops"] = [step * tokens * flops for step in steps]
    return places, [sum(losses[step]) / len(losses[step]) for step in steps]


def _flops_per_token(run: Run, variant: dict[str, Any]) -> float | None:
    """Return the FLOPs per token of a variant, whose flags change the run's configuration."""
    flags = variant.get("flags")
    if run.config is None or not isinstance(flags, list):
        return None
    try:
        config = override(run.config, parse_flags([str(flag) for flag in flags]))
    except ConfigError:
        return None
    return training_flops_per_token(config.model, config.train.seq_len)
