"""metrics.jsonl and events.jsonl after a crash, in a resumed run and on a full disk."""

import json
import math
from pathlib import Path
from typing import Any

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


def line_of(name: str, step: int) -> str:
    """Return a line of the file of that name, without its end."""
    line = metrics_of(step=step).to_json() if name == METRICS else Happening(step).to_json()
    return json.dumps(line)


def test_lines_are_on_disk_as_soon_as_they_are_written(tmp_path: Path):
    sink = opened(tmp_path)
    sink.write(metrics_of(step=1, loss=2.5))
    sink.event(Happening(1))
    assert read_metrics(tmp_path / METRICS) == [metrics_of(step=1, loss=2.5)]
    assert read_lines(tmp_path / EVENTS) == [{"event": "happening", "step": 1}]
    sink.close()


def test_resuming_drops_the_lines_of_steps_that_are_trained_again(tmp_path: Path):
    for name in (METRICS, EVENTS):
        lines = [line_of(name, step) + "\n" for step in range(1, 8)]
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
    (tmp_path / METRICS).write_text(line_of(METRICS, 1) + "\n")
    opened(tmp_path).close()
    assert (tmp_path / METRICS).read_text() == ""


def test_a_last_line_cut_short_is_left_out(tmp_path: Path):
    path = tmp_path / METRICS
    path.write_text(f'{line_of(METRICS, 1)}\n{line_of(METRICS, 2)}\n{{"step": 3, "lo')
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
    before, after = (line_of(name, step).encode() for step in (1, 2))
    path.write_bytes(before + b"\n" + garbage + b"\n" + after + b"\n")
    assert steps(path) == [1, 2]
    lines: list[str] = []
    sink = JsonLines(lines.append)
    sink.open(tmp_path, 5)
    sink.write(metrics_of(step=6))
    sink.event(Happening(6))
    sink.close()
    assert lines == [f"{path}: 1 damaged line moved to {beside.name} (line 2)"]
    assert beside.read_bytes() == garbage + b"\n"
    assert steps(path) == [1, 2, 6]
    JsonLines(pytest.fail).open(tmp_path, 6)


@pytest.mark.parametrize("garbage", [b"\0" * 300, b"\xff\xfe", b"garbage"])
def test_damage_at_the_end_is_set_aside_too_and_gathered_in_one_file(garbage, tmp_path: Path):
    path = tmp_path / METRICS
    path.write_bytes(garbage + f"\n{line_of(METRICS, 1)}\n".encode() + garbage)
    lines: list[str] = []
    JsonLines(lines.append).open(tmp_path, 5)
    with path.open("ab") as file:
        file.write(garbage)
    JsonLines(lines.append).open(tmp_path, 5)
    assert [line.partition(": ")[2] for line in lines] == [
        f"2 damaged lines moved to {METRICS}.damaged (lines 1, 3)",
        f"1 damaged line moved to {METRICS}.damaged (line 2)",
    ]
    assert (tmp_path / f"{METRICS}.damaged").read_bytes() == (garbage + b"\n") * 3
    assert steps(path) == [1]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path: Path):
    (tmp_path / METRICS).write_text(line_of(METRICS, 1) + "\n" + line_of(METRICS, 2))
    assert steps(tmp_path / METRICS) == [1, 2]


def test_later_events_can_be_kept_and_those_of_changed_settings_are_among_them(tmp_path: Path):
    events = [{"step": 1}, {"step": 5, "event": RESUMED}, {"step": 6}, {"step": 7}]
    path = tmp_path / EVENTS
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert copy_later(path, 3, tmp_path / "kept")
    assert (tmp_path / "kept").read_text() == "".join(
        json.dumps(event) + "\n" for event in events[1:]
    )
    for place, step in ((path, 7), (tmp_path / "gone", 0)):
        assert not copy_later(place, step, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    opened(tmp_path, 3).close()
    assert steps(path) == [1]


WRONG: dict[str, dict[str, Any]] = {
    "a loss in words": {"loss": "abc"},
    "a list instead of a loss": {"val_loss": [1]},
    "a figure of a layer too few": {"cv": [0.5]},
    "a number instead of a list": {"cv": 0.5},
    "a word in a list": {"router_grad_norm": ["a", None, 0.1]},
    "a load that is a number": {"tokens_per_expert": [3, 4, 5]},
    "a load in words": {"tokens_per_expert": [["a"], [], [1]]},
    "loads that are no list": {"tokens_per_expert": None},
    "a step that is true": {"step": True},
    "tokens that are true": {"tokens": True},
    "tokens that are NaN": {"tokens": math.nan},
    "an infinite speed": {"tokens_per_second": -math.inf},
    "a source in words": {"val_by_source": {"a": "good"}},
    "a loss of a source in words": {"val_by_source": {"a": {"loss": "good"}}},
    "sources in a list": {"val_by_source": []},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_lines_of_metrics_that_nothing_could_have_written_are_damaged(wrong, tmp_path: Path):
    path = tmp_path / METRICS
    spoiled = json.dumps(json.loads(line_of(METRICS, 2)) | wrong)
    path.write_text("\n".join([line_of(METRICS, 1), spoiled, line_of(METRICS, 3)]) + "\n")
    lines: list[str] = []
    JsonLines(lines.append).open(tmp_path, 5)
    assert lines == [f"{path}: 1 damaged line moved to {METRICS}.damaged (line 2)"]
    assert steps(path) == [1, 3]
    assert (tmp_path / f"{METRICS}.damaged").read_text() == spoiled + "\n"


@pytest.mark.parametrize("missing", ["loss", "lr", "tokens", "grad_norm"])
def test_a_line_without_a_figure_that_every_version_writes_is_damaged(missing, tmp_path: Path):
    line = json.loads(line_of(METRICS, 2))
    del line[missing]
    (tmp_path / METRICS).write_text(json.dumps(line) + "\n")
    assert read_lines(tmp_path / METRICS) == []


def test_a_line_of_another_version_is_none_that_is_damaged(tmp_path: Path):
    """It has figures that this version does not know, and lacks some that later ones have."""
    line = json.loads(line_of(METRICS, 2)) | {"novel": {"a": ["figure"]}, "loss": None}
    del line["experts_per_token"], line["z_loss"]
    (tmp_path / METRICS).write_text(json.dumps(line) + "\n")
    assert read_lines(tmp_path / METRICS) == [line]


def test_the_numbers_of_many_damaged_lines_are_cut_short(tmp_path: Path):
    (tmp_path / METRICS).write_text('{"step": 3}\n' * 9)
    lines: list[str] = []
    JsonLines(lines.append).open(tmp_path, 5)
    assert lines[0].endswith("(lines 1, 2, 3, 4, 5 and 4 more)")


def test_a_roll_back_over_damaged_lines_sets_them_aside(tmp_path: Path):
    lines: list[str] = []
    sink = JsonLines(lines.append)
    sink.open(tmp_path, 0)
    sink.write(metrics_of(step=1))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 2, "loss": "abc"}\n')
    sink.write(metrics_of(step=3))
    sink.rewind(1)
    sink.write(metrics_of(step=2))
    sink.close()
    assert steps(tmp_path / METRICS) == [1, 2]
    assert lines == [f"{tmp_path / METRICS}: 1 damaged line moved to {METRICS}.damaged (line 2)"]
