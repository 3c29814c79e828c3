"""Sums of gradients over processes, which travel while the backward pass computes the others.

This is what DDP does (Li et al. 2020, arXiv 2006.15704), for a model whose loss is no `forward`
and whose weights are not all on the same processes: gradients are collected in buckets in the
order in which they are complete, which is the same on all processes, and each full bucket is
summed at once.
"""

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Work

BUCKET = 25_000_000
"""Numbers of gradients that are summed in one call: 100 MB in float32."""
MOST_RUNNING = 2
"""Buckets that are summed at the same time. Each holds a copy of its gradients."""

Group = ProcessGroup | None
"""The processes that have the same weights; None means all."""


class _Running(NamedTuple):
    """A bucket whose sum is on its way."""

    flat: Tensor
    gradients: list[Tensor]
    work: Work


class GradientSums:
    """Replaces gradients by their sums, bucket by bucket."""

    def __init__(self):
        self._open: dict[tuple[Group, torch.dtype], list[Tensor]] = {}
        self._running: deque[_Running] = deque()
        self._summed: set[nn.Parameter] = set()
        self._is_last = False

    def watch(self, parameter: nn.Parameter, group: Group) -> None:
        """Sum the parameter's gradient as soon as the last backward pass of a step has it."""

        def note(parameter: Tensor) -> None:
            if self._is_last:
                self.add(parameter, group)  # pyright: ignore[reportArgumentType]

        parameter.register_post_accumulate_grad_hook(note)

    def begin(self) -> None:
        """Note that the next backward pass is the last one of the step."""
        self._is_last = True

    def add(self, parameter: nn.Parameter, group: Group) -> None:
        """Sum the parameter's gradient, unless that was begun already in this step."""
        if parameter.grad is None or parameter in self._summed:
            return
        self._summed.add(parameter)
        key = group, parameter.grad.dtype
        bucket = self._open.setdefault(key, [])
        bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET:
            self._start(self._open.pop(key), group)

    def end(self) -> None:
        """Sum what is left, and wait for all sums. A GPU waits, and the host does not."""
        for (group, _), bucket in self._open.items():
            self._start(bucket, group)
        while self._running:
            self._finish()
        self._open.clear()
        self._summed.clear()
        self._is_last = False

    def _start(self, gradients: list[Tensor], group: Group) -> None:
        while len(self._running) >= MOST_RUNNING:
            self._finish()
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        work = torch.distributed.all_reduce(flat, group=group, async_op=True)
        assert work is not None  # this process is one of the group
        self._running.append(_Running(flat, gradients, work))

    def _finish(self) -> None:
        flat, gradients, work = self._running.popleft()
        work.wait()
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
