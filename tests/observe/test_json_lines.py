"""metrics.jsonl: what a crash, a resumed run and a full disk leave of it."""

import json
import math
from pathlib import Path

import pytest

from moebius.errors import StorageError
from moebius.observe.json_lines import JsonLines, read_lines


def test_lines_are_on_disk_as_soon_as_written(tmp_path: Path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write({"step": 1, "loss": 2.5, "cv": [0.1, 0.2]})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5, "cv": [0.1, 0.2]}]
    file.close()


def test_resuming_drops_the_lines_of_steps_that_run_again(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": step / 2}) + "\n" for step in range(1, 8)))
    file = JsonLines(path, resume_step=4)
    file.write({"step": 5, "loss": 9.0})
    file.close()
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, 9.0)]
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_starts_an_empty_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonLines(path).close()
    assert path.read_text() == ""


def test_a_last_line_cut_short_is_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2]
    file = JsonLines(path, resume_step=9)
    file.write({"step": 3})
    file.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_null(value, tmp_path: Path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write({"step": 1, "loss": value})
    file.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_a_place_that_cannot_be_written_is_an_error_of_exit_code_6(tmp_path: Path):
    with pytest.raises(StorageError, match=r"gone/metrics\.jsonl: No such file or directory") as refused:
        JsonLines(tmp_path / "gone" / "metrics.jsonl")
    assert refused.value.exit_code == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_stays_the_error_when_the_file_is_closed(tmp_path: Path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file._file.close()
    file._file = open("/dev/full", "a", buffering=1)  # noqa: PTH123, SIM115
    with pytest.raises(StorageError, match="/dev/full: No space left on device"):
        file.write({"step": 1})
    file.close()
