"""The weights of a run: those of a checkpoint, or the mean of several."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from moebius.config import Config
from moebius.errors import CheckpointError, ForeignCheckpointError
from moebius.model.transformer import Transformer
from moebius.train import checkpoint, checkpoint_store
from moebius.train.resumption import checkpoint_at
from moebius.train.run_directory import RunDirectory
from moebius.train.run_record import RunRecord
from moebius.train.state import check_model
from moebius.train.trained_settings import check_belongs

WEIGHTS = "model"
"""The group of tensors in a checkpoint that has the weights."""


class Trained(NamedTuple):
    """The weights of a run at one step, and where they come from."""

    tensors: dict[str, Tensor]
    """Every parameter, and every router's bias, by its name in the model."""
    steps: tuple[int, ...]
    """Steps of the checkpoints, newest first; the weights are their mean."""
    tokens: int
    """Number of tokens that the run had trained on at the newest of them."""


def trained(
    run: RunDirectory,
    config: Config,
    record: RunRecord | None,
    step: int | None = None,
    average: int = 1,
    report: Callable[[str], None] = print,
) -> Trained:
    """Return the weights of the newest intact checkpoint, or of that of a step.

    config: the run's configuration.
    record: the run's record, with which the checkpoint's text is compared.
    average: number of checkpoints whose mean is taken; that one is the newest of them.

    `report` gets a line for each damaged checkpoint that is passed over. Where particular
    checkpoints are asked for, a damaged one is an error. Raises CheckpointError, also for a
    checkpoint of another run.
    """
    identity = record.identity if record else ""
    with torch.device("meta"):
        expected = Transformer(config.model)
    loaded: dict[str, Tensor] = {}
    tokens: dict[Path, int] = {}

    def weights_in(folder: Path) -> dict[str, Tensor]:
        tensors, values = checkpoint.load(folder, only=WEIGHTS)
        weights = tensors.get(WEIGHTS, {})
        check_model(expected, weights, folder)
        check_belongs(folder, values, config, identity)
        tokens[folder] = int(values.get("tokens", 0))
        return weights

    def load(folder: Path) -> None:
        loaded.update(weights_in(folder))

    if average > 1:
        folders = _last(run, step, average)
        steps = tuple(checkpoint_store.step_of(folder) for folder in folders)
        return Trained(_mean(weights_in, folders), steps, tokens[folders[0]])
    if step is not None:
        folder = checkpoint_at(run, step)
        load(folder)
        return Trained(loaded, (step,), tokens[folder])
    newest = checkpoint_store.load_newest(run.checkpoints, load, report)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints}: no checkpoint yet; train the run first")
    return Trained(loaded, (checkpoint_store.step_of(newest),), tokens[newest])


def _last(run: RunDirectory, step: int | None, count: int) -> list[Path]:
    """Return the last checkpoints, newest first, up to that of `step`."""
    if step is not None:
        checkpoint_at(run, step)  # raises if there is none
    folders = [
        folder
        for folder in checkpoint_store.complete(run.checkpoints)
        if step is None or checkpoint_store.step_of(folder) <= step
    ]
    if len(folders) < count:
        until = "" if step is None else f" up to step {step}"
        raise CheckpointError(
            f"{run.checkpoints}: {len(folders)} checkpoints{until}, but the mean of {count} is "
            "asked for; --train.keep_last says how many a run keeps"
        )
    return folders[:count]


def _mean(
    weights_in: Callable[[Path], dict[str, Tensor]], folders: list[Path]
) -> dict[str, Tensor]:
    """Return the mean of the checkpoints' weights, added up in float64."""
    sums: dict[str, Tensor] = {}
    for folder in folders:
        try:
            tensors = weights_in(folder)
        except ForeignCheckpointError:
            raise
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; without it there is no such mean (--step N ends it at step N)"
            ) from None
        for name, tensor in tensors.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    return {name: (total / len(folders)).float() for name, total in sums.items()}
