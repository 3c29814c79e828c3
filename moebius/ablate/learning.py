"""The second phase of an ablation: what each variant learns."""

import math
from collections.abc import Callable
from itertools import pairwise

from moebius.ablate.ablation import Ablation
from moebius.ablate.comparison import Outcome, Point
from moebius.ablate.stage import Stage
from moebius.ablate.worker import Worker, WorkerFailed

FEWEST_EVAL_TOKENS = 20_000
# A turn is short, so that all variants see the machine in the same state. It is long compared with
# its first step, which may compile and is not timed.
TURN_SECONDS = 2.0
EVALUATIONS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 2 / 3, 5 / 6, 1)
"""Fractions of the run after which every variant is evaluated."""


def learn_variants(ablation: Ablation, stage: Stage, say: Callable[[str], None]) -> None:
    """Train every variant with every seed, with evaluations along the way.

    The variants take short turns or, if memory is too small for all at once, are trained one after
    another. The results are stored in the outcomes. say takes lines of progress.
    """
    for outcome in ablation.sound:
        outcome.turns.clear()
        outcome.curves.clear()
    stage.call(ablation.sound)
    steps = {outcome.variant.name: _steps(ablation, outcome) for outcome in ablation.sound}
    eval_tokens = _eval_tokens(ablation.outcomes[0], steps)
    turns = _turns(ablation, steps)
    for number in range(ablation.options.seeds):
        for outcome in ablation.sound:
            say(f"{outcome.variant.name}: seed {number + 1} of {ablation.options.seeds}")
            own_steps = steps[outcome.variant.name]
            with stage.turn(outcome) as worker:
                seed = outcome.variant.config.train.seed + number
                worker.ask("begin", seed=seed, steps=own_steps, eval_tokens=eval_tokens)
                outcome.curves.append([])
                if stage.is_alone:
                    for turn in turns:
                        _advance(outcome, worker, turn, own_steps)
        if stage.is_alone:
            continue
        for turn in turns:
            for outcome in ablation.sound:
                with stage.turn(outcome) as worker:
                    _advance(outcome, worker, turn, steps[outcome.variant.name])
            if turn[1] in EVALUATIONS:
                say(f"learned {turn[1]:.0%}")


def _turns(ablation: Ablation, steps: dict[str, int]) -> list[tuple[float, float]]:
    """Return the begin and the end of each turn, as fractions of the run.

    Every evaluation takes place at the end of a turn.
    """
    longest = max(
        (steps[outcome.variant.name] * outcome.seconds for outcome in ablation.sound), default=0.0
    )
    num_turns = math.ceil(longest / TURN_SECONDS)
    ends = {0.0, *EVALUATIONS, *(number / num_turns for number in range(1, num_turns))}
    return list(pairwise(sorted(ends)))


def _advance(outcome: Outcome, worker: Worker, turn: tuple[float, float], steps: int) -> None:
    """Train a variant for a turn, and evaluate it at the end of the turn if that is due.

    Raises WorkerFailed.
    """
    done, until = (math.ceil(part * steps) for part in turn)
    if done == until:
        return
    trained = worker.ask("learn", until=until)
    outcome.turns.append(trained["seconds"])
    outcome.crowding = trained["crowding"] or outcome.crowding
    if any(math.ceil(part * steps) == until for part in EVALUATIONS):
        evaluation = worker.ask("evaluate")
        if not math.isfinite(evaluation["loss"]):
            raise WorkerFailed(f"the held-out loss of step {until} is not finite")
        outcome.curves[-1].append(Point(until, **evaluation))


def _steps(ablation: Ablation, outcome: Outcome) -> int:
    """Return the number of steps for which a variant is trained."""
    options = ablation.options
    if options.learn_seconds:
        return max(1, int(options.learn_seconds / outcome.seconds))
    tokens = options.learn * ablation.outcomes[0].variant.tokens
    return max(1, round(tokens / outcome.variant.tokens))


def _eval_tokens(first: Outcome, steps: dict[str, int]) -> int:
    """Return the number of tokens in each evaluation: as configured, but not too many.

    All evaluations of a variant together take at most about half as long as the shortest training.
    There are always enough tokens to distinguish variants that are evaluated on the same text.
    """
    learned = min(steps.values(), default=0) * first.variant.tokens
    most = max(FEWEST_EVAL_TOKENS, int(1.5 * learned / len(EVALUATIONS)))
    return min(first.variant.config.train.eval_tokens, most)
