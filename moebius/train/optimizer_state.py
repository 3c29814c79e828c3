"""Convert optimizer state to plain named tensors for checkpoints, and back."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from moebius.errors import ForeignCheckpointError
from moebius.parallel.placement import local
from moebius.train.muon import Muon


def named_state(
    optimizers: Iterable[torch.optim.Optimizer], model: nn.Module
) -> dict[str, Tensor]:
    """Return the state of every parameter, named like `layers.0.attention.key.weight/exp_avg`.

    The tensors are not copies: the optimizers will change them. Learning rates and other settings
    come from the configuration and are not part of the state.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": value
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for entry, value in _state(optimizer, parameter).items()
    }


def check_named_state(
    optimizers: Iterable[torch.optim.Optimizer],
    model: nn.Module,
    tensors: dict[str, Tensor],
    shape_of: Callable[[str, Tensor], torch.Size] = lambda name, tensor: tensor.shape,
) -> None:
    """Raise ForeignCheckpointError unless the tensors are the state of these optimizers.

    It names the first entries that do not fit. shape_of: the shape that the whole of a tensor has,
    of which this process may have a part.
    """
    own = named_state(optimizers, model)
    _refuse("missing", own.keys() - tensors.keys())
    _refuse("unexpected", tensors.keys() - own.keys())
    for name, value in own.items():
        shape = shape_of(name, value)
        if (tensors[name].shape, tensors[name].dtype) != (shape, value.dtype):
            stored = f"{list(tensors[name].shape)} {tensors[name].dtype}"
            needed = f"{list(shape)} {value.dtype}"
            raise ForeignCheckpointError(
                f"optimizer state: {name} is {stored}, not {needed}; "
                "resume with the run's own model"
            )


def load_named_state(
    optimizers: Iterable[torch.optim.Optimizer], model: nn.Module, tensors: dict[str, Tensor]
) -> None:
    """Restore what `named_state` returned, so that training continues with identical bits.

    The tensors are those that `check_named_state` has accepted.
    """
    for name, value in named_state(optimizers, model).items():
        local(value).copy_(tensors[name])


def _refuse(problem: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ForeignCheckpointError(
            f"optimizer state: {problem}: {', '.join(sorted(names)[:3])}{more}; "
            "resume with the run's own model and train.optimizer"
        )


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return a parameter's state.

    A parameter that has not had a gradient yet has no state. It gets the state that its first step
    would begin with, so that a checkpoint is never partial.
    """
    state = optimizer.state[parameter]
    if isinstance(optimizer, Muon):
        optimizer.momentum_of(parameter)
    elif not state:
        is_fused = optimizer.param_groups[0]["fused"]
        state["step"] = torch.zeros((), device=parameter.device if is_fused else "cpu")
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state
