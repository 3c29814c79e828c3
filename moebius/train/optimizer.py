"""The optimizers of a run: which parameters each one updates, and with what settings."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moebius.config import TrainConfig
from moebius.train.muon import Muon

FUSED_DEVICES = ("cpu", "cuda")


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return the optimizers that `train.optimizer` names, which together update every parameter.

    Matrices are decayed; norms and biases are not, as in GPT-3 and Llama. The embedding is not
    decayed either, as in OLMo 2 (arXiv 2501.00656), even if it is also the LM head: decay would
    also shrink the rows of tokens that a batch does not contain, and a small input to the first
    norm makes its gradient large (Takase et al. 2023, arXiv 2312.16903).
    """
    return _BUILDERS[config.optimizer](dict(model.named_parameters()), config)


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix of attention, an MLP or the experts.

    The embedding and the LM head are not hidden matrices, and neither are routers and residual
    mixes, whose rows stand for choices.
    """
    not_hidden = {"embedding", "lm_head", "router", "mix"}
    return parameter.ndim >= 2 and not _is_bias(name) and not_hidden.isdisjoint(name.split("."))


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Return whether weight decay applies: to matrices, but not to the embedding.

    Several biases that are stacked in one parameter do not count as a matrix.
    """
    return parameter.ndim >= 2 and not _is_bias(name) and "embedding" not in name.split(".")


def skip_update_if(is_broken: Tensor, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Make the next optimizer step change nothing if the scalar tensor `is_broken` is true.

    Fused optimizers read `found_inf` on the device, as torch's gradient scaler sets it, so that
    the host does not wait. For an optimizer that is not fused, the host reads the tensor.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Muon) or optimizer.param_groups[0]["fused"]:
            optimizer.found_inf = is_broken.float()  # pyright: ignore[reportAttributeAccessIssue]
        elif is_broken.item():
            optimizer.zero_grad(set_to_none=True)  # AdamW skips parameters without a gradient


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    """Set one rate for all optimizers, since Muon's updates have the size of AdamW's."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def _adamw(
    parameters: dict[str, nn.Parameter], config: TrainConfig
) -> list[torch.optim.Optimizer]:
    """Return AdamW for all of the parameters, or an empty list if there are none."""
    by_kind: dict[tuple[bool, Any], list[nn.Parameter]] = {}
    for name, p in parameters.items():  # one call of torch's fused update takes one kind
        mesh = p.device_mesh if isinstance(p, DTensor) else None
        by_kind.setdefault((not is_decayed(name, p), mesh), []).append(p)
    groups = [
        {"params": params, "weight_decay": 0.0 if is_other else config.weight_decay}
        for (is_other, _), params in sorted(by_kind.items(), key=lambda kind: kind[0][0])
    ]
    if not groups:
        return []
    devices = {parameter.device.type for parameter in parameters.values()}
    is_fused = devices <= set(FUSED_DEVICES)
    if not is_fused:
        names = ", ".join(sorted(devices))
        warnings.warn(
            f"AdamW runs unfused and slower: torch has no fused one for {names}", stacklevel=4
        )
    betas = (config.beta1, config.beta2)
    return [torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=is_fused or None)]


def _muon(parameters: dict[str, nn.Parameter], config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden matrices, after AdamW for all other parameters."""
    hidden = {name: p for name, p in parameters.items() if is_hidden_matrix(name, p)}
    others = {name: p for name, p in parameters.items() if name not in hidden}
    optimizers = _adamw(others, config)
    if hidden:
        optimizers.append(Muon(hidden.values(), lr=config.lr, weight_decay=config.weight_decay))
    return optimizers


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2].startswith("bias")


_BUILDERS: dict[
    str, Callable[[dict[str, nn.Parameter], TrainConfig], list[torch.optim.Optimizer]]
] = {"adamw": _adamw, "muon": _muon}
