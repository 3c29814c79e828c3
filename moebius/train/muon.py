"""The Muon optimizer: momentum whose update is orthogonalized, matrix by matrix."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moebius.hardware.backends import is_hopper
from moebius.parallel.placement import local
from moebius.parallel.whole_matrices import has_whole_matrices, on_whole_matrices, split_group

# Jordan 2024 chose the polynomial that is steepest at 0; singular values end between about 0.7 and
# 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
SMALLEST_NORM = 1e-7  # a gradient is divided by at least this, so that zeros stay zeros
BATCH = 2**28  # numbers that are orthogonalized together: half a GB in bfloat16
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
            same_sides: dict[tuple[Any, ...], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    spread = None if has_whole_matrices(parameter) else split_group(parameter)
                    same_sides[*sorted(parameter.shape[-2:]), spread].append(parameter)
            settings = {name: group[name] for name in ("lr", "weight_decay", "momentum")}
            for (*_, spread), parameters in same_sides.items():
                for batch in _batches(parameters):
                    update = self._update if spread is None else self._update_parts
                    update(batch, **settings)

    def momentum_of(self, parameter: Tensor) -> Tensor:
        """Return the parameter's momentum; zeros before its first gradient."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]

    def _update(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float
    ) -> None:
        """Update parameters with the same two sides with one batched orthogonalization.

        The matrices of some may be the transposes of the others' shape. All directions are stored
        with the shorter side first.
        """
        first = local(parameters[0])
        R, C = sorted(first.shape[-2:])
        sizes = [local(parameter).numel() // (R * C) for parameter in parameters]
        if not any(sizes):  # there are fewer experts than processes that store them
            return
        directions_XRC = first.new_empty(sum(sizes), R, C, dtype=_dtype_of_products(first))
        is_taken = 1.0 - _scalar_on(first.device, self.found_inf)
        passes = _kernels(directions_XRC) or Passes(advance, subtract)
        for parameter, direction in zip(parameters, directions_XRC.split(sizes), strict=True):
            assert parameter.grad is not None
            momentum_XRC = _stacked(local(self.momentum_of(parameter)))
            gradient_XRC = _stacked(local(parameter.grad))
            passes.advance(gradient_XRC, momentum_XRC, direction, momentum, is_taken)
        updates_XRC = orthogonalize(directions_XRC)
        kept, scale = 1 - lr * weight_decay * is_taken, lr * UPDATE_RMS * math.sqrt(C) * is_taken
        for parameter, update in zip(parameters, updates_XRC.split(sizes), strict=True):
            passes.subtract(_stacked(local(parameter)), update, kept, scale)

    def _update_parts(
        self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float
    ) -> None:
        """Update parameters whose matrices are spread over the same processes.

        Everything but the orthogonalization is done by every process with its own parts.
        """
        is_taken = 1.0 - _scalar_on(parameters[0].device, self.found_inf)
        directions: list[Tensor] = []
        for parameter in parameters:
            assert parameter.grad is not None
            own = local(parameter.grad)
            directions.append(own.new_empty(own.shape, dtype=_dtype_of_products(own)))
            advance(own, local(self.momentum_of(parameter)), directions[-1], momentum, is_taken)

        def orthogonalized(matrices: list[Tensor]) -> list[Tensor]:
            return [orthogonalize(_stacked(m)).reshape(m.shape) for m in matrices]

        updates = on_whole_matrices(directions, parameters, orthogonalized)  # pyright: ignore
        columns = max(parameters[0].shape[-2:])
        kept, scale = 1 - lr * weight_decay * is_taken, lr * UPDATE_RMS * math.sqrt(columns)
        for parameter, update in zip(parameters, updates, strict=True):
            subtract(local(parameter), update, kept, scale * is_taken)


class Passes(NamedTuple):
    """The two elementwise halves of a step, before and after the orthogonalization."""

    advance: Callable[[Tensor, Tensor, Tensor, float, Tensor], None]
    subtract: Callable[[Tensor, Tensor, Tensor, Tensor], None]


def advance(
    gradient_XRC: Tensor, momentum_XRC: Tensor, out: Tensor, rate: float, is_taken: Tensor
) -> None:
    """Move the momentum towards the gradient, in place, and store Nesterov's direction in `out`.

    `out` is (X, R, C), or (X, C, R) for transposed directions. The momentum stays as it is if the
    scalar `is_taken` is 0; the gradient may then be NaN. This is the readable reference of
    moebius/kernels/momentum.py, and so is `subtract`.
    """
    gradient_XRC = torch.where(is_taken > 0, gradient_XRC, 0.0)  # 0 times NaN is NaN
    momentum_XRC.lerp_(gradient_XRC, (1 - rate) * is_taken)
    direction_XRC = gradient_XRC.lerp(momentum_XRC, rate)
    out.copy_(direction_XRC if out.shape == direction_XRC.shape else direction_XRC.mT)


def subtract(parameter_XRC: Tensor, update: Tensor, kept: Tensor, scale: Tensor) -> None:
    """Set the parameter to kept * parameter - scale * update, in place.

    `update` is (X, R, C) or, transposed, (X, C, R); kept and scale are scalars.
    """
    update = update if update.shape == parameter_XRC.shape else update.mT
    parameter_XRC.mul_(kept).sub_(update * scale)


def orthogonalize(matrices_XRC: Tensor) -> Tensor:
    """Return each of X matrices, approximately orthogonalized: U V^T of its SVD.

    This is a quintic Newton-Schulz iteration (Jordan 2024): x becomes p(x @ x.T) @ x for a
    polynomial p, beginning with the matrix divided by its Frobenius norm. That norm is the root of
    the first Gram matrix's trace, and the first polynomial divides by it, which saves a pass over
    the matrices.
    """
    is_tall = matrices_XRC.shape[-2] > matrices_XRC.shape[-1]
    x = matrices_XRC.mT.contiguous() if is_tall else matrices_XRC  # Gram of the shorter side
    gram, polynomial = _symmetric_products(x)
    gram_XRR = gram(x)
    wide = torch.promote_types(x.dtype, torch.float32)
    norm_X = gram_XRR.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=wide).sqrt()
    x = polynomial(gram_XRR, NEWTON_SCHULZ, 1 / norm_X.clamp(min=SMALLEST_NORM)) @ x
    for _ in range(1, NEWTON_SCHULZ_STEPS):
        x = polynomial(gram(x), NEWTON_SCHULZ) @ x
    return x.mT if is_tall else x


def gram(x_XRC: Tensor) -> Tensor:
    """Return g = x @ x.T of each of X matrices. The readable reference, as is `polynomial`."""
    return x_XRC @ x_XRC.mT


def polynomial(
    gram_XRR: Tensor,
    coefficients: tuple[float, float, float],
    scale_X: Tensor | None = None,
) -> Tensor:
    """Return s * (c[0] + c[1] * s² g + c[2] * (s² g) @ (s² g)) of each matrix g with its scale s.

    The first coefficient is added on the diagonal. Without scales, s is 1. For g = x @ x.T, the
    product of this and x is the polynomial's of s * x.
    """
    constant, linear, quadratic = coefficients
    scale_X11 = None if scale_X is None else scale_X.to(gram_XRR.dtype)[:, None, None]
    if scale_X11 is not None:
        gram_XRR = gram_XRR * scale_X11 * scale_X11
    result = torch.baddbmm(gram_XRR, gram_XRR, gram_XRR, beta=linear, alpha=quadratic)
    result.diagonal(dim1=-2, dim2=-1).add_(constant)
    return result if scale_X11 is None else result.mul_(scale_X11)


def _symmetric_products(x_XRC: Tensor) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return `gram` and `polynomial`, as kernels where those run."""
    if not uses_kernels(x_XRC):
        return gram, polynomial
    from moebius.kernels import symmetric

    return symmetric.gram, symmetric.polynomial


def uses_kernels(matrices_XRC: Tensor) -> bool:
    """Return whether our own kernels work on such matrices."""
    return (
        matrices_XRC.dtype == torch.bfloat16
        and is_hopper(matrices_XRC.device)
        and all(size % 8 == 0 for size in matrices_XRC.shape[-2:])
        and find_spec("triton") is not None
    )


def _kernels(directions_XRC: Tensor) -> Passes | None:
    """Return the elementwise halves as kernels, or None where they do not run."""
    if not uses_kernels(directions_XRC):
        return None
    from moebius.kernels import momentum

    return Passes(momentum.advance, momentum.subtract)


def _batches(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield parts of a list whose parameters together have about BATCH numbers.

    A batch fills a GPU, and needs little memory beside the parameters.
    """
    batch: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if batch and size + parameter.numel() > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(parameter)
        size += parameter.numel()
    yield batch


def _stacked(tensor: Tensor) -> Tensor:
    """Return a tensor's matrices as one stack, which shares its memory if it is contiguous."""
    return tensor.reshape(-1, *tensor.shape[-2:])


def _scalar_on(device: torch.device, value: Tensor | float) -> Tensor:
    """Return a scalar on a device, without making the host wait for it."""
    return value if isinstance(value, Tensor) else torch.full((), value, device=device)


def _dtype_of_products(parameter: Tensor) -> torch.dtype:
    """Return the dtype of the iteration: bfloat16 on a GPU, the parameter's elsewhere.

    The iteration only has to bring singular values near 1, and its own error is larger than that
    of rounding (Jordan 2024). CPUs keep the dtype because most of them emulate bfloat16.
    """
    return torch.bfloat16 if parameter.is_cuda else parameter.dtype
