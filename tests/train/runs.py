"""Functions that several tests of whole runs use."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moebius.config import Config
from moebius.observe.terminal import Terminal
from moebius.train import checkpoint, checkpoint_store, loop
from moebius.train.evaluate import Evaluation
from moebius.train.session import Session, start
from moebius.train.state import TrainState


def silent(line: str) -> None:
    """Ignore a line of a run's summary."""


def with_train(config: Config, **changes: Any) -> Config:
    """Return the configuration with some of its train settings replaced."""
    return replace(config, train=replace(config.train, **changes))


def new_session(config: Config, **changes: Any) -> Session:
    """Return the session of a new run, with some train settings replaced."""
    return start(with_train(config, **changes), "small", silent)


def train(session: Session) -> Evaluation:
    """Train a session to its last step, without a progress bar."""
    return loop.train(session, Terminal(session.config.train.steps, progress=False))


def newest_tensors(session: Session) -> dict[str, Tensor]:
    """Return a run's newest checkpoint: weights, optimizer state and random generators."""
    groups, _ = checkpoint.load(checkpoint_store.latest(session.run.checkpoints, silent))
    return {
        f"{group}/{name}": tensor
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def before_step(step: int, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Make every run call `change` with its model right before step `step`."""
    train_step = loop.train_step

    def interfered(state: TrainState, *arguments: Any) -> Any:
        if state.step + 1 == step:
            with torch.no_grad():
                change(state.model)
        return train_step(state, *arguments)

    monkeypatch.setattr(loop, "train_step", interfered)
