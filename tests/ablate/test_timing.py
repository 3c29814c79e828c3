"""Variants run in rounds of equal time, without any process."""

from contextlib import contextmanager
from typing import Any

import pytest

from moebius.ablate.ablation import AblateOptions, Ablation
from moebius.ablate.comparison import Outcome
from moebius.ablate.timing import FEWEST_ROUNDS, MOST_ROUNDS, time_variants
from moebius.ablate.worker import WorkerFailed
from tests.ablate.configurations import outcome

SLOW, FAST = 0.5, 0.125  # seconds per step


class FakeStage:
    """A stage whose variants finish every task immediately, with a record of the tasks."""

    def __init__(self, is_alone: bool = False, fails_at: int | None = None):
        self.is_alone, self.fails_at = is_alone, fails_at
        self.called: list[str] = []
        self.asked: list[tuple[str, str, int]] = []
        """The variant, the task and the number of steps of every request."""

    def call(self, outcomes: list[Outcome]) -> None:
        self.called = [each.variant.name for each in outcomes]

    @contextmanager
    def turn(self, outcome: Outcome):
        self.name, self.seconds = outcome.variant.name, SLOW
        if self.name == "fast":
            self.seconds = FAST
        try:
            yield self
        except WorkerFailed as failure:
            outcome.problem = str(failure)

    def ask(self, task: str, count: int = 0) -> dict[str, Any]:
        if len(self.asked) == self.fails_at:
            self.asked.append((self.name, "failed", 0))
            raise WorkerFailed("no kernel")
        self.asked.append((self.name, task, count))
        warm: dict[str, Any] = {
            "seconds": self.seconds,
            "device": f"a device for {self.name}",
            "notes": ["read 1 file", f"only {self.name}"],
        }
        # Later rounds take longer and need less memory.
        number = len(self.asked)
        measured: dict[str, Any] = {
            "seconds": self.seconds + number / 1024,
            "peak_bytes": 1e6 - number,
        }
        measured["crowding"] = "others" if self.asked.count(self.asked[-1]) == 2 else ""
        return warm if task == "start" else measured

    def runs(self, name: str) -> list[int]:
        """Return how many steps a variant has run in each round."""
        return [count for who, task, count in self.asked if (who, task) == (name, "run")]


def timed(stage: FakeStage, *names: str, **options: Any) -> tuple[Ablation, list[str]]:
    """Return timed variants, and the lines of progress."""
    outcomes = [outcome(name, rounds=()) for name in names or ("slow", "fast")]
    ablation, lines = Ablation(AblateOptions(**options), outcomes), []
    time_variants(ablation, stage, lines.append)  # pyright: ignore[reportArgumentType]
    return ablation, lines


def test_every_round_gives_every_variant_the_same_time(monkeypatch):
    ablation, lines = timed(stage := FakeStage(), seconds=12.0, rounds=3)
    assert stage.called == ["slow", "fast"]
    assert stage.runs("slow") == [4] * 3 and stage.runs("fast") == [16] * 3  # 2 s each
    slow, fast = ablation.outcomes
    assert (slow.warm_seconds, fast.warm_seconds) == (SLOW, FAST)
    assert fast.device == "a device for fast"
    assert slow.rounds == [SLOW + number / 1024 for number in (3, 5, 7)]
    assert fast.rounds == [FAST + number / 1024 for number in (4, 6, 8)]
    assert (slow.crowding, fast.crowding) == ("others", "others")  # in one of the rounds
    assert lines == [
        "slow: warming up",
        "fast: warming up",
        *(f"round {number} of 3" for number in (1, 2, 3)),
    ]


def test_the_variants_take_turns_within_a_round():
    _, _ = timed(stage := FakeStage(), seconds=1.0, rounds=2)
    assert [name for name, _, _ in stage.asked] == ["slow", "fast"] * 3


@pytest.mark.parametrize(
    ("seconds", "rounds"),
    [
        (0.0, FEWEST_ROUNDS),
        (1.0, FEWEST_ROUNDS),
        (3.2, 5),  # a step of each takes 0.625 s
        (1000.0, MOST_ROUNDS),
    ],
)
def test_as_many_rounds_as_fit_into_the_time(seconds, rounds):
    ablation, _ = timed(stage := FakeStage(), seconds=seconds)
    assert [len(each.rounds) for each in ablation.outcomes] == [rounds, rounds]
    assert all(count >= 1 for count in stage.runs("slow") + stage.runs("fast"))


@pytest.mark.parametrize("rounds", [1, 20])
def test_rounds_that_are_asked_for_are_not_limited(rounds):
    ablation, _ = timed(FakeStage(), seconds=1.0, rounds=rounds)
    assert [len(each.rounds) for each in ablation.outcomes] == [rounds, rounds]


def test_the_largest_peak_of_all_rounds_counts():
    ablation, _ = timed(FakeStage(), seconds=1.0, rounds=3)
    assert [each.peak_bytes for each in ablation.outcomes] == [1e6 - 3, 1e6 - 4]


def test_a_fresh_process_warms_up_before_each_round():
    _, _ = timed(stage := FakeStage(is_alone=True), "slow", seconds=1.0, rounds=2)
    assert [task for _, task, _ in stage.asked] == ["start", *["start", "run"] * 2]


def test_starting_over_forgets_the_rounds_before():
    """The variants did not fit into memory together, after some rounds."""
    ablation, _ = timed(FakeStage(), seconds=1.0, rounds=2)
    stage: Any = FakeStage(is_alone=True)
    time_variants(ablation, stage, lambda line: None)
    assert [len(each.rounds) for each in ablation.outcomes] == [2, 2]


@pytest.mark.parametrize(
    ("fails_at", "rounds"),
    [(0, [0, 3]), (2, [0, 3]), (4, [1, 3]), (5, [3, 1])],
    ids=["warming up", "in the first round", "in the second round", "the other variant"],
)
def test_a_variant_that_fails_leaves_the_time_to_the_others(fails_at, rounds):
    ablation, _ = timed(stage := FakeStage(fails_at=fails_at), seconds=6.0, rounds=3)
    problems = ["no kernel" if count < 3 else "" for count in rounds]
    assert [each.problem for each in ablation.outcomes] == problems
    assert [len(each.rounds) for each in ablation.outcomes] == rounds
    broken = ("slow", "fast")[problems.index("no kernel")]
    assert all(name != broken for name, _, _ in stage.asked[fails_at + 1 :])


def test_a_variant_that_cannot_warm_up_takes_no_time_from_the_rounds():
    _, _ = timed(stage := FakeStage(fails_at=0), seconds=6.0, rounds=3)
    assert stage.runs("fast") == [16] * 3  # 2 s each


def test_nothing_is_timed_if_every_variant_has_failed():
    _, lines = timed(stage := FakeStage(fails_at=0), "slow")
    assert stage.runs("slow") == [] and lines == ["slow: warming up"]


def test_variants_that_cannot_be_built_are_not_started():
    unbuilt = outcome("slow", rounds=())
    unbuilt.problem = "cannot be built"
    stage: Any = FakeStage()
    built = outcome("fast", rounds=())
    time_variants(Ablation(AblateOptions(rounds=1), [unbuilt, built]), stage, lambda line: None)
    assert stage.called == ["fast"] and stage.runs("slow") == []
    assert unbuilt.rounds == [] and len(built.rounds) == 1


def test_what_was_read_of_the_text_is_noted_once():
    ablation, _ = timed(FakeStage(), seconds=1.0, rounds=1)
    names = [outcome.variant.name for outcome in ablation.outcomes]
    assert len(names) > 1
    assert ablation.notes == ["read 1 file", *(f"only {name}" for name in names)]
