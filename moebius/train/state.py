"""Everything a run needs to go on exactly where it stopped, in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moebius.config import TrainConfig
from moebius.errors import CheckpointError
from moebius.model.transformer import Transformer
from moebius.train import checkpoint
from moebius.train.optimizer import build_optimizers, load_named_state, named_state


@dataclass
class TrainState:
    """The model, its optimizers and how far they are. Data order and learning rate follow from the step alone."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    tokens: int = 0

    @classmethod
    def new(cls, model: Transformer, config: TrainConfig) -> "TrainState":
        return cls(model, build_optimizers(model, config))

    def save(self, folder: Path) -> Path:
        """Write a checkpoint of this step under `folder`. Random generators are part of the state."""
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": named_state(self.optimizers, self.model),
            "random": checkpoint.random_state(),
        }
        return checkpoint.save(folder / f"step-{self.step:08d}", tensors, {"step": self.step, "tokens": self.tokens})

    def load(self, folder: Path) -> None:
        """Take over a checkpoint. Raises CheckpointError if it is damaged or of another model."""
        tensors, state = checkpoint.load(folder)
        load_model(self.model, tensors["model"], folder)
        load_named_state(self.optimizers, self.model, tensors["optimizer"])
        checkpoint.set_random_state(tensors["random"])
        self.step, self.tokens = int(state["step"]), int(state["tokens"])


def model_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Every parameter once, by name: a tied head is not written twice."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def load_model(model: Transformer, tensors: dict[str, Any], folder: Path) -> None:
    """Copy a checkpoint's weights into the model. Raises CheckpointError naming the first keys that differ."""
    own = model_tensors(model)
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(f"{folder}: of another model; differs at {', '.join(differing[:3])}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(f"{folder}: {name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}")
        own[name].copy_(tensor)
