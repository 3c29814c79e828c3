"""Parts of the step tried alone, forward and backward: what another shape would take, as a ratio to the present one.

Both are run in turns on the same machine in the same minute, so that whatever else it does hits both.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from moebius.model.experts import ExpertWeights
from moebius.model.head import head_cross_entropy, part_of_loss
from moebius.model.router import Routing
from moebius.observe.ceiling import wait
from moebius.profile.measure import Steps
from moebius.train.step import matmul_dtype

ROUNDS = 7
Work = Callable[[], object]


def attention(steps: Steps, heads: int, kv_heads: int, width: int) -> Work:
    """The attention core on one micro-batch's sequences and documents."""
    tokens_BL = steps.next_batch()[: steps.micro_batch]
    S = steps.config.train.seq_len
    document_BS = None if steps.end_of_text is None else (tokens_BL[:, :S] == steps.end_of_text).cumsum(dim=1)
    mask = steps.backends.mask(document_BS)
    attend = torch.compile(steps.backends.attend) if steps.is_compiled else steps.backends.attend
    q, k, v = (_random(steps, len(tokens_BL), n, S, width) for n in (heads, kv_heads, kv_heads))
    return _both_ways(lambda: attend(q, k, v, mask), q, k, v)


def head(steps: Steps, chunks: int) -> Work:
    """The LM head and its loss on one micro-batch's tokens."""
    model, S = steps.config.model, steps.config.train.seq_len
    hidden_BSD = _random(steps, steps.micro_batch, S, model.dim)
    weight_VD = _random(steps, model.vocab_size, model.dim)
    target_BS = torch.randint(model.vocab_size, (steps.micro_batch, S), device=steps.device)
    run, part = head_cross_entropy, part_of_loss
    if steps.is_compiled and chunks == 1:
        run = torch.compile(run)
    elif steps.is_compiled:
        part = torch.compile(part)
    return _both_ways(lambda: run(hidden_BSD, weight_VD, target_BS, None, chunks, part), hidden_BSD, weight_VD)


def product(steps: Steps, rows: int, columns: int) -> Work:
    """A matrix product of one micro-batch's tokens."""
    x = _random(steps, steps.micro_batch * steps.config.train.seq_len, rows)
    weight = _random(steps, columns, rows)
    return _both_ways(lambda: torch.nn.functional.linear(x, weight), x, weight)


def experts(steps: Steps, load_E: Tensor) -> Work:
    """The widest layer's experts on one micro-batch's tokens, that many of the step's on each."""
    model, tokens = steps.config.model, steps.micro_batch * steps.config.train.seq_len
    count, width = len(load_E), max(model.expert_widths)
    slots = max(1, round(load_E.sum().item() / tokens / steps.config.train.accumulation_steps))
    expert_R = torch.full((tokens * slots,), count, device=steps.device)
    chosen = torch.repeat_interleave((load_E / load_E.sum() * tokens * slots).long())
    expert_R[: len(chosen)] = chosen
    nothing_TE = torch.zeros(tokens, count, device=steps.device)
    gate_TK = torch.ones(tokens, slots, device=steps.device)
    routing = Routing(gate_TK, expert_R.view(slots, tokens).T, nothing_TE, nothing_TE)
    gate_EDF = _random(steps, count, model.dim, width) if model.matrices_per_mlp == 3 else None
    up_EDF, down_EFD = _random(steps, count, model.dim, width), _random(steps, count, width, model.dim)
    weights = ExpertWeights(gate_EDF, up_EDF, down_EFD, model.activation, 0.0)
    x_TD = _random(steps, tokens, model.dim)
    inputs = [each for each in (x_TD, gate_EDF, up_EDF, down_EFD) if each is not None]
    return _both_ways(lambda: steps.backends.run_experts(x_TD, routing, weights), *inputs)


def ratio(other: Work, present: Work, device: torch.device) -> float:
    """Of their times, the median over rounds in which each runs once, after one that does not count."""
    pairs = [(_seconds(other, device), _seconds(present, device)) for _ in range(ROUNDS + 1)]
    return statistics.median(one / two for one, two in pairs[1:])


def _both_ways(forward: Callable[[], Tensor], *inputs: Tensor) -> Work:
    """Forward, and the gradients of the inputs from one that is there before: nothing is summed or added up besides."""
    upstream = torch.ones_like(forward())
    return lambda: torch.autograd.grad(forward(), inputs, upstream)


def _random(steps: Steps, *shape: int) -> Tensor:
    dtype = matmul_dtype(steps.config.train, steps.device)
    return torch.randn(shape, device=steps.device, dtype=dtype, requires_grad=True)


def _seconds(work: Work, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start
