"""AdamW and Muon, and their state as plain named tensors."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from moebius.config import TrainConfig
from moebius.errors import CheckpointError

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0; singular values end between about 0.7 and 1.2
NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7  # of a gradient that is divided by its norm: zero stays zero
UPDATE_RMS = 0.2  # the usual size of AdamW's updates (Moonlight, arXiv 2502.16982, section 2.2)
FUSED_DEVICES = ("cpu", "cuda")


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or AdamW and, for the hidden matrices, Muon.

    Matrices are decayed; norms and biases are not, as in GPT-3 and Llama. Nor is the embedding, as in OLMo 2 (arXiv
    2501.00656): decay shrinks also the rows of tokens that a batch has not got, and a small input to the first norm makes
    its gradient large (Takase et al. 2023, arXiv 2312.16903). That holds for an embedding that is the LM head, too.
    """
    hidden, decayed, undecayed = [], [], []
    for name, parameter in model.named_parameters():
        if config.optimizer == "muon" and is_hidden_matrix(name, parameter):
            hidden.append(parameter)
        elif is_decayed(name, parameter):
            decayed.append(parameter)
        else:
            undecayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        optimizers.append(_adamw(groups, config))
    if hidden:
        optimizers.append(Muon(hidden, lr=config.lr, weight_decay=config.weight_decay))
    return optimizers


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Attention, MLP and expert matrices: not what faces the vocabulary, nor routers and mixes, whose rows are choices."""
    not_hidden = {"embedding", "lm_head", "router", "mix"}
    return parameter.ndim >= 2 and not _is_bias(name) and not_hidden.isdisjoint(name.split("."))


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Matrices, without the embedding and without biases that are stacked into one."""
    return parameter.ndim >= 2 and not _is_bias(name) and "embedding" not in name.split(".")


def skip_update_if(is_broken: Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Let the next step change nothing at all if the scalar tensor is true, decided on the device: nothing waits for it.

    `found_inf` is what torch's gradient scaler tells fused optimizers. One that is not fused is asked on the host.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Muon) or optimizer.param_groups[0]["fused"]:
            optimizer.found_inf = is_broken.float()  # pyright: ignore[reportAttributeAccessIssue]
        elif is_broken.item():
            optimizer.zero_grad(set_to_none=True)  # without gradients AdamW passes a parameter by


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """One rate for all of them: Muon's updates have AdamW's size."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised matrix by matrix (Jordan 2024, kellerjordan.github.io/posts/muon), with decoupled
    weight decay and scaled to AdamW's update size, 0.2 * sqrt(max(rows, columns)) (Moonlight, arXiv 2502.16982).

    A parameter (..., rows, columns) is a batch of independent matrices: experts (E, D, F) are orthogonalised one by one.
    Raises ValueError for a parameter that has no rows and columns.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.ndim < 2:
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {list(parameter.shape)}")

    found_inf: Tensor | float = 0.0  # 1: a step changes nothing; the name is that of torch's fused optimizers

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
        taken = 1.0 - self.found_inf
        directions: list[Tensor] = []
        for parameter in parameters:
            assert parameter.grad is not None
            gradient = parameter.grad
            if isinstance(taken, Tensor):
                gradient = torch.where(taken > 0, gradient, 0.0)  # nothing times NaN is NaN
            buffer = _state(self, parameter)["momentum"].lerp_(gradient, (1 - momentum) * taken)
            nesterov = gradient.lerp(buffer, momentum)
            directions.append(_for_products(nesterov).reshape(-1, *parameter.shape[-2:]))
        updates = orthogonalise(torch.cat(directions)).split([len(direction) for direction in directions])
        for parameter, update in zip(parameters, updates, strict=True):
            size = UPDATE_RMS * math.sqrt(max(parameter.shape[-2:]))
            parameter.mul_(1 - lr * weight_decay * taken).sub_(update.reshape(parameter.shape) * (lr * size * taken))


def orthogonalise(matrices_XRC: Tensor) -> Tensor:
    """Each of X matrices towards U V^T of its singular value decomposition, by a quintic Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices_XRC.shape[-2] > matrices_XRC.shape[-1]
    x = matrices_XRC.mT if is_tall else matrices_XRC  # the Gram matrix of the shorter side is the smaller one
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        quadratic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, quadratic, x, beta=a)
    return x.mT if is_tall else x


def named_state(optimizers: Iterable[torch.optim.Optimizer], model: nn.Module) -> dict[str, Tensor]:
    """Optimizer state as `parameter/entry` -> tensor, for every parameter: `layers.0.moe.experts.w_up_EDF/exp_avg`.

    The tensors are those that the optimizers go on to change. Learning rates and the like are the configuration's.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{entry}": value
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
        for entry, value in _state(optimizer, parameter).items()
    }


def load_named_state(optimizers: Iterable[torch.optim.Optimizer], model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `named_state`: training goes on bit by bit as it would have.

    Raises CheckpointError, with nothing loaded, naming the first entries that do not fit.
    """
    own = named_state(optimizers, model)
    _refuse("missing", own.keys() - tensors.keys())
    _refuse("of no parameter", tensors.keys() - own.keys())
    for name, value in own.items():
        if (tensors[name].shape, tensors[name].dtype) != (value.shape, value.dtype):
            found, wanted = (f"{list(tensor.shape)} {tensor.dtype}" for tensor in (tensors[name], value))
            raise CheckpointError(f"optimizer state: {name} is {found}, not {wanted}; resume with the run's own model")
    for name, value in own.items():
        value.copy_(tensors[name])


def _refuse(what: str, names: set[str]) -> None:
    if names:
        first = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise CheckpointError(f"optimizer state: {what}: {first}; resume with the run's own model and train.optimizer")


def _adamw(groups: list[dict], config: TrainConfig) -> torch.optim.AdamW:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    is_fused = devices <= set(FUSED_DEVICES)
    if not is_fused:
        warnings.warn(f"AdamW runs unfused and slower: no fused one for {', '.join(sorted(devices))}", stacklevel=3)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=is_fused or None)


def _state(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state. Without a gradient so far it is what its first step begins with: a checkpoint is never partial."""
    state = optimizer.state[parameter]
    if not state and isinstance(optimizer, Muon):
        state["momentum"] = torch.zeros_like(parameter)
    elif not state:
        is_fused = optimizer.param_groups[0]["fused"]
        state["step"] = torch.zeros((), device=parameter.device if is_fused else "cpu")
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


def _for_products(matrix: Tensor) -> Tensor:
    """bfloat16 on a GPU, whose tensor cores are made for it: the iteration only has to bring singular values near 1, and
    its own error is larger than the rounding's (Jordan 2024). CPUs mostly emulate bfloat16: they keep float32."""
    return matrix.bfloat16() if matrix.is_cuda else matrix


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].startswith("bias")
