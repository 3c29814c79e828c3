"""Notes that a reader needs in order to judge an ablation. This does not import torch."""

from collections.abc import Iterator

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import Outcome, quoted
from moebius.ablate.verdict import comparable


def notes(ablation: Ablation) -> list[str]:
    """Return the notes: how the figures were measured, and what they do not show."""
    lines = [*ablation.notes, *_on_learning(ablation)]
    if any(
        outcome.variant.is_mixture and outcome.variant.model.router_type == "sigmoid"
        for outcome in ablation.sound
    ):
        lines.append(
            "all experts of a sigmoid router count as active; a token uses as many of them as "
            "pass the threshold"
        )
    return lines


def _on_learning(ablation: Ablation) -> Iterator[str]:
    learned = [outcome for outcome in ablation.sound if outcome.curves]
    if not learned:
        return
    same_text = comparable(ablation)
    if others := [quoted(outcome) for outcome in learned if outcome not in same_text]:
        yield (
            "not compared, because evaluated on another text than the first variant: "
            f"{', '.join(others)}"
        )
    steps = min(outcome.curves[0][-1].step for outcome in learned)
    warm_up = max(outcome.variant.config.train.warmup_steps for outcome in learned)
    if warm_up >= steps:
        yield (
            "the learning rate was still rising at the end: train.warmup_steps is "
            f"{warm_up}, of {steps} steps"
        )
    ends = [outcome.curve(0, "seconds")[-1][0] for outcome in learned]
    if ablation.options.learn_seconds:
        yield (
            "each variant's schedule ends with its own time, so at equal tokens the faster ones "
            "are compared before the end of their schedule"
        )
    elif max(ends) > 1.05 * min(ends):
        yield (
            "at equal time the slower variants are compared before the end of their schedule; "
            "--learn-seconds gives each its whole schedule"
        )
    if acting := _acting_alarms(learned):
        yield f"alarms take no action here: {', '.join(acting)}"


def _acting_alarms(learned: list[Outcome]) -> list[str]:
    """Return the names of the alarms that would change how a run trains."""
    return sorted(
        {
            name
            for outcome in learned
            for name, rule in outcome.variant.config.observe.rules().items()
            if rule.action not in ("off", "warn", "stop")
        }
    )
