"""Forward and backward passes as CUDA graphs: the host starts a whole pass with one call.

A graph repeats kernels, with the addresses of memory that they were captured with. What changes
from pass to pass is therefore copied into tensors of the graph before it runs: the tokens, the
counts of the step, and the weights of the balance losses. Parameters stay where they are, whoever
changes them. Gradients and figures come out in memory of the graph. The optimizers, whose rates
change, are not part of it, and neither is evaluation.

The first pass of a step writes the gradients, and later passes add to them, so there are two
graphs.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moebius.config import Config
from moebius.model.loss import Divisors, Loss
from moebius.model.transformer import Transformer
from moebius.moe.balance import Balancing
from moebius.moe.statistics import LayerStats
from moebius.parallel.process import Process
from moebius.train.step import CountsSoFar, Pass, forward_backward

WARM_UP = 3
"""Passes that run without a graph first, in which code is compiled and kernels are tuned."""
HOST_SHARE = 0.5
"""On `auto`, there are graphs if launching takes the host at least this share of a pass."""


class GraphedPasses:
    """Runs forward and backward passes, as CUDA graphs where that is possible and pays.

    `say` takes the line that says why there are graphs, or why there are none.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        say: Callable[[str], None],
        process: Process | None = None,
    ):
        asked = config.parallel.cuda_graphs
        self._is_asked, self._say = asked == "on", say
        self._obstacle = _obstacle(config, device, process or Process())
        self._is_off = asked == "off" or bool(self._obstacle)
        if self._obstacle and self._is_asked:
            self._fall_back(self._obstacle)
        self._shape: tuple = ()
        self._num_eager = 0
        self._graphs: dict[bool, _Graph] = {}  # by whether it is for the first pass of a step

    def __call__(self, given: Pass) -> Loss:
        """Return what `forward_backward` returns, and add the same to the gradients."""
        if self._is_off:
            return forward_backward(given)
        model, micro_BL, separator, balancing, divisors, _ = given
        shape = (micro_BL.shape, separator, balancing.over_batch is None, model.training)
        if shape != self._shape:  # as at the beginning of a phase
            self._shape, self._num_eager = shape, 0
            self._graphs.clear()
        is_first = all(parameter.grad is None for parameter in model.parameters())
        if is_first not in self._graphs:
            # A later pass adds to the gradients of the first one's graph.
            is_due = is_first or (True in self._graphs and self._graphs[True].has_just_run(model))
            if self._num_eager < WARM_UP or not is_due:
                return self._eagerly(given)
            if not self._capture(given, is_first):
                return forward_backward(given)
        graph = self._graphs[is_first]
        if not is_first and not graph.has_just_run(model):
            return forward_backward(given)
        return graph.run(micro_BL, balancing, divisors)

    def _eagerly(self, given: Pass) -> Loss:
        """Run a pass without a graph. The last one before graphs shows whether they would pay."""
        self._num_eager += 1
        if self._num_eager != WARM_UP:
            return forward_backward(given)
        loss, host_ms, device_ms = _timed(lambda: forward_backward(given))
        what = f"launching a pass takes the host {host_ms:.0f} of its {device_ms:.0f} ms"
        if self._is_asked:
            self._say(f"CUDA graphs: on (asked for; {what})")
        elif host_ms >= HOST_SHARE * device_ms:
            self._say(f"CUDA graphs: on ({what})")
        else:
            self._fall_back(what)
        return loss

    def _capture(self, given: Pass, is_first: bool) -> bool:
        """Capture a graph. Without one, return False, and leave the gradients as they were."""
        first = self._graphs.get(True)
        try:
            self._graphs[is_first] = _Graph(given, after=None if is_first else first)
        except RuntimeError as error:  # out of memory, or something that cannot be captured
            if is_first:
                for parameter in given.model.parameters():
                    parameter.grad = None
            self._fall_back(str(error).splitlines()[0] if str(error) else type(error).__name__)
        return is_first in self._graphs

    def _fall_back(self, reason: str) -> None:
        self._is_off = True
        self._graphs = {}
        self._say(f"CUDA graphs: off ({reason})")


class _Graph:
    """The graph of one pass."""

    def __init__(self, given: Pass, after: "_Graph | None"):
        """Capture a pass that comes after that of another graph, or is the first of its step."""
        model, micro_BL, separator, balancing, divisors, config = given
        self._tokens_BL = micro_BL.clone()
        self._divisors = Divisors(*(count.clone() for count in divisors))
        self._weights = list(balancing.coefficients)
        self._weights_M = torch.tensor(self._weights, device=micro_BL.device)
        self._counts = None
        if balancing.over_batch is not None:
            self._counts = _Counts(None if after is None else after._counts)
        static_balancing = Balancing(self._weights_M, self._counts)
        static = Pass(model, self._tokens_BL, separator, static_balancing, self._divisors, config)

        def run() -> tuple[Loss, Tensor]:
            loss = forward_backward(static)
            return loss, torch.cat([value.flatten() for value in _values(loss)])

        (self._like, self._figures), self.graph = captured(run, after and after.graph)
        self._gradients = [(p, p.grad) for p in model.parameters()]

    def has_just_run(self, model: Transformer) -> bool:
        """Return whether the model's gradients are those of this graph."""
        return all(parameter.grad is gradient for parameter, gradient in self._gradients)

    def run(self, micro_BL: Tensor, balancing: Balancing, divisors: Divisors) -> Loss:
        """Run the pass with these values. The result does not change with the next run."""
        self._tokens_BL.copy_(micro_BL)
        for own, count in zip(self._divisors, divisors, strict=True):
            own.copy_(count)
        if self._weights != balancing.coefficients:
            self._weights = list(balancing.coefficients)
            self._weights_M.copy_(torch.tensor(self._weights), non_blocking=True)
        self.graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        if isinstance(balancing.over_batch, CountsSoFar) and self._counts is not None:
            balancing.over_batch.counts_X = self._counts.sum_X
        return _with_values(self._like, self._figures.clone())


class _Counts:
    """Sums the counts of a step's passes, as `CountsSoFar` does, but always in the same memory."""

    def __init__(self, before: "_Counts | None"):
        """Count in a pass that comes after that of `before`, or is the first of its step."""
        self.sum_X = None if before is None else before.sum_X
        self._adds = before is not None

    def __call__(self, counts_X: Tensor) -> Tensor:
        if self.sum_X is None:
            self.sum_X = torch.empty_like(counts_X)
        return self.sum_X.add_(counts_X) if self._adds else self.sum_X.copy_(counts_X)


def captured(run: Callable[[], Any], after: Any | None) -> tuple[Any, Any]:
    """Return a function's result, which has no values yet, and the graph that computes them.

    The graph uses the memory that the graph `after` leaves free when it is done.
    """
    graph = torch.cuda.CUDAGraph()
    pool = after.pool() if after is not None else None
    # Only this thread's calls count: others copy checkpoints.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()
    return result, graph


def _obstacle(config: Config, device: torch.device, process: Process) -> str:
    """Return why a run cannot have graphs, or an empty text."""
    if device.type != "cuda":
        return "they need a GPU"
    if process.world_size > 1:
        return "there are several processes"
    return ""


def _timed(run: Callable[[], Loss]) -> tuple[Loss, float, float]:
    """Return a pass's result, and the milliseconds that it takes the host and the device."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    result = run()
    end.record()
    host = time.perf_counter() - start
    end.synchronize()
    return result, host * 1e3, begin.elapsed_time(end)


def _values(loss: Loss) -> list[Tensor]:
    """Return all figures of a pass."""
    losses: Sequence[Tensor | None] = loss[:-1]
    own = [value for value in losses if value is not None]
    return own + [value for layer in loss.stats for value in layer]


def _with_values(like: Loss, figures_X: Tensor) -> Loss:
    """Return a pass's figures from the vector of all of them; `like` has their shapes."""
    values = iter(figures_X.split([value.numel() for value in _values(like)]))

    def next_like(value: Tensor) -> Tensor:
        return next(values).view(value.shape).to(value.dtype)

    losses = [None if value is None else next_like(value) for value in like[:-1]]
    stats = tuple(LayerStats(*map(next_like, layer)) for layer in like.stats)
    return Loss(*losses, stats=stats)  # pyright: ignore[reportArgumentType]
