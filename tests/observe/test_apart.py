"""A sink that works apart neither stops nor slows the training, whatever happens to it."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moebius.errors import StorageError
from moebius.observe import apart
from moebius.observe.apart import MOST_WAITING, Apart, Report
from moebius.observe.json_lines import EVENTS, METRICS, JsonLines
from moebius.observe.line_file import read_lines
from moebius.observe.sink import Sample, Sinks
from moebius.observe.tensorboard import FOLDER, TensorBoard
from tests.observe.broken import small_files
from tests.observe.made_up import Happening, metrics_of
from tests.observe.test_sink import Diary

Act = Callable[[], Any]


class Odd(Diary):
    """A sink that does something of its own before each call of one kind."""

    def __init__(self, calls: list[tuple[Any, ...]], verb: str, act: Act):
        super().__init__("odd", calls)
        self.verb, self.act = verb, act

    def _note(self, verb: str, *arguments: Any) -> None:
        if verb == self.verb:
            self.act()
        super()._note(verb, *arguments)


def fail() -> None:
    raise StorageError("it is broken")


def with_odd(folder: Path, calls: list[tuple[Any, ...]], verb: str, act: Act) -> Sinks:
    """Return the sink that every run has, and one apart from it."""
    odd = Apart("Odd", lambda report: Odd(calls, verb, act))
    return Sinks([JsonLines(), odd], folder, 0)


def notes(folder: Path) -> list[str]:
    """Return what was recorded about sinks."""
    return [line["text"] for line in read_lines(folder / EVENTS) if line["event"] == "sink"]


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_lines(folder / METRICS)]


def test_every_call_is_made_in_its_order(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    threads = set()
    with with_odd(tmp_path, calls, "write", lambda: threads.add(threading.current_thread().name)):
        pass
    with with_odd(tmp_path, calls, "write", lambda: threads.add(threading.get_ident())) as sinks:
        sinks.write(metrics_of(step=1))
        sinks.event(Happening(1))
        sinks.sample(Sample(1, "", "text"))
        time.sleep(0.2)  # so that nothing of it waits any more
        sinks.rewind(0)
        sinks.write(metrics_of(step=1))
    verbs = [call[1] for call in calls[2:]]
    assert verbs == ["open", "write", "event", "sample", "rewind", "write", "close"]
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert notes(tmp_path) == []


@pytest.mark.parametrize("verb", ["open", "write", "event", "sample", "rewind", "close"])
@pytest.mark.parametrize("act", [fail, lambda: 1 / 0])
def test_a_sink_that_fails_says_so_once_and_the_others_go_on(tmp_path: Path, verb: str, act: Act):
    calls: list[tuple[Any, ...]] = []
    with with_odd(tmp_path, calls, verb, act) as sinks:
        for step in range(1, 30):
            sinks.write(metrics_of(step=step))
            sinks.event(Happening(step))
            sinks.sample(Sample(step, "", ""))
            sinks.rewind(step)
    assert steps(tmp_path) == list(range(1, 30))
    reason = "it is broken" if act is fail else "division by zero"
    assert notes(tmp_path) == [f"{reason}; the run goes on without it"]


def test_a_sink_that_cannot_even_be_made_is_the_same(tmp_path: Path):
    def make(report: Report) -> Any:
        raise ImportError("no module named board")

    with Sinks([JsonLines(), Apart("Board", make)], tmp_path, 0) as sinks:
        sinks.write(metrics_of(step=1))
    assert notes(tmp_path) == ["no module named board; the run goes on without it"]
    assert read_lines(tmp_path / EVENTS)[0]["sink"] == "Board"


@pytest.mark.parametrize("verb", ["open", "write", "close"])
def test_a_sink_that_hangs_holds_nothing_up(tmp_path: Path, verb: str, monkeypatch):
    monkeypatch.setattr(apart, "CLOSE_SECONDS", 0.5)
    never = threading.Event()
    start = time.monotonic()
    with with_odd(tmp_path, [], verb, never.wait) as sinks:
        for step in range(1, 6):
            sinks.write(metrics_of(step=step))
        assert time.monotonic() - start < 0.4
    assert time.monotonic() - start < 2.0
    never.set()
    (note,) = notes(tmp_path)
    lost = {"open": "it lacks 5 logged steps", "write": "it lacks 4 logged steps"}
    assert note == f"still busy 0 s after the end; {lost.get(verb, 'it may lack the end')}"
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_two_sinks_that_hang_are_waited_for_together(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(apart, "CLOSE_SECONDS", 0.6)
    never = threading.Event()
    sinks = [Apart(f"{n}", lambda report: Odd([], "open", never.wait)) for n in range(3)]
    start = time.monotonic()
    with Sinks([JsonLines(), *sinks], tmp_path, 0):
        pass
    assert time.monotonic() - start < 1.2
    never.set()
    assert len(notes(tmp_path)) == 3


def test_a_slow_sink_is_waited_for_at_the_end_alone(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    start = time.monotonic()
    with with_odd(tmp_path, calls, "write", lambda: time.sleep(0.03)) as sinks:
        for step in range(1, 21):
            sinks.write(metrics_of(step=step))
        assert time.monotonic() - start < 0.3
    assert [call[2] for call in calls if call[1] == "write"] == list(range(1, 21))
    assert notes(tmp_path) == []


def test_what_a_slow_sink_lacks_is_counted(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    go = threading.Event()
    count = MOST_WAITING + 100
    with with_odd(tmp_path, calls, "write", go.wait) as sinks:
        sinks.write(metrics_of(step=1))
        time.sleep(0.2)  # the thread has it, and waits
        for step in range(2, count + 1):
            sinks.write(metrics_of(step=step))
        sinks.sample(Sample(count, "", ""))
        go.set()
    first, last = notes(tmp_path)
    assert first.startswith("too slow, so that it lacks something from now on")
    assert last == "it lacks 99 logged steps, 1 event, 1 sample"  # the event is the first note
    written = [call[2] for call in calls if call[1] == "write"]
    assert written == list(range(1, MOST_WAITING + 2))


def test_a_roll_back_takes_away_what_waits(tmp_path: Path):
    calls: list[tuple[Any, ...]] = []
    go = threading.Event()
    with with_odd(tmp_path, calls, "open", go.wait) as sinks:
        for step in range(1, 9):
            sinks.write(metrics_of(step=step))
            sinks.sample(Sample(step, "", ""))
            sinks.event(Happening(step))
        sinks.rewind(3)
        sinks.write(metrics_of(step=4))
        go.set()
    assert [call[2] for call in calls if call[1] == "write"] == [1, 2, 3, 4]
    assert [call[2].step for call in calls if call[1] == "sample"] == [1, 2, 3]
    assert [call[2] for call in calls if call[1] == "event"] == list(range(1, 9))
    assert [call[1] for call in calls[-3:]] == ["rewind", "write", "close"]


def test_a_disk_that_is_full_for_tensorboard_leaves_the_rest(tmp_path: Path):
    """The system refuses to let its file grow; the files of the run are shorter."""
    (tmp_path / "config.toml").write_text("# a comment\n" * 5_000)
    board = Apart("TensorBoard", lambda report: TensorBoard())
    with small_files(50_000), Sinks([JsonLines(), board], tmp_path, 0) as sinks:
        for step in range(1, 4):
            sinks.write(metrics_of(step=step))
    assert steps(tmp_path) == [1, 2, 3]
    reason = f"{tmp_path / FOLDER}: File too large; the run goes on without it"
    assert notes(tmp_path) == [reason]


def test_a_note_at_the_end_does_not_hide_an_error(tmp_path: Path):
    with (
        pytest.raises(RuntimeError, match="the loop failed"),
        with_odd(tmp_path, [], "write", fail) as sinks,
    ):
        sinks.write(metrics_of(step=1))
        raise RuntimeError("the loop failed")
    assert len(notes(tmp_path)) == 1
