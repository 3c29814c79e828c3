"""Experts that are split between processes, which send each other tokens.

This wraps the experts' one signature, `(x_TD, routing, weights) -> out_TD`. Every process sends a
token once to each process that has experts of it, with the experts and gates that concern that
process. There the local backend runs the rows and adds up each row's outputs, and the sums travel
back. No token is dropped and nothing is padded: the processes first tell each other how many rows
they will send, which takes the one transfer from the device to the host.

The gradient of each expert is the sum over the rows of all processes, as in one process with all
the tokens, so it is not divided by the number of processes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from moebius.moe.experts import ExpertsFunction, ExpertWeights
from moebius.moe.router import Routing


class Exchange:
    """An expert backend that runs another backend on the rows of its own experts."""

    def __init__(self, run: ExpertsFunction, group: ProcessGroup, num_experts: int):
        """num_experts: number of experts of the layer, over all processes of the group."""
        self._run, self._group = run, group
        self._num_ranks = torch.distributed.get_world_size(group)
        self._own_experts = num_experts // self._num_ranks
        # The sizes of what is exchanged differ in every step, and the compiler would have to guard
        # against that.
        self._not_compiled = torch.compiler.disable(self._exchange)

    def __call__(self, x_TD: Tensor, routing: Routing, weights: ExpertWeights, /) -> Tensor:
        """Return out_TD; `weights` are those of this process's experts alone."""
        return self._not_compiled(x_TD, routing, weights)  # pyright: ignore

    def _exchange(self, x_TD: Tensor, routing: Routing, weights: ExpertWeights) -> Tensor:
        rank_TK = routing.expert_TK // self._own_experts  # num_ranks for "no expert"
        sent = self._rows(rank_TK)
        received = _received_counts(sent.counts, self._group)
        # the host waits here, once for both directions
        out_sizes, in_sizes = torch.stack([sent.counts, received]).tolist()
        token_R, to_R = sent.places(sum(out_sizes), out_sizes)
        is_here_RK = rank_TK[token_R] == to_R[:, None]
        local_RK = routing.expert_TK[token_R] - to_R[:, None] * self._own_experts
        expert_RK = torch.where(is_here_RK, local_RK, self._own_experts)
        gate_RK = torch.where(is_here_RK, _take(routing.gate_TK, token_R, out_sizes), 0.0)
        sizes = (out_sizes, in_sizes, self._group)
        x_ND = _AllToAll.apply(_take(x_TD, token_R, out_sizes), *sizes)
        gate_NK = _AllToAll.apply(gate_RK, *sizes)
        expert_NK = _all_to_all(expert_RK, *sizes)
        y_ND = self._compute(x_ND, expert_NK, gate_NK, weights)  # pyright: ignore
        y_RD = _AllToAll.apply(y_ND, in_sizes, out_sizes, self._group)
        return _Return.apply(y_RD, token_R, out_sizes, len(x_TD))  # pyright: ignore

    def _rows(self, rank_TK: Tensor) -> "_Rows":
        rank_P = torch.arange(self._num_ranks, device=rank_TK.device)
        wanted_PT = (rank_TK == rank_P[:, None, None]).any(dim=-1)
        return _Rows(wanted_PT, wanted_PT.sum(dim=1))

    def _compute(
        self, x_ND: Tensor, expert_NK: Tensor, gate_NK: Tensor, weights: ExpertWeights
    ) -> Tensor:
        """Return y_ND, the sum of its local experts' outputs for each received row."""
        num_rows = len(x_ND)
        if not num_rows:
            # A row without an expert stands for no rows, which not every kernel can be started
            # with. It keeps the process a part of the backward pass, too.
            x_ND = torch.cat([x_ND, x_ND.new_zeros(1, x_ND.shape[1])])
            gate_NK = torch.cat([gate_NK, gate_NK.new_zeros(1, gate_NK.shape[1])])
            expert_NK = expert_NK.new_full((1, expert_NK.shape[1]), self._own_experts)
        none_NE = gate_NK.new_empty(len(x_ND), 0)  # backends read neither of the two
        out_ND = self._run(x_ND, Routing(gate_NK, expert_NK, none_NE, none_NE), weights)
        return out_ND[:num_rows]


class _Rows(NamedTuple):
    """The rows that this process sends, in the order of their destinations and then of tokens."""

    wanted_PT: Tensor
    """Whether a token has an expert on a rank."""
    counts: Tensor
    """Number of rows for each rank."""

    def places(self, num_rows: int, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return the token and the destination of each row. The number of rows is known by now."""
        token_R = torch.nonzero_static(self.wanted_PT, size=num_rows)[:, 1]
        ranks = torch.arange(len(sizes), device=token_R.device)
        return token_R, ranks.repeat_interleave(self.counts, output_size=num_rows)


def _received_counts(counts: Tensor, group: ProcessGroup) -> Tensor:
    """Return how many rows each process sends to this one."""
    received = torch.empty_like(counts)
    torch.distributed.all_to_all_single(received, counts.contiguous(), group=group)
    return received


def _take(values_TX: Tensor, token_R: Tensor, sizes: list[int]) -> Tensor:
    """Return values_TX[token_R], with a gradient that is added up in a fixed order."""
    return _Take.apply(values_TX, token_R, sizes)  # pyright: ignore[reportReturnType]


def _add_up(rows_RX: Tensor, token_R: Tensor, sizes: list[int], num_tokens: int) -> Tensor:
    """Return the sum of each token's rows, destination by destination.

    A destination has at most one row of a token, so no two additions meet and the sum is the same
    each time.
    """
    total_TX = rows_RX.new_zeros(num_tokens, rows_RX.shape[1])
    for part_X, tokens in zip(rows_RX.split(sizes), token_R.split(sizes), strict=True):
        total_TX.index_add_(0, tokens, part_X)
    return total_TX


class _Take(torch.autograd.Function):
    """values_TX[token_R]."""

    @staticmethod
    def forward(ctx: Any, values_TX: Tensor, token_R: Tensor, sizes: list[int]) -> Tensor:
        ctx.save_for_backward(token_R)
        ctx.sizes, ctx.num_tokens = sizes, len(values_TX)
        return values_TX.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore
        (token_R,) = ctx.saved_tensors
        return _add_up(grad, token_R, ctx.sizes, ctx.num_tokens), None, None


class _Return(torch.autograd.Function):
    """The sum of each token's rows; the inverse of `_Take`."""

    @staticmethod
    def forward(
        ctx: Any, y_RD: Tensor, token_R: Tensor, sizes: list[int], num_tokens: int
    ) -> Tensor:
        ctx.save_for_backward(token_R)
        return _add_up(y_RD, token_R, sizes, num_tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore
        (token_R,) = ctx.saved_tensors
        return grad.index_select(0, token_R), None, None, None


class _AllToAll(torch.autograd.Function):
    """Send parts of the rows to each process; the gradient travels the other way."""

    @staticmethod
    def forward(
        ctx: Any, rows_RX: Tensor, out_sizes: list[int], in_sizes: list[int], group: ProcessGroup
    ) -> Tensor:
        ctx.sizes = in_sizes, out_sizes, group
        return _all_to_all(rows_RX, out_sizes, in_sizes, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore
        return _all_to_all(grad, *ctx.sizes), None, None, None


def _all_to_all(
    rows_RX: Tensor, out_sizes: list[int], in_sizes: list[int], group: ProcessGroup
) -> Tensor:
    received = rows_RX.new_empty(sum(in_sizes), *rows_RX.shape[1:])
    torch.distributed.all_to_all_single(
        received, rows_RX.contiguous(), in_sizes, out_sizes, group=group
    )
    return received
