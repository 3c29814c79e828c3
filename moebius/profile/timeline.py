"""Cut a step's time without gaps into pieces that belong to one component and one direction.

A piece begins at a mark, where a component is entered or left. In eager code, marks are set where
calls begin and end. In the backward pass, tensor hooks set them when the gradients of a call's
outputs and inputs are known. In compiled code, marks are set before each kernel (kernels.py). The
pieces add up to the whole step by construction: on a CPU, a piece lasts from its mark to the next
one, and on a GPU, it is the work that was launched in between (clocks.py).
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moebius.profile.clocks import DeviceClock, HostClock

REST = "everything_else"
"""The component for all time that does not belong to another component."""
WHOLE = {"mtp", "base_mlp"}
"""Components that include all work inside of them, even that of functions with a component of
their own."""


class Piece(NamedTuple):
    """The component and the direction that a part of the step's time belongs to."""

    component: str
    direction: str
    """`forward` (which includes loading the batch and the optimizer), `backward`, or `waiting`: a
    GPU had nothing to do before the component's next kernel."""


class Place(NamedTuple):
    """A place in the model where a mark can be set."""

    component: str = REST
    """Component that the time after the mark belongs to."""
    whole: str = ""
    """The WHOLE component around that place, if there is one."""


class Timeline:
    """A collection of the marks between `begin` and `end`.

    At other times a mark costs one Python call.
    """

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
        """Collect marks from now on. No other timeline may be running."""
        global _running
        _running = self
        self._inside.clear()
        self._clock.start()
        self.mark(Place())

    def end(self) -> dict[Piece, float]:
        """Wait for the device, and return the seconds of each piece since `begin`.

        The time of a kernel that several components share is split evenly between them.
        """
        global _running
        _running = None
        seconds: dict[Piece, float] = defaultdict(float)
        for stretch in self._clock.stop():
            for component in stretch.components:
                piece = Piece(component, stretch.direction)
                seconds[piece] += stretch.seconds / len(stretch.components)
        return seconds

    @property
    def host_seconds(self) -> float:
        """Lower bound of the seconds in which the host was busy between `begin` and `end`.

        0 on a CPU, where the host is the device.
        """
        return self._clock.host_seconds

    def mark(self, place: Place) -> None:
        """Attribute the time from now on to the component of a place."""
        self._place = place
        self.record(())

    def record(self, components: tuple[str, ...]) -> None:
        """Attribute the time from now on to these components.

        Without any components, it goes to the component of the last place. If that place is inside
        a WHOLE component, the time goes to that component in either case.
        """
        if not self.is_on:
            return
        self._components = components = components or (self._place.component,)
        is_backward = torch._C._current_graph_task_id() != -1
        whole = self._place.whole
        direction = "backward" if is_backward else "forward"
        self._clock.mark((whole,) if whole else components, direction)

    def around(self, component: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with marks around its calls, forward and backward.

        Time spent in inner calls that are marked for other components belongs to those components.
        """

        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.is_on:
                return function(*args, **kwargs)
            return self._leave(function(*self._enter(component, args), **kwargs))

        return timed

    def part(self, component: str, of: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with marks that attribute its calls to `component` instead of `of`.

        The function is called inside an operator that, for the compiler, belongs to the component
        `of` as a whole. Nothing is marked unless the current time belongs to `of` alone.
        """

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._components != (of,):
                return function(*args, **kwargs)
            self.record((component,))
            result = function(*args, **kwargs)
            self.record((of,))
            return result

        return timed

    def _enter(self, component: str, args: Any) -> Any:
        """Mark the beginning of a call, and return its arguments.

        The call's own backward pass is over when the gradient of its first differentiable argument
        is known. Only this use of that argument counts, so it is replaced with a view of itself.
        """
        outside = self._now()
        whole = outside.whole or (component if component in WHOLE else "")
        self._inside.append(Place(whole or component, whole))
        marked = _replace_first(args, lambda tensor: self._marked(tensor.view_as(tensor), outside))
        self.mark(self._now())
        return marked

    def _leave(self, result: Any) -> Any:
        """Mark the end of a call, and return its result, whose gradient begins its backward."""
        inside = self._inside.pop()
        result = _replace_first(result, lambda tensor: self._marked(tensor, inside))
        self.mark(self._now())
        return result

    def _now(self) -> Place:
        return self._inside[-1] if self._inside else Place()

    def _marked(self, x: Tensor, place: Place) -> Tensor:
        """Return x with a hook that sets a mark for the place once the gradient of x is known."""
        x.register_hook(lambda _: self.mark(place))
        return x


_running: Timeline | None = None  # a global, because generated code cannot reach it otherwise


def passed(*components: str) -> None:
    """Record that compiled code is about to launch a kernel of these components.

    No components mean that compiled code ends here. Only generated code calls this (kernels.py).
    """
    if _running is not None:
        _running.record(components)


def _replace_first(values: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """Return values with the first tensor that requires a gradient replaced.

    values: a tensor, a tuple (which may contain tuples) or anything else, which stays as it is.
    """
    if isinstance(values, Tensor):
        return replace(values) if values.requires_grad else values
    if isinstance(values, tuple):
        for index, item in enumerate(values):
            replaced = _replace_first(item, replace)
            if replaced is not item:
                items = (*values[:index], replaced, *values[index + 1 :])
                return type(values)(*items) if hasattr(values, "_fields") else items
    return values
