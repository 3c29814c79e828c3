"""Several sinks as one, and a sink of one's own."""

from pathlib import Path
from typing import Any

import pytest

from moebius.errors import StorageError
from moebius.observe.json_lines import EVENTS, METRICS, JsonLines
from moebius.observe.line_file import read_lines
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event, Sample, Sink, Sinks
from tests.observe.made_up import Happening, metrics_of


class Diary:
    """A sink that writes down every call, in a list that it may share with other sinks."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]], fails_to: str = ""):
        self.name, self.calls, self.fails_to = name, calls, fails_to

    def _note(self, verb: str, *arguments: Any) -> None:
        if verb == self.fails_to:
            raise StorageError(f"{self.name} cannot {verb}")
        self.calls.append((self.name, verb, *arguments))

    def open(self, run: Path, step: int) -> None:
        self._note("open", run, step)

    def write(self, metrics: StepMetrics) -> None:
        self._note("write", metrics.step)

    def event(self, event: Event) -> None:
        self._note("event", event.to_json()["step"])

    def sample(self, sample: Sample) -> None:
        self._note("sample", sample)

    def rewind(self, step: int) -> None:
        self._note("rewind", step)

    def close(self) -> None:
        self._note("close")


def test_every_sink_gets_every_call_in_order(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    with Sinks([Diary("a", calls), Diary("b", calls)], tmp_path, 4) as sinks:
        sinks.write(metrics_of(step=5))
        sinks.event(Happening(5))
        sinks.rewind(3)
    assert calls == [
        ("a", "open", tmp_path, 4),
        ("b", "open", tmp_path, 4),
        ("a", "write", 5),
        ("b", "write", 5),
        ("a", "event", 5),
        ("b", "event", 5),
        ("a", "rewind", 3),
        ("b", "rewind", 3),
        ("b", "close"),
        ("a", "close"),
    ]


def test_sinks_that_are_open_are_closed_when_a_later_one_fails_to_open(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    sinks = [Diary("a", calls), Diary("b", calls), Diary("c", calls, fails_to="open")]
    with (
        pytest.raises(StorageError, match="c cannot open"),
        Sinks([*sinks, Diary("d", calls)], tmp_path, 0),
    ):
        pytest.fail("the block is not entered")
    assert [(name, verb) for name, verb, *_ in calls] == [
        ("a", "open"),
        ("b", "open"),
        ("b", "close"),
        ("a", "close"),
    ]


def test_every_sink_is_closed_though_one_fails_to_write_and_one_to_close(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    sinks = [Diary("a", calls), Diary("b", calls, "close"), Diary("c", calls, "write")]
    with pytest.raises(StorageError) as refusal, Sinks(sinks, tmp_path, 0) as opened:
        opened.write(metrics_of(step=1))
    assert "b cannot close" in str(refusal.value)
    assert [call[:2] for call in calls[-2:]] == [("c", "close"), ("a", "close")]


def test_a_sink_of_ones_own_stands_beside_the_others(tmp_path: Path):
    class LossFile:
        """A sink that keeps one number per step in a text file."""

        def open(self, run: Path, step: int) -> None:
            self._file = (run / "losses.txt").open("a")

        def write(self, metrics: StepMetrics) -> None:
            self._file.write(f"{metrics.step} {metrics.loss}\n")

        def event(self, event: Event) -> None:
            self._file.write(f"# {event}\n")

        def sample(self, sample: Sample) -> None:
            self._file.write(f"# {sample.text}\n")

        def rewind(self, step: int) -> None:
            self._file.write(f"# back to step {step}\n")

        def close(self) -> None:
            self._file.close()

    own: Sink = LossFile()
    with Sinks([JsonLines(), own], tmp_path, 0) as sinks:
        sinks.write(metrics_of(step=1, loss=2.5))
        sinks.event(Happening(1))
        sinks.sample(Sample(1, "", "a text"))
        sinks.rewind(0)
    written = (tmp_path / "losses.txt").read_text().splitlines()
    assert written == ["1 2.5", "# happening 1", "# a text", "# back to step 0"]
    assert read_lines(tmp_path / METRICS) == [] and len(read_lines(tmp_path / EVENTS)) == 1


def test_an_event_reaches_every_sink_though_one_fails(tmp_path: Path):
    """An event says why a run ends, so a full disk must not keep it from the terminal."""
    calls: list[tuple[Any, ...]] = []
    sinks = [Diary("a", calls, "event"), Diary("b", calls, "event"), Diary("c", calls)]
    with Sinks(sinks, tmp_path, 0) as opened, pytest.raises(StorageError, match="a cannot event"):
        opened.event(Happening(1))
    assert ("c", "event", 1) in calls
