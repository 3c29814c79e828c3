"""Where a run's metrics and events go: one interface, and one file for each kind of sink.

To add a sink, write a class with the six methods of `Sink` in its own file, and add a line to
moebius/observe/registry.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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


@dataclass(frozen=True)
class Sample:
    """A text that the model of a step has written."""

    step: int
    prompt: str
    """What the text begins with."""
    text: str
    """The whole text, with the prompt."""

    def to_json(self) -> dict[str, Any]:
        """Return the sample as an object of samples.jsonl."""
        return asdict(self)


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

    def sample(self, sample: Sample) -> None:
        """Write a text of the model."""
        ...

    def rewind(self, step: int) -> None:
        """Drop the metrics and texts of later steps, which the run is about to train again."""
        ...

    def close(self) -> None:
        """Write what is still in memory and stop."""
        ...


@dataclass(frozen=True)
class SinkNote:
    """The event of a sink that has failed, or has left something out."""

    step: int
    sink: str
    """The sink's name for people."""
    text: str
    """What happened, and what follows from it."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as an object of events.jsonl."""
        return {"event": "sink"} | asdict(self)

    def __str__(self) -> str:
        return f"{self.sink}: {self.text}"


@runtime_checkable
class Separate(Sink, Protocol):
    """A sink that works in a thread of its own and cannot end the run."""

    def end(self) -> None:
        """Begin to close the sink. `close` waits for it."""
        ...

    def news(self) -> list[SinkNote]:
        """Return what there is to say about the sink since the last call."""
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
        try:
            for sink in self._separate:
                sink.end()  # all of them at once, so that the waiting times do not add up
            for sink in self._separate:
                sink.close()
            self._tell()
        finally:
            self._opened.__exit__(*error)

    def write(self, metrics: StepMetrics) -> None:
        """Write a logged step to every sink."""
        for sink in self._sinks:
            sink.write(metrics)
        self._tell()

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

    def sample(self, sample: Sample) -> None:
        """Write a text of the model to every sink."""
        for sink in self._sinks:
            sink.sample(sample)

    def rewind(self, step: int) -> None:
        """Drop the metrics and texts of later steps from every sink."""
        for sink in self._sinks:
            sink.rewind(step)

    @property
    def _separate(self) -> Iterator[Separate]:
        return (sink for sink in self._sinks if isinstance(sink, Separate))

    def _tell(self) -> None:
        """Write an event about each sink that has something to say, in this thread."""
        for sink in self._separate:
            for note in sink.news():
                self.event(note)
