"""The backends there are, and each against a reference in float64 on this device: the output and every gradient."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from moebius.config import Activation, Config, ParallelConfig
from moebius.model.attention import dense_mask
from moebius.model.backends import Backends
from moebius.model.experts import ExpertsFunction, ExpertWeights, loop
from moebius.model.router import Routing
from moebius.train.session import backends_for
from moebius.train.step import matmul_dtype

ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of the norm: 10 to 100 times what rounding alone gives
T, D, F, E, K = 203, 64, 96, 5, 2
B, N, G, S, H = 2, 4, 2, 256, 32
KINDS = {"experts": "expert_backend", "attention": "attention_backend"}
FLOAT8 = "float8"  # a backend that train.expert_dtype names
ALLOWED_IN_FLOAT8 = 0.15  # each rounding is off by 2.6%, and up to eight lie behind a gradient


class Failed(Exception):
    """A trial whose result is wrong; the message is one line of figures."""


@dataclass(frozen=True)
class Offer:
    """A backend: `used`, `available` or `unavailable`, and why."""

    kind: str
    name: str
    state: str
    reason: str


def offers(config: Config, device: torch.device) -> list[Offer]:
    """Every backend that a configuration can name."""
    return [_offer(kind, name, config, device) for kind in KINDS for name in _names(kind)]


def _offer(kind: str, name: str, config: Config, device: torch.device) -> Offer:
    def said(name: str | None = None) -> str:
        reasons = chosen(config, device, kind, name).reasons
        return next(line.removeprefix(f"{kind}: ") for line in reasons if line.startswith(kind))

    used = said()
    if _is(name, used):
        reason = used.removeprefix(name).lstrip(" ,")
        return Offer(kind, name, "used", reason[1:-1] if reason.startswith("(") else reason)
    asked = said(name)
    if _is(name, asked):
        flag = "--train.expert_dtype" if name == FLOAT8 else f"--parallel.{KINDS[kind]}"
        return Offer(kind, name, "available", f"{flag} {name}" + (", emulated" if "emulated" in asked else ""))
    return Offer(kind, name, "unavailable", f"instead: {asked}")


def experts_agree(name: str, config: Config, device: torch.device) -> str:
    """An experts backend, in the configuration's dtype, against `loop` in float64: with an empty expert, slots and tokens
    without an expert, and none with one.

    Returns figures; raises Failed.
    """
    dtype, activation = matmul_dtype(config.train, device), config.model.activation
    run = chosen(config, device, "experts", name).run_experts
    errors = [_experts_error(run, expert_TK.to(device), activation, dtype) for expert_TK in _choices()]
    allowed = ALLOWED_IN_FLOAT8 if name == FLOAT8 else ALLOWED[dtype]
    return _judged(max(errors), allowed, f"out and {2 + config.model.matrices_per_mlp} gradients, {len(errors)} cases")


def attention_agrees(name: str, config: Config, device: torch.device) -> str:
    """An attention backend, in the configuration's dtype, against a softmax written out in float64: with and without
    document masking.

    Returns figures; raises Failed.
    """
    dtype = matmul_dtype(config.train, device)
    errors = []
    for has_documents in (False, True):
        backends = chosen(config, device, "attention", name, has_documents)
        errors.append(_attention_error(backends, has_documents, dtype, device))
    return _judged(max(errors), ALLOWED[dtype], "out and 3 gradients, with and without documents")


def _judged(error: float, allowed: float, of: str) -> str:
    figures = f"largest error {error:.1e} of {allowed:g} allowed; {of}"
    if not error <= allowed:
        raise Failed(figures)
    return figures


def _choices() -> list[Tensor]:
    """expert_TK of three cases: E is no expert, and E - 1 is never chosen."""
    generator = torch.Generator().manual_seed(0)
    some_TK = torch.rand(T, E - 1, generator=generator).argsort(dim=1)[:, :K]
    some_TK = torch.where(torch.rand(T, K, generator=generator) < 0.3, E, some_TK)
    return [some_TK, torch.tensor([[1, E]]), torch.full((17, K), E)]


def _experts_error(run: ExpertsFunction, expert_TK: Tensor, activation: Activation, dtype: torch.dtype) -> float:
    draw = _drawing(expert_TK.device)
    x_TD, upstream_TD = draw(len(expert_TK), D).to(dtype), draw(len(expert_TK), D).to(dtype)
    gate_TK = draw(*expert_TK.shape).sigmoid()
    shapes = [(E, D, F)] * (2 if activation == "swiglu" else 1) + [(E, F, D)]
    matrices = [(draw(*shape) / shape[1] ** 0.5).to(dtype) for shape in shapes]

    def computed(x_TD: Tensor, gate_TK: Tensor, *matrices: Tensor, run: ExpertsFunction = run) -> Tensor:
        gate, up, down = matrices if len(matrices) == 3 else (None, *matrices)
        nothing = gate_TK.new_full((len(gate_TK), E), math.nan)  # no backend has a use for them
        return run(x_TD, Routing(gate_TK, expert_TK, nothing, nothing), ExpertWeights(gate, up, down, activation, 0.0))

    def reference(*inputs: Tensor) -> Tensor:
        return computed(*inputs, run=loop)

    inputs = (x_TD, gate_TK, *matrices)
    out_TD, *_ = ours = _with_gradients(computed, inputs, upstream_TD)
    if out_TD[(expert_TK == E).all(dim=1)].any():
        raise Failed("a token without an expert did not get zero")
    return _largest_error(ours, _with_gradients(reference, [each.double() for each in inputs], upstream_TD.double()))


def _attention_error(backends: Backends, has_documents: bool, dtype: torch.dtype, device: torch.device) -> float:
    draw = _drawing(device)
    inputs = [draw(B, heads, S, H).to(dtype) for heads in (N, G, G)]
    upstream_BNSH = draw(B, N, S, H).to(dtype)
    document_BS = (draw(B, S) > 2).cumsum(dim=1)
    mask = backends.mask(document_BS if has_documents else None)
    mask_B1SS = dense_mask(document_BS if has_documents else torch.zeros_like(document_BS))

    def reference(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor) -> Tensor:
        k_BNSH, v_BNSH = (x.repeat_interleave(N // G, dim=1) for x in (k_BGSH, v_BGSH))
        score_BNSS = (q_BNSH @ k_BNSH.mT / math.sqrt(H)).masked_fill(~mask_B1SS, -math.inf)
        return score_BNSS.softmax(dim=-1) @ v_BNSH

    def computed(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor) -> Tensor:
        return backends.attend(q_BNSH, k_BGSH, v_BGSH, mask)

    ours = _with_gradients(computed, inputs, upstream_BNSH)
    return _largest_error(ours, _with_gradients(reference, [each.double() for each in inputs], upstream_BNSH.double()))


def _with_gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    inputs = [each.detach().requires_grad_() for each in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream, allow_unused=True, materialize_grads=True)]


def _largest_error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of the norm of what it should be; infinite for anything where there should be nothing, or for NaN."""
    errors = []
    for mine, right in zip(ours, theirs, strict=True):
        off, size = (mine.double() - right).norm().item(), right.norm().item()
        errors.append(off / size if size else math.inf if off else 0.0)
    return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def _drawing(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(device)


def chosen(config: Config, device: torch.device, kind: str, name: str | None, has_documents: bool | None = None) -> Backends:
    """As the configuration has it, but for the backend of that kind and name, if there is a name, and for its documents."""
    if name is not None and kind == "experts":
        config = replace(config, train=replace(config.train, expert_dtype=FLOAT8 if name == FLOAT8 else "auto"))
    if name is not None and name != FLOAT8:
        changes: dict[str, Any] = {KINDS[kind]: name}
        config = replace(config, parallel=replace(config.parallel, **changes))
    if has_documents is not None:
        config = replace(config, data=replace(config.data, document_masking=has_documents))
    return backends_for(config, device)


def _names(kind: str) -> list[str]:
    names = [name for name in get_args(get_type_hints(ParallelConfig)[KINDS[kind]]) if name != "auto"]
    return [*names, FLOAT8] if kind == "experts" else names


def _is(name: str, reason: str) -> bool:
    return re.split(r"[ ,]", reason)[0] == name
