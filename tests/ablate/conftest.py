"""A configuration that trains in a second, and the processes that a test starts."""

from dataclasses import replace

import pytest

from moebius.ablate import stage
from moebius.ablate.worker import Worker
from moebius.config import Config


@pytest.fixture
def few(small: Config, monkeypatch) -> Config:
    """A configuration that trains in a second and is evaluated on little text."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return replace(small, train=replace(small.train, eval_tokens=500))


@pytest.fixture
def workers(monkeypatch) -> list[Worker]:
    """All workers that the test has started so far."""
    started: list[Worker] = []

    class Watched(Worker):
        def __init__(self, config: Config):
            super().__init__(config)
            started.append(self)

    monkeypatch.setattr(stage, "Worker", Watched)
    return started
