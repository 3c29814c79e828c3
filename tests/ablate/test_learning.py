"""Tests of how long variants are trained and when they are evaluated, without any process."""

from contextlib import contextmanager
from typing import Any

import pytest

from moebius.ablate.ablation import AblateOptions, Ablation
from moebius.ablate.comparison import Outcome
from moebius.ablate.learning import EVALUATIONS, TURN_SECONDS, learn_variants
from tests.ablate.configurations import outcome


class FakeStage:
    """A stage whose variants finish every task immediately, with a record of the tasks."""

    def __init__(self, is_alone: bool, loss: float = 1.0):
        self.is_alone, self.loss = is_alone, loss
        self.asked: list[tuple[str, str, int]] = []

    def call(self, outcomes: list[Outcome]) -> None:
        """Start nothing."""

    @contextmanager
    def turn(self, outcome: Outcome):
        stage, self_name = self, outcome.variant.name

        class FakeWorker:
            def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
                number = arguments.get("until", arguments.get("steps", 0))
                stage.asked.append((self_name, task, number))
                if task == "evaluate":
                    return {"loss": stage.loss, "bits_per_byte": 0.5}
                return {"seconds": 0.25, "crowding": ""}

        yield FakeWorker()


def learned(is_alone: bool, **options: Any) -> tuple[Ablation, FakeStage]:
    """Return two variants that have learned: `slow` takes 0.5 s per step, and `fast` 0.125 s."""
    outcomes = [outcome("slow", [0.5]), outcome("fast", [0.125])]
    ablation, stage = Ablation(AblateOptions(**options), outcomes), FakeStage(is_alone)
    learn_variants(ablation, stage, lambda line: None)  # pyright: ignore[reportArgumentType]
    return ablation, stage


@pytest.mark.parametrize("is_alone", [True, False])
def test_every_seed_is_evaluated_at_the_same_parts_of_the_run(is_alone):
    ablation, stage = learned(is_alone, learn=48, seeds=2)
    steps = [round(part * 48) for part in EVALUATIONS]
    for each in ablation.outcomes:
        assert [[point.step for point in curve] for curve in each.curves] == [steps, steps]
    order = [name for name, task, _ in stage.asked if task == "learn"]
    assert order[:2] == (["slow", "slow"] if is_alone else ["slow", "fast"])


def test_a_turn_is_short():
    ablation, _ = learned(False, learn=48)
    assert len(ablation.outcomes[0].turns) >= 48 * 0.5 / TURN_SECONDS


def test_a_time_is_as_many_steps_as_fit():
    _, stage = learned(False, learn_seconds=6.0)
    begun = [(name, steps) for name, task, steps in stage.asked if task == "begin"]
    assert begun == [("slow", 12), ("fast", 48)]
