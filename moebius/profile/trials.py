"""Time single parts of the step in other shapes, forward and backward.

The other shape and the present one run in turns on the same machine, so that other work on the
machine affects both equally.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from moebius.hardware.device import wait
from moebius.hardware.precision import matmul_dtype
from moebius.model.attention import attention_backend
from moebius.model.head import head_cross_entropy, part_of_loss
from moebius.model.loss import documents
from moebius.moe.backends import expert_backend
from moebius.moe.experts import ExpertWeights
from moebius.moe.router import Routing
from moebius.profile.steps import Steps

ROUNDS = 7
Work = Callable[[], object]


def attention(steps: Steps, heads: int, kv_heads: int, width: int, backend: str = "") -> Work:
    """Return the work of the attention core for the sequences and documents of one micro-batch.

    heads and kv_heads are the numbers of query and KV heads, and width is that of one head.
    backend is the attention backend's name, by default the one that the model runs with.
    """
    S = steps.config.train.seq_len
    tokens_BS = steps.next_batch()[: steps.micro_batch, :S]
    separator = steps.feed.separator
    attend, make_mask = attention_backend(backend or steps.backends.attention)
    mask = make_mask(None if separator is None else documents(tokens_BS, separator))
    run = torch.compile(attend) if steps.is_compiled else attend
    q, k, v = (_random(steps, len(tokens_BS), n, S, width) for n in (heads, kv_heads, kv_heads))
    return _both_ways(lambda: run(q, k, v, mask), q, k, v)


def head(steps: Steps, chunks: int) -> Work:
    """Return the work of the LM head and its loss, in `chunks` parts, for one micro-batch."""
    model, S = steps.config.model, steps.config.train.seq_len
    hidden_BSD = _random(steps, steps.micro_batch, S, model.dim)
    weight_VD = _random(steps, model.vocab_size, model.dim)
    target_BS = torch.randint(model.vocab_size, (steps.micro_batch, S), device=steps.device)
    run, part = head_cross_entropy, part_of_loss
    if steps.is_compiled and chunks == 1:
        run = torch.compile(run)
    elif steps.is_compiled:
        part = torch.compile(part)
    return _both_ways(
        lambda: run(hidden_BSD, weight_VD, target_BS, None, chunks, part), hidden_BSD, weight_VD
    )


def product(steps: Steps, inputs: int, outputs: int) -> Work:
    """Return the work of a linear layer of these widths for the tokens of one micro-batch."""
    x = _random(steps, steps.micro_batch * steps.config.train.seq_len, inputs)
    weight = _random(steps, outputs, inputs)
    return _both_ways(lambda: torch.nn.functional.linear(x, weight), x, weight)


def experts(steps: Steps, load_E: Tensor) -> Work:
    """Return the work of the widest layer's experts for the tokens of one micro-batch.

    load_E: tokens that each expert takes in a whole step.
    """
    model, T = steps.config.model, steps.micro_batch * steps.config.train.seq_len
    E, D, F = len(load_E), model.dim, max(model.expert_widths)
    K = max(1, round(load_E.sum().item() / T / steps.config.train.accumulation_steps))
    expert_R = torch.full((T * K,), E, device=steps.device)
    chosen = torch.repeat_interleave((load_E / load_E.sum() * T * K).long())
    expert_R[: len(chosen)] = chosen
    unused_TE = torch.zeros(T, E, device=steps.device)
    gate_TK = torch.ones(T, K, device=steps.device)
    routing = Routing(gate_TK, expert_R.view(K, T).T, unused_TE, unused_TE)
    gate_EDF = _random(steps, E, D, F) if model.matrices_per_mlp == 3 else None
    up_EDF, down_EFD = _random(steps, E, D, F), _random(steps, E, F, D)
    weights = ExpertWeights(gate_EDF, up_EDF, down_EFD, model.activation, 0.0)
    x_TD = _random(steps, T, D)
    inputs = [x for x in (x_TD, gate_EDF, up_EDF, down_EFD) if x is not None]
    run = expert_backend(steps.backends.experts)
    return _both_ways(lambda: run(x_TD, routing, weights), *inputs)


def ratio(other: Work, present: Work, device: torch.device) -> float:
    """Return the time of `other` divided by that of `present`.

    Both run once in each round. The result is the median over the rounds, without the first round,
    which is a warm-up.
    """
    pairs = [(_seconds(other, device), _seconds(present, device)) for _ in range(ROUNDS + 1)]
    return statistics.median(
        other_seconds / present_seconds for other_seconds, present_seconds in pairs[1:]
    )


def _both_ways(forward: Callable[[], Tensor], *inputs: Tensor) -> Work:
    """Return work that runs forward, and then computes the gradients of the inputs.

    The output's gradient is prepared beforehand, so no loss has to be computed.
    """
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
