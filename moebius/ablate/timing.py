"""The first phase of an ablation: how long a step of each variant takes."""

from collections.abc import Callable

from moebius.ablate.ablation import Ablation
from moebius.ablate.stage import Stage

FEWEST_ROUNDS, MOST_ROUNDS = 3, 8


def time_variants(ablation: Ablation, stage: Stage, say: Callable[[str], None]) -> None:
    """Measure the variants in rounds, in each of which all variants run for about the same time.

    The results are stored in the outcomes. say takes lines of progress.
    """
    stage.call(ablation.sound)
    for outcome in ablation.sound:
        say(f"{outcome.variant.name}: warming up")
        outcome.rounds.clear()
        outcome.crowding = ""
        with stage.turn(outcome) as worker:
            warm = worker.ask("start")
            outcome.warm_seconds, outcome.device = warm["seconds"], warm["device"]
            ablation.add_notes(warm["notes"])
    if not ablation.sound:
        return
    options = ablation.options
    step_of_each = sum(outcome.warm_seconds for outcome in ablation.sound)
    fitting = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(options.seconds / step_of_each)))
    rounds = options.rounds or fitting
    seconds = options.seconds / rounds / len(ablation.sound)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for outcome in ablation.sound:
            with stage.turn(outcome) as worker:
                if stage.is_alone:
                    worker.ask("start")
                measured = worker.ask("run", count=max(1, round(seconds / outcome.warm_seconds)))
                outcome.rounds.append(measured["seconds"])
                outcome.crowding = measured["crowding"] or outcome.crowding
                outcome.peak_bytes = max(outcome.peak_bytes, measured["peak_bytes"])
