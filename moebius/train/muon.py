"""The Muon optimizer: momentum whose update is orthogonalized, matrix by matrix."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Jordan 2024 chose the polynomial that is steepest at 0; singular values end between about 0.7 and
# 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7  # a gradient is divided by at least this, so that zeros stay zeros
UPDATE_RMS = 0.2  # the usual size of AdamW's updates (Moonlight, arXiv 2502.16982, section 2.2)


class Muon(torch.optim.Optimizer):
    """Orthogonalized Nesterov momentum with decoupled weight decay.

    The method is that of Jordan 2024 (kellerjordan.github.io/posts/muon). Updates are multiplied
    by 0.2 * sqrt(max(rows, columns)), which gives them the size of AdamW's, as in Moonlight (arXiv
    2502.16982). A parameter of shape (..., rows, columns) is a batch of independent matrices:
    experts (E, D, F) are orthogonalized one by one. Raises ValueError for a parameter with fewer
    than two dimensions.
    """

    found_inf: Tensor | float = 0.0
    """If this is 1, a step changes nothing. torch's fused optimizers use the same name."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for parameter in (param for group in self.param_groups for param in group["params"]):
            if parameter.ndim < 2:
                shape = list(parameter.shape)
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {shape}")

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, closure: None = None
    ) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[parameter.shape[-2:]].append(parameter)
            settings = {name: group[name] for name in ("lr", "weight_decay", "momentum")}
            for parameters in same_shape.values():
                self._update(parameters, **settings)

    def momentum_of(self, parameter: Tensor) -> Tensor:
        """Return the parameter's momentum; zeros before its first gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]

    def _update(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float
    ) -> None:
        """Update parameters of one shape with one batched orthogonalization, to launch less."""
        is_taken = 1.0 - self.found_inf
        directions: list[Tensor] = []
        for parameter in parameters:
            assert parameter.grad is not None
            gradient = parameter.grad
            if isinstance(is_taken, Tensor):
                gradient = torch.where(is_taken > 0, gradient, 0.0)  # 0 times NaN is NaN
            buffer = self.momentum_of(parameter).lerp_(gradient, (1 - momentum) * is_taken)
            nesterov = gradient.lerp(buffer, momentum)
            directions.append(_for_products(nesterov).reshape(-1, *parameter.shape[-2:]))
        sizes = [len(direction) for direction in directions]
        updates = orthogonalize(torch.cat(directions)).split(sizes)
        for parameter, update in zip(parameters, updates, strict=True):
            size = UPDATE_RMS * math.sqrt(max(parameter.shape[-2:]))
            parameter.mul_(1 - lr * weight_decay * is_taken)
            parameter.sub_(update.reshape(parameter.shape) * (lr * size * is_taken))


def orthogonalize(matrices_XRC: Tensor) -> Tensor:
    """Return each of X matrices, approximately orthogonalized: U V^T of its SVD.

    This is a quintic Newton-Schulz iteration (Jordan 2024).
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices_XRC.shape[-2] > matrices_XRC.shape[-1]
    x = matrices_XRC.mT if is_tall else matrices_XRC  # the Gram matrix of the shorter side
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        quadratic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, quadratic, x, beta=a)
    return x.mT if is_tall else x


def _for_products(matrix: Tensor) -> Tensor:
    """Return the matrix in the dtype of the iteration: bfloat16 on a GPU, float32 elsewhere.

    The iteration only has to bring singular values near 1, and its own error is larger than that
    of rounding (Jordan 2024). CPUs keep float32 because most of them emulate bfloat16.
    """
    return matrix.bfloat16() if matrix.is_cuda else matrix
