"""`moebius ablate`: variants of a configuration, each in a process of its own, measured and trained in turns, so that
whatever else the machine does hits all alike."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from moebius.errors import ConfigError, MoebiusError
from moebius.profile.ablate.comparison import Outcome, Point
from moebius.profile.ablate.variants import Variant
from moebius.profile.ablate.worker import Worker, WorkerFailed

Say = Callable[[str], None]

FEWEST_ROUNDS, MOST_ROUNDS = 3, 8
FEWEST_EVAL_TOKENS = 20_000
TURN_SECONDS = 2.0  # of learning: short, for the machine's moods to hit all alike, and long beside a turn's first step
EVALUATIONS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 2 / 3, 5 / 6, 1)  # of the run


@dataclass(frozen=True)
class Plan:
    """seconds: of measuring speed, all variants together. rounds: 0 for as many as fit. learn: steps of the first variant; the
    others train on as many tokens. learn_seconds: of training, for each, instead. Raises ConfigError."""

    seconds: float = 30.0
    rounds: int = 0
    learn: int = 0
    learn_seconds: float = 0.0
    seeds: int = 1

    def __post_init__(self) -> None:
        for name, lowest in (("rounds", 0), ("learn", 0), ("seeds", 1)):
            if getattr(self, name) < lowest:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least {lowest}")
        for name in ("seconds", "learn_seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: a finite number, at least 0, is wanted")
        if self.learn and self.learn_seconds:
            raise ConfigError("--learn and --learn-seconds: give one of them")
        if self.seeds > 1 and not self.learns:
            raise ConfigError(f"--seeds {self.seeds}: for learning; give --learn STEPS or --learn-seconds S too")

    @property
    def learns(self) -> bool:
        return bool(self.learn or self.learn_seconds)


@dataclass
class Ablation:
    """outcomes: one a variant, the configuration as given first. notes: what a reader must know besides."""

    plan: Plan
    outcomes: list[Outcome]
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> list[Outcome]:
        """Those without a problem."""
        return [outcome for outcome in self.outcomes if not outcome.problem]


def ablate(variants: Sequence[Variant], plan: Plan, say: Say) -> Ablation:
    """Measure the variants and, where it is planned, train them; `say` gets a line of progress now and then.

    A variant that fails says so in its outcome. Raises MoebiusError if the first one's text cannot be prepared.
    """
    ablation = Ablation(plan, [Outcome(variant, variant.problem) for variant in variants])
    if plan.learns:
        _prepare(ablation, say)
    stage = _Stage()
    for phase in (_time, _learn) if plan.learns else (_time,):
        try:
            with stage:
                phase(ablation, stage, say)
        except _NoRoomError:
            ablation.notes.append(
                "the variants do not fit into memory at once: each turn had a fresh process, one alive at a time"
                if phase is _time
                else "the variants do not fit into memory at once: they learned one after the other"
            )
            stage.is_alone = True
            with stage:
                phase(ablation, stage, say)
    return ablation


class _NoRoomError(Exception):
    """One variant beside the others is out of memory."""


class _Stage:
    """The workers: all alive at once, or each for one turn alone."""

    def __init__(self):
        self.is_alone = False
        self.workers: dict[str, Worker] = {}

    def __enter__(self) -> "_Stage":
        return self

    def __exit__(self, *_: object) -> None:
        while self.workers:
            self.workers.popitem()[1].end()

    def call(self, outcomes: Sequence[Outcome]) -> None:
        """Start their processes, unless each is to be alone: importing takes seconds."""
        if not self.is_alone:
            for outcome in outcomes:
                self.workers[outcome.variant.name] = Worker(outcome.variant.config)

    @contextmanager
    def turn(self, outcome: Outcome) -> Iterator[Worker]:
        """The variant's worker. If it fails, that is the variant's problem, and its process ends."""
        if self.is_alone:
            self.workers[outcome.variant.name] = Worker(outcome.variant.config)
        try:
            yield self.workers[outcome.variant.name]
        except WorkerFailed as failure:
            if failure.is_out_of_memory and len(self.workers) > 1:
                raise _NoRoomError from None
            outcome.problem = str(failure)
        if self.is_alone or outcome.problem:
            self.workers.pop(outcome.variant.name).end()


def _time(ablation: Ablation, stage: _Stage, say: Say) -> None:
    """Rounds in which every variant runs for about as long."""
    stage.call(ablation.sound)
    for outcome in ablation.sound:
        say(f"{outcome.variant.name}: warming up")
        outcome.rounds.clear()
        with stage.turn(outcome) as worker:
            warm = worker.ask("start")
            outcome.warm_seconds, outcome.device = warm["seconds"], warm["device"]
    if not ablation.sound:
        return
    plan, all_once = ablation.plan, sum(outcome.warm_seconds for outcome in ablation.sound)
    rounds = plan.rounds or max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(plan.seconds / all_once)))
    seconds = plan.seconds / rounds / len(ablation.sound)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for outcome in ablation.sound:
            with stage.turn(outcome) as worker:
                if stage.is_alone:
                    worker.ask("start")
                measured = worker.ask("run", count=max(1, round(seconds / outcome.warm_seconds)))
                outcome.rounds.append(measured["seconds"])
                outcome.peak_bytes = max(outcome.peak_bytes, measured["peak_bytes"])


def _learn(ablation: Ablation, stage: _Stage, say: Say) -> None:
    """Train every variant with every seed, in short turns or, where they do not fit at once, one after the other."""
    for outcome in ablation.sound:
        outcome.turns.clear()
        outcome.curves.clear()
    stage.call(ablation.sound)
    steps = {outcome.variant.name: _steps(ablation, outcome) for outcome in ablation.sound}
    eval_tokens = _eval_tokens(ablation.outcomes[0], steps)
    longest = max((steps[outcome.variant.name] * outcome.seconds for outcome in ablation.sound), default=0.0)
    num_turns = math.ceil(longest / TURN_SECONDS)
    marks = sorted({0.0, *EVALUATIONS, *(number / num_turns for number in range(1, num_turns))})
    turns = list(pairwise(marks))
    for number in range(ablation.plan.seeds):
        for outcome in ablation.sound:
            say(f"{outcome.variant.name}: seed {number + 1} of {ablation.plan.seeds}")
            with stage.turn(outcome) as worker:
                seed = outcome.variant.config.train.seed + number
                worker.ask("begin", seed=seed, steps=steps[outcome.variant.name], eval_tokens=eval_tokens)
                outcome.curves.append([])
                if stage.is_alone:
                    for turn in turns:
                        _advance(outcome, worker, turn, steps[outcome.variant.name])
        if stage.is_alone:
            continue
        for turn in turns:
            for outcome in ablation.sound:
                with stage.turn(outcome) as worker:
                    _advance(outcome, worker, turn, steps[outcome.variant.name])
            if turn[1] in EVALUATIONS:
                say(f"learned {turn[1]:.0%}")


def _advance(outcome: Outcome, worker: Worker, marks: tuple[float, float], steps: int) -> None:
    """Train from one part of the run to the next, and evaluate if that is due there."""
    done, until = (math.ceil(mark * steps) for mark in marks)
    if done == until:
        return
    outcome.turns.append(worker.ask("learn", until=until)["seconds"])
    if any(math.ceil(mark * steps) == until for mark in EVALUATIONS):
        found = worker.ask("evaluate")
        if not math.isfinite(found["loss"]):
            raise WorkerFailed(f"the held-out loss of step {until} is not finite")
        outcome.curves[-1].append(Point(until, **found))


def _steps(ablation: Ablation, outcome: Outcome) -> int:
    """That a variant learns for."""
    if ablation.plan.learn_seconds:
        return max(1, int(ablation.plan.learn_seconds / outcome.seconds))
    return max(1, round(ablation.plan.learn * ablation.outcomes[0].variant.tokens / outcome.variant.tokens))


def _eval_tokens(first: Outcome, steps: dict[str, int]) -> int:
    """Of each evaluation: as configured, but so few that all of them take about half as long as the shortest learning, and
    enough to tell variants apart that are evaluated on the same text."""
    learned = min(steps.values(), default=0) * first.variant.tokens
    return min(first.variant.config.train.eval_tokens, max(FEWEST_EVAL_TOKENS, int(1.5 * learned / len(EVALUATIONS))))


def _prepare(ablation: Ablation, say: Say) -> None:
    """The texts, once, before any process wants them."""
    from moebius.data import prepare

    for outcome in ablation.sound:
        config = outcome.variant.config
        try:
            prepare(config.data, config.model.vocab_size, report=say)
        except MoebiusError as error:
            if outcome is ablation.outcomes[0]:
                raise
            outcome.problem = str(error)
