"""Everything that a run needs to continue exactly where it stopped, in one place."""

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
from moebius.train.optimizer import build_optimizers
from moebius.train.optimizer_state import load_named_state, named_state

_NUMBERS = ("step", "batch", "tokens", "skipped", "rollbacks", "aux_levels")
SMALLEST_RAISED = 0.005  # smallest coefficient that `raise_aux` doubles, if the configured is less


@dataclass
class TrainState:
    """The model, its optimizers, its alarms, and the progress of the run.

    The learning rate depends only on `step`, and the data only on `batch`.
    """

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    alarms: Alarms
    aux_levels: list[int]
    """How often an alarm has doubled the balance loss of each layer with experts."""
    step: int = 0
    """Number of finished optimizer steps."""
    batch: int = 0
    """Index of the next global batch; ahead of `step` by the batches that rollbacks skipped."""
    tokens: int = 0
    """Number of tokens trained on so far."""
    skipped: int = 0
    """Number of steps in a row, up to now, whose update was skipped."""
    rollbacks: int = 0
    """Number of times that the run was rolled back."""
    corpus: str = ""
    """`Corpus.identity` of the text whose batches `batch` counts."""
    tokenizer: str = ""
    """SHA-256 of the run's tokenizer.json; checkpoints of older versions do not have it."""

    @classmethod
    def new(
        cls, model: Transformer, config: Config, corpus: str = "", tokenizer: str = ""
    ) -> "TrainState":
        """Return the state of a run before its first step."""
        levels = [0] * len(routed_layers(model))
        optimizers = build_optimizers(model, config.train)
        alarms = Alarms(config.observe)
        return cls(model, optimizers, alarms, levels, corpus=corpus, tokenizer=tokenizer)

    def captured(self) -> tuple[checkpoint.Groups, dict[str, Any]]:
        """Return a checkpoint's tensors, random generators included, and its JSON values.

        The tensors are not copies, so later training steps change them; the values are copies.
        """
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": named_state(self.optimizers, self.model),
            "random": checkpoint.random_state(),
        }
        values = {name: getattr(self, name) for name in (*_NUMBERS, "corpus", "tokenizer")}
        return tensors, deepcopy(values | {"alarms": self.alarms.state()})

    def load(self, folder: Path) -> None:
        """Load a checkpoint. Raises CheckpointError if it is damaged or from another model."""
        tensors, state = checkpoint.load(folder)
        if state["corpus"] != self.corpus:
            raise CheckpointError(
                f"{folder}: trained on another text than data.source now gives; "
                "its files have changed, or their order"
            )
        load_model(self.model, tensors["model"], folder)
        load_named_state(self.optimizers, self.model, tensors["optimizer"])
        checkpoint.set_random_state(tensors["random"])
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.alarms.load(state["alarms"])


def aux_coefficients(state: TrainState) -> list[float]:
    """Return the weight of the balance loss in each layer with experts.

    It is the configured weight, doubled as often as `aux_levels` says.
    """
    configured = state.model.config.aux_loss_coeff
    return [
        max(configured, SMALLEST_RAISED) * 2.0**level if level else configured
        for level in state.aux_levels
    ]


def is_finite(model: Transformer) -> bool:
    """Return whether all weights are finite. Waits for the device."""
    flags = [parameter.isfinite().all() for parameter in model.parameters()]
    return bool(torch.stack(flags).all())


def model_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Return every parameter and every router's bias by name; a tied head is not listed twice."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def load_model(model: Transformer, tensors: dict[str, Any], folder: Path) -> None:
    """Copy a checkpoint's weights into the model.

    Raises CheckpointError, which names the first keys or shapes that differ.
    """
    own = model_tensors(model)
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise CheckpointError(
            f"{folder}: the checkpoint of another model; it differs at {', '.join(differing[:3])}"
        )
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{folder}: {name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}"
            )
        own[name].copy_(tensor)
