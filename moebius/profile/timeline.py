"""A step's time, cut without gaps into pieces that each belong to one component, forward and backward.

A piece begins where a component is entered or left, at a mark. In eager code marks stand where calls begin and end, and in the
backward pass where their gradients pass: a hook on a tensor. In compiled code they stand
before each kernel (kernels.py). All pieces together are the step, by construction: on a CPU a piece lasts from its mark to the
next, on a GPU it is what was launched in between (gpu.py).
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebius.profile.gpu import DeviceClock

REST = "everything_else"
WHOLE = {"mtp", "base_mlp"}  # what happens inside is theirs, whatever it is


class Piece(NamedTuple):
    """To whom a stretch of the step belongs. direction: forward (loading and updating too), backward, or waiting: a GPU had
    nothing to do before the component's next work."""

    component: str
    direction: str


class Place(NamedTuple):
    """Where in the model a mark is: whose the time is, and the WHOLE component around it, if any."""

    component: str = REST
    whole: str = ""


class Timeline:
    """Collects marks between `begin` and `end`. At other times a mark costs a Python call."""

    def __init__(self, device: torch.device):
        self._clock = DeviceClock(device) if device.type == "cuda" else HostClock()
        self._inside: list[Place] = []
        self._place = Place()
        self._components: tuple[str, ...] = ()

    @property
    def is_on(self) -> bool:
        """Whether marks are collected."""
        return _running is self

    def begin(self) -> None:
        """Steps begin."""
        global _running
        _running = self
        self._inside.clear()
        self._clock.start()
        self.mark(Place())

    def end(self) -> dict[Piece, float]:
        """Seconds of each piece since `begin`; those of several components, of a fused kernel, evenly split. Waits for
        the device."""
        global _running
        _running = None
        seconds: dict[Piece, float] = defaultdict(float)
        for components, direction, took in self._clock.stop():
            for component in components:
                seconds[Piece(component, direction)] += took / len(components)
        return seconds

    @property
    def host_seconds(self) -> float:
        """How long the host was busy between `begin` and `end`, at least; 0 where it is the device."""
        return self._clock.host_seconds

    def mark(self, place: Place) -> None:
        """From here on time is the component's."""
        self._place = place
        self.record(())

    def record(self, components: tuple[str, ...]) -> None:
        """From here on time is these components', by default that of the last mark, or that of the WHOLE one around them."""
        if not self.is_on:
            return
        self._components = components = components or (self._place.component,)
        is_backward = torch._C._current_graph_task_id() != -1
        whole = self._place.whole
        self._clock.mark((whole,) if whole else components, "backward" if is_backward else "forward")

    def around(self, component: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time the component's. What it calls may be other components', which comes off its own."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.is_on:
                return function(*args, **kwargs)
            return self._leave(function(*self._enter(component, args), **kwargs))

        return timed

    def part(self, component: str, of: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called inside an operator that is all one component's to the compiler: its time is another's."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._components != (of,):
                return function(*args, **kwargs)
            self.record((component,))
            result = function(*args, **kwargs)
            self.record((of,))
            return result

        return timed

    def _enter(self, component: str, args: Any) -> Any:
        """The arguments of a call. The gradient of the first that has one, from this use of it alone, ends the call's own."""
        outside = self._now()
        whole = outside.whole or (component if component in WHOLE else "")
        self._inside.append(Place(whole or component, whole))
        marked = _replace_first(args, lambda tensor: self._marked(tensor.view_as(tensor), outside))
        self.mark(self._now())
        return marked

    def _leave(self, result: Any) -> Any:
        """The result of a call, with whose gradient the call's backward begins."""
        inside = self._inside.pop()
        result = _replace_first(result, lambda tensor: self._marked(tensor, inside))
        self.mark(self._now())
        return result

    def _now(self) -> Place:
        return self._inside[-1] if self._inside else Place()

    def _marked(self, x: Tensor, place: Place) -> Tensor:
        """x, with a mark when its gradient is known."""
        x.register_hook(lambda _: self.mark(place))
        return x


class HostClock:
    """Times between marks, of a device that has done its work when a call returns."""

    host_seconds = 0.0

    def start(self) -> None:
        """Forget the last marks."""
        self._marks: list[tuple[tuple[str, ...], str, float]] = []

    def mark(self, components: tuple[str, ...], direction: str) -> None:
        """What follows is theirs."""
        self._marks.append((components, direction, time.perf_counter()))

    def stop(self) -> list[tuple[tuple[str, ...], str, float]]:
        """Components, direction and seconds of each piece."""
        ends = [start for _, _, start in self._marks[1:]] + [time.perf_counter()]
        return [
            (components, direction, end - start) for (components, direction, start), end in zip(self._marks, ends, strict=True)
        ]


_running: Timeline | None = None  # generated code has no other way to it


def passed(*components: str) -> None:
    """Compiled code is about to start a kernel of these components; of none, it is left."""
    if _running is not None:
        _running.record(components)


def _replace_first(values: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """The first tensor with a gradient replaced, if there is one in a tensor or a tuple (of tuples)."""
    if isinstance(values, Tensor):
        return replace(values) if values.requires_grad else values
    if isinstance(values, tuple):
        for index, item in enumerate(values):
            replaced = _replace_first(item, replace)
            if replaced is not item:
                items = (*values[:index], replaced, *values[index + 1 :])
                return type(values)(*items) if hasattr(values, "_fields") else items
    return values
