"""Everything that a run needs to continue exactly where it stopped, in one place."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from moebius.config import Config, TrainConfig
from moebius.config.fields import plain
from moebius.config.in_phases import mixture_in_phase
from moebius.data.batches import Stretch
from moebius.errors import CheckpointError, ForeignCheckpointError
from moebius.model.transformer import Transformer, routed_layers
from moebius.observe.alarms import Alarms
from moebius.parallel.placement import Placement, local
from moebius.parallel.ranks import from_first, has_peers, largest
from moebius.train import checkpoint
from moebius.train.optimizer import build_optimizers
from moebius.train.optimizer_state import check_named_state, load_named_state, named_state
from moebius.train.state_values import STRETCH, check_values, stretch_of
from moebius.train.trained_settings import CONFIG, check_belongs, settings_of

_NUMBERS = ("step", "sequences", "tokens", "skipped", "rollbacks", "aux_levels")
SMALLEST_RAISED = 0.005  # smallest coefficient that `raise_aux` doubles, if the configured is less


class Content(NamedTuple):
    """The verified contents of a checkpoint."""

    folder: Path
    tensors: checkpoint.Groups
    values: dict[str, Any]
    """The values of its state.json."""


@dataclass
class TrainState:
    """The model, its optimizers, its alarms, and the progress of the run.

    The learning rate depends only on `step`, and the data only on `sequences`.
    """

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    alarms: Alarms
    aux_levels: list[int]
    """How often an alarm has doubled the balance loss of each layer with experts."""
    step: int = 0
    """Number of finished optimizer steps."""
    sequences: int = 0
    """Number of the next sequence in the order of the data. Those that roll-backs left out count,
    too."""
    tokens: int = 0
    """Number of tokens trained on so far."""
    skipped: int = 0
    """Number of steps in a row, up to now, whose update was skipped."""
    rollbacks: int = 0
    """Number of times that the run was rolled back."""
    corpus: str = ""
    """`Corpus.identity` of the text whose sequences `sequences` counts."""
    stretch: Stretch | None = None
    """How the text has been cut and mixed since the latest change of that, and which sequences
    the sources have given before. None if it has not changed since the run began."""
    placement: Placement = field(default_factory=Placement)
    """Where the weights are among the processes."""
    config: Config = field(default_factory=Config)
    """The configuration that the next step is trained with."""
    loaded: tuple[int, Config | None] = (-1, None)
    """The step of the checkpoint that was loaded last, and the settings that it was trained with,
    if it says so."""

    @classmethod
    def new(
        cls,
        model: Transformer,
        config: Config,
        corpus: str = "",
        placement: Placement | None = None,
    ) -> "TrainState":
        """Return the state of a run before its first step.

        Without a placement, this process has all weights.
        """
        levels = [0] * len(routed_layers(model))
        optimizers = build_optimizers(model, config.train)
        alarms = Alarms(config.observe)
        placement = placement or Placement()
        state = cls(model, optimizers, alarms, levels, placement=placement)
        state.corpus, state.config = corpus, config
        return state

    @property
    def trained(self) -> Config | None:
        """The configuration that the latest step was trained with.

        It is None if that was before the checkpoint of an earlier version, which does not say.
        """
        step, config = self.loaded
        return config if step == self.step else self.config

    def captured(self) -> tuple[checkpoint.Groups, dict[str, Any]]:
        """Return a checkpoint's tensors, random generators included, and its JSON values.

        The tensors are not copies, so later training steps change them; the values are copies.
        """
        tensors = {
            "model": model_tensors(self.model),
            "optimizer": named_state(self.optimizers, self.model),
            "random": checkpoint.random_state(),
        }
        return tensors, self._values()

    def load(self, folder: Path) -> None:
        """Load a checkpoint; nothing of it if anything is wrong with it. Raises as `read` does."""
        self.take(self.read(folder))

    def read(self, folder: Path) -> "Content":
        """Return the contents of a checkpoint that belongs to this state, and change nothing.

        Raises CheckpointError if it is damaged, and ForeignCheckpointError if it is intact but
        from another model, optimizer or text.
        """
        tensors, state = checkpoint.load(folder)
        state = in_sequences(state, self.config.train)
        own = self._values()
        for name in (CONFIG, STRETCH):
            own.pop(name)  # earlier versions did not write them
        check_values(folder, state, own)
        if missing := {"model", "optimizer", "random"} - tensors.keys():
            raise CheckpointError(
                f"{folder}: without {', '.join(sorted(missing))}; {checkpoint.ADVICE}"
            )
        shape_of = self.placement.whole_shape
        check_model(self.model, tensors["model"], folder, shape_of)
        check_named_state(self.optimizers, self.model, tensors["optimizer"], shape_of)
        check_belongs(folder, state, self.config, self.corpus)
        stretch_of(folder, state, len(mixture_in_phase(self.config, 0)))
        checkpoint.check_random_state(tensors["random"])
        return Content(folder, tensors, state)

    def take(self, content: "Content | None") -> None:
        """Replace the state by what `read` has returned, on all ranks.

        Only the first rank needs to have read it; the others give None.
        """
        place, state = from_first(content and (str(content.folder), content.values))
        tensors = content.tensors if content else {}
        parts, own = self.placement.parts, named_state(self.optimizers, self.model)
        if not has_peers():  # each step of several processes begins with generators of its own
            checkpoint.set_random_state(tensors["random"])
        load_model(self.model, parts(model_tensors(self.model), tensors.get("model")))
        optimizer = parts(own, tensors.get("optimizer"))
        load_named_state(self.optimizers, self.model, optimizer)
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.stretch = stretch_of(Path(place), state, len(mixture_in_phase(self.config, 0)))
        self.alarms.load(state["alarms"])
        self.loaded = self.step, settings_of(state)

    def _values(self) -> dict[str, Any]:
        """Return copies of the values that a checkpoint's JSON has."""
        values = {name: getattr(self, name) for name in (*_NUMBERS, "corpus")}
        values |= {"alarms": self.alarms.state(), CONFIG: plain(self.trained)}
        values |= {STRETCH: self.stretch and self.stretch._asdict()}
        return deepcopy(values)


def in_sequences(state: dict[str, Any], train: TrainConfig) -> dict[str, Any]:
    """Return the values of a checkpoint, with `sequences` if its version counted batches instead.

    The size of its batches follows from its tokens, because train.batch_size may have changed
    since. If it changed before, that version went on at `batch` times the new size.
    """
    batch, tokens, step = (state.get(name) for name in ("batch", "tokens", "step"))
    if "sequences" in state or not (
        isinstance(batch, int) and isinstance(tokens, int) and isinstance(step, int)
    ):
        return state  # `check_values` says what is wrong
    batch_size, rest = divmod(tokens, max(1, step) * train.seq_len)
    return state | {"sequences": batch * (train.batch_size if rest else batch_size)}


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
    """Return whether all weights are finite, on all ranks. Waits for the device."""
    flags = [local(parameter).isfinite().all() for parameter in model.parameters()]
    return not largest(not torch.stack(flags).all())


def model_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Return every parameter and every router's bias by name; a tied head is not listed twice."""
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def check_model(
    model: Transformer,
    tensors: dict[str, Any],
    folder: Path,
    shape_of: Callable[[str, torch.Tensor], torch.Size] = lambda name, tensor: tensor.shape,
) -> None:
    """Raise ForeignCheckpointError unless a checkpoint's weights fit into the model.

    It names the first keys or shapes that differ. shape_of: the shape that the whole of a tensor
    has, of which this process may have a part.
    """
    own = model_tensors(model)
    if differing := sorted(own.keys() ^ tensors.keys()):
        raise ForeignCheckpointError(
            f"{folder}: the checkpoint of another model; it differs at {', '.join(differing[:3])}"
        )
    for name, tensor in tensors.items():
        if (shape := shape_of(name, own[name])) != tensor.shape:
            raise ForeignCheckpointError(
                f"{folder}: {name} is {list(tensor.shape)}, the model's is {list(shape)}"
            )


def load_model(model: Transformer, tensors: dict[str, Any]) -> None:
    """Copy a checkpoint's weights, which `check_model` has accepted, into the model."""
    own = model_tensors(model)
    for name, tensor in tensors.items():
        local(own[name]).copy_(tensor)
