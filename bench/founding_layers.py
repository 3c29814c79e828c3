"""Time single layers of the founding document and of Moebius.

This is what bench/founding_tables.py measures without a whole model.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from interleaved import Timed, functions_in_turns
from torch import Tensor

from moebius.config import Config, ModelConfig, ParallelConfig
from moebius.doctor.offers import chosen, offers
from moebius.hardware.precision import autocast, matmul_dtype
from moebius.model.attention import Attention, attend_expanded, attend_native
from moebius.model.rope import Rotation, rotation
from moebius.moe.backends import expert_backend
from moebius.moe.experts import ExpertsFunction, ExpertWeights, dispatch, sort_by_expert
from moebius.moe.float8 import padding
from moebius.moe.mlp import activate
from moebius.moe.router import Routing, softmax_topk

SLICE = 64
"""Tokens that go through the experts one by one. The time of all tokens is extrapolated."""


class Layer(NamedTuple):
    """The times of a layer."""

    forward: Timed
    both: Timed
    """Forward and backward."""


def attend_repeated(q_BNSH: Tensor, k_BGSH: Tensor, v_BGSH: Tensor, mask: None) -> Tensor:
    """Return out_BNSH as the document's original does: each KV head copied for its query heads."""
    group = q_BNSH.shape[1] // k_BGSH.shape[1]
    k_BNSH, v_BNSH = k_BGSH.repeat_interleave(group, dim=1), v_BGSH.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q_BNSH, k_BNSH, v_BNSH, is_causal=True)


def token_by_token(x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
    """Return out_TD as the document's original does: one token at a time through its experts."""
    # One matrix per expert, because the gradient of w_EDF[expert] would be as large as that of all
    # experts, for every token.
    w_gate_E = weights.w_gate_EDF.unbind() if weights.w_gate_EDF is not None else None
    w_up_E, w_down_E = weights.w_up_EDF.unbind(), weights.w_down_EFD.unbind()
    rows = []
    tokens = zip(x_TD, routing.expert_TK.tolist(), routing.gate_TK, strict=True)
    for x_D, expert_K, gate_K in tokens:
        row_D = torch.zeros_like(x_D)
        for expert, gate in zip(expert_K, gate_K, strict=True):
            gate_F = None if w_gate_E is None else x_D @ w_gate_E[expert]
            hidden_F = activate(x_D @ w_up_E[expert], gate_F, weights.activation)
            row_D = row_D + hidden_F @ w_down_E[expert] * gate.to(x_D.dtype)
        rows.append(row_D)
    return torch.stack(rows)


def by_mask(x_TD: Tensor, expert_T: Tensor, num_experts: int) -> Tensor:
    """Return the experts' rows as the document's BAD example does, with x[mask].

    Its backward pass looks for the rows again.
    """
    return torch.cat([x_TD[expert_T == expert] for expert in range(num_experts)])


def by_index(x_TD: Tensor, expert_T: Tensor, num_experts: int) -> Tensor:
    """Return the experts' rows as the document's GOOD example does, with index_select."""
    indices = [(expert_T == expert).nonzero(as_tuple=True)[0] for expert in range(num_experts)]
    return torch.cat([x_TD.index_select(0, index) for index in indices])


def by_sorting(x_TD: Tensor, expert_T: Tensor, num_experts: int) -> Tensor:
    """Return the experts' rows as Moebius's grouped backend does: all experts' at once.

    The host need not know how many rows each expert has.
    """
    return dispatch(x_TD, sort_by_expert(expert_T[:, None], num_experts))


def attention_times(
    config: Config, batch: tuple[int, int], device: torch.device, rounds: int
) -> dict[str, Layer]:
    """Return the times of the attention layer in several ways: eager and, on a GPU, compiled.

    batch: number of sequences, and of tokens in each.
    """
    ways = {
        "repeat_interleave": attend_repeated,
        "expand": attend_expanded,
        "native": attend_native,
    }
    angles = rotation(batch[1], config.model, device)
    contenders = {}
    for how in ("eager", "compiled") if device.type == "cuda" else ("eager",):
        for name, attend in ways.items():
            layer = Attention(config.model, attend).to(device)
            x_BSD = torch.randn(*batch, config.model.dim, device=device, requires_grad=True)
            contenders[f"{name}, {how}"] = _attention(
                layer, x_BSD, angles, config, how == "compiled"
            )
    return _timed(contenders, device, rounds)


def experts_times(
    model: ModelConfig, num_tokens: int, device: torch.device, rounds: int
) -> dict[str, Layer]:
    """Return the times of the model's first layer of experts with every backend of this device.

    The document's original comes first. Its times are extrapolated from a few tokens.
    """
    config = Config(model=model, parallel=ParallelConfig(compile="off"))
    dtype = matmul_dtype(config.train, device)
    E, D, hidden = model.experts_per_layer[0], model.dim, model.expert_widths[0]
    matrices = [
        (torch.randn(shape, device=device) / shape[1] ** 0.5).to(dtype).requires_grad_()
        for shape in ((E, D, hidden), (E, D, hidden), (E, hidden, D))
    ]
    weights = ExpertWeights(*matrices, activation="swiglu", dropout=0.0)
    labels = {"loop": "loop, one GEMM per expert"}
    contenders = {}
    for offer in offers(config, device):
        if offer.kind == "experts" and offer.state != "unavailable":
            run = expert_backend(chosen(config, device, "experts", offer.name).experts)
            name = labels.get(offer.name, offer.name)
            contenders[name] = _experts(run, num_tokens, weights, dtype)
    times = _timed(contenders, device, rounds)
    original = {"": _experts(token_by_token, SLICE, weights, dtype)}
    (slow,) = _timed(original, device, rounds).values()
    factor = num_tokens / SLICE
    name = f"token by token, {factor:.0f} times what {SLICE} took"
    return {name: _scaled(slow, factor), **times}


def gathering_times(
    num_tokens: int, dim: int, num_experts: int, device: torch.device, rounds: int
) -> dict[str, Layer]:
    """Return the times of collecting each expert's rows, in the device's dtype."""
    dtype = matmul_dtype(Config().train, device)
    x_TD = torch.randn(num_tokens, dim, device=device).to(dtype).requires_grad_()
    expert_T = torch.randint(num_experts, (num_tokens,), device=device)
    ways = {"x[mask]": by_mask, "index_select": by_index, "sorted, as grouped does": by_sorting}
    contenders = {
        name: _Contender(lambda way=way: way(x_TD, expert_T, num_experts), [x_TD])
        for name, way in ways.items()
    }
    return _timed(contenders, device, rounds)


def padded_rows(num_tokens: int, num_experts: int) -> int:
    """Return how many rows fill up each expert's to a multiple of 16, for random routing."""
    generator = torch.Generator().manual_seed(0)
    expert_T = torch.randint(num_experts, (num_tokens,), generator=generator)
    counts_E = expert_T.bincount(minlength=num_experts)
    return int(padding(counts_E).sum())


class _Contender(NamedTuple):
    """A layer to time."""

    forward: Callable[[], Tensor]
    """Runs the layer forward."""
    inputs: Sequence[Tensor]
    """The tensors whose gradients the backward pass computes."""


def _attention(
    layer: Attention, x_BSD: Tensor, angles: Rotation, config: Config, is_compiled: bool
) -> _Contender:
    run = torch.compile(layer, dynamic=False) if is_compiled else layer

    def forward() -> Tensor:
        with autocast(config.train, x_BSD.device):
            return run(x_BSD, angles, None)

    return _Contender(forward, [x_BSD, *layer.parameters()])


def _experts(
    run: ExpertsFunction, num_tokens: int, weights: ExpertWeights, dtype: torch.dtype
) -> _Contender:
    E, D, _ = weights.w_up_EDF.shape
    device = weights.w_up_EDF.device
    torch.manual_seed(0)
    x_TD = torch.randn(num_tokens, D, device=device).to(dtype).requires_grad_()
    routing = softmax_topk(torch.randn(num_tokens, E, device=device), k=1, renormalize=False)
    routing.gate_TK.requires_grad_()
    matrices = [matrix for matrix in weights[:3] if matrix is not None]
    return _Contender(lambda: run(x_TD, routing, weights), [x_TD, routing.gate_TK, *matrices])


def _timed(
    contenders: dict[str, _Contender], device: torch.device, rounds: int
) -> dict[str, Layer]:
    """Return the times of some layers, which take turns."""

    def with_backward(contender: _Contender) -> Callable[[], object]:
        def run() -> object:
            out = contender.forward()
            return torch.autograd.grad(
                out, contender.inputs, torch.ones_like(out), allow_unused=True
            )

        return run

    forward = functions_in_turns(
        {name: contender.forward for name, contender in contenders.items()}, device, rounds
    )
    both = functions_in_turns(
        {name: with_backward(contender) for name, contender in contenders.items()}, device, rounds
    )
    return {name: Layer(forward[name], both[name]) for name in contenders}


def _scaled(layer: Layer, factor: float) -> Layer:
    """Return the times of `factor` as many tokens. How much memory these take is not known."""
    forward, both = (
        timed._replace(seconds=[factor * seconds for seconds in timed.seconds], peak_bytes=0.0)
        for timed in layer
    )
    return Layer(forward, both)
