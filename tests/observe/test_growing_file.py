"""Reading a file while another process writes, cuts and damages it."""

import json
from pathlib import Path

from moebius.observe.growing_file import GrowingFile


def lines(*steps: int) -> str:
    return "".join(json.dumps({"event": "x", "step": step}) + "\n" for step in steps)


def read(file: GrowingFile) -> tuple[list[int], int, bool]:
    grown = file.read()
    return [line["step"] for line in grown.lines], grown.num_damaged, grown.is_new


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_come_once_and_a_half_written_one_comes_later(tmp_path):
    path = tmp_path / "events.jsonl"
    file = GrowingFile(path)
    assert read(file) == ([], 0, False)
    path.write_text(lines(1, 2))
    assert read(file) == ([1, 2], 0, True)
    append(path, lines(3)[:9])
    assert read(file) == ([], 0, False)
    append(path, lines(3)[9:] + lines(4))
    assert read(file) == ([3, 4], 0, False)
    assert read(file) == ([], 0, False)


def test_damaged_lines_are_counted(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"\x00\xff\n" + lines(1).encode() + b'{"step": "x"}\n[]\n\n')
    assert read(GrowingFile(path)) == ([1], 3, True)


def test_a_file_that_was_cut_is_read_again_even_if_it_has_grown_since(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(lines(1, 2, 3))
    file = GrowingFile(path)
    read(file)
    path.write_text(lines(1))
    assert read(file) == ([1], 0, True)
    append(path, lines(20, 30))
    assert read(file) == ([20, 30], 0, False)
    with path.open("r+") as opened:  # in place, and longer than before
        opened.truncate(len(lines(1)))
        opened.seek(0, 2)
        opened.write(lines(7, 8, 9, 10))
    assert read(file) == ([1, 7, 8, 9, 10], 0, True)


def test_a_file_that_was_replaced_or_removed(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(lines(1, 2))
    file = GrowingFile(path)
    read(file)
    (tmp_path / "other").write_text(lines(1, 2, 3))
    (tmp_path / "other").replace(path)
    assert read(file) == ([1, 2, 3], 0, True)
    path.unlink()
    assert read(file) == ([], 0, True)
    assert read(file) == ([], 0, False)


def test_of_a_long_file_the_end_is_read(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(lines(*range(1000)))
    file = GrowingFile(path, most_bytes=200)
    steps, damaged, _ = read(file)
    assert steps and steps == list(range(steps[0], 1000)) and len(steps) < 8 and not damaged
    append(path, lines(*range(1000, 2000)))
    steps, damaged, is_new = read(file)
    assert steps == list(range(steps[0], 2000)) and len(steps) < 8 and not damaged and not is_new
    append(path, "x" * 1000)  # a line without an end takes no more memory
    assert read(file)[0] == []
    append(path, "\n" + lines(5))
    assert read(file)[0] == [5]
