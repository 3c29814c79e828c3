"""AdamW and Muon, and their state as plain named tensors."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moebius.config import TrainConfig
from moebius.errors import CheckpointError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0, singular values end within 0.7 and 1.2
NEWTON_SCHULZ_STEPS = 5
UPDATE_RMS = 0.2  # the usual size of AdamW's updates (Moonlight, arXiv 2502.16982, section 2.2)


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest.

    Weight decay is for matrices: norms and biases are left alone, as in GPT-3 and Llama.
    """
    hidden, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith("bias_OV"):
            vectors.append(parameter)
        elif config.optimizer == "muon" and is_hidden_matrix(name):
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=True
    )
    return [adamw] if not hidden else [adamw, Muon(hidden, lr=config.lr, weight_decay=config.weight_decay)]


def is_hidden_matrix(name: str) -> bool:
    """Attention, MLP and expert matrices: not what faces the vocabulary, nor routers, whose rows are choices."""
    return not any(part in name for part in ("embedding", "lm_head", "router", ".mix"))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised matrix by matrix (Jordan 2024), scaled to AdamW's update size (arXiv 2502.16982).

    A parameter (..., rows, columns) is a batch of independent matrices: experts (E, D, F) are orthogonalised one by one.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[parameter.shape[-2:]].append(parameter)
            for parameters in same_shape.values():
                self._update(parameters, **{name: group[name] for name in ("lr", "weight_decay", "momentum")})

    def _update(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        """One batched orthogonalisation for all matrices of a shape: few launches."""
        directions: list[Tensor] = []
        for parameter in parameters:
            buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            buffer.mul_(momentum).add_(parameter.grad)  # pyright: ignore[reportArgumentType]
            nesterov = parameter.grad.add(buffer, alpha=momentum)  # pyright: ignore[reportOptionalMemberAccess]
            directions.append(nesterov.reshape(-1, *parameter.shape[-2:]))
        orthogonal = orthogonalise(torch.cat(directions))
        size = UPDATE_RMS * math.sqrt(max(orthogonal.shape[-2:]))
        for parameter, update in zip(parameters, orthogonal.split([len(d) for d in directions]), strict=True):
            parameter.mul_(1 - lr * weight_decay).add_(update.reshape(parameter.shape), alpha=-lr * size)


def orthogonalise(matrices_XRC: Tensor) -> Tensor:
    """Every matrix towards U V^T of its singular value decomposition, by a quintic Newton-Schulz iteration.

    bfloat16 on a GPU, where it is fast and exact enough (the result's singular values need not be 1); float32 on CPUs,
    most of which emulate bfloat16.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices_XRC.bfloat16() if matrices_XRC.is_cuda else matrices_XRC
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrices_XRC.dtype)


def named_state(optimizers: Iterable[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Optimizer state as `parameter/entry` -> tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{entry}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for entry, value in state.items()
    }


def load_named_state(optimizers: Iterable[torch.optim.Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `named_state`. Raises CheckpointError naming the first entries that do not fit."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    unused = dict(tensors)
    for optimizer in optimizers:
        entries = ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            name = names[id(parameter)]
            if not tensors:
                continue
            for entry in entries:
                value = unused.pop(f"{name}/{entry}", None)
                if value is None:
                    raise CheckpointError(f"optimizer state: {name}/{entry} is missing")
                if entry != "step" and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"optimizer state: {name}/{entry} is {list(value.shape)}, not {list(parameter.shape)}"
                    )
                optimizer.state[parameter][entry] = value.to(parameter.device, copy=True)
    if unused:
        raise CheckpointError(f"optimizer state: of another optimizer; unknown are {', '.join(sorted(unused)[:3])}")
