"""Where a run's metrics and events go: one interface, and one file for each kind of sink.

To add a sink, write a class with the five methods of `Sink` in its own file, and add a line to
moebius/observe/registry.py.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from moebius.errors import StorageError
from moebius.observe.metrics import StepMetrics

RESUMED = "resumed"  # event of a run that goes on with other settings, or from an earlier step
REWOUND_TO = "rewound_to"  # key of an event after which the run went on at an earlier step


class Event(Protocol):
    """Something that happened in a step: an alarm, a skipped update, or a change of settings."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as an object of events.jsonl, with at least `event` and `step`.

        `rewound_to` is the step at which the run went on, if that is not `step`.
        """
        ...

    def __str__(self) -> str:
        """Return the event as a line for the terminal."""
        ...


class Sink(Protocol):
    """A place that metrics and events are written to. Every method may raise StorageError."""

    def open(self, run: Path, step: int) -> None:
        """Begin to write into the run's directory, and drop its metrics of steps after `step`."""
        ...

    def write(self, metrics: StepMetrics) -> None:
        """Write a logged step."""
        ...

    def event(self, event: Event) -> None:
        """Write an event."""
        ...

    def rewind(self, step: int) -> None:
        """Drop the metrics of later steps, which the run is about to train again."""
        ...

    def close(self) -> None:
        """Write what is still in memory and stop."""
        ...


class Sinks:
    """Several sinks as one. Use it as a context manager around the training loop."""

    def __init__(self, sinks: Sequence[Sink], run: Path, step: int):
        self._sinks = list(sinks)
        self._run, self._step = run, step

    def __enter__(self) -> "Sinks":
        with ExitStack() as opened:  # closes those that are open if a later one fails
            for sink in self._sinks:
                sink.open(self._run, self._step)
                opened.callback(sink.close)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def write(self, metrics: StepMetrics) -> None:
        """Write a logged step to every sink."""
        for sink in self._sinks:
            sink.write(metrics)

    def event(self, event: Event) -> None:
        """Write an event to every sink, even if one fails: the terminal still shows it.

        Raises the StorageError of the first sink that failed.
        """
        failures: list[StorageError] = []
        for sink in self._sinks:
            try:
                sink.event(event)
            except StorageError as failure:
                failures.append(failure)
        if failures:
            raise failures[0]

    def rewind(self, step: int) -> None:
        """Drop the metrics of later steps from every sink."""
        for sink in self._sinks:
            sink.rewind(step)
