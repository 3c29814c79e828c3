"""Tests of which processes are alive, and of what happens if one fails."""

from typing import Any

import pytest

from moebius.ablate import stage as stage_module
from moebius.ablate.stage import NoRoomError, Stage
from moebius.ablate.worker import WorkerFailed
from moebius.config import Config
from tests.ablate.configurations import outcome


class FakeWorker:
    """A process that only knows whether it is alive."""

    alive = 0

    def __init__(self, config: Config):
        FakeWorker.alive += 1

    def ask(self, task: str, **_: Any) -> dict[str, Any]:
        raise WorkerFailed(task, is_out_of_memory="memory" in task)

    def end(self) -> None:
        FakeWorker.alive -= 1


@pytest.fixture
def stage(monkeypatch) -> Stage:
    monkeypatch.setattr(stage_module, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "alive", 0)
    return Stage()


def test_all_are_alive_until_the_end(stage):
    outcomes = [outcome("a"), outcome("b")]
    with stage:
        stage.call(outcomes)
        for each in outcomes:
            with stage.turn(each):
                assert FakeWorker.alive == 2
    assert FakeWorker.alive == 0


def test_alone_each_is_alive_for_its_turn(stage):
    stage.is_alone = True
    outcomes = [outcome("a"), outcome("b")]
    stage.call(outcomes)
    for each in outcomes:
        assert FakeWorker.alive == 0
        with stage.turn(each):
            assert FakeWorker.alive == 1
    assert FakeWorker.alive == 0


def test_a_failure_is_the_variants_problem_and_ends_its_process(stage):
    outcomes = [outcome("a"), outcome("b")]
    stage.call(outcomes)
    with stage.turn(outcomes[0]) as worker:
        worker.ask("no kernel")
    assert outcomes[0].problem == "no kernel" and not outcomes[1].problem
    assert list(stage.workers) == ["b"] and FakeWorker.alive == 1


def test_too_little_memory_for_all_is_nobodys_problem(stage):
    outcomes = [outcome("a"), outcome("b")]
    with stage:
        stage.call(outcomes)
        with pytest.raises(NoRoomError), stage.turn(outcomes[0]) as worker:
            worker.ask("memory")
    assert not outcomes[0].problem and FakeWorker.alive == 0


def test_too_little_memory_for_one_alone_is_its_problem(stage):
    stage.is_alone = True
    only = outcome("a")
    with stage.turn(only) as worker:
        worker.ask("memory")
    assert only.problem == "memory" and FakeWorker.alive == 0
