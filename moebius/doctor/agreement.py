"""Compare backends with a reference in float64 on this device: the output and every gradient."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moebius.config import Activation, Config
from moebius.doctor.offers import FLOAT8, chosen
from moebius.doctor.trial import TrialFailed
from moebius.hardware.precision import matmul_dtype
from moebius.model.attention import AttentionBackend, attention_backend, dense_mask
from moebius.moe.backends import expert_backend
from moebius.moe.experts import ExpertsFunction, ExpertWeights, loop
from moebius.moe.router import Routing

# Largest allowed error, relative to the norm of the right result. Rounding alone gives 1% to 10%
# of this.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# Rounding once to FP8 gives an error of 2.6%, and a gradient goes through up to eight roundings.
ALLOWED_IN_FLOAT8 = 0.15
T, D, F, E, K = 203, 64, 96, 5, 2
B, N, G, S, H = 2, 4, 2, 256, 32


def experts_agree(name: str, config: Config, device: torch.device) -> str:
    """Compare an expert backend, in the configuration's dtype, with `loop` in float64.

    The cases include an expert without tokens, slots and tokens without an expert, and a batch in
    which no token has an expert. Returns one line of figures. Raises TrialFailed.
    """
    dtype, activation = matmul_dtype(config.train, device), config.model.activation
    run = expert_backend(chosen(config, device, "experts", name).experts)
    cases = _choices()
    errors = [_experts_error(run, case_TK.to(device), activation, dtype) for case_TK in cases]
    return _judged(
        max(errors),
        ALLOWED_IN_FLOAT8 if name == FLOAT8 else ALLOWED[dtype],
        f"output and {2 + config.model.matrices_per_mlp} gradients, {len(errors)} cases",
    )


def attention_agrees(name: str, config: Config, device: torch.device) -> str:
    """Compare an attention backend, in the configuration's dtype, with a softmax in float64.

    This is done with and without document masking. Returns one line of figures. Raises
    TrialFailed.
    """
    dtype = matmul_dtype(config.train, device)
    errors = []
    for has_documents in (False, True):
        backends = chosen(config, device, "attention", name, has_documents)
        backend = attention_backend(backends.attention)
        errors.append(_attention_error(backend, has_documents, dtype, device))
    return _judged(
        max(errors), ALLOWED[dtype], "output and 3 gradients, with and without documents"
    )


def _judged(error: float, allowed: float, what: str) -> str:
    """Return a line about an error. Raises TrialFailed if the error is too large or NaN."""
    figures = f"largest error {error:.1e} of {allowed:g} allowed; {what}"
    if not error <= allowed:
        raise TrialFailed(figures)
    return figures


def _choices() -> list[Tensor]:
    """Return expert_TK for three cases. The id E means no expert, and no token chooses E - 1."""
    generator = torch.Generator().manual_seed(0)
    some_TK = torch.rand(T, E - 1, generator=generator).argsort(dim=1)[:, :K]
    some_TK = torch.where(torch.rand(T, K, generator=generator) < 0.3, E, some_TK)
    return [some_TK, torch.tensor([[1, E]]), torch.full((17, K), E)]


def _experts_error(
    run: ExpertsFunction, expert_TK: Tensor, activation: Activation, dtype: torch.dtype
) -> float:
    """Return the largest relative error of output and gradients.

    Raises TrialFailed if a token without an expert does not get zero.
    """
    draw = _drawing(expert_TK.device)
    x_TD, upstream_TD = draw(len(expert_TK), D).to(dtype), draw(len(expert_TK), D).to(dtype)
    gate_TK = draw(*expert_TK.shape).sigmoid()
    shapes = [(E, D, F)] * (2 if activation == "swiglu" else 1) + [(E, F, D)]
    matrices = [(draw(*shape) / shape[1] ** 0.5).to(dtype) for shape in shapes]

    def computed(
        x_TD: Tensor, gate_TK: Tensor, *matrices: Tensor, run: ExpertsFunction = run
    ) -> Tensor:
        gate, up, down = matrices if len(matrices) == 3 else (None, *matrices)
        unused_TE = gate_TK.new_full((len(gate_TK), E), math.nan)  # a backend must not read these
        routing = Routing(gate_TK, expert_TK, unused_TE, unused_TE)
        return run(x_TD, routing, ExpertWeights(gate, up, down, activation, 0.0))

    def reference(*inputs: Tensor) -> Tensor:
        return computed(*inputs, run=loop)

    inputs = (x_TD, gate_TK, *matrices)
    out_TD, *_ = values = _with_gradients(computed, inputs, upstream_TD)
    if out_TD[(expert_TK == E).all(dim=1)].any():
        raise TrialFailed("a token without an expert did not get zero")
    exact = [x.double() for x in inputs]
    return _largest_error(values, _with_gradients(reference, exact, upstream_TD.double()))


def _attention_error(
    backend: AttentionBackend, has_documents: bool, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the largest relative error of output and gradients."""
    draw = _drawing(device)
    inputs = [draw(B, heads, S, H).to(dtype) for heads in (N, G, G)]
    upstream_BNSH = draw(B, N, S, H).to(dtype)
    document_BS = (draw(B, S) > 2).cumsum(dim=1)
    mask = backend.mask(document_BS if has_documents else None)
    mask_B1SS = dense_mask(document_BS if has_documents else torch.zeros_like(document_BS))

    def reference(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor) -> Tensor:
        k_BNSH, v_BNSH = (x.repeat_interleave(N // G, dim=1) for x in (k_BGSH, v_BGSH))
        score_BNSS = (q_BNSH @ k_BNSH.mT / math.sqrt(H)).masked_fill(~mask_B1SS, -math.inf)
        return score_BNSS.softmax(dim=-1) @ v_BNSH

    def computed(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor) -> Tensor:
        return backend.attend(q_BNSH, k_BGSH, v_BGSH, mask)

    values = _with_gradients(computed, inputs, upstream_BNSH)
    exact = [x.double() for x in inputs]
    return _largest_error(values, _with_gradients(reference, exact, upstream_BNSH.double()))


def _with_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    """Return a function's output, and the gradient of each input; `upstream` is the output's."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    gradients = torch.autograd.grad(
        out, inputs, upstream, allow_unused=True, materialize_grads=True
    )
    return [out.detach(), *gradients]


def _largest_error(values: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest error, relative to the norm of the expected tensor.

    It is infinite if any value is NaN, or is not zero where the expected tensor is all zeros.
    """
    errors = []
    for value, right in zip(values, expected, strict=True):
        error, size = (value.double() - right).norm().item(), right.norm().item()
        errors.append(error / size if size else math.inf if error else 0.0)
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def _drawing(device: torch.device) -> Callable[..., Tensor]:
    """Return a function that draws normal numbers of a given shape, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(device)
