"""Everything a run needs to go on exactly where it stopped, in one place."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moebius.config import Config
from moebius.errors import CheckpointError
from moebius.model.transformer import Transformer, routed_layers
from moebius.observe.alarms import Alarms
from moebius.train import checkpoint
from moebius.train.optimizer import build_optimizers, load_named_state, named_state

_NUMBERS = ("step", "batch", "tokens", "skipped", "rollbacks", "aux_levels")
SMALLEST_RAISED = 0.005  # what `raise_aux` doubles where the configuration has less


@dataclass
class TrainState:
    """The model, its optimizers, its alarms and how far they are. Learning rate and data follow from `step` and `batch` alone.

    batch: index of the next global batch; ahead of `step` by what roll-backs left out. skipped: steps in a row, up to now,
    that were skipped. aux_levels: per layer with experts, how often an alarm has doubled its balance loss. corpus: the identity
    of the text that `batch` counts in.
    """

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    alarms: Alarms
    aux_levels: list[int]
    step: int = 0
    batch: int = 0
    tokens: int = 0
    skipped: int = 0
    rollbacks: int = 0
    corpus: str = ""

    @classmethod
    def new(cls, model: Transformer, config: Config, corpus: str = "") -> "TrainState":
        levels = [0] * len(routed_layers(model))
        return cls(model, build_optimizers(model, config.train), Alarms(config.observe), levels, corpus=corpus)

    def captured(self) -> tuple[checkpoint.Groups, dict[str, Any]]:
        """The tensors of a checkpoint, those that training goes on to change, and its JSON. Random generators are in it."""
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": named_state(self.optimizers, self.model),
            "random": checkpoint.random_state(),
        }
        values = {name: getattr(self, name) for name in (*_NUMBERS, "corpus")} | {"alarms": self.alarms.state()}
        return tensors, deepcopy(values)

    def load(self, folder: Path) -> None:
        """Take over a checkpoint. Raises CheckpointError if it is damaged or of another model."""
        tensors, state = checkpoint.load(folder)
        if state["corpus"] != self.corpus:
            raise CheckpointError(
                f"{folder}: trained on another text than data.source now gives; its files have changed, or their order"
            )
        load_model(self.model, tensors["model"], folder)
        load_named_state(self.optimizers, self.model, tensors["optimizer"])
        checkpoint.set_random_state(tensors["random"])
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.alarms.load(state["alarms"])


def aux_coefficients(state: TrainState) -> list[float]:
    """The balance loss's weight in each layer with experts: the configured one, doubled once a level."""
    configured = state.model.config.aux_loss_coeff
    return [max(configured, SMALLEST_RAISED) * 2.0**level if level else configured for level in state.aux_levels]


def is_finite(model: Transformer) -> bool:
    """Whether all weights are. Waits for the device."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all())


def model_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Every parameter and every router's bias once, by name: a tied head is not written twice."""
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def load_model(model: Transformer, tensors: dict[str, Any], folder: Path) -> None:
    """Copy a checkpoint's weights into the model. Raises CheckpointError naming the first keys that differ."""
    own = model_tensors(model)
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(f"{folder}: of another model; differs at {', '.join(differing[:3])}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(f"{folder}: {name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}")
        own[name].copy_(tensor)
