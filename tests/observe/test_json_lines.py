"""metrics.jsonl and events.jsonl after a crash, in a resumed run and on a full disk."""

import json
import math
from pathlib import Path

import pytest

from moebius.errors import StorageError
from moebius.observe.json_lines import (
    EVENTS,
    METRICS,
    JsonLines,
    read_metrics,
)
from moebius.observe.line_file import copy_later, read_lines
from moebius.observe.sink import RESUMED, REWOUND_TO
from tests.observe.made_up import Happening, metrics_of


def opened(run: Path, step: int = 0) -> JsonLines:
    """Return an open sink for a run that begins or continues at a step."""
    sink = JsonLines()
    sink.open(run, step)
    return sink


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_lines(path)]


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path: Path):
    sink = opened(tmp_path)
    sink.write(metrics_of(step=1, loss=2.5))
    sink.event(Happening(1))
    assert read_metrics(tmp_path / METRICS) == [metrics_of(step=1, loss=2.5)]
    assert read_lines(tmp_path / EVENTS) == [{"event": "happening", "step": 1}]
    sink.close()


def test_resuming_drops_the_lines_of_steps_that_are_trained_again(tmp_path: Path):
    for name in (METRICS, EVENTS):
        lines = [json.dumps({"step": step}) + "\n" for step in range(1, 8)]
        (tmp_path / name).write_text("".join(lines))
    sink = opened(tmp_path, step=4)
    sink.write(metrics_of(step=5))
    sink.close()
    assert steps(tmp_path / METRICS) == [1, 2, 3, 4, 5]
    assert steps(tmp_path / EVENTS) == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([METRICS, EVENTS])


def test_a_roll_back_drops_metrics_and_keeps_events(tmp_path: Path):
    sink = opened(tmp_path)
    for step in range(1, 6):
        sink.write(metrics_of(step=step))
        sink.event(Happening(step))
    sink.rewind(2)
    sink.write(metrics_of(step=3))
    sink.close()
    assert steps(tmp_path / METRICS) == [1, 2, 3]
    assert steps(tmp_path / EVENTS) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("step", "kept"),
    [(9, [1, 5, 6, 4, 9]), (5, [1, 5, 6, 4]), (3, [1, 5, 6]), (2, [1])],
)
def test_a_resumed_run_keeps_the_roll_backs_that_it_builds_on(step, kept, tmp_path: Path):
    events = [{"step": 1}, {"step": 5}, {"step": 6, REWOUND_TO: 3}, {"step": 4}, {"step": 9}]
    (tmp_path / EVENTS).write_text("".join(json.dumps(event) + "\n" for event in events))
    opened(tmp_path, step).close()
    assert steps(tmp_path / EVENTS) == kept


def test_a_new_run_starts_with_empty_files(tmp_path: Path):
    (tmp_path / METRICS).write_text('{"step": 1}\n')
    opened(tmp_path).close()
    assert (tmp_path / METRICS).read_text() == ""


def test_a_last_line_cut_short_is_left_out(tmp_path: Path):
    path = tmp_path / METRICS
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert steps(path) == [1, 2]
    sink = opened(tmp_path, step=9)
    sink.write(metrics_of(step=3))
    sink.close()
    assert steps(path) == [1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_null(value, tmp_path: Path):
    sink = opened(tmp_path)
    sink.write(metrics_of(loss=value, cv=[value, 0.0, 0.5]))
    sink.close()
    (line,) = read_lines(tmp_path / METRICS)
    assert line["loss"] is None and line["cv"] == [None, 0.0, 0.5]
    assert math.isnan(read_metrics(tmp_path / METRICS)[0].loss)


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    with pytest.raises(StorageError, match=r"gone/metrics\.jsonl: No such file") as refusal:
        opened(tmp_path / "gone")
    assert refusal.value.exit_code == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_stays_the_error_when_the_file_is_closed(tmp_path: Path):
    sink = opened(tmp_path)
    sink._metrics.close()
    sink._metrics = Path("/dev/full").open("a", buffering=1)  # noqa: SIM115
    with pytest.raises(StorageError, match="/dev/full: No space left on device"):
        sink.write(metrics_of(step=1))
    sink.close()


GARBAGE = {
    "zeros": b"\0" * 300,
    "not UTF-8": b"\xff\xfe{}",
    "half a line": b'{"step": 3, "lo',
    "a list": b"[1, 2]",
    "a number": b"7",
    "no step": b'{"event": "cv"}',
    "a step in words": b'{"step": "three"}',
    "a wrong step to go back to": b'{"step": 3, "rewound_to": "two"}',
    "too deep": b"[" * 100_000,
    "an endless number": b'{"step": ' + b"9" * 5000 + b"}",
    "zeros before a line": b"\0" * 300 + b'{"step": 3}',
}


@pytest.mark.parametrize("name", [METRICS, EVENTS])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_damaged_lines_are_set_aside_and_named(garbage, name, tmp_path: Path):
    path, beside = tmp_path / name, tmp_path / f"{name}.damaged"
    path.write_bytes(b'{"step": 1}\n' + garbage + b'\n{"step": 2}\n')
    assert steps(path) == [1, 2]
    lines: list[str] = []
    sink = JsonLines(lines.append)
    sink.open(tmp_path, 5)
    sink.write(metrics_of(step=6))
    sink.event(Happening(6))
    sink.close()
    assert lines == [f"{path}: 1 damaged line moved to {beside.name}"]
    assert beside.read_bytes() == garbage + b"\n"
    assert steps(path) == [1, 2, 6]
    JsonLines(pytest.fail).open(tmp_path, 6)


@pytest.mark.parametrize("garbage", [b"\0" * 300, b"\xff\xfe", b"garbage"])
def test_damage_at_the_end_is_set_aside_too_and_gathered_in_one_file(garbage, tmp_path: Path):
    path = tmp_path / METRICS
    path.write_bytes(garbage + b'\n{"step": 1}\n' + garbage)
    lines: list[str] = []
    JsonLines(lines.append).open(tmp_path, 5)
    with path.open("ab") as file:
        file.write(garbage)
    JsonLines(lines.append).open(tmp_path, 5)
    assert [line.partition(": ")[2].partition(" moved")[0] for line in lines] == [
        "2 damaged lines",
        "1 damaged line",
    ]
    assert (tmp_path / f"{METRICS}.damaged").read_bytes() == (garbage + b"\n") * 3
    assert steps(path) == [1]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2}')
    assert steps(tmp_path / METRICS) == [1, 2]


def test_events_of_changed_settings_stay_and_the_other_later_ones_can_be_kept(tmp_path: Path):
    events = [{"step": 1}, {"step": 5, "event": RESUMED}, {"step": 6}, {"step": 7}]
    path = tmp_path / EVENTS
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert copy_later(path, 3, tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == '{"step": 6}\n{"step": 7}\n'
    for place, step in ((path, 7), (tmp_path / "gone", 0)):
        assert not copy_later(place, step, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    opened(tmp_path, 3).close()
    assert steps(path) == [1, 5]
