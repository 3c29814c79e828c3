"""A sink in a thread of its own, which can neither stop the training nor slow it down.

A full disk, a server that is gone or a socket that hangs end the sink alone. It says so once, in
an event, and what it could not write is counted.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from moebius.cost.units import counted
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event, Sample, Sink, SinkNote

MOST_WAITING = 512
"""Number of calls that may wait for a sink. With 24 layers of 256 experts they take 100 MB."""
CLOSE_SECONDS = 30.0
"""How long the end of a run waits for a sink that has not written everything yet."""

Report = Callable[[str], None]


class _Call(NamedTuple):
    """A call of one of the sink's methods that waits for its turn."""

    method: str
    step: int
    arguments: tuple[Any, ...]


class Apart:
    """Makes a sink of any kind `Separate`: its calls wait in a queue, and none raises an error."""

    def __init__(self, name: str, make: Callable[[Report], Sink]):
        """Call `make` in the thread, to have a sink; it gets a function that takes notes.

        name: the sink's name for people.
        """
        self.name = name
        self._make = make
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        """Guards everything below, and is notified when there is a new call."""
        self._waiting = deque[_Call]()
        self._texts: list[str] = []
        self._is_over = False
        self._is_ending = False
        self._step = 0
        self._left_out = Counter[str]()
        """Number of calls that were not made because the sink is slow, by the methods' names."""

    def open(self, run: Path, step: int) -> None:
        """Start the thread, which opens the sink."""
        self._step = step
        self._put(_Call("open", step, (run, step)))
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def write(self, metrics: StepMetrics) -> None:
        """Let the thread write a logged step."""
        self._step = metrics.step
        self._put(_Call("write", metrics.step, (metrics,)))

    def event(self, event: Event) -> None:
        """Let the thread write an event."""
        self._put(_Call("event", self._step, (event,)))

    def sample(self, sample: Sample) -> None:
        """Let the thread write a text of the model."""
        self._put(_Call("sample", sample.step, (sample,)))

    def rewind(self, step: int) -> None:
        """Let the thread drop what is later, and drop what waits to be written of it."""
        self._step = step
        with self._changed:
            kept = [call for call in self._waiting if call.step <= step or call.method == "event"]
            self._waiting = deque(kept)
        self._put(_Call("rewind", step, (step,)))

    def end(self) -> None:
        """Let the thread close the sink once it has written what waits."""
        with self._changed:
            if self._is_ending:
                return
            self._is_ending = True
            self._deadline = time.monotonic() + CLOSE_SECONDS
            self._changed.notify()

    def close(self) -> None:
        """Close the sink, and wait until that is done, but no longer than `CLOSE_SECONDS`."""
        self.end()
        if self._thread is None:
            return
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        with self._changed:
            self._thread = None
            if not self._is_over:
                self._left_out += Counter(call.method for call in self._waiting)
                lacks = self._losses() or "it may lack the end"
                self._texts.append(f"still busy {CLOSE_SECONDS:.0f} s after the end; {lacks}")
                self._is_over = True
            elif lacks := self._losses():
                self._texts.append(lacks)

    def news(self) -> list[SinkNote]:
        """Return what there is to say about the sink since the last call."""
        with self._changed:
            texts, self._texts = self._texts, []
        return [SinkNote(self._step, self.name, text) for text in texts]

    def _put(self, call: _Call) -> None:
        """Let a call wait. If too many do, it is left out, unless the sink would be wrong then."""
        with self._changed:
            if self._is_over or self._is_ending:
                return
            if len(self._waiting) < MOST_WAITING or call.method in ("open", "rewind"):
                self._waiting.append(call)
                self._changed.notify()
                return
            if not self._left_out:
                self._texts.append(
                    "too slow, so that it lacks something from now on; the run's own files have "
                    "everything"
                )
            self._left_out[call.method] += 1

    def _work(self) -> None:
        """Make the calls one after the other, in the thread, until the sink is closed or fails."""
        sink: Sink | None = None
        try:
            sink = self._make(self._note)
            while call := self._next():
                getattr(sink, call.method)(*call.arguments)
            sink.close()
        except Exception as error:  # whatever it is, it must not reach the training
            self._note(f"{str(error) or type(error).__name__}; the run goes on without it")
            with suppress(Exception):
                if sink is not None:
                    sink.close()
        with self._changed:
            self._is_over = True
            self._waiting.clear()

    def _next(self) -> _Call | None:
        """Return the next call, or None at the end."""
        with self._changed:
            while not (self._waiting or self._is_ending or self._is_over):
                self._changed.wait()
            return self._waiting.popleft() if self._waiting and not self._is_over else None

    def _note(self, text: str) -> None:
        with self._changed:
            if not self._is_over:
                self._texts.append(text)

    def _losses(self) -> str:
        """Return in words what was left out, or "". The caller has the lock."""
        names = {"write": "logged step", "event": "event", "sample": "sample"}
        parts = [
            counted(self._left_out[method], name)
            for method, name in names.items()
            if self._left_out[method]
        ]
        return f"it lacks {', '.join(parts)}" if parts else ""
