"""Everything a run needs to go on exactly where it stopped, in one place."""

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

SMALLEST_RAISED = 0.005  # what `raise_aux` doubles where the configuration has less


@dataclass
class TrainState:
    """The model, its optimizers, its alarms and how far they are. Data order and learning rate follow from the step alone.

    aux_levels: per layer with experts, how often an alarm has doubled its balance loss.
    """

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    alarms: Alarms
    aux_levels: list[int]
    step: int = 0
    tokens: int = 0

    @classmethod
    def new(cls, model: Transformer, config: Config) -> "TrainState":
        levels = [0] * len(routed_layers(model))
        return cls(model, build_optimizers(model, config.train), Alarms(config.observe), levels)

    def save(self, folder: Path) -> Path:
        """Write a checkpoint of this step under `folder`. Random generators are part of the state."""
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": named_state(self.optimizers, self.model),
            "random": checkpoint.random_state(),
        }
        state = {"step": self.step, "tokens": self.tokens, "aux_levels": self.aux_levels, "alarms": self.alarms.state()}
        return checkpoint.save(folder / f"step-{self.step:08d}", tensors, state)

    def load(self, folder: Path) -> None:
        """Take over a checkpoint. Raises CheckpointError if it is damaged or of another model."""
        tensors, state = checkpoint.load(folder)
        load_model(self.model, tensors["model"], folder)
        load_named_state(self.optimizers, self.model, tensors["optimizer"])
        checkpoint.set_random_state(tensors["random"])
        self.step, self.tokens = int(state["step"]), int(state["tokens"])
        self.aux_levels = list(state["aux_levels"])
        self.alarms.load(state["alarms"])


def aux_coefficients(state: TrainState) -> list[float]:
    """The balance loss's weight in each layer with experts: the configured one, doubled once a level."""
    configured = state.model.config.aux_loss_coeff
    return [max(configured, SMALLEST_RAISED) * 2.0**level if level else configured for level in state.aux_levels]


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
