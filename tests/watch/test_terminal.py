"""Runs in the terminal: side by side, above each other, as lines, and once."""

import sys
import time

import pytest
from rich.segment import Segment

from moebius.observe.view import View
from moebius.watch import terminal as module
from moebius.watch.terminal import picture, watch
from moebius.watch.watched import WatchedRun
from tests.emulator import Emulator, TerminalStream
from tests.observe.made_up_view import made_up
from tests.report.made_up_run import write_run


@pytest.mark.parametrize("num_runs", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("size", [(80, 23), (120, 39), (200, 49), (60, 14), (30, 5)])
def test_runs_fill_the_terminal(size, num_runs):
    width, height = size
    views = [View(made_up(4, 8)) for _ in range(num_runs)]
    for number, view in enumerate(views):
        view.so_far.name = f"run{number}"
    rows = picture(views, width, height)
    assert len(rows) == height
    assert all(Segment.get_line_length(row) <= width for row in rows)
    text = "\n".join("".join(segment.text for segment in row) for row in rows)
    assert text.count("training: ") == min(num_runs, max(1, width // 60) * max(1, height // 8))
    if width == 200:
        assert all(f"run{number}" in text for number in range(num_runs))


def test_two_runs_are_beside_each_other_or_above():
    views = [View(made_up(4, 8)) for _ in range(2)]
    for width, number in ((120, 2), (119, 1)):
        (first, *_) = picture(views, width, 39)
        assert "".join(segment.text for segment in first).count("my-run") == number


def test_once_without_a_terminal_is_a_line_for_each_run(tmp_path):
    runs = [WatchedRun(write_run(tmp_path / name)) for name in ("a", "b")]
    said: list[str] = []
    watch(runs, True, said.append)
    assert [line[:24] for line in said] == ["a: finished  step 20/20 ", "b: finished  step 20/20 "]


def test_lines_end_when_no_run_is_trained(tmp_path, monkeypatch):
    runs = [WatchedRun(write_run(tmp_path / name)) for name in ("a", "b")]
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    trained = iter([True, False, True, True] + [False] * 9)
    monkeypatch.setattr("moebius.watch.watched.OWNER_SECONDS", -1.0)
    monkeypatch.setattr("moebius.watch.watched.is_owned", lambda folder: next(trained))
    said: list[str] = []
    watch(runs, False, said.append)
    assert [line[:13] for line in said] == ["a: step 20/20", "b: step 20/20", "a: finished  ",
                                            "b: finished  "]  # fmt: skip


@pytest.mark.parametrize("is_once", [True, False])
def test_on_a_terminal(is_once, tmp_path, monkeypatch):
    for name, value in (("COLUMNS", "80"), ("LINES", "24"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    screen = Emulator(80, 24)
    monkeypatch.setattr(sys, "stdout", TerminalStream(screen))
    run = WatchedRun(write_run(tmp_path / "run"))
    seen: list[str] = []

    said: list[str] = []
    end = time.monotonic() + 30

    def update() -> list[str]:
        if screen.shown[0] or not seen:
            seen.extend(screen.shown)
        if any("healthy" in row for row in seen) or time.monotonic() > end:
            raise KeyboardInterrupt
        return []

    if is_once:
        watch([run], True, said.append)
        seen = screen.shown
    else:
        run.update()
        monkeypatch.setattr(run, "update", update)
        monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
        with pytest.raises(KeyboardInterrupt):
            watch([run], False, said.append)
        assert screen.shown == [""] * 24 and said[0].startswith("run: finished")
    assert any("run  finished: healthy so far" in row for row in seen)
    assert any("▄▄▄" in row for row in seen)
